"""LitData: a folder with `index.json` and chunks, uncompressed.

In: the folder. Out: where the images of its chunks lie. A chunk is one of samples, field by field, or, where all fields are
plain values, ends in an Arrow file, which newer versions write in their place.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from functools import partial
from typing import Any

from ...errors import IndexFileError
from . import arrows
from .columns import Columns
from .rows import Source
from .samples import checked_file, image_field, members, read_index
from .spans import Members, SpanSource

_ARROW_AT_END = b"LDARW01\0"
_REMEDY = "litdata.optimize(…) of samples whose images are bytes or litdata.types.Image"


def open_folder(path: str, columns: Columns) -> list[Source] | None:
    """The chunks of a LitData folder; None for any other folder.

    Raises:
        IndexFileError: its `index.json` is damaged, it is compressed or encrypted, a chunk is missing or of another length, or
            no field holds encoded images.
    """
    about = os.path.join(path, "index.json")
    said = read_index(path)
    chunks, config = said.get("chunks"), said.get("config")
    if not isinstance(chunks, list) or not chunks or not isinstance(config, dict):
        return None
    for key in ("compression", "encryption"):
        if config.get(key):
            raise IndexFileError(
                f"'{path}' has {key} = {config[key]!r}, and cannot be read in place; write it anew without: "
                f"litdata.optimize(fn, inputs, output_dir, chunk_bytes='64MB')"
            )
    if config.get("item_loader") not in (None, "PyTreeLoader"):
        raise IndexFileError(f"'{path}' is written for {config['item_loader']}, which holds no encoded images")
    try:
        kinds = [str(kind).partition(":")[0] for kind in config["data_format"]]
        names = _names(json.loads(config["data_spec"])[1])
        if len(names) != len(kinds):
            raise ValueError(f"{len(names)} fields of {len(kinds)} kinds")
        # Older writers count the items alone, without the table before them.
        files = [
            checked_file(
                path, chunk["filename"], (chunk["chunk_bytes"], chunk["chunk_bytes"] + 4 * (chunk["chunk_size"] + 2))
            )
            for chunk in chunks
        ]
    except (KeyError, TypeError, ValueError, IndexError, RecursionError) as e:
        raise IndexFileError(
            f"'{about}' is no index of LitData chunks, or a damaged one ({e!r}); fetch it again"
        ) from None
    return [SpanSource(file, partial(_members, path, file, names, kinds, columns)) for file in files]


def _members(folder: str, path: str, names: Sequence[str], kinds: Sequence[str], columns: Columns) -> Members:
    whole = arrows.mapped(path)
    if whole.size >= 12 and whole.slice(whole.size - 8).to_pybytes() == _ARROW_AT_END:
        size = int.from_bytes(whole.slice(whole.size - 12, 4).to_pybytes(), "little")
        if size > whole.size - 12:
            raise IndexFileError(f"'{path}' is damaged: it claims {size} bytes of Arrow; fetch it again")
        return arrows.members(folder, path, whole, whole.slice(whole.size - 12 - size, size), columns)
    image = image_field(folder, names, kinds, ("jpeg", "image", "tiff", "file"), columns, _REMEDY)
    return members(folder, path, names, kinds, [None] * len(names), image, columns)


def _names(spec: dict[str, Any], above: str = "") -> list[str]:
    """Dotted names of the leaves of a tree: keys of dictionaries, and places in lists and tuples."""
    if spec["type"] is None:
        return [above]
    parts = spec["children_spec"]
    keys = json.loads(spec["context"]) if spec["type"] == "builtins.dict" else range(len(parts))
    return [
        name
        for key, part in zip(keys, parts, strict=True)
        for name in _names(part, f"{above}.{key}" if above else str(key))
    ]
