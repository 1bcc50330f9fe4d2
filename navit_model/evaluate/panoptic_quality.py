"""Panoptic quality: how well segments are found, and how well they are cut out (arXiv 1801.00868, section 4).

In: two maps of segments of each image and the class of each segment. Out: PQ = SQ · RQ in the mean over the classes, of things
and of stuff. Segments match where their overlap is more than half of their union: so no segment has two. What lies on
unlabelled ground is not counted against anyone, nor is what mostly covers a crowd of its class: as panopticapi has it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Segments = Mapping[int, int]
"""The class of each segment, by its number in the map."""


@dataclass(slots=True)
class PanopticQuality:
    """Sums over images, filled by `add`; several are summed by their `sums`.

    Attributes:
        classes: K.
        sums: f64 `[4, K]`: overlap of the segments that match, their number, those found in vain, those missed.
    """

    classes: int
    sums: npt.NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        self.sums = np.zeros((4, self.classes))

    def add(
        self,
        truth: npt.NDArray[np.int64],
        wanted: Segments,
        told: npt.NDArray[np.int64],
        found: Segments,
        crowds: Sequence[int] = (),
    ) -> None:
        """Takes in one image.

        Args:
            truth: the number of the segment of each pixel; one that `wanted` does not have is unlabelled.
            wanted: of the true segments.
            told: as `truth`, of the same shape.
            found: of the segments told.
            crowds: which of `wanted` are crowds, of whom none has to be found.
        """
        ours, theirs = sorted(found), sorted(wanted)
        # Row 0 and column 0 are all others.
        shape = len(ours) + 1, len(theirs) + 1
        pairs = _places(told, ours) * shape[1] + _places(truth, theirs)
        areas = np.bincount(pairs, minlength=shape[0] * shape[1]).reshape(shape)
        void, own, other = areas[:, 0], areas.sum(1), areas.sum(0)
        crowd = np.array([False, *(n in crowds for n in theirs)])
        kind, wanted_kind = [-1, *(found[n] for n in ours)], np.array([-2, *(wanted[n] for n in theirs)])
        missed = ~crowd & (other > 0)
        missed[0] = False
        for n in range(1, len(ours) + 1):
            if own[n] == 0:
                continue
            share = areas[n] / (own[n] + other - areas[n] - void[n]).clip(1)
            hits = np.flatnonzero((share > 0.5) & (wanted_kind == kind[n]) & ~crowd)
            if len(hits):
                self.sums[:2, kind[n]] += share[hits[0]], 1
                missed[hits[0]] = False
            elif void[n] + areas[n, crowd & (wanted_kind == kind[n])].sum() <= own[n] / 2:
                self.sums[2, kind[n]] += 1
        np.add.at(self.sums[3], wanted_kind[missed], 1)

    def figures(self, things: Sequence[bool]) -> dict[str, Any]:
        """PQ, SQ and RQ in the mean over the classes that there are, then PQ of things and of stuff alone; None where there are
        none.

        Args:
            things: of each class, whether it is countable.
        """
        overlap, right, vain, missed = self.sums
        there = right + vain + missed > 0
        half = np.maximum(right + vain / 2 + missed / 2, 0.5)
        quality = {"pq": overlap / half, "sq": overlap / np.maximum(right, 1), "rq": right / half}
        is_thing = np.array(things, bool)
        found: dict[str, Any] = {name: _mean(values, there) for name, values in quality.items()}
        return found | {
            "pq_things": _mean(quality["pq"], there & is_thing),
            "pq_stuff": _mean(quality["pq"], there & ~is_thing),
        }


def _places(numbers: npt.NDArray[np.int64], known: Sequence[int]) -> npt.NDArray[np.int64]:
    """For each pixel 1 + the place of its segment among the known ones, which rise; 0 where it is none of them."""
    if not known:
        return np.zeros(numbers.size, np.int64)
    table, flat = np.array(known), numbers.ravel()
    place = np.searchsorted(table, flat).clip(max=len(table) - 1)
    return np.where(table[place] == flat, place + 1, 0)


def _mean(values: npt.NDArray[np.float64], there: npt.NDArray[np.bool_]) -> float | None:
    return float(values[there].mean()) if there.any() else None
