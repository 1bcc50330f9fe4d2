"""What scores mean, in sentences: for whoever sees figures of a model for the first time.

In: what `navit-model eval --json` found of one index. Out: plain sentences: how good, how sure, what guessing would give, what
is taken for what, and what to do next. Apart from `page`, whose tables hold the same figures for those who read tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .confusion import pairs_of
from .interval import of_share
from .page import main_of

Found = Mapping[str, Any]

PAIRS = 3
"""Pairs of classes that are named at most."""


def meaning(found: Found) -> list[str]:
    """How good the best setting is, how sure that is, and what no model at all would get.

    Args:
        found: as `eval --json` writes it, whose `details` may be missing.
    """
    score, closer = _best(found)
    if main_of(score) == "r2":
        return _of_numbers(score, closer)
    if "map" in closer:
        return _of_labels(score, closer)
    share, images = score["accuracy"], score["images"]
    low, high = of_share(share, images)
    said = [
        f"{_percent(share)} of {images:,} held-out images are named right{_budget(score)}. So many tell that of all "
        f"images of their kind it is between {_percent(low)} and {_percent(high)} (interval of 95 %)."
    ]
    present = [row for row in closer.get("classes", ()) if row["images"]]
    if len(present) > 1:
        most = max(present, key=lambda row: int(row["images"]))
        usual = most["images"] / sum(row["images"] for row in present)
        said.append(
            f"Guessing one of {len(present):,} classes would be right for {_percent(1 / len(present))}, always saying "
            f"'{most['class']}' for {_percent(usual)}."
        )
        if low <= usual:
            said.append(
                "As far as these images can tell, the model is not better than that: it needs more images, or more steps."
            )
    if pairs := _pairs(closer):
        said.append(f"Most often taken for another: {', '.join(pairs)}.")
    return said


def next_images(found: Found) -> str:
    """Of which class more images would help most; empty where that is not known, or nothing is wrong."""
    _, closer = _best(found)
    present = [row for row in closer.get("classes", ()) if row["images"]]
    key = "ap" if present and "ap" in present[0] else "recall"
    worst = min(present, key=lambda row: (row[key], -row["images"]), default=None)
    if worst is None or worst[key] == 1:
        return ""
    how = (
        f"whose ranking is the worst (average precision {_percent(worst[key])})"
        if key == "ap"
        else f"of which {round(worst['recall'] * worst['images']):,} of {worst['images']:,} are named right"
    )
    return f"More images of '{worst['class']}', {how}, are likely to help most; the worst mistakes below show what is missing."


def _best(found: Found) -> tuple[Found, Found]:
    """The setting with the highest score, and its details."""
    scores: Sequence[Found] = found["scores"]
    best = max(range(len(scores)), key=lambda n: float(scores[n][main_of(scores[n])]))
    return scores[best], found["details"][best] if "details" in found else {}


def _of_numbers(score: Found, closer: Found) -> list[str]:
    said = [
        f"The numbers of {score['images']:,} held-out images are off by {score['mae']:.4g} on average{_budget(score)}"
    ]
    if "mae_95" in closer:
        low, high = closer["mae_95"]
        said[0] += f", and those of all images of their kind by {low:.4g} to {high:.4g} (interval of 95 %)"
        said.append(
            f"Always saying the mean of the training's numbers, {closer['baseline']:.4g}, would be off by "
            f"{closer['baseline_mae']:.4g}"
        )
        if high >= closer["baseline_mae"]:
            said.append(
                "As far as these images can tell, the model is not better than that: it needs more images, or more steps"
            )
    return [f"{sentence}." for sentence in said]


def _of_labels(score: Found, closer: Found) -> list[str]:
    low, high = closer["map_95"]
    chance = sum(row["images"] for row in closer["classes"]) / len(closer["classes"]) / score["images"]
    return [
        f"Asked for the images of a label, the model puts the right ones first with a mean average precision of "
        f"{_percent(closer['map'])} over {score['images']:,} held-out images{_budget(score)}. So many tell that of all images "
        f"of their kind it is between {_percent(low)} and {_percent(high)} (interval of 95 %).",
        f"Any order at all would have about {_percent(chance)}, the share of images that a label has on average.",
    ]


def _pairs(closer: Found) -> list[str]:
    pairs = closer.get("confused", ())
    if counts := closer.get("confusion"):
        pairs = pairs_of([row["class"] for row in closer["classes"]], counts)
    return [f"'{own}' for '{other}' ({n:,} of {round(n / share):,})" for own, other, n, share in pairs[:PAIRS]]


def _budget(score: Found) -> str:
    return f" at {score['tokens']:,} tokens"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
