"""Scores behind the accuracy, against their definitions counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from navit_model.evaluate.cascade import Answers
from navit_model.evaluate.details import details

NAMES = list("abcdefg")


def answers(chances: np.ndarray, labels: np.ndarray) -> Answers:
    rows = torch.zeros(len(labels))
    kept = [torch.from_numpy(v.astype(np.float32)) for v in (chances, labels)]
    return Answers(rows, rows, rows, torch.tensor([0.0] + [1.0] * (len(labels) - 1)), *kept)


def test_one_class_an_image() -> None:
    rng = np.random.default_rng(3)
    chances, labels = rng.dirichlet(np.ones(7), 300), rng.integers(0, 6, (300, 1))
    chances[5] = 0  # could not be read
    found = details(answers(chances, labels), NAMES, sigmoid=False)
    chances, truth = chances[1:], labels[1:, 0]
    guess = np.where(chances.any(1), chances.argmax(1), -1)
    recall = [np.mean(guess[truth == c] == c) for c in range(6)]
    assert found["balanced_accuracy"] == pytest.approx(np.mean(recall)), "class g, of no image, is not counted"
    assert [row["recall"] for row in found["classes"]] == pytest.approx([*recall, 0])
    assert found["classes"][2]["precision"] == pytest.approx(np.mean(truth[guess == 2] == 2))
    rank = (chances > chances[np.arange(299), truth][:, None]).sum(1)
    assert found["top5"] == pytest.approx(np.mean((rank < 5) & (guess >= 0)))
    assert np.sum(found["confusion"]) == 298 and found["confusion"][1][4] == np.sum((truth == 1) & (guess == 4))
    again = rng.choice((truth == guess), (4000, 299)).mean(1)
    assert found["accuracy_95"] == pytest.approx(np.quantile(again, (0.025, 0.975)), abs=0.01)


def test_several_labels_and_none() -> None:
    rng = np.random.default_rng(4)
    chances, labels = rng.random((80, 7)), np.sort(rng.integers(-1, 5, (80, 3)))[:, ::-1]
    found = details(answers(chances, labels), NAMES, sigmoid=True)
    assert [row["class"] for row in found["classes"]] == NAMES[:5], "classes of no image rank nothing"
    areas = []
    for c in range(5):
        has = (labels[1:] == c).any(1)
        said = chances[1:, c].astype(np.float32)
        areas.append(np.mean(said[has][:, None] > said[~has]))
    assert found["roc_auc"] == pytest.approx(np.mean(areas))
