"""Rows → index file: equal record batches, one dictionary of shards, fingerprints, and the quarantine beside it.

In: batches of `rows.ROWS` in key order, which can be gone through twice. Out: an Arrow IPC file under a temporary name,
renamed when it is whole, since readers map the old one.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .. import _packer
from ..batch import NO_CLASS
from ..errors import IndexFileError, reason
from .checks import CHECK, checksum, metadata_checksum
from .sources.labels import MOST_UNNAMED
from .sources.remote import is_remote
from .sources.rows import ROWS
from .sources.targets import BOX_LISTS, TARGETS
from .tokens import BYTES, TokenFacts

VERSION = 2
"""Version of the index format; an index of another one is refused."""

BATCH_ROWS = 65536
"""Rows of every record batch but the last."""

Batches = Callable[[], Iterable[pa.RecordBatch]]


@dataclass
class Survey:
    """What a first pass over the rows finds.

    Attributes:
        rows: good images.
        broken: rows in quarantine.
        unlabelled: good images without a label.
        negatives: good images that are known to be of no class.
        counts: good images of each class, up to the highest label.
        label_width: K, labels of an image at most.
        max_label: the highest label, −1 without any.
        captions: whether any good image has a caption.
        weighted: whether any good image counts otherwise than 1.
        weights: the least and the greatest weight of the good images, and their sum.
        containers: whether any good image is a member of a container.
        formats: codes of the formats of good images.
        shards: absolute shards with good images, in order.
        plan_fingerprint: of the columns that planning reads.
        render_fingerprint: of the other ones.
        targets: columns of boxes and masks, in the order of the index.
        mask_shards: absolute shards with masks, in order.
    """

    rows: int = 0
    broken: int = 0
    unlabelled: int = 0
    negatives: int = 0
    counts: np.ndarray[Any, Any] = field(default_factory=lambda: np.zeros(0, np.int64))
    label_width: int = 1
    max_label: int = -1
    captions: bool = False
    weighted: bool = False
    weights: tuple[float, float, float] = (np.inf, 0.0, 0.0)
    containers: bool = False
    formats: set[int] = field(default_factory=set)
    shards: list[str] = field(default_factory=list)
    plan_fingerprint: str = ""
    render_fingerprint: str = ""
    targets: list[str] = field(default_factory=list)
    mask_shards: list[str] = field(default_factory=list)


class _Fingerprint:
    """A hash for each column, then one over them, so that it does not depend on how rows are cut into batches."""

    def __init__(self) -> None:
        self._columns: dict[str, Any] = {}

    def add(self, column: str, values: np.ndarray[Any, Any] | pa.Array) -> None:
        own = self._columns.setdefault(column, hashlib.blake2b())
        if isinstance(values, pa.Array):
            self.add(column + ".length", pc.binary_length(values).fill_null(-1).to_numpy(zero_copy_only=False))
            offsets = np.frombuffer(values.buffers()[1], np.int64)[values.offset : values.offset + len(values) + 1]
            own.update(memoryview(values.buffers()[2] or b"")[offsets[0] : offsets[-1]])
        else:
            own.update(np.ascontiguousarray(values).astype(values.dtype.newbyteorder("<"), copy=False).data)

    def digest(self, *more: str) -> str:
        total = hashlib.blake2b(digest_size=32)
        for part in (*more, *(f"{name}={own.hexdigest()}" for name, own in sorted(self._columns.items()))):
            total.update(part.encode() + b"\0")
        return total.hexdigest()


def survey(batches: Batches, root: str, classes: list[str] | None, tokens: TokenFacts) -> Survey:
    """The first pass. See `Survey`.

    Args:
        batches: gives the rows, in key order.
        root: absolute folder that shards are made relative to, so that fingerprints do not depend on where data lie.
        classes: the class table, or None where labels are bare numbers.
        tokens: the tokenizer of the captions.
    """
    found = Survey()
    plan, render = _Fingerprint(), _Fingerprint()
    for batch in batches():
        good = batch.filter(pc.is_null(batch["reason"]))
        found.broken += len(batch) - len(good)
        if not len(good):
            continue
        weights = good["weight"].to_numpy()
        if len(odd := np.flatnonzero(weights != 1)):
            found.weighted = True
            # Those of 1 are left out: with an index without weights none is in the hash.
            plan.add("weighted", odd + found.rows)
            plan.add("weights", weights[odd])
        least, most, total = found.weights
        found.weights = (
            min(least, float(weights.min())),
            max(most, float(weights.max())),
            total + float(weights.sum(dtype=np.float64)),
        )
        found.rows += len(good)
        shard = batch["shard"].dictionary[0].as_py()
        if not found.shards or found.shards[-1] != shard:
            found.shards.append(shard)
        counts = pc.list_value_length(good["labels"]).to_numpy()
        labels = good["labels"].flatten().to_numpy()
        found.unlabelled += int((counts == 0).sum())
        found.label_width = max(found.label_width, int(counts.max()))
        found.max_label = max(found.max_label, int(labels.max(initial=-1)))
        found.negatives += int((labels == NO_CLASS).sum())
        found.counts = _added(found.counts, labels[(labels >= 0) & (labels < MOST_UNNAMED)])
        found.formats.update(np.unique(good["format"].to_numpy()).tolist())
        found.containers |= not shard.endswith("/")
        found.captions |= good["caption"].null_count < len(good)
        for name in ("width", "height", "caption_tokens"):
            plan.add(name, good[name].to_numpy())
        plan.add("label_counts", counts)
        plan.add("labels", labels)
        render.add("shard", np.full(len(good), len(found.shards) - 1, np.int32))
        for name in ("offset", "length", "orientation", "format"):
            render.add(name, good[name].to_numpy())
        for name in ("name", "caption"):
            render.add(name, good[name])
        render.add("caption_ids", good["caption_ids"].flatten().to_numpy())
        found.targets = [name for name in TARGETS if name in batch.schema.names]
        if "box_count" in found.targets:
            plan.add("box_count", good["box_count"].to_numpy())
            render.add("boxes", good["boxes"].flatten().flatten().to_numpy())
            for name in BOX_LISTS[1:]:
                if name in found.targets and name != "regions":
                    render.add(name, good[name].flatten().to_numpy())
        if "regions" in found.targets:
            render.add("regions", good["regions"].flatten())
        if "mask_shard" in found.targets:
            found.mask_shards += [s for s in good["mask_shard"].dictionary.to_pylist() if s not in found.mask_shards]
            render.add("mask_name", good["mask_name"])
            for name in ("mask_offset", "mask_length"):
                render.add(name, good[name].to_numpy())
    found.plan_fingerprint = plan.digest(f"v{VERSION}", *class_names(classes, found.max_label))
    tokenizer = [tokens.hash, str(tokens.end)] if found.captions else []
    shards = (relative(shard, root) for shard in (*found.shards, *found.mask_shards))
    found.render_fingerprint = render.digest(f"v{VERSION}", *tokenizer, *shards)
    return found


def _added(counts: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    more = np.bincount(labels, minlength=len(counts))
    more[: len(counts)] += counts
    return more


def class_names(classes: list[str] | None, max_label: int) -> list[str]:
    """The class table of the index: the one given, or the numbers up to the highest label.

    Raises:
        IndexFileError: bare numbers that run too high to be classes.
    """
    if classes is not None:
        return classes
    if max_label >= MOST_UNNAMED:
        raise IndexFileError(
            f"label {max_label} would make {max_label + 1} classes; if that is meant, give their names (--classes FROM)"
        )
    return [str(label) for label in range(max_label + 1)]


def relative(shard: str, root: str) -> str:
    """The shard's path from `root` on; a folder still ends in `/`. A URL stays as it is."""
    if is_remote(shard):
        return shard
    return os.path.join(os.path.relpath(shard, root), "") if shard.endswith("/") else os.path.relpath(shard, root)


