"""Scores in sentences: what they say follows from the figures, whatever these are."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from navit_model.evaluate.cascade import Answers
from navit_model.evaluate.details import details
from navit_model.evaluate.interval import of_share
from navit_model.evaluate.words import meaning, next_images

NAMES = ["ant", "bee", "cow"]


def answered(labels: list[int], guesses: list[int]) -> dict[str, Any]:
    """What `eval --json` holds of such answers."""
    chances = np.full((len(labels), 3), 0.1, np.float32)
    chances[np.arange(len(labels)), guesses] = 0.8
    right = np.equal(labels, guesses).astype(np.float32)
    one = np.ones(len(labels), np.float32)
    values = (one, right, one, one, chances, np.array(labels, np.float32)[:, None])
    closer = details(Answers(*map(torch.from_numpy, values)), NAMES, sigmoid=False)
    return {"scores": [{"accuracy": float(right.mean()), "images": len(labels), "tokens": 64}], "details": [closer]}


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=2, max_size=60))
def test_guessing_the_largest_class_and_what_is_confused_are_said(pairs: list[tuple[int, int]]) -> None:
    labels, guesses = map(list, zip(*pairs, strict=True))
    found = answered(labels, guesses)
    said = meaning(found)
    right = float(np.equal(labels, guesses).mean())
    assert said[0].startswith(f"{100 * right:.1f} % of {len(labels)} held-out images are named right at 64 tokens.")
    counts = np.bincount(labels, minlength=3)
    usual = counts.max() / len(labels)
    if (counts > 0).sum() > 1:
        assert (
            f"for {100 / (counts > 0).sum():.1f} %, always saying" in said[1] and f"for {100 * usual:.1f} %." in said[1]
        )
        assert (
            ("not better than that" in said[2]) == (of_share(right, len(labels))[0] <= usual) if len(said) > 2 else True
        )
    wrong = [(NAMES[own], NAMES[other]) for own, other in pairs if own != other]
    assert ("taken for another" in said[-1]) == bool(wrong)
    for own, other in set(wrong) if len(set(wrong)) <= 3 else ():
        times = wrong.count((own, other))
        assert f"'{own}' for '{other}' ({times} of {counts[NAMES.index(own)]})" in said[-1]
    recall = {name: np.mean([g == c for c, g in pairs if c == k]) for k, name in enumerate(NAMES) if counts[k]}
    worst = next_images(found)
    assert bool(worst) == bool(wrong)
    if worst:
        assert recall[worst.split("'")[1]] == min(recall.values())


def test_numbers_and_several_labels_have_a_measure_to_be_held_against() -> None:
    number = {"r2": 0.1, "mae": 2.0, "images": 50, "tokens": 64}
    closer = {"mae_95": [1.5, 2.6], "baseline": 7.25, "baseline_mae": 2.5}
    said = meaning({"scores": [number], "details": [closer]})
    assert "off by 2 on average" in said[0] and "1.5 to 2.6" in said[0]
    assert "mean of the training's numbers, 7.25, would be off by 2.5" in said[1] and "not better" in said[2]
    assert len(meaning({"scores": [number], "details": [{**closer, "baseline_mae": 2.7}]})) == 2
    rows = [{"class": "a", "images": 10, "ap": 0.9}, {"class": "<b>", "images": 30, "ap": 0.4}]
    ranked = {"map": 0.65, "map_95": [0.5, 0.8], "classes": rows}
    found = {"scores": [{"accuracy": 0.9, "images": 80, "tokens": 64}], "details": [ranked]}
    assert "65.0 % over 80 held-out images" in meaning(found)[0] and "about 25.0 %" in meaning(found)[1]
    assert "'<b>'" in next_images(found)
    # Without details there is the accuracy alone, and how sure it is.
    assert len(meaning({"scores": [{"accuracy": 0.9, "images": 80, "tokens": 64}]})) == 1
