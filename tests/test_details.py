"""Scores behind the accuracy, against their definitions counted by hand, and intervals against images drawn anew."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics

from navit_model.evaluate.cascade import Answers
from navit_model.evaluate.details import _ranking, details
from navit_model.evaluate.tally import BINS

NAMES = list("abcdefg")


def answers(chances: np.ndarray, labels: np.ndarray, sigmoid: bool = False) -> Answers:
    """Of images of which the first has no label."""
    guess = np.where(chances.any(1), chances.argmax(1), -1)
    right = (labels == guess[:, None]).any(1)
    if sigmoid:
        right |= (labels[:, 0] == -2) & (chances.max(1) < 0.5)
    counted = np.arange(len(labels)) > 0
    values = (chances.max(1), right & counted, np.ones(len(labels)), counted, chances, labels)
    return Answers(*(torch.from_numpy(np.asarray(v, np.float32)) for v in values))


def again(score: Callable[[np.ndarray], float], images: int, draws: int = 600) -> Any:
    """The middle 95 % of a score over images drawn anew."""
    rng = np.random.default_rng(9)
    return np.quantile([score(rng.integers(0, images, images)) for _ in range(draws)], (0.025, 0.975))


def test_equal_scores_pull_alike_in_any_order_of_the_images() -> None:
    """Derivatives by the weight of each image, which scikit-learn's weighted scores have by differences."""
    rng = np.random.default_rng(4)
    truth, said = rng.random(60) < 0.4, (rng.integers(0, 5, 60) / 4).astype(np.float32)
    area, mean, area_pull, mean_pull = _ranking(truth, said)
    assert abs(area_pull.sum()) < 1e-12 and abs(mean_pull.sum()) < 1e-12
    order = rng.permutation(60)
    for pull, again in zip((area_pull, mean_pull), _ranking(truth[order], said[order])[2:], strict=True):
        assert again == pytest.approx(pull[order])
    step = 1e-6
    for n in range(60):
        weights = np.ones(60)
        weights[n] += step
        for score, at, pull in (
            (metrics.roc_auc_score, area, area_pull),
            (metrics.average_precision_score, mean, mean_pull),
        ):
            assert (score(truth, said, sample_weight=weights) - at) / step == pytest.approx(pull[n], abs=1e-5)


