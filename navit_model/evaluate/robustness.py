"""How well a model's answers survive damage: accuracy under corruption, at each strength and token budget.

In: a model, an index, and its answers on the images as they are. Out: plain values for JSON. Each image is decoded once, at no
more pixels than the largest budget shows (or 224 × 224, which the constants are made for), corrupted, and packed as every image
in memory is; so all budgets look at the same damage. Apart from `classification`, whose pass knows nothing of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from navit_loader.batch import ABSENT, FAILED
from navit_loader.config import LoaderConfig
from navit_loader.index import open_index
from navit_loader.picture import pixels_of
from navit_loader.render.images import pack_images

from ..world import World
from .cascade import Answers
from .classification import Score, predict
from .corrupt import SIDE, STRENGTHS, Pixels, corrupt
from .interval import interval
from .sources import source_batches
from .tally import Tally

Picture = tuple[int, np.ndarray[Any, np.dtype[np.int64]], Pixels]


@torch.inference_mode()
def robustness(
    model: nn.Module,
    index: str,
    config: LoaderConfig,
    clean: Sequence[tuple[Score, int | None, Answers]],
    kinds: Sequence[str],
    *,
    world: World,
    sigmoid: bool,
) -> list[dict[str, Any]]:
    """Accuracy under each kind of corruption, for each score of the images as they are.

    Args:
        model, index, config, sigmoid: as for `judge`.
        clean: each score, the budget that it was asked for, and its answers.
        kinds: of `KINDS`.
        world: the ranks that share the work.

    Returns:
        For each score `tokens`, `patch_size`, `clean` (its accuracy), `kinds` and the `mean` of their means with `mean_95` and
        `relative` (to clean). Each kind has `accuracy` and `ece` by strength, the `mean` over the strengths, `mean_95`
        (a bootstrap over the images) and `relative`.
    """
    plans = [config.for_evaluation(max_tokens=asked, patch_size=score.patch_size) for score, asked, _ in clean]
    area = max(SIDE**2, *(score.tokens * score.patch_size**2 for score, _, _ in clean))
    opened = open_index(index)
    tallies = {
        (n, kind, strength): Tally(opened.num_rows, world.device, sigmoid=sigmoid)
        for n in range(len(plans))
        for kind in kinds
        for strength in range(1, STRENGTHS + 1)
    }
    # As many images at once as fill a batch of the training, at the largest budget.
    many = max(1, min(plan.data.batch_size * plan.plan.sequence_length // plan.plan.max_tokens for plan in plans))

    def look(pictures: list[Picture]) -> None:
        rows, labels = np.array([row for row, _, _ in pictures]), np.stack([labels for _, labels, _ in pictures])
        for kind in kinds:
            for strength in range(1, STRENGTHS + 1):
                damaged = [corrupt(pixels, kind, strength, row=row) for row, _, pixels in pictures]
                for n, plan in enumerate(plans):
                    batch = pack_images(damaged, plan, labels=labels)
                    chances = predict(model, batch, world.device, sigmoid)
                    ids = np.where(batch.image_ids >= 0, rows[batch.image_ids], -1)
                    tallies[n, kind, strength].add(replace(batch, image_ids=ids), chances)

    waiting: list[Picture] = []
    for batch in source_batches(index, config, area, world):
        if (batch.status == FAILED).any():
            lost = replace(batch, status=np.where(batch.status == FAILED, FAILED, ABSENT))
            nothing = torch.zeros(*batch.status.shape, 1, device=world.device)
            for tally in tallies.values():
                tally.add(lost, nothing)
        for picture in pixels_of(batch):
            waiting.append(picture)
            if len(waiting) == many:
                look(waiting)
                waiting = []
    if waiting:
        look(waiting)
    world.meet()
    right = {key: tally.end(world, index).right.numpy() for key, tally in tallies.items()}
    found = []
    for n, (score, _, answers) in enumerate(clean):
        counted, rows, means = answers.counted.numpy() > 0, {}, []
        for kind in kinds:
            strengths = range(1, STRENGTHS + 1)
            some = [tallies[n, kind, strength] for strength in strengths]
            means.append(np.mean([right[n, kind, strength][counted] for strength in strengths], axis=0))
            rows[kind] = {"accuracy": [t.accuracy for t in some], "ece": [t.ece for t in some]}
            rows[kind] |= _mean(means[-1], score.accuracy)
        found.append(
            {"tokens": score.tokens, "patch_size": score.patch_size, "clean": score.accuracy, "kinds": rows}
            | _mean(np.mean(means, axis=0), score.accuracy)
        )
    return found


def _mean(shares: np.ndarray[Any, Any], clean: float) -> dict[str, Any]:
    """The mean over images of the share of strengths at which each was answered rightly."""
    mean = shares.mean().item()
    return {"mean": mean, "mean_95": interval(shares.round(6)), "relative": mean / clean if clean else None}


def robustness_text(found: dict[str, Any]) -> str:
    """The kinds as lines of text."""
    lines = [
        f"at {found['tokens']} tokens, under corruption of strength 1 to {STRENGTHS} (clean {found['clean']:.2%}):"
    ]
    for kind, row in (*found["kinds"].items(), ("mean", found)):
        low, high = row["mean_95"]
        relative = "" if row["relative"] is None else f", {row['relative']:.1%} of clean"
        each = "  ".join(f"{share:>7.2%}" for share in row.get("accuracy", ()))
        lines.append(
            f"  {kind:<10}  {each}{'  ' if each else ''}mean {row['mean']:.2%} in [{low:.2%}, {high:.2%}]{relative}"
        )
    return "\n".join(lines)
