"""The images of an index as they are: pixels in arrays, not in patches.

In: an index and an area. Out: each image once, decoded by the engine at its own size, a larger one scaled down to about that
area. From whatever container, and with the same rules for orientation, alpha and damage as every batch: it is a batch, whose
patches are single pixels. Apart from the passes over the index: corruptions and thumbnails need the picture itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from navit_loader import PackedLoader, open_index
from navit_loader.batch import OK, PackedBatch
from navit_loader.config import LoaderConfig, Resolution
from navit_loader.plan.selection import rows_where

from ..world import World

Pixels = npt.NDArray[np.uint8]

ROOM = 32767
"""Tokens of a sequence at most, and so pixels of an image where patches are single pixels."""


def source_batches(index: str, config: LoaderConfig, area: int, world: World, where: str = "") -> Iterator[PackedBatch]:
    """All images in batches that `pixels_of` takes apart.

    An image of up to `ROOM` pixels is given exactly. A larger one has patches of more pixels, whose whole number its sides are
    rounded to.

    Args:
        index: path of an index.
        config: the run's configuration, for `[data]` and `[render]`.
        area: pixels that no image has more of.
        world: the ranks that share the work.
        where: a filter of rows.
    """
    plan = config.for_evaluation().plan
    opened, exact = open_index(index), min(area, ROOM)
    width, height = (np.concatenate(sides).astype(np.int64) for sides in zip(*opened.sides(), strict=True))
    wanted = np.zeros(len(width), bool)
    wanted[rows_where(where, opened) if where else slice(None)] = True
    coarse = math.ceil(math.sqrt(area / ROOM))
    for patch, which, there in (
        (1, f"width * height <= {exact}", width * height <= exact),
        (coarse, f"width * height > {exact}", width * height > exact),
    ):
        if not (wanted & there).any():
            continue
        part = replace(
            plan,
            patch_sizes=(patch,),
            sequence_length=ROOM,
            max_tokens=max(1, min(ROOM, area // patch**2)),
            max_images=256,
            max_grid=ROOM,
            prefix_tokens=0,
            text_tokens=0,
            max_text_tokens=0,
            resolution=Resolution(kind="native"),
            filter=f"({which}) and ({where})" if where else which,
        )
        batches = replace(config, data=replace(config.data, batch_size=1, remainder="fill", refresh=False), plan=part)
        with PackedLoader(index, batches, rank=world.rank, world_size=world.size) as loader:
            yield from loader


def pixels_of(batch: PackedBatch) -> Iterator[tuple[int, npt.NDArray[np.int64], Pixels]]:
    """Row, labels `[K]` and pixels u8 `[H, W, 3]` of each image that was decoded."""
    side = batch.patch_size
    for b, e in np.argwhere(batch.status == OK):
        mine = (batch.segment_ids[b] == e) & (batch.positions[b, :, 0] >= 0)
        height, width = (int(v) for v in batch.grids[b, e])
        canvas = np.zeros((height, width, side, side, 3), np.uint8)
        y, x = batch.positions[b][mine].T
        canvas[y, x] = batch.patches[b][mine].reshape(-1, side, side, 3)
        found: Any = canvas.swapaxes(1, 2).reshape(height * side, width * side, 3)
        yield int(batch.image_ids[b, e]), batch.labels[b, e], found
