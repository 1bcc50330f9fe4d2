"""What the daemon remembers of a client, of a batch that is on its way to it, and of one that is being rendered. None of it
matters: a client that loses it says hello again.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .kept import Name
from .protocol import GetBatch, GetEncoded

if TYPE_CHECKING:
    from .._packer import PlannedBatch
    from ..render.encoded import PendingEncoded
    from ..render.pending import Pending
    from .shm import Loans


@dataclass(eq=False, slots=True)
class Session:
    """A client that has said hello: its name, plan, and what it asked for; the key that it showed, empty without keys."""

    peer: bytes
    key: str
    client: str
    plan: str
    heard: float
    asked: int = 0  # requests without an answer yet
    starved: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    token: str = ""  # by which it may fetch shared memory
    loans: Loans | None = None


@dataclass(eq=False, slots=True)
class Delivery:
    """One batch on its way to a client: asked for, being planned, planned, or being rendered."""

    session: Session
    request: GetBatch | GetEncoded
    nbytes: int
    name: Name
    planning: bool = False
    planned: PlannedBatch | None = None


@dataclass(eq=False, slots=True)
class Rendering:
    """A batch that an engine is making, and who is to have it."""

    pending: Pending | PendingEncoded
    takers: list[Delivery]
