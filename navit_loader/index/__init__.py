"""The index: one row per image with its size, its labels and where its bytes are.

Takes: sources (folders, manifests, tars, tables, archives, buckets). Gives: an Arrow IPC file that opens in constant time at
any size, memory-mapped where it is large, and that pandas, polars and DuckDB read too. `build_index` writes it, `open_index`
reads it. May not know: pixels, plans, or who reads it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from ..errors import IndexFileError
from ..spread import Spread
from . import parts
from .reader import Index, open_index
from .sources import expand_braces, open_sources
from .sources.columns import Columns
from .sources.labels import is_target
from .sources.misread import tables_in
from .sources.remote import is_remote
from .sources.rows import HIDDEN, ROWS, Job, Source, checked_classes, label_lists, need_utf8
from .sources.targets import Joined, open_targets
from .tokens import load_tokenizer
from .unfinished import Journal
from .write import VERSION, Batches, quarantine_path, survey, uri, write_index

__all__ = ["Index", "IndexProgress", "IndexSummary", "build_index", "open_index"]


@dataclass(frozen=True, slots=True)
class IndexProgress:
    """How far a build is.

    Attributes:
        share: of the sources gone through, 0 to 1.
        images: rows so far, broken ones included.
        broken: broken ones so far.
        source: what is being read.
    """

    share: float
    images: int
    broken: int
    source: str


@dataclass(frozen=True, slots=True)
class IndexSummary:
    """What a build did.

    Attributes:
        path: the index.
        rows: images in it.
        broken: images, folders or tars in quarantine.
        quarantine: where those are listed, one JSON object a line; empty where nothing is, and no file is written.
        classes: class names, in the order of their labels.
        unlabelled: images without a label.
        negatives: images that are known to be of no class (an empty list of labels).
        counts: images of each class, in the order of `classes`.
        reused: rows taken over from an earlier build without reading their files.
        ignored: files and members that no row stands for, and that are not broken; those of containers that were taken over
            are not counted, which a note says.
        left_out: the same by reason: how many, and one of them.
        notes: what was understood in a way that may surprise, a sentence each.
        seconds: time taken.
    """

    path: str
    rows: int
    broken: int
    quarantine: str
    classes: list[str]
    unlabelled: int
    negatives: int
    counts: list[int]
    reused: int
    ignored: int
    left_out: dict[str, tuple[int, str]]
    notes: list[str]
    seconds: float


def build_index(
    sources: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    classes: str | os.PathLike[str] | Sequence[str] | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    image_column: str = "",
    label_column: str = "",
    caption_column: str = "",
    target_column: str = "",
    weight_column: str = "",
    boxes: str | os.PathLike[str] = "",
    masks: str | os.PathLike[str] = "",
    refresh: bool = False,
    strict: bool = False,
    threads: int = 0,
    progress: Callable[[IndexProgress], None] | None = None,
    spread: Spread | None = None,
) -> IndexSummary:
    """Indexes the images of one or more sources, reading headers only.

    The same files give the same index whatever the number of threads, and after a kill too: what was done is kept
    beside the output (`OUTPUT.building`) and used when the build is started again. Broken images are listed in
    `OUTPUT.quarantine.jsonl` and counted; they stop nothing.

    Args:
        sources: folders (class per folder, or as datasets, MDS and LitData write them), manifests (`.csv`, `.jsonl`,
            `.parquet`), COCO JSON, plain tars, zips, Parquet and Arrow files with images (`{000..127}` expands).
        output: path of the index; an existing one is replaced by rename when the new one is whole.
        classes: the class table to use: names, or the path of an index, or of a text with a name a line, to take them from.
        tokenizer: a `tokenizer.json` for captions (needs the package `tokenizers`); None takes bytes.
        image_column: of manifests and other tables: what holds the images or their paths; by default `path`, or the
            column of images.
        label_column: what holds the labels; by default `label`.
        caption_column: what holds the captions; by default `caption`, and beside images `text`.
        target_column: what holds a number to be predicted, in the place of labels: each is a class with the number as its name,
            and `Index.targets` gives the numbers.
        weight_column: what holds how much an image counts in a loss, 0 or more; where no source has the column, 1.
        boxes: where the boxes of objects stand: a COCO JSON, a folder of Pascal VOC's XML or YOLO's text, or `column:NAME` of a
            manifest. The class table is theirs then, unless `classes` gives one.
        masks: where masks are: a folder of PNG files named as their images, whose pixels are classes; `coco:` and a COCO JSON,
            whose boxes are taken too; `panoptic:` with its JSON and its folder, `JSON,FOLDER`, likewise.
        refresh: take rows of unchanged files (same length and modification time) over from the index at `output`.
        strict: refuse to write an index where anything but hidden files is broken or left out.
        threads: probing threads; 0 means one per core that this process may use.
        progress: called now and then.
        spread: who reads the sources, in parts; None is this process. The index is the same.

    Raises:
        IndexFileError: a source that is missing or contradicts the class table, labels that cannot be told, no usable image,
            an output that cannot be written, or, if `strict`, anything broken or left out.
    """
    started = time.perf_counter()
    path = os.path.abspath(os.fspath(output))
    if os.path.isdir(path):
        raise IndexFileError(f"'{path}' is a folder; give the path of the index file to write")
    need_utf8(path, "the path")
    given = [sources] if isinstance(sources, str | os.PathLike) else list(sources)
    for one in given:
        if not isinstance(one, str | os.PathLike):
            raise IndexFileError(f"source {one!r} is of type {type(one).__name__}; give paths or URLs")
    columns = Columns(image_column, label_column, caption_column, target_column, weight_column)
    if target_column and (label_column or classes is not None):
        other = f"--label-column = '{label_column}'" if label_column else "--classes"
        raise IndexFileError(f"--target-column = '{target_column}' stands in the place of labels; leave {other} out")
    opened = open_sources(given, columns)
    targets = None
    if boxes or masks:
        classes = _table_at(os.fspath(classes)) if isinstance(classes, str | os.PathLike) else classes
        local = [os.fspath(one) for one in given if not is_remote(os.fspath(one))]
        places = [os.path.abspath(path) for pattern in local for path in expand_braces(pattern)]
        targets = open_targets(os.fspath(boxes), os.fspath(masks), places, classes, columns)
    if targets is not None and target_column:
        raise IndexFileError(f"--target-column = '{target_column}' predicts numbers; leave --boxes and --masks out")
    old = open_index(path) if refresh and os.path.exists(path) else None
    if old is not None and targets is None and (old.boxed or old.masks):
        raise IndexFileError(
            f"'{path}' has boxes or masks, which --refresh alone would drop; give --boxes and --masks as before"
        )
    for source in opened:
        need_utf8(source.shard, "the path")
    tokens = load_tokenizer(tokenizer)
    table = _class_table(opened, classes, spread)
    if target_column and (none := next((name for name in table or () if not is_target(name)), None)) is not None:
        raise IndexFileError(
            f"class '{none}' is no number; with --target-column each source must be a table that has the column"
        )
    folders = [os.path.dirname(source.shard) for source in opened if not is_remote(source.shard)]
    root = os.path.commonpath(folders) if folders else os.path.dirname(path)
    called = json.dumps(columns.given) if columns else ""
    parameters = json.dumps([VERSION, table, tokens.facts.hash, *([called] if called else [])])
    with Journal(path, parameters) as journal:
        known = journal.known()
        if old is not None:
            same = (
                old.table_given == table and old.tokens.hash in ("", tokens.facts.hash) and old.columns_given == called
            )
            # A container with anything in quarantine is read again, since what was wrong with it is not in the index.
            tainted = {line["shard"] for line in old.quarantine() if not line["shard"].endswith("/")}
            fit = [batch for batch in old.as_rows() if batch["shard"].dictionary[0].as_py() not in tainted]
            known = [(same, fit), *known]
        job = Job(
            classes=None if table is None else {name: i for i, name in enumerate(table)},
            known=_by_shard(known),
            tokenize=tokens.columns,
            threads=threads or len(os.sched_getaffinity(0)),
        )
        images = broken = 0

        def count(share: float, more: int, wrong: int, shard: str) -> None:
            nonlocal images, broken
            images, broken = images + more, broken + wrong
            if progress is not None:
                progress(IndexProgress(share, images, broken, shard))

        for i, source in enumerate(opened if spread is None else ()):
            for share, batch in source.scan(job):
                journal.append(batch)
                count((i + share) / len(opened), len(batch), len(batch) - batch["reason"].null_count, source.shard)
        if spread is not None:
            folder = os.path.join(journal.folder, "parts")
            for part in parts.scan(opened, job, classes is not None, folder, parameters, spread, count):
                journal.adopt(part.path)
        if job.unread:
            job.notes.append(
                f"{job.unread:,} containers are unchanged and were not read again; what they leave out is not counted"
            )
        batches: Callable[[], Iterable[pa.RecordBatch]] = journal.batches
        if targets is not None:
            rows, table = _annotated(targets, journal.batches, table, job)
            batches = rows.__iter__
        found = survey(batches, root, table, tokens.facts)
        if not found.rows:
            message = _nothing([source.shard for source in opened], batches)
            journal.remove()
            raise IndexFileError(message)
        if weight_column:
            least, most, total = found.weights
            if not most:
                journal.remove()
                raise IndexFileError(
                    f"--weight-column = '{weight_column}': all weights are 0, so that no image would be learnt"
                )
            job.notes.append(
                f"an image counts from {least:g} to {most:g} in a loss, {total / found.rows:.4g} in the mean"
            )
        if strict and (message := _left_out(job, found.broken, batches, targets)):
            journal.remove()
            raise IndexFileError(message)
        about = json.dumps(targets.about) if targets is not None else ""
        write_index(
            path, batches, found, root, table, tokens.facts, called, targets=bool(target_column), annotated=about
        )
        journal.remove()
    names = open_index(path).classes
    return IndexSummary(
        path=path,
        rows=found.rows,
        broken=found.broken,
        quarantine=quarantine_path(path) if found.broken else "",
        classes=names,
        unlabelled=found.unlabelled,
        negatives=found.negatives,
        counts=[*found.counts.tolist(), *[0] * (len(names) - len(found.counts))],
        reused=job.reused,
        ignored=sum(count for count, _ in job.left_out.values()),
        left_out=job.left_out,
        notes=job.notes,
        seconds=time.perf_counter() - started,
    )


def _class_table(
    sources: list[Source], classes: str | os.PathLike[str] | Sequence[str] | None, spread: Spread | None
) -> list[str] | None:
    """The class table of the build, or None where labels are numbers without names. Walks the sources.

    Raises:
        IndexFileError: names and numbers are mixed without a table, or a name stands twice.
    """
    given = classes is not None
    each = [source.prepare(given) for source in sources] if spread is None else parts.prepare(sources, given, spread)
    found = list(zip(sources, each, strict=True))
    if isinstance(classes, str | os.PathLike):
        return _table_at(os.fspath(classes))
    if classes is not None:
        return checked_classes(classes, "the class table given")
    named = [names for _, names in found if names]
    if not named:
        return None
    if all(names == named[0] for names in named):
        table = checked_classes(named[0], "the sources")
    else:
        table = sorted({name for names in named for name in names}, key=str.encode)
    numbered = [source.shard for source, names in found if names is None]
    if numbered:
        raise IndexFileError(
            f"'{numbered[0]}' has numbers for labels where other sources have names; give the table with --classes FROM"
        )
    return table


def _table_at(path: str) -> list[str]:
    """The class table of an index, or of a text file with a name a line.

    Raises:
        IndexFileError: it is neither, or a line is blank.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            content = file.read().rstrip()
    except (OSError, UnicodeDecodeError):
        content = ""
    if not content or "\0" in content:
        return open_index(path).classes
    names = [line.strip() for line in content.split("\n")]
    if "" in names:
        raise IndexFileError(f"'{path}' line {names.index('') + 1}: a blank line; give a class name on each line")
    return checked_classes(names, f"'{path}'")


