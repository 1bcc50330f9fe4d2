"""To which size each family resizes an image before it is cut into patches.

In: an image's height and width, and the settings of its processor. Out: height and width in pixels, as the family's own rule
has them to the pixel, its rounding included; or its refusal. Sources: the image processors of transformers 5, by family.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from .errors import PlanError

Size = tuple[int, int]
ASPECT = 200
"""A side of Qwen's and its like may be so many times the other."""


def target(family: str, size: Size, settings: Mapping[str, Any]) -> Size:
    """Height and width to which a family resizes an image.

    Args:
        family: a key of `families.FAMILIES`.
        size: of the image, in pixels.
        settings: of the family's processor.

    Raises:
        PlanError: the family refuses such sides.
    """
    height, width = RULES[family](*size, settings)
    if height < 1 or width < 1:
        raise PlanError(f"it would be resized to {height} × {width} pixels; crop it or leave it out")
    return height, width


def _qwen(height: int, width: int, s: Mapping[str, Any], frames: int = 1) -> Size:
    factor, low, high = s["patch_size"] * s["merge_size"], s["size"]["shortest_edge"], s["size"]["longest_edge"]
    aspect = max(height, width) / min(height, width)
    if aspect > ASPECT:
        raise PlanError(f"one side is {aspect:.0f} times the other, and {ASPECT} is allowed; crop it or leave it out")
    h, w = round(height / factor) * factor, round(width / factor) * factor
    if frames * h * w > high:
        beta = math.sqrt(frames * height * width / high)
        h, w = (max(factor, math.floor(side / beta / factor) * factor) for side in (height, width))
    elif frames * h * w < low:
        beta = math.sqrt(low / (frames * height * width))
        h, w = (math.ceil(side * beta / factor) * factor for side in (height, width))
    return h, w


def _glm4v(height: int, width: int, s: Mapping[str, Any]) -> Size:
    factor = s["patch_size"] * s["merge_size"]
    if height < factor or width < factor:
        scale = max(factor / height, factor / width)
        height, width = int(height * scale), int(width * scale)
    return _qwen(height, width, s, s["temporal_patch_size"])


def _paddleocr_vl(height: int, width: int, s: Mapping[str, Any]) -> Size:
    factor = s["patch_size"] * s["merge_size"]
    if height < factor:
        height, width = factor, round(width * factor / height)
    if width < factor:
        height, width = round(height * factor / width), factor
    return _qwen(height, width, s)


def _siglip2(height: int, width: int, s: Mapping[str, Any]) -> Size:
    patch, most = s["patch_size"], s["max_num_patches"]

    def scaled(scale: float) -> Size:
        h, w = (max(patch, math.ceil(side * scale / patch) * patch) for side in (height, width))
        return h, w

    low, high = 1e-6, 100.0
    while high - low >= 1e-5:
        middle = (low + high) / 2
        h, w = scaled(middle)
        low, high = (middle, high) if (h / patch) * (w / patch) <= most else (low, middle)
    return scaled(low)


def _pixtral(height: int, width: int, s: Mapping[str, Any]) -> Size:
    patch = s["patch_size"]["height"] if isinstance(s["patch_size"], Mapping) else s["patch_size"]
    size = s["size"]
    highest, widest = size.get("height", size.get("longest_edge")), size.get("width", size.get("longest_edge"))
    if (ratio := max(height / highest, width / widest)) > 1:
        height, width = math.floor(height / ratio), math.floor(width / ratio)
    return -(-height // patch) * patch, -(-width // patch) * patch


def _kimi(height: int, width: int, s: Mapping[str, Any]) -> Size:
    patch, most = s["patch_size"], s["size"]["max_height"] * s["patch_size"]
    patches = max(1.0, height // patch) * max(1.0, width // patch)
    scale = min(1.0, math.sqrt(s["max_patches"] / patches), most / height, most / width)
    return min(max(1, int(height * scale)), most), min(max(1, int(width * scale)), most)


def _gemma4(height: int, width: int, s: Mapping[str, Any]) -> Size:
    pool = s["pooling_kernel_size"]
    side, most = s["patch_size"] * pool, s["max_soft_tokens"] * pool**2 * s["patch_size"] ** 2
    factor = math.sqrt(most / (height * width))
    h, w = (math.floor(factor * v / side) * side for v in (height, width))
    if h == 0 and w == 0:
        raise PlanError(f"its sides would be less than {side} pixels; crop it or leave it out")
    longest = s["max_soft_tokens"] * side
    if h == 0:
        h, w = side, min(width // height * side, longest)
    elif w == 0:
        h, w = min(height // width * side, longest), side
    if h * w > most:
        raise PlanError(f"it would be resized to {h} × {w} pixels, more than the family takes; crop it or leave it out")
    return h, w


RULES: Mapping[str, Callable[[int, int, Mapping[str, Any]], Size]] = {
    "qwen_vl": _qwen,
    "glm4v": _glm4v,
    "paddleocr_vl": _paddleocr_vl,
    "siglip2": _siglip2,
    "pixtral": _pixtral,
    "kimi": _kimi,
    "gemma4": _gemma4,
}
