"""A cascade over token budgets: answer at few tokens where the model is sure, look again at more where it is not.

In: the answers of one model at rising budgets. Out: accuracy against tokens spent, for thresholds from never looking again
to always (NaViT, appendix D: cascades over budgets are Pareto-optimal). Nothing is computed anew: an image's answers at all
budgets are known, and a threshold only says which of them counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Answers:
    """What a model said of each image of an index, at one budget, on the CPU.

    Attributes:
        sure: f32 `[rows]`, probability of the likeliest class; 0 where an image could not be read.
        right: f32 `[rows]`, 1 where that class is the label.
        tokens: f32 `[rows]`, tokens that the image took.
        counted: f32 `[rows]`, 1 for labelled images.
        chances: f32 `[rows, classes]`, where they were kept; 0 for an image that could not be read.
        labels: f32 `[rows, L]`, with them; 0 for images that are not counted.
    """

    sure: Tensor
    right: Tensor
    tokens: Tensor
    counted: Tensor
    chances: Tensor | None = None
    labels: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Point:
    """One point of the curve.

    Attributes:
        threshold: an answer counts where its probability reaches this; the last budget's counts always.
        tokens: mean tokens of an image over all the looks that it got.
        accuracy: share of the labelled images.
        looks: mean looks of an image.
    """

    threshold: float
    tokens: float
    accuracy: float
    looks: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def cascade(answers: Sequence[Answers], points: int = 20) -> list[Point]:
    """The curve over budgets in the given order, cheapest first.

    Args:
        answers: one for each budget, of the same images.
        points: how many thresholds; they are quantiles of the first budget's probabilities, so that the points are spread.
    """
    counted = answers[0].counted > 0
    sure = answers[0].sure[counted]
    shares = torch.linspace(0, 1, points)
    thresholds = sorted({0.0, *torch.quantile(sure.double(), shares.double()).tolist(), 1.0 + 1e-6})
    curve = []
    for threshold in thresholds:
        open_ = torch.ones_like(sure, dtype=torch.bool)
        right = torch.zeros_like(sure)
        tokens, looks = torch.zeros_like(sure), torch.zeros_like(sure)
        for n, answer in enumerate(answers):
            tokens += open_ * answer.tokens[counted]
            looks += open_
            ends = open_ & ((answer.sure[counted] >= threshold) | (n == len(answers) - 1))
            right += ends * answer.right[counted]
            open_ &= ~ends
        means = (float(v.double().mean()) for v in (tokens, right, looks))
        curve.append(Point(float(threshold), *means))
    return curve


def curve_table(curve: Sequence[Point]) -> str:
    """The curve as lines of text."""
    lines = ["cascade over the budgets, answering where the probability reaches the threshold:"]
    lines.append(f"{'threshold':>10}{'mean tokens':>13}{'accuracy':>10}{'looks':>7}")
    lines += [f"{min(p.threshold, 1):>10.3f}{p.tokens:>13.1f}{p.accuracy:>10.2%}{p.looks:>7.2f}" for p in curve]
    return "\n".join(lines)
