"""A folder whose `metadata.csv`, `.jsonl` or `.parquet` says what its files are, as Hugging Face's `imagefolder` has it.

In: a folder. Out: rows for the files that the metadata name by `file_name`, relative to the metadata. As there, folders are no
classes then, and images without metadata are left out; they are counted. Metadata stand in the folder itself or in those of its
splits.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import pyarrow as pa

from ...errors import IndexFileError
from .columns import Columns
from .folder import FolderSource, walk
from .labels import Labels
from .lines import column_names
from .manifest import Entry, ManifestSource, add
from .misread import SPLITS
from .rows import Job, Source, kind_of

_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
UNNAMED = "images that no metadata name"
"""A reason for `Job.leave_out`."""


def open_folder(path: str, columns: Columns) -> list[Source] | None:
    """The images of a folder with metadata; None for any other folder.

    Raises:
        IndexFileError: metadata cannot be read, or name a file twice.
    """
    parts, unread = [], ""
    for metadata in _metadata(path):
        try:
            there = column_names(metadata)
        except (OSError, ValueError, pa.ArrowException) as e:
            raise IndexFileError(f"'{metadata}' cannot be read: {e}") from None
        usual = Columns("file_name", "label", "caption" if "caption" in there else "text")
        if (columns.image or usual.image) in there:
            parts.append(ManifestSource.read(metadata, columns, usual))
        else:
            unread = unread or metadata
    if parts:
        return [_ImageFolder(os.path.join(path, ""), parts, _metadata(path))]
    if unread:
        note = f"'{unread}' has no column 'file_name', and is not read; name the one with the files by --image-column"
        return [FolderSource(path, [note])]
    return None


def _metadata(path: str) -> list[str]:
    """The metadata of a folder, or of its splits."""
    for folders in ([path], [os.path.join(path, name) for name in (*SPLITS, "data")]):
        each = (next(filter(os.path.isfile, (os.path.join(f, name) for name in _NAMES)), None) for f in folders)
        if found := [one for one in each if one is not None]:
            return found
    return []


class _ImageFolder(ManifestSource):
    """The images beneath a folder, as the metadata of its parts have them; and where these are."""

    def __init__(self, shard: str, parts: Sequence[ManifestSource], metadata: Sequence[str]) -> None:
        self._metadata = metadata
        entries: dict[str, Entry] = {}
        labels = Labels()
        for part in parts:
            for full, entry in part.entries.items():
                add(entries, full, entry)
            labels = labels.with_those_of(part.labels)
        if outside := next((full for full in entries if not full.startswith(shard)), None):
            raise IndexFileError(
                f"{entries[outside].place}: '{outside}' lies outside '{shard}'; give the metadata itself as the source"
            )
        super().__init__(shard, entries, labels)

    def scan(self, job: Job) -> Iterator[tuple[float, pa.RecordBatch]]:
        """Counts what the metadata do not name, and probes what they do; see `Source.scan`."""
        names, _, others = walk(os.fsencode(self.shard))
        unnamed = [name for name in map(os.fsdecode, names) if self.shard + name not in self.entries]
        if unnamed:
            job.leave_out(UNNAMED, self.shard + unnamed[0], len(unnamed))
        for end, (count, name) in others.items():
            count -= sum(os.fsencode(one).endswith(b"." + end) for one in self._metadata)
            if count:
                job.leave_out(kind_of(end), self.shard + name.decode(errors="backslashreplace"), count)
        if (
            not self.labels.name
            and not self.labels.number
            and any("/" in full[len(self.shard) :] for full in self.entries)
        ):
            job.notes.append(
                f"'{self.shard}': labels are those of its metadata, which give none; its folders are no classes"
            )
        yield from super().scan(job)
