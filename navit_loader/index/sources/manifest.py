"""A manifest: a table with one line per image, `path` and, where there are any, `label` and `caption`.

In: CSV with a header line, JSON lines, or Parquet. Out: rows for the files it names. Paths are taken relative to the
manifest's own folder. A label is a number, a class name, or (JSON lines and Parquet) a list of these. CSV may be separated by
semicolons or tabs, and UTF-16, as spreadsheets save it; without a header line it is a path, and a label if you like.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ...errors import IndexFileError
from ..tokens import checked_caption
from .columns import USUAL, Columns
from .folder import CHUNK, probe_part
from .labels import Labels, as_text, from_json, resolve_label
from .rows import Job, KnownFiles, label_lists

USUAL_NAMES = Columns("path", "label", "caption")
"""What the columns of a manifest are called where nobody says."""

_SEPARATORS = ",;\t"


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a manifest: where it stands, and what it says of its image."""

    place: str
    label: Any
    caption: str | None


class ManifestSource:
    """The image files that manifests name.

    Args:
        shard: the folder that holds all of them, absolute, ending in `/`.
        entries: by absolute path.
        labels: what the labels of each manifest are, together.
    """

    table = True

    def __init__(self, shard: str, entries: dict[str, Entry], labels: Labels) -> None:
        self.shard = shard
        self.entries = entries
        self.labels = labels
        pairs = ((os.fsencode(full[len(shard) :]), entry) for full, entry in entries.items())
        self._rows = sorted(pairs, key=lambda pair: pair[0])

    @classmethod
    def read(cls, path: str, called: Columns = USUAL, usual: Columns = USUAL_NAMES) -> ManifestSource:
        """Reads one manifest at an absolute path, whose columns are called as `called` says, and otherwise as `usual` does.

        Raises:
            IndexFileError: it cannot be read, has no such column, names a file twice, or names nothing; or its labels cannot
                be told.
        """
        base = os.path.dirname(path)
        found: dict[str, Entry] = {}
        columns = dict.fromkeys(pq.read_schema(path).names if path.lower().endswith(".parquet") else ())
        image, label, caption_name = (
            called.image or usual.image,
            called.label or usual.label,
            called.caption or usual.caption,
        )
        notes: list[str] = []
        for line, entry in _read(path, called, Columns(image, label, caption_name), notes):
            columns |= dict.fromkeys(entry)
            place = f"'{path}' line {line}"
            name = entry.get(image)
            if not isinstance(name, str) or not name or "\0" in name:
                raise IndexFileError(f"{place}: '{image}' is {name!r}; give the path of an image file")
            try:
                caption = checked_caption(entry.get(caption_name))
            except ValueError as e:
                raise IndexFileError(f"{place}: {e}") from None
            add(found, os.path.normpath(os.path.join(base, name)), Entry(place, entry.get(label), caption))
        if not found:
            raise IndexFileError(f"'{path}' names no image")
        called.check(path, columns)
        labels = Labels.of((entry.place, entry.label) for entry in found.values())
        if labels.doubt:
            raise IndexFileError(labels.doubt)
        labels.notes += notes
        if label not in columns and len(columns) > 1 + (caption_name in columns):
            labels.notes.append(
                f"'{path}' has no column 'label'; its columns: {', '.join(columns)}. Name the one with the labels by "
                "--label-column, if there is one"
            )
        return cls.beneath(base, found, labels)

    @classmethod
    def beneath(cls, base: str, entries: dict[str, Entry], labels: Labels) -> ManifestSource:
        """The images of a folder, or of the folder that they share if they lie elsewhere."""
        prefix = os.path.join(base, "")
        if not all(full.startswith(prefix) for full in entries):
            prefix = os.path.join(os.path.commonpath([os.path.dirname(full) for full in entries]), "")
        return cls(prefix, entries, labels)

    @classmethod
    def merged(cls, sources: Sequence[ManifestSource]) -> list[ManifestSource]:
        """The same images, where manifests that share a folder are one source: an image has one row, whoever names it.

        Raises:
            IndexFileError: two manifests name the same file.
        """
        found: list[ManifestSource] = []
        for source in sorted(sources, key=lambda source: source.shard):
            if found and source.shard.startswith(found[-1].shard):
                entries = dict(found[-1].entries)
                for full, entry in source.entries.items():
                    add(entries, full, entry)
                found[-1] = cls(found[-1].shard, entries, found[-1].labels.with_those_of(source.labels))
            else:
                found.append(source)
        return found

    def first_beneath(self, folder: str) -> str | None:
        """An image of this source that lies in a folder (ending in `/`), if there is one."""
        return next((full for full in self.entries if full.startswith(folder)), None)

    def prepare(self, given: bool) -> list[str] | None:
        """Returns the class names in use, sorted; None where every label is a number.

        Raises:
            IndexFileError: names and numbers are mixed, and no class table is given.
        """
        if not given and self.labels.mixed:
            raise IndexFileError(self.labels.mixed)
        return sorted(self.labels.names) or None

    def scan(self, job: Job) -> Iterator[tuple[float, pa.RecordBatch]]:
        """Probes the files named; see `Source.scan`.

        Raises:
            IndexFileError: a label that is no number and in no class table.
        """
        job.notes += self.labels.notes
        names = [name for name, _ in self._rows]
        known = KnownFiles.look_up(job.known.get(self.shard), names)
        for start in range(0, len(names), CHUNK):
            part = slice(start, min(start + CHUNK, len(names)))
            labels = []
            for _, entry in self._rows[part]:
                try:
                    labels.append(resolve_label(entry.label, job.classes))
                except ValueError as e:
                    raise IndexFileError(f"{entry.place}: {e}") from None
            captions = [entry.caption for _, entry in self._rows[part]]
            columns = {"labels": label_lists(labels), "caption": captions, **job.tokenize(captions)}
            yield part.stop / len(names), probe_part(self.shard, names[part], part, columns, known, job)


def add(entries: dict[str, Entry], full: str, entry: Entry) -> None:
    """Adds an image.

    Raises:
        IndexFileError: it is there already.
    """
    if full in entries:
        raise IndexFileError(f"{entry.place}: '{full}' stands twice (also {entries[full].place}); name it once")
    entries[full] = entry


def column_names(path: str) -> list[str]:
    """What the columns of a manifest are called, those of its first line where lines differ."""
    if path.lower().endswith(".parquet"):
        return list(pq.read_schema(path).names)
    if path.lower().endswith(".csv"):
        with open(path, encoding=_encoding(path), newline="") as file:
            return max((_fields(file.readline(), mark) for mark in _SEPARATORS), key=len)
    return list(next((entry for _, entry in _read_json_lines(path, USUAL, USUAL_NAMES)), {}))


def _read(path: str, called: Columns, names: Columns, notes: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
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
    return ",", []


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
        wanted = [name for name in dict.fromkeys((names.image, names.label, names.caption)) if name in there]
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
        raise IndexFileError(
            f"manifest '{path}' has no column '{names.image}'{images}; its columns: {', '.join(there) or 'none'}; name "
            f"the one with the paths by --image-column{header}"
        )
    twice = next((name for name in there if list(there).count(name) > 1), None)
    if twice is not None:
        raise IndexFileError(f"manifest '{path}' has the column '{twice}' twice in its header; rename one")
