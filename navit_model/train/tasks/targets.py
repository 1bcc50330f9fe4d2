"""What tasks share that learn what stands where in an image: from boxes and masks, token by token.

In: batches with targets (`plan.targets`). Out: their checks before the first step, and rows of `TargetScore`. Apart from
classification, whose labels are of whole images: nothing is pooled here, and a loss is one of boxes or of cells.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import Tensor, nn

from navit_loader.batch import OK, PackedBatch
from navit_loader.errors import ConfigError, ModelError

from ...evaluate.drawn import PICTURES, Draw, write_pictures
from ...evaluate.targets import TargetScore, held_out_targets, target_table
from ...model.navit import NaViT
from ..feed import Loader
from ..settings import RunConfig
from ..task import Row, Task


class TargetTask(Task):
    """See the file's first lines; the module has the NaViT as its `model`."""

    section: ClassVar[str]
    """Of the configuration, whose `classes` are the index's."""
    needs: ClassVar[str]
    """What an index must have: `boxes`, `masks` or `regions`; see `held_out_targets`."""

    @classmethod
    def prepare(cls, run: RunConfig, loader: Loader) -> RunConfig:
        """The run with the number of classes that the loader knows, and no classifier."""
        classes, own = len(loader.classes), getattr(run, cls.section)
        if own.classes and own.classes != classes:
            raise ConfigError(
                f"{cls.section}.classes = {own.classes} is not allowed; the index has {classes} classes: leave the key out"
            )
        if run.model.classes:
            raise ConfigError(
                f"model.classes = {run.model.classes} is not allowed; {cls.section} pools nothing: leave it out"
            )
        if classes == 0:
            raise ConfigError(
                "the index has no classes to learn; index with --boxes or --masks that name them, or --classes"
            )
        targets = run.loader.plan.targets
        if targets is None and run.loader.data.endpoints:
            raise ConfigError(
                f"train.task = '{run.train.task}' with data.endpoints needs the daemons' whole [plan] here, since they do not "
                "tell of their plan.targets; give it"
            )
        if cls.needs != "masks" and (targets is None or not targets.boxes):
            raise ConfigError(f"train.task = '{run.train.task}' needs plan.targets.boxes = true")
        if cls.needs != "boxes" and (targets is None or not targets.masks):
            raise ConfigError(
                f"train.task = '{run.train.task}' needs plan.targets.masks, cells on a patch's side, such as 1"
            )
        kind = {"masks": "semantic", "regions": "regions"}.get(cls.needs)
        if targets is not None and kind is not None and targets.kind != kind:
            raise ConfigError(
                f"plan.targets.kind = '{targets.kind}' is not allowed for train.task = '{run.train.task}'; it must be '{kind}'"
            )
        return replace(run, model=replace(run.model, classes=0), **{cls.section: replace(own, classes=classes)})

    @classmethod
    def image_model(cls, module: nn.Module) -> NaViT:
        """What the head stands on."""
        assert isinstance(module.model, NaViT)
        return module.model

    @classmethod
    def tower(cls, run: RunConfig) -> NaViT:
        """A NaViT whose pooling stays as it is: nobody reads it, and ranks would wait for its gradients."""
        model = NaViT(run.model)
        if model.pool is not None:
            model.pool.requires_grad_(False)
        return model

    def check(self, batch: PackedBatch) -> None:
        """Boxes must be of the classes."""
        if batch.box_labels is not None and (batch.box_labels >= len(self.classes)).any():
            b = int(np.argwhere(batch.box_labels >= len(self.classes))[0][0])
            raise ModelError(
                f"sequence {batch.sequence + b} of epoch {batch.epoch} has a box of class {int(batch.box_labels[b].max())}, "
                f"but there are {len(self.classes)} classes; mend the index"
            )

    def count(self, batch: PackedBatch) -> Tensor:
        """Images that were read."""
        found: Tensor = (batch.status == OK).sum()
        return found

    def _asked(self) -> list[dict[str, Any]]:
        """Arguments of each score of `data.eval_index`, one for each of `train.eval_tokens`."""
        run, index = self.run, self.run.loader.data.eval_index
        common = {"index": index, "config": run.loader, "world": self.world, "classes": self.classes}
        return [{**common, "tokens": tokens} for tokens in run.train.eval_tokens or (None,)] if index else []

    def check_held_out(self, module: nn.Module) -> None:
        """Its boxes or masks, classes and budgets."""
        for asked in self._asked():
            held_out_targets(**asked, kind=self.needs).close()

    def evaluate(self, module: nn.Module) -> list[Row]:
        """A `TargetScore` for each of `train.eval_tokens` on `data.eval_index`, and pictures for the report."""
        every = self._asked()
        rows: list[Row] = [self.judge(module, asked) for asked in every]
        if every and self.world.rank == 0:
            largest = max(every, key=lambda asked: asked["tokens"] or 0)
            write_pictures(module, Path(self.run.train.out) / PICTURES, self.tell, {**largest, "kind": self.needs})
        return rows

    @abstractmethod
    def judge(self, module: nn.Module, asked: dict[str, Any]) -> TargetScore:
        """One score."""

    @abstractmethod
    def tell(self, outputs: Any, batch: PackedBatch) -> list[Draw]:
        """What draws each image with status `OK`; see `write_pictures`."""

    def score(self, row: Any) -> float:
        """Its first figure."""
        return float(row.main)

    def table(self, rows: Sequence[Any]) -> str:
        """See `target_table`."""
        return target_table(rows)
