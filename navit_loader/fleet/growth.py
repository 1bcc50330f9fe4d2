"""How many daemons a fleet should have: a rule over figures, without Ray, clocks or threads.

In: what the daemons have counted so far, at times. Out: now and then another number, with the figures that speak for it.

A trainer that computes for c and waits for w of each second starves for the share s = w / (c + w). n daemons that make all
they can then make 1 − s of what it would take, so n / (1 − s) would suffice. And n daemons that are busy for the share b of
their time have the work of n·b, which fewer could do, `FULL` busy. Between two numbers there are the times of `Growth`, so that
the figures are those of the number at hand; and no step more than doubles or halves, since a trainer can starve for other
reasons too.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..errors import ConfigError
from ..schema import require
from .registry import Report

FULL = 0.7
"""The share of its time for which a daemon may be busy before one fewer is too few."""

_AGREE = 2  # parts of a window that must each be above the target: one pause of one trainer is no lack


@dataclass(frozen=True, slots=True)
class Growth:
    """Bounds and times.

    Attributes:
        least, most: daemons.
        starved: the share of their time for which trainers may wait for batches.
        cool_s: for so long daemons must idle before there are fewer; for a quarter of it trainers must starve before there are
            more. Both from the moment on at which the number last changed.
    """

    least: int = 1
    most: int = 1
    starved: float = 0.02
    cool_s: float = 60.0

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most:
            raise ConfigError(
                f"daemons = {self.least}:{self.most} is not allowed; give a number, or MIN:MAX with 1 ≤ MIN ≤ MAX"
            )
        require(0 < self.starved < 1, "starved", self.starved, "above 0 and below 1")
        # Each part of a window takes more than two reports.
        require(10 <= self.cool_s < 1e6, "cool_s", self.cool_s, "at least 10 and below 1,000,000 seconds")


@dataclass(frozen=True, slots=True)
class Decision:
    """Another number of daemons.

    Attributes:
        daemons: how many there are to be.
        before: how many there were to be.
        serving: how many serve.
        trainers: how many ask for batches.
        starved, busy: the shares, in the mean over trainers and daemons.
        seconds: over which they were taken.
    """

    daemons: int
    before: int
    serving: int
    trainers: int
    starved: float
    busy: float
    seconds: float

    def __str__(self) -> str:
        return (
            f"daemons={self.daemons} before={self.before} serving={self.serving} trainers={self.trainers} "
            f"starved={self.starved:.1%} busy={self.busy:.1%} seconds={self.seconds:.0f}"
        )


@dataclass(frozen=True, slots=True)
class _Sample:
    at: float
    starved: float
    busy: float
    trainers: int


class Grower:
    """Decides.

    Args:
        growth: bounds and times.
    """

    def __init__(self, growth: Growth) -> None:
        self._growth = growth
        self.wanted = growth.least
        self._last: dict[str, tuple[float, float]] = {}
        self._starved = self._busy = 0.0
        self._serving: frozenset[str] = frozenset()
        self._samples: deque[_Sample] = deque()

    def look(self, now: float, reports: Iterable[Report]) -> Decision | None:
        """To be called twice a second or so with the reports of all daemons.

        Returns:
            A new number, which `wanted` is from then on; None to go on as it is.
        """
        serving = {report.born: report for report in reports if report.address}
        self._count(serving)
        if serving.keys() != self._serving:
            self._serving = frozenset(serving)
            self._samples.clear()
        trainers = max((report.trainers for report in serving.values()), default=0)
        self._samples.append(_Sample(now, self._starved, self._busy, trainers))
        while len(self._samples) > 2 and self._samples[1].at <= now - self._growth.cool_s:
            self._samples.popleft()
        found = self._more(now) or self._fewer(now)
        if found is not None:
            self.wanted = found.daemons
            self._samples.clear()
        return found

    def _count(self, serving: Mapping[str, Report]) -> None:
        for born, report in serving.items():
            starved, busy = self._last.get(born, (0.0, 0.0))
            self._starved += report.starved_s - starved
            self._busy += report.busy_s - busy
        self._last = {born: (report.starved_s, report.busy_s) for born, report in serving.items()}

    def _more(self, now: float) -> Decision | None:
        growth, n = self._growth, len(self._serving)
        window = growth.cool_s / 4
        if n < self.wanted or self.wanted >= growth.most or self._samples[0].at > now - window:
            return None
        parts = [self._shares(now - window * (i + 1) / _AGREE, now - window * i / _AGREE) for i in range(_AGREE)]
        if not all(part.starved > growth.starved for part in parts):
            return None
        found = self._shares(now - window, now)
        enough = math.ceil(n / max(1 - found.starved, 0.5))
        return self._decided(min(growth.most, max(n + 1, enough)), found, window)

    def _fewer(self, now: float) -> Decision | None:
        growth, n = self._growth, len(self._serving)
        if self.wanted <= growth.least or self._samples[0].at > now - growth.cool_s:
            return None
        found = self._shares(now - growth.cool_s, now)
        enough = max(growth.least, math.ceil(n * found.busy / FULL), self.wanted // 2)
        if found.starved > growth.starved or enough >= self.wanted:
            return None
        return self._decided(enough, found, growth.cool_s)

    def _decided(self, daemons: int, found: _Sample, seconds: float) -> Decision:
        serving = len(self._serving)
        return Decision(daemons, self.wanted, serving, found.trainers, found.starved, found.busy, seconds)

    def _shares(self, since: float, until: float) -> _Sample:
        """Shares between two moments, and the trainers then."""
        before = [s for s in self._samples if s.at <= since]
        some = [*before[-1:], *(s for s in self._samples if since < s.at <= until)]
        seconds = some[-1].at - some[0].at
        trainers = max(s.trainers for s in some)
        if seconds <= 0:
            return _Sample(until, 0.0, 1.0, trainers)
        starved = (some[-1].starved - some[0].starved) / (seconds * max(1, trainers))
        busy = (some[-1].busy - some[0].busy) / (seconds * max(1, len(self._serving)))
        return _Sample(until, min(1.0, starved), min(1.0, busy), trainers)
