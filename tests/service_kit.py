"""What the service tests share: a small data set, daemons as real processes, and a TCP proxy that can misbehave."""

from __future__ import annotations

import contextlib
import io
import os
import random
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from navit_loader import LoaderConfig, PackedBatch, build_index

PLAN = """
[plan]
seed = 5
sequence_length = 64
max_images = 12
max_tokens = 36
max_grid = 12
patch_sizes = [4, 8]
patch_run = 8
block_images = 64
[plan.resolution]
kind = "uniform"
low = 8
high = 40
[plan.drop]
kind = "constant"
rate = 0.3
"""
"""Several planning blocks, two patch sizes, runs shorter than an epoch; of a mixture, see `make_config`."""


def make_images(folder: Path, count: int = 480, seed: int = 1) -> None:
    """Small JPEG and PNG files of two classes; one in twenty has a good header and no good pixels."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        height, width = rng.integers(9, 60, 2)
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        data = io.BytesIO()
        image.save(data, "PNG" if i % 3 == 0 else "JPEG", quality=90)
        raw = data.getvalue()
        if i % 20 == 7:
            raw = raw[: len(raw) // 2] if i % 3 == 0 else raw[:-400] + bytes(400)
        path = folder / "ab"[i % 2] / f"{i:04}.{'png' if i % 3 == 0 else 'jpg'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(raw)


def make_config(folder: Path, plan: str = PLAN, *, batch_size: int = 4, serve: str = "", count: int = 480) -> Path:
    """Images, indexes and configuration in a folder; the path of the TOML file. Two thirds of the images are one source of a
    mixture, each once an epoch; the others are the second, each twice."""
    names = ("images", "more")
    for seed, (name, part) in enumerate(zip(names, (count - count // 3, count // 3), strict=True), start=1):
        make_images(folder / name, part, seed)
        build_index(folder / name, folder / f"{name}.arrow")
    mixture = "".join(f'[[data.mixture]]\nindex = "{folder / name}.arrow"\n' for name in names)
    config = folder / "config.toml"
    plan = plan.replace("[plan]", f"[plan]\nvirtual_epoch = {2 * (count - count // 3)}", 1)
    config.write_text(
        f"[data]\nbatch_size = {batch_size}\n{mixture}"
        f"[render]\nthreads = 1\nfailure_limit = 1.0\n[serve]\nheartbeat_s = 0.2\n{serve}\n{plan}"
    )
    return config


def load(config: Path) -> LoaderConfig:
    return LoaderConfig.from_toml(config)


def digest(batch: PackedBatch) -> tuple[Any, ...]:
    """All of a batch, as something that can be compared and kept."""
    head = (batch.epoch, batch.sequence, batch.patch_size, batch.max_seqlen, batch.prefix_tokens)
    return (*head, *((n, a.dtype.str, a.shape, a.tobytes()) for n, a in batch.arrays().items()))


class Daemon:
    """`navit-loader serve` as a process of its own."""

    def __init__(self, *configs: Path, bind: str = "tcp://127.0.0.1:0", args: tuple[str, ...] = ()) -> None:
        self._command = [sys.executable, "-m", "navit_loader", "serve", *map(str, configs)]
        self._args = args
        self.bind = bind
        self.process: subprocess.Popen[str] | None = None
        self.start()

    def start(self) -> None:
        """Starts it, or starts it again on the same port, and waits for the readiness line."""
        self.process = subprocess.Popen(
            [*self._command, "--bind", self.bind, *self._args],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        self.metrics: str | None = None
        if line.startswith("navit-loader: metrics at "):
            self.metrics = line.split()[-1]
            line = self.process.stdout.readline()
        if not line.startswith("navit-loader: serving"):
            raise AssertionError(f"no readiness line: {line!r} {self.process.communicate()[1]}")
        self.line = line
        self.bind = self.endpoint = line.split()[-1]
        self._drain = threading.Thread(target=self._read_log, args=(self.process.stderr,), daemon=True)
        self.log: list[str] = []
        self._drain.start()

    def _read_log(self, stream: Any) -> None:
        with contextlib.suppress(ValueError):
            for line in stream:
                self.log.append(line)

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def threads(self) -> int:
        """How many it has now."""
        return len(os.listdir(f"/proc/{self.pid}/task"))

    def memory_mb(self) -> float:
        """Resident memory of the process."""
        assert self.process is not None
        if self.process.poll() is not None:
            raise AssertionError(f"the daemon ended with status {self.process.returncode}: {self.log[-20:]}")
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1024

    def kill(self) -> None:
        """kill -9."""
        assert self.process is not None
        self.process.kill()
        self.wait()

    def wait(self, timeout: float = 20.0) -> int:
        assert self.process is not None
        code = self.process.wait(timeout)
        self._drain.join(5)
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()
        return code

    def close(self) -> None:
        if self.process is not None:
            if self.process.poll() is None:
                self.process.send_signal(signal.SIGCONT)
                self.process.kill()
            self.wait()

    def __enter__(self) -> Daemon:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


NURSERY = """
import os, signal, sys
# What takes long to load; nothing here has threads or sockets.
import zmq.auth.thread
import navit_loader.render.engine, navit_loader.service.metrics, navit_loader.service.server
from navit_loader.cli import main
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for line in sys.stdin:
    out, err, *args = line.rstrip("\\n").split("\\t")
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for path, fd in ((out, 1), (err, 2)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), fd)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        code = main(args)
        sys.stdout.flush()
        os._exit(code)
    print(pid, flush=True)
