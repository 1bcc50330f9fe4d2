"""A container whose images lie in it as they are: a zip, Arrow, MDS, LitData.

In: where each image is and what is said of it, from whoever knows the format. Out: rows that point into the container. Apart
from the formats, each of which is a file that says where things are, and nothing more.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from ... import _packer
from ...errors import IndexFileError
from ...foreign import helpers
from ..tokens import checked_caption
from .labels import Labels, resolve_label, target_names, weight_of
from .remote import stamp
from .rows import Job, known_container, label_lists, make_rows


@dataclass
class Members:
    """The images of one container, in the order of their names' bytes.

    Attributes:
        names: of each.
        offset: i64, first byte of each in the container.
        length: i64, bytes of each.
        reasons: image → why it cannot be used.
        labels: of each, as they are written; None where there are none.
        captions: the same of captions.
        weights: the same of weights.
        classes: the container's own class table, of which numbers among the labels are; None where it has none.
        left_out: what no row stands for: reason, example, how many.
        notes: what may surprise.
        targets: whether labels are numbers to be predicted.
    """

    names: Sequence[str]
    offset: np.ndarray[Any, Any]
    length: np.ndarray[Any, Any]
    reasons: dict[int, str] = field(default_factory=dict)
    labels: Sequence[Any] | None = None
    captions: Sequence[Any] | None = None
    weights: Sequence[Any] | None = None
    classes: list[str] | None = None
    left_out: list[tuple[str, str, int]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    targets: bool = False


class SpanSource:
    """The images of one such container.

    Args:
        path: the container, absolute.
        read: finds its members.
        table: whether they have columns.
    """

    def __init__(self, path: str, read: Callable[[], Members], table: bool = True) -> None:
        self.shard = path
        self.table = table
        self._read = read
        self._members: Members | None = None

    def prepare(self, given: bool) -> list[str] | None:
        """The class names of the container, or those in use; None where labels are numbers.

        Raises:
            IndexFileError: the container cannot be read in place; names and numbers are mixed, and no class table is given.
        """
        self._members = found = self._read()
        if found.classes is not None or found.labels is None:
            return found.classes or []
        return names_of(self.shard, found.labels, given, found.notes, targets=found.targets)

    def scan(self, job: Job) -> Iterator[tuple[float, pa.RecordBatch]]:
        """Probes the members where they lie; see `Source.scan`. A container known unchanged is not probed."""
        found, self._members = self._members or self._read(), None
        # Shards of one data set say the same.
        job.notes += [note for note in found.notes if note not in job.notes]
        length, mtime_ns = stamp(self.shard)
        if (known := known_container(job, self.shard, (length, mtime_ns))) is not None:
            yield 1.0, known
            return
        for reason, example, count in found.left_out:
            job.leave_out(reason, f"{self.shard}#{example}", count)
        places = (found.offset.astype(np.uint64), found.length.astype(np.uint64))
        columns: dict[str, Any] = {
            **_packer.probe_members(os.fsencode(self.shard), *places, job.threads, helpers()),
            "offset": found.offset,
        }
        reasons = dict(columns["errors"]) | found.reasons
        n = len(found.names)
        told = (found.labels, found.captions, found.weights)
        columns |= annotate(self.shard, n, *told, found.classes, job, reasons, targets=found.targets)
        columns["container_length"] = np.full(n, columns["container_length"], np.int64)
        columns["mtime_ns"] = np.full(n, mtime_ns, np.int64)
        yield 1.0, make_rows(self.shard, pa.array(found.names, pa.large_utf8()), columns, reasons)


def names_of(
    shard: str, labels: Iterable[Any], given: bool, notes: list[str], *, targets: bool = False
) -> list[str] | None:
    """The class names in use among the labels of a container's rows; None where labels are numbers.

    Args:
        shard: the container.
        labels: of each row, as they are written.
        given: whether there is a class table.
        notes: takes what may surprise.
        targets: whether labels are numbers to be predicted.

    Raises:
        IndexFileError: names and numbers are mixed, and no class table is given.
    """
    if targets:
        return sorted({name for name in target_names(labels) if isinstance(name, str)})
    found = Labels.of((f"'{shard}' row {row}", label) for row, label in enumerate(labels))
    if found.mixed and not given:
        raise IndexFileError(found.mixed)
    notes += found.notes
    return sorted(found.names) or (None if found.number else [])


def row_names(column: str, n: int) -> list[str]:
    """Names of the images in the rows of one column: the column and the row, with as many digits as the last."""
    width = len(str(max(n - 1, 0)))
    return [f"{column}/{i:0{width}d}" for i in range(n)]


def annotate(
    shard: str,
    n: int,
    labels: Iterable[Any] | None,
    captions: Iterable[Any] | None,
    weights: Iterable[Any] | None,
    classes: Sequence[str] | None,
    job: Job,
    reasons: dict[int, str],
    *,
    targets: bool = False,
) -> dict[str, Any]:
    """The columns of labels, captions and weights of a container's n rows; what is wrong with a row goes into `reasons`.

    Args:
        shard: the container.
        n: its rows.
        labels: of each row, as they are written.
        captions: of each row.
        weights: of each row.
        classes: the class table that numbers among the labels are of, if the container has one of its own.
        job: the class table of the index, and its tokenizer.
        reasons: row → why it is broken.
        targets: whether labels are numbers to be predicted.

    Raises:
        IndexFileError: the labels cannot be told.
    """
    given = list(target_names(labels or ()) if targets else labels or ())
    if not targets and (doubt := Labels.of((f"'{shard}' row {row}", label) for row, label in enumerate(given)).doubt):
        raise IndexFileError(doubt)
    numbers: list[list[int]] = [[]] * n
    texts: list[str | None] = [None] * n
    for i, label in enumerate(given):
        try:
            if isinstance(label, ValueError):
                raise label
            numbers[i] = resolve_label(_named(label, classes, job), job.classes)
        except ValueError as e:
            reasons.setdefault(i, str(e))
    for i, caption in enumerate(captions or ()):
        try:
            texts[i] = checked_caption(caption)
        except ValueError as e:
            reasons.setdefault(i, str(e))
    counts = np.ones(n, np.float32)
    for i, weight in enumerate(weights or ()):
        try:
            counts[i] = weight_of(weight)
        except ValueError as e:
            reasons.setdefault(i, str(e))
    return {"labels": label_lists(numbers), "caption": texts, "weight": counts, **job.tokenize(texts)}


def _named(label: Any, classes: Sequence[str] | None, job: Job) -> Any:
    """A number of the container's own class table as a name, so that it means the same in any table."""
    if isinstance(label, list):
        return [_named(each, classes, job) for each in label]
    if classes is not None and isinstance(label, int) and label != -1:
        if not 0 <= label < len(classes):
            raise ValueError(f"label {label} is out of range; the file names {len(classes)} classes")
        if job.classes is not None and classes[label] not in job.classes:
            raise ValueError(f"class '{classes[label]}' is in no class table")
        return classes[label]
    return label
