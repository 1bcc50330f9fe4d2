"""What a resized pixel is: antialiased resampling as in Pillow's `resize(box=…)`. In: a filter, a crop, a size. Out: weights.

The filter widens with the scale; at the crop's edge it sees the pixels beyond it, down to the image's own edge. `weights` and
`resize` are plain PyTorch for any device; `kernel` computes the same sums on a GPU.
"""

from __future__ import annotations

import torch

FILTERS = {"bicubic": 2.0, "bilinear": 1.0, "lanczos": 3.0}
"""`[render] filter`, and half the width of its window in target pixels. `area` has edges that float32 cannot place."""


def weights(filter: str, source: int, start: float, end: float, target: int) -> torch.Tensor:
    """The matrix f32 `[target, source]` that resizes the span `start` to `end` of an axis; each row sums to 1."""
    scale = (end - start) / target
    widened = max(scale, 1.0)
    support = FILTERS[filter] * widened
    centre = start + (torch.arange(target, dtype=torch.float64) + 0.5) * scale
    pixel = torch.arange(source, dtype=torch.float64)
    first = (centre - support + 0.5).clamp_min(0).floor()[:, None]
    last = (centre + support + 0.5).floor().clamp_max(source)[:, None]
    x = (pixel + 0.5 - centre[:, None]) / widened
    value = _value(filter, x).where((pixel >= first) & (pixel < last), 0.0)
    return (value / value.sum(1, keepdim=True)).float()


def _value(filter: str, x: torch.Tensor) -> torch.Tensor:
    d = x.abs()
    if filter == "bicubic":  # Catmull-Rom, a = -0.5
        near, far = (1.5 * d - 2.5) * d * d + 1.0, ((-0.5 * d + 2.5) * d - 4.0) * d + 2.0
        return torch.where(d < 1.0, near, far).where(d < 2.0, 0.0)
    if filter == "bilinear":
        return (1.0 - d).clamp_min(0.0)
    return (torch.sinc(x) * torch.sinc(x / 3.0)).where(d < 3.0, 0.0)


def resize(image: torch.Tensor, crop: list[float], size: list[int], filter: str) -> torch.Tensor:
    """One image, u8 `[3, h, w]`, its crop (top, left, bottom, right) resized to (height, width): u8 `[height, width, 3]`."""
    top, left, bottom, right = crop
    down = weights(filter, image.shape[1], top, bottom, size[0]).to(image.device)
    across = weights(filter, image.shape[2], left, right, size[1]).to(image.device)
    found = down @ image.float() @ across.T
    return found.add(0.5).floor().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous()
