"""Reading an index: an Arrow IPC file whose metadata is all that opening looks at.

In: the file that `write.write_index` wrote. Out: its columns as numpy arrays, without a copy, and what its metadata say.

A file of up to `SMALL` bytes is read into memory: whoever writes over it in place changes nothing, and all of its values are
checked when the first is wanted. A larger one is mapped. Then each value is checked where it is used, so that the first batch
waits for no reading of all; `Index.check` looks at everything.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterator
from functools import cached_property
from itertools import islice
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from .. import _packer
from ..errors import IndexFileError, said
from .checks import (
    CHECK,
    checksum,
    dictionary_fault,
    label_width,
    metadata_checksum,
    numbers,
    row_fault,
    schema_fault,
    shape_fault,
)
from .sources.labels import is_target
from .sources.remote import is_remote
from .sources.rows import ROWS, single_labels
from .sources.targets import BOX_LISTS, TARGETS
from .tokens import TokenFacts
from .write import VERSION, quarantine_path, uri

SMALL = 64 << 20
"""Bytes of an index file that is read into memory in place of being mapped."""

_DAMAGE = (pa.ArrowException, OSError, ValueError, LookupError, TypeError, OverflowError, RecursionError, MemoryError)
"""What pyarrow and json raise over a file with damaged bytes."""


class Index:
    """An index file, opened. Opening reads only its metadata. Use `open_index`.

    Attributes:
        path: the file.
        num_rows: images.
        classes: class names, in the order of their labels.
        label_width: K, labels per image.
        root: absolute folder that shards are relative to.
        tokens: the tokenizer of its captions.
        plan_fingerprint: hash of all that planning reads.
        render_fingerprint: hash of all else that rendering reads, places on disk aside.
        broken: rows in quarantine when it was built.
        formats: names of the formats of its images.
    """

    def __init__(self, path: str, root: str | None) -> None:
        self.path = path
        self._root_given = root
        # Before it is opened, so that a replacement meanwhile is seen later rather than never.
        self._stamp = _stamp(path)
        self._mapped, content = _content(path)
        self._written = self._when_written()
        try:
            self._reader = pa.ipc.open_file(content)
            self._schema = self._reader.schema
            meta = {k.decode(): v.decode() for k, v in (self._schema.metadata or {}).items() if k.startswith(b"navit.")}
        except _DAMAGE as e:
            raise IndexFileError(f"'{path}' is no index, or a damaged one ({_words(e)}); build it again") from None
        if meta.get("navit.version") != str(VERSION):
            stated = meta.get("navit.version", "none")
            raise IndexFileError(f"'{path}' is an index of version {stated}, this is version {VERSION}; build it again")
        try:
            self.num_rows = int(meta["navit.rows"])
            self._batch_rows = int(meta["navit.batch_rows"])
            self.broken = int(meta["navit.broken"])
            self.formats = [name for name in meta["navit.formats"].split(",") if name]
            self.classes: list[str] = json.loads(meta["navit.classes"])
            if not isinstance(self.classes, list) or not all(isinstance(name, str) for name in self.classes):
                raise ValueError("navit.classes")
            self.tokens = TokenFacts(
                meta["navit.tokenizer"], int(meta["navit.vocabulary"]), int(meta["navit.text_end"])
            )
            self.plan_fingerprint = meta["navit.plan_fingerprint"]
            self.render_fingerprint = meta["navit.render_fingerprint"]
            self._numbered = meta["navit.numbered"] == "1"
            self.root = os.path.abspath(root) if root is not None else _find_root(path, meta)
            batches = self._reader.num_record_batches
            fault = schema_fault(self._schema)
        except _DAMAGE as e:
            raise IndexFileError(
                f"'{path}' is damaged: its metadata lacks or garbles {_words(e)}; build it again"
            ) from None
        self._meta = meta
        if self.num_rows < 1 or self._batch_rows < 1 or batches != -(-self.num_rows // self._batch_rows):
            self._damaged(f"{self.num_rows} rows in {batches} record batches of {self._batch_rows}")
        if fault:
            self._damaged(fault)
        self.label_width = label_width(self._schema)

    @property
    def table_given(self) -> list[str] | None:
        """The class table it was built with; None where labels were bare numbers."""
        return None if self._numbered else self.classes

    @property
    def columns_given(self) -> str:
        """Which columns of tables its build was given by name, as JSON; empty for the usual ones."""
        return str(self._meta.get("navit.columns", ""))

    @cached_property
    def targets(self) -> npt.NDArray[np.float64] | None:
        """f64, the number that each label stands for; None where labels are classes."""
        if "navit.targets" not in self._meta:
            return None
        if not all(map(is_target, self.classes)):
            self._damaged("a class is no number")
        return np.array([float(name) for name in self.classes])

    @property
    def _files(self) -> bool:
        """Whether masks are files of their own."""
        return "mask_shard" in self._schema.names

    @cached_property
    def annotated(self) -> dict[str, Any]:
        """What is to be known of boxes and masks beside their columns: `category_ids`, the number of each class in COCO's
        JSON; `masks`, what they are: `classes`, `regions` or `panoptic`. Empty without any."""
        try:
            found = json.loads(self._meta.get("navit.annotated", "{}"))
            ids, masks = found.get("category_ids", []), found.get("masks", "")
            if not all(isinstance(one, int) for one in ids) or masks not in ("", "classes", "regions", "panoptic"):
                raise ValueError("navit.annotated")
        except (*_DAMAGE, AttributeError) as e:
            self._damaged(f"its metadata garble {_words(e)}")
        return dict(found)

    @property
    def boxed(self) -> bool:
        """Whether it has boxes of objects."""
        return "box_count" in self._schema.names

    @property
    def masks(self) -> str:
        """What its masks are: files of `classes`, `regions` of its boxes, or `panoptic` files; empty without any."""
        return str(self.annotated.get("masks", ""))

    @property
    def category_ids(self) -> list[int]:
        """The number of each class where it was annotated, such as COCO's 1 to 90; in the order of `classes`."""
        return list(self.annotated.get("category_ids", range(len(self.classes))))

    @property
    def image_numbers(self) -> npt.NDArray[np.int64] | None:
        """i64 `[num_rows]`, the id of each image in the COCO JSON that its boxes are of, −1 where that does not list it; None
        where they are of none, and in older indexes."""
        if "image_number" not in self._schema.names:
            return None
        return np.concatenate([numbers(batch["image_number"]) for batch in self._batches])

    def box_counts(self) -> npt.NDArray[np.int32]:
        """i32 `[num_rows]`, boxes of each image.

        Raises:
            IndexFileError: it has none at all.
        """
        self._need_boxes()
        return np.concatenate([numbers(batch["box_count"]) for batch in self._batches])

    def boxes(self, row: int) -> dict[str, npt.NDArray[Any]]:
        """The boxes of an image as they were annotated, in the order that `PackedBatch.box_places` counts.

        Returns:
            `boxes` f32 `[n, 4]` (x0, y0, x1, y1 in pixels of the oriented image, unclipped), `labels` i32, `flags` u8,
            `ids` i64, `areas` f32, `[n]` each.

        Raises:
            IndexFileError: it has none at all, or no such row.
        """
        self._need_boxes()
        if not 0 <= row < self.num_rows:
            raise IndexFileError(f"'{self.path}' has no row {row}; its rows are 0 to {self.num_rows - 1}")
        batch = self._batches[row // self._batch_rows].slice(row % self._batch_rows, 1)
        found = {name.removeprefix("box_"): numbers(batch[name].flatten()) for name in BOX_LISTS[1:5]}
        return {"boxes": numbers(batch["boxes"].flatten().flatten()).reshape(-1, 4), **found}

    def regions(self, row: int) -> list[bytes]:
        """The region of each box of an image as COCO's compressed runs, in the oriented image; empty where it has none.

        Raises:
            IndexFileError: the index has no regions.
        """
        if "regions" not in self._schema.names:
            raise IndexFileError(f"'{self.path}' has no regions; index with --masks coco:ANNOTATIONS.json")
        found: list[bytes] = self._batches[row // self._batch_rows]["regions"][row % self._batch_rows].as_py()
        return found

    def _need_boxes(self) -> None:
        if not self.boxed:
            raise IndexFileError(f"'{self.path}' has no boxes; index with --boxes")

    def _target_columns(self) -> dict[str, Any]:
        """Boxes and masks as the engine takes them; nothing where there are none."""
        batches, found = self._batches, dict[str, Any]()
        if self.boxed:
            found["box_count"] = [numbers(batch["box_count"]) for batch in batches]
            found |= {name: [_list_chunk(batch[name]) for batch in batches] for name in BOX_LISTS[:5]}
        if self.masks:
            found["masks"] = self.masks
        if self.masks == "regions":
            found["regions"] = [_bytes_chunk(batch["regions"]) for batch in batches]
        elif self.masks:
            found["mask_shard"] = [numbers(batch["mask_shard"].indices) for batch in batches]
            found["mask_shards"] = [_absolute(self.root, shard) for shard in self._mask_shards]
            found["mask_name"] = [_text_chunk(batch["mask_name"]) for batch in batches]
            found |= {name: [numbers(batch[name]) for batch in batches] for name in ("mask_offset", "mask_length")}
            found["mask_classes"] = 0 if self._numbered else len(self.classes)
        return found

    def reopened(self) -> Index:
        """The index that stands at this path now: itself, unless the file was replaced since it was opened.

        Raises:
            IndexFileError: there is none, or a damaged one.
        """
        return self if _stamp(self.path) == self._stamp else Index(self.path, self._root_given)

    @cached_property
    def _batches(self) -> list[pa.RecordBatch]:
        batches, checks = [], []
        try:
            for i in range(self._reader.num_record_batches):
                batch, own = self._reader.get_batch_with_custom_metadata(i)
                rows = min(self._batch_rows, self.num_rows - i * self._batch_rows)
                if fault := shape_fault(batch, rows):
                    self._damaged(f"record batch {i}: {fault}")
                batches.append(batch)
                checks.append(own[CHECK].decode() if own is not None and CHECK in own else None)
            if fault := dictionary_fault(batches[0]):
                self._damaged(fault)
            shards = batches[0]["shard"].dictionary.to_pylist()
            masks = batches[0]["mask_shard"].dictionary.to_pylist() if self._files else []
        except _DAMAGE as e:
            self._damaged(_words(e))
        if CHECK in self._meta and self._meta[CHECK] != metadata_checksum(self._meta, shards + masks):
            self._damaged("its metadata are not those that were written")
        self._shards, self._mask_shards = shards, masks
        self._unchecked = dict(enumerate(checks))
        sums = "\0".join([self.render_fingerprint, *(check or "" for check in checks)])
        self._contents = hashlib.blake2b(sums.encode(), digest_size=16).hexdigest()
        if self._mapped is None:
            self._check(batches)
        return batches

    def _check(self, batches: list[pa.RecordBatch]) -> None:
        for i, check in list(self._unchecked.items()):
            first, batch = i * self._batch_rows, batches[i]
            try:
                fault = row_fault(batch, first, len(self.classes))
                if not fault and check is not None and check != checksum(batch):
                    fault = f"of rows {first} to {first + len(batch) - 1} some are not as they were written"
            except _DAMAGE as e:
                fault = f"rows {first} to {first + len(batch) - 1}: {_words(e)}"
            if fault:
                self._damaged(fault)
            self._unchecked.pop(i, None)  # another thread may have looked too

    def check(self) -> None:
        """Looks at every value, against its checksum too. A small index was looked at when it was first read.

        Raises:
            IndexFileError: it is damaged; the row is named.
        """
        self._check(self._batches)

    @property
    def contents(self) -> str:
        """Hash of all rows with the times of their files: another one where the same places hold other bytes, which
        `render_fingerprint` need not be.
        """
        self._batches  # noqa: B018
        return self._contents

    def check_unchanged(self) -> None:
        """Refuses a mapped file that was written over or cut since it was opened, of which reading further could end the
        process (SIGBUS). A file that took its place by rename does not matter. Quick.

        Raises:
            IndexFileError: it was written over.
        """
        if self._when_written() != self._written:
            raise IndexFileError(
                f"'{self.path}' was written over while it was in use; write a new index under another name and rename it, as "
                "'navit-loader index' does, and start again"
            )

    def _when_written(self) -> tuple[int, int] | None:
        if self._mapped is None:
            return None
        found = os.fstat(self._mapped.fileno())
        return found.st_size, found.st_mtime_ns

    def _damaged(self, what: str) -> NoReturn:
        raise IndexFileError(f"'{self.path}' is damaged: {what}; build it again") from None

    @cached_property
    def shards(self) -> list[str]:
        """Absolute paths or URLs of the shards: folders, ending in `/`, and container files.

        Raises:
            IndexFileError: the file is damaged.
        """
        self._batches  # noqa: B018 (reads them)
        return [_absolute(self.root, shard) for shard in self._shards]

    def columns(self) -> dict[str, Any]:
        """The columns as the engine takes them: for each a list of numpy arrays over the mapped file, without a copy.

        Returns:
            `path`; `width`, `height`, `caption_tokens`, `shard` (i32), `offset`, `length` (i64), `orientation` (u8),
            `container_length` (i64) and `check` (u32) where the index has them, `labels`
            (i64, `label_width` a row); `name` and `caption` as (i64 offsets, u8 bytes); `shards`, the absolute paths
            that `shard` counts; `label_width`. `caption` and `caption_tokens` are empty lists without captions;
            `caption_ids`, (i64 offsets, i32 ids), is one too where tokens are bytes. `text_end`, the end mark or −1. Boxes
            and masks (`sources.targets.TARGETS`) where there are any.

        Raises:
            IndexFileError: the file is damaged.
        """
        batches = self._batches
        numeric = ("width", "height", "offset", "length", "orientation")
        again = [name for name in ("container_length", "check") if name in self._schema.names]
        captions, ids = "caption" in self._schema.names, "caption_ids" in self._schema.names
        return {
            "path": self.path,
            **{name: [numbers(batch[name]) for batch in batches] for name in (*numeric, *again)},
            "caption_tokens": [numbers(batch["caption_tokens"]) for batch in batches] if captions else [],
            "caption": [_text_chunk(batch["caption"]) for batch in batches] if captions else [],
            "caption_ids": [_list_chunk(batch["caption_ids"]) for batch in batches] if ids else [],
            "text_end": self.tokens.end,
            "shard": [numbers(batch["shard"].indices) for batch in batches],
            "shards": self.shards,
            "name": [_text_chunk(batch["name"]) for batch in batches],
            "labels": [
                numbers(batch["label"] if self.label_width == 1 else batch["label"].flatten()) for batch in batches
            ],
            "label_width": self.label_width,
            **self._target_columns(),
        }

    def sides(self) -> Iterator[tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]]:
        """Widths and heights, oriented, a part of the index at a time."""
        return ((numbers(batch["width"]), numbers(batch["height"])) for batch in self._batches)

    def labels(self) -> npt.NDArray[np.int64]:
        """i64 `[num_rows, K]`: the classes of each image, or codes of its number; negative where there is none."""
        found: npt.NDArray[np.int64] = np.concatenate(self.columns()["labels"])
        return found.reshape(self.num_rows, self.label_width)

    @property
    def weighted(self) -> bool:
        """Whether images count differently in a loss."""
        return "weight" in self._schema.names

    @property
    def weights(self) -> npt.NDArray[np.float32] | None:
        """f32 `[num_rows]`, what each image counts in a loss (`--weight-column`); None where all count 1.

        Raises:
            IndexFileError: the file is damaged.
        """
        if not self.weighted:
            return None
        found = np.concatenate([numbers(batch["weight"]) for batch in self._batches])
        if (wrong := np.flatnonzero(~((found >= 0) & (found < np.inf)))).size:
            self._damaged(f"row {wrong[0]} has weight {found[wrong[0]]}")
        return found

    def captions_beyond(self, most: int) -> int:
        """How many captions have more than `most` tokens, and are cut where that is what one may have."""
        return sum(int((tokens > most).sum()) for tokens in self.columns()["caption_tokens"])

    def uri(self, row: int) -> str:
        """One text that names the image of a row: its path, or `CONTAINER#MEMBER`.

        Raises:
            IndexFileError: there is no such row.
        """
        if not 0 <= row < self.num_rows:
            raise IndexFileError(f"'{self.path}' has no row {row}; its rows are 0 to {self.num_rows - 1}")
        number, at = divmod(row, self._batch_rows)
        batch = self._batches[number].slice(at, 1)
        try:
            batch.validate(full=True)
            return uri(self.shards[batch["shard"].indices[0].as_py()], batch["name"][0].as_py())
        except _DAMAGE as e:
            self._damaged(f"row {row}: {_words(e)}")

    def file(self, row: int) -> str:
        """The file that holds an image, its own or a container; or its URL."""
        batch, at = self._batches[row // self._batch_rows], row % self._batch_rows
        shard = self.shards[batch["shard"].indices[at].as_py()]
        return f"{shard}{batch['name'][at].as_py()}" if shard.endswith("/") else str(shard)

    def table(self) -> pa.Table:
        """All columns as a pyarrow table over the mapped file."""
        return pa.Table.from_batches(self._batches, self._schema)

    def part(self, first: int, count: int) -> Index:
        """The rows `first` to `first + count` as an index of their own, numbered from 0; over the same memory where they
        lie in one record batch.

        Raises:
            IndexFileError: the file is damaged.
        """
        rows = min(count, self.num_rows - first)
        cut = [
            batch.slice(max(0, first - at), first + rows - max(at, first))
            for at, batch in zip(range(0, self.num_rows, self._batch_rows), self._batches, strict=True)
            if first < at + len(batch) and at < first + rows
        ]
        return self._of(cut, rows, f"{first} {count}")

    def sample(self, rows: npt.NDArray[np.int64]) -> Index:
        """These rows, rising, as an index of their own, numbered from 0; in memory.

        Raises:
            IndexFileError: the file is damaged.
        """
        cut = [
            batch.take(pa.array(rows[low:high] - at))
            for at, batch in zip(range(0, self.num_rows, self._batch_rows), self._batches, strict=True)
            if (low := int(np.searchsorted(rows, at))) < (high := int(np.searchsorted(rows, at + len(batch))))
        ]
        return self._of(cut, len(rows), hashlib.blake2b(rows.tobytes()).hexdigest())

    def _of(self, cut: list[pa.RecordBatch], rows: int, name: str) -> Index:
        found = object.__new__(Index)
        found.__dict__.update(self.__dict__)
        found.num_rows = found._batch_rows = rows
        # What is planned over it is no plan of the whole, and kept under another name.
        found.plan_fingerprint = hashlib.blake2b(f"{self.plan_fingerprint} {name}".encode()).hexdigest()[:64]
        # One batch, since the engine counts on equal ones.
        own = cut if len(cut) == 1 else pa.Table.from_batches(cut).combine_chunks().to_batches()
        found.__dict__["_batches"], found._unchecked = own, {}
        return found

    def __reduce__(self) -> tuple[Any, ...]:
        """An index goes to another process by its path."""
        return open_index, (self.path, self._root_given)

    @property
    def remote(self) -> bool:
        """Whether any image is in a bucket or on a web server."""
        return any(is_remote(shard) for shard in self.shards)

    def as_rows(self, annotated: bool = False) -> list[pa.RecordBatch]:
        """The rows as sources yield them (`sources.rows.ROWS`), in order, each batch of one shard; with the columns of boxes
        and masks behind them where they are wanted."""
        self.check()
        codes = np.array(
            [_packer.FORMAT_NAMES.index(name) for name in self._batches[0]["format"].dictionary.to_pylist()]
        )
        found = []
        for batch in self._batches:
            numbers = batch["shard"].indices.to_numpy()
            for number in np.unique(numbers):
                part = batch.filter(pa.array(numbers == number))
                n = len(part)
                values = {name: part[name] for name in ROWS.names if name in part.schema.names} | {
                    "shard": pa.DictionaryArray.from_arrays(np.zeros(n, np.int32), [self.shards[number]]),
                    "format": pa.array(codes[part["format"].indices.to_numpy()].astype(np.uint8)),
                    "labels": _lists(part["label"], self.label_width),
                    "reason": pa.nulls(n, pa.utf8()),
                }
                # An index without them has folders alone, or is older: then containers are read again.
                values.setdefault("container_length", pa.array(np.zeros(n, np.int64)))
                values.setdefault("check", pa.array(np.zeros(n, np.uint32)))
                values.setdefault("caption", pa.nulls(n, pa.large_utf8()))
                values.setdefault("caption_tokens", pa.array(np.zeros(n, np.int32)))
                values.setdefault("weight", pa.array(np.ones(n, np.float32)))
                ids = values.get("caption_ids")
                values["caption_ids"] = (
                    pa.nulls(n, pa.list_(pa.int32())) if ids is None else ids.cast(pa.list_(pa.int32()))
                )
                rows = pa.RecordBatch.from_arrays([values[name] for name in ROWS.names], schema=ROWS)
                for name in TARGETS if annotated else ():
                    if name == "mask_shard" and self._files:
                        shards = pa.array([_absolute(self.root, shard) for shard in self._mask_shards], pa.utf8())
                        rows = rows.append_column(name, pa.DictionaryArray.from_arrays(part[name].indices, shards))
                    elif name in part.schema.names:
                        rows = rows.append_column(name, part[name])
                found.append(rows)
        return found

    def quarantine(self, most: int | None = None) -> list[dict[str, str]]:
        """What was broken when the index was built: `uri`, `shard`, `name`, `reason`; the first `most`, or all.

        Raises:
            IndexFileError: the list is damaged.
        """
        path = quarantine_path(self.path)
        try:
            with open(path, encoding="utf-8") as file:
                lines = [json.loads(line) for line in islice(file, most)]
                return [{key: str(line[key]) for key in ("uri", "shard", "name", "reason")} for line in lines]
        except FileNotFoundError:
            return []
        except _DAMAGE as e:
            raise IndexFileError(f"'{path}' cannot be read ({_words(e)}); build the index again") from None

    def __repr__(self) -> str:
        return f"Index({self.path!r}, {self.num_rows} images, {len(self.classes)} classes)"


def open_index(path: str | os.PathLike[str], root: str | os.PathLike[str] | None = None) -> Index:
    """Opens an index.

    Args:
        path: the file that `build_index` wrote.
        root: where the data lie now, if they were moved: the folder that took the place of the sources' common folder.
            None takes the place they had when indexed, or the same place relative to the index.

    Raises:
        IndexFileError: the file is missing, damaged, or of another version.
    """
    if not isinstance(path, str | os.PathLike):
        raise IndexFileError(f"index = {path!r} is of type {type(path).__name__}; give the path of an index")
    return Index(os.path.abspath(os.fspath(path)), None if root is None else os.fspath(root))


def _content(path: str) -> tuple[pa.MemoryMappedFile | None, Any]:
    """The mapped file, None where it is small; and what pyarrow reads it from.

    Raises:
        IndexFileError: it cannot be opened.
    """
    try:
        if os.stat(path).st_size > SMALL:
            mapped = pa.memory_map(path)
            return mapped, mapped
        with pa.OSFile(path) as file:
            return None, file.read_buffer()
    except FileNotFoundError:
        raise IndexFileError(f"no index at '{path}'; make one with 'navit-loader index SOURCE -o {path}'") from None
    except OSError as e:
        remedy = "raise 'ulimit -n'" if e.errno in (errno.EMFILE, errno.ENFILE) else "is it a file that you may read?"
        why = os.strerror(e.errno) if e.errno else _words(e)
        raise IndexFileError(f"'{path}' cannot be opened ({why}); {remedy}") from None


def _words(error: Exception) -> str:
    """What an error over damaged bytes says, on one line."""
    return " ".join(said(error))[:300]


def _stamp(path: str) -> tuple[int, int, int] | None:
    """What another file at the same path does not share."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _absolute(root: str, shard: str) -> str:
    if is_remote(shard):
        return shard
    path = os.path.normpath(os.path.join(root, shard))
    return os.path.join(path, "") if shard.endswith("/") else path


def _find_root(path: str, meta: dict[str, str]) -> str:
    root, from_index = meta["navit.root"], meta["navit.root_from_index"]
    if from_index and not os.path.isdir(root):
        beside = os.path.normpath(os.path.join(os.path.dirname(path), from_index))
        if os.path.isdir(beside):
            return beside
    return root


def _lists(labels: pa.Array, k: int) -> pa.ListArray:
    if k == 1:
        return single_labels(labels.to_numpy())
    given = labels.flatten().to_numpy().reshape(-1, k) != -1
    offsets = np.concatenate([[0], np.cumsum(given.sum(axis=1))]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, pa.array(labels.flatten().to_numpy()[given.reshape(-1)]))


def _list_chunk(column: pa.Array) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """(i64 offsets, values) of a large_list column; of lists of boxes four values each."""
    offsets = np.frombuffer(column.buffers()[1], np.int64)[column.offset : column.offset + len(column) + 1]
    values = column.values
    return offsets, numbers(values.values if pa.types.is_fixed_size_list(values.type) else values)


def _bytes_chunk(column: pa.Array) -> tuple[np.ndarray[Any, Any], ...]:
    """(i64 offsets of lists, i64 offsets of strings, u8 bytes) of a large_list column of large_binary."""
    offsets = np.frombuffer(column.buffers()[1], np.int64)[column.offset : column.offset + len(column) + 1]
    return offsets, *_text_chunk(column.values)


def _text_chunk(column: pa.Array) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """(i64 offsets, u8 bytes) of a large_utf8 column; a null is an empty text."""
    _, offsets, data = column.buffers()
    start = column.offset
    text = np.frombuffer(data, np.uint8) if data is not None and data.size else np.zeros(0, np.uint8)
    return np.frombuffer(offsets, np.int64)[start : start + len(column) + 1], text
