"""Folders that are read as one class each, although they are something else.

In: a folder, and the names at its top. Out: whether these are splits of a data set, and which; which tables lie beside the
images. Apart from `folder`, which reads what it is given, since whoever trains on it takes or refuses what an index only notes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from .rows import IMAGE_SUFFIXES

SPLITS = ("train", "training", "validation", "valid", "val", "dev", "test", "testing", "eval")
"""What the folders of splits are called, in lower case."""

_HELD_OUT = ("heldout", "held-out", "held_out")
_LEARNT = ("train", "training")
_SCORED = ("val", "valid", "validation", "dev", *_HELD_OUT, "eval", "test", "testing")
"""The first that is there is scored while a run goes: that is what images of validation are for, and tests are not."""

_COCO = (b'"images"', b'"annotations"', b'"categories"')
_HEAD = 4096
"""Bytes of a JSON in which a COCO file has the first of its keys."""

_SHOWN = 3


def are_splits(folder: str, tops: Iterable[str]) -> bool:
    """Whether all top folders, two at least, are called as splits are, and one of them holds folders, which are the classes."""
    tops = list(tops)
    if len(tops) < 2 or not all(top.lower() in (*SPLITS, *_HELD_OUT) for top in tops):
        return False
    return any(entry.is_dir() for top in tops for entry in _entries(os.path.join(folder, top)))


@dataclass(frozen=True, slots=True)
class Splits:
    """The splits that a folder holds.

    Attributes:
        names: of all.
        learnt: the one of training; empty where there is none with folders of classes.
        scored: the one to score by; empty where there is none with folders of classes.
        flat: whether none has folders of classes.
    """

    names: list[str]
    learnt: str
    scored: str
    flat: bool


def splits_of(folder: str) -> Splits | None:
    """The splits in a folder, where all folders with images, two at least, are called as splits are; else None."""
    inside = [entry for entry in _entries(folder) if entry.is_dir()]
    called = {entry.name.lower(): entry for entry in inside if entry.name.lower() in (*SPLITS, *_HELD_OUT)}
    if len(called) < 2 or any(_holds_images(entry.path) for entry in inside if entry not in called.values()):
        return None
    called = {name: entry for name, entry in called.items() if _holds_images(entry.path)}
    if len(called) < 2:
        return None
    of_classes = [name for name, entry in called.items() if any(inner.is_dir() for inner in _entries(entry.path))]
    learnt, scored = (
        next((called[name].name for name in names if name in of_classes), "") for names in (_LEARNT, _SCORED)
    )
    return Splits([entry.name for entry in called.values()], learnt, scored, not of_classes)


def _holds_images(folder: str) -> bool:
    walked = os.walk(folder, followlinks=False)
    return any(os.path.splitext(name)[1][1:].lower() in IMAGE_SUFFIXES for _, _, names in walked for name in names)


def tables_in(folder: str) -> str:
    """The tables of a folder and of those in it, a few by their paths; empty where there is none."""
    found = list(_tables(folder))
    for entry in _entries(folder):
        if entry.is_dir():
            found += _tables(entry.path)
    more = f" and {len(found) - _SHOWN:,} more" if len(found) > _SHOWN else ""
    return ", ".join(f"'{path}'" for path in found[:_SHOWN]) + more


def _tables(folder: str) -> Iterator[str]:
    for entry in _entries(folder):
        end = os.path.splitext(entry.name)[1].lower()
        if entry.is_file() and (end in (".csv", ".jsonl", ".parquet") or (end == ".json" and _is_coco(entry.path))):
            yield entry.path


def _is_coco(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            head = file.read(_HEAD)
    except OSError:
        return False
    return any(key in head for key in _COCO)


def _entries(folder: str) -> list[os.DirEntry[str]]:
    """By name, without hidden ones; none where the folder cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except OSError:
        return []