"""


class Nursery:
    """Starts daemons by forking a process that has loaded everything: each is a process of its own, there in a moment."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started = 0
        command = [sys.executable, "-c", NURSERY]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.daemons: list[NurseryDaemon] = []

    def daemon(self, config: Path, *args: str) -> NurseryDaemon:
        """A daemon that serves `config`."""
        found = NurseryDaemon(self, config, *args)
        self.daemons.append(found)
        return found

    def start(self, *args: str) -> tuple[int, str]:
        """Forks a daemon; its process id and its readiness line."""
        self._started += 1
        out, err = (self._folder / f"{self._started}.{name}" for name in ("out", "err"))
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\t".join([str(out), str(err), *args]) + "\n")
        self._process.stdin.flush()
        pid = int(self._process.stdout.readline())
        until = time.monotonic() + 30
        while time.monotonic() < until:
            if out.exists() and (text := out.read_text()).endswith("\n"):
                return pid, text
            time.sleep(0.002)
        raise AssertionError(f"no readiness line: {err.read_text()}")

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, *_: object) -> None:
        for daemon in self.daemons:
            daemon.kill()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(20)
        self._process.stdout.close()


class NurseryDaemon:
    """`navit-loader serve`, forked; after `kill` it is started again on its port."""

    def __init__(self, nursery: Nursery, config: Path, *args: str) -> None:
        self._nursery, self._config, self._args = nursery, config, args
        self.endpoint = "tcp://127.0.0.1:0"
        self.start()

    def start(self) -> None:
        """Starts it, and waits for the readiness line."""
        self.pid, line = self._nursery.start("serve", str(self._config), "--bind", self.endpoint, *self._args)
        self.endpoint = line.split()[-1]

    @property
    def alive(self) -> bool:
        """Whether its process is there."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        return True

    def kill(self, number: int = signal.SIGKILL) -> None:
        """kill -9, or another signal, and waits until it is gone."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)
        until = time.monotonic() + 20
        while time.monotonic() < until:
            if not self.alive:
                return
            time.sleep(0.001)
        raise AssertionError(f"process {self.pid} does not end")


