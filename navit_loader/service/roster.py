"""Where a fleet's daemons are, as they come and go: what a connection follows in place of a fixed list of addresses.

In: news from whoever places daemons. Out: rosters. Apart from that, since a connection need not know who it is (`fleet`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from .security import ClientKeys


@dataclass(frozen=True, slots=True)
class Roster:
    """The daemons of one moment.

    Attributes:
        token: names this roster; what comes later has another one.
        addresses: where they are.
        keys: what they demand; None for none.
        ended: why there will never be another one; empty as long as there may.
    """

    token: str
    addresses: tuple[str, ...]
    keys: ClientKeys | None
    ended: str = ""


@runtime_checkable
class Followed(Protocol):
    """Whoever knows where daemons are. Looked at between other things: it never waits."""

    def news(self) -> Roster | None:
        """The newest roster, once; None where it is known already."""

    def fileno(self) -> int:
        """Readable where there may be news."""

    @property
    def state(self) -> str:
        """What it knows, in words."""

    def close(self) -> None:
        """Follows no more. Safe to call twice."""