def _annotated(
    targets: Joined, batches: Batches, table: list[str] | None, job: Job
) -> tuple[list[pa.RecordBatch], list[str] | None]:
    """All rows with their boxes and masks, and the class table, which is that of the boxes. Labels of the images stay where
    their names are in it."""
    rows = list(targets.rows(batches(), job.threads))
    job.notes += targets.notes
    if targets.classes is None or targets.classes == table:
        return rows, table
    number_by_name = {name: n for n, name in enumerate(targets.classes)}
    to = [number_by_name.get(name, -1) for name in table or ()]
    if -1 in to or not table:
        if any(len(batch["labels"].flatten()) for batch in rows):
            job.notes.append("labels of whole images are not taken, since the classes are those of the boxes")
        to = []
    at = ROWS.get_field_index("labels")
    return [batch.set_column(at, "labels", _relabelled(batch["labels"], to)) for batch in rows], targets.classes


def _relabelled(labels: pa.ListArray, to: list[int]) -> pa.ListArray:
    """Labels by another table; none where `to` is empty."""
    lists = labels.to_pylist() if to else [[] for _ in range(len(labels))]
    return label_lists([sorted(to[label] if label >= 0 else label for label in each) for each in lists])


def _left_out(job: Job, broken: int, batches: Batches, targets: Joined | None) -> str:
    """Why a strict build refuses: the first broken row or thing left out; empty where there is none."""
    if broken:
        return f"{broken:,} images are broken; {_first_broken(batches)}"
    if targets is not None and targets.problems:
        return f"{targets.problems[0]}; mend the annotations, or index without --strict"
    for reason, (count, example) in job.left_out.items():
        if reason != HIDDEN:
            return (
                f"{count:,} {reason} would be left out, such as '{example}'; take them away, or index without --strict"
            )
    return ""


