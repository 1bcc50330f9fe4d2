"""Losses over packed images: summed, so that the trainer can divide by the global number of images.

In: logits `[B, E, classes]` and the batch. Out: `(sum, count)` as device scalars; images that are absent, failed or
unlabelled count for nothing, and what stands in their slots never reaches a gradient.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from navit_loader.batch import NO_CLASS, OK, PackedBatch
from navit_loader.errors import ModelError


def learnt(batch: PackedBatch, kind: Literal["softmax", "sigmoid"]) -> Tensor:
    """bool `[B, E]`: images that were read and have a label; for sigmoid also those that are known to be of no class."""
    first = batch.labels[..., 0]
    labelled = first >= 0
    if kind == "sigmoid":
        labelled = labelled | (first == NO_CLASS)
    found: Tensor = (batch.status == OK) & labelled
    return found


def classification_loss(
    logits: Tensor,
    batch: PackedBatch,
    *,
    kind: Literal["softmax", "sigmoid"] = "softmax",
    label_smoothing: float = 0.0,
    mixed: tuple[Tensor, Tensor] | None = None,
    weights: Tensor | None = None,
    image_weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each image, summed.

    Args:
        logits: `[B, E, classes]`, float.
        batch: on the same device; `labels` `[B, E, K]`. Softmax takes the first label, sigmoid any number of them, none among
            them (`NO_CLASS`).
        kind: `softmax`, or `sigmoid`: one binary decision per class, summed over the classes (NaViT, section 3).
        label_smoothing: share of the target that is spread over all classes.
        mixed: of images that were mixed with others of their sequence (mixup, cutmix): i64 `[B, E]`, the slot of the other,
            whose labels have the rest of the loss, and f32 `[B, E]`, the share of the image's own.
        weights: f32 `[classes]`: what an image of each class counts; of sigmoids, the decision of one that is of the class.
        image_weights: f32 `[B, E]`: what each image counts. One that is mixed counts for its own labels by its own weight, for
            the other's by the other's.

    Returns:
        The sum over images with status `OK` and a label, and their number, or the sum of their weights; both scalars on the
        device.

    Raises:
        ModelError: a label beyond the classes, where the batch lies on the host; `Classification.check` looks at every
            batch there, before it goes to a device.
    """
    classes = logits.shape[-1]
    on_host = batch.labels.device.type == "cpu" and not torch.compiler.is_compiling()
    if on_host and batch.labels.numel() and (most := int(batch.labels.max())) >= classes:
        raise ModelError(f"an image has the label {most}, but there are {classes} classes; mend the index")
    counts = learnt(batch, kind)
    logits = logits.float().masked_fill(~counts[..., None], 0.0)

    def against(labels: Tensor) -> Tensor:
        """The loss of each image against labels `[B, E, K]`."""
        if kind == "softmax":
            target = labels[..., 0].masked_fill(~counts, 0)
            found = F.cross_entropy(
                logits.flatten(0, 1), target.flatten(), reduction="none", label_smoothing=label_smoothing
            ).view_as(counts)
            return found if weights is None else found * weights[target]
        known = (labels >= 0).to(logits.dtype)
        hot = torch.zeros_like(logits).scatter_reduce(-1, labels.clamp(min=0), known, "amax")
        hot = hot * (1 - label_smoothing) + label_smoothing / classes
        return F.binary_cross_entropy_with_logits(logits, hot, reduction="none", pos_weight=weights).sum(-1)

    each = weighed(against(batch.labels), image_weights)
    if mixed is not None:
        partner, share = mixed
        theirs = batch.labels.gather(1, partner[..., None].expand_as(batch.labels))
        beside = None if image_weights is None else image_weights.gather(1, partner)
        each = share * each + (1 - share) * weighed(against(theirs), beside)
    return summed(each, counts, image_weights)


def weighed(each: Tensor, image_weights: Tensor | None) -> Tensor:
    """Losses `[B, E]` times what each image counts, where that is given."""
    return each if image_weights is None else each * image_weights


def summed(each: Tensor, counts: Tensor, image_weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """The sum of the losses `[B, E]` that count (bool `[B, E]`), weighed already, and the number of these images or the sum of
    their weights."""
    count = counts.sum() if image_weights is None else image_weights.where(counts, 0.0).sum()
    return torch.where(counts, each, 0.0).sum(), count
