"""The registry: an actor by the fleet's name, which knows where its daemons are and what they do.

In: the daemons' reports, a few a second. Out: rosters for clients, which wait for the next one, and figures for whoever grows
the fleet. It holds nothing that matters: its keys are arguments, so Ray starts it with the same ones, and the daemons tell the
rest.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from dataclasses import dataclass, field

from ..errors import needed
from ..service.roster import Roster
from ..service.security import ClientKeys

REPORT_S = 0.5
"""Between two reports of a daemon."""

SILENT_S = 5.0
"""After so long without a report a daemon is taken off the roster. Whoever is connected to it learns sooner that it is gone."""

_KEPT_S = 10.0
_LOOK_S = 0.5
_GATHER_S = 0.05  # where a thousand daemons come at once, clients are not told of each


@dataclass(frozen=True, slots=True)
class Report:
    """What a daemon says of itself.

    Attributes:
        number: its place in the fleet; a daemon that Ray has restarted has its predecessor's.
        born: names this process.
        node: the host.
        address: where it serves; empty where it does not, or is about to stop.
        why: why it does not serve, if it cannot.
        trainers: clients that have asked for something lately.
        starved_s: seconds that trainers have waited for batches, since it was born.
        busy_s: seconds in which it had something to do, since it was born.
    """

    number: int
    born: str
    node: str
    address: str = ""
    why: str = ""
    trainers: int = 0
    starved_s: float = 0.0
    busy_s: float = 0.0


@dataclass(slots=True)
class _Heard:
    report: Report
    at: float = field(default_factory=time.monotonic)


class Registry:
    """Made by `launch` as an actor, whose methods run beside one another on one loop.

    Args:
        name: the fleet's.
        keys: what clients need.
    """

    def __init__(self, name: str, keys: ClientKeys) -> None:
        self._name, self._keys = name, keys
        self._token, self._number = secrets.token_hex(8), 0
        # Where Ray has started it again, nobody is told a roster until all daemons have had time to report: clients would let
        # go of those that are not on it.
        again = needed("ray").get_runtime_context().was_current_actor_reconstructed
        self._settled = time.monotonic() + (SILENT_S if again else 0.0)
        self._daemons: dict[int, _Heard] = {}
        self._ended = ""
        self._looked = 0.0
        self._changed = asyncio.Condition()

    async def report(self, report: Report) -> None:
        """A daemon is there."""
        before = self._daemons.get(report.number)
        self._daemons[report.number] = _Heard(report)
        if (before.report.address if before else "") != report.address:
            await self._tell()
        await self._look()

    async def watch(self, token: str) -> Roster:
        """The roster, as soon as it is another one than that of `token`; or the same, after a while."""
        await asyncio.sleep(max(0.0, self._settled - time.monotonic()))
        until = time.monotonic() + _KEPT_S
        while self._now == token and time.monotonic() < until:
            async with self._changed:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait_for(lambda: self._now != token), 2 * _LOOK_S)
            await self._look()
        await asyncio.sleep(_GATHER_S)
        addresses = (heard.report.address for _, heard in sorted(self._daemons.items()))
        return Roster(self._now, tuple(a for a in addresses if a and not self._ended), self._keys, self._ended)

    async def reports(self) -> list[Report]:
        """The last word of each daemon, in order."""
        await self._look()
        return [heard.report for _, heard in sorted(self._daemons.items())]

    async def forget(self, number: int) -> None:
        """A daemon was ended."""
        if self._daemons.pop(number, None) is not None:
            await self._tell()

    async def end(self) -> None:
        """The fleet is being stopped: clients are to finish what they asked for and to wait for nothing more."""
        self._ended = f"the fleet '{self._name}' was stopped; start it again, and resume from the last checkpoint"
        await self._tell()

    @property
    def _now(self) -> str:
        return f"{self._token}-{self._number}"

    async def _tell(self) -> None:
        self._number += 1
        async with self._changed:
            self._changed.notify_all()

    async def _look(self) -> None:
        """Takes those off that have fallen silent."""
        now = time.monotonic()
        if now < self._looked + _LOOK_S:
            return
        self._looked = now
        silent = [number for number, heard in self._daemons.items() if now > heard.at + SILENT_S]
        for number in silent:
            await self.forget(number)
