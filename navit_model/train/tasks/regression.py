"""Regression: a number for each image.

In: batches whose labels name numbers (`navit-loader index --target-column`). Out: Huber's loss in units of the numbers' own
spread, and MAE and R² on the held-out index at each token budget. The head has one output; `[regression]` of a checkpoint says
which number it means.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor, nn

from navit_loader import PackedLoader
from navit_loader.batch import PackedBatch
from navit_loader.errors import ConfigError

from ...evaluate.regression import held_out_numbers, judge_numbers, regression_table
from ...losses.regression import numbers_of, regression_loss
from ...world import World
from ..feed import Loader, learnt_labels
from ..settings import RunConfig
from ..task import OpenImageModel, Row
from .classification import Classification


class Regression(Classification):
    """See the file's first lines. Labels, mixing and the images that count are those of a classification by softmax."""

    def __init__(self, run: RunConfig, classes: Sequence[str], world: World, open_image_model: OpenImageModel) -> None:
        super().__init__(run, classes, world, open_image_model)
        unit = run.regression
        self._wanted = ((numbers_of(classes, "the index") - unit.mean) / unit.std).float().to(world.device)

    @classmethod
    def prepare(cls, run: RunConfig, loader: Loader) -> RunConfig:
        """The run with one output, and with mean and standard deviation of the numbers; of daemons' data those of the
        different numbers, since they do not tell how many images have each."""
        if run.model.classes > 1:
            raise ConfigError(
                f"model.classes = {run.model.classes} is not allowed; a number is one output: leave the key out"
            )
        numbers = numbers_of(loader.classes, "the index").numpy()
        unit = run.regression
        if not unit.std:
            if isinstance(loader, PackedLoader):
                labels = learnt_labels(loader)
                numbers = numbers[labels[labels >= 0]]
            if len(np.unique(numbers)) < 2:
                raise ConfigError(
                    "the index has fewer than two different numbers to learn; index a table with --target-column"
                )
            unit = replace(unit, mean=float(numbers.mean()), std=float(numbers.std()))
        return replace(run, model=replace(run.model, classes=1), regression=unit)

    def notes(self, loader: Loader) -> list[str]:
        """In which unit the loss is."""
        unit = self.run.regression
        return [f"numbers are learnt as (number − {unit.mean:g}) / {unit.std:g}, and so is the loss to be read"]

    def loss(self, outputs: Tensor, batch: PackedBatch) -> Tensor:
        """Huber's, summed over the images."""
        mixed = self._mixing(batch)
        total, _ = regression_loss(
            outputs,
            batch,
            self._wanted,
            mixed=None if mixed is None else (mixed.partner, mixed.share),
            image_weights=self.image_weights(batch),
        )
        return total

    def _asked(self) -> list[dict[str, Any]]:
        return [{key: each[key] for key in ("index", "config", "world", "tokens")} for each in super()._asked()]

    def check_held_out(self, module: nn.Module) -> None:
        """Its numbers and budgets."""
        for asked in self._asked():
            held_out_numbers(**asked).close()

    def evaluate(self, module: nn.Module) -> list[Row]:
        """A `RegressionScore` for each of `train.eval_tokens` on `data.eval_index`."""
        unit = self.run.regression
        return [judge_numbers(module, mean=unit.mean, std=unit.std, **asked)[0] for asked in self._asked()]

    def score(self, row: Any) -> float:
        """R²."""
        return float(row.r2)

    def table(self, rows: Sequence[Any]) -> str:
        """See `regression_table`."""
        return regression_table(rows)