class Proxy:
    """A TCP proxy in a thread. It can cut all connections, also in the middle of a frame, delay all bytes, hold them back, or
    damage them.

    Args:
        endpoint: the daemon.
        cut_after: after how many bytes of the daemon each connection is cut.
        seed: of the bits that are flipped.

    Attributes:
        hold: while set, connections stay open and nothing passes: a partition.
        hold_after: so many bytes of the daemon pass until `hold` is set; None for never.
        delay: seconds that bytes are on their way, in each direction; they do not wait for one another.
        rate: bytes a second that each direction of each connection passes; 0 for all.
        cuts: connections that were cut or reset.
        flipped: bits that were flipped.
    """

    def __init__(self, endpoint: str, *, cut_after: Iterator[int] | None = None, seed: int = 0) -> None:
        host, port = endpoint.removeprefix("tcp://").split(":")
        self._target = (host, int(port))
        self._cut_after = cut_after
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self.hold = threading.Event()
        self.hold_after: int | None = None
        self.delay = 0.0
        self.rate = 0
        self._deaf: set[socket.socket] = set()
        self.cuts = self.flipped = 0
        self._rng = random.Random(seed)
        self._damage: deque[tuple[bool, float]] = deque()  # to what passes next: whether a bit, seconds until a reset
        self._resets: list[tuple[float, socket.socket]] = []
        self._pairs: dict[socket.socket, socket.socket] = {}
        self._far: set[socket.socket] = set()
        self._budget: dict[socket.socket, int] = {}
        # To each socket: when due, what; nothing: the end.
        self._ways: dict[socket.socket, deque[tuple[float, bytes]]] = {}
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def flip(self, reset_after: float = float("inf")) -> None:
        """Flips one bit of what passes next, in either direction, and resets that connection so many seconds later."""
        self._damage.append((True, reset_after))

    def reset(self) -> None:
        """Resets the connection through which something passes next."""
        self._damage.append((False, 0.0))

    def swallow(self) -> None:
        """What the connections of this moment say from now on goes nowhere, and they stay open, as where the length of a frame
        is damaged; new ones work."""
        self._deaf = set(self._pairs)

    def _run(self) -> None:
        while not self._closing.is_set():
            now = time.monotonic()
            self._reset_due(now)
            held = self.hold.is_set()
            reading = [] if held else [s for s, other in self._pairs.items() if len(self._ways[other]) < 256]
            writing = [] if held else [s for s, way in self._ways.items() if way and way[0][0] <= now]
            due = min((way[0][0] - now for way in self._ways.values() if way), default=0.02)
            ready, free, _ = select.select([self._listener, *reading], writing, [], min(0.02, max(0.0, due)))
            for s in ready:
                try:
                    if s is self._listener:
                        self._accept()
                    elif s in self._pairs:
                        self._read(s)
                except OSError:
                    self._drop(s)
            for s in free:
                try:
                    while s in self._ways and not self.hold.is_set() and self._write(s):
                        pass
                except BlockingIOError:
                    pass
                except OSError:
                    self._drop(s)
        for s in list(self._pairs):
            s.close()

    def _accept(self) -> None:
        near = self._listener.accept()[0]
        try:
            far = socket.create_connection(self._target, 1)
        except OSError:
            near.close()
            return
        for s, other in ((near, far), (far, near)):
            s.setblocking(False)
            self._pairs[s] = other
            self._ways[s] = deque()
        self._far.add(far)
        if self._cut_after is not None:
            self._budget[far] = next(self._cut_after)

    def _read(self, s: socket.socket) -> None:
        data = s.recv(65536)
        way, due = self._ways[self._pairs[s]], time.monotonic() + self.delay
        if s in self._deaf and data:
            return
        if self._damage and data:
            data = self._damaged(s, data)
        way.append((due, data[: self._budget.get(s)]))
        if s in self._budget:
            self._budget[s] -= len(data)
            if self._budget[s] <= 0:
                self.cuts += 1
                self._budget[s] = 1 << 62  # once
                way.append((due, b""))

    def _damaged(self, s: socket.socket, data: bytes) -> bytes:
        flip, after = self._damage.popleft()
        self._resets.append((time.monotonic() + after, s))
        if not flip:
            return data
        self.flipped += 1
        at = self._rng.randrange(len(data))
        return data[:at] + bytes([data[at] ^ 1 << self._rng.randrange(8)]) + data[at + 1 :]

    def _reset_due(self, now: float) -> None:
        for _, s in [entry for entry in self._resets if entry[0] <= now]:
            if s in self._pairs:
                self.cuts += 1
                for end in (s, self._pairs[s]):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self._drop(s)
        self._resets = [entry for entry in self._resets if entry[0] > now and entry[1] in self._pairs]

    def _write(self, s: socket.socket) -> bool:
        """Passes on what is due; whether there may be more."""
        way = self._ways[s]
        if not way or way[0][0] > time.monotonic():
            return False
        due, data = way[0]
        if not data:
            self._drop(s)
            return False
        counted = self.hold_after is not None and self._pairs[s] in self._far
        most = max(1, self.rate // 50) if self.rate else None
        sent = s.send(data[: self.hold_after] if counted else data[:most])
        if most is not None:
            due = time.monotonic() + sent / self.rate
        way[0] = (due, data[sent:])
        if sent == len(data):
            way.popleft()
            if way and most is not None:
                way[0] = (max(due, way[0][0]), way[0][1])
        if counted and self.hold_after is not None:
            self.hold_after -= sent
            if self.hold_after <= 0:
                self.hold_after = None
                self.hold.set()
        return True

    def _drop(self, a: socket.socket) -> None:
        for s in (a, self._pairs.get(a, a)):
            self._pairs.pop(s, None)
            self._ways.pop(s, None)
            self._budget.pop(s, None)
            self._far.discard(s)
            s.close()

    def close(self) -> None:
        self._closing.set()
        self._thread.join(5)
        self._listener.close()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def random_cuts(seed: int, low: int, high: int) -> Iterator[int]:
    """After how many bytes each connection is cut."""
    rng = random.Random(seed)
    while True:
        yield rng.randint(low, high)


def metrics(daemon: Daemon) -> dict[str, float]:
    """What it counts, by name and labels."""
    assert daemon.metrics is not None
    with urllib.request.urlopen(daemon.metrics, timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}
