"""Shards of samples, as MosaicML's MDS and LitData write them: where each field of each sample lies.

In: a shard, and which fields have a length of their own. Out: first byte and bytes of each field. Apart from the two, which
differ in what fields are called and how they are written.

A shard starts with u32 n and u32[n + 1], where each sample starts and the last one ends. A sample starts with a u32 for each
field whose length is not fixed, its bytes, and then has the fields, one behind the other.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ...errors import IndexFileError
from .columns import Columns
from .labels import from_json
from .parquet import LIKELY
from .rows import read_json
from .spans import Members, row_names

_SHARDS = (".mds", ".zstd", ".gz", ".bz2", ".br", ".snappy", ".bin")
TEXT = ("str", "text", "str_int")
NUMBER = {"int": "<i8", "bool": "u1", "float": "<f8"} | {
    f"{kind}{bits}": f"<{kind[0]}{bits // 8}" for kind in ("int", "uint", "float") for bits in (8, 16, 32, 64)
}
"""Kinds of fields that are read: texts, and numbers with how they lie."""


def read_index(folder: str) -> dict[str, Any]:
    """The `index.json` of a data set; empty where there is none, or one that is no object, or beside no shards.

    Raises:
        IndexFileError: it cannot be read.
    """
    path = os.path.join(folder, "index.json")
    if not os.path.exists(path) or not any(name.endswith(_SHARDS) for name in os.listdir(folder)):
        return {}
    found = read_json(path, "fetch it again")
    return found if isinstance(found, dict) else {}


def image_field(
    path: str, names: Sequence[str], kinds: Sequence[str], images: Sequence[str], columns: Columns, remedy: str
) -> str:
    """The field with the images.

    Args:
        path: the data set.
        names: its fields.
        kinds: what each is.
        images: kinds that are surely images; `bytes` may be.
        columns: which one is named, if any.
        remedy: how to write encoded images.

    Raises:
        IndexFileError: there is none that can be read in place, or it cannot be told which.
    """
    columns.check(path, names)
    kind_of = dict(zip(names, kinds, strict=True))
    readable = [name for name in names if kind_of[name] in images or kind_of[name] == "bytes"]
    if columns.image:
        likely = [columns.image]
    else:
        likely = [name for name in readable if kind_of[name] in images] or readable
        if len(likely) > 1:
            likely = [name for name in LIKELY if name in likely][:1] or likely
    if len(likely) == 1 and likely[0] in readable:
        return likely[0]
    shown = ", ".join(f"{name}: {kind}" for name, kind in kind_of.items())
    if len(likely) > 1:
        raise IndexFileError(
            f"'{path}': several columns may be the images ({shown}); give the one of the images by --image-column"
        )
    raise IndexFileError(
        f"'{path}' has no column of encoded images ({shown}), and pixels cannot be read in place; write it anew by {remedy}"
    )


def members(
    data_set: str,
    path: str,
    names: Sequence[str],
    kinds: Sequence[str],
    fixed: Sequence[int | None],
    image: str,
    columns: Columns,
) -> Members:
    """Finds the images of one shard, and reads its labels, captions and weights.

    Args:
        data_set: what the shard is a part of, for notes.
        path: the shard.
        names: its fields.
        kinds: what each is.
        fixed: bytes of each, None where each sample says.
        image: the field of the images.
        columns: what fields are called.

    Raises:
        IndexFileError: it is damaged, or its labels are of a kind that is not read.
    """
    label, caption, notes = columns.annotations(data_set, names)
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            offset, length = _fields(data, fixed)

            def values(name: str | None) -> list[Any] | None:
                if name is None:
                    return None
                k = list(names).index(name)
                read = _reader(path, name, kinds[k])
                places = zip(offset[:, k].tolist(), length[:, k].tolist(), strict=True)
                return [read(data[at : at + n]) for at, n in places]

            labels, captions, weights = map(values, (label, caption, columns.weight or None))
    except (OSError, ValueError, IndexError) as e:
        raise IndexFileError(f"'{path}' is no shard of this data set, or a damaged or shortened one: {e}") from None
    k = list(names).index(image)
    rows = row_names(image, len(offset))
    return Members(
        rows,
        offset[:, k],
        length[:, k],
        labels=labels,
        captions=captions,
        weights=weights,
        notes=notes,
        targets=bool(columns.target),
    )


def _reader(path: str, name: str, kind: str) -> Callable[[bytes], Any]:
    """What turns the bytes of a field into a value.

    Raises:
        IndexFileError: values of this kind are not read.
    """
    if kind in TEXT or kind == "bytes":
        return bytes.decode
    if kind == "json":
        return lambda raw: from_json(raw.decode())
    if kind in NUMBER:
        return lambda raw: np.frombuffer(raw, NUMBER[kind])[0].item()
    raise IndexFileError(
        f"'{path}': column '{name}' is of kind '{kind}', which is not read; write it as int, str or json, or name another"
    )


def _fields(data: mmap.mmap, fixed: Sequence[int | None]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """i64 [samples, fields]: first byte and bytes of each field.

    Raises:
        ValueError: the lengths contradict each other.
    """
    whole = len(data)
    n = int.from_bytes(data[:4], "little")
    if 4 * (n + 2) > whole:
        raise ValueError(f"it claims {n:,} samples in {whole:,} bytes")
    bounds = np.frombuffer(data[4 : 4 * (n + 2)], "<u4").astype(np.int64)
    begin, end = bounds[:-1], bounds[1:]
    head = 4 * sum(size is None for size in fixed)
    if (end - begin < head).any() or (n and bounds[-1] > whole):
        raise ValueError(f"its samples end at byte {int(bounds.max())} of {whole}")
    length = np.zeros((n, len(fixed)), np.int64)
    stated = 0
    for k, size in enumerate(fixed):
        if size is not None:
            length[:, k] = size
            continue
        length[:, k] = [int.from_bytes(data[at : at + 4], "little") for at in (begin + stated).tolist()]
        stated += 4
    offset = (begin + head)[:, None] + np.cumsum(length, axis=1) - length
    if (offset[:, -1] + length[:, -1] != end).any():
        raise ValueError("the fields of a sample do not fill it")
    return offset, length


def checked_file(folder: str, name: Any, sizes: Sequence[Any]) -> str:
    """The path of a shard in the folder, which has as many bytes as `index.json` says, or as one of several readings of it.

    Raises:
        IndexFileError: it is missing, or shorter or longer.
    """
    path = os.path.join(folder, str(name))
    if os.path.relpath(path, folder).startswith(os.pardir) or os.path.isabs(str(name)):
        raise IndexFileError(f"'{folder}': its index.json names '{name}', which is not in it; fetch it again")
    try:
        found = os.path.getsize(path)
    except OSError as e:
        raise IndexFileError(
            f"'{path}', which index.json names, cannot be read: {e.strerror}; fetch it again"
        ) from None
    if found not in sizes:
        raise IndexFileError(f"'{path}' has {found:,} bytes where index.json says {sizes[0]}; fetch it again")
    return path
