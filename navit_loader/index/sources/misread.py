"""Folders that are read as one class each, although they are something else.

In: a folder, and the names at its top. Out: whether these are splits of a data set, and which tables lie beside the images.
Apart from `folder`, which reads what it is given, since whoever trains on it refuses what an index only notes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

SPLITS = ("train", "training", "validation", "valid", "val", "dev", "test", "testing", "eval")
"""What the folders of splits are called, in lower case."""

_HELD_OUT = ("heldout", "held-out", "held_out")
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
