"""Where each kept token lies in its image as stored. In: positions and segments of a view, and how each image lies in its
file. Out: flat arrays, one value a token, that `patchify` follows without knowing anything of images.

Apart, since it is the only place that turns and mirrors: numpy integers, checked before anything is read through them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...batch import PackedBatch, View
from ...errors import RenderError

SWAPPED, MIRRORED_X, MIRRORED_Y = 1, 2, 4
"""How the oriented and flipped image lies in the stored one: rows are columns; columns, rows run backwards."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """The kept tokens of some images; T of them, in the order of their slots.

    Attributes:
        slots: i64 `[T]`, slot in the flattened B·L.
        images: i64 `[T]`, which of the images.
        blocks: i64 `[T, 2]`, (row, column) of the token's block of P × P pixels in the image as stored.
        frames: u8 `[T]`, how the block has to be turned.
    """

    slots: NDArray[np.int64]
    images: NDArray[np.int64]
    blocks: NDArray[np.int64]
    frames: NDArray[np.uint8]

    def of(self, chosen: list[int]) -> Tokens:
        """Those of some of the images, numbered by their place in `chosen`."""
        place = np.full(max(int(self.images.max(initial=-1)), *chosen) + 1, -1, np.int64)
        place[chosen] = np.arange(len(chosen))
        number = place[self.images]
        mine = number >= 0
        return Tokens(self.slots[mine], number[mine], self.blocks[mine], self.frames[mine])


def tokens_of(view: PackedBatch | View, places: NDArray[np.int64], frames: NDArray[np.uint8]) -> Tokens:
    """The kept tokens of the images at `places`.

    Args:
        view: positions i16 `[B, L, 2]`, segment ids i16 `[B, L]`, grids i16 `[B, E, 2]`.
        places: i64 `[n, 2]`, (sequence, image), rising.
        frames: u8 `[n]`.

    Raises:
        RenderError: a segment or a position outside its image; the batch is damaged.
    """
    segments = np.asarray(view.segment_ids, np.int64)
    grids = np.asarray(view.grids, np.int64)
    if segments.max(initial=-1) >= grids.shape[1]:
        raise _damaged("names an image that is not there")
    number = np.full(grids.shape[:2], -1, np.int64)
    number[places[:, 0], places[:, 1]] = np.arange(len(places))
    found = np.where(segments >= 0, np.take_along_axis(number, np.maximum(segments, 0), 1), -1)
    # A prefix token has no pixels.
    found = np.where(view.positions[..., 0] >= 0, found, -1).ravel()
    slots = np.flatnonzero(found >= 0)
    images = found[slots]
    y, x = np.asarray(view.positions, np.int64).reshape(-1, 2)[slots].T
    height, width = grids[places[:, 0], places[:, 1]][images].T
    if ((y >= height) | (x >= width) | (x < 0)).any():
        raise _damaged("has a position outside its image")
    frame = frames[images]
    swapped = (frame & SWAPPED) != 0
    row, column = np.where(swapped, x, y), np.where(swapped, y, x)
    rows, columns = np.where(swapped, width, height), np.where(swapped, height, width)
    row = np.where(frame & MIRRORED_Y, rows - 1 - row, row)
    column = np.where(frame & MIRRORED_X, columns - 1 - column, column)
    return Tokens(slots, images, np.stack([row, column], 1), frame)


def stored_sizes(view: PackedBatch | View, places: NDArray[np.int64], frames: NDArray[np.uint8]) -> NDArray[Any]:
    """The size in pixels, i64 `[n, 2]` (height, width), to which each image is resized, as stored.

    Raises:
        RenderError: an image without a grid; the batch is damaged.
    """
    grids = np.asarray(view.grids, np.int64)[places[:, 0], places[:, 1]]
    if (grids < 1).any():
        raise _damaged("has an image without a grid")
    sizes: NDArray[Any] = np.where((frames & SWAPPED)[:, None] != 0, grids[:, ::-1], grids) * view.patch_size
    return sizes


def _damaged(what: str) -> RenderError:
    return RenderError(f"an encoded batch {what}; it is damaged, ask for it again")
