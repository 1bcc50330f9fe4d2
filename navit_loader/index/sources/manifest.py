"""A manifest: a table with one line per image, `path` and, where there are any, `label` and `caption`.

In: CSV with a header line, JSON lines, or Parquet. Out: rows for the files it names. Paths are taken relative to the
manifest's own folder. A label is a number, a class name, or (JSON lines and Parquet) a list of these.
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
from .labels import Labels, as_text, from_json, resolve_label, target_name
from .rows import Job, KnownFiles, label_lists

MANIFESTS = frozenset({".csv", ".jsonl", ".parquet"})
"""Extensions of manifests."""


@dataclass(frozen=True, slots=True)
class _Entry:
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

    def __init__(self, shard: str, entries: dict[str, _Entry], labels: Labels) -> None:
        self.shard = shard
        self._found = entries
        self._labels = labels
        pairs = ((os.fsencode(full[len(shard) :]), entry) for full, entry in entries.items())
        self._entries = sorted(pairs, key=lambda pair: pair[0])

    @classmethod
    def read(cls, path: str, called: Columns = USUAL) -> ManifestSource:
        """Reads one manifest at an absolute path, whose columns are called as `called` says.

        Raises:
            IndexFileError: it cannot be read, has no such column, names a file twice, or names nothing; or its labels cannot
                be told.
        """
        base = os.path.dirname(path)
        found: dict[str, _Entry] = {}
        columns = dict.fromkeys(pq.read_schema(path).names if path.lower().endswith(".parquet") else ())
        image, label = called.image or "path", called.labels
        for line, entry in _read(path, called):
            columns |= dict.fromkeys(entry)
            place = f"'{path}' line {line}"
            name = entry.get(image)
            if not isinstance(name, str) or not name or "\0" in name:
                raise IndexFileError(f"{place}: '{image}' is {name!r}; give the path of an image file")
            try:
                caption = checked_caption(entry.get(called.caption or "caption"))
                said = target_name(entry.get(label)) if called.target else entry.get(label)
            except ValueError as e:
                raise IndexFileError(f"{place}: {e}") from None
            _add(found, os.path.normpath(os.path.join(base, name)), _Entry(place, said, caption))
        if not found:
            raise IndexFileError(f"'{path}' names no image")
        called.check(path, columns)
        labels = Labels.of(((entry.place, entry.label) for entry in found.values()), targets=bool(called.target))
        if labels.doubt:
            raise IndexFileError(labels.doubt)
        if label not in columns and len(columns) > 1 + ((called.caption or "caption") in columns):
            labels.notes.append(
                f"'{path}' has no column 'label'; its columns: {', '.join(columns)}. Name the one with the labels by "
                "--label-column, if there is one"
            )
        prefix = os.path.join(base, "")
        if not all(full.startswith(prefix) for full in found):
            prefix = os.path.join(os.path.commonpath([os.path.dirname(full) for full in found]), "")
        return cls(prefix, found, labels)

    @classmethod
    def merged(cls, sources: Sequence[ManifestSource]) -> list[ManifestSource]:
        """The same images, where manifests that share a folder are one source: an image has one row, whoever names it.

        Raises:
            IndexFileError: two manifests name the same file.
        """
        found: list[ManifestSource] = []
        for source in sorted(sources, key=lambda source: source.shard):
            if found and source.shard.startswith(found[-1].shard):
                entries = dict(found[-1]._found)
                for full, entry in source._found.items():
                    _add(entries, full, entry)
                found[-1] = cls(found[-1].shard, entries, found[-1]._labels.with_those_of(source._labels))
            else:
                found.append(source)
        return found

    def first_beneath(self, folder: str) -> str | None:
        """An image of this source that lies in a folder (ending in `/`), if there is one."""
        return next((full for full in self._found if full.startswith(folder)), None)

    def prepare(self, given: bool) -> list[str] | None:
        """Returns the class names in use, sorted; None where every label is a number.

        Raises:
            IndexFileError: names and numbers are mixed, and no class table is given.
        """
        if not given and self._labels.mixed:
            raise IndexFileError(self._labels.mixed)
        return sorted(self._labels.names) or None

    def scan(self, job: Job) -> Iterator[tuple[float, pa.RecordBatch]]:
        """Probes the files named; see `Source.scan`.

        Raises:
            IndexFileError: a label that is no number and in no class table.
        """
        job.notes += self._labels.notes
        names = [name for name, _ in self._entries]
        known = KnownFiles.look_up(job.known.get(self.shard), names)
        for start in range(0, len(names), CHUNK):
            part = slice(start, min(start + CHUNK, len(names)))
            labels = []
            for _, entry in self._entries[part]:
                try:
                    labels.append(resolve_label(entry.label, job.classes))
                except ValueError as e:
                    raise IndexFileError(f"{entry.place}: {e}") from None
            captions = [entry.caption for _, entry in self._entries[part]]
            columns = {"labels": label_lists(labels), "caption": captions, **job.tokenize(captions)}
            yield part.stop / len(names), probe_part(self.shard, names[part], part, columns, known, job)


def _add(entries: dict[str, _Entry], full: str, entry: _Entry) -> None:
    if full in entries:
        raise IndexFileError(f"{entry.place}: '{full}' stands twice (also {entries[full].place}); name it once")
    entries[full] = entry


def _read(path: str, called: Columns) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, entry) for each line; rows of Parquet count from 1."""
    try:
        if path.lower().endswith(".parquet"):
            yield from _read_parquet(path, called)
        elif path.lower().endswith(".csv"):
            yield from _read_csv(path, called)
        else:
            yield from _read_json_lines(path, called)
    except UnicodeDecodeError as e:
        raise IndexFileError(f"manifest '{path}' is not UTF-8{_where(path)}; save it as UTF-8 ({e.reason})") from None
    except (OSError, pa.ArrowException) as e:
        raise IndexFileError(f"manifest '{path}' cannot be read: {e}") from None


