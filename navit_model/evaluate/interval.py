"""How far a score would move if other images had been drawn: intervals of 95 % of a bootstrap over the images.

In: what each image adds to a score. Out: its low and high end. Apart, since scores by class, by group and under corruption
share it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

DRAWS = 1000
"""Resamplings of the images behind an interval."""


def means(values: npt.ArrayLike, seed: int = 0) -> npt.NDArray[np.float64]:
    """Means of the values over images drawn anew, f64 `[DRAWS]`. Values are few, such as right and wrong: then a draw of the
    images is a draw of how many have which."""
    distinct, counts = np.unique(np.asarray(values, np.float64), return_counts=True)
    total = counts.sum()
    return np.asarray(np.random.default_rng(seed).multinomial(total, counts / total, DRAWS) @ distinct / total)


def between(drawn: npt.NDArray[Any]) -> list[float]:
    """The ends of the middle 95 %."""
    low, high = np.quantile(drawn, (0.025, 0.975))
    return [float(low), float(high)]


def interval(values: npt.ArrayLike) -> list[float]:
    """The ends for the mean of few different values."""
    return between(means(values))


def around(score: float, pulls: npt.NDArray[Any]) -> list[float]:
    """The ends for a score of rankings, whose draws would sort all images a thousand times: the bootstrap in the limit of many
    draws and images, where the score moves by the sum of the images' pulls (infinitesimal jackknife: Efron 1982, chapter 6).

    Args:
        score: of the images at hand.
        pulls: its derivative by the weight of each image.
    """
    reach = 1.96 * float(np.sqrt((np.asarray(pulls, np.float64) ** 2).sum()))
    return [max(0.0, score - reach), min(1.0, score + reach)]
