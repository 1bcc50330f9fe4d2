"""Grids by a family's own rule, for processors and tests: what `[plan.resolution] kind = "smart"` plans, without a plan.

In: `Resolution` of that kind, the patch size, heights and widths. Out: rows and columns of patches. Apart from `packing`, which
knows lengths alone. The arithmetic is the plan's own (`packer_rs/src/plan/sizing.rs`).
"""

from __future__ import annotations

import json

import numpy as np
import numpy.typing as npt

from .. import _packer
from ..errors import PlanError
from .config import Resolution


def grids(
    resolution: Resolution, patch_size: int, height: npt.ArrayLike, width: npt.ArrayLike
) -> npt.NDArray[np.int64]:
    """Rows and columns of patches of images of `height` × `width` pixels, i64 `[N, 2]`; 0 × 0 where the family's own processor
    refuses an image.

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
    return np.stack(_packer.smart_grids(json.dumps(resolution.to_table()), patch_size, h, w), 1)


def _sides(name: str, values: npt.ArrayLike) -> npt.NDArray[np.uint32]:
    array = np.asarray(values)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise PlanError(f"{name} is {array.dtype} {list(array.shape)}; it must be whole numbers [N]")
    if array.size and not 1 <= (odd := array[np.argmax((array < 1) | (array > 2**31 - 1))]) <= 2**31 - 1:
        raise PlanError(f"{name} = {odd} is not allowed; it must be between 1 and {2**31 - 1}")
    return np.ascontiguousarray(array, np.uint32)
