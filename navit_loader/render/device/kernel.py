"""`patchify` as one Triton kernel: each program copies a few patches, turned on the way. In: addresses. Out: patches.

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

ROWS, TURNED = 4, 2
"""Patches of one program: so many bytes are under way at once that memory's latency is hidden."""

launch: Callable[[Sequence[torch.Tensor], Tokens, int, torch.Tensor], None] | None = None

if triton is not None:
    swapped_bit, mirror_x_bit, mirror_y_bit = (tl.constexpr(v) for v in (SWAPPED, MIRRORED_X, MIRRORED_Y))

    # Without annotations but `constexpr`: some versions of Triton look others up as globals, and refuse them.
    # fmt: off
    @triton.jit  # type: ignore[untyped-decorator,unused-ignore]
    def _rows(  # type: ignore[no-untyped-def]
        addresses, strides, frames, slots, out, count,
        P: tl.constexpr, TOKENS: tl.constexpr, WORD: tl.constexpr, N: tl.constexpr,
    ):
        """Patches whose rows lie as they are stored: `out` is of whole words."""
        t = (tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS))[:, None]
        mine = t < count
        source, stride = tl.load(addresses + t, mask=mine, other=0), tl.load(strides + t, mask=mine, other=0)
        frame, slot = tl.load(frames + t, mask=mine, other=0), tl.load(slots + t, mask=mine, other=0)
        across: tl.constexpr = P * 3 // WORD
        at = tl.arange(0, N)
        i, word = (at // across)[None], (at % across)[None]
        row = tl.where((frame & mirror_y_bit) != 0, P - 1 - i, i)
        inside = mine & (at < P * across)[None]
        place = source + row * stride + word * WORD
        pixels = tl.load(place.to(tl.pointer_type(out.dtype.element_ty)), mask=inside)
        tl.store(out + slot * (P * across) + at[None], pixels, mask=inside)

    @triton.jit  # type: ignore[untyped-decorator,unused-ignore]
    def _turned(  # type: ignore[no-untyped-def]
        addresses, strides, frames, slots, out, count, P: tl.constexpr, TOKENS: tl.constexpr, N: tl.constexpr,
    ):
        """Any patches, byte by byte."""
        t = (tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS))[:, None]
        mine = t < count
        source, stride = tl.load(addresses + t, mask=mine, other=0), tl.load(strides + t, mask=mine, other=0)
        frame, slot = tl.load(frames + t, mask=mine, other=0), tl.load(slots + t, mask=mine, other=0)
        at = tl.arange(0, N)
        i, j, c = (at // (P * 3))[None], (at // 3 % P)[None], (at % 3)[None]
        swap = (frame & swapped_bit) != 0
        row, column = tl.where(swap, j, i), tl.where(swap, i, j)
        row = tl.where((frame & mirror_y_bit) != 0, P - 1 - row, row)
        column = tl.where((frame & mirror_x_bit) != 0, P - 1 - column, column)
        inside = mine & (at < P * P * 3)[None]
        place = source + row * stride + column * 3 + c
        pixels = tl.load(place.to(tl.pointer_type(tl.uint8)), mask=inside)
        tl.store(out + slot * (P * P * 3) + at[None], pixels, mask=inside)
    # fmt: on

    def per_token(
        images: Sequence[torch.Tensor], tokens: Tokens, patch_size: int, device: torch.device
    ) -> tuple[torch.Tensor, int]:
        """What the kernels are told of each token, i64 `[4, T]` on the device: address, stride, frame, slot. One transfer.

        Those whose rows lie as they are stored come first; the second value says how many they are.
        """
        stride = np.array([image.shape[1] * 3 for image in images], np.int64)[tokens.images]
        base = np.array([image.data_ptr() for image in images], np.int64)[tokens.images]
        address = base + tokens.blocks[:, 0] * patch_size * stride + tokens.blocks[:, 1] * patch_size * 3
        turned = (tokens.frames & (SWAPPED | MIRRORED_X)) != 0
        order = np.argsort(turned, kind="stable") if turned.any() else slice(None)
        every = (address, stride, tokens.frames.astype(np.int64), tokens.slots)
        found = torch.from_numpy(np.stack([values[order] for values in every]))
        plain = len(turned) - int(turned.sum())
        return found.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else found, plain

    def words(patch_size: int) -> torch.dtype:
        """What rows are copied by. Images are whole patches wide, so rows of blocks begin at multiples of a row's bytes."""
        return {0: torch.int32, 2: torch.int16}.get(patch_size % 4, torch.uint8)

    def copy(per_token: torch.Tensor, plain: int, patch_size: int, out: torch.Tensor) -> None:
        """The kernels alone: patches of the tokens that `per_token` names into u8 `[B·L, P·P·3]`."""
        size = patch_size**2 * 3
        if plain:
            kind = words(patch_size)
            _rows[(triton.cdiv(plain, ROWS),)](
                *per_token[:, :plain], out.view(kind), plain, P=patch_size, TOKENS=ROWS,
                WORD=kind.itemsize, N=triton.next_power_of_2(size // kind.itemsize),
            )  # fmt: skip
        if left := per_token.shape[1] - plain:
            _turned[(triton.cdiv(left, TURNED),)](
                *per_token[:, plain:], out, left, P=patch_size, TOKENS=TURNED, N=triton.next_power_of_2(size)
            )

    def _launch(images: Sequence[torch.Tensor], tokens: Tokens, patch_size: int, out: torch.Tensor) -> None:
        copy(*per_token(images, tokens, patch_size, out.device), patch_size, out)

    launch = _launch
