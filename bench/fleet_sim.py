"""A fleet in simulation: how long trainers wait for batches, by number of daemons, while daemons fail and some are slow.

In: measured service times of a daemon's batches (`bench/fleet.json`, which `bench/fleet_growth.py` writes). Out: tables of
the share of time that trainers starve. What is simulated is what the client does (`service/connection.py`,
`deliver/loader.py`): a window of batches asked for ahead, taken in order; each asked of the endpoint with the least in
flight; asked elsewhere when a connection breaks, after one and a half heartbeats of silence, or past the deadline; and what
the daemon does: the fairest one next, one batch at a time. Neither networks nor processors of trainers are:
`docs/rooms/scale.md` says what they take.

    python bench/fleet_sim.py [--trainers 1000] [--seconds 300] [--validate]

`--validate` runs the same small fleets for real, daemons paced at a fixed time a batch, and says how far off the simulation
is.
"""

from __future__ import annotations

import argparse
import heapq
import random
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from typing import Any

import simpy
from kit import RESULTS, Report, parse, read

HANG_UP = 1.5
"""Heartbeats of silence after which a client that waits asks elsewhere; one that does not wait learns of it after three."""


@dataclass(frozen=True)
class Fleet:
    """What is simulated.

    Attributes:
        trainers, daemons: how many.
        step_s: of a trainer, that computes on one batch.
        service: measured seconds a batch, taken in random order, scaled to a mean of `service_s`.
        service_s: the mean.
        ahead: batches asked for in advance.
        endpoints: daemons that each trainer knows, neighbours in the list, from its own place on; 0 for all.
        spread: among endpoints with equally little in flight, the list is begun at the batch's number; else at its start.
        slow: share of the daemons that take `slowness` times as long.
        failures: share of the daemons that fail in an hour; of these `silent` say nothing more, the others' connections break.
        repair_s: until a daemon that failed is back.
        heartbeat_s, deadline_s: as the client's.
        latency_s: of a request and its answer together.
        together: every step waits for all trainers.
        warm_s, seconds: not counted, and counted.
    """

    trainers: int
    daemons: int
    step_s: float = 1.0
    service: tuple[float, ...] = (1.0,)
    service_s: float = 0.25
    ahead: int = 4
    endpoints: int = 0
    spread: bool = True
    slow: float = 0.0
    slowness: float = 2.0
    failures: float = 0.0
    silent: float = 0.5
    repair_s: float = 120.0
    heartbeat_s: float = 1.0
    deadline_s: float = 10.0
    latency_s: float = 0.003
    together: bool = False
    warm_s: float = 30.0
    seconds: float = 300.0
    seed: int = 0


@dataclass(eq=False, slots=True)
class Want:
    """A batch that is wanted by its number in the epoch, when it was asked for last, and where it is asked for."""

    number: int
    since: float = 0.0
    asked: list[Daemon] = field(default_factory=list)
    settled: bool = False


