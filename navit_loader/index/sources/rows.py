"""The rows that every source yields, and what sources share: the class table, what is known already, text columns.

In: columns as numpy arrays and lists. Out: Arrow record batches of schema `ROWS`, good and broken images alike; a
broken one carries its reason. They go into the journal of a build and from there into the index.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ...errors import IndexFileError

_READ_BY_THE_ENGINE = (
    "jpg",
    "jpeg",
    "jpe",
    "jfif",
    "mpo",
    "png",
    "apng",
    "webp",
    "gif",
    "bmp",
    "dib",
    "tif",
    "tiff",
    "jxl",
)
_READ_BY_PILLOW = (
    "avif",
    "heif",
    "heic",
    "hif",
    "jp2",
    "j2k",
    "j2c",
    "jpx",
    "ppm",
    "pgm",
    "pbm",
    "pnm",
    "ico",
    "icns",
    "dds",
    "qoi",
    "sgi",
)

IMAGE_SUFFIXES = frozenset(_READ_BY_THE_ENGINE + _READ_BY_PILLOW)
"""Extensions, in lower case, of files that are taken for images; whether they are is for the probe to say."""

HIDDEN = "hidden"
"""The reason for which hidden files are left out."""

ROWS = pa.schema(
    [
        ("shard", pa.dictionary(pa.int32(), pa.utf8())),
        ("name", pa.large_utf8()),
        ("offset", pa.int64()),
        ("length", pa.int64()),
        ("container_length", pa.int64()),
        ("check", pa.uint32()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("orientation", pa.uint8()),
        ("format", pa.uint8()),
        ("labels", pa.list_(pa.int64())),
        ("caption", pa.large_utf8()),
        ("caption_tokens", pa.int32()),
        ("caption_ids", pa.list_(pa.int32())),
        ("weight", pa.float32()),
        ("mtime_ns", pa.int64()),
        ("reason", pa.utf8()),
    ]
)
"""One row per image or per broken thing; `shard` is absolute, `reason` is null for good images."""


STAMP = ("container_length", "mtime_ns")
"""What a container must have kept for its rows to be taken over."""


class Source(Protocol):
    """One place with images. All its rows have the same shard.

    Attributes:
        shard: absolute path: of a folder, ending in `/`, or of a container file.
        table: whether its images are rows of a table, whose columns a person may name.
    """

    @property
    def shard(self) -> str: ...  # noqa: D102
    @property
    def table(self) -> bool: ...  # noqa: D102

    def prepare(self, given: bool) -> list[str] | None:
        """Looks around, before any header is read.

        Args:
            given: a class table is given, so that this source need not make one of its labels.

        Returns:
            The class names found, or None where labels are numbers.
        """

    def scan(self, job: Job) -> Iterator[tuple[float, pa.RecordBatch]]:
        """Yields (share of this source done, rows), the rows in the order of their names' bytes."""


