"""Second opinions: is an image gone everywhere, or only where its batch was made?

In: answers for one batch from two daemons. Out: the one to take, and who lacks what another has. A daemon masks what it cannot
have, in the belief that every replica sees the same; a disk that lost files, or a copy that is not whole, breaks that belief,
and the trainer would see other batches than with one replica. Apart from the connection, which asks.
"""

from __future__ import annotations

import logging
import time
from collections import Counter

import numpy as np

from ..batch import FAILED, PackedBatch
from ..render.encoded import EncodedBatch

log = logging.getLogger("navit_loader.client")

Answer = PackedBatch | EncodedBatch
Image = tuple[int, int]
"""Source and row."""

_REMEMBERED = 1 << 20
_TOLD_EVERY_S = 10.0


class Opinions:
    """What two daemons agreed on.

    Attributes:
        lacking: by address, images that were masked there and came from another daemon.
    """

    def __init__(self) -> None:
        self.lacking: Counter[str] = Counter()
        self._gone: set[Image] = set()  # two daemons have masked it
        self._told: dict[str, float] = {}

    def doubted(self, answer: Answer) -> bool:
        """Whether an image is masked that nobody else was asked about."""
        return not _masked(answer) <= self._gone

    def better(self, first: tuple[str, Answer], second: tuple[str, Answer]) -> Answer:
        """The answer with fewer masked images; what is masked in both is asked about no more.

        Args:
            first: a daemon's address, and its answer.
            second: the same of the one that was asked about it.
        """
        masked = [_masked(answer) for _, answer in (first, second)]
        if len(self._gone) > _REMEMBERED:
            self._gone.clear()
        self._gone |= masked[0] & masked[1]
        for (address, _), own, (other, _), theirs in (
            (first, masked[0], second, masked[1]),
            (second, masked[1], first, masked[0]),
        ):
            if lacks := own - theirs:
                self._tell(address, other, lacks)
        return second[1] if len(masked[1]) < len(masked[0]) else first[1]

    def forget(self) -> None:
        """Rows stand for other images from now on."""
        self._gone.clear()

    def _tell(self, address: str, other: str, lacks: set[Image]) -> None:
        self.lacking[address] += len(lacks)
        now = time.monotonic()
        if now - self._told.get(address, -_TOLD_EVERY_S) >= _TOLD_EVERY_S:
            self._told[address] = now
            source, row = min(lacks)
            log.warning(
                "endpoint=%s has masked %d images so far that %s has, such as row %d of source %d; its ledger names them",
                address, self.lacking[address], other, row, source,
            )  # fmt: skip


def _masked(answer: Answer) -> set[Image]:
    slots = answer.slots if isinstance(answer, EncodedBatch) else answer
    at = np.nonzero(slots.status == FAILED)
    return set(zip(slots.source_ids[at].tolist(), slots.image_ids[at].tolist(), strict=True))