def test_of_very_many_classes_the_most_confused_pairs_alone_are_kept() -> None:
    names = [f"c{n}" for n in range(1001)]
    chances, labels = np.zeros((30, 1001)), np.arange(30)[:, None] // 10
    chances[np.arange(30), 1000 - np.arange(30) // 15] = 1
    found = details(answers(chances, labels), names, sigmoid=False)
    assert "confusion" not in found
    assert [tuple(pair) for pair in found["confused"]] == [
        ("c2", "c999", 10, 1.0),
        ("c0", "c1000", 9, 1.0),
        ("c1", "c999", 5, 0.5),
        ("c1", "c1000", 5, 0.5),
    ]


def test_one_class_an_image() -> None:
    rng = np.random.default_rng(3)
    chances, labels = rng.dirichlet(np.ones(7), 300), rng.integers(0, 6, (300, 1))
    chances[np.arange(300), labels[:, 0]] += 0.3 * rng.random(300)
    chances[5] = 0  # could not be read
    found = details(answers(chances, labels), NAMES, sigmoid=False)
    chances, truth = chances[1:], labels[1:, 0]
    guess = np.where(chances.any(1), chances.argmax(1), -1)

    def recalls(some: np.ndarray) -> list[float]:
        return [float(np.mean(guess[some][truth[some] == c] == c)) for c in range(6)]

    def f1s(some: np.ndarray) -> list[float]:
        t, g = truth[some], guess[some]
        return [float(2 * np.sum((t == c) & (g == c)) / (np.sum(t == c) + np.sum(g == c))) for c in range(6)]

    all_of = np.arange(299)
    assert found["accuracy"] == pytest.approx(np.mean(truth == guess))
    assert found["balanced_accuracy"] == pytest.approx(np.mean(recalls(all_of))), "class g, of no image, is not counted"
    assert found["macro_f1"] == pytest.approx(np.mean(f1s(all_of)))
    assert [row["recall"] for row in found["classes"]] == pytest.approx([*recalls(all_of), 0])
    assert [row["f1"] for row in found["classes"]] == pytest.approx([*f1s(all_of), 0])
    assert found["classes"][2]["precision"] == pytest.approx(np.mean(truth[guess == 2] == 2))
    near = ((chances > chances[all_of, truth][:, None]).sum(1) < 5) & (guess >= 0)
    assert found["top5"] == pytest.approx(np.mean(near))
    assert np.sum(found["confusion"]) == 298 and found["confusion"][1][4] == np.sum((truth == 1) & (guess == 4))
    scores: dict[str, Callable[[np.ndarray], float]] = {
        "accuracy": lambda some: float(np.mean(truth[some] == guess[some])),
        "top5": lambda some: float(np.mean(near[some])),
        "balanced_accuracy": lambda some: float(np.mean(recalls(some))),
        "macro_f1": lambda some: float(np.mean(f1s(some))),
    }
    for name, score in scores.items():
        assert found[f"{name}_95"] == pytest.approx(again(score, 299), abs=0.012), name


def test_of_equally_likely_classes_the_first_is_nearest() -> None:
    chances, labels = np.full((8, 7), 1 / 7), np.arange(-1, 7)[:, None].repeat(2, 1)
    labels[2, 1] = -1
    found = details(answers(chances, labels), NAMES, sigmoid=False)
    assert found["top5"] == pytest.approx(5 / 7)


def test_bins_of_calibration() -> None:
    rng = np.random.default_rng(6)
    chances, labels = rng.dirichlet(np.full(7, 0.4), 200), rng.integers(0, 7, (200, 2))
    chances[7] = 0
    found = details(answers(chances, labels), NAMES, sigmoid=False)["reliability"]
    chances, labels = np.delete(chances.astype(np.float32), (0, 7), 0), np.delete(labels, (0, 7), 0)
    sure, hit = chances.max(1), (labels == chances.argmax(1)[:, None]).any(1)
    assert sum(b["images"] for b in found) == 198
    inside = [(sure >= n / BINS) & (sure < (n + 1) / BINS) for n in range(BINS)]
    mine = [(int(i.sum()), sure[i].mean(), hit[i].mean()) for i in inside if i.any()]
    assert [tuple(b.values()) for b in found] == [pytest.approx(b) for b in mine]


def test_several_labels_and_none() -> None:
    rng = np.random.default_rng(4)
    chances, labels = 0.7 * rng.random((400, 7)), np.sort(rng.integers(-1, 5, (400, 3)))[:, ::-1]
    labels[labels[:, 0] == -1, 0] = -2
    for k in range(3):
        chances[np.arange(400), labels[:, k]] += 0.09 * (labels[:, k] >= 0)
    chances = chances.astype(np.float32)
    found = details(answers(chances, labels, sigmoid=True), NAMES, sigmoid=True)
    assert [row["class"] for row in found["classes"]] == NAMES[:5], "classes of no image rank nothing"
    said, has = chances[1:], np.stack([(labels[1:] == c).any(1) for c in range(5)], 1)

    def area(c: int, some: np.ndarray) -> float:
        ranks = np.empty(len(some))
        ranks[np.argsort(said[some, c], kind="stable")] = np.arange(1, len(some) + 1)
        yes, own = int(has[some, c].sum()), ranks[has[some, c]].sum()
        return float((own - yes * (yes + 1) / 2) / (yes * (len(some) - yes)))

    def precision(c: int, some: np.ndarray) -> float:
        order = some[np.argsort(-said[some, c], kind="stable")]
        shares = np.cumsum(has[order, c]) / np.arange(1, len(order) + 1)
        return float(shares[has[order, c]].mean())

    pairs = [np.mean(said[has[:, c], c][:, None] > said[~has[:, c], c]) for c in range(5)]
    all_of = np.arange(399)
    assert found["roc_auc"] == pytest.approx(np.mean(pairs))
    assert [row["ap"] for row in found["classes"]] == pytest.approx([precision(c, all_of) for c in range(5)])
    assert found["map"] == pytest.approx(np.mean([row["ap"] for row in found["classes"]]))
    yes = said[:, :5] >= 0.5
    for c, row in enumerate(found["classes"]):
        both = np.sum(yes[:, c] & has[:, c])
        assert (row["precision"], row["recall"]) == pytest.approx((both / yes[:, c].sum(), both / has[:, c].sum()))
        assert row["f1"] == pytest.approx(2 * both / (yes[:, c].sum() + has[:, c].sum()))
    assert found["roc_auc_95"] == pytest.approx(
        again(lambda some: float(np.mean([area(c, some) for c in range(5)])), 399), abs=0.01
    )
    assert found["map_95"] == pytest.approx(
        again(lambda some: float(np.mean([precision(c, some) for c in range(5)])), 399), abs=0.03
    )


def test_rankings_are_scikit_learns_and_pulls_their_derivatives() -> None:
    rng = np.random.default_rng(2)
    said, truth = rng.random(30).astype(np.float32), rng.random(30) < 0.4
    step = 1e-6
    scores = (metrics.roc_auc_score, metrics.average_precision_score)
    for pulls, score in zip(_ranking(truth, said)[2:], scores, strict=True):
        weights = np.ones((30, 30)) + step * np.eye(30)
        moved = [(score(truth, said, sample_weight=w) - score(truth, said)) / step for w in weights]
        assert pulls == pytest.approx(moved, abs=1e-4)
        assert pulls.sum() == pytest.approx(0, abs=1e-9), "twice the images change nothing"
    # What is said alike of many images, all of them at last.
    for levels in (1000, 20, 2, 1):
        said, truth = (rng.integers(0, levels, 500) / levels).astype(np.float32), rng.random(500) < 0.2
        wanted = [score(truth, said) for score in scores]
        assert _ranking(truth, said)[:2] == pytest.approx(wanted, abs=1e-12)
