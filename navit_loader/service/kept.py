"""One rendering for several trainers: batches that were finished lately, for other clients of their plan.

In: the names of what clients ask for, and batches as they are finished. Out: a batch by its name. Kept are the batches of a
plan of which two clients, both connected, asked for the same one within the last minute: ranks of one run never do, so for
them nothing is held. A batch goes when it is a minute old, or sooner, the oldest first, where the server needs the room.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

if TYPE_CHECKING:
    from ..batch import PackedBatch
    from ..render.encoded import EncodedBatch

C = TypeVar("C", bound=Hashable)

WINDOW_S = 60.0
_NAMES = 16384
"""Requests that are remembered, to see who asks for the same: of 1,000 ranks the last 16 each."""


class Name(NamedTuple):
    """All that a batch was asked for by. Where it lies is part of it: a daemon believes that word for who gave it alone."""

    plan: str
    encoded: bool
    epoch: int
    first: int
    sequences: int
    block: int
    before: int


class _Batch(NamedTuple):
    batch: PackedBatch | EncodedBatch
    nbytes: int
    since: float


class Kept(Generic[C]):
    """The batches, and who asked for what.

    Args:
        here: whether a client is still connected.

    Attributes:
        nbytes: bytes of the batches.
    """

    def __init__(self, here: Callable[[C], bool]) -> None:
        self.nbytes = 0
        self._here = here
        self._askers: OrderedDict[Name, C] = OrderedDict()
        self._repeated: dict[str, float] = {}  # by plan, when a second client asked for the same last
        self._batches: OrderedDict[Name, _Batch] = OrderedDict()

    @property
    def useful(self) -> bool:
        """Whether clients of some plan ask for the same batches."""
        return bool(self._repeated)

    def asked(self, name: Name, client: C) -> None:
        """A client asks for a batch."""
        before = self._askers.pop(name, client)
        self._askers[name] = client
        if len(self._askers) > _NAMES:
            self._askers.popitem(last=False)
        if before is not client and self._here(before):
            self._repeated[name.plan] = time.monotonic()

    def get(self, name: Name) -> PackedBatch | EncodedBatch | None:
        """A batch that is kept."""
        found = self._batches.get(name)
        return None if found is None else found.batch

    def keep(self, name: Name, batch: PackedBatch | EncodedBatch, nbytes: int) -> None:
        """A batch is finished: it is kept if somebody may ask for it again."""
        if name.plan in self._repeated:
            self._drop(name)
            self._batches[name] = _Batch(batch, nbytes, time.monotonic())
            self.nbytes += nbytes

    def trim(self, room: int) -> None:
        """Lets go of what is too old, and of the oldest where all have more than `room` bytes."""
        old = time.monotonic() - WINDOW_S
        while self._batches:
            name, oldest = next(iter(self._batches.items()))
            if self.nbytes <= room and oldest.since >= old:
                break
            self._drop(name)
        for plan in [plan for plan, since in self._repeated.items() if since < old]:
            self.forget(plan)

    def forget(self, plan: str) -> None:
        """Lets go of a plan's batches, until two clients ask for the same again."""
        self._repeated.pop(plan, None)
        for name in [name for name in self._batches if name.plan == plan]:
            self._drop(name)

    def clear(self) -> None:
        """Lets go of all batches."""
        self._batches.clear()
        self.nbytes = 0

    def _drop(self, name: Name) -> None:
        if (gone := self._batches.pop(name, None)) is not None:
            self.nbytes -= gone.nbytes