def _nothing(shards: list[str], batches: Batches) -> str:
    """Why there is no index, with the first broken image as an example."""
    where = shards[0] if len(shards) == 1 else f"{shards[0]} and {len(shards) - 1} more"
    if first := _first_broken(batches):
        return f"no usable image in '{where}'; {first}"
    for folder in filter(os.path.isdir, shards):
        kinds = {os.path.splitext(name)[1] for name in os.listdir(folder)} & {".tar", ".parquet", ".zip", ".arrow"}
        if kinds:
            name = os.path.join(folder, "*" + max(kinds))
            return f"no image in '{folder}', only containers of images; give them in its place: {name}"
        for name in sorted(os.listdir(folder)):
            if any(os.path.exists(os.path.join(folder, name, about)) for about in ("index.json", "state.json")):
                return f"no image in '{folder}'; give the data set in it: {os.path.join(folder, name)}"
        if tables := tables_in(folder):
            return f"no image in '{folder}', but there is {tables}; give that in its place"
    return f"no image in '{where}'; looked for files that end in .jpg, .jpeg, .png, .webp and the like"


def _first_broken(batches: Batches) -> str:
    """One broken row and its reason; empty where there is none."""
    for batch in batches():
        rows = batch.filter(pc.is_valid(batch["reason"])).select(["shard", "name", "reason"]).slice(0, 1).to_pylist()
        if rows:
            return f"for one, '{uri(rows[0]['shard'], rows[0]['name'])}': {rows[0]['reason']}"
    return ""


def _by_shard(builds: list[tuple[bool, list[pa.RecordBatch]]]) -> dict[str, pa.Table]:
    """Rows known from earlier builds, newest last, by shard; for each build also whether it had the same parameters.

    Of a folder all builds count, since labels never come from them, and the newest stands first, since the first of
    equal names is found. A container is known as a whole, from one build with the same parameters.
    """
    grouped: dict[str, list[pa.RecordBatch]] = {}
    for same, build in builds:
        own: dict[str, list[pa.RecordBatch]] = {}
        for batch in build:
            shard = batch["shard"].dictionary[0].as_py() if len(batch) else ""
            if shard and (same or shard.endswith("/")):
                own.setdefault(shard, []).append(batch.replace_schema_metadata(None))
        for shard, rows in own.items():
            grouped[shard] = rows + (grouped.get(shard, []) if shard.endswith("/") else [])
    return {shard: pa.Table.from_batches(rows) for shard, rows in grouped.items()}
