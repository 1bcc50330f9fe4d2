"""Classification: one label, or several, for each image.

In: batches with labels. Out: cross-entropy, and accuracy and calibration on the held-out index at each token budget.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from navit_loader import PackedLoader, open_index
from navit_loader.batch import NO_CLASS, PackedBatch
from navit_loader.errors import ConfigError, ModelError

from ...evaluate.classification import evaluate, held_out, other_classes, score_table
from ...losses.classification import classification_loss, learnt
from ...model.navit import NaViT
from ...world import World
from ..feed import Loader, learnt_labels, learnt_weights
from ..mix import Mixing, mix, mixing
from ..settings import RunConfig
from ..task import OpenImageModel, Row, Task


class Classification(Task):
    """See the file's first lines; the module is a `NaViT` with a classifier."""

    weighs = True

    def __init__(self, run: RunConfig, classes: Sequence[str], world: World, open_image_model: OpenImageModel) -> None:
        super().__init__(run, classes, world, open_image_model)
        given = run.train.class_weights
        # `prepare` left a table.
        table = given if isinstance(given, dict) else {}
        self._weights = torch.tensor([table.get(name, 1.0) for name in classes], device=world.device) if table else None

    @classmethod
    def prepare(cls, run: RunConfig, loader: Loader) -> RunConfig:
        """The run with the number of classes that the loader knows."""
        classes = len(loader.classes)
        if run.model.classes and run.model.classes != classes:
            raise ConfigError(
                f"model.classes = {run.model.classes} is not allowed; the index has {classes} classes: leave the key out"
            )
        if classes == 0:
            raise ConfigError("the index has no classes to learn; index a folder with one folder per class")
        data = run.loader.data
        if data.eval_index and (held := open_index(data.eval_index).classes) != list(loader.classes):
            train = data.index or next((source.index for source in data.mixture), "")
            raise ConfigError(other_classes(data.eval_index, held, loader.classes, train))
        weights = run.train.class_weights
        if weights == "balanced":
            weights = _balanced(loader, run.train.loss == "sigmoid")
        elif unknown := [name for name in weights if name not in loader.classes]:
            raise ConfigError(f"train.class_weights.{unknown[0]}: the index has no class of that name")
        return replace(run, model=replace(run.model, classes=classes), train=replace(run.train, class_weights=weights))

    @classmethod
    def build(cls, run: RunConfig) -> NaViT:
        """A `NaViT`. Its sigmoids start at one in C each, not at one half: of C − 1 classes an image is none."""
        model = NaViT(run.model)
        if run.train.loss == "sigmoid" and run.model.classes > 1:
            assert isinstance(model.head, nn.Linear)
            nn.init.constant_(model.head.bias, -math.log(run.model.classes - 1))
        return model

    @classmethod
    def image_model(cls, module: nn.Module) -> NaViT:
        """The module itself."""
        assert isinstance(module, NaViT)
        return module

    def check(self, batch: PackedBatch) -> None:
        """Labels must be of the classes."""
        if (batch.labels >= len(self.classes)).any():
            at = tuple(int(v) for v in np.argwhere(batch.labels >= len(self.classes))[0])
            raise ModelError(
                f"image {int(batch.image_ids[at[:2]])} of index {int(batch.source_ids[at[:2]])} has the label "
                f"{int(batch.labels[at])}, but there are {len(self.classes)} classes; mend the index"
            )

    def notes(self, loader: Loader) -> list[str]:
        """That a softmax does not learn all labels of the data, where it does not."""
        if self.run.train.loss != "softmax" or not isinstance(loader, PackedLoader):
            return []
        several = none = 0
        for index in loader.engine.indexes:
            labels = index.labels()
            several += int(((labels >= 0).sum(1) > 1).sum())
            none += int((labels[:, 0] == NO_CLASS).sum())
        if not several and not none:
            return []
        return [
            f"train.loss = 'softmax' learns one class of each image: of the {several:,} images with several labels the lowest, "
            f"of the {none:,} known to be of no class nothing; 'sigmoid' learns all"
        ]

    def _mixing(self, batch: PackedBatch) -> Mixing | None:
        """How its images are mixed: a function of the batch's place in the plan, so what was done is not carried along."""
        config = self.run.train
        return mixing(batch, learnt(batch, config.loss), config.mix, config.seed) if config.mix.on else None

    def augment(self, batch: PackedBatch) -> PackedBatch:
        """`[train.augment]` first, each image by itself, then `[train.mix]`."""
        batch, mixed = super().augment(batch), self._mixing(batch)
        return batch if mixed is None else mix(batch, mixed)

    def counted(self, batch: PackedBatch) -> Tensor:
        """bool `[B, E]`: images that were read and have a label."""
        return learnt(batch, self.run.train.loss)

    def count(self, batch: PackedBatch) -> Tensor:
        """How many images have a loss."""
        return self.counted(batch).sum()

    def image_weights(self, batch: PackedBatch) -> Tensor | None:
        """f32 `[B, E]`, what each image counts; None where all count 1."""
        return None if self.worth is None else self.worth(batch)

    def weigh(self, batch: PackedBatch, count: Tensor) -> Tensor:
        """The sum of their weights."""
        weights = self.image_weights(batch)
        return count if weights is None else weights.where(self.counted(batch), 0.0).sum()

    def loss(self, outputs: Tensor, batch: PackedBatch) -> Tensor:
        """Softmax or sigmoid cross-entropy, summed over the images."""
        config = self.run.train
        mixed = self._mixing(batch)
        total, _ = classification_loss(
            outputs.float(),
            batch,
            kind=config.loss,
            label_smoothing=config.label_smoothing,
            mixed=None if mixed is None else (mixed.partner, mixed.share),
            weights=self._weights,
            image_weights=self.image_weights(batch),
        )
        return total

    def _asked(self) -> list[dict[str, Any]]:
        """Arguments of each score of `data.eval_index`, one for each of `train.eval_tokens`."""
        run, index = self.run, self.run.loader.data.eval_index
        common = {"index": index, "config": run.loader, "world": self.world, "classes": self.classes}
        common["sigmoid"] = run.train.loss == "sigmoid"
        return [{**common, "tokens": tokens} for tokens in run.train.eval_tokens or (None,)] if index else []

    def check_held_out(self, module: nn.Module) -> None:
        """Its classes, labels and budgets."""
        for asked in self._asked():
            held_out(**asked).close()

    def evaluate(self, module: nn.Module) -> list[Row]:
        """A `Score` for each of `train.eval_tokens` on `data.eval_index`."""
        return [evaluate(module, **asked) for asked in self._asked()]

    def score(self, row: Any) -> float:
        """The accuracy."""
        return float(row.accuracy)

    def table(self, rows: Sequence[Any]) -> str:
        """See `score_table`."""
        return score_table(rows)


def _balanced(loader: Loader, sigmoid: bool) -> dict[str, float]:
    """For each class that images have, all labels over classes times its own: 1 in the mean over the labels. An image counts by
    its weight, where the index has weights."""
    if not isinstance(loader, PackedLoader):
        raise ConfigError(
            "train.class_weights = 'balanced' needs data.index, since daemons do not tell how many images a class has; give a "
            "table of weights"
        )
    # Softmax learns the first label alone.
    labels = learnt_labels(loader)[:, : None if sigmoid else 1]
    weights = np.broadcast_to(learnt_weights(loader)[:, None], labels.shape)
    counts = np.bincount(labels[labels >= 0], weights[labels >= 0], minlength=len(loader.classes))
    share = counts.sum() / max(1, int((counts > 0).sum()))
    return {name: float(share / n) for name, n in zip(loader.classes, counts, strict=True) if n}