class Daemon:
    """Serves one batch after another, the client that has had the least first (start-time fair queueing, as `fair.py`)."""

    def __init__(self, sim: Simulation, slowness: float) -> None:
        self.sim, self.slowness = sim, slowness
        self.up, self.changed, self.silent = True, -1e9, False
        self.lives = 0
        self.asked: dict[Trainer, list[Want]] = {}
        self._queue: list[tuple[float, int, Trainer, Want]] = []
        self._served: dict[Trainer, float] = {}
        self._now = 0.0
        self._busy = False

    def push(self, trainer: Trainer, want: Want) -> None:
        """A request has come."""
        start = max(self._now, self._served.get(trainer, 0.0))
        self._served[trainer] = start + 1
        heapq.heappush(self._queue, (start, next(self.sim.numbers), trainer, want))
        self._next()

    def _next(self) -> None:
        while not self._busy and self._queue:
            start, _, trainer, want = heapq.heappop(self._queue)
            if want.settled:
                continue  # cancelled: another daemon was quicker
            self._now, self._busy = start, True
            self.sim.after(self.sim.service() * self.slowness, partial(self._done, self.lives, trainer, want))

    def _done(self, life: int, trainer: Trainer, want: Want) -> None:
        if life != self.lives:
            return
        self._busy = False
        self.sim.after(self.sim.fleet.latency_s, partial(trainer.take, self, want))
        self._next()

    def fail(self, silent: bool) -> None:
        """Dies: what it was asked is lost."""
        self.up, self.silent, self.changed = False, silent, self.sim.env.now
        self.lives += 1
        self._queue.clear()
        self._served.clear()
        self._busy = False
        for trainer in self.asked:
            self.sim.after(self.silence(self.changed), partial(trainer.lose, self))

    def silence(self, heard: float) -> float:
        """Seconds from now on until a client that asked at `heard`, or before it fell silent, has noticed."""
        if not self.silent:
            return self.sim.fleet.latency_s
        beat = self.sim.fleet.heartbeat_s
        last = max(heard, self.changed - beat * self.sim.rng.random())
        return max(0.0, last + HANG_UP * beat - self.sim.env.now)

    def known(self) -> bool:
        """Whether clients that wait for nothing of it take it to be there."""
        now, beat = self.sim.env.now, self.sim.fleet.heartbeat_s
        if self.up:
            return now >= self.changed + 0.5  # connected and greeted again
        return self.silent and now < self.changed + 3 * beat