def write_index(
    output: str,
    batches: Batches,
    found: Survey,
    root: str,
    classes: list[str] | None,
    tokens: TokenFacts,
    columns: str = "",
    *,
    targets: bool = False,
    annotated: str = "",
) -> None:
    """The second pass: writes the index, then the quarantine, then puts both in place.

    Args:
        output: path of the index.
        batches: the same rows as `survey` saw.
        found: what it found.
        root: see `survey`.
        classes: see `survey`.
        tokens: see `survey`.
        columns: which columns of tables were asked for by name, so that a refresh knows whether they are the same.
        targets: the classes are numbers to be predicted.
        annotated: what is to be known of boxes and masks beside their columns, as JSON; see `Index.annotated`.
    """
    folder = os.path.dirname(os.path.abspath(output))
    beneath = os.path.commonpath([folder, root]) == folder
    metadata = {
        "navit.version": str(VERSION),
        "navit.rows": str(found.rows),
        "navit.batch_rows": str(BATCH_ROWS),
        "navit.classes": json.dumps(class_names(classes, found.max_label), ensure_ascii=False),
        "navit.numbered": "1" if classes is None else "0",
        "navit.tokenizer": tokens.hash if found.captions else "",
        "navit.text_end": str(tokens.end if found.captions else -1),
        "navit.vocabulary": str(tokens.vocabulary if found.captions else 0),
        "navit.root": root,
        "navit.root_from_index": os.path.relpath(root, folder) if beneath else "",
        "navit.plan_fingerprint": found.plan_fingerprint,
        "navit.render_fingerprint": found.render_fingerprint,
        "navit.broken": str(found.broken),
        "navit.formats": ",".join(_packer.FORMAT_NAMES[code] for code in sorted(found.formats)),
    }
    if columns:
        metadata["navit.columns"] = columns
    if targets:
        metadata["navit.targets"] = "1"
    if annotated:
        metadata["navit.annotated"] = annotated
    names = [relative(shard, root) for shard in found.shards]
    masks = [relative(shard, root) for shard in found.mask_shards]
    metadata[CHECK] = metadata_checksum(metadata, names + masks)
    schema = _schema(found, ids=tokens.hash != BYTES).with_metadata(metadata)
    shards = pa.array(names, pa.utf8())
    formats = pa.array(_packer.FORMAT_NAMES, pa.utf8())
    numbers = {shard: i for i, shard in enumerate(found.shards)}
    mask_shards = pa.array(masks, pa.utf8())
    beside = quarantine_path(output)
    with (
        replacing(beside) if found.broken else nullcontext() as quarantine,
        replacing(output) as file,
        pa.ipc.new_file(file, schema, options=pa.ipc.IpcWriteOptions(compression=None)) as writer,
    ):
        pending: list[pa.RecordBatch] = []
        waiting = 0
        for batch in batches():
            if quarantine is not None:
                _write_quarantine(quarantine, batch)
            good = batch.filter(pc.is_null(batch["reason"]))
            if len(good):
                number = numbers[batch["shard"].dictionary[0].as_py()]
                if "mask_shard" in schema.names:
                    good = _with_mask_shards(good, found.mask_shards, mask_shards)
                pending.append(_index_rows(good, schema, number, shards, formats, found.label_width))
                waiting += len(good)
            while waiting >= BATCH_ROWS:
                table = pa.Table.from_batches(pending)
                _write(writer, table.slice(0, BATCH_ROWS))
                pending = table.slice(BATCH_ROWS).to_batches()
                waiting -= BATCH_ROWS
        if waiting:
            _write(writer, pa.Table.from_batches(pending))
    if not found.broken:
        # That of an index that stood here before.
        with suppress(FileNotFoundError):
            os.unlink(beside)