def _where(path: str) -> str:
    """The first line of a file that is not UTF-8, or the encoding that its mark names."""
    with open(path, "rb") as file:
        if file.peek(2)[:2] in (b"\xff\xfe", b"\xfe\xff"):
            return " but UTF-16"
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return f" in line {number}"
    return ""


def _read_csv(path: str, called: Columns) -> Iterator[tuple[int, dict[str, Any]]]:
    # One caption may be longer than the module's own limit for a field, which stands for the whole process.
    limit = csv.field_size_limit(1 << 30)
    line = 0
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header: list[str] = []
            for row in reader:
                line = reader.line_num
                if not header:
                    header = [name.strip() for name in row]
                    _need_path(path, header, called)
                elif row:
                    if len(row) != len(header):
                        raise IndexFileError(f"'{path}' line {line}: not as many fields as the header has")
                    yield line, dict(zip(header, row, strict=True))
            if not header:
                _need_path(path, header, called)
    except csv.Error as e:
        raise IndexFileError(f"'{path}' line {line + 1}: {e}; is a quote left open?") from None
    finally:
        csv.field_size_limit(limit)


def _read_json_lines(path: str, called: Columns) -> Iterator[tuple[int, dict[str, Any]]]:
    with open(path, encoding="utf-8-sig") as file:
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


def _read_parquet(path: str, called: Columns) -> Iterator[tuple[int, dict[str, Any]]]:
    with pq.ParquetFile(path) as file:
        names = file.schema_arrow.names
        _need_path(path, names, called)
        usual = (called.image or "path", called.labels, called.caption or "caption")
        wanted = [name for name in dict.fromkeys(usual) if name in names]
        number = 0
        for batch in file.iter_batches(columns=wanted):
            for entry in batch.to_pylist():
                number += 1
                yield number, {name: as_text(value) for name, value in entry.items()}


def _need_path(path: str, names: Any, called: Columns) -> None:
    called.check(path, names)
    if not called.image and "path" not in names:
        images = ", and none that holds images" if path.lower().endswith(".parquet") else ""
        raise IndexFileError(
            f"manifest '{path}' has no column 'path'{images}; its columns: {', '.join(names) or 'none'}; name "
            "the one with the paths by --image-column"
        )
    twice = next((name for name in names if list(names).count(name) > 1), None)
    if twice is not None:
        raise IndexFileError(f"manifest '{path}' has the column '{twice}' twice in its header; rename one")
