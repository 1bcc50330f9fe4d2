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


def one_of_each(
    boxes: npt.NDArray[np.float64], scores: npt.NDArray[np.float64], kinds: npt.NDArray[np.int64], share: float = 0.5
) -> npt.NDArray[np.int64]:
    """Which boxes to keep, by falling score: none that overlaps a surer one of its class by more than that share of both."""
    kept: list[int] = []
    order = np.argsort(-scores, kind="stable")
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    while len(order):
        first, rest = order[0], order[1:]
        kept.append(int(first))
        low, high = np.maximum(boxes[first, :2], boxes[rest, :2]), np.minimum(boxes[first, 2:], boxes[rest, 2:])
        both = (high - low).clip(0).prod(1)
        same = (both > share * (areas[first] + areas[rest] - both)) & (kinds[rest] == kinds[first])
        order = rest[~same]
    return np.array(kept, np.int64)