def _write(writer: pa.ipc.RecordBatchFileWriter, table: pa.Table) -> None:
    batch = table.combine_chunks().to_batches()[0]
    writer.write_batch(batch, custom_metadata={CHECK: checksum(batch)})


def quarantine_path(output: str) -> str:
    """Where the broken images of an index are listed, one JSON object a line: shard, name, uri, reason. No file without any."""
    return f"{output}.quarantine.jsonl"


def uri(shard: str, name: str) -> str:
    """One text that names an image: a path, or a container and its member; without secrets."""
    shard = _packer.without_secrets(shard)
    return shard + name if shard.endswith("/") else f"{shard}#{name}" if name else shard


def _schema(found: Survey, ids: bool) -> pa.Schema:
    k = found.label_width
    containers = ("container_length", "check") if found.containers else ()
    header = ("width", "height", "orientation")
    captions = [("caption", pa.large_utf8()), ("caption_tokens", pa.int32())]
    if ids:
        captions.append(("caption_ids", pa.large_list(pa.int32())))
    fields = [
        ("shard", ROWS.field("shard").type),
        ("name", pa.large_utf8()),
        *((name, ROWS.field(name).type) for name in ("offset", "length", *containers, *header)),
        ("format", pa.dictionary(pa.int8(), pa.utf8())),
        ("label", pa.int64() if k == 1 else pa.list_(pa.int64(), k)),
        *(captions if found.captions else []),
        *([("weight", pa.float32())] if found.weighted else []),
        ("mtime_ns", pa.int64()),
        *((name, TARGETS[name]) for name in found.targets),
    ]
    return pa.schema([pa.field(name, kind, nullable=name == "caption") for name, kind in fields])


