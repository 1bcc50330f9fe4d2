"""Small fleets for real, beside the same in simulation: real daemons and loaders, each batch taking a fixed time to make.

In: nothing. Out: a table of the share of time that trainers starved, and how far off `fleet_sim.py` is. The daemons serve
batches that were rendered before and hold each back for its turn, so that the processor, which they share here, has no say.

    python bench/fleet_sim.py --validate
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from fleet_sim import Fleet, simulated
from kit import Report
from PIL import Image
from serving import Rendered, RenderedEngine

from navit_loader import LoaderConfig, RemoteLoader, build_index
from navit_loader.config import ServeConfig
from navit_loader.service.server import Server

CONFIG = """
[data]
index = "{index}"
batch_size = 2
[render]
threads = 1
[plan]
sequence_length = 64
max_tokens = 16
virtual_epoch = 200_000
[plan.resolution]
kind = "fixed"
high = 64
"""


class Held(Rendered):
    """A batch that is ready at its time."""

    def __init__(self, batch: Any, at: float) -> None:
        super().__init__(batch)
        self._at = at

    @property
    def ready(self) -> bool:  # type: ignore[override]
        return time.monotonic() >= self._at


class PacedEngine(RenderedEngine):
    """An engine that makes one batch after another, each in the same time."""

    def __init__(self, config: LoaderConfig, seconds: float) -> None:
        super().__init__(config)
        self._seconds, self._free = seconds, 0.0
        self._due: queue.SimpleQueue[float] = queue.SimpleQueue()
        self._end, self._tell = os.pipe()
        os.set_blocking(self._end, False)
        threading.Thread(target=self._wake, daemon=True).start()

    def _wake(self) -> None:
        while True:
            time.sleep(max(0.0, self._due.get() - time.monotonic()))
            os.write(self._tell, b"x")

    def fileno(self) -> int:
        return self._end

    def submit_planned(self, planned: Any, encoded: bool = False) -> Any:
        self._free = max(time.monotonic(), self._free) + self._seconds
        self._due.put(self._free)
        self._turn += 1
        return Held(self.batches[self._turn % len(self.batches)], self._free)


def daemon_main(config: str, seconds: str) -> None:
    with (
        PacedEngine(LoaderConfig.from_toml(config), float(seconds)) as engine,
        Server({"bench": engine}, ServeConfig(bind="tcp://127.0.0.1:0")) as server,
    ):
        server.stop_on_signals()
        print(server.endpoint, flush=True)
        server.run()


def real(config: Path, fleet: Fleet, failing: tuple[float, int, bool] | None) -> tuple[float, float]:
    """The share of the counted time that trainers starved, in the mean, and how long their steps were besides."""
    with contextlib.ExitStack() as stack:
        processes = []
        for _ in range(fleet.daemons):
            command = [sys.executable, __file__, str(config), str(fleet.service_s)]
            processes.append(stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True)))
            stack.callback(processes[-1].kill)
        endpoints = [process.stdout.readline().strip() for process in processes]  # type: ignore[union-attr]
        begin = time.monotonic()
        end = begin + fleet.warm_s + fleet.seconds
        starved, busy = [0.0] * fleet.trainers, [0.0] * fleet.trainers

        def train(rank: int) -> None:
            # Whatever a failed daemon was asked is asked elsewhere; over TCP, as between hosts.
            with RemoteLoader(endpoints, rank=rank, world_size=fleet.trainers, shared=False) as loader:
                before, steps, started = None, 0, 0.0
                while True:
                    for _ in loader:
                        if before is None and time.monotonic() >= begin + fleet.warm_s:
                            before, steps, started = loader.starved_s, 0, time.monotonic()
                        if before is not None and (now := time.monotonic()) >= end:
                            starved[rank] = (loader.starved_s - before) / (now - started)
                            busy[rank] = (now - started - loader.starved_s + before) / steps
                            return
                        time.sleep(fleet.step_s)
                        steps += 1

        threads = [threading.Thread(target=train, args=(rank,)) for rank in range(fleet.trainers)]
        for thread in threads:
            thread.start()
        if failing is not None:
            at, which, silent = failing
            time.sleep(max(0.0, begin + at - time.monotonic()))
            processes[which].send_signal(signal.SIGSTOP if silent else signal.SIGKILL)
        for thread in threads:
            thread.join()
        return sum(starved) / fleet.trainers, sum(busy) / fleet.trainers


def validate(report: Report, quick: bool) -> None:
    """Two trainers, one to three daemons, one of which dies or falls silent."""
    warm_s, counted_s = (2.0, 4.0) if quick else (5.0, 25.0)
    base = Fleet(2, 1, step_s=0.2, service_s=0.2, warm_s=warm_s, seconds=counted_s)
    at = warm_s + 0.4 * counted_s
    cases: dict[str, tuple[Fleet, tuple[float, int, bool] | None]] = {
        "1 daemon": (base, None),
        "1 daemon, 0.12 s a batch": (replace(base, service_s=0.12), None),
        "2 daemons, 0.22 s a batch": (replace(base, daemons=2, service_s=0.22), None),
        "3 daemons": (replace(base, daemons=3), None),
        "2 daemons, 0.16 s a batch, one is killed": (replace(base, daemons=2, service_s=0.16), (at, 0, False)),
        "3 daemons, one falls silent": (replace(base, daemons=3, service_s=0.16), (at, 0, True)),
    }
    table = "two trainers of 0.2 s a step, daemons of 0.2 s a batch unless said: share of time starved"
    with tempfile.TemporaryDirectory() as name:
        config = make_config(Path(name))
        for words, (fleet, failing) in cases.items():
            measured, step_s = real(config, fleet, failing)
            fleet = replace(fleet, step_s=step_s)
            # Which daemon a request falls to is partly drawn: the mean of several draws.
            runs = [
                simulated(replace(fleet, seed=seed, repair_s=1e9), [failing] if failing else []) for seed in range(8)
            ]
            expected = sum(run["starved"] for run in runs) / len(runs)
            given = {"real": f"{measured:.1%}", "simulated": f"{expected:.1%}", "step_s": round(step_s, 3)}
            off = 100 * abs(expected - measured)
            report.row(words, off, "points off", better="lower", table=table, goal=2, **given)


def make_config(folder: Path) -> Path:
    """A few images, an index and a configuration."""
    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    for i in range(40):
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(folder / "images" / f"{i}.png")
    build_index(folder / "images", folder / "index.arrow")
    (folder / "config.toml").write_text(CONFIG.format(index=folder / "index.arrow"))
    return folder / "config.toml"


if __name__ == "__main__":
    daemon_main(*sys.argv[1:3])
