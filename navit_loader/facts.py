"""What an index holds, in numbers, from its columns alone.

In: an index. Out: plain values. Apart from who shows them. A part of the index is looked at after another, so that ten million
rows take no more memory than a hundred thousand.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from .batch import NO_CLASS
from .index import Index

Counts = npt.NDArray[np.int64]

SIDES = 2.0 ** (np.arange(8, 65) / 4)
"""Edges of the histogram of sides, from 4 pixels to 65,536; what lies beyond is in the last bin."""

ASPECTS = 2.0 ** (np.arange(-24, 25) / 6)
"""Those of width ÷ height, from 1 : 16 to 16 : 1."""


@dataclass
class Facts:
    """Of an index.

    Attributes:
        nbytes: of all encoded images.
        formats: images by format, the most first.
        turned: images that EXIF turns.
        sides: i64, images by the square root of their area, in bins of `SIDES`.
        aspects: i64, images by width ÷ height, in bins of `ASPECTS`.
        smallest, largest: width and height of the image with the least and with the greatest area.
        given: i64 `[classes]`, how often each label is given; where there are boxes, those of each class.
        unlabelled: images without a label; without a box where there are boxes, and 0 where there are masks alone.
        negatives: images that are known to be of no class.
        captions: i64, images by tokens of their caption, `captions[0]` without one; empty where there are no captions.
    """

    nbytes: int = 0
    formats: list[tuple[str, int]] = field(default_factory=list)
    turned: int = 0
    sides: Counts = field(default_factory=lambda: np.zeros(len(SIDES) - 1, np.int64))
    aspects: Counts = field(default_factory=lambda: np.zeros(len(ASPECTS) - 1, np.int64))
    smallest: tuple[int, int] = (0, 0)
    largest: tuple[int, int] = (0, 0)
    given: Counts = field(default_factory=lambda: np.zeros(0, np.int64))
    unlabelled: int = 0
    negatives: int = 0
    captions: Counts = field(default_factory=lambda: np.zeros(0, np.int64))


def facts_of(index: Index) -> Facts:
    """Counts.

    Raises:
        IndexFileError: the index is damaged.
    """
    columns, found = index.columns(), Facts()
    least, most = np.inf, -1.0
    for width, height in index.sides():
        area = width.astype(np.float64) * height
        found.sides += _histogram(np.sqrt(area), SIDES)
        found.aspects += _histogram(width / height, ASPECTS)
        low, high = int(area.argmin()), int(area.argmax())
        if area[low] < least:
            least, found.smallest = area[low], (int(width[low]), int(height[low]))
        if area[high] > most:
            most, found.largest = area[high], (int(width[high]), int(height[high]))
    found.nbytes = sum(int(part.sum()) for part in columns["length"])
    found.turned = sum(int((part > 1).sum()) for part in columns["orientation"])
    formats = index.table()["format"]
    names = formats.chunk(0).dictionary.to_pylist()
    counts = np.sum([np.bincount(part.indices.to_numpy(), minlength=len(names)) for part in formats.chunks], 0)
    found.formats = sorted(((n, int(c)) for n, c in zip(names, counts, strict=True) if c), key=lambda pair: -pair[1])
    found.given = np.zeros(len(index.classes), np.int64)
    for offsets, values in columns.get("box_labels", ()):
        found.given += np.bincount(values[offsets[0] : offsets[-1]], minlength=len(index.classes))
    for count in columns.get("box_count", ()):
        found.unlabelled += int((count == 0).sum())
    for labels in () if index.boxed or index.masks else columns["labels"]:
        found.given += np.bincount(labels[labels >= 0], minlength=len(index.classes))
        found.unlabelled += int((labels.reshape(-1, index.label_width) == -1).all(axis=1).sum())
        found.negatives += int((labels == NO_CLASS).sum())
    for tokens in columns["caption_tokens"]:
        own = np.bincount(tokens)
        room = max(len(own), len(found.captions))
        found.captions = np.pad(found.captions, (0, room - len(found.captions))) + np.pad(own, (0, room - len(own)))
    return found


def _histogram(values: npt.NDArray[Any], edges: npt.NDArray[Any]) -> Counts:
    return np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0]
