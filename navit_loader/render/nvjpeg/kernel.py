"""Decoded images → patches in their slots, as one Triton kernel: each program makes one patch, resized and turned on the way.

In: decoded images with crops and sizes, and tokens. Out: patches. No resized image is ever stored: a pixel of a patch is the
weighted sum over its own window of the decoded image (`resample`, in float32). `launch` is None without Triton.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..device.tokens import MIRRORED_X, MIRRORED_Y, SWAPPED, Tokens
from .resample import FILTERS

try:
    import triton
    import triton.language as tl
except ImportError:  # pragma: no cover - torch for GPUs brings it
    triton = None

Launch = Callable[
    [Sequence[torch.Tensor], NDArray[np.float32], NDArray[np.float32], Tokens, int, str, torch.Tensor], None
]
launch: Launch | None = None

CODES = {name: code for code, name in enumerate(FILTERS)}

if triton is not None:
    swapped_bit, mirror_x_bit, mirror_y_bit = (tl.constexpr(v) for v in (SWAPPED, MIRRORED_X, MIRRORED_Y))

    # Without annotations but `constexpr`: some versions of Triton look others up as globals, and refuse them.
    @triton.jit  # type: ignore[untyped-decorator,unused-ignore]
    def _value(x, FILTER: tl.constexpr):  # type: ignore[no-untyped-def]
        d = tl.abs(x)
        if FILTER == 0:
            near = (1.5 * d - 2.5) * d * d + 1.0
            far = ((-0.5 * d + 2.5) * d - 4.0) * d + 2.0
            return tl.where(d < 1.0, near, tl.where(d < 2.0, far, 0.0))
        elif FILTER == 1:
            return tl.maximum(1.0 - d, 0.0)
        else:
            a = x * 3.141592653589793
            b = a / 3.0
            value = tl.where(
                d < 1e-6, 1.0, tl.sin(a) / tl.where(d < 1e-6, 1.0, a) * tl.sin(b) / tl.where(d < 1e-6, 1.0, b)
            )
            return tl.where(d < 3.0, value, 0.0)

    @triton.jit  # type: ignore[untyped-decorator,unused-ignore]
    def _patches(  # type: ignore[no-untyped-def]
        addresses,
        shapes,
        spans,
        tokens,
        out,
        count,
        SUPPORT: tl.constexpr,
        FILTER: tl.constexpr,
        P: tl.constexpr,
        BLOCK: tl.constexpr,
    ):
        t = tl.program_id(0).to(tl.int64)
        image = tl.load(tokens + t)
        block_y, block_x = tl.load(tokens + count + t), tl.load(tokens + 2 * count + t)
        frame, slot = tl.load(tokens + 3 * count + t), tl.load(tokens + 4 * count + t)
        source = tl.load(addresses + image).to(tl.pointer_type(tl.uint8))
        height, width = tl.load(shapes + 2 * image), tl.load(shapes + 2 * image + 1)
        top, down = tl.load(spans + 4 * image), tl.load(spans + 4 * image + 1)
        left, across = tl.load(spans + 4 * image + 2), tl.load(spans + 4 * image + 3)

        at = tl.arange(0, BLOCK)
        i, j = at // P, at % P
        swap = (frame & swapped_bit) != 0
        row, column = tl.where(swap, j, i), tl.where(swap, i, j)
        row = tl.where((frame & mirror_y_bit) != 0, P - 1 - row, row)
        column = tl.where((frame & mirror_x_bit) != 0, P - 1 - column, column)
        inside = at < P * P

        wide_y, wide_x = tl.maximum(down, 1.0), tl.maximum(across, 1.0)
        centre_y = top + ((block_y * P + row).to(tl.float32) + 0.5) * down
        centre_x = left + ((block_x * P + column).to(tl.float32) + 0.5) * across
        reach_y, reach_x = SUPPORT * wide_y, SUPPORT * wide_x
        first_y = tl.maximum(centre_y - reach_y + 0.5, 0.0).to(tl.int32)
        first_x = tl.maximum(centre_x - reach_x + 0.5, 0.0).to(tl.int32)
        last_y = tl.minimum((centre_y + reach_y + 0.5).to(tl.int32), height)
        last_x = tl.minimum((centre_x + reach_x + 0.5).to(tl.int32), width)
        taps_y = (2.0 * reach_y).to(tl.int32) + 2
        taps_x = (2.0 * reach_x).to(tl.int32) + 2

        red = tl.zeros([BLOCK], tl.float32)
        green = tl.zeros([BLOCK], tl.float32)
        blue = tl.zeros([BLOCK], tl.float32)
        total = tl.zeros([BLOCK], tl.float32)
        plane = height.to(tl.int64) * width
        for n in range(taps_y):
            y = first_y + n
            weight_y = tl.where(y < last_y, _value((y.to(tl.float32) + 0.5 - centre_y) / wide_y, FILTER), 0.0)
            line = source + y.to(tl.int64) * width
            for m in range(taps_x):
                x = first_x + m
                weight = weight_y * _value((x.to(tl.float32) + 0.5 - centre_x) / wide_x, FILTER)
                there = inside & (y < last_y) & (x < last_x)
                weight = tl.where(there, weight, 0.0)
                red += weight * tl.load(line + x, mask=there, other=0).to(tl.float32)
                green += weight * tl.load(line + plane + x, mask=there, other=0).to(tl.float32)
                blue += weight * tl.load(line + 2 * plane + x, mask=there, other=0).to(tl.float32)
                total += weight
        to = out + slot * (P * P * 3) + at * 3
        unit = 1.0 / tl.where(inside, total, 1.0)
        tl.store(to, tl.clamp(red * unit + 0.5, 0.0, 255.0).to(tl.uint8), mask=inside)
        tl.store(to + 1, tl.clamp(green * unit + 0.5, 0.0, 255.0).to(tl.uint8), mask=inside)
        tl.store(to + 2, tl.clamp(blue * unit + 0.5, 0.0, 255.0).to(tl.uint8), mask=inside)

    def _launch(
        images: Sequence[torch.Tensor],
        crops: NDArray[np.float32],
        sizes: NDArray[np.float32],
        tokens: Tokens,
        patch_size: int,
        filter: str,
        out: torch.Tensor,
    ) -> None:
        scales = (crops[:, 2:] - crops[:, :2]) / sizes
        spans = np.stack([crops[:, 0], scales[:, 0], crops[:, 1], scales[:, 1]], 1)
        told = np.stack([tokens.images, *tokens.blocks.T, tokens.frames.astype(np.int64), tokens.slots])

        def there(array: NDArray[Any]) -> torch.Tensor:
            found = torch.from_numpy(np.ascontiguousarray(array))
            return found.pin_memory().to(out.device, non_blocking=True) if out.is_cuda else found

        _patches[(len(tokens.slots),)](
            there(np.array([image.data_ptr() for image in images], np.int64)),
            there(np.array([image.shape[1:] for image in images], np.int32)),
            there(spans.astype(np.float32)),
            there(told),
            out,
            len(tokens.slots),
            SUPPORT=FILTERS[filter],
            FILTER=CODES[filter],
            P=patch_size,
            BLOCK=triton.next_power_of_2(patch_size * patch_size),
        )

    launch = _launch
