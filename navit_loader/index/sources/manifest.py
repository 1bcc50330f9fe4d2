"""A manifest: a table with one line per image, `path` and, where there are any, `label` and `caption`.

In: CSV with a header line, JSON lines, or Parquet. Out: rows for the files it names. Paths are taken relative to the
manifest's own folder. A label is a number, a class name, or (JSON lines and Parquet) a list of these. CSV may be separated by
semicolons or tabs, and UTF-16, as spreadsheets save it; without a header line it is a path, and a label if you like.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from ...errors import IndexFileError
from ..tokens import checked_caption
from .columns import USUAL, Columns
from .folder import CHUNK, probe_part
from .labels import Labels, resolve_label, target_name, weight_of
from .lines import USUAL_NAMES, by_semicolons, column_names, have_decimal_commas, read_lines
from .rows import Job, KnownFiles, in_parts, label_lists


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a manifest: where it stands, and what it says of its image."""

    place: str
    label: Any
    caption: str | None
    weight: float = 1.0


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
        columns = dict.fromkeys(column_names(path) if path.lower().endswith(".parquet") else ())
        image, label, caption_name = (
            called.image or usual.image,
            called.target or called.label or usual.label,
            called.caption or usual.caption,
        )
        notes: list[str] = []
        unweighted = ""
        names = Columns(image, label, caption_name, weight=called.weight)
        lines: Iterable[tuple[int, dict[str, Any]]] = read_lines(path, called, names, notes)
        commas = []
        if (called.target or called.weight) and by_semicolons(path, names):
            lines = list(lines)
            for column in filter(None, (called.target, called.weight)):
                if have_decimal_commas(entry.get(column, "") for _, entry in lines):
                    commas.append(column)
                    notes.append(f"'{path}': the numbers of '{column}' have decimal commas, so that 0,5 is a half")
        for line, entry in lines:
            for column in commas:
                entry[column] = entry[column].replace(",", ".")
            columns |= dict.fromkeys(entry)
            place = f"'{path}' line {line}"
            name = entry.get(image)
            if not isinstance(name, str) or not name or "\0" in name:
                raise IndexFileError(f"{place}: '{image}' is {name!r}; give the path of an image file")
            try:
                caption = checked_caption(entry.get(caption_name))
                said = target_name(entry.get(label)) if called.target else entry.get(label)
                weight = weight_of(entry[called.weight]) if called.weight and called.weight in entry else 1.0
            except ValueError as e:
                raise IndexFileError(f"{place}: {e}") from None
            if called.weight not in entry:
                unweighted = unweighted or place
            add(found, os.path.normpath(os.path.join(base, name)), Entry(place, said, caption, weight))
        if not found:
            raise IndexFileError(f"'{path}' names no image")
        called.check(path, columns)
        if called.weight and unweighted:
            raise IndexFileError(f"{unweighted}: no '{called.weight}'; give each image a weight, such as 1")
        labels = Labels.of(((entry.place, entry.label) for entry in found.values()), targets=bool(called.target))
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
        return sorted(self.labels.names) or (None if self.labels.number else [])

    def parts(self, known: pa.Table | None) -> Iterator[tuple[ManifestSource, pa.Table | None]]:
        """The same rows as those of several sources one after the other, each with what is known of it."""
        for number, (rows, own) in enumerate(in_parts(self._rows, lambda row: row[0], known)):
            # The first says what there is to say of the whole.
            part = ManifestSource(self.shard, {}, Labels()) if number else copy.copy(self)
            part._rows = list(rows)
            yield part, own

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
            weights = np.array([entry.weight for _, entry in self._rows[part]], np.float32)
            columns = {"labels": label_lists(labels), "caption": captions, "weight": weights, **job.tokenize(captions)}
            yield part.stop / len(names), probe_part(self.shard, names[part], part, columns, known, job)


def add(entries: dict[str, Entry], full: str, entry: Entry) -> None:
    """Adds an image.

    Raises:
        IndexFileError: it is there already.
    """
    if full in entries:
        raise IndexFileError(f"{entry.place}: '{full}' stands twice (also {entries[full].place}); name it once")
    entries[full] = entry
