"""Augmentation of packed patches on the device: pointwise operations of colour, drawn for each image (AugReg).

In: a batch on its device. Out: the same batch with other pixels. Crops, flips and warps are in the plan; what moves no pixel
needs no image and works on patches, dropped ones included. An image's draws are a function of (seed, epoch, source, image):
the same on every rank and device, and after a resume.

The recipe is RandAugment's (arXiv 1909.13719) as AugReg uses it (arXiv 2106.10270, section 3.3), without the operations
that move pixels or need a histogram: each image gets `layers` operations, each drawn out of seven, at a common magnitude.
Where the plan does those that move pixels (`plan.warp.kind = "randaugment"`), an image gets as many fewer here as it was given
there, so `layers` in all, those of the plan first.

Shapes: B sequences · L tokens · P patch side · E images per sequence.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from navit_loader.batch import PackedBatch, View

from ..config import AugmentConfig
from ..model.pool import members

OPERATIONS = ("brightness", "contrast", "colour", "invert", "solarise", "solarise_add", "posterise")
GREY = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the grey of a pixel (ITU-R BT.601)."""

LAYERS = 16
"""Operations of an image at most."""


@torch.no_grad()
def augment(batch: PackedBatch, config: AugmentConfig, seed: int) -> PackedBatch:
    """The batch with the colours of each image changed; a teacher's view gets the same draws.

    Args:
        batch: on the device, u8 patches.
        config: which operations.
        seed: of the run.
    """
    if config.layers == 0:
        return batch
    key = keys_of(batch, seed)
    teacher = batch.teacher
    if teacher is not None:
        teacher = replace(teacher, patches=_changed(teacher, key, config, batch.warp_layers))
    return replace(batch, patches=_changed(batch, key, config, batch.warp_layers), teacher=teacher)


def _changed(view: PackedBatch | View, key_BE: Tensor, config: AugmentConfig, done_BE: Tensor | None) -> Tensor:
    """u8 patches `[B, L, P·P·3]` with the operations that the keys draw, but the first `done_BE` of each image."""
    pixels = view.patches.unflatten(-1, (-1, 3)).float()
    grey_weights = pixels.new_tensor(GREY)
    is_patch, slot_BL = patches_of(view)
    member_BEL = members(view.segment_ids.where(is_patch, -1), key_BE.shape[1], torch.float32)
    count_BE = member_BEL.sum(-1).clamp_min(1)
    strength = config.magnitude / 10
    # Beyond 10 what would leave a picture its negative, black or of few levels goes no further than there.
    less, more = -0.9 * min(strength, 1.0), 0.9 * strength
    for layer in range(config.layers):
        draw = hashed(key_BE, layer)
        kind = (uniform(hashed(draw, 0)) * len(OPERATIONS)).long()
        if done_BE is not None:
            kind = kind.where(done_BE <= layer, len(OPERATIONS))
        factor = 1 + torch.where(uniform(hashed(draw, 1)) < 0.5, less, more)
        grey = pixels @ grey_weights
        mean_BE = (member_BEL @ grey.mean(-1, keepdim=True)).squeeze(-1) / count_BE

        def only(name: str, value: Tensor | float, other: float, kind: Tensor = kind, like: Tensor = factor) -> Tensor:
            """`value` for the images that drew this operation, for each token of theirs `[B, L, 1, 1]`."""
            chosen = torch.where(kind == OPERATIONS.index(name), torch.as_tensor(value).to(like), other)
            return chosen.gather(1, slot_BL)[..., None, None]

        # Brightness, contrast and colour mix the pixel with black, the image's mean grey, and its own grey.
        towards = only("contrast", mean_BE, 0.0) + only("colour", 1.0, 0.0) * grey[..., None]
        mixed = only("brightness", factor, 1.0) * only("contrast", factor, 1.0) * only("colour", factor, 1.0)
        pixels = mixed * pixels + (1 - mixed) * towards
        pixels = torch.where(only("invert", 1.0, 0.0) > 0, 255 - pixels, pixels)
        pixels = torch.where(pixels >= only("solarise", 256 * (1 - strength), 1e9), 255 - pixels, pixels)
        pixels = torch.where(pixels < 128, pixels + only("solarise_add", 110 * strength, 0.0), pixels)
        step = only("posterise", 2.0 ** min(round(4 * strength), 4), 1.0)
        pixels = torch.where(step > 1, (pixels / step).floor() * step, pixels).clamp(0, 255)
    changed = pixels.round().to(torch.uint8).flatten(-2)
    return torch.where(is_patch[..., None], changed, view.patches)


def keys_of(batch: PackedBatch, seed: int) -> Tensor:
    """i64 `[B, E]`: what an image's draws follow from. Words below `LAYERS` are operations here; others have those beyond."""
    key = hashed(torch.full_like(batch.image_ids, seed), batch.epoch)
    return hashed(hashed(key, batch.source_ids.long()), batch.image_ids)


def patches_of(view: PackedBatch | View) -> tuple[Tensor, Tensor]:
    """Which tokens are patches of an image, bool `[B, L]`, and the image's slot for each token, i64 `[B, L]` (0 for others)."""
    is_patch = (view.segment_ids >= 0) & (view.positions[..., 0] >= 0)
    return is_patch, view.segment_ids.long().clamp_min(0)


def hashed(key: Tensor, word: Tensor | int) -> Tensor:
    """A new i64 key for each pair of key and word: the finaliser of SplitMix64 over their sum."""
    z = key * -7046029254386353131 + word + 0x632BE59BD9B4E019
    z = (z ^ _shifted(z, 30)) * -4658895280553007687
    z = (z ^ _shifted(z, 27)) * -7723592293110705685
    return z ^ _shifted(z, 31)


def uniform(key: Tensor) -> Tensor:
    """f32 in [0, 1) from i64 keys; exact, so the same on every device."""
    return _shifted(key, 40).float() * 2.0**-24


def _shifted(z: Tensor, bits: int) -> Tensor:
    """A logical shift to the right; torch's own keeps the sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)
