"""How far a score would move if other images had been drawn: intervals of 95 %.

In: what each image adds to a score, or a share of them. Out: its low and high end. Apart, since scores by class, by group and
under corruption share it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

FEW = 100
"""Images, fewer than which are too few to be silent about."""

DRAWS = 1000
"""Resamplings of the images behind an interval."""


def between(drawn: npt.NDArray[Any]) -> list[float]:
    """The ends of the middle 95 %."""
    low, high = np.quantile(drawn, (0.025, 0.975))
    return [float(low), float(high)]


def interval(values: npt.ArrayLike) -> list[float]:
    """The ends for the mean of few different values: then a draw of the images is a draw of how many have which."""
    distinct, counts = np.unique(np.asarray(values, np.float64), return_counts=True)
    total = counts.sum()
    return between(np.random.default_rng(0).multinomial(total, counts / total, DRAWS) @ distinct / total)


def of_share(share: float, images: int) -> list[float]:
    """The ends for a share of the images (Wilson 1927): a bootstrap of a few that are all right would claim to be certain."""
    z2 = 1.96**2 / images
    middle = (share + z2 / 2) / (1 + z2)
    reach = (z2 * (share * (1 - share) + z2 / 4)) ** 0.5 / (1 + z2)
    return [max(0.0, min(share, middle - reach)), min(1.0, max(share, middle + reach))]


def of_gap(best: float, best_95: Sequence[float], worst: float, worst_95: Sequence[float]) -> list[float]:
    """The ends for the difference of two shares of different images, from those of each (Newcombe 1998, method 10)."""
    low = ((best - best_95[0]) ** 2 + (worst_95[1] - worst) ** 2) ** 0.5
    high = ((best_95[1] - best) ** 2 + (worst - worst_95[0]) ** 2) ** 0.5
    return [best - worst - low, best - worst + high]


def around(score: float, pulls: npt.NDArray[Any]) -> list[float]:
    """The ends for a score of rankings, whose draws would sort all images a thousand times: the bootstrap in the limit of many
    draws and images, where the score moves by the sum of the images' pulls (infinitesimal jackknife: Efron 1982, chapter 6).

    Args:
        score: of the images at hand.
        pulls: its derivative by the weight of each image.
    """
    reach = 1.96 * float(np.sqrt((np.asarray(pulls, np.float64) ** 2).sum()))
    return [max(0.0, score - reach), min(1.0, score + reach)]
