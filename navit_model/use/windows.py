"""Images beyond the token cap, seen piece by piece at their own size.

In: an image's size and the cap. Out: windows that cover it, each of no more tokens than the cap and overlapping its neighbours;
and what was found in them put together again. Apart from those who ask a model, of boxes and of maps alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

OVERLAP = 0.25
"""Share of a window's side that it has in common with the next at least."""

EDGE = 0.02
"""Share of a window's side within which a box ends at its edge."""

Window = tuple[int, int, int, int]
"""top, left, height, width."""


def windows_of(size: tuple[int, int], patch_size: int, tokens: int) -> list[Window]:
    """Windows over an image, row by row; the whole image where it has no more patches than tokens."""
    height, width = size
    if max(1, height // patch_size) * max(1, width // patch_size) <= tokens:
        return [(0, 0, height, width)]
    side = max(1, math.isqrt(tokens)) * patch_size
    # Of a narrow image a window is longer.
    tall, wide = min(height, side), min(width, side)
    if tall < side:
        wide = min(width, max(1, tokens // max(1, tall // patch_size)) * patch_size)
    elif wide < side:
        tall = min(height, max(1, tokens // max(1, wide // patch_size)) * patch_size)
    return [(top, left, tall, wide) for top in _starts(height, tall) for left in _starts(width, wide)]


def _starts(length: int, side: int) -> list[int]:
    steps = math.ceil((length - side) / (side * (1 - OVERLAP))) if length > side else 0
    return [round((length - side) * n / steps) for n in range(steps + 1)] if steps else [0]


def joined_map(
    size: tuple[int, int], windows: Sequence[Window], maps: Sequence[npt.NDArray[np.int64]]
) -> npt.NDArray[np.int64]:
    """One map of those of all windows: each pixel as the window says whose edge is farthest from it."""
    found = np.full(size, -1, np.int64)
    depth = np.full(size, -1.0)
    for (top, left, height, width), part in zip(windows, maps, strict=True):
        y, x = np.arange(height) + 0.5, np.arange(width) + 0.5
        own = np.minimum(np.minimum(y, height - y)[:, None], np.minimum(x, width - x))
        place = np.s_[top : top + height, left : left + width]
        nearer = own > depth[place]
        found[place], depth[place] = np.where(nearer, part, found[place]), np.where(nearer, own, depth[place])
    return found


def ends_inside(boxes: npt.NDArray[np.float64], window: Window, size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Which boxes, in pixels of the image, end at an edge of their window that is none of the image: of what they show, more
    may lie beyond."""
    top, left, height, width = window
    near = np.array([width, height, width, height]) * EDGE
    low, high = (
        boxes[:, :2] < np.array([left, top]) + near[:2],
        boxes[:, 2:] > np.array([left + width, top + height]) - near[2:],
    )
    inner_low, inner_high = np.array([left > 0, top > 0]), np.array([left + width < size[1], top + height < size[0]])
    return np.asarray((low & inner_low).any(1) | (high & inner_high).any(1))


def one_of_each(
    boxes: npt.NDArray[np.float64],
    scores: npt.NDArray[np.float64],
    kinds: npt.NDArray[np.int64],
    cut: npt.NDArray[np.bool_],
    share: float = 0.5,
) -> npt.NDArray[np.int64]:
    """Which boxes to keep, by falling score: none that overlaps a surer one of its class by more than that share of both.

    Of those that `ends_inside` names none that lies in another of its class by more than that share of itself: its neighbour
    saw the whole.
    """
    kept: list[int] = []
    order = np.lexsort((-scores, cut))
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    while len(order):
        first, rest = order[0], order[1:]
        kept.append(int(first))
        low, high = np.maximum(boxes[first, :2], boxes[rest, :2]), np.minimum(boxes[first, 2:], boxes[rest, 2:])
        both = (high - low).clip(0).prod(1)
        whole = np.where(cut[rest], areas[rest], areas[first] + areas[rest] - both)
        order = rest[~((both > share * whole) & (kinds[rest] == kinds[first]))]
    found = np.array(kept, np.int64)
    return found[np.argsort(-scores[found], kind="stable")]