def _with_mask_shards(good: pa.RecordBatch, shards: list[str], names: pa.Array) -> pa.RecordBatch:
    """The rows with the shards of their masks numbered as in the index."""
    own = good["mask_shard"]
    numbers = np.array([shards.index(shard) for shard in own.dictionary.to_pylist()], np.int32)
    at = good.schema.get_field_index("mask_shard")
    return good.set_column(at, "mask_shard", pa.DictionaryArray.from_arrays(numbers[own.indices.to_numpy()], names))


def _index_rows(
    good: pa.RecordBatch, schema: pa.Schema, number: int, shards: pa.Array, formats: pa.Array, k: int
) -> pa.RecordBatch:
    n = len(good)
    counts = pc.list_value_length(good["labels"]).to_numpy()
    labels = np.full((n, k), -1, np.int64)
    labels[np.arange(k) < counts[:, None]] = good["labels"].flatten().to_numpy()
    flat = pa.array(labels.reshape(-1))
    columns = {
        "shard": pa.DictionaryArray.from_arrays(np.full(n, number, np.int32), shards),
        "format": pa.DictionaryArray.from_arrays(good["format"].to_numpy().astype(np.int8), formats),
        "label": flat if k == 1 else pa.FixedSizeListArray.from_arrays(flat, k),
    }
    if "caption_ids" in schema.names:
        columns["caption_ids"] = good["caption_ids"].cast(pa.large_list(pa.int32()))
    arrays = [columns[name] if name in columns else good[name] for name in schema.names]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _write_quarantine(file: IO[bytes], batch: pa.RecordBatch) -> None:
    if batch["reason"].null_count == len(batch):
        return
    for row in batch.filter(pc.is_valid(batch["reason"])).select(["shard", "name", "reason"]).to_pylist():
        line = {"uri": uri(row["shard"], row["name"]), **row}
        file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")


@contextmanager
def replacing(path: str) -> Iterator[IO[bytes]]:
    """A file that takes the place of `path` when it is whole and on disk, and leaves nothing behind otherwise.

    Raises:
        IndexFileError: the place cannot be written.
    """
    temporary = f"{path}.new-{os.getpid()}"
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as e:
        with suppress(OSError):
            os.unlink(temporary)
        if isinstance(e, OSError):
            raise IndexFileError(f"'{path}' cannot be written: {reason(e)}; is there space and permission?") from None
        raise