class Trainer:
    """A client: a window of batches ahead, taken in order."""

    def __init__(self, sim: Simulation, rank: int, endpoints: list[Daemon]) -> None:
        self.sim, self._number = sim, rank
        self._endpoints = endpoints
        self._lost: set[Daemon] = set()
        self._ahead: deque[Want] = deque()
        self._waiting: simpy.Event | None = None
        self._news: list[Daemon] = []
        self.starved, self.steps, self._since = 0.0, 0, float("inf")

    def run(self) -> Generator[Any, Any, None]:
        """Steps for ever."""
        fleet, env = self.sim.fleet, self.sim.env
        yield env.timeout(self.sim.rng.random() * fleet.step_s)
        while True:
            self._turn()
            if len(self._ahead) <= fleet.ahead // 2 or not self._ahead[0].settled:
                while len(self._ahead) < fleet.ahead:
                    self._ahead.append(Want(self._number))
                    self._number += fleet.trainers
                    self._ask(self._ahead[-1])
            self._since = env.now
            while not self._ahead[0].settled:
                self._waiting = env.event()
                yield self._waiting | env.timeout(self._overdue())
                self._waiting = None
                self._turn()
            self._ahead.popleft()
            self.starved += self.waited()
            self.steps += env.now >= fleet.warm_s
            self._since = float("inf")
            if fleet.together:
                yield self.sim.arrive()
            yield env.timeout(fleet.step_s)

    def waited(self) -> float:
        """Seconds that it has waited for the batch at hand, of the time that counts."""
        return max(0.0, self.sim.env.now - max(self._since, self.sim.fleet.warm_s))

    def _overdue(self) -> float:
        due = min(w.since for w in self._ahead if not w.settled) + self.sim.fleet.deadline_s
        return max(1e-3, due - self.sim.env.now)

    def _ask(self, want: Want) -> None:
        best = self._choose(want)
        want.since = self.sim.env.now
        if best is None:
            return
        want.asked.append(best)
        best.asked.setdefault(self, []).append(want)
        if best.up:
            best.push(self, want)
        else:
            self.sim.after(best.silence(want.since), partial(self.lose, best))

    def _able(self, daemon: Daemon, want: Want) -> bool:
        if daemon in want.asked or not daemon.known() or (daemon in self._lost and not daemon.up):
            return False
        self._lost.discard(daemon)
        return True

    def _choose(self, want: Want) -> Daemon | None:
        n, spread = len(self._endpoints), self.sim.fleet.spread
        at = self.sim.rng.randrange(n) if spread else 0
        if spread and not want.since:
            turn = self._endpoints[(want.number + want.number // n) % n]
            if self._able(turn, want) and not turn.asked.get(self):
                return turn
        best, least = None, 1 << 30
        for i in range(n):
            daemon = self._endpoints[(at + i) % n]
            asked = len(daemon.asked.get(self, ()))
            if asked < least and self._able(daemon, want):
                best, least = daemon, asked
                if not asked:
                    break
        return best

    def take(self, daemon: Daemon, want: Want) -> None:
        """An answer has come."""
        if daemon in want.asked and not want.settled:
            want.settled = True
            for other in want.asked:
                other.asked[self].remove(want)
            if self._waiting is not None and want is self._ahead[0] and not self._waiting.triggered:
                self._waiting.succeed()

    def lose(self, daemon: Daemon) -> None:
        """The connection is seen to be broken, at the next look if nothing is waited for."""
        self._news.append(daemon)
        if self._waiting is not None:
            self._turn()

    def _turn(self) -> None:
        """What was lost is asked elsewhere, and so is what is past its deadline."""
        fleet, now = self.sim.fleet, self.sim.env.now
        for daemon in self._news:
            if not daemon.up or daemon.changed > now - 1:
                self._lost.add(daemon)
            for want in daemon.asked.pop(self, ()):
                want.asked.remove(daemon)
        self._news.clear()
        for want in self._ahead:
            if not want.settled and (not want.asked or now >= want.since + fleet.deadline_s):
                self._ask(want)


class Simulation:
    """One run of a fleet."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet, self.rng, self.env, self.numbers = fleet, random.Random(fleet.seed), simpy.Environment(), count()
        scale = fleet.service_s * len(fleet.service) / sum(fleet.service)
        self._service = [s * scale for s in fleet.service]
        slow = round(fleet.slow * fleet.daemons)
        self.daemons = [Daemon(self, fleet.slowness if i < slow else 1.0) for i in range(fleet.daemons)]
        self.rng.shuffle(self.daemons)
        self.failed = 0
        self._arrived, self._all = 0, self.env.event()

    def service(self) -> float:
        """Seconds that the next batch takes."""
        return self.rng.choice(self._service)

    def after(self, seconds: float, do: Callable[[], None]) -> None:
        """Does something later."""
        self.env.timeout(seconds).callbacks.append(lambda _: do())

    def arrive(self) -> simpy.Event:
        """A trainer has its batch; what it gets happens when all have."""
        self._arrived += 1
        mine = self._all
        if self._arrived == self.fleet.trainers:
            self._arrived, self._all = 0, self.env.event()
            mine.succeed()
        return mine

    def _failures(self) -> Generator[Any, Any, None]:
        fleet = self.fleet
        while True:
            yield self.env.timeout(self.rng.expovariate(fleet.failures * fleet.daemons / 3600))
            daemon = self.rng.choice(self.daemons)
            if daemon.up:
                self.failed += self.env.now >= fleet.warm_s
                daemon.fail(self.rng.random() < fleet.silent)
                self.after(fleet.repair_s, partial(self._repair, daemon))

    def _repair(self, daemon: Daemon) -> None:
        daemon.up, daemon.changed = True, self.env.now

    def run(self) -> dict[str, float]:
        """Shares of the counted time."""
        fleet = self.fleet
        trainers = []
        for rank in range(fleet.trainers):
            mine = self.daemons
            if fleet.endpoints:
                at = rank * fleet.daemons // fleet.trainers
                mine = [self.daemons[(at + i) % fleet.daemons] for i in range(fleet.endpoints or fleet.daemons)]
            trainers.append(Trainer(self, rank, list(mine)))
            self.env.process(trainers[-1].run())
        if fleet.failures:
            self.env.process(self._failures())
        self.env.run(fleet.warm_s + fleet.seconds)
        steps, starved = sum(t.steps for t in trainers), [t.starved + t.waited() for t in trainers]
        return {
            "starved": sum(starved) / fleet.trainers / fleet.seconds,
            "worst": max(starved) / fleet.seconds,
            "stalled": max(0.0, 1 - steps * fleet.step_s / fleet.trainers / fleet.seconds),
            "failed": float(self.failed),
        }


def simulated(fleet: Fleet, failing: Sequence[tuple[float, int, bool]] = ()) -> dict[str, float]:
    """Shares of a fleet's time; `failing` are daemons that die besides, each with when, which, and whether silently."""
    sim = Simulation(fleet)
    for at, which, silent in failing:
        sim.after(at, partial(sim.daemons[which].fail, silent))
    return sim.run()


HEADS = {"starved": "starved, mean", "worst": "starved, worst trainer", "stalled": "time lost"}
GOAL = "60 times as many failures"
"""The fleet of which no more than half a percent may be starved (1 % failing an hour, and sixty times as many)."""


def shares(report: Report, table: str, fleets: dict[str, Fleet]) -> None:
    """Rows for each fleet."""
    for name, fleet in fleets.items():
        found = simulated(fleet)
        for key, words in HEADS.items():
            goal = 0.5 if name == GOAL and key == "starved" else None
            share = 100 * found[key]
            report.row(
                f"{name}: {words}",
                share,
                "% of the time",
                better="lower",
                table=table,
                goal=goal,
                daemons=fleet.daemons,
            )


def scale(report: Report, base: Fleet) -> None:
    """The tables of `docs/rooms/scale.md`."""
    needed = base.trainers * base.service_s / base.step_s
    spare = replace(base, daemons=round(1.1 * needed), failures=0.01)
    shares(
        report,
        f"{base.trainers:,} trainers, {base.step_s:g} s a step, {base.service_s:g} s a batch and daemon, 1 % of daemons "
        "failing an hour, half of them silently",
        {f"{x:.0%} of what is needed": replace(spare, daemons=round(x * needed)) for x in (0.9, 1, 1.05, 1.1, 1.2)},
    )
    slow = replace(spare, slow=0.05)
    shares(
        report,
        "the same with 10 % spare",
        {
            "the first of the list is asked, as before": replace(spare, spread=False, seconds=min(60.0, spare.seconds)),
            "each trainer knows 8 daemons": replace(spare, endpoints=8),
            "each trainer knows 64 daemons": replace(spare, endpoints=64),
            GOAL: replace(spare, failures=0.6),
            "60 times as many, one job": replace(spare, failures=0.6, together=True),
            "60 times as many, one job, heartbeat_s = 0.25": replace(
                spare, failures=0.6, together=True, heartbeat_s=0.25
            ),
            "5 % at half speed": slow,
            "5 % at half speed, deadline_s = 2": replace(slow, deadline_s=2),
            "5 % at half speed, deadline_s = 2, prefetch = 8": replace(slow, deadline_s=2, ahead=8),
            "the last, 20 % spare": replace(slow, deadline_s=2, ahead=8, daemons=round(1.2 * needed)),
            "one job": replace(spare, together=True),
        },
    )
    many = replace(base, service_s=2 / 1.1 * base.step_s, daemons=2 * base.trainers, failures=0.01)
    shares(
        report,
        f"{2 * base.trainers:,} daemons, which take {many.service_s:.2f} s a batch",
        {"prefetch = 4": many, "prefetch = 8": replace(many, ahead=8)},
    )


def service_times() -> tuple[float, ...]:
    """Seconds of a daemon's batches, as `fleet_growth.py` measured them last."""
    (row,) = (row for row in read(RESULTS)["fleet-growth"]["rows"] if row["what"] == "a daemon's batch")
    return tuple(row["samples"])


def main() -> None:
    parser = argparse.ArgumentParser(description="How long trainers of a large fleet wait, in simulation.")
    parser.add_argument("--trainers", type=int, default=1000, metavar="N")
    parser.add_argument("--seconds", type=float, default=300, metavar="S", help="simulated and counted")
    parser.add_argument("--validate", action="store_true", help="real small fleets beside simulated ones")
    args = parse(parser, {"trainers": 30, "seconds": 20.0})
    if args.validate:
        from fleet_real import validate

        report = Report("fleet-real", "How far off is the simulation of a fleet?", args)
        validate(report, args.quick)
    else:
        report = Report("fleet-sim", __doc__, args)
        scale(report, Fleet(args.trainers, 0, service=service_times(), seconds=args.seconds))
    report.finish()


if __name__ == "__main__":
    main()
