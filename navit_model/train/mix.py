"""Mixup and cutmix between the images of one packed sequence, on the device.

In: a batch on its device. Out: with which image each is mixed and how much of its own it keeps (`Mixing`, a pure function of
seed, epoch and sequence: the same on any number of ranks and after a resume), and the batch with mixed pixels. Apart from
`augment`, whose draws know one image at a time.

Images of one sequence differ in grid, and patches may be dropped. So what meets a patch at the fraction (y, x) of its image is
the partner's patch at the same fraction of the partner's grid, or, where that one was dropped, the kept one next to it in rows.
Nothing is resized, no slot moves, and every shape stays.

- mixup (arXiv 1710.09412): pixels λ·own + (1 − λ)·partner's, λ ~ Beta(α, α).
- cutmix (arXiv 1905.04899): the patches within a box of 1 − λ of the image's area, at a uniform place and cut off at the edges,
  are the partner's; λ becomes the share of the image's kept patches outside.

Shapes: B sequences · L tokens · P patch side · E images per sequence.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from torch import Tensor

from navit_loader.batch import PackedBatch

from ..config import MixConfig
from .augment import hashed, patches_of, uniform

QUANTILES = 4096
"""Of a Beta distribution; between them it is taken as linear."""

FAR = 1 << 40
"""Between the numbers of the patches of two images: beyond that of any patch within its own."""

LAST = torch.iinfo(torch.int64).max


@dataclass(frozen=True, slots=True)
class Mixing:
    """How the images of a batch are mixed.

    Attributes:
        partner: i64 `[B, E]`, the slot of the image that each is mixed with; its own where there is no other.
        share: f32 `[B, E]`, how much of its own an image keeps, and its label; 1 where it is not mixed.
        box: f32 `[B, E, 4]`, (top, left, bottom, right) of what cutmix replaces, as fractions of the image; empty for mixup.
    """

    partner: Tensor
    share: Tensor
    box: Tensor


@torch.no_grad()
def mixing(batch: PackedBatch, counted: Tensor, config: MixConfig, seed: int) -> Mixing:
    """Draws partners and shares.

    Args:
        batch: on its device.
        counted: bool `[B, E]`, the images that have a loss; no other is mixed or is a partner, failed ones among them.
        config: which kinds, and how strongly.
        seed: of the run.
    """
    device = counted.device
    sequence_B = torch.arange(batch.sequence, batch.sequence + len(counted), device=device)
    key_B = hashed(hashed(torch.full_like(sequence_B, seed), batch.epoch), sequence_B)
    # Of the m images that count, number i meets number i + r modulo m.
    many_B = counted.sum(1)
    rank_BE = counted.cumsum(1) - 1
    order_BE = torch.argsort(~counted, dim=1, stable=True)
    turn_B = 1 + (uniform(hashed(key_B, 0)) * (many_B - 1)).long()
    partner_BE = order_BE.gather(1, (rank_BE + turn_B[:, None]) % many_B[:, None].clamp(min=1))
    slot_BE = torch.arange(counted.shape[1], device=device).expand_as(counted)
    partner_BE = partner_BE.where(counted, slot_BE)

    key_BE = hashed(key_B[:, None], slot_BE + 1)
    mixed = (partner_BE != slot_BE) & (uniform(hashed(key_BE, 0)) < config.probability)
    both = config.mixup > 0 and config.cutmix > 0
    cut = uniform(hashed(key_BE, 1)) < 0.5 if both else torch.full_like(mixed, config.cutmix > 0)
    draw = uniform(hashed(key_BE, 2))
    own_BE = torch.where(cut, _beta(config.cutmix, draw), _beta(config.mixup, draw)).where(mixed, 1.0)

    side = (1 - own_BE).clamp(min=0).sqrt() / 2
    middle = torch.stack([uniform(hashed(key_BE, 3)), uniform(hashed(key_BE, 4))], -1)
    box = torch.cat([middle - side[..., None], middle + side[..., None]], -1) * (cut & mixed)[..., None]
    within = _within(batch, box)
    is_patch, slot_BL = patches_of(batch)
    counts = own_BE.new_zeros(2, *own_BE.shape)
    for count, tokens in zip(counts, (is_patch, is_patch & within), strict=True):
        count.scatter_add_(1, slot_BL, tokens.to(count.dtype))
    share = torch.where(cut, 1 - counts[1] / counts[0].clamp(min=1), own_BE)
    return Mixing(partner_BE, share.where(mixed, 1.0), box)


@torch.no_grad()
def mix(batch: PackedBatch, mixed: Mixing) -> PackedBatch:
    """The batch with mixed u8 patches."""
    is_patch, slot_BL = patches_of(batch)
    y, x = batch.positions.long().unbind(-1)
    grids = batch.grids.long()
    number = FAR * slot_BL + y * grids[..., 1].gather(1, slot_BL) + x
    # Kept patches in order of image and place; what is no patch comes last.
    placed, order = number.where(is_patch, LAST).sort(1)
    partner_BL = mixed.partner.gather(1, slot_BL)
    there = [
        ((2 * at + 1) * grids[..., i].gather(1, partner_BL) // (2 * grids[..., i].gather(1, slot_BL).clamp(min=1)))
        for i, at in enumerate((y, x))
    ]
    wanted = FAR * partner_BL + there[0] * grids[..., 1].gather(1, partner_BL) + there[1]
    after = torch.searchsorted(placed, wanted).clamp(max=placed.shape[1] - 1)
    before = (after - 1).clamp(min=0)
    nearer = (placed.gather(1, after) - wanted).abs() <= (placed.gather(1, before) - wanted).abs()
    source = order.gather(1, torch.where(nearer, after, before))

    theirs = batch.patches.gather(1, source[..., None].expand_as(batch.patches)).float()
    in_box = _within(batch, mixed.box)
    is_cut = mixed.box[..., 2] > mixed.box[..., 0]
    share = torch.where(is_cut.gather(1, slot_BL), 1 - in_box.float(), mixed.share.gather(1, slot_BL))
    pixels = torch.lerp(theirs, batch.patches.float(), share[..., None]).round().to(torch.uint8)
    return replace(batch, patches=torch.where(is_patch[..., None], pixels, batch.patches))


def _within(batch: PackedBatch, box: Tensor) -> Tensor:
    """Which patches have their middle in the box of their image."""
    is_patch, slot_BL = patches_of(batch)
    middle = (batch.positions.float() + 0.5) / batch.grids.float().clamp(min=1).gather(
        1, slot_BL[..., None].expand(-1, -1, 2)
    )
    box_BL4 = box.gather(1, slot_BL[..., None].expand(-1, -1, 4))
    inside: Tensor = (middle >= box_BL4[..., :2]) & (middle < box_BL4[..., 2:])
    return inside.all(-1) & is_patch


def _beta(alpha: float, draw: Tensor) -> Tensor:
    """Draws of Beta(α, α) from uniform ones, by its quantiles; 1 where α is 0."""
    if alpha == 0:
        return torch.ones_like(draw)
    table = _quantiles(alpha, draw.device)
    at = draw * (len(table) - 1)
    below = at.long()
    found: Tensor = torch.lerp(table[below], table[(below + 1).clamp(max=len(table) - 1)], at - below)
    return found


@cache
def _quantiles(alpha: float, device: torch.device) -> Tensor:
    """Quantiles of Beta(α, α) at k/QUANTILES, f32, on a device where they stay."""
    # The distribution over logits is smooth where the density itself has poles.
    logit = np.linspace(-40 / min(alpha, 1), 40 / min(alpha, 1), 1 << 18)
    density = np.exp(alpha * (-np.logaddexp(0, -logit) - np.logaddexp(0, logit)))
    below = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    found = np.interp(np.linspace(0, 1, QUANTILES + 1), below / below[-1], logit)
    found[0], found[-1] = -np.inf, np.inf
    return torch.tensor(np.exp(-np.logaddexp(0, -found)), dtype=torch.float32, device=device)
