"""The loss of numbers that are predicted, over packed images: summed, so that the trainer can divide by the global number.

In: outputs `[B, E, 1]`, and the numbers that labels stand for, in units of their own spread. Out: `(sum, count)` as device
scalars. Apart from classification, whose labels name classes: here a label names a number (`navit-loader index
--target-column`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from navit_loader.batch import PackedBatch
from navit_loader.errors import ModelError

from .classification import learnt, summed, weighed


def numbers_of(classes: Sequence[str], where: str) -> Tensor:
    """f64 `[classes]`, the number that each label of an index stands for; `where` names it.

    Raises:
        ModelError: a class that is no number.
    """
    try:
        return torch.tensor([float(name) for name in classes], dtype=torch.float64)
    except ValueError:
        shown = ", ".join(map(str, classes[:5]))
        raise ModelError(
            f"{where} has the classes [{shown}{', …' if len(classes) > 5 else ''}], which are no numbers; index a table with "
            "--target-column"
        ) from None


def regression_loss(
    outputs: Tensor,
    batch: PackedBatch,
    numbers: Tensor,
    *,
    mixed: tuple[Tensor, Tensor] | None = None,
    image_weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Huber's loss of each image, summed: squares up to one unit, so that few odd numbers do not lead.

    Args:
        outputs: `[B, E, 1]`.
        batch: on the same device.
        numbers: f32 `[classes]`, what each label stands for, in the units of the outputs.
        mixed: see `classification_loss`; an image's number is mixed as its pixels are.
        image_weights: f32 `[B, E]`: what each image counts, mixed as well.
    """
    counts = learnt(batch, "softmax")
    wanted, worth = numbers[batch.labels[..., 0].clamp(min=0)], image_weights
    if mixed is not None:
        partner, share = mixed
        wanted = torch.lerp(wanted.gather(1, partner), wanted, share)
        worth = worth if worth is None else torch.lerp(worth.gather(1, partner), worth, share)
    each = F.huber_loss(outputs[..., 0].float().masked_fill(~counts, 0.0), wanted, reduction="none")
    return summed(weighed(each, worth), counts, image_weights)
