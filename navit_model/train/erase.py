"""Random erasing of packed patches on the device: a rectangle of an image becomes noise.

In: a batch on its device. Out: the same batch with other pixels. Apart from `augment`, whose operations change each pixel by
itself: here a pixel's place in its image counts, which its patch's position tells, so rectangles are exact to the pixel,
whatever patches were dropped or lie where.

As in the paper (arXiv 1708.04896, algorithm 1), with timm's bounds: an area uniform in `AREA` of the image's, a ratio of
height to width log-uniform in `RATIO`, a uniform place within the image, and of `TRIES` draws the first that fits (where
none does, the image stays as it is). What is erased becomes uniform noise, each channel of each pixel by itself: the paper's
best fill (RE-R). Rectangle and noise are a function of (seed, epoch, source, image), the same on every rank and
device, and after a resume.

Shapes: B sequences · L tokens · P patch side · E images per sequence · T tries.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from navit_loader.batch import PackedBatch, View

from .augment import LAYERS, hashed, keys_of, patches_of, uniform

AREA = (0.02, 1 / 3)
"""Share of the image that is erased, at least and at most."""

RATIO = (0.3, 1 / 0.3)
"""Height of what is erased over its width."""

TRIES = 10


@torch.no_grad()
def erase(batch: PackedBatch, probability: float, seed: int) -> PackedBatch:
    """The batch with a rectangle of some images replaced by noise.

    A teacher's view is erased at the same place of the image: it is to say what it sees of what the student sees (arXiv
    2106.05237). Its pixels are of another size, so its noise is its own.

    Args:
        batch: on its device, u8 patches.
        probability: of an image to lose a rectangle.
        seed: of the run.
    """
    if not probability:
        return batch
    key = hashed(keys_of(batch, seed), LAYERS)
    box = boxes(batch.grids.long() * batch.patch_size, key, probability)
    teacher = batch.teacher
    if teacher is not None:
        # From the student's pixels to the teacher's, to the nearest edge.
        own, theirs = (view.grids.long().repeat(1, 1, 2) * view.patch_size for view in (batch, teacher))
        scaled = (2 * box * theirs + own) // (2 * own).clamp(min=1)
        teacher = replace(teacher, patches=_erased(teacher, scaled, key))
    return replace(batch, patches=_erased(batch, box, key), teacher=teacher)


def boxes(size_BE2: Tensor, key_BE: Tensor, probability: float) -> Tensor:
    """Draws what each image loses: i64 `[B, E, 4]`, (top, left, bottom, right) in pixels of its view; empty where nothing.

    Args:
        size_BE2: i64, (height, width) of each image in pixels.
        key_BE: of its draws.
        probability: of an image to lose anything.
    """
    key_BET = hashed(key_BE[..., None], torch.arange(1, TRIES + 1, device=key_BE.device))
    draws = [uniform(hashed(key_BET, word)) for word in range(4)]
    size = size_BE2[:, :, None]
    area = (AREA[0] + (AREA[1] - AREA[0]) * draws[0]) * size.prod(-1)
    # In double precision, so that devices whose exponentials differ in the last place round to the same pixels.
    low, high = map(math.log, RATIO)
    ratio = (low + (high - low) * draws[1].double()).exp()
    wanted = torch.stack([area * ratio, area / ratio], -1).sqrt().round().long()
    fits = ((wanted > 0) & (wanted < size)).all(-1)
    first = fits.byte().argmax(-1)[..., None]
    tall, wide = (wanted[..., i].gather(-1, first)[..., 0] for i in (0, 1))
    places = (draws[i].gather(-1, first)[..., 0].double() for i in (2, 3))
    top, left = (
        (place * (size_BE2[..., i] - long + 1)).long()
        for i, (place, long) in enumerate(zip(places, (tall, wide), strict=True))
    )
    erased = fits.any(-1) & (uniform(hashed(key_BE, 0)) < probability)
    return torch.stack([top, left, top + tall, left + wide], -1) * erased[..., None]


def _erased(view: PackedBatch | View, box_BE4: Tensor, key_BE: Tensor) -> Tensor:
    """u8 patches `[B, L, P·P·3]` with noise within the boxes."""
    is_patch, slot_BL = patches_of(view)
    top, left, bottom, right = box_BE4.gather(1, slot_BL[..., None].expand(-1, -1, 4))[..., None].unbind(-2)
    side = torch.arange(view.patch_size, device=slot_BL.device)
    y, x = (at[..., None] * view.patch_size + side for at in view.positions.long().unbind(-1))
    rows, columns = ((y >= top) & (y < bottom))[..., :, None], ((x >= left) & (x < right))[..., None, :]
    inside = (rows & columns & is_patch[..., None, None]).flatten(-2)[..., None]
    # 24 bits of one key are the three channels of a pixel.
    pixel = (y[..., :, None] << 32) + x[..., None, :]
    noise = hashed(key_BE.gather(1, slot_BL)[..., None, None], pixel).flatten(-2)
    filled = torch.stack([((noise >> bits) & 255).to(torch.uint8) for bits in (0, 8, 16)], -1)
    return torch.where(inside, filled, view.patches.unflatten(-1, (-1, 3))).flatten(-2)
