"""What stands behind an R²: how far the numbers are off, how sure that is, and where they are off most.

In: what a model said of each image of an index. Out: plain values for JSON. scikit-learn computes the scores; apart, since
only `navit-model eval --details` asks.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn import metrics

from navit_loader.config import LoaderConfig
from navit_loader.index import open_index

from ..world import World
from .interval import DRAWS, between
from .mistakes import MOST, pictures_of
from .regression import Numbers

POINTS = 2000
"""Images of the chart of answers against true numbers; of more, every so many."""


def deviations(numbers: Numbers, mean: float) -> dict[str, Any]:
    """Scores of one budget beside `RegressionScore`, with intervals of 95 %, and what always answering `mean` would get.

    Args:
        numbers: of `judge_numbers`.
        mean: of the numbers that were learnt.
    """
    truth, told = numbers.truth, numbers.told
    mse = metrics.mean_squared_error(truth, told)
    some = np.arange(0, len(truth), -(-len(truth) // POINTS))
    return {
        "mae": float(metrics.mean_absolute_error(truth, told)),
        "rmse": float(np.sqrt(mse)),
        "r2": float(metrics.r2_score(truth, told)),
        **_intervals(truth, told),
        "baseline": mean,
        "baseline_mae": float(np.abs(truth - mean).mean()),
        "low": float(truth.min()),
        "high": float(truth.max()),
        "points": np.stack([truth[some], told[some]], 1).tolist(),
    }


def _intervals(truth: npt.NDArray[np.float64], told: npt.NDArray[np.float64]) -> dict[str, list[float]]:
    """Of a bootstrap: each draw of the images needs the mean of these four alone."""
    away, y = np.abs(told - truth), truth - truth.mean()
    each = np.stack([away, away**2, y, y**2], 1)
    rng = np.random.default_rng(0)
    drawn = np.stack([each[rng.integers(len(each), size=len(each))].mean(0) for _ in range(DRAWS)])
    spread = drawn[:, 3] - drawn[:, 2] ** 2
    told_apart = spread > 1e-12 * (y**2).mean()  # of one number alone there is no share of a variance
    return {
        "mae_95": between(drawn[:, 0]),
        "rmse_95": between(np.sqrt(drawn[:, 1])),
        "r2_95": between(1 - drawn[told_apart, 1] / spread[told_apart]),
    }


def worst_numbers(numbers: Numbers, index: str, config: LoaderConfig, world: World) -> list[dict[str, Any]]:
    """The answers that are farthest off, farthest first: `image` (its name), `number`, `predicted` and `picture` (a data URL).
    Images that could not be read are none of them.

    Args:
        numbers: of `judge_numbers`.
        index, config: those of the pass.
        world: for the device alone; one rank decodes.
    """
    away = np.where(numbers.failed, 0.0, np.abs(numbers.told - numbers.truth))
    worst = [n for n in np.argsort(-away, kind="stable")[:MOST].tolist() if away[n] > 0]
    rows = numbers.rows[worst].tolist()
    pictures, opened = pictures_of(rows, index, config, world), open_index(index)
    return [
        {
            "image": opened.uri(row),
            "number": float(numbers.truth[n]),
            "predicted": float(numbers.told[n]),
            "picture": pictures.get(row, ""),
        }
        for n, row in zip(worst, rows, strict=True)
    ]


def deviations_text(tokens: int, found: dict[str, Any]) -> str:
    """The scores in a line."""
    said = []
    for key, name in {"mae": "MAE", "rmse": "RMSE", "r2": "R²"}.items():
        low, high = found[f"{key}_95"]
        said.append(f"{name} {found[key]:.4g} in [{low:.4g}, {high:.4g}]")
    return (
        f"at {tokens} tokens: {', '.join(said)}; always answering the training's mean, {found['baseline']:.6g}, has MAE "
        f"{found['baseline_mae']:.4g}; the numbers go from {found['low']:.6g} to {found['high']:.6g}"
    )
