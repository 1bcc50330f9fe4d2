"""Parts of an index as indexes of their own, such as a training and a held-out part.

In: an index and the rows wanted. Out: an index file with the same class table, over the same data; no image is looked
at.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from ..errors import IndexFileError
from ..shown import counted
from .reader import Index
from .write import survey, write_index


def split_rows(index: Index, fraction: float, seed: int) -> np.ndarray[Any, Any]:
    """Draws a share of every class (of the first label, where an image has several), or of every range of numbers.

    A row's draw depends on the seed and its name alone, so images that are added later move few others. Every class
    gives its share rounded down or up, such that the total is the fraction of all rows, to the nearest image.

    Args:
        index: what to draw from.
        fraction: the share, above 0 and below 1.
        seed: another seed draws other images.

    Returns:
        bool `[num_rows]`, True for the drawn ones.

    Raises:
        IndexFileError: a fraction out of range, or one that leaves one of the parts empty.
    """
    if not 0 < fraction < 1:
        raise IndexFileError(f"fraction is {fraction}; allowed: above 0 and below 1")
    index.check()
    table = index.table()
    keys = np.fromiter((_draw(seed, name.as_py()) for name in table["name"]), np.uint64, index.num_rows)
    labels = _strata(index)
    classes, counts = np.unique(labels, return_counts=True)
    exact = counts * fraction
    taken = np.floor(exact).astype(np.int64)
    rest = round(index.num_rows * fraction) - int(taken.sum())
    # Largest remainders first; a tie goes to the lower label.
    for i in np.argsort(taken - exact, kind="stable")[: max(0, rest)]:
        taken[i] += 1
    if not 0 < taken.sum() < index.num_rows:
        raise IndexFileError(f"fraction {fraction} of {index.num_rows} images leaves one part empty; choose another")
    drawn = np.zeros(index.num_rows, bool)
    for label, count in zip(classes, taken, strict=True):
        rows = np.flatnonzero(labels == label)
        drawn[rows[np.argsort(keys[rows], kind="stable")[:count]]] = True
    return drawn


def split_groups(
    index: Index, fraction: float, seed: int, groups: np.ndarray[Any, Any], usable: np.ndarray[Any, Any]
) -> np.ndarray[Any, Any]:
    """Draws a share of every class, whole groups of rows at a time: one at least, and never all.

    Args:
        index: what to draw from.
        fraction: the share, above 0 and below 1, of each class.
        seed: another seed draws other images.
        groups: `[num_rows]`; rows of one number stay on one side.
        usable: bool `[num_rows]`; others are not drawn, and do not count.

    Returns:
        bool `[num_rows]`, True for the drawn ones.

    Raises:
        IndexFileError: classes whose rows are all of one group.
    """
    names = index.table()["name"]
    keys = np.fromiter((_draw(seed, name.as_py()) for name in names), np.uint64, index.num_rows)
    labels = _strata(index)
    drawn, kept = np.zeros(index.num_rows, bool), np.zeros(index.num_rows, bool)
    order = np.argsort(groups, kind="stable")
    first, last = (np.searchsorted(groups[order], groups, side) for side in ("left", "right"))
    alone = []
    # The rarest classes first: a group that spans two classes goes where the rarer one needs it.
    present, counts = np.unique(labels[usable], return_counts=True)
    for label in present[np.argsort(counts, kind="stable")]:
        rows = np.flatnonzero((labels == label) & usable)
        if len(np.unique(groups[rows])) < 2:
            alone.append("of no class" if label < 0 else index.classes[label] if index.targets is None else "a range")
            continue
        wanted, have = max(1, round(len(rows) * fraction)), int(drawn[rows].sum())
        for row in rows[np.argsort(keys[rows], kind="stable")]:
            if drawn[row] or kept[row]:
                continue
            own = order[first[row] : last[row]]
            own = own[usable[own]]
            more = int((labels[own] == label).sum())
            if have + more < len(rows) and (have + more <= wanted or not have):
                drawn[own] = True
                have += more
            else:
                kept[own] = True
    if alone:
        raise IndexFileError(
            f"{counted(len(alone), 'class', 'classes')} with one picture each, which cannot be both learnt and held out: "
            f"{', '.join(alone[:12])}{' …' if len(alone) > 12 else ''}; give them more images (copies do not count), or take "
            "them away"
        )
    return drawn


def write_subset(index: Index, keep: np.ndarray[Any, Any], output: str | os.PathLike[str]) -> None:
    """Writes the rows of `index` where `keep` (bool `[num_rows]`) as an index at `output`.

    Raises:
        IndexFileError: no row is kept, or the output cannot be written.
    """
    if not keep.any():
        raise IndexFileError(f"no row of '{index.path}' is kept; an index needs one at least")
    rows = index.as_rows(annotated=True)

    def batches() -> Iterator[pa.RecordBatch]:
        start = 0
        for batch in rows:
            kept = keep[start : start + len(batch)]
            start += len(batch)
            if kept.any():
                yield batch.filter(pa.array(kept))

    path = os.path.abspath(os.fspath(output))
    found = survey(batches, index.root, index.classes, index.tokens)
    annotated = json.dumps(index.annotated) if index.annotated else ""
    targets = index.targets is not None
    write_index(path, batches, found, index.root, index.classes, index.tokens, targets=targets, annotated=annotated)


def _strata(index: Index) -> np.ndarray[Any, Any]:
    """i64 `[num_rows]`: of what each row is one: its first label, or the sixteenth (of a small set, a larger part) of the
    numbers that its own is in; −1 for none."""
    labels = index.labels()[:, 0]
    if index.targets is None:
        return labels
    rows = np.flatnonzero(labels >= 0)
    ordered = rows[np.argsort(index.targets[labels[rows]], kind="stable")]
    parts = max(1, min(16, len(rows) // 16))
    found = np.full(len(labels), -1, np.int64)
    found[ordered] = np.arange(len(rows)) * parts // max(1, len(rows))
    return found


def _draw(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest(), "little")
