"""Blocks of patches → one token each, behind the encoder: what a language model reads of an image.

In: encoded tokens `[B, L, D]` and their batch, every image whole and its sides multiples of the block's. Out: `Merged`, the
blocks of each image row by row, sequences of L / m² slots. Apart from pooling, which makes one vector of an image.

Shapes: B sequences · L tokens · D width · m side of a block in patches · M = L // m² · W width of merged tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from navit_loader.batch import PackedBatch, View

from ..config import NaViTConfig
from .encoder import ACTIVATIONS, initialise, norm


@dataclass(frozen=True, slots=True)
class Merged:
    """Merged tokens of a batch.

    Attributes:
        tokens: `[B, M, W]`.
        segment_ids: i16 `[B, M]`, which image of the sequence; −1 where there is none.
        taps: `[B, M, W]` for each block of `merge_taps`, in their order.
    """

    tokens: Tensor
    segment_ids: Tensor
    taps: tuple[Tensor, ...] = ()


class Merger(nn.Module):
    """A norm of each patch, or of the block as a whole, then two linear layers over the block (Qwen2-VL, arXiv 2409.12191)."""

    def __init__(self, config: NaViTConfig, whole: bool = False) -> None:
        super().__init__()
        wide = config.width * config.merge**2
        self.norm = norm(config, wide if whole else config.width)
        self.whole = whole
        self.up, self.down = nn.Linear(wide, wide), nn.Linear(wide, config.merge_width)
        for linear in (self.up, self.down):
            initialise(linear)

    def forward(self, x_BMmD: Tensor) -> Tensor:
        """`[B, M, m², D]` → `[B, M, W]`."""
        x = self.norm(x_BMmD.flatten(2)) if self.whole else self.norm(x_BMmD).flatten(2)
        return self.down(F.gelu(self.up(x)))  # type: ignore[no-any-return]


class MeanMerger(nn.Module):
    """The mean of the block, its channels scaled and shifted (Gemma 4)."""

    def __init__(self, config: NaViTConfig) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((config.width,), config.width**0.5))
        self.shift = nn.Parameter(torch.zeros(config.width))

    def forward(self, x_BMmD: Tensor) -> Tensor:
        """`[B, M, m², D]` → `[B, M, D]`."""
        return x_BMmD.mean(2) * self.scale + self.shift


class ConvolvedMerger(nn.Module):
    """A convolution over the block, a linear layer, a norm, then a gated MLP (GLM-4.1V, arXiv 2507.01006)."""

    def __init__(self, config: NaViTConfig) -> None:
        super().__init__()
        width, hidden = config.merge_width, config.merge_hidden
        self.activation = ACTIVATIONS[config.activation]
        self.down = nn.Linear(config.width * config.merge**2, width)
        self.proj = nn.Linear(width, width, bias=False)
        self.norm = nn.LayerNorm(width)
        self.gated = nn.Linear(width, 2 * hidden, bias=False)
        self.out = nn.Linear(hidden, width, bias=False)
        for linear in (self.down, self.proj, self.gated, self.out):
            initialise(linear)

    def forward(self, x_BMmD: Tensor) -> Tensor:
        """`[B, M, m², D]` → `[B, M, W]`."""
        x = F.gelu(self.norm(self.proj(self.down(x_BMmD.flatten(2)))))
        gate, x = self.gated(x).chunk(2, -1)
        return self.out(self.activation(gate) * x)  # type: ignore[no-any-return]


MERGERS = {"mlp": Merger, "mean": MeanMerger, "convolved": ConvolvedMerger}


def blocks_of(batch: PackedBatch | View, side: int) -> tuple[Tensor, Tensor]:
    """Which tokens make up each block; no host value is read.

    Returns:
        Numbers of tokens of their sequence, i64 `[B, M, m²]`, row by row, 0 where there is no block; and the image of each,
        i16 `[B, M]`, or −1.
    """
    B, L = batch.segment_ids.shape
    M, device = L // side**2, batch.segment_ids.device
    at_BL2 = batch.positions.long()
    first_BL = (batch.segment_ids >= 0) & (at_BL2[..., 0] >= 0) & (at_BL2 % side == 0).all(-1)
    # Each first token goes to the slot of its block; all others to one more slot, which is cut off.
    slot_BL = (first_BL.long().cumsum(1) - 1).where(first_BL, M).clamp_max(M)
    number_BL = torch.arange(L, device=device).expand(B, L)
    first_BM = torch.zeros(B, M + 1, dtype=torch.long, device=device).scatter_(1, slot_BL, number_BL)[:, :M]
    image_BM = batch.segment_ids.new_full((B, M + 1), -1).scatter_(1, slot_BL, batch.segment_ids)[:, :M]
    width_BM = batch.grids[..., 1].long().gather(1, image_BM.long().clamp_min(0))
    step = torch.arange(side, device=device)
    beside = step[:, None] * width_BM[..., None, None] + step
    found = (first_BM[..., None] + beside.flatten(2)).clamp_max(L - 1)
    return found * (image_BM >= 0)[..., None], image_BM


def gather(x_BLD: Tensor, index_BMm: Tensor) -> Tensor:
    """The tokens of each block, `[B, M, m², D]`."""
    rows = index_BMm.flatten(1)[..., None].expand(-1, -1, x_BLD.shape[-1])
    return x_BLD.gather(1, rows).view(*index_BMm.shape, -1)
