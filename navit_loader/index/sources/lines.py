"""The lines of a manifest, whatever it is written as: CSV, JSON lines, Parquet.

In: a path, and what columns are called. Out: the number of each line and its fields by name. Apart from `manifest`, which says
what they mean.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ...errors import IndexFileError
from .columns import USUAL, Columns
from .labels import as_text, from_json

USUAL_NAMES = Columns("path", "label", "caption")
"""What the columns of a manifest are called where nobody says."""

_SEPARATORS = ",;\t"
_COMMA = re.compile(r"[+-]?[0-9]+(,[0-9]+)?([eE][+-]?[0-9]+)?")


def column_names(path: str) -> list[str]:
    """What the columns of a manifest are called, those of its first line where lines differ."""
    if path.lower().endswith(".parquet"):
        return list(pq.read_schema(path).names)
    if path.lower().endswith(".csv"):
        with open(path, encoding=_encoding(path), newline="") as file:
            first = file.readline()
        return max((_fields(first, mark) for mark in _SEPARATORS), key=len)
    return list(next((entry for _, entry in _read_json_lines(path, USUAL, USUAL_NAMES)), {}))


def read_lines(path: str, called: Columns, names: Columns, notes: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, entry) for each line; rows of Parquet count from 1."""
    try:
        if path.lower().endswith(".parquet"):
            yield from _read_parquet(path, called, names)
        elif path.lower().endswith(".csv"):
            yield from _read_csv(path, called, names, notes)
        else:
            yield from _read_json_lines(path, called, names)
    except UnicodeError as e:
        why = e.reason if isinstance(e, UnicodeDecodeError) else str(e)
        raise IndexFileError(f"manifest '{path}' is not UTF-8{_where(path)}; save it as UTF-8 ({why})") from None
    except (OSError, pa.ArrowException) as e:
        raise IndexFileError(f"manifest '{path}' cannot be read: {e}") from None


def _encoding(path: str) -> str:
    """UTF-8, or the UTF-16 that spreadsheets save as "Unicode text", by its mark or the zeros of its first letter."""
    with open(path, "rb") as file:
        head = file.read(2)
    if head in (b"\xff\xfe", b"\xfe\xff"):
        return "utf-16"
    return {(False, True): "utf-16-le", (True, False): "utf-16-be"}.get(
        (head[:1] == b"\0", head[1:] == b"\0"), "utf-8-sig"
    )


def _where(path: str) -> str:
    """The first line of a file that is not UTF-8, or that it is damaged UTF-16."""
    if _encoding(path) != "utf-8-sig":
        return " but UTF-16, and damaged"
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return f" in line {number}"
    return ""


def _read_csv(path: str, called: Columns, names: Columns, notes: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    # One caption may be longer than the module's own limit for a field, which stands for the whole process.
    limit = csv.field_size_limit(1 << 30)
    line = 0
    try:
        with open(path, encoding=_encoding(path), newline="") as file:
            mark, header = _layout(path, file.readline(), names)
            if header:
                called.check(path, header)
                notes.append(f"'{path}' has no header line, so its columns are taken for {', '.join(header)}")
            file.seek(0)
            reader = csv.reader(file, delimiter=mark, strict=True)
            for row in reader:
                line = reader.line_num
                if not header:
                    header = [name.strip() for name in row]
                    _need_path(path, header, called, names)
                elif row:
                    if len(row) != len(header):
                        raise IndexFileError(f"'{path}' line {line}: not as many fields as the header has")
                    yield line, dict(zip(header, row, strict=True))
            if not header:
                _need_path(path, header, called, names)
    except csv.Error as e:
        raise IndexFileError(f"'{path}' line {line + 1}: {e}; is a quote left open?") from None
    finally:
        csv.field_size_limit(limit)


def _layout(path: str, first: str, names: Columns) -> tuple[str, list[str]]:
    """What separates the fields of a CSV, and what its columns are called where its first line is an image already.

    Raises:
        IndexFileError: it has no header line, and more columns than explain themselves.
    """
    for mark in _SEPARATORS:
        if names.image in _fields(first, mark):
            return mark, []
    for mark in _SEPARATORS:
        row = _fields(first, mark)
        if row and row[0] and os.path.isfile(os.path.join(os.path.dirname(path), row[0])):
            if len(row) > 2:
                raise IndexFileError(f"manifest '{path}' has no header line; write one, such as path,label,caption")
            return mark, ["path", "label"][: len(row)]
    # The columns are called otherwise, as whoever reads the header says.
    return max(_SEPARATORS, key=lambda mark: len(_fields(first, mark))), []


def by_semicolons(path: str, names: Columns) -> bool:
    """Whether a manifest is a CSV with semicolons, in which numbers may have decimal commas."""
    if not path.lower().endswith(".csv"):
        return False
    try:
        with open(path, encoding=_encoding(path), newline="") as file:
            return _layout(path, file.readline(), names)[0] == ";"
    except (OSError, UnicodeError):
        return False  # whoever reads the lines says so


def have_decimal_commas(numbers: Iterable[str]) -> bool:
    """Whether all are written as `0,5` or `3`, one with a comma at least."""
    texts = [text for number in numbers if (text := number.strip())]
    return all(map(_COMMA.fullmatch, texts)) and any("," in text for text in texts)


def _fields(line: str, mark: str) -> list[str]:
    try:
        return [name.strip() for name in next(csv.reader([line], delimiter=mark), [])]
    except csv.Error:
        return []


def _read_json_lines(path: str, called: Columns, names: Columns) -> Iterator[tuple[int, dict[str, Any]]]:
    with open(path, encoding=_encoding(path)) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                entry = from_json(line)
            except ValueError as e:
                kind = "not JSON: " if isinstance(e, json.JSONDecodeError) else ""
                raise IndexFileError(f"'{path}' line {number}: {kind}{e}") from None
            if not isinstance(entry, dict):
                raise IndexFileError(f'\'{path}\' line {number}: not an object such as {{"path": "a.jpg", "label": 3}}')
            if called.image and called.image not in entry:
                called.check(path, entry)
            yield number, entry


def _read_parquet(path: str, called: Columns, names: Columns) -> Iterator[tuple[int, dict[str, Any]]]:
    with pq.ParquetFile(path) as file:
        there = file.schema_arrow.names
        _need_path(path, there, called, names)
        asked = dict.fromkeys((names.image, names.label, names.caption, names.weight))
        wanted = [name for name in asked if name and name in there]
        number = 0
        for batch in file.iter_batches(columns=wanted):
            for entry in batch.to_pylist():
                number += 1
                yield number, {name: as_text(value) for name, value in entry.items()}


def _need_path(path: str, there: Any, called: Columns, names: Columns) -> None:
    called.check(path, there)
    if names.image not in there:
        images = ", and none that holds images" if path.lower().endswith(".parquet") else ""
        header = "" if images else ", or write a header line, such as path,label, if it has none"
        labelled = called.label or called.target or names.label in there
        labels = "" if labelled else " and that with the labels by --label-column"
        raise IndexFileError(
            f"manifest '{path}' has no column '{names.image}'{images}; its columns: {', '.join(there) or 'none'}; name "
            f"the one with the paths by --image-column{labels}{header}"
        )
    twice = next((name for name in there if list(there).count(name) > 1), None)
    if twice is not None:
        raise IndexFileError(f"manifest '{path}' has the column '{twice}' twice in its header; rename one")
