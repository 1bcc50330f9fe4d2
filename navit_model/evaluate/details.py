"""What stands behind an accuracy: scores by class, of rankings, calibration, and how far they would move with other images.

In: what a model said of each image of an index. Out: plain values for JSON. scikit-learn computes the scores, save rankings
by class, whose checks and orders for each class and group took ten times as long as what is here, from one order; apart, since
only `navit-model eval --details` and `--group-by` ask, and nothing else loads scikit-learn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from navit_loader.errors import ModelError

from .cascade import Answers
from .confusion import KEPT_CLASSES, PAIRS, confused_pairs
from .interval import DRAWS, around, between, of_share
from .tally import BINS

try:
    from sklearn import config_context, metrics
except ImportError:
    raise ModelError("--details and --group-by need scikit-learn: pip install scikit-learn") from None

Floats = npt.NDArray[Any]


def details(answers: Answers, classes: Sequence[str], *, sigmoid: bool) -> dict[str, Any]:
    """Scores of one budget beside `Score`. An image that could not be read is a wrong answer of no class, as in the accuracy.

    Args:
        answers: of `judge(..., keep=len(classes))`.
        classes: names, in the order of the probabilities.
        sigmoid: one sigmoid per class: rankings of the images by class, for any number of labels, and what reaches one half.
            Else one class an image; of several labels the one that was guessed counts, or the first.
    """
    assert answers.chances is not None and answers.labels is not None
    counted = answers.counted.numpy() > 0
    chances, labels = answers.chances.numpy()[counted], answers.labels.numpy()[counted].astype(np.int64)
    right = answers.right.numpy()[counted]
    found: dict[str, Any] = {"accuracy": right.mean().item(), "accuracy_95": of_share(right.mean().item(), len(right))}
    # Its checks of each call would take as long as the scores of a small group.
    with config_context(assume_finite=True, skip_parameter_validation=True):
        found |= (_of_sigmoids if sigmoid else _of_softmax)(chances, labels, classes)
    return found | {"reliability": _reliability(chances, labels)}


def _of_softmax(chances: Floats, labels: Floats, classes: Sequence[str]) -> dict[str, Any]:
    every = np.arange(len(classes))
    read = chances.any(1)
    guess = np.where(read, chances.argmax(1), -1)
    near = read & (_ranks(chances, labels).min(1) < 5)
    truth = np.where(read & (labels == guess[:, None]).any(1), guess, labels[:, 0])
    # An absent class has no recall, one never guessed no precision: 0, as no image speaks for the model.
    precision, recall, f1, support = metrics.precision_recall_fscore_support(
        truth, guess, labels=every, zero_division=0.0
    )
    # Images drawn anew are draws from the cells (class, guess): the counts are all that these scores depend on.
    cells, counts = np.unique(truth * (len(classes) + 1) + guess + 1, return_counts=True)
    mine, said = np.divmod(cells, len(classes) + 1)
    drawn = np.random.default_rng(0).multinomial(len(truth), counts / len(truth), DRAWS).T
    right, there, guessed = np.zeros((3, len(classes) + 1, DRAWS))
    for own, other, draws in zip(mine + 1, said, drawn, strict=True):
        there[own] += draws
        guessed[other] += draws
        if own == other:
            right[own] = draws
    some = np.flatnonzero(support) + 1
    right, there, both = right[some], there[some], there[some] + guessed[some]
    drawn_recall = np.divide(right, there, out=np.full(there.shape, np.nan), where=there > 0)
    drawn_f1 = np.divide(2 * right, both, out=np.full(both.shape, np.nan), where=both > 0)
    return {
        "top5": near.mean().item(),
        "top5_95": of_share(near.mean().item(), len(near)),
        "balanced_accuracy": recall[support > 0].mean().item(),
        "balanced_accuracy_95": between(np.nanmean(drawn_recall, axis=0)),
        "macro_f1": f1[support > 0].mean().item(),
        "macro_f1_95": between(np.nanmean(drawn_f1, axis=0)),
        "classes": [
            {"class": name, "images": int(n), "precision": float(p), "recall": float(r), "f1": float(f)}
            for name, n, p, r, f in zip(classes, support, precision, recall, f1, strict=True)
        ],
        **_confusion(classes, truth[read], guess[read]),
    }


def _confusion(classes: Sequence[str], truth: Floats, guess: Floats) -> dict[str, Any]:
    """How often each class was taken for each other: all counts, or of very many classes the most confused pairs."""
    if len(classes) > KEPT_CLASSES:
        return {"confused": confused_pairs(classes, truth, guess)[:PAIRS]}
    every = np.arange(len(classes))
    return {"confusion": metrics.confusion_matrix(truth, guess, labels=every).tolist() if len(truth) else []}


def _of_sigmoids(chances: Floats, labels: Floats, classes: Sequence[str]) -> dict[str, Any]:
    truth = np.zeros(chances.shape, bool)
    image, at = np.nonzero(labels >= 0)
    truth[image, labels[image, at]] = True
    ranked = np.flatnonzero(truth.any(0) & ~truth.all(0))  # a class that all or none have ranks nothing
    if not len(ranked):
        return {"classes": []}
    truth, chances = truth[:, ranked], chances[:, ranked]
    rankings = [_ranking(truth[:, c], chances[:, c]) for c in range(len(ranked))]
    area, mean, area_pulls, mean_pulls = (np.array(of) for of in zip(*rankings, strict=True))
    area_pull, mean_pull = area_pulls.mean(0), mean_pulls.mean(0)
    said = chances >= 0.5
    support, claimed, both = truth.sum(0), said.sum(0), (truth & said).sum(0)
    precision, recall, f1 = both / np.maximum(claimed, 1), both / support, 2 * both / (claimed + support)
    return {
        "roc_auc": area.mean().item(),
        "roc_auc_95": around(area.mean(), area_pull),
        "map": mean.mean().item(),
        "map_95": around(mean.mean(), mean_pull),
        "macro_f1": f1.mean().item(),
        "classes": [
            {
                "class": classes[c],
                "images": int(support[n]),
                "roc_auc": float(area[n]),
                "ap": float(mean[n]),
                "precision": float(precision[n]),
                "recall": float(recall[n]),
                "f1": float(f1[n]),
            }
            for n, c in enumerate(ranked.tolist())
        ],
    }


def _ranks(chances: Floats, labels: Floats) -> Floats:
    """How many classes are likelier than each label of an image; of equally likely ones the first counts as likelier."""
    ranks = np.full(labels.shape, chances.shape[1])
    for k in range(labels.shape[1]):
        some = labels[:, k] >= 0
        label = labels[some, k, None]
        own = np.take_along_axis(chances[some], label, 1)
        ranks[some, k] = (chances[some] > own).sum(1)
        level = np.flatnonzero((chances[some] == own).sum(1) > 1)
        before = np.arange(chances.shape[1]) < label[level]
        ranks[np.flatnonzero(some)[level], k] += ((chances[some][level] == own[level]) & before).sum(1)
    return ranks


def _ranking(truth: npt.NDArray[np.bool_], said: Floats) -> tuple[float, float, Floats, Floats]:
    """ROC AUC and average precision of one class, as scikit-learn defines them, from one order of the images; and how both
    move with the weight of each image: their derivatives, for `around`. What is said is f32, finite, and 0 at least."""
    # Probabilities are sorted as whole numbers with the image behind them, which takes a third of the time of an argsort.
    bits = said.astype(np.float32).view(np.uint32)
    keys = np.sort((~bits).astype(np.uint64) << np.uint64(32) | np.arange(len(said), dtype=np.uint64))
    order = (keys & np.uint64(0xFFFFFFFF)).astype(np.int64)
    y = truth[order].astype(np.float64)
    above, rank = np.cumsum(y), np.arange(1.0, len(y) + 1)
    many, others = above[-1], len(y) - above[-1]
    # Of images that are said alike none is before another: the curves have no point between them.
    value = keys >> np.uint64(32)
    ends = np.append(np.flatnonzero(value[1:] != value[:-1]), len(y) - 1)
    hits, wrong = above[ends], rank[ends] - above[ends]
    gained = np.diff(hits, prepend=0.0)
    area = float((np.diff(wrong, prepend=0.0) * (hits - gained / 2)).sum() / (many * others))
    mean = float((gained * hits / rank[ends]).sum() / many)

    # By group of equals, among which an image is half before and half behind another.
    lower = others - (wrong - np.diff(wrong, prepend=0.0) / 2)  # others beneath
    higher = hits - gained / 2  # images of the class above
    share = hits / rank[ends]
    # An image weighs on the precision at each image of the class from its own rank on.
    own, all_of = (np.cumsum(v[::-1])[::-1] for v in (gained / rank[ends], gained * share / rank[ends]))
    group = np.repeat(np.arange(len(ends)), np.diff(ends, prepend=-1))
    area_pull = np.where(y > 0, (lower[group] / others - area) / many, (higher[group] / many - area) / others)
    mean_pull = (y * (share - mean + own)[group] - all_of[group]) / many
    pulls = np.empty((2, len(order)))
    pulls[:, order] = area_pull, mean_pull
    return area, mean, pulls[0], pulls[1]


def _reliability(chances: Floats, labels: Floats) -> list[dict[str, Any]]:
    """Bins of the calibration error that hold images: how many, how sure the model was on average, and how often right."""
    read = chances.any(1)
    chances, labels = chances[read], labels[read]
    sure = chances.max(1, initial=0.0)
    hit = (labels == chances.argmax(1)[:, None]).any(1) if len(chances) else np.zeros(0, bool)
    place = np.minimum((sure * BINS).astype(int), BINS - 1)
    count, confidence, correct = (np.bincount(place, v, BINS) for v in (np.ones(len(sure)), sure, hit))
    return [
        {"images": int(count[b]), "confidence": confidence[b] / count[b], "accuracy": correct[b] / count[b]}
        for b in np.flatnonzero(count)
    ]


def details_text(tokens: int, found: dict[str, Any]) -> str:
    """The scores of all classes in a line."""
    said = [f"accuracy in {_spread(found['accuracy_95'])}"]
    if "map" in found:
        for key, name in (("roc_auc", "ROC AUC"), ("map", "mAP")):
            said.append(f"{name} {found[key]:.2%} in {_spread(found[f'{key}_95'])}")
        said.append(f"F1 {found['macro_f1']:.2%} at one half over {len(found['classes'])} classes")
    elif "top5" in found:
        said.append(f"balanced accuracy {found['balanced_accuracy']:.2%} in {_spread(found['balanced_accuracy_95'])}")
        said += [f"F1 {found['macro_f1']:.2%}", f"top-5 {found['top5']:.2%}"]
    else:
        said.append("no class that some images have and others have not")
    return f"at {tokens} tokens: " + ", ".join(said)


def _spread(ends: Sequence[float]) -> str:
    return f"[{ends[0]:.2%}, {ends[1]:.2%}]"
