"""A folder of images, one class per folder at its top, as `torchvision.datasets.ImageFolder` lays them out.

In: a folder. Out: rows for the image files anywhere beneath it. Links to folders are followed; each loop is cut and
reported.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from ... import _packer
from ...errors import IndexFileError
from ...foreign import helpers
from .misread import are_splits
from .rows import IMAGE_SUFFIXES, Job, KnownFiles, in_parts, kind_of, make_rows, single_labels, text_names

CHUNK = 8192
"""Files probed at once: small enough for lively progress and little lost work, large enough to keep threads busy."""

_SUFFIXES = frozenset(suffix.encode() for suffix in IMAGE_SUFFIXES)


class FolderSource:
    """The image files beneath one folder; hidden files and folders are left out.

    Args:
        path: the folder, absolute.
        notes: what may surprise.
    """

    table = False

    def __init__(self, path: str, notes: Sequence[str] = ()) -> None:
        self.shard = os.path.join(path, "")
        self._notes = list(notes)
        self._names: list[bytes] = []
        self._problems: list[tuple[bytes, str]] = []
        self._others: dict[bytes, tuple[int, bytes]] = {}

    def prepare(self, given: bool) -> list[str] | None:
        """Walks the tree. Returns the names of the top folders that hold images, sorted by their bytes.

        Raises:
            IndexFileError: the folder itself cannot be read.
        """
        self._names, self._problems, self._others = walk(os.fsencode(self.shard))
        tops = sorted({name.split(b"/", 1)[0] for name in self._names if b"/" in name})
        paths = [os.fsdecode(top) for top in tops]
        if are_splits(self.shard, paths):
            self._notes.append(
                f"'{self.shard}': {', '.join(paths)} are names of splits, and taken for classes; if they are splits, index "
                f"each by itself, such as '{self.shard}{paths[0]}', and all but the first with --classes FIRST.arrow"
            )
        return [top.decode(errors="backslashreplace") for top in tops]

    def parts(self, known: pa.Table | None) -> Iterator[tuple[FolderSource, pa.Table | None]]:
        """The same rows as those of several sources one after the other, each with what is known of it; prepared."""
        for number, (names, own) in enumerate(in_parts(self._names, lambda name: name, known)):
            # The first says what there is to say of the whole.
            part = FolderSource(self.shard) if number else copy.copy(self)
            part._names = list(names)
            yield part, own

    def scan(self, job: Job) -> Iterator[tuple[float, pa.RecordBatch]]:
        """Probes the files found; see `Source.scan`.

        Raises:
            IndexFileError: a folder that the class table lacks.
        """
        job.notes += self._notes
        for end, (count, name) in self._others.items():
            job.leave_out(kind_of(end), self.shard + name.decode(errors="backslashreplace"), count)
        labels = np.full(len(self._names), -1, np.int64)
        ids: dict[bytes, int] = {}
        for i, name in enumerate(self._names):
            top, slash, _ = name.partition(b"/")
            if not slash:
                continue
            if top not in ids:
                text = top.decode(errors="backslashreplace")
                if job.classes is None or text not in job.classes:
                    raise IndexFileError(f"folder '{self.shard}{text}' is no class of the class table given")
                ids[top] = job.classes[text]
            labels[i] = ids[top]
        known = KnownFiles.look_up(job.known.get(self.shard), self._names)
        total = max(1, len(self._names))
        if self._problems:
            names, _ = text_names([name for name, _ in self._problems])
            yield 0.0, make_rows(self.shard, names, {}, dict(enumerate(reason for _, reason in self._problems)))
        for start in range(0, len(self._names), CHUNK):
            part = slice(start, min(start + CHUNK, len(self._names)))
            columns = {"labels": single_labels(labels[part])}
            yield part.stop / total, probe_part(self.shard, self._names[part], part, columns, known, job)


def probe_part(
    shard: str, names: Sequence[bytes], part: slice, columns: dict[str, Any], known: KnownFiles, job: Job
) -> pa.RecordBatch:
    """Rows of the files `names` of a folder shard: their headers, or what an earlier build knows of unchanged ones.

    Args:
        shard: the folder, ending in `/`.
        names: names beneath it.
        part: where these names lie among those that `known` looked up.
        columns: further columns, such as labels.
        known: rows of an earlier build.
        job: threads, and the count of rows taken over.
    """
    probed: dict[str, Any] = {
        **_packer.probe_files(os.fsencode(shard), b"\0".join(names), job.threads, known.stamps(part), helpers())
    }
    reasons = dict(probed["errors"])
    unchanged = np.flatnonzero(probed["format"] == _packer.FORMAT_UNCHANGED)
    if len(unchanged):
        known.fill(part, unchanged, probed)
        job.reused += len(unchanged)
    text, unreadable = text_names(names)
    return make_rows(shard, text, columns | probed, reasons | unreadable)


def walk(root: bytes) -> tuple[list[bytes], list[tuple[bytes, str]], dict[bytes, tuple[int, bytes]]]:
    """All image files beneath `root`, by extension.

    Returns:
        Names relative to `root`, sorted by their bytes; (name, reason) for each folder that was not entered and each entry
        that cannot be looked at; of other files, by the lower-case end of their names (`.` for hidden ones), how many
        there are and one of them.

    Raises:
        IndexFileError: `root` itself cannot be read.
    """
    names: list[bytes] = []
    problems: list[tuple[bytes, str]] = []
    others: dict[bytes, tuple[int, bytes]] = {}
    pending: list[tuple[bytes, tuple[tuple[int, int], ...]]] = [(b"", ())]
    while pending:
        prefix, above = pending.pop()
        try:
            stat = os.stat(root + prefix)
            here = (stat.st_dev, stat.st_ino)
            if here in above:
                problems.append((prefix, "a link that leads back to a folder above it; not followed"))
                continue
            with os.scandir(root + prefix) as entries:
                for entry in entries:
                    name = entry.name
                    _, dot, end = name.rpartition(b".")
                    end = end.lower() if dot else b""
                    hidden = name.startswith(b".")
                    try:
                        folder = not hidden and entry.is_dir()
                    except OSError as e:
                        # A link that leads to itself, a name that is too long: this entry alone is lost.
                        problems.append((prefix + name, f"cannot be looked at: {e.strerror}"))
                        continue
                    if hidden:
                        end = b"."
                    elif folder:
                        pending.append((prefix + name + b"/", (*above, here)))
                        continue
                    elif end in _SUFFIXES:
                        names.append(prefix + name)
                        continue
                    count, first = others.get(end, (0, prefix + name))
                    others[end] = (count + 1, min(first, prefix + name))
        except OSError as e:
            if not prefix:
                raise IndexFileError(f"folder '{os.fsdecode(root)}' cannot be read: {e.strerror}") from None
            problems.append((prefix, f"folder cannot be read: {e.strerror}"))
    names.sort()
    problems.sort()
    return names, problems, others
