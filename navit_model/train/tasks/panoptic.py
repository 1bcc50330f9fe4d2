"""Panoptic segmentation: a segment for each thing, and for the stuff between them, by a mask transformer with queries.

In: batches with masks of regions and their boxes (`plan.targets.kind = "regions"`). Out: the loss of queries and segments
matched one to one (MaskFormer, arXiv 2107.06278), and panoptic quality on the held-out index at each token budget.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn

from navit_loader.batch import PackedBatch
from navit_loader.errors import ConfigError

from ...evaluate.drawn import Draw, with_map
from ...evaluate.segmentation import judge_segments, segmented
from ...evaluate.targets import TargetScore
from ...losses.detection import objects_of
from ...losses.segmentation import region_loss
from ...model.segmenter import Regions, RegionSegmenter
from ..feed import Loader
from ..settings import RunConfig
from .targets import TargetTask


class Panoptic(TargetTask):
    """See the file's first lines; the module is a `RegionSegmenter`."""

    section, needs = "panoptic", "regions"

    @classmethod
    def prepare(cls, run: RunConfig, loader: Loader) -> RunConfig:
        """As for all of them; stuff must be of the classes."""
        for name in run.panoptic.stuff:
            if name not in loader.classes:
                raise ConfigError(
                    f"panoptic.stuff: the index has no class '{name}'; it must be one that navit-loader info shows"
                )
        return super().prepare(run, loader)

    @classmethod
    def build(cls, run: RunConfig) -> RegionSegmenter:
        """A NaViT with queries."""
        config = run.panoptic
        return RegionSegmenter(cls.tower(run), config.classes, config.queries, config.depth)

    def weigh(self, batch: PackedBatch, count: Tensor) -> Tensor:
        """Its segments."""
        return objects_of(batch)

    def loss(self, outputs: Regions, batch: PackedBatch) -> Tensor:
        """See `region_loss`."""
        total, _ = region_loss(outputs, batch)
        return total

    def judge(self, module: nn.Module, asked: dict[str, Any]) -> TargetScore:
        """By `judge_segments`."""
        return judge_segments(module, panoptic=self.run.panoptic, **asked)

    def tell(self, outputs: Regions, batch: PackedBatch) -> list[Draw]:
        """The map of segments."""
        things = [name not in self.run.panoptic.stuff for name in self.classes]
        every = segmented(outputs, batch, things, self.run.panoptic)
        return [partial(with_map, numbers=found.map.cpu().numpy(), void=0) for found in every]
