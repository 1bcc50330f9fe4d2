"""A confusion matrix to look at: classes that are taken for each other stand together.

In: names, and how often each label got each answer. Out: SVG, where hovering names a cell; or the most confused pairs, which
are all that can be read of very many classes.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from navit_loader.page import BLUE, RED, themed
from navit_loader.shown import shown

MOST_CLASSES = 100
"""Classes that a matrix is drawn of."""

KEPT_CLASSES = 1000
"""Classes that all counts are kept of; of more the most confused pairs alone."""

WRITTEN = 16
"""Classes up to which counts stand in the cells."""

CELL = (10, 44)
"""Sides of a cell at least and at most; names are as high. Between them the matrix takes `WIDTH`."""

WIDTH = 720

PAIRS = 12
"""Most confused pairs that are shown."""


Pair = tuple[str, str, int, float]
"""Label, answer, images, and their share of the label's."""


def confused_pairs(names: Sequence[str], labels: npt.NDArray[Any], answers: npt.NDArray[Any]) -> list[Pair]:
    """Labels and other answers, i64 `[N]`, as pairs; the most images first."""
    totals = np.bincount(labels, minlength=len(names))
    cells, counts = np.unique(labels * len(names) + answers, return_counts=True)
    found = [
        (names[i], names[j], int(n), float(n / totals[i]))
        for i, j, n in zip(*np.divmod(cells, len(names)), counts, strict=True)
        if i != j
    ]
    return sorted(found, key=lambda pair: (-pair[2], -pair[3]))


def pairs_of(names: Sequence[str], counts: Sequence[Sequence[int]]) -> list[Pair]:
    """The same of a matrix."""
    table = np.array(counts)
    labels, answers = np.nonzero(table)
    times = table[labels, answers]
    return confused_pairs(names, labels.repeat(times), answers.repeat(times))


def confusion_svg(names: Sequence[str], counts: Sequence[Sequence[int]]) -> str:
    """The matrix, rows are labels; the shade of a cell is its share of the row."""
    table = np.array(counts)
    order = _order(table)
    totals = table.sum(1)
    cell = min(max(WIDTH / len(names), CELL[0]), CELL[1])
    side, font = cell * len(names), min(15.0, 0.82 * cell)
    short = [_short(names[i]) for i in order]
    room = 0.6 * font * max(map(len, short)) + 10
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="confusion matrix" '
        f'viewBox="0 0 {room + side:.0f} {room + side:.0f}" '
        f'font-family="system-ui, sans-serif" font-size="{font:.1f}" style="max-width:{room + side:.0f}px">'
        f'<rect x="{room:.1f}" y="{room:.1f}" width="{side:.1f}" height="{side:.1f}" fill="currentColor" fill-opacity=".045"/>'
    ]
    for n, name in enumerate(short):
        at = room + (n + 0.5) * cell + font / 3
        label = f'fill="currentColor" fill-opacity=".75">{html.escape(name)}</text>'
        parts.append(f'<text x="{room - 5:.1f}" y="{at:.1f}" text-anchor="end" {label}')
        parts.append(f'<text transform="translate({at:.1f} {room - 5:.1f}) rotate(-90)" {label}')
    for y, i in enumerate(order):
        for x, j in enumerate(order):
            if not table[i, j]:
                continue
            share = table[i, j] / totals[i]
            place = f'x="{room + x * cell:.1f}" y="{room + y * cell:.1f}" width="{cell:.2f}" height="{cell:.2f}"'
            said = f"{shown(names[i])} → {shown(names[j])}: {table[i, j]:,} of {totals[i]:,} images"
            parts.append(
                f'<rect {place} fill="{BLUE if i == j else RED}" fill-opacity="{0.12 + 0.83 * share**0.7:.2f}">'
                f"<title>{html.escape(said)}</title></rect>"
            )
            if len(names) <= WRITTEN:
                middle = f'x="{room + (x + 0.5) * cell:.1f}" y="{room + (y + 0.5) * cell + font / 3:.1f}"'
                colour = "#fff" if share > 0.5 else "currentColor"
                parts.append(
                    f'<text {middle} text-anchor="middle" fill="{colour}" pointer-events="none">{table[i, j]:,}</text>'
                )
    return themed("".join(parts) + "</svg>")


def _short(name: str) -> str:
    name = shown(name)
    return name if len(name) <= 24 else name[:23] + "…"


def _order(table: npt.NDArray[Any]) -> list[int]:
    """Classes so that those taken for each other are neighbours."""
    if len(table) < 3:
        return list(range(len(table)))
    from scipy.cluster.hierarchy import leaves_list, linkage, optimal_leaf_ordering
    from scipy.spatial.distance import squareform

    share = table / np.maximum(table.sum(1, keepdims=True), 1)
    apart = 1.0 - np.minimum(share + share.T, 1.0)
    np.fill_diagonal(apart, 0.0)
    flat = squareform(apart, checks=False)
    return [int(n) for n in leaves_list(optimal_leaf_ordering(linkage(flat, "average"), flat))]
