"""What of a set of images is learnt, and what is scored: a split that keeps equal pictures on one side, or two sides as given.

In: an index, perhaps a second of one's own held-out images. Out: two indexes on disk, and what is said of them. Apart from
`fit`, which asks for them once and reads them ever after.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from navit_loader.errors import IndexFileError
from navit_loader.index import Index
from navit_loader.index.sources.misread import tables_in
from navit_loader.index.subset import split_groups, write_subset
from navit_loader.progress import watching
from navit_loader.shown import counted, say

from .twins import Twins, find_twins

FEWEST = 8
"""Labelled images; of fewer no score means anything."""

SHOWN = 12
"""Classes that are listed at most."""


def split(index: Index, where: str, share: float, train_path: Path, held_path: Path) -> str:
    """Writes both parts of one set.

    Args:
        index: of all images.
        where: what it was made of.
        share: of each class that is held out.
        train_path, held_path: of the parts.

    Returns:
        What is held out, in words.

    Raises:
        IndexFileError: no such split can be learnt and scored.
    """
    _check(index, where)
    say("looking for equal and nearly equal pictures")
    with watching("comparing"):
        twins, labels = find_twins(index), index.labels()
    usable = _usable(index, twins, where)
    double = int((twins.groups != np.arange(len(twins.groups)))[usable].sum())
    held = split_groups(index, share, 0, twins.groups, usable)
    first = twins.groups
    odd = np.flatnonzero(usable & usable[first] & (labels != labels[first]).any(1))
    if len(odd):
        say(f"  {counted(len(odd), 'picture')} with a twin of another label, such as {index.uri(int(odd[0]))} and "
            f"{index.uri(int(first[odd[0]]))}")  # fmt: skip
    for path, keep in ((train_path, usable & ~held), (held_path, held)):
        write_subset(index, keep, path)
    kind = "class" if index.targets is None else "range of the numbers"
    said = f"{int(held.sum()):,} of {int(usable.sum()):,} images, a share of each {kind}"
    return said + (f"; {counted(double, 'twin')} on the side of the picture" if double else "")


def sides(index: Index, where: str, held: Index, held_where: str, train_path: Path, held_path: Path) -> str:
    """Writes two sets as they are given, but for pictures that are in both: these are scored, and not learnt.

    Args:
        index, held: of the images to learn from, and of those to score by.
        where, held_where: what they were made of.
        train_path, held_path: of the parts.

    Returns:
        What is held out, in words.

    Raises:
        IndexFileError: nothing would be learnt or scored.
    """
    _check(index, where)
    say("looking for pictures that are on both sides")
    with watching("comparing"):
        twins, many = find_twins(index, held), index.num_rows
    learnt = _usable(index, Twins(twins.groups[:many], twins.decoded[:many]), where)
    scored = _usable(held, Twins(twins.groups[many:], twins.decoded[many:]), held_where)
    mine, theirs = twins.groups[:many], twins.groups[many:]
    both = learnt & np.isin(mine, theirs[scored])
    if both.any():
        first = int(np.flatnonzero(both)[0])
        other = int(np.flatnonzero(scored & (theirs == mine[first]))[0])
        say(f"  left out of training: {counted(int(both.sum()), 'picture')} also held out, such as {index.uri(first)}, "
            f"which is {held.uri(other)}")  # fmt: skip
    if not (learnt & ~both).any():
        raise IndexFileError(f"all pictures of '{where}' are in '{held_where}' too; give others to score by")
    if index.targets is None:
        for part, keep, what in ((index, learnt & ~both, "to learn"), (held, scored, "to score")):
            labels = part.labels()[keep]
            counts = np.bincount(labels[labels >= 0], minlength=len(index.classes))
            if none := [name for name, n in zip(index.classes, counts, strict=True) if not n]:
                more = f" and {len(none) - SHOWN:,} more" if len(none) > SHOWN else ""
                say(f"  no image {what} of {counted(len(none), 'class', 'classes')}: {', '.join(none[:SHOWN])}{more}")
    for part, keep, path in ((index, learnt & ~both, train_path), (held, scored, held_path)):
        write_subset(part, keep, path)
    return f"{counted(int(scored.sum()), 'image')} of {held_where}, as given"


def _check(index: Index, where: str) -> None:
    """Whether there is something to learn.

    Raises:
        IndexFileError: says what to give.
    """
    labels = index.labels()
    many = int((labels[:, 0] != -1).sum())
    # The images' folder is a class where their table was meant.
    tables = tables_in(where) if os.path.isdir(where) else ""
    beside = f"; or, if their labels stand in {tables}, give that" if tables else ""
    if not many:
        raise IndexFileError(
            f"no image of '{where}' has a label; put each class into a folder of its own, or give --label-column or "
            f"--target-column{beside}"
        )
    if many < FEWEST:
        raise IndexFileError(
            f"'{where}' has {counted(many, 'labelled image')}; fit needs {FEWEST} at least, and hundreds to be of use"
        )
    present = np.unique(labels[labels >= 0])
    if len(present) < 2:
        only = f"'{index.classes[present[0]]}'" if len(present) else "none"
        if index.targets is not None:
            raise IndexFileError(
                f"all images of '{where}' have the number {only}; give others, or another --target-column"
            )
        inner = os.path.join(where, index.classes[present[0]]) if len(present) else ""
        if inner and os.path.isdir(inner) and sum(entry.is_dir() for entry in os.scandir(inner)) > 1:
            beside += f"; or, if the folders in '{inner}' are the classes, give that"
        raise IndexFileError(
            f"all images of '{where}' are of one class, {only}; give two at least, a folder for each, in one folder{beside}"
        )


def _usable(index: Index, twins: Twins, where: str) -> np.ndarray[Any, Any]:
    """bool `[num_rows]`: what has a label and pixels; says what has not."""
    labelled = index.labels()[:, 0] != -1
    usable = labelled & twins.decoded
    if bad := np.flatnonzero(~twins.decoded).tolist():
        say(f"  left out: {counted(len(bad), 'image')} that cannot be decoded, such as {index.uri(bad[0])}")
    if not labelled.all():
        say(f"  left out: {counted(int((~labelled).sum()), 'image')} without a label")
    if not labelled.any():
        raise IndexFileError(f"no image of '{where}' has a label; give images whose answers are known")
    if not usable.any():
        raise IndexFileError(f"no image of '{where}' can be decoded; navit-loader lint says why of each")
    found: np.ndarray[Any, Any] = usable
    return found
