"""MosaicML's MDS (`streaming`): a folder with `index.json` and shards, uncompressed.

In: the folder. Out: where the images of its shards lie. Columns of kind `jpeg`, `png` and `bytes` hold the bytes of files;
`pil` holds pixels, which no decoder reads in place.
"""

from __future__ import annotations

import os
import shlex
from functools import partial

from ...errors import IndexFileError
from .columns import Columns
from .rows import Source
from .samples import checked_file, image_field, members, read_index
from .spans import SpanSource

_UNPACK = {"zstd": "zstd -d", "gz": "gunzip -k", "bz2": "bunzip2 -k", "br": "brotli -d", "snappy": "snzip -d -k"}

_REMEDY = "streaming.MDSWriter(columns={…: 'png'}) or 'jpeg', or 'bytes' of files"


def open_folder(path: str, columns: Columns) -> list[Source] | None:
    """The shards of an MDS folder; None for any other folder.

    Raises:
        IndexFileError: its `index.json` is damaged, a shard is missing, compressed or of another length, or no column holds
            encoded images.
    """
    about = os.path.join(path, "index.json")
    shards = read_index(path).get("shards")
    if not isinstance(shards, list) or not shards:
        return None
    sources: list[Source] = []
    for shard in shards:
        try:
            if shard["format"] != "mds":
                raise IndexFileError(
                    f"'{path}' holds shards of format '{shard['format']}'; write it anew with streaming.MDSWriter"
                )
            names, kinds, fixed = shard["column_names"], shard["column_encodings"], shard["column_sizes"]
            raw, packed = shard["raw_data"], shard["zip_data"]
            file = os.path.join(path, raw["basename"])
            if packed and not os.path.exists(file):
                how = _UNPACK.get(str(shard["compression"]).split(":")[0], "unpack")
                one = os.path.join(path, packed["basename"])
                every = os.path.join(shlex.quote(path), "*" + os.path.splitext(one)[1])
                raise IndexFileError(
                    f"'{one}' is compressed, and cannot be read in place; unpack all beside it: {how} {every}"
                )
            image = image_field(path, names, kinds, ("jpeg", "png"), columns, _REMEDY)
            if len(fixed) != len(names) or not all(
                size is None or (isinstance(size, int) and 0 < size < 1 << 32) for size in fixed
            ):
                raise ValueError(f"sizes {fixed}")
            file = checked_file(path, raw["basename"], (raw["bytes"],))
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            raise IndexFileError(
                f"'{about}' is no index of MDS shards, or a damaged one ({e!r}); fetch it again"
            ) from None
        sources.append(SpanSource(file, partial(members, path, file, names, kinds, fixed, image, columns)))
    return sources
