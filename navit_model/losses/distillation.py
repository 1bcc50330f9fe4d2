"""Losses against a teacher: what a larger or slower model says of the same images.

In: the student's and the teacher's logits `[B, E, classes]` and the batch. Out: `(sum, count)` as device scalars, as in
`losses`. Apart from the losses against labels, since no label is read here: unlabelled images are distilled too.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from navit_loader.batch import OK, PackedBatch
from navit_loader.errors import ModelError

from .classification import summed, weighed


def distillation_loss(
    student: Tensor,
    teacher: Tensor,
    batch: PackedBatch,
    *,
    kind: Literal["soft", "hard"] = "soft",
    temperature: float = 1.0,
    image_weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """How far the student is from its teacher, summed over images.

    `soft`: τ²·KL(softmax(teacher/τ) ‖ softmax(student/τ)) (DeiT, arXiv 2012.12877, section 4, equation 2; FlexiViT, arXiv
    2212.08013, with τ = 1). `hard`: cross-entropy against the teacher's likeliest class (DeiT, equation 3).

    Args:
        student: `[B, E, classes]`, float.
        teacher: `[B, E, classes]`, float; no gradient goes there.
        batch: on the same device.
        kind: `soft` or `hard`.
        temperature: τ, of `soft` alone.
        image_weights: f32 `[B, E]`: what each image counts.

    Returns:
        The sum over images with status `OK`, and their number, or the sum of their weights; both scalars on the device.

    Raises:
        ModelError: the teacher has another number of classes.
    """
    if student.shape != teacher.shape:
        raise ModelError(
            f"the student's logits are {tuple(student.shape)}, the teacher's {tuple(teacher.shape)}; "
            "take a teacher of the same classes"
        )
    counts = batch.status == OK
    student, teacher = (logits.float().masked_fill(~counts[..., None], 0.0) for logits in (student, teacher.detach()))
    if kind == "soft":
        target = (teacher / temperature).log_softmax(-1)
        given = (student / temperature).log_softmax(-1)
        each = F.kl_div(given, target, reduction="none", log_target=True).sum(-1) * temperature**2
    else:
        each = F.cross_entropy(student.flatten(0, 1), teacher.argmax(-1).flatten(), reduction="none").view_as(counts)
    return summed(weighed(each, image_weights), counts, image_weights)
