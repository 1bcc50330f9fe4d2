"""Does a fleet on Ray scale, and how long does a trainer pause where a daemon is killed?

In: nothing. Out: batches/s from 1, 2 and 4 daemons on as many nodes of a Ray cluster on this machine, and the longest pause
of a trainer while one of four is killed. All nodes share this machine's cores, so each daemon's rendering is held to a
fixed rate, far below what they can do: what is measured is whether clients keep all of them busy, not how fast they render.

    python bench/fleet.py [--rate 4] [--seconds 12] [--rounds 3]
"""

from __future__ import annotations

import argparse
import heapq
import os
import select
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kit import Report, parse
from serving import forever

from navit_loader import LoaderConfig, RemoteLoader
from navit_loader.fleet.cluster import connected
from navit_loader.fleet.daemon import Daemon
from navit_loader.fleet.growth import Growth
from navit_loader.fleet.launched import Fleet
from navit_loader.render.engine import Engine

sys.path.append(str(Path(__file__).resolve().parents[1]))  # behind everything: what is measured may be elsewhere
from tests.fleet_kit import cluster_of
from tests.service_kit import make_config

HEARTBEAT_S = 1.0


class Held:
    """A batch that is rendered, and handed out no sooner than its rate allows."""

    def __init__(self, pending: Any, at: float) -> None:
        self._pending, self._at = pending, at

    @property
    def ready(self) -> bool:
        return time.monotonic() >= self._at and self._pending.ready

    def wait(self, timeout: float | None = None) -> Any:
        return self._pending.wait(timeout)

    def cancel(self) -> None:
        self._pending.cancel()


class LimitedEngine(Engine):
    """Renders as the engine does, and lets go of `rate` batches a second; what it was not asked for in time is lost."""

    def __init__(self, config: LoaderConfig, rate: float) -> None:
        super().__init__(config, shared=True)
        self._gap, self._next = 1 / rate, 0.0
        self._due: list[float] = []
        self._news, self._end = os.pipe()
        os.set_blocking(self._end, False)
        threading.Thread(target=self._tell, daemon=True).start()

    def fileno(self) -> int:
        return self._news

    def submit_planned(self, planned: Any, encoded: bool = False) -> Any:
        self._next = max(time.monotonic(), self._next) + self._gap
        heapq.heappush(self._due, self._next)
        return Held(super().submit_planned(planned, encoded), self._next)

    def _tell(self) -> None:
        """Wakes the server where a batch has been rendered, and where one is due."""
        while True:
            due = self._due[0] - time.monotonic() if self._due else self._gap
            if due <= 0:
                heapq.heappop(self._due)
                os.write(self._end, b"x")
            elif select.select([super().fileno()], [], [], min(due, self._gap))[0]:
                os.read(super().fileno(), 4096)
                os.write(self._end, b"x")


class LimitedDaemon(Daemon):
    def engine(self, config: LoaderConfig) -> Engine:
        return LimitedEngine(config, float(os.environ["NAVIT_BENCH_RATE"]))


class LimitedFleet(Fleet):
    daemon = LimitedDaemon


def fleet(config: Path, daemons: int) -> Fleet:
    found = LimitedFleet(
        f"of-{daemons}", {"bench": LoaderConfig.from_toml(config)}, Growth(daemons, daemons), 1, None, 300
    )
    while len(found.daemons) < daemons:
        time.sleep(0.1)
    return found


def serving(loader: RemoteLoader) -> int:
    return sum(endpoint.ready for endpoint in loader._connection._endpoints)


def read(stream: Iterator[Any], seconds: float) -> tuple[float, float]:
    """Batches a second, from one batch to another, and the longest pause between two. What was asked for stays asked for."""
    next(stream)
    began = last = time.perf_counter()
    batches, longest = 0, 0.0
    while last - began < seconds:
        next(stream)
        batches, now = batches + 1, time.perf_counter()
        longest, last = max(longest, now - last), now
    return batches / (last - began), longest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=4.0, help="batches a second of each daemon")
    parser.add_argument("--seconds", type=float, default=12.0)
    parser.add_argument("--rounds", type=int, default=3)
    args = parse(parser, {"rate": 20.0, "seconds": 2.0, "rounds": 1})
    report = Report("fleet", __doc__, args)
    os.environ["NAVIT_BENCH_RATE"] = str(args.rate)  # nodes of this machine inherit it
    one: list[float] = []
    with tempfile.TemporaryDirectory() as folder, cluster_of(4) as cluster:
        ray = connected(cluster.address)
        config = make_config(Path(folder))
        # One epoch outlasts it all: at an epoch's end nothing is asked for ahead.
        config.write_text(config.read_text().replace("virtual_epoch = 640", "virtual_epoch = 640000"))
        for daemons in (1, 2, 4):
            with fleet(config, daemons) as made, RemoteLoader(made.address, heartbeat_s=HEARTBEAT_S) as loader:
                stream = forever(loader)
                while serving(loader) < daemons:
                    next(stream)
                read(stream, 10 / args.rate)  # until all have had their first turns
                found = [read(stream, args.seconds)[0] for _ in range(args.rounds)]
                one = one or found
                ways = {"navit": found, "linear": [daemons * rate for rate in one]}
                what = f"{daemons} daemon{'s'[: daemons > 1]}"
                report.row(what, ways, "batches/s", table="scaling", bounds=("linear",), goal=0.97)
                pauses: dict[str, list[float]] = {"navit": [], "none is killed": []}
                for number in list(made._actors)[: args.rounds if daemons == 4 else 0]:
                    pauses["none is killed"].append(read(stream, 5.0)[1])
                    timer = threading.Timer(1.0, ray.kill, (made._actors[number],), {"no_restart": False})
                    timer.start()
                    pauses["navit"].append(read(stream, 5.0)[1])
                    timer.join()
                    while serving(loader) < daemons:
                        next(stream)
        table, bounds = "one of four daemons is killed", ("none is killed",)
        # Three heartbeats and a batch.
        goal = 3 * HEARTBEAT_S + 1 / args.rate
        report.row(
            "longest pause between two batches",
            pauses,
            "s",
            better="lower",
            table=table,
            bounds=bounds,
            goal=goal,
            goal_of="ours",
        )
    report.finish()


if __name__ == "__main__":
    main()
