"""Sizes by a family's own rule, for processors and tests: what `[plan.resolution] kind = "smart"` plans, without a plan.

In: `Resolution` of that kind, the patch size, heights and widths. Out: pixels to resize to, and rows and columns of patches.
Apart from `packing`, which knows lengths alone. The arithmetic is the plan's own (`packer_rs/src/plan/sizing.rs`).
"""

from __future__ import annotations

import json
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .. import _packer
from ..errors import PlanError
from .config import Resolution

Ints = npt.NDArray[np.int64]


class Sizes(NamedTuple):
    """What becomes of N images: heights and widths in pixels to which they are resized, i64 `[N, 2]`; rows and columns of
    patches, i64 `[N, 2]`, which are more than that where a family pads; and the number of each image that the family's own
    processor refuses, with its reason: such an image is 0 × 0."""

    pixels: Ints
    grids: Ints
    refused: list[tuple[int, str]]


def sizes(resolution: Resolution, patch_size: int, height: npt.ArrayLike, width: npt.ArrayLike) -> Sizes:
    """What becomes of images of `height` × `width` pixels.

    Args:
        resolution: of kind `smart`.
        patch_size: P in pixels.
        height: whole numbers of at least 1, `[N]`.
        width: as `height`.

    Raises:
        PlanError: another kind, sides that are none, or not as many of the one as of the other.
    """
    if resolution.kind != "smart":
        raise PlanError(f"resolution.kind = {resolution.kind!r} has no rule of its own; it must be 'smart'")
    if not 1 <= patch_size <= 512:
        raise PlanError(f"patch_size = {patch_size} is not allowed; it must be between 1 and 512 pixels")
    h, w = _sides("height", height), _sides("width", width)
    if len(h) != len(w):
        raise PlanError(f"width has {len(w)} images, height has {len(h)}; they must be equal")
    found, refused = _packer.smart_sizes(json.dumps(resolution.to_table()), patch_size, h, w)
    return Sizes(found[:, :2], found[:, 2:], refused)


def grids(resolution: Resolution, patch_size: int, height: npt.ArrayLike, width: npt.ArrayLike) -> Ints:
    """Rows and columns of patches, as `sizes` gives them."""
    return sizes(resolution, patch_size, height, width).grids


def _sides(name: str, values: npt.ArrayLike) -> npt.NDArray[np.uint32]:
    array = np.asarray(values)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise PlanError(f"{name} is {array.dtype} {list(array.shape)}; it must be whole numbers [N]")
    if array.size and not 1 <= (odd := array[np.argmax((array < 1) | (array > 2**31 - 1))]) <= 2**31 - 1:
        raise PlanError(f"{name} = {odd} is not allowed; it must be between 1 and {2**31 - 1}")
    return np.ascontiguousarray(array, np.uint32)
