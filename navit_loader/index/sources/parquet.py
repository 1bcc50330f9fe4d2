"""A Parquet file that holds the images themselves: Hugging Face's layout, or a plain binary column.

In: a file with one column of images, `struct<bytes, path>` or binary, and, where there are any, `label` and `caption`
(or `text`). Out: rows whose name is the leaf column and the row, such as `image.bytes/000017`. Class names come from the
features that Hugging Face's `datasets` writes into the schema's metadata.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ... import _packer
from ...errors import IndexFileError
from ...foreign import helpers
from .columns import USUAL, Columns
from .labels import as_text
from .remote import RemoteFile, is_remote, stamp
from .rows import Job, checked_classes, known_container, make_rows
from .spans import annotate, names_of, row_names

LIKELY = ("image", "img", "jpg", "png", "webp", "jpeg", "bytes")
"""Names of image columns, the likeliest first, where a file has several binary ones."""


def image_column(schema: pa.Schema, name: str = "") -> str | None:
    """The leaf column with the images: of a struct with `bytes`, or binary itself. None where there is none.

    Args:
        schema: of the file.
        name: the column to take; empty takes the only one, or one with a usual name.

    Raises:
        ValueError: several columns hold binary values, and none has a usual name; or images lie in a way that cannot be read.
    """
    found: dict[str, str] = {}
    unread = ""
    for field in schema if not name else [schema.field(name)]:
        if pa.types.is_fixed_size_binary(field.type):
            unread = f"column '{field.name}' holds binary values of a fixed size; write it as binary"
        elif pa.types.is_list(field.type) and image_column(pa.schema([("image", field.type.value_type)])):
            unread = f"column '{field.name}' holds lists of images; write a row for each image"
        if _is_binary(field.type):
            found[field.name] = field.name
        elif pa.types.is_struct(field.type):
            inner = field.type.get_field_index("bytes")
            if inner >= 0 and _is_binary(field.type.field(inner).type):
                found[field.name] = f"{field.name}.bytes"
    for name in LIKELY if len(found) > 1 else found:
        if name in found:
            return found[name]
    if found:
        raise ValueError(
            f"several columns hold binary values ({', '.join(found)}); give the one of the images by --image-column"
        )
    if unread and (name or "path" not in schema.names):
        raise ValueError(unread)
    return None


def readable(path: str) -> Any:
    """What pyarrow reads the file from."""
    return pa.PythonFile(io.BufferedReader(RemoteFile(path), 1 << 20), "r") if is_remote(path) else path


def holds_images(path: str, columns: Columns) -> bool:
    """Whether a Parquet file holds images, in the column named if any, rather than paths of them.

    Raises:
        IndexFileError: it is no Parquet, several of its columns may be the images, or one that is named is not there.
    """
    try:
        schema = pq.read_schema(readable(path))
        columns.check(path, schema.names)
        if image_column(schema, columns.image) is None:
            return False
        with pq.ParquetFile(readable(path)) as file:
            if not file.metadata.num_rows:
                raise ValueError("it has no rows")
        return True
    except (OSError, pa.ArrowException, ValueError) as e:
        locked = "it is encrypted; write it without a key: " if "crypt" in str(e) else ""
        raise IndexFileError(f"'{path}' cannot be indexed: {locked}{e}") from None


class ParquetSource:
    """The images in one Parquet file.

    Args:
        path: the file, absolute, for which `holds_images` is true.
        columns: what its columns are called.
    """

    table = True

    def __init__(self, path: str, columns: Columns = USUAL) -> None:
        self.shard = path
        schema = pq.read_schema(readable(path))
        self._column = image_column(schema, columns.image) or ""
        self._label, self._caption, self._notes = columns.annotations(path, schema.names)
        self._weight, self._targets = columns.weight, bool(columns.target)
        self._classes = None if self._targets else features(schema, path, columns.labels)

    def prepare(self, given: bool) -> list[str] | None:
        """The class names of the schema's metadata, or those in use; None where labels are numbers.

        Raises:
            IndexFileError: names and numbers are mixed, and no class table is given.
        """
        if self._classes is not None or self._label is None:
            return self._classes
        return names_of(self.shard, self._read(self._label), given, self._notes, targets=self._targets)

    def scan(self, job: Job) -> Iterator[tuple[float, pa.RecordBatch]]:
        """Reads the column of images page by page; see `Source.scan`. A file known unchanged is not read."""
        job.notes += self._notes
        length, mtime_ns = stamp(self.shard)
        if (known := known_container(job, self.shard, (length, mtime_ns))) is not None:
            yield 1.0, known
            return
        try:
            columns: dict[str, Any] = {**_packer.probe_parquet(os.fsencode(self.shard), self._column, helpers())}
        except IndexFileError as e:
            raise self._locked() or e from None
        n = len(columns["length"])
        reasons = dict(columns["errors"])
        if self._column.endswith(".bytes") and len(reasons) == n and not columns["length"].any():
            raise IndexFileError(
                f"'{self.shard}': the rows of column '{self._column.removesuffix('.bytes')}' hold paths and no bytes; write it "
                "with embed_external_files, or name the files in a manifest with a column 'path'"
            )
        labels, captions, weights = (
            self._read(name) if name else None for name in (self._label, self._caption, self._weight)
        )
        columns |= annotate(
            self.shard, n, labels, captions, weights, self._classes, job, reasons, targets=self._targets
        )
        columns["container_length"] = np.full(n, columns["container_length"], np.int64)
        columns["mtime_ns"] = np.full(n, mtime_ns, np.int64)
        names = pa.array(row_names(self._column, n), pa.large_utf8())
        yield 1.0, make_rows(self.shard, names, columns, reasons)

    def _locked(self) -> IndexFileError | None:
        """That the column of images is encrypted, if it is: the names of columns may be open all the same."""
        try:
            with pq.ParquetFile(readable(self.shard)) as file:
                next(file.iter_batches(1, columns=[self._column]), None)
        except (OSError, pa.ArrowException) as e:
            if "crypt" in str(e):
                return IndexFileError(f"'{self.shard}' is encrypted; write it without a key")
        return None

    def _read(self, column: str) -> Iterator[Any]:
        try:
            with pq.ParquetFile(readable(self.shard)) as file:
                for batch in file.iter_batches(columns=[column]):
                    yield from map(as_text, batch.column(0).to_pylist())
        except UnicodeDecodeError:
            raise IndexFileError(
                f"'{self.shard}': column '{column}' holds bytes that are no UTF-8; write it as text"
            ) from None
        except (OSError, pa.ArrowException) as e:
            raise IndexFileError(f"'{self.shard}' cannot be read: {e}") from None


def _is_binary(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def features(schema: pa.Schema, path: str, column: str) -> list[str] | None:
    """Class names that `datasets` wrote for a column: of a ClassLabel, or a sequence of them."""
    try:
        said = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        label = said["info"]["features"][column]
        while isinstance(label, Mapping) and "feature" in label:
            label = label["feature"]
        names = label["names"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return None
    return checked_classes(names, f"the features of '{path}'")
