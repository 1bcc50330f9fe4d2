"""Keys, and everything that can happen between a trainer and two daemons, in any order: its stream is the undisturbed one, no
process ends by itself, and no pause is long.

The storm takes 20 seconds; `NAVIT_STORM_S=300` makes it longer, `NAVIT_STEP_S=0.02` its trainers' steps, and `-s` shows
what it counted.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from navit_loader import PackedLoader
from navit_loader.service.security import make_keys

from .service_kit import Daemon, Nursery, NurseryDaemon, Proxy, digest, load, make_config

STORM_S = float(os.environ.get("NAVIT_STORM_S", "20"))
STEP_S = os.environ.get("NAVIT_STEP_S", "0.002")

TRAINER = """
import hashlib, json, sys, time
from navit_loader import RemoteLoader
from tests.service_kit import digest
keys, shared, step_s, *endpoints = sys.argv[1:]
with RemoteLoader(endpoints, keys=keys, shared=shared == "shared", timeout_s=60, connect_timeout_s=30) as loader:
    if state := json.loads(sys.stdin.readline()):
        loader.load_state_dict(state)
    while True:
        for batch in loader:
            name = hashlib.sha256(repr(digest(batch)).encode()).hexdigest()
            del batch
            print(json.dumps([name, loader.state_dict()]), flush=True)
            time.sleep(float(step_s))
