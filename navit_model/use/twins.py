"""Which images of an index are the same picture: equal files, and files that differ in size, format or compression.

In: an index, or several. Out: for each row the group it is in, and whether it can be decoded. Apart from the
index, which looks at no pixel; here each image is decoded once, by the engine, at some 256 of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from navit_loader import PackedLoader
from navit_loader.batch import OK, PackedBatch
from navit_loader.config import DataConfig, LoaderConfig, PlanConfig, RenderConfig
from navit_loader.index import Index
from navit_loader.progress import watched

HEIGHT, WIDTH = 8, 9
"""Of the thumbnail whose neighbours are compared: 64 bits."""

BITS = 5
"""Bits in which two pictures of a group may differ."""

LEVELS = 4.0
"""Mean difference of their thumbnails, of 255 levels: flat pictures share bits by chance."""

PART = 1024


@dataclass(frozen=True, slots=True)
class Twins:
    """What was seen.

    Attributes:
        groups: i64 `[N]`, the first row of each row's group: itself where a picture is alone.
        decoded: bool `[N]`, whether there are pixels.
    """

    groups: npt.NDArray[np.int64]
    decoded: npt.NDArray[np.bool_]


def find_twins(*indexes: Index, threads: int = 0) -> Twins:
    """Groups of the same picture, joined pair by pair; a mirrored or cropped one is another picture.

    Args:
        indexes: of the images; of several, the rows of each follow those of the one before.
        threads: decoding threads; 0 means one per core.

    Raises:
        NavitError: storage stays away.
    """
    plan = PlanConfig(sequence_length=4096, max_tokens=256, max_images=256, patch_sizes=(1,))
    config = LoaderConfig(
        data=DataConfig(batch_size=1), plan=plan, render=RenderConfig(threads=threads, failure_limit=1.0)
    ).for_evaluation(256)
    total = sum(index.num_rows for index in indexes)
    small = np.zeros((total, HEIGHT, WIDTH), np.float32)
    decoded = np.zeros(total, bool)
    start = 0
    for index in indexes:
        with PackedLoader(index, config) as loader:
            for batch in watched(loader, index.num_rows):
                for row, picture in _pictures(batch):
                    small[start + row], decoded[start + row] = _shrunk(picture), True
        start += index.num_rows
    return Twins(_joined(small, decoded), decoded)


def _pictures(batch: PackedBatch) -> Any:
    """Row and grey pixels `[h, w]` of each image that was decoded."""
    for b, e in np.argwhere(batch.status == OK):
        mine = batch.segment_ids[b] == e
        height, width = batch.grids[b, e]
        grey = np.zeros((height, width), np.float32)
        y, x = batch.positions[b][mine].T
        grey[y, x] = batch.patches[b][mine].reshape(-1, 3).mean(1)
        yield int(batch.image_ids[b, e]), grey


def _shrunk(picture: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """To `HEIGHT` × `WIDTH`, each cell the mean of the area that it covers."""
    for axis, size in ((0, HEIGHT), (1, WIDTH)):
        length = picture.shape[axis]
        total = np.concatenate([np.zeros_like(picture.take([0], axis)), np.cumsum(picture, axis)], axis)
        edges = np.linspace(0, length, size + 1)
        low = np.minimum(edges.astype(int), length - 1)
        weight = (edges - low).reshape(-1, *[1] * (1 - axis)).astype(np.float32)
        at = total.take(low, axis) * (1 - weight) + total.take(low + 1, axis) * weight
        picture = np.diff(at, axis=axis) * (size / length)
    return picture


def _joined(small: npt.NDArray[np.float32], decoded: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    rows = np.flatnonzero(decoded)
    signs = np.where(np.diff(small[rows], axis=2) > 0, 1, -1).reshape(len(rows), -1).astype(np.float32)
    first = np.arange(len(small))

    def root(row: int) -> int:
        while first[row] != row:
            first[row] = first[first[row]]
            row = int(first[row])
        return row

    for start in range(0, len(rows), PART):
        mine = signs[start : start + PART]
        for other in range(start, len(rows), PART):
            # Of ±1, 64 bits that differ in d have the product 64 − 2d.
            near = np.argwhere(mine @ signs[other : other + PART].T >= signs.shape[1] - 2 * BITS)
            near = near[near[:, 0] + start < near[:, 1] + other]
            one, two = rows[near[:, 0] + start], rows[near[:, 1] + other]
            same = np.array([np.abs(small[i] - small[j]).mean() <= LEVELS for i, j in zip(one, two, strict=True)], bool)
            for i, j in zip(one[same], two[same], strict=True) if len(same) else ():
                low, high = sorted((root(int(i)), root(int(j))))
                first[high] = low
    return np.array([root(row) for row in range(len(small))], np.int64)
