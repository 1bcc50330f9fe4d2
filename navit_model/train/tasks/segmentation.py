"""Semantic segmentation: a class for each pixel, by Segmenter (arXiv 2105.05633).

In: batches with masks of classes (`plan.targets.masks`). Out: cross-entropy of each labelled cell, and mean overlap on the
held-out index at each token budget.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn

from navit_loader.batch import PackedBatch

from ...evaluate.drawn import Draw, with_map
from ...evaluate.segmentation import judge_maps
from ...evaluate.targets import TargetScore
from ...losses.segmentation import segmentation_loss, side_of
from ...model.dense import likeliest
from ...model.segmenter import LinearSegmenter, Segmenter
from ..settings import RunConfig
from .targets import TargetTask


class Segmentation(TargetTask):
    """See the file's first lines; the module is a `Segmenter` or a `LinearSegmenter`."""

    section, needs = "segmentation", "masks"

    @classmethod
    def build(cls, run: RunConfig) -> nn.Module:
        """A NaViT with the head of `segmentation.head`."""
        config, model = run.segmentation, cls.tower(run)
        if config.head == "linear":
            return LinearSegmenter(model, config.classes)
        return Segmenter(model, config.classes, config.depth)

    def weigh(self, batch: PackedBatch, count: Tensor) -> Tensor:
        """Its labelled cells."""
        side_of(batch)
        assert batch.masks is not None
        return (batch.masks >= 0).sum()  # type: ignore[no-any-return]

    def loss(self, outputs: Tensor, batch: PackedBatch) -> Tensor:
        """See `segmentation_loss`."""
        total, _ = segmentation_loss(outputs, batch)
        return total

    def judge(self, module: nn.Module, asked: dict[str, Any]) -> TargetScore:
        """By `judge_maps`."""
        return judge_maps(module, **asked)

    def tell(self, outputs: Tensor, batch: PackedBatch) -> list[Draw]:
        """The map of classes."""
        return [partial(with_map, numbers=found.cpu().numpy()) for found in likeliest(outputs, batch)]
