"""Windows as segments: an order in which the tokens of a window lie together, and the offsets of the windows.

In: the offsets of a batch's images, and where each token stands. Out: another order and other offsets, for the same
attention. Images stay together in that order, so blocks that see whole images need no order of their own.

Shapes: T tokens · S segments of images and padding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .attention import number_of

COLUMNS = 2**15
"""More than an image has windows in a row."""


def windows(cu_seqlens: Tensor, at_T2: Tensor, is_patch_T: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The tokens window by window, and where each window starts; no host value is read.

    Args:
        cu_seqlens: i32 `[S + 1]`, offsets over T.
        at_T2: i64 `[T, 2]`, (y, x) of each token.
        is_patch_T: bool `[T]`; padding is cut into pieces as large as a window at most.
        size: patches on a side of a window; those at an image's right and lower edge hold what is left.

    Returns:
        The order, i64 `[T]`, and offsets, i32 `[S + T // size + 1]`: h × w patches have at most 1 + h·w/size windows.
        Offsets of windows that are not there are T.
    """
    T = len(at_T2)
    places = torch.arange(T, device=cu_seqlens.device)
    segment_T = number_of(cu_seqlens, T)
    y, x = (at_T2 // size).unbind(1)
    piece_T = (places - cu_seqlens.long()[segment_T]) // size**2
    key_T = segment_T * COLUMNS**2 + torch.where(is_patch_T, y * COLUMNS + x, piece_T)
    order = torch.argsort(key_T, stable=True)
    key_T = key_T[order]
    first_T = torch.cat([torch.ones_like(is_patch_T[:1]), key_T[1:] != key_T[:-1]])
    offsets = torch.full((len(cu_seqlens) + T // size,), T, dtype=torch.long, device=cu_seqlens.device)
    offsets.scatter_reduce_(0, first_T.long().cumsum(0) - 1, places, "amin")
    return order, offsets.to(torch.int32)
