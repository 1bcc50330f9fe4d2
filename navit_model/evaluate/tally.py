"""What a model said of each image of an index, gathered batch by batch.

In: class probabilities of images, in any order, over any number of ranks. Out: `Answers`, and the sums that scores are made of.
Apart from the passes that fill it: one over an index as it is, one over each corruption of its images. Nothing here waits for
the device before `end`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from navit_loader.batch import FAILED, NO_CLASS, OK, PackedBatch
from navit_loader.errors import ModelError

from ..model.pool import members
from ..world import World
from .cascade import Answers

BINS = 30
"""Bins of the expected calibration error."""


class Tally:
    """Filled by `add`, summed over the ranks by `end`; the figures are read after that.

    Args:
        rows: images of the index.
        device: where the probabilities are.
        sigmoid: see `predict`.
        keep: classes, to keep all probabilities and labels; 0 keeps none.
        labels: K, label columns.

    Attributes:
        right, read, failed, seen: images that were answered rightly; labelled ones that were read; labelled ones that could not
            be; all that were read.
    """

    def __init__(self, rows: int, device: torch.device, *, sigmoid: bool, keep: int = 0, labels: int = 1) -> None:
        self._sigmoid = sigmoid
        # sums over the images: right, ok, failed, seen, without an answer; then per bin: count, confidence, right
        self._totals = torch.zeros(5, dtype=torch.float64, device=device)
        self._bins = torch.zeros(3, BINS, dtype=torch.float64, device=device)
        # for each image: probability, right, tokens, labelled
        self._answers = torch.zeros(4, rows, device=device)
        # on each rank alike, one without images among them, as they are summed
        self._kept = [torch.zeros(rows, width, device=device) for width in ((keep, labels) if keep else ())]
        self.right = self.read = self.failed = self.seen = 0.0

    def add(self, batch: PackedBatch, chances: Tensor) -> None:
        """Takes the images of a batch, whose `image_ids` are rows of the index.

        Args:
            batch: in numpy.
            chances: f32 `[B, E, classes]` on the device, of `predict`.
        """
        device = chances.device
        labels = torch.from_numpy(batch.labels).to(device)
        status = torch.from_numpy(batch.status).to(device)
        chance, guess = chances.max(-1)
        lost = chance.isnan() & (status == OK)
        chance = chance.nan_to_num(0.0)
        none = (labels[..., 0] == NO_CLASS) & self._sigmoid
        judged = (labels[..., 0] >= 0) | none
        ok = (status == OK) & judged
        hit = ok & (labels == guess[..., None]).any(-1)
        right = hit | (ok & none & (chance < 0.5))
        failed = (status == FAILED) & judged
        self._totals += torch.stack([right.sum(), ok.sum(), failed.sum(), (status == OK).sum(), lost.sum()])
        place = (chance * BINS).long().clamp(max=BINS - 1)[ok]
        for bin_, value in zip(self._bins, (torch.ones_like(chance), chance, hit), strict=True):
            bin_.index_add_(0, place, value[ok].double())
        there = (status == FAILED) | ok
        row = torch.from_numpy(batch.image_ids).to(device)[there]
        took = members(torch.from_numpy(batch.segment_ids).to(device), status.shape[1], torch.float32).sum(-1)
        self._answers[:, row] = torch.stack([chance * ok, right.float(), took, judged.float()])[:, there]
        if self._kept:
            self._kept[0][row] = (chances * ok[..., None])[there]
            self._kept[1][row] = labels[there].float()

    def end(self, world: World, index: str) -> Answers:
        """Sums over the ranks; every rank calls it once.

        Raises:
            ModelError: the model's answers are no numbers.
        """
        for value in (self._totals, self._bins, self._answers, *self._kept):
            world.sum(value)
        self.right, self.read, self.failed, self.seen, lost = self._totals.tolist()
        if lost:
            raise ModelError(
                f"the model has no answer (NaN) for {int(lost):,} of {int(self.seen):,} images of '{index}'; its weights ran "
                "away or are damaged: take an earlier checkpoint"
            )
        return Answers(*self._answers.cpu(), *(value.cpu() for value in self._kept))

    @property
    def accuracy(self) -> float:
        """Share of the labelled images."""
        return self.right / (self.read + self.failed)

    @property
    def ece(self) -> float:
        """Expected calibration error of the likeliest class, over the images that were read."""
        count, confidence, correct = self._bins.cpu()
        return float((confidence - correct).abs().sum() / count.sum().clamp(min=1))
