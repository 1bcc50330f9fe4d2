"""Rows and annotations brought together: each image with what is said of it.

In: the rows of any source in their order, and annotations by names of files. Out: the same rows with the columns of
`TARGETS` behind them, boxes and regions in the oriented image. What cannot be is said: an annotation that is none is left out
and counted, an image that contradicts its annotation is broken and goes to quarantine with the others.

Names go together by their ends, whole names at a time and the longest first: `train/7.jpg` is the image `…/images/train/7.jpg`.
An image that was annotated as it is stored, and not as its EXIF orientation shows it, is told by its width and height.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from .... import _packer
from ....errors import IndexFileError
from ..rows import need_utf8
from .found import TARGETS, Annotations, Box, Found
from .names import suffixes

_MOST = 32767
"""Boxes of an image at most: their places are counted in 16 bits."""

_SINGLE = struct.Struct("5f")
"""Corners and area of a box as an index holds them."""

_Corners = tuple[float, float, float, float]


class Joined:
    """What is said of the images of an index, to be joined with its rows.

    Args:
        given: annotations; of boxes and of masks at most one each.
        classes: the class table, where one is given.

    Attributes:
        classes: the class names of the boxes; None where they name none.
        notes: what may surprise, once all rows were seen.
        problems: what was left out, in words, likewise.

    Raises:
        IndexFileError: a class of the annotations is not in the table.
    """

    def __init__(self, given: Sequence[Annotations], classes: Sequence[str] | None) -> None:
        self._given = given
        self._boxes = next((each for each in given if each.boxed), None)
        self._masks = next((each for each in given if each.masks), None)
        named = self._boxes.classes if self._boxes else None
        self.classes: list[str] | None = list(classes) if classes is not None else named
        number_by_name = {name: n for n, name in enumerate(self.classes or ())}
        missing = next((name for name in named or () if name not in number_by_name), None)
        if missing is not None:
            raise IndexFileError(f"class '{missing}' of the boxes is not in the class table given; add it to --classes")
        self._label = {n: number_by_name[name] for n, name in enumerate(named or ())}
        self._names = {id(each): _by_name(each) for each in given}
        self._taken: dict[tuple[int, str], str] = {}
        self._unsaid: dict[int, tuple[int, str]] = {}
        self._next_id = 1
        images = self._boxes.images.values() if self._boxes else ()
        self._numbered = any(images) and all(each.number is not None for each in images)
        self.notes: list[str] = []
        self.problems: list[str] = []

    @property
    def about(self) -> dict[str, Any]:
        """What an index says of them beside their columns; see `Index.annotated`."""
        about: dict[str, Any] = {"masks": self._masks.masks if self._masks else ""}
        if self._boxes and self._boxes.category_ids is not None and self.classes is not None:
            ids = dict(zip(self._boxes.classes or (), self._boxes.category_ids, strict=True))
            about["category_ids"] = [ids.get(name, -1) for name in self.classes]
        return about

    def rows(self, batches: Iterable[pa.RecordBatch], threads: int) -> Iterator[pa.RecordBatch]:
        """The rows with their columns; notes are there when all were taken.

        Raises:
            IndexFileError: two images go by the name of one annotation, or no image has any.
        """
        for batch in batches:
            yield self._joined(batch, threads)
        for each in self._given:
            self._tell(each)

    def _tell(self, each: Annotations) -> None:
        names = {name for at, name in self._taken if at == id(each)}
        if not names:
            example = next(iter(each.images), "nothing")
            raise IndexFileError(f"'{each.path}' says nothing of the images that are indexed; it speaks of '{example}'")
        if gone := [name for name in self._names[id(each)] if name not in names]:
            self.notes.append(f"'{each.path}': {len(gone):,} of its images are not indexed, such as '{gone[0]}'")
        count, example = self._unsaid.get(id(each), (0, ""))
        if count:
            what = "boxes" if each.boxed else "mask"
            self.notes.append(
                f"'{each.path}' says nothing of {count:,} images, which have no {what}, such as '{example}'"
            )
        for reason, (count, example) in each.left_out.items():
            self.problems.append(f"{count:,} {reason} are left out, such as {example}")
        self.notes += each.notes
        self.notes += self.problems

    def _joined(self, batch: pa.RecordBatch, threads: int) -> pa.RecordBatch:
        shard = batch["shard"].dictionary[0].as_py() if len(batch) else ""
        columns = {name: batch[name].to_pylist() for name in ("name", "width", "height", "orientation", "reason")}
        reasons: list[str | None] = columns["reason"]
        paths = [f"{os.path.join(shard, '')}{name}" for name in columns["name"]]
        # What is broken anyway is looked for too, so that it does not count as missing.
        said = {id(each): [self._look_up(each, path) for path in paths] for each in self._given}
        found: dict[str, Any] = {}
        if self._boxes is not None:
            all_boxes: list[list[Box]] = []
            for i, each in enumerate(said[id(self._boxes)]):
                if reasons[i] is not None or each is None:
                    all_boxes.append([])
                    continue
                size = (columns["width"][i], columns["height"][i])
                boxes, reason = self._upright(self._boxes, each, size, columns["orientation"][i])
                reasons[i] = reason
                all_boxes.append(boxes)
            found |= self._box_columns(all_boxes)
            if self._numbered:
                listed = [-1 if each is None else each.number for each in said[id(self._boxes)]]
                found["image_number"] = pa.array(listed, pa.int64())
        if self._masks is not None and self._masks.masks != "regions":
            found |= self._mask_columns(said[id(self._masks)], columns, threads)
        arrays = [pa.array(reasons, pa.utf8()) if name == "reason" else batch[name] for name in batch.schema.names]
        names = [*batch.schema.names, *(name for name in TARGETS if name in found)]
        arrays += [found[name] for name in TARGETS if name in found]
        return pa.RecordBatch.from_arrays(arrays, names=names)

    def _look_up(self, each: Annotations, path: str) -> Found | None:
        known = self._names[id(each)]
        whole = os.path.splitext(path)[0] if each.stems else path
        name = next((name for name in suffixes(whole) if name in known), None)
        if name is None:
            count, first = self._unsaid.get(id(each), (0, path))
            self._unsaid[id(each)] = (count + 1, first)
            return None
        if (other := self._taken.setdefault((id(each), name), path)) != path:
            raise IndexFileError(
                f"'{other}' and '{path}' both go by the name '{name}' of '{each.path}'; index the folder of its images alone"
            )
        return known[name]

    def _upright(
        self, source: Annotations, said: Found, size: tuple[int, int], orientation: int
    ) -> tuple[list[Box], str | None]:
        """The boxes of an image in pixels of the oriented image, regions as texts; and why the image is broken, if it is."""
        stored = size[::-1] if orientation >= 5 else size
        turned = said.size == stored != size
        if said.size is not None and said.size != size and not turned:
            (w, h), (width, height) = said.size, size
            return [], f"it is annotated as {w} × {h} pixels, but has {width} × {height} ({said.place})"
        frame = orientation if turned else 1
        boxes = []
        for n, box in enumerate(said.boxes):
            called = f"{said.place} box {n if box.id is None else box.id}"
            corners = box.corners
            if said.shares:
                corners = (corners[0] * size[0], corners[1] * size[1], corners[2] * size[0], corners[3] * size[1])
            if frame != 1:
                corners = _turned(corners, frame, stored)
            if not _has_area(corners, box.area):
                source.leave_out("boxes without an area", called)
                continue
            if corners[0] >= size[0] or corners[1] >= size[1] or corners[2] <= 0 or corners[3] <= 0:
                source.leave_out("boxes outside of their images", called)
                continue
            region = b""
            if source.masks == "regions" and box.region:
                try:
                    region = _region(box.region, frame, stored, size)
                except ValueError as e:
                    source.leave_out("regions that cannot be read", f"{called}: {e}")
                except (KeyError, TypeError, AttributeError, OverflowError) as e:
                    source.leave_out("regions that cannot be read", f"{called}: it is no polygons or runs ({e!r})")
            boxes.append(Box(corners, box.label, box.flags, box.id, box.area, region))
        if len(boxes) > _MOST:
            return [], f"it has {len(boxes):,} boxes, more than {_MOST:,} ({said.place})"
        return boxes, None

    def _box_columns(self, images: list[list[Box]]) -> dict[str, Any]:
        counts = np.array([len(boxes) for boxes in images], np.int32)
        offsets = pa.array(np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]), pa.int64())
        boxes = [box for each in images for box in each]
        corners = np.array([box.corners for box in boxes], np.float32).reshape(-1, 4)
        areas = [_area(box.corners) if box.area is None else box.area for box in boxes]
        ids = []
        for box in boxes:
            ids.append(self._next_id if box.id is None else box.id)
            self._next_id += box.id is None
        values = {
            "boxes": pa.FixedSizeListArray.from_arrays(pa.array(corners.reshape(-1)), 4),
            "box_labels": pa.array([self._label.get(box.label, box.label) for box in boxes], pa.int32()),
            "box_flags": pa.array([box.flags for box in boxes], pa.uint8()),
            "box_ids": pa.array(ids, pa.int64()),
            "box_areas": pa.array(areas, pa.float32()),
        }
        if self._boxes is not None and self._boxes.masks == "regions":
            values["regions"] = pa.array([box.region for box in boxes], pa.large_binary())
        lists = {
            name: pa.LargeListArray.from_arrays(offsets, each).cast(TARGETS[name]) for name, each in values.items()
        }
        return {"box_count": pa.array(counts), **lists}

    def _mask_columns(self, said: list[Found | None], columns: dict[str, list[Any]], threads: int) -> dict[str, Any]:
        """Where the masks of images are; a mask that cannot be, or is of another size, breaks its image."""
        assert self._masks is not None
        n, reasons = len(said), columns["reason"]
        rows = [i for i, each in enumerate(said) if each is not None and each.mask and reasons[i] is None]
        files = [said[i].mask for i in rows]  # type: ignore[union-attr]
        for path in files:
            need_utf8(path, "the path")
        folder = os.path.join(os.path.commonpath([os.path.dirname(path) for path in files]), "") if files else "/"
        header = _packer.probe_files(b"", b"\0".join(map(os.fsencode, files)), threads)
        errors = dict(header["errors"])
        length = np.zeros(n, np.int64)
        names = [""] * n
        for at, (i, path) in enumerate(zip(rows, files, strict=True)):
            if at in errors:
                reasons[i] = f"its mask '{path}': {errors[at]}"
                continue
            found = (int(header["width"][at]), int(header["height"][at]))
            if header["orientation"][at] >= 5:
                found = found[::-1]  # a mask is read as it is stored
            size = (columns["width"][i], columns["height"][i])
            if found not in (size, size[::-1] if columns["orientation"][i] >= 5 else size):
                reasons[i] = (
                    f"its mask '{path}' has {found[0]} × {found[1]} pixels, but the image has {size[0]} × {size[1]}"
                )
                continue
            names[i], length[i] = path[len(folder) :], int(header["length"][at])
        return {
            "mask_shard": pa.DictionaryArray.from_arrays(np.zeros(n, np.int32), [folder]),
            "mask_name": pa.array(names, pa.large_utf8()),
            "mask_offset": pa.array(np.zeros(n, np.int64)),
            "mask_length": pa.array(length),
        }


def _by_name(each: Annotations) -> dict[str, Found]:
    """What is said by the names of files, as rows are looked up."""
    return {os.path.normpath(name.replace("\\", "/")).lstrip("/"): found for name, found in each.images.items()}


def _area(corners: _Corners) -> float:
    return (corners[2] - corners[0]) * (corners[3] - corners[1])


def _has_area(corners: _Corners, area: float | None) -> bool:
    """Whether a box is one still in the float32 of an index, which ends far below float64 and is coarser."""
    try:
        numbers = _SINGLE.unpack(_SINGLE.pack(*corners, _area(corners) if area is None else area))
    except OverflowError:
        return False
    return all(map(math.isfinite, numbers)) and numbers[0] < numbers[2] and numbers[1] < numbers[3]


def _frame(orientation: int) -> tuple[bool, bool, bool]:
    """Whether oriented rows are stored columns, and whether stored columns and rows run backwards (EXIF)."""
    return orientation >= 5, orientation in (2, 3, 7, 8), orientation in (3, 4, 6, 7)


def _turned(corners: _Corners, orientation: int, stored: tuple[int, int]) -> _Corners:
    """Corners of the stored image in the oriented one."""
    (xs, ys), (swap, mirror_x, mirror_y) = (corners[::2], corners[1::2]), _frame(orientation)
    xs = tuple(stored[0] - x for x in reversed(xs)) if mirror_x else xs
    ys = tuple(stored[1] - y for y in reversed(ys)) if mirror_y else ys
    (x0, x1), (y0, y1) = (ys, xs) if swap else (xs, ys)
    return x0, y0, x1, y1


def _region(said: Any, orientation: int, stored: tuple[int, int], size: tuple[int, int]) -> bytes:
    """A region as a text of runs in the oriented image.

    Raises:
        ValueError: it is none, or of another size than the image.
    """
    if isinstance(said, dict):
        height, width = said["size"]
        if (width, height) != (stored if orientation != 1 else size):
            raise ValueError(f"its runs are of {width} × {height} pixels")
        if orientation != 1:
            raise ValueError("its runs are of the image as it is stored, which EXIF turns; write it as polygons")
        counts = said["counts"]
        if isinstance(counts, str | bytes):
            return _packer.region_of_text(counts.encode() if isinstance(counts, str) else counts, *size)
        return _packer.region_of_counts([int(count) for count in counts], *size)
    polygons = [np.asarray(polygon, np.float64).reshape(-1, 2) for polygon in said]
    if orientation != 1:
        swap, mirror_x, mirror_y = _frame(orientation)
        for polygon in polygons:
            if mirror_x:
                polygon[:, 0] = stored[0] - polygon[:, 0]
            if mirror_y:
                polygon[:, 1] = stored[1] - polygon[:, 1]
            if swap:
                polygon[:] = polygon[:, ::-1].copy()
    return _packer.region_of_polygons([polygon.reshape(-1).tolist() for polygon in polygons if len(polygon) > 2], *size)
