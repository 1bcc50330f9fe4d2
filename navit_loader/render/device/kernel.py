"""`patchify` as one Triton kernel: each program copies one patch, turned on the way. In: addresses. Out: patches.

No image is copied or moved first: the kernel reads each where the decoder left it. `launch` is None without Triton.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from .tokens import MIRRORED_X, MIRRORED_Y, SWAPPED, Tokens

try:
    import triton
    import triton.language as tl
except ImportError:  # pragma: no cover - torch for GPUs brings it
    triton = None

launch: Callable[[Sequence[torch.Tensor], Tokens, int, torch.Tensor], None] | None = None

if triton is not None:
    swapped_bit, mirror_x_bit, mirror_y_bit = (tl.constexpr(v) for v in (SWAPPED, MIRRORED_X, MIRRORED_Y))

    # Without annotations but `constexpr`: some versions of Triton look others up as globals, and refuse them.
    @triton.jit  # type: ignore[untyped-decorator,unused-ignore]
    def _copy(addresses, strides, frames, slots, out, P: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
        t = tl.program_id(0).to(tl.int64)
        source = tl.load(addresses + t).to(tl.pointer_type(tl.uint8))
        stride, frame, slot = tl.load(strides + t), tl.load(frames + t), tl.load(slots + t)
        at = tl.arange(0, BLOCK)
        i, j, c = at // (P * 3), at // 3 % P, at % 3
        swap = (frame & swapped_bit) != 0
        row, column = tl.where(swap, j, i), tl.where(swap, i, j)
        row = tl.where((frame & mirror_y_bit) != 0, P - 1 - row, row)
        column = tl.where((frame & mirror_x_bit) != 0, P - 1 - column, column)
        inside = at < P * P * 3
        pixels = tl.load(source + row.to(tl.int64) * stride + column * 3 + c, mask=inside)
        tl.store(out + slot * (P * P * 3) + at, pixels, mask=inside)

    def per_token(
        images: Sequence[torch.Tensor], tokens: Tokens, patch_size: int, device: torch.device
    ) -> torch.Tensor:
        """What the kernel is told of each token, i64 `[4, T]` on the device: address, stride, frame, slot. One transfer."""
        stride = np.array([image.shape[1] * 3 for image in images], np.int64)[tokens.images]
        base = np.array([image.data_ptr() for image in images], np.int64)[tokens.images]
        address = base + tokens.blocks[:, 0] * patch_size * stride + tokens.blocks[:, 1] * patch_size * 3
        found = torch.from_numpy(np.stack([address, stride, tokens.frames.astype(np.int64), tokens.slots]))
        return found.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else found

    def copy(per_token: torch.Tensor, patch_size: int, out: torch.Tensor) -> None:
        """The kernel alone: patches of the tokens that `per_token` names into u8 `[B·L, P·P·3]`."""
        block = triton.next_power_of_2(patch_size * patch_size * 3)
        _copy[(per_token.shape[1],)](*per_token, out, P=patch_size, BLOCK=block)

    def _launch(images: Sequence[torch.Tensor], tokens: Tokens, patch_size: int, out: torch.Tensor) -> None:
        copy(per_token(images, tokens, patch_size, out.device), patch_size, out)

    launch = _launch
