"""Detection: a box and a class for each object, as OWL-ViT (arXiv 2205.06230) with one learnt query for each class.

In: batches with boxes (`plan.targets.boxes`). Out: focal, L1 and GIoU loss of proposals and boxes matched one to one, and
COCO's AP on the held-out index at each token budget.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn

from navit_loader.batch import PackedBatch

from ...evaluate.average_precision import check_pycocotools
from ...evaluate.detection import judge_boxes
from ...evaluate.drawn import Draw, with_boxes
from ...evaluate.targets import TargetScore
from ...losses.detection import detection_loss, objects_of
from ...model.owl import Detector, Proposals, best_of
from ..settings import RunConfig
from .targets import TargetTask

LEAST, SHOWN = 0.3, 30
"""Of the boxes in a picture: the least score, and how many at most."""


class Detection(TargetTask):
    """See the file's first lines; the module is a `Detector`."""

    section, needs = "detection", "boxes"

    @classmethod
    def build(cls, run: RunConfig) -> Detector:
        """A NaViT with a head for boxes."""
        return Detector(cls.tower(run), run.detection.classes, run.detection.prior)

    def weigh(self, batch: PackedBatch, count: Tensor) -> Tensor:
        """Its objects."""
        return objects_of(batch)

    def loss(self, outputs: Proposals, batch: PackedBatch) -> Tensor:
        """See `detection_loss`."""
        config = self.run.detection
        total, _ = detection_loss(outputs, batch, box=config.box, overlap=config.overlap, classes=config.named)
        return total

    def check_held_out(self, module: nn.Module) -> None:
        """What scores need, pycocotools among it."""
        if self.run.loader.data.eval_index:
            check_pycocotools()
        super().check_held_out(module)

    def judge(self, module: nn.Module, asked: dict[str, Any]) -> TargetScore:
        """By `judge_boxes`."""
        return judge_boxes(module, **asked)[0]

    def tell(self, outputs: Proposals, batch: PackedBatch) -> list[Draw]:
        """The boxes of some score."""
        found: list[Draw] = []
        for each in best_of(outputs, batch, SHOWN):
            told = zip(each["queries"].tolist(), each["scores"].tolist(), each["boxes"].tolist(), strict=True)
            boxes = [(self.classes[kind], kind, score, tuple(box)) for kind, score, box in told if score >= LEAST]
            found.append(partial(with_boxes, boxes=boxes))
        return found
