"""Semantic segmentation: a class for each pixel, by Segmenter (arXiv 2105.05633).

In: batches with masks of classes (`plan.targets.masks`). Out: cross-entropy of each labelled cell, and mean overlap on the
held-out index at each token budget.
"""

from __future__ import annotations

from torch import Tensor, nn

from navit_loader.batch import PackedBatch

from ...evaluate.segmentation import judge_maps
from ...losses.segmentation import segmentation_loss, side_of
from ...model.segmenter import LinearSegmenter, Segmenter
from ..settings import RunConfig
from ..task import Row
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

    def weigh(self, batch: PackedBatch) -> Tensor:
        """Its labelled cells."""
        side_of(batch)
        return (batch.masks >= 0).sum()  # type: ignore[no-any-return, operator]

    def loss(self, outputs: Tensor, batch: PackedBatch) -> Tensor:
        """See `segmentation_loss`."""
        total, _ = segmentation_loss(outputs, batch)
        return total

    def evaluate(self, module: nn.Module) -> list[Row]:
        """By `judge_maps`."""
        return [judge_maps(module, **asked) for asked in self._asked()]
