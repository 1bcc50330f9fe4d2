"""What stands behind an accuracy: scores by class, of rankings, and how far they would move with other images.

In: what a model said of each image of an index. Out: plain values for JSON. scikit-learn computes the scores; apart, since
only `navit-model eval --details` asks, and nothing else loads it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from navit_loader.errors import ModelError

from .cascade import Answers

try:
    from sklearn import metrics
except ImportError:
    raise ModelError("--details needs scikit-learn: pip install scikit-learn") from None

DRAWS = 1000
"""Resamplings of the images behind an interval."""


def details(answers: Answers, classes: Sequence[str], *, sigmoid: bool) -> dict[str, Any]:
    """Scores of one budget beside `Score`. An image that could not be read is a wrong answer of no class, as in the accuracy.

    Args:
        answers: of `judge(..., keep=len(classes))`.
        classes: names, in the order of the probabilities.
        sigmoid: one sigmoid per class: rankings of the images by class, for any number of labels. Else one class an image; of
            several labels the one that was guessed counts, or the first.
    """
    assert answers.chances is not None and answers.labels is not None
    counted = answers.counted.numpy() > 0
    chances, labels = answers.chances.numpy()[counted], answers.labels.numpy()[counted].astype(np.int64)
    every = np.arange(len(classes))
    if sigmoid:
        truth = (labels[:, :, None] == every).any(1)
        both = truth.any(0) & ~truth.all(0)  # a class that all or none have ranks nothing
        area = {c: float(metrics.roc_auc_score(truth[:, c], chances[:, c])) for c in every[both]}
        mean = {c: float(metrics.average_precision_score(truth[:, c], chances[:, c])) for c in every[both]}
        rows = [
            {"class": classes[c], "images": int(truth[:, c].sum()), "roc_auc": area[c], "ap": mean[c]} for c in area
        ]
        if not rows:
            return {"classes": rows}
        return {"roc_auc": np.mean([*area.values()]).item(), "map": np.mean([*mean.values()]).item(), "classes": rows}
    read = chances.any(1)
    guess = np.where(read, chances.argmax(1), -1)
    best = np.argsort(-chances, axis=1, kind="stable")[:, :5]
    near = read & (labels[:, :, None] == best[:, None, :]).any((1, 2))
    truth = np.where((labels == guess[:, None]).any(1), guess, labels[:, 0])
    # An absent class has no recall, one never guessed no precision: 0, as no image speaks for the model.
    precision, recall, f1, support = metrics.precision_recall_fscore_support(
        truth, guess, labels=every, zero_division=0.0
    )
    right = truth == guess
    # Images drawn anew are draws from the cells (class, right): the counts are all that these scores depend on.
    cells = np.bincount(truth * 2 + right, minlength=2 * len(classes))
    drawn = np.random.default_rng(0).multinomial(len(truth), cells / len(truth), DRAWS).reshape(DRAWS, -1, 2)
    total = drawn.sum(2)
    share = np.divide(drawn[..., 1], total, out=np.full(total.shape, np.nan), where=total > 0)
    return {
        "accuracy_95": _interval(drawn[..., 1].sum(1) / len(truth)),
        "top5": near.mean().item(),
        "balanced_accuracy": recall[support > 0].mean().item(),
        "balanced_accuracy_95": _interval(np.nanmean(share, axis=1)),
        "classes": [
            {"class": name, "images": int(n), "precision": float(p), "recall": float(r), "f1": float(f)}
            for name, n, p, r, f in zip(classes, support, precision, recall, f1, strict=True)
        ],
        "confusion": metrics.confusion_matrix(truth[read], guess[read], labels=every).tolist() if read.any() else [],
    }


def _interval(values: np.ndarray[Any, Any]) -> list[float]:
    low, high = np.quantile(values, (0.025, 0.975))
    return [float(low), float(high)]


def details_text(tokens: int, found: dict[str, Any]) -> str:
    """The scores of all classes in a line."""
    said = [f"at {tokens} tokens"]
    if "accuracy_95" in found:
        all_of, balanced = (
            f"[{low:.2%}, {high:.2%}]" for low, high in (found["accuracy_95"], found["balanced_accuracy_95"])
        )
        said += [f"accuracy {all_of}", f"balanced accuracy {found['balanced_accuracy']:.2%} in {balanced}"]
        said.append(f"top-5 {found['top5']:.2%}")
    elif "map" in found:
        said.append(f"ROC AUC {found['roc_auc']:.4f}, mAP {found['map']:.4f} over {len(found['classes'])} classes")
    else:
        said.append("no class that some images have and others have not")
    return said[0] + ": " + ", ".join(said[1:])
