"""The k-shot probe: how well do frozen features tell classes apart, when only k images of each are labelled?

In: features and labels of two indexes. Out: accuracy, mean and spread over several draws of the k images. It is the main
metric of NaViT's paper: a linear map to one ±1 target per class, by regularised least squares (arXiv 2010.11929, section
4.1). The regularisation is chosen on the k·C images alone, by their leave-one-out error, which has a closed form.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from navit_loader import open_index
from navit_loader.errors import ModelError

from .frozen import features, planned
from .opened import OpenedModel

Array = npt.NDArray[np.float64]
STRENGTHS = 2.0 ** np.arange(-12, 13)
"""Regularisations tried, in units of the mean squared singular value of the features."""


@dataclass(frozen=True, slots=True)
class Shot:
    """The result of a probe.

    Attributes:
        shots: k, labelled images of each class.
        tokens: tokens of one image at most.
        patch_size: P.
        accuracies: one for each draw of the k images.
        images: labelled images that were predicted.
        failed: those among them that could not be read; they count as wrong.
    """

    shots: int
    tokens: int
    patch_size: int
    accuracies: list[float]
    images: int
    failed: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values, mean and standard deviation among them."""
        return {**asdict(self), "mean": float(np.mean(self.accuracies)), "std": float(np.std(self.accuracies))}

    def __str__(self) -> str:
        return (
            f"{self.shots}-shot at {self.tokens} tokens, patch {self.patch_size}: {np.mean(self.accuracies):.2%} "
            f"± {np.std(self.accuracies):.2%} over {len(self.accuracies)} draws, {self.images:,} images"
            + (f" ({self.failed:,} could not be read and count as wrong)" if self.failed else "")
        )


def linear(x: Array, labels: npt.NDArray[np.int64], classes: int) -> tuple[Array, Array]:
    """Ridge regression to ±1 targets, its strength chosen by the leave-one-out error.

    Args:
        x: features `[n, D]`.
        labels: `[n]`, below `classes`.
        classes: C.

    Returns:
        Weights `[D, C]` and biases `[C]`; the prediction is the largest of x·W + b.
    """
    y = np.where(labels[:, None] == np.arange(classes), 1.0, -1.0)
    middle, centre = x.mean(0), y.mean(0)
    u, s, vt = np.linalg.svd(x - middle, full_matrices=False)
    rotated = u.T @ (y - centre)
    best, chosen = np.inf, 0.0
    for strength in STRENGTHS * max(float((s**2).mean()), 1e-30):
        shrink = s**2 / (s**2 + strength)
        left = np.maximum(1 - (u**2) @ shrink - 1 / len(x), 1e-9)
        error = float(((y - centre - u @ (shrink[:, None] * rotated)) ** 2 / left[:, None] ** 2).mean())
        if error < best:
            best, chosen = error, float(strength)
    weights = vt.T @ ((s / (s**2 + chosen))[:, None] * rotated)
    return weights, centre - middle @ weights


def probe(
    opened: OpenedModel,
    train: str,
    test: str,
    *,
    shots: int = 10,
    draws: int = 3,
    tokens: int | None = None,
    patch_size: int | None = None,
    seed: int = 0,
) -> Shot:
    """Probes a model.

    Args:
        opened: the model.
        train: path of the index that the k images of each class are drawn from.
        test: path of the index whose images are predicted, with the same classes.
        shots: k.
        draws: how many times k images are drawn.
        tokens: budget of one image; None takes the training cap and never scales up.
        patch_size: P; None takes the first of `plan.patch_sizes`.
        seed: of the draws.

    Raises:
        IndexFileError: an index cannot be used.
        ModelError: the indexes have other classes, or too few images of one.
    """
    given, asked = open_index(train), open_index(test)
    if given.classes != asked.classes or not given.classes:
        raise ModelError(f"'{train}' and '{test}' have different classes, or none; write one with --classes {train}")
    labels = given.labels()[:, 0]
    classes = len(given.classes)
    chosen = []
    for draw in range(draws):
        rng = np.random.default_rng([seed, draw])
        parts = [np.flatnonzero(labels == c) for c in range(classes)]
        short = next((c for c in range(classes) if len(parts[c]) < shots), None)
        if short is not None:
            raise ModelError(
                f"'{train}' has {len(parts[short])} images of class '{given.classes[short]}', fewer than {shots} shots"
            )
        chosen.append(np.concatenate([rng.choice(part, shots, replace=False) for part in parts]))
    wanted = np.unique(np.concatenate(chosen))
    only = f"row in ({', '.join(map(str, wanted))},)"
    rows, x, _ = _collect(opened, train, tokens, patch_size, only)
    place = np.full(len(labels), -1)
    place[rows] = np.arange(len(rows))
    rows, x_test, y_test = _collect(opened, test, tokens, patch_size, "")
    # An image with several labels is right where the answer is one of them.
    allowed = asked.labels()[rows][y_test >= 0]
    x_test, y_test = x_test[y_test >= 0], y_test[y_test >= 0]
    read = ~np.isnan(x_test).any(1)
    accuracies = []
    for picked in chosen:
        vectors, names = x[place[picked]], labels[picked]
        good = ~np.isnan(vectors).any(1)
        weights, bias = linear(vectors[good], names[good], classes)
        right = ((x_test[read] @ weights + bias).argmax(1)[:, None] == allowed[read]).any(1)
        accuracies.append(float(right.sum() / len(y_test)))
    plan = planned(opened, tokens, patch_size).plan
    budget = plan.max_tokens - plan.prefix_tokens
    return Shot(shots, budget, plan.patch_sizes[0], accuracies, len(y_test), int((~read).sum()))


def _collect(
    opened: OpenedModel, index: str, tokens: int | None, patch_size: int | None, rows: str
) -> tuple[npt.NDArray[np.int64], Array, npt.NDArray[np.int64]]:
    parts = list(features(opened, index, planned(opened, tokens, patch_size, rows)))
    return (
        np.concatenate([p.rows for p in parts]),
        np.concatenate([p.vectors for p in parts]).astype(np.float64),
        np.concatenate([p.labels for p in parts]),
    )
