"""What an index must be: its columns and their types, values that an image can have, and checksums that find all else.

In: a schema or a record batch. Out: what is wrong with it, in words; the checksums that the writer stores. Apart from `reader`,
which decides when to look: at the schema always, at every value where the file is small or is gone through anyway.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .. import _packer
from ..batch import NO_CLASS
from .sources.targets import BOX_LISTS, TARGET_GROUPS, TARGETS

CHECK = "navit.check"
"""Metadata of a record batch, and of the schema: CRC-32 of the values, of all other metadata and the shards."""

_NUMBERS = {
    "offset": pa.int64(),
    "length": pa.int64(),
    "container_length": pa.int64(),
    "check": pa.uint32(),
    "width": pa.int32(),
    "height": pa.int32(),
    "orientation": pa.uint8(),
    "caption_tokens": pa.int32(),
    "weight": pa.float32(),
    "mtime_ns": pa.int64(),
    "box_count": pa.int32(),
    "mask_offset": pa.int64(),
    "mask_length": pa.int64(),
}
_OPTIONAL = {"container_length", "check", "caption", "caption_tokens", "caption_ids", "weight", *TARGETS}
_ALLOWED = {
    "width": (1, 2**31 - 1),
    "height": (1, 2**31 - 1),
    "offset": (-1, 2**62),
    "length": (0, 2**62),
    "container_length": (0, 2**62),
    "orientation": (1, 8),
    "caption_tokens": (0, 2**31 - 1),
    "weight": (0, np.finfo(np.float32).max),
    "box_count": (0, 32767),
    "mask_offset": (0, 2**62),
    "mask_length": (0, 2**62),
    "image_number": (-1, 2**63 - 1),
}


def schema_fault(schema: pa.Schema) -> str:
    """What of the columns is missing or of another type; empty where nothing is."""
    found = {field.name: field.type for field in schema}
    if len(found) != len(schema.names):
        return "a column stands twice"
    needed = {*_NUMBERS, "shard", "name", "format", "label"} - _OPTIONAL
    if missing := sorted(needed - set(found)):
        return f"it has no column '{missing[0]}'"
    if ("caption" in found) != ("caption_tokens" in found):
        return "of 'caption' and 'caption_tokens' one is missing"
    for group in TARGET_GROUPS:
        if (lacking := [name for name in group if name not in found]) and len(lacking) < len(group):
            return f"of {', '.join(group)} there is no '{lacking[0]}'"
    for name, kind in found.items():
        if name in _NUMBERS:
            fits = kind == _NUMBERS[name]
        elif name in ("name", "caption"):
            fits = kind == pa.large_utf8()
        elif name in ("shard", "format"):
            index = pa.int32() if name == "shard" else pa.int8()
            fits = pa.types.is_dictionary(kind) and (kind.index_type, kind.value_type) == (index, pa.utf8())
        elif name == "label":
            fits = kind == pa.int64() or (
                pa.types.is_fixed_size_list(kind) and kind.value_type == pa.int64() and kind.list_size >= 1
            )
        elif name == "caption_ids":
            fits = pa.types.is_large_list(kind) and kind.value_type == pa.int32()
        elif name in TARGETS:
            fits = kind == TARGETS[name]
        else:
            continue  # another tool's, which nobody here reads
        if not fits:
            return f"column '{name}' has type {kind}"
    return ""


def shape_fault(batch: pa.RecordBatch, rows: int) -> str:
    """What is wrong with a record batch beside its values, found without going through them; empty where nothing is.

    Raises:
        pa.ArrowException: buffers that do not fit their lengths.
    """
    if batch.num_rows != rows:
        return f"it has {batch.num_rows} rows in place of {rows}"
    batch.validate()
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if name != "caption" and column.null_count:
            return f"{column.null_count} values of '{name}' are missing"
    return ""


def dictionary_fault(batch: pa.RecordBatch) -> str:
    """What is wrong with the shards and formats that the first record batch counts; empty where nothing is.

    Raises:
        pa.ArrowException: texts that are none.
    """
    for name in ("shard", "format", *(["mask_shard"] if "mask_shard" in batch.schema.names else [])):
        dictionary = batch[name].dictionary
        dictionary.validate(full=True)
        if dictionary.null_count:
            return f"a name of '{name}' is missing"
    unknown = set(batch["format"].dictionary.to_pylist()) - set(_packer.FORMAT_NAMES)
    return f"it has the format {min(unknown)!r}" if unknown else ""


def row_fault(batch: pa.RecordBatch, first: int, classes: int) -> str:
    """The first value that no image has, with its row; empty where there is none.

    Args:
        batch: with the right columns and shape.
        first: number of its first row.
        classes: class names of the index.

    Raises:
        pa.ArrowException: a text that is none, or a shard that there is not.
    """
    for name, (low, high) in _ALLOWED.items():
        if name in batch.schema.names:
            values = numbers(batch[name])
            if (wrong := np.flatnonzero(~((values >= low) & (values <= high)))).size:
                return f"row {first + wrong[0]} has {name} {values[wrong[0]]}"
    width = label_width(batch.schema)
    labels = numbers(batch["label"] if width == 1 else batch["label"].flatten())
    if (wrong := np.flatnonzero((labels < NO_CLASS) | (labels >= classes))).size:
        return f"row {first + wrong[0] // width} has label {labels[wrong[0]]}, and there are {classes} classes"
    if "box_count" in batch.schema.names and (fault := _box_fault(batch, first, classes)):
        return fault
    batch.validate(full=True)
    return ""


def _box_fault(batch: pa.RecordBatch, first: int, classes: int) -> str:
    """The first row whose boxes cannot be, with its number; empty where there is none."""
    counts = numbers(batch["box_count"])
    for name in BOX_LISTS:
        lengths = pc.list_value_length(batch[name]).to_numpy() if name in batch.schema.names else counts
        if (wrong := np.flatnonzero(lengths != counts)).size:
            return f"row {first + wrong[0]} has {counts[wrong[0]]} boxes, and another number of '{name}'"
    if not counts.sum():
        return ""
    row_of = np.repeat(np.arange(len(counts)), counts)
    corners = numbers(batch["boxes"].flatten().flatten()).reshape(-1, 4)
    if (wrong := np.flatnonzero(~np.isfinite(corners).all(1))).size:
        return f"row {first + row_of[wrong[0]]} has the box {corners[wrong[0]].tolist()}"
    labels = numbers(batch["box_labels"].flatten())
    if (wrong := np.flatnonzero((labels < 0) | (labels >= classes))).size:
        return f"row {first + row_of[wrong[0]]} has a box of class {labels[wrong[0]]}, and there are {classes} classes"
    return ""


def label_width(schema: pa.Schema) -> int:
    """K, labels per image."""
    kind = schema.field("label").type
    return int(kind.list_size) if pa.types.is_fixed_size_list(kind) else 1


def numbers(column: pa.Array) -> Any:
    """A column of numbers as numpy, over the same memory. `to_numpy` would load pandas, which takes a second."""
    dtype = np.dtype(np.float32 if column.type == pa.float32() else str(column.type))
    if not len(column):
        return np.zeros(0, dtype)
    values = np.frombuffer(column.buffers()[1], dtype, column.offset + len(column))
    return values[column.offset :]


def checksum(batch: pa.RecordBatch) -> str:
    """CRC-32 of all values of a record batch, however they lie in memory."""
    crc = 0
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        crc = zlib.crc32(name.encode(), crc)
        for values in _parts(column):
            crc = zlib.crc32(values, crc)
    return str(crc)


def _parts(column: pa.Array) -> list[Any]:
    kind = column.type
    if pa.types.is_dictionary(kind):
        return _parts(column.indices)
    if pa.types.is_fixed_size_list(kind):
        return _parts(column.flatten())
    if pa.types.is_large_list(kind):
        return [*_parts(pc.list_value_length(column)), *_parts(column.flatten())]
    if pa.types.is_large_string(kind) or pa.types.is_large_binary(kind):
        offsets = np.frombuffer(column.buffers()[1], np.int64)[column.offset : column.offset + len(column) + 1]
        text = memoryview(column.buffers()[2] or b"")
        valid = (
            np.unpackbits(np.frombuffer(column.buffers()[0], np.uint8), bitorder="little") if column.null_count else b""
        )
        return [np.diff(offsets), valid[column.offset : column.offset + len(column)], text[offsets[0] : offsets[-1]]]
    return [np.ascontiguousarray(numbers(column))]


def metadata_checksum(metadata: Mapping[str, str], shards: Sequence[str]) -> str:
    """CRC-32 of an index's own metadata, its checksum aside, and of its shards as they are stored."""
    told = {name: value for name, value in metadata.items() if name.startswith("navit.") and name != CHECK}
    return str(zlib.crc32(json.dumps([told, list(shards)], sort_keys=True).encode()))
