"""Resized images → patches in their slots. In: images of any size on one device, and the tokens to take from them. Out: the
patches of all of them, in one pass. Plain PyTorch here, the same as one kernel in `kernel` for GPUs that have Triton.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from .tokens import MIRRORED_X, MIRRORED_Y, SWAPPED, Tokens


def patchify(images: Sequence[torch.Tensor], tokens: Tokens, patch_size: int, out: torch.Tensor) -> None:
    """Writes the patch of every token into its slot.

    Args:
        images: u8 `[height, width, 3]` each, contiguous, as stored, sides multiples of P.
        tokens: what to take from them.
        patch_size: P.
        out: u8 `[B·L, P·P·3]`, on the images' device; slots of no token are left as they are.
    """
    if not len(tokens.slots):
        return
    if out.is_cuda:
        from .kernel import launch

        if launch is not None:
            launch(images, tokens, patch_size, out)
            return
    gather(images, tokens, patch_size, out)


def gather(images: Sequence[torch.Tensor], tokens: Tokens, patch_size: int, out: torch.Tensor) -> None:
    """The same in plain PyTorch, on any device: rows of pixels are gathered as they are stored, blocks turned afterwards."""
    p, device = patch_size, out.device
    flat = torch.cat([image.reshape(-1) for image in images])
    offsets = np.cumsum([0, *(image.numel() for image in images[:-1])])
    stride = np.array([image.shape[1] * 3 for image in images], np.int64)[tokens.images]
    first = offsets[tokens.images] + tokens.blocks[:, 0] * p * stride + tokens.blocks[:, 1] * p * 3
    # All starts are multiples of the row of one block where all sides are multiples of P, so rows can be told by number.
    row = 3 * p
    starts, strides = torch.from_numpy(first // row).to(device), torch.from_numpy(stride // row).to(device)
    rows = starts[:, None] + strides[:, None] * torch.arange(p, device=device)
    blocks = flat.view(-1, row).index_select(0, rows.flatten()).view(-1, p, p, 3)
    for frame in np.unique(tokens.frames[tokens.frames != 0]):
        mine = torch.from_numpy(np.flatnonzero(tokens.frames == frame)).to(device)
        turned = blocks[mine]
        mirrored = [axis for axis, bit in ((1, MIRRORED_Y), (2, MIRRORED_X)) if frame & bit]
        turned = turned.flip(mirrored) if mirrored else turned
        blocks[mine] = turned.transpose(1, 2) if frame & SWAPPED else turned
    out[torch.from_numpy(tokens.slots).to(device)] = blocks.view(len(tokens.slots), -1)