"""


class Trainer:
    """A process that reads for ever, and what it read.

    Args:
        keys: its keys.
        shared: whether it may take shared memory.
        endpoints: of the daemons.

    Attributes:
        found: the batches, each by its hash.
        pause: the longest time between two of them, in seconds, from the second on; and when it ended.
    """

    def __init__(self, keys: Path, shared: bool, *endpoints: str) -> None:
        self._command = [sys.executable, "-c", TRAINER, str(keys), "shared" if shared else "tcp", STEP_S, *endpoints]
        self.found: list[str] = []
        self.pause = (0.0, 0.0)
        self._state: Any = None
        self.start()

    def start(self) -> None:
        """Starts it where it was when it ended."""
        self.process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[1],
        )
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(self._state) + "\n")
        self.process.stdin.close()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        last = float("inf")
        for line in self.process.stdout:
            if not line.endswith("\n"):
                break
            name, self._state = json.loads(line)
            self.found.append(name)
            now = time.monotonic()
            self.pause, last = max(self.pause, (now - last, now)), now

    def kill(self) -> None:
        """kill -9; a process that has ended before is a failure."""
        ended = self.process.poll()
        self.process.kill()
        self._thread.join()
        assert self.process.stderr is not None
        said = self.process.stderr.read()
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()
        self.process.wait()
        assert ended is None, f"the trainer ended by itself with status {ended}: {said[-2000:]}"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_config(tmp_path_factory.mktemp("storm"))


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    make_keys(folder, ["trainer"])
    return folder


def check(config: Path, trainers: list[Trainer]) -> None:
    """All that they read is what a loader without a network gives."""
    longest = max(len(trainer.found) for trainer in trainers)
    right: list[str] = []
    with PackedLoader(config=load(config)) as loader:
        while len(right) < longest:
            right += [hashlib.sha256(repr(digest(b)).encode()).hexdigest() for b in loader]
    for trainer in trainers:
        assert trainer.found == right[: len(trainer.found)]


def test_a_flipped_bit_ends_a_connection_and_no_process(config: Path, keys: Path) -> None:
    """With keys a frame that cannot be decrypted, and a reset behind it, was an abort inside libzmq, on either side."""
    rng = random.Random(1)
    with Daemon(config, args=("--keys", str(keys / "server"))) as daemon, Proxy(daemon.endpoint, seed=1) as proxy:
        trainer = Trainer(keys / "trainer", False, proxy.endpoint)
        try:
            while proxy.flipped < 40:
                seen = len(trainer.found)
                proxy.flip(rng.uniform(0.002, 0.05))
                until = time.monotonic() + 30
                while len(trainer.found) < seen + 5:  # it goes on, over a connection that was made anew
                    assert time.monotonic() < until, daemon.log[-20:]
                    assert trainer.process.poll() is None
                    assert daemon.process is not None and daemon.process.poll() is None, daemon.log[-20:]
                    time.sleep(0.005)
        finally:
            trainer.kill()
        joined = sum("joined" in line for line in daemon.log)
    check(config, [trainer])
    assert joined >= 20


@pytest.mark.timeout(240 + 3 * STORM_S)
def test_a_storm(config: Path, keys: Path, tmp_path: Path) -> None:
    rng = random.Random(2)
    happened: list[tuple[float, str, int]] = []
    with ExitStack() as stack:
        nursery = stack.enter_context(Nursery(tmp_path))
        daemons = [nursery.daemon(config, "--keys", str(keys / "server")) for _ in range(2)]
        proxies = [stack.enter_context(Proxy(d.endpoint, seed=n)) for n, d in enumerate(daemons)]
        # One over the network, one of the daemons' own host.
        trainers = [
            Trainer(keys / "trainer", False, *(p.endpoint for p in proxies)),
            Trainer(keys / "trainer", True, *(d.endpoint for d in daemons)),
        ]

        def killed(daemon: NurseryDaemon, _: Proxy) -> None:
            daemon.kill()
            time.sleep(rng.uniform(0.0, 0.5))
            daemon.start()

        def drained(daemon: NurseryDaemon, _: Proxy) -> None:
            daemon.kill(signal.SIGTERM)
            daemon.start()

        def stopped(daemon: NurseryDaemon, _: Proxy) -> None:
            os.kill(daemon.pid, signal.SIGSTOP)
            time.sleep(rng.choice((0.1, 1.0, 4.0)))
            os.kill(daemon.pid, signal.SIGCONT)

        def flipped(_: NurseryDaemon, proxy: Proxy) -> None:
            proxy.flip(rng.choice((rng.uniform(0.0, 0.1), float("inf"))))

        def reset(_: NurseryDaemon, proxy: Proxy) -> None:
            proxy.reset()

        def parted(_: NurseryDaemon, proxy: Proxy) -> None:
            proxy.hold_after = rng.randint(1, 100_000)
            if proxy.hold.wait(1):
                time.sleep(rng.choice((0.1, 1.0, 4.0)))
                proxy.hold.clear()
            proxy.hold_after = None

        def slowed(_: NurseryDaemon, proxy: Proxy) -> None:
            proxy.delay = rng.choice((0.0, 0.02))

        def restarted(*_: object) -> None:
            trainer = rng.choice(trainers)
            trainer.kill()
            trainer.start()

        faults: list[Callable[[NurseryDaemon, Proxy], None]] = [
            killed,
            drained,
            stopped,
            flipped,
            reset,
            parted,
            slowed,
        ]
        weights = [4, 1, 2, 12, 4, 3, 1]
        try:
            until = time.monotonic() + STORM_S
            while time.monotonic() < until:
                time.sleep(rng.uniform(0.0, 0.2))
                if rng.random() < 0.02:
                    fault: Callable[..., None] = restarted
                else:
                    (fault,) = rng.choices(faults, weights)
                n = rng.randrange(2)
                happened.append((time.monotonic(), fault.__name__, n))
                fault(daemons[n], proxies[n])
                assert all(daemon.alive for daemon in daemons), [p.read_text()[-2000:] for p in tmp_path.glob("*.err")]
                assert all(trainer.process.poll() is None for trainer in trainers)
            seen = [len(trainer.found) for trainer in trainers]
            time.sleep(6)
            assert all(len(t.found) > n for t, n in zip(trainers, seen, strict=True)), "both go on when it is over"
        finally:
            for trainer in trainers:
                trainer.kill()
    check(config, trainers)
    batches, pauses = [len(t.found) for t in trainers], [round(t.pause[0], 2) for t in trainers]
    counts = Counter(name for _, name, _ in happened)
    print(f"{len(happened)} faults {dict(counts)}, {batches} batches, longest pauses {pauses} s")
    longest, end = max(t.pause for t in trainers)
    near = [f"{name} {n} at {at - end:.1f} s" for at, name, n in happened if end - longest - 5 < at < end]
    print("before the end of the longest:", ", ".join(near))
    assert longest < 20
