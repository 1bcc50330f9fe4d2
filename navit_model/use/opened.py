"""A trained model, opened for use: whatever the path, evaluation, probing, embedding and prediction see the same thing.

In: a run's folder, a checkpoint, or a folder of `save_pretrained`. Out: the module on a device, its image model, the names
of its classes, and how images are to be planned for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from navit_loader.batch import PackedBatch
from navit_loader.config import LoaderConfig, PlanConfig
from navit_loader.errors import ModelError

from ..config import NaViTConfig
from ..evaluate.regression import predict_numbers
from ..model.check import TABLES
from ..model.navit import NaViT
from ..model.towers import TwoTowers
from ..train.checkpoint import open_checkpoint, steps
from ..train.settings import RunConfig
from ..train.tasks import task_of
from ..weights.saved import CONFIG
from ..world import halved
from .zero_shot import ZeroShot


@dataclass(frozen=True, slots=True)
class OpenedModel:
    """A model ready for use.

    Attributes:
        path: what was opened.
        run: the configuration of its training; for a saved model the default one, with its `[model]` and `[plan]`.
        module: what was trained, in evaluation mode.
        model: the image model within `module`.
        classes: names of the classes; numbers where names are not known.
        classifier: maps a batch to logits of the classes; None where the model has none.
    """

    path: Path
    run: RunConfig
    module: nn.Module
    model: NaViT
    classes: list[str]
    classifier: nn.Module | None

    @property
    def device(self) -> torch.device:
        """Where the model lies."""
        return next(self.model.parameters()).device

    @property
    def patch_sizes(self) -> tuple[int, ...]:
        """The patch sizes that it was trained for."""
        return self.run.loader.plan.patch_sizes

    def check_patch_size(self, patch_size: int) -> None:
        """Refuses one that the model does not take.

        Raises:
            ModelError: names those that it takes.
        """
        takes = self.model.config.patch_sizes or (self.model.config.patch_size,)
        if patch_size not in takes:
            raise ModelError(f"'{self.path}' takes patches of {', '.join(map(str, takes))} pixels, not of {patch_size}")

    @torch.inference_mode()
    def embed(self, batch: PackedBatch) -> Tensor:
        """One vector for each image slot, f32 `[B, E, D]`: what the task takes for an image's features."""
        with halved(self.device):
            return task_of(self.run).embed(self.module, batch.to(self.device)).float()

    @property
    def regresses(self) -> bool:
        """Whether it predicts a number, in the place of classes."""
        return self.run.train.task == "regression"

    @property
    def places(self) -> bool:
        """Whether it says where things are, by boxes, maps or segments, in the place of what an image shows."""
        return self.run.train.task in ("detection", "segmentation", "panoptic")

    @property
    def boxes(self) -> bool:
        """Whether it finds boxes."""
        return self.run.train.task == "detection"

    @property
    def several(self) -> bool:
        """Whether an image may be of several classes, or of none: one sigmoid a class."""
        return self.run.train.loss == "sigmoid" and self.classifier is self.model and not self.regresses

    @torch.inference_mode()
    def numbers(self, batch: PackedBatch) -> Tensor:
        """The number of each image (f64 `[B, E]`) of a model that `regresses`; void where its status is not `OK`."""
        unit = self.run.regression
        return predict_numbers(self.model, batch, self.device, unit.mean, unit.std)

    @torch.inference_mode()
    def chances(self, batch: PackedBatch) -> Tensor:
        """Class probabilities, f32 `[B, E, classes]`; rows whose status is not `OK` mean nothing.

        Raises:
            ModelError: there is no classifier.
        """
        if self.regresses:
            raise ModelError(f"'{self.path}' predicts a number, and has no classes")
        if self.classifier is None:
            raise ModelError(
                f"'{self.path}' has no classifier; for a contrastive model give names of classes (--labels)"
            )
        with halved(self.device):
            logits: Tensor = self.classifier(batch.to(self.device)).float()
        return logits.sigmoid() if self.several else logits.softmax(-1)

    def with_classes(self, names: Sequence[str], templates: Sequence[str], tokenizer: str | None) -> OpenedModel:
        """The same, with a classifier made of names; see `ZeroShot`.

        Raises:
            ModelError: no contrastive model, another tokenizer, or a template without `{}`.
        """
        if not isinstance(self.module, TwoTowers):
            raise ModelError(f"'{self.path}' is no contrastive model (train.task = '{self.run.train.task}')")
        zero_shot = ZeroShot(self.module, names, templates, tokenizer).to(self.device)
        return replace(self, classes=list(names), classifier=zero_shot)


def open_model(
    path: str | Path, device: torch.device | str = "cpu", *, raw: bool = False, last: bool = False
) -> OpenedModel:
    """Opens what a training run or `save_pretrained` left.

    Args:
        path: a run's folder, one of its checkpoints, or a saved model's folder.
        device: where to put it.
        raw: take the weights themselves where a moving average was kept.
        last: take the newest checkpoint of a run that keeps its best one too.

    Raises:
        ModelError: there is no model, or it is damaged.
    """
    path = Path(path)
    if not steps(path) and not (path / "state.json").exists() and (path / CONFIG).exists():
        model = NaViT.from_pretrained(path).to(device)
        _check_finite(model, path)
        run = RunConfig(loader=LoaderConfig(plan=plan_for(model.config)), model=model.config)
        names = [str(n) for n in range(model.config.classes)]
        return OpenedModel(path, run, model, model, names, model if names else None)
    saved = open_checkpoint(path, last=last)
    module = saved.module(average=not raw).to(device)
    _check_finite(module, saved.path)
    model = task_of(saved.config).image_model(module)
    classifier = model if model.config.classes else None
    return OpenedModel(saved.path, saved.config, module, model, saved.classes, classifier)


def _check_finite(module: nn.Module, path: Path) -> None:
    """Refuses weights that ran away, whose answers would mean nothing."""
    for name, value in module.state_dict().items():
        if value.is_floating_point() and not value.isfinite().all():
            raise ModelError(
                f"weight '{name}' of '{path}' is not finite; training ran away: take an earlier checkpoint"
            )


def plan_for(config: NaViTConfig) -> PlanConfig:
    """A plan whose batches a model takes: its patch sizes, prefix tokens and largest grid; all else by default."""
    plan = PlanConfig(
        patch_sizes=config.patch_sizes or (config.patch_size,),
        prefix_tokens=config.prefix_tokens,
        max_tokens=256 + config.prefix_tokens,
    )
    return replace(plan, max_grid=min(plan.max_grid, config.max_grid)) if config.positions in TABLES else plan