@dataclass
class Job:
    """What a scan needs besides its source.

    Attributes:
        classes: class name → label, or None where labels are numbers without names.
        known: rows of an earlier build, by shard; tried before a header is read.
        tokenize: captions → the columns `caption_tokens` and `caption_ids`; see `tokens.Tokenizer`.
        threads: probing threads.
        reused: rows taken over from `known` so far.
        unread: containers that were taken over from `known` so far.
        left_out: files and members that no row stands for so far, by reason: how many, and one of them.
        notes: what may surprise whoever reads the index.
    """

    classes: Mapping[str, int] | None
    known: Mapping[str, pa.Table]
    tokenize: Callable[[Sequence[str | None]], dict[str, Any]]
    threads: int
    reused: int = 0
    unread: int = 0
    left_out: dict[str, tuple[int, str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def leave_out(self, reason: str, example: str, count: int = 1) -> None:
        """Counts what has no row. The reason says what it is, in words that go after a number."""
        before, first = self.left_out.get(reason, (0, example))
        self.left_out[reason] = (before + count, first)


def kind_of(end: bytes) -> str:
    """The reason, for `Job.leave_out`, of a file whose name is that of no image: by its end, `.` where it is hidden."""
    if end == b".":
        return HIDDEN
    return f"of kind '.{end.decode(errors='backslashreplace')[:40]}'" if end else "whose names have no end such as .jpg"


def make_rows(shard: str, names: pa.Array, columns: Mapping[str, Any], reasons: Mapping[int, str]) -> pa.RecordBatch:
    """One batch of `ROWS`.

    Args:
        shard: see `Source.shard`.
        names: large_utf8 names in the shard.
        columns: arrays for the other columns; absent ones are 0, or 1 for orientation and weight, null for texts, no label.
        reasons: row → why it is broken.
    """
    n = len(names)
    zero = np.zeros(n, np.int64)
    values: dict[str, Any] = {
        "shard": pa.DictionaryArray.from_arrays(np.zeros(n, np.int32), [shard]),
        "name": names,
        "orientation": np.ones(n, np.uint8),
        "labels": pa.ListArray.from_arrays(np.zeros(n + 1, np.int32), pa.array([], pa.int64())),
        "caption": pa.nulls(n, pa.large_utf8()),
        "caption_ids": pa.nulls(n, pa.list_(pa.int32())),
        "weight": np.ones(n, np.float32),
        "reason": [reasons.get(i) for i in range(n)] if reasons else pa.nulls(n, pa.utf8()),
    } | dict(columns)
    arrays = []
    for column in ROWS:
        value = values.get(column.name, zero)
        arrays.append(value if isinstance(value, pa.Array) else pa.array(value).cast(column.type))
    return pa.RecordBatch.from_arrays(arrays, schema=ROWS)


def known_container(job: Job, shard: str, stamp: tuple[int, int]) -> pa.RecordBatch | None:
    """The rows of a container whose length and modification time are those of an earlier build; None where they are not.

    Args:
        job: counts the rows taken over.
        shard: the container.
        stamp: its length and modification time now.
    """
    known = job.known.get(shard)
    if known is None or not len(known):
        return None
    if any(bool(np.any(known[name].to_numpy() != now)) for name, now in zip(STAMP, stamp, strict=True)):
        return None
    job.reused += len(known)
    job.unread += 1
    # One batch again, so that a journal never holds half a container.
    return known.combine_chunks().to_batches()[0]


def text_names(names: Sequence[bytes]) -> tuple[pa.Array, dict[int, str]]:
    """Raw names as large_utf8, and the rows whose name is no UTF-8: shown escaped, and with a reason."""
    try:
        return pa.array(names, pa.large_binary()).cast(pa.large_utf8()), {}
    except pa.ArrowInvalid:
        reasons: dict[int, str] = {}
        shown = []
        for i, name in enumerate(names):
            try:
                shown.append(name.decode())
            except UnicodeDecodeError:
                shown.append(name.decode(errors="backslashreplace"))
                reasons[i] = "its name is not UTF-8; rename it"
        return pa.array(shown, pa.large_utf8()), reasons


def label_lists(labels: Sequence[Sequence[int]]) -> pa.ListArray:
    """Lists of labels as one Arrow column."""
    offsets = np.zeros(len(labels) + 1, np.int32)
    np.cumsum([len(each) for each in labels], out=offsets[1:])
    return pa.ListArray.from_arrays(offsets, pa.array([v for each in labels for v in each], pa.int64()))


def single_labels(labels: np.ndarray[Any, Any]) -> pa.ListArray:
    """i64 labels, −1 for none, as lists of one or none."""
    given = labels != -1
    offsets = np.zeros(len(labels) + 1, np.int32)
    np.cumsum(given, out=offsets[1:])
    return pa.ListArray.from_arrays(offsets, pa.array(labels[given], pa.int64()))


PART = 32768
"""Files of one part of a source, where it is scanned in parts: whole `folder.CHUNK`s, so that batches are cut alike."""

E = TypeVar("E")


def in_parts(
    entries: Sequence[E], name: Callable[[E], bytes], known: pa.Table | None
) -> Iterator[tuple[Sequence[E], pa.Table | None]]:
    """The files of a source, `PART` at a time, each time with what an earlier build knows of them.

    Args:
        entries: a file each, in the order of their names' bytes.
        name: of an entry.
        known: rows of an earlier build.
    """
    stored = None if known is None else known["name"].cast(pa.large_binary())
    for start in range(0, max(1, len(entries)), PART):
        some = entries[start : start + PART]
        if known is None or not some:
            yield some, known
            continue
        first, last = (pa.scalar(name(entry), pa.large_binary()) for entry in (some[0], some[-1]))
        within = pc.and_(pc.greater_equal(stored, first), pc.less_equal(stored, last))
        yield some, known.filter(within).combine_chunks()


@dataclass(frozen=True)
class KnownFiles:
    """What an earlier build knows of the files of one folder.

    Attributes:
        rows: for each name looked up, its row in the columns, or −1.
        columns: the columns of the good rows known; empty where nothing is known.
    """

    rows: np.ndarray[Any, Any]
    columns: Mapping[str, np.ndarray[Any, Any]]

    @classmethod
    def look_up(cls, table: pa.Table | None, names: Sequence[bytes]) -> KnownFiles:
        """Finds all `names` of a folder at once among the good rows of `table`."""
        nothing = cls(np.full(len(names), -1, np.int64), {})
        if table is None:
            return nothing
        table = table.filter(pc.is_null(table["reason"])).combine_chunks()
        if not len(table) or not len(names):
            return nothing
        stored = table["name"].combine_chunks().cast(pa.large_binary())
        found = pc.index_in(pa.array(names, pa.large_binary()), value_set=stored)
        taken = ("length", "mtime_ns", "width", "height", "orientation", "format")
        return cls(found.fill_null(-1).to_numpy().astype(np.int64), {name: table[name].to_numpy() for name in taken})

    def stamps(self, part: slice) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]] | None:
        """Length and modification time for each name of `part`, −1 where unknown; None where nothing is known."""
        if not self.columns:
            return None
        rows = self.rows[part]
        length, mtime_ns = (np.where(rows < 0, -1, self.columns[name][rows]) for name in ("length", "mtime_ns"))
        return length, mtime_ns

    def fill(self, part: slice, unchanged: np.ndarray[Any, Any], columns: dict[str, Any]) -> None:
        """Copies what headers said into `columns` where a file is unchanged."""
        rows = self.rows[part][unchanged]
        for name in ("width", "height", "orientation", "format"):
            columns[name][unchanged] = self.columns[name][rows]


def checked_classes(names: Sequence[str], where: str) -> list[str]:
    """Class names, each once.

    Raises:
        IndexFileError: a name stands twice, or is no UTF-8.
    """
    seen: set[str] = set()
    for name in names:
        need_utf8(name, "class")
        if name in seen:
            raise IndexFileError(f"class '{name}' stands twice in {where}")
        seen.add(name)
    return list(names)


def read_json(path: str, remedy: str) -> Any:
    """What a JSON file holds; None where there is no such file.

    Raises:
        IndexFileError: it cannot be read; says the remedy.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            return json.load(file)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as e:
        raise IndexFileError(f"'{path}' cannot be read as JSON: {e}; {remedy}") from None


def need_utf8(name: str, what: str) -> None:
    """Refuses a name that an index cannot hold.

    Raises:
        IndexFileError: names it.
    """
    try:
        name.encode()
    except UnicodeEncodeError:
        raise IndexFileError(f"{what} {name!r} cannot be written as UTF-8; rename it") from None
