"""How well maps of classes agree: mean intersection over union, and pixel accuracy.

In: for each image the class of each pixel, as it is and as it was told. Out: the figures over all of them. Apart from the pass
that asks a model (`segmentation`), as maps may come from anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(slots=True)
class Overlap:
    """Counts of pixels, filled by `add`; several are summed by their `counts`.

    Attributes:
        classes: K.
        device: where the maps are.
        counts: i64 `[K, K + 1]`, pixels of a class by what was told of them; the last column is of those that nothing was told
            of, as of an image that could not be read.
    """

    classes: int
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    counts: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.counts = torch.zeros(self.classes, self.classes + 1, dtype=torch.long, device=self.device)

    def add(self, truth: Tensor, told: Tensor) -> None:
        """Takes in pixels.

        Args:
            truth: classes, of any shape; below 0 where they are not known, which then count for nothing.
            told: the same of what was told, of the same shape; below 0 where nothing was.
        """
        truth, told = truth.long().flatten(), told.long().flatten()
        known = (truth >= 0) & (truth < self.classes)
        width = self.classes + 1
        place = truth[known] * width + torch.where(told[known] < 0, self.classes, told[known])
        self.counts += torch.bincount(place, minlength=self.classes * width).view(self.classes, width)

    @property
    def by_class(self) -> Tensor:
        """Intersection over union of each class, f64 `[K]`; NaN of one that neither is there nor was told."""
        counts = self.counts.double()
        hit = counts.diagonal()
        return hit / (counts.sum(1) + counts[:, : self.classes].sum(0) - hit)

    @property
    def miou(self) -> float:
        """The mean of `by_class`."""
        return float(self.by_class.nanmean())

    @property
    def pixel_accuracy(self) -> float:
        """Share of the pixels that were told rightly."""
        return float(self.counts.diagonal().sum() / self.counts.sum())
