"""What Hugging Face's `datasets` keeps on disk: Arrow files that hold the images, as `save_to_disk` writes them.

In: a folder with `state.json`, or one Arrow file such as those of the cache. Out: where the images lie, found by the addresses
of Arrow's buffers over the mapped file. Class names come from the features in the schema's metadata, as those of Parquet do.
"""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from ...errors import IndexFileError
from .columns import Columns
from .labels import as_text
from .parquet import features, image_column
from .rows import Source, read_json
from .spans import Members, SpanSource, row_names


def open_folder(path: str, columns: Columns) -> list[Source] | None:
    """The Arrow files of a folder that `save_to_disk` wrote; None for any other folder.

    Raises:
        IndexFileError: it holds several splits, or keeps its rows in another order than its files do.
    """
    splits = _json(os.path.join(path, "dataset_dict.json"))
    if splits is not None:
        found = splits.get("splits")
        names = [name for name in found if isinstance(name, str)] if isinstance(found, list) else []
        if not names or any(os.path.basename(name) != name or name in ("", ".", "..") for name in names):
            raise IndexFileError(f"'{path}': its dataset_dict.json names no splits; save it again with save_to_disk")
        if len(names) == 1:
            return open_folder(os.path.join(path, names[0]), columns)
        raise IndexFileError(
            f"'{path}' holds the splits {', '.join(names)}; give one of them: "
            + " or ".join(os.path.join(path, name) for name in names)
        )
    state = _json(os.path.join(path, "state.json"))
    if state is None or not {"_data_files", "_indices_data_files"} & state.keys():
        return None
    if state.get("_indices_data_files"):
        raise IndexFileError(
            f"'{path}' keeps its rows in another order than its files do; save it again: "
            f"load_from_disk('{path}').flatten_indices().save_to_disk(…)"
        )
    try:
        files = [os.path.join(path, os.path.basename(each["filename"])) for each in state["_data_files"]]
    except (KeyError, TypeError):
        files = []
    if not files:
        raise IndexFileError(f"'{path}': its state.json names no data files; save it again with save_to_disk")
    return [SpanSource(file, partial(_members, path, file, columns)) for file in files]


def open_file(path: str, columns: Columns) -> list[Source]:
    """One Arrow file, a stream of batches."""
    return [SpanSource(path, partial(_members, path, path, columns))]


def _members(data_set: str, path: str, columns: Columns) -> Members:
    whole = mapped(path)
    return members(data_set, path, whole, whole, columns)


def mapped(path: str) -> pa.Buffer:
    """All bytes of a file, mapped.

    Raises:
        IndexFileError: it cannot be read.
    """
    try:
        with pa.memory_map(path) as file:
            return file.read_buffer()
    except (OSError, ValueError) as e:
        raise IndexFileError(f"'{path}' cannot be read: {e}") from None


def members(data_set: str, path: str, whole: pa.Buffer, part: pa.Buffer, columns: Columns) -> Members:
    """Finds the images of a stream of batches, or an Arrow file, that lies in a container.

    Args:
        data_set: what the container is a part of, for notes.
        path: the container.
        whole: all of it.
        part: where in it the batches are.
        columns: what their columns are called.

    Raises:
        IndexFileError: it is damaged, an index, or holds no images that can be read in place.
    """
    batches: list[pa.RecordBatch] = []
    try:
        if part.size >= 6 and part.slice(0, 6).to_pybytes() == b"ARROW1":
            reader = pa.ipc.open_file(part)
            batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        else:
            batches = list(reader := pa.ipc.open_stream(part))
        schema = reader.schema
        called = schema.names  # which are read as text here
    except (OSError, pa.ArrowException, ValueError) as e:
        raise IndexFileError(f"'{path}' is no Arrow file, or a damaged or shortened one: {e}") from None
    if b"navit.rows" in (schema.metadata or {}):
        raise IndexFileError(f"'{path}' is an index already")
    label, caption, notes = columns.annotations(data_set, called)
    try:
        leaf = image_column(schema, columns.image)
        if leaf is None:
            raise ValueError(f"it has no column of images; its columns: {', '.join(called) or 'none'}")
        places = [_places(batch.column(leaf.removesuffix(".bytes")), whole) for batch in batches]
        labels, captions, weights = (_values(batches, name) for name in (label, caption, columns.weight or None))
    except (KeyError, ValueError, pa.ArrowException) as e:
        raise IndexFileError(f"'{path}' cannot be indexed: {e}") from None
    if not places:
        raise IndexFileError(f"'{path}' has no rows")
    offset, length, there = (np.concatenate(each) for each in zip(*places, strict=True))
    if not there.any():
        raise IndexFileError(
            f"'{path}': the rows of column '{leaf.removesuffix('.bytes')}' hold paths and no bytes, or there are none; save it "
            "again by a version of datasets that embeds files (2.0 or later), or name the files in a manifest"
        )
    reasons = {int(i): "the row holds no bytes" for i in np.flatnonzero(~there)}
    classes = None if columns.target else features(schema, path, columns.labels)
    names = row_names(leaf, len(offset))
    return Members(
        names, offset, length, reasons, labels, captions, weights, classes, notes=notes, targets=bool(columns.target)
    )


def _values(batches: list[pa.RecordBatch], name: str | None) -> list[Any] | None:
    if name is None:
        return None
    columns = [batch.column(name) for batch in batches]
    for column in columns:
        # Arrow itself believes what a damaged file says of its texts.
        column.validate(full=True)
    return [as_text(value) for column in columns for value in column.to_pylist()]


def _places(column: pa.Array, whole: pa.Buffer) -> tuple[np.ndarray[Any, Any], ...]:
    """First byte in the container and bytes of each image of a batch, and whether it is there.

    Raises:
        ValueError: they do not lie in the container as they are.
    """
    column.validate()
    there = column.is_valid()
    if pa.types.is_struct(column.type):
        column = column.field("bytes")
    if not (pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)):
        raise ValueError(f"its images are of type {column.type}; write them as binary")
    there = np.logical_and(*(each.to_numpy(zero_copy_only=False) for each in (there, column.is_valid())))
    _, ends, data = column.buffers()
    kind = np.int64 if pa.types.is_large_binary(column.type) else np.int32
    bounds = np.frombuffer(ends, kind)[column.offset : column.offset + len(column) + 1].astype(np.int64)
    if not len(column) or bounds[-1] == bounds[0]:
        return np.zeros(len(column), np.int64), np.zeros(len(column), np.int64), there
    base = data.address - whole.address
    if base < 0 or base + data.size > whole.size:
        raise ValueError("its batches are compressed; write them without compression, as save_to_disk does")
    if bounds[0] < 0 or bounds[-1] > data.size or (np.diff(bounds) < 0).any():
        raise ValueError("it is damaged: its images lie outside their batch")
    return base + bounds[:-1], np.diff(bounds), there


def _json(path: str) -> dict[str, Any] | None:
    """A JSON object that `datasets` wrote; None where there is no such file.

    Raises:
        IndexFileError: it is none.
    """
    found = read_json(path, "save the data set again")
    if found is not None and not isinstance(found, dict):
        raise IndexFileError(f"'{path}' holds no JSON object; save the data set again")
    return found
