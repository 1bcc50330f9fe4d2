"""Distillation: a student learns what a frozen teacher says of the same images, beside labels or without them.

In: batches with the teacher's own view (`[plan.teacher]`: its patch size, nothing dropped, the same crop and flip) and a
teacher's checkpoint. Out: FlexiViT's or DeiT's loss; scores as in classification.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from navit_loader.batch import OK, PackedBatch
from navit_loader.errors import ConfigError, ModelError
from navit_loader.schema import require

from ...losses.classification import classification_loss
from ...losses.distillation import distillation_loss
from ...model.check import check_batch
from ...model.navit import NaViT
from ...world import World, autocast
from ..begin import take_over
from ..feed import Loader
from ..flops import batch_flops
from ..settings import RunConfig
from ..task import OpenImageModel, Row
from .classification import Classification


class Student(nn.Module):
    """A NaViT whose training needs the logits of the class and of the distillation token apart."""

    def __init__(self, model: NaViT) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: PackedBatch) -> tuple[Tensor, Tensor]:
        """Logits against labels and against the teacher, each f32 `[B, E, classes]`; one and the same without that token."""
        if self.model.config.distill_token:
            return self.model.forward_distilled(batch)
        logits: Tensor = self.model(batch)
        return logits, logits


class Distillation(Classification):
    """See the file's first lines; the module is a `Student`."""

    def __init__(self, run: RunConfig, classes: Sequence[str], world: World, open_image_model: OpenImageModel) -> None:
        """Opens the teacher.

        Raises:
            ModelError: there is no teacher, or it knows other classes.
        """
        super().__init__(run, classes, world, open_image_model)
        teacher, known = open_image_model(run.distillation.teacher)
        self.teacher = teacher.requires_grad_(False).to(world.device)
        if known != self.classes:
            raise ModelError(
                f"the teacher '{run.distillation.teacher}' knows other classes than the index has; "
                "index the folder it was trained on"
            )

    @classmethod
    def prepare(cls, run: RunConfig, loader: Loader) -> RunConfig:
        """As classification, with a teacher and its view."""
        # Not where settings are read: runs before this rule had weights that did nothing, and are still used.
        weights = run.train.class_weights
        without = "left out where distillation.weight = 1, since no label is learnt there"
        require(run.distillation.weight < 1 or not weights, "train.class_weights", weights, without)
        if not run.distillation.teacher:
            raise ConfigError("distillation.teacher = '' is not allowed; give a run's folder or one of its checkpoints")
        if run.loader.plan.teacher is None and not run.loader.data.endpoints:
            raise ConfigError(
                "distillation needs the teacher's own view of the images; set [plan.teacher] with its patch_size, "
                "sequence_length, max_tokens and prefix_tokens"
            )
        return super().prepare(run, loader)

    @classmethod
    def build(cls, run: RunConfig) -> Student:  # type: ignore[override]
        """A student."""
        return Student(NaViT(run.model))

    @classmethod
    def begin(cls, run: RunConfig, module: nn.Module, open_image_model: OpenImageModel) -> None:
        """Starts the student from the teacher's weights with `distillation.from_teacher`."""
        if run.distillation.from_teacher:
            path = run.distillation.teacher
            take_over(cls.image_model(module), open_image_model(path)[0], path)

    @classmethod
    def image_model(cls, module: nn.Module) -> NaViT:
        """The student's model."""
        assert isinstance(module, Student)
        return module.model

    def check(self, batch: PackedBatch) -> None:
        """Labels must be of the classes, and the teacher's view one that the teacher takes."""
        super().check(batch)
        if batch.teacher is None:
            raise ModelError("the batches have no view for the teacher; set [plan.teacher] where they are planned")
        try:
            check_batch(self.teacher.config, batch.teacher)
        except ModelError as e:
            raise ModelError(f"in the teacher's view ([plan.teacher]): {e}") from None

    def counted(self, batch: PackedBatch) -> Tensor:
        """bool `[B, E]`: images that were read; no label is needed."""
        found: Tensor = batch.status == OK
        return found

    def loss(self, outputs: tuple[Tensor, Tensor], batch: PackedBatch) -> Tensor:  # type: ignore[override]
        """(1 − w) of the loss against labels and w of that against the teacher, summed over the images."""
        train, config = self.run.train, self.run.distillation
        by_label, by_teacher = outputs
        with torch.no_grad(), autocast(self.world.device, train.precision):
            target = self.teacher(batch.teacher)
        worth = self.image_weights(batch)
        total, _ = distillation_loss(
            by_teacher, target, batch, kind=config.kind, temperature=config.temperature, image_weights=worth
        )
        if config.weight == 1:
            return total
        labelled, _ = classification_loss(
            by_label,
            batch,
            kind=train.loss,
            label_smoothing=train.label_smoothing,
            weights=self._weights,
            image_weights=worth,
        )
        return labelled * (1 - config.weight) + total * config.weight

    def flops(self, module: nn.Module, batch: PackedBatch) -> Tensor:
        """The student's step, and the teacher's forward pass over its own view."""
        assert batch.teacher is not None
        return super().flops(module, batch) + batch_flops(self.teacher.config, batch.teacher)

    def evaluate(self, module: nn.Module) -> list[Row]:
        """As classification, of the model alone."""
        return super().evaluate(self.image_model(module))
