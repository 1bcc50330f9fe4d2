"""The worst mistakes, to look at: images that were answered wrongly, by how sure the model was.

In: the answers of a budget, and the index. Out: plain values for JSON, with a small picture each. Apart, since it alone goes
back to the images: those few are decoded again, here for numbers that are far off too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from navit_loader.batch import NO_CLASS
from navit_loader.config import LoaderConfig
from navit_loader.index import open_index
from navit_loader.page import data_url
from navit_loader.picture import pixels_of

from ..world import World
from .cascade import Answers
from .sources import source_batches

MOST = 24
"""Mistakes that are pictured."""

SIDE = 112
"""Pixels of a picture, as the square root of its area."""


def worst_mistakes(
    answers: Answers, index: str, config: LoaderConfig, classes: Sequence[str], world: World
) -> list[dict[str, Any]]:
    """The most confident wrong answers, surest first: `image` (its name), `labels`, `predicted`, `confidence` and
    `picture` (a data URL). Images that could not be read are none of them.

    Args:
        answers: of `judge(..., keep=len(classes))`.
        index, config, classes: those of the pass.
        world: for the device alone; one rank decodes.
    """
    assert answers.chances is not None and answers.labels is not None
    chances = answers.chances.numpy()
    wrong = (answers.counted.numpy() > 0) & (answers.right.numpy() == 0) & chances.any(1)
    sure = np.where(wrong, answers.sure.numpy(), -1.0)
    rows = np.argsort(-sure, kind="stable")[: min(MOST, int(wrong.sum()))]
    pictures, opened = pictures_of(rows.tolist(), index, config, world), open_index(index)
    return [
        {
            "image": opened.uri(row),
            "labels": _names(answers.labels[row].tolist(), classes),
            "predicted": classes[int(chances[row].argmax())],
            "confidence": float(sure[row]),
            "picture": pictures.get(row, ""),
        }
        for row in rows.tolist()
    ]


def pictures_of(rows: Sequence[int], index: str, config: LoaderConfig, world: World) -> dict[int, str]:
    """A data URL of each of these rows that can be decoded; see `worst_mistakes`."""
    if not rows:
        return {}
    alone = World(0, 1, world.device)
    where = f"row in ({', '.join(map(str, sorted(rows)))},)"
    return {
        row: data_url(pixels)
        for batch in source_batches(index, config, SIDE**2, alone, where)
        for row, _, pixels in pixels_of(batch)
    }


def _names(labels: Sequence[float], classes: Sequence[str]) -> list[str]:
    return [] if labels[0] == NO_CLASS else [classes[int(label)] for label in labels if label >= 0]
