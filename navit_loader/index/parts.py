"""A build in parts: one a container, and as many of a folder, manifest or bucket as it has thousands of files.

In: opened sources. Out: what `prepare` and `scan` of each give, made by a `Spread`, and the rows as one file a part. A part's
file is put in place by a rename, with all that a scan says beside its rows, so that a build which is started again does what is
missing: a container that has not changed is not read again, and of a file it is only asked whether it has.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial

import pyarrow as pa

from ..errors import IndexFileError, reason
from ..spread import Spread
from .sources.folder import FolderSource
from .sources.manifest import ManifestSource
from .sources.remote import BucketSource, stamp
from .sources.rows import ROWS, STAMP, Job, Source
from .sources.tars import TarSource

Files = FolderSource | ManifestSource | BucketSource
"""Sources of files by themselves, which know all names once they are prepared."""


@dataclass(frozen=True)
class Part:
    """What the scan of a part left.

    Attributes:
        path: its rows, a stream of `ROWS` batches.
        shard: the source.
        images: rows.
        broken: rows with a reason.
        reused: see `Job`.
        unread: see `Job`.
        left_out: see `Job`.
        notes: see `Job`.
    """

    path: str
    shard: str
    images: int = 0
    broken: int = 0
    reused: int = 0
    unread: int = 0
    left_out: dict[str, tuple[int, str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def prepare(sources: Sequence[Source], given: bool, spread: Spread) -> list[list[str] | None]:
    """`Source.prepare` of each. Only what files lie where is looked at here."""
    # A tar names no classes.
    here = [isinstance(source, Files | TarSource) for source in sources]
    found = [source.prepare(given) if mine else None for source, mine in zip(sources, here, strict=True)]
    elsewhere = [i for i, mine in enumerate(here) if not mine]
    for number, names in spread(partial(_names, given=given), [sources[i] for i in elsewhere]):
        found[elsewhere[number]] = names
    return found


def _names(source: Source, given: bool) -> list[str] | None:
    return source.prepare(given)


def scan(
    sources: Sequence[Source],
    job: Job,
    given: bool,
    folder: str,
    parameters: str,
    spread: Spread,
    progress: Callable[[float, int, int, str], None],
) -> list[Part]:
    """`Source.scan` of each, in parts.

    Args:
        sources: prepared.
        job: takes what the scans say, as if one process had gone through the sources in their order.
        given: a class table was given.
        folder: of the parts' files; made where it is missing.
        parameters: see `Journal`.
        spread: who scans.
        progress: called with the share of the parts that are done, and of each part its images, the broken ones, and its shard.

    Returns:
        The parts, in the order of their rows.

    Raises:
        IndexFileError: as `Source.scan`; or a part cannot be written.
    """
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as e:
        raise IndexFileError(f"'{folder}' cannot be made: {reason(e)}; make space or give permission") from None
    items = list(_items(sources, job))
    found: list[Part | None] = [None] * len(items)
    do = _Scan(replace(job, known={}), given, folder, parameters)
    for done, (number, part) in enumerate(spread(do, items), 1):
        found[number] = part
        progress(done / len(items), part.images, part.broken, part.shard)
    parts = [part for part in found if part is not None]
    for part in parts:
        job.reused += part.reused
        job.unread += part.unread
        job.notes += [note for note in part.notes if note not in job.notes]
        for why, (count, example) in part.left_out.items():
            job.leave_out(why, example, count)
    return parts


_Item = tuple[Source, int, pa.Table | None]
"""A source or a part of it, which part, and what is known of its rows."""


def _items(sources: Sequence[Source], job: Job) -> Iterator[_Item]:
    for source in sources:
        known = job.known.get(source.shard)
        if isinstance(source, Files):
            parts: Iterable[tuple[Source, pa.Table | None]] = source.parts(known)
            yield from ((part, number, own) for number, (part, own) in enumerate(parts))
        else:
            yield source, 0, known


@dataclass(frozen=True)
class _Scan:
    """Scans one part and leaves its file."""

    job: Job
    given: bool
    folder: str
    parameters: str

    def __call__(self, item: _Item) -> Part:
        source, number, known = item
        name = hashlib.blake2b(f"{self.parameters}\0{source.shard}\0{number}".encode(), digest_size=16).hexdigest()
        path = os.path.join(self.folder, f"{name}.arrows")
        before = _read(path)
        if before is not None:
            part, rows = before
            if not isinstance(source, Files) and _unchanged(source.shard, rows):
                return part
            known = rows if known is None else pa.concat_tables([rows, known])
        if not isinstance(source, Files):
            # What it says of its labels: it was prepared elsewhere.
            source.prepare(self.given)
        job = replace(self.job, known={} if known is None else {source.shard: known}, left_out={}, notes=[])
        batches = [batch for _, batch in source.scan(job)]
        images = sum(map(len, batches))
        broken = images - sum(batch["reason"].null_count for batch in batches)
        part = Part(path, source.shard, images, broken, job.reused, job.unread, job.left_out, job.notes)
        _write(part, batches)
        return part


def _unchanged(shard: str, rows: pa.Table) -> bool:
    now = dict(zip(STAMP, stamp(shard), strict=True))
    return bool(len(rows)) and all(rows[name].unique().to_pylist() == [value] for name, value in now.items())


def _write(part: Part, batches: Sequence[pa.RecordBatch]) -> None:
    said = {name: getattr(part, name) for name in ("shard", "images", "broken", "left_out", "notes")}
    # Two may be at it, where one was taken for lost.
    draft = f"{part.path}.{uuid.uuid4().hex}"
    try:
        with (
            pa.OSFile(draft, "wb") as file,
            pa.ipc.new_stream(file, ROWS.with_metadata({"part": json.dumps(said)})) as w,
        ):
            for batch in batches:
                w.write_batch(batch)
        os.replace(draft, part.path)
    except OSError as e:
        with suppress(OSError):
            os.unlink(draft)
        raise IndexFileError(
            f"'{part.path}' cannot be written: {reason(e)}; make space or give permission and start again, which does what is "
            "missing"
        ) from None


def _read(path: str) -> tuple[Part, pa.Table] | None:
    """A part that was done before; None where there is none."""
    try:
        with pa.memory_map(path) as file:
            reader = pa.ipc.open_stream(file)
            said = json.loads(reader.schema.metadata[b"part"])
            rows = reader.read_all().replace_schema_metadata(None)
    except FileNotFoundError:
        return None
    left_out = {why: (count, example) for why, (count, example) in said.pop("left_out").items()}
    return Part(path, **said, left_out=left_out), rows
