"""What `service.py` measures with: daemons as processes, rendered batches that cost nothing to make, and what sits beside us.

In: configurations and addresses. Out: processes and iterators over bytes. The peers say what this machine allows: a plain
TCP socket that reads into reused memory, and bare pyzmq that sends the same frame with as many requests ahead.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import zmq

from navit_loader import LoaderConfig, PackedBatch, RemoteLoader, build_index
from navit_loader.config import ServeConfig
from navit_loader.render.engine import Engine
from navit_loader.service import protocol
from navit_loader.service.security import ServerKeys
from navit_loader.service.server import Server

AHEAD = 4
"""Batches asked for in advance, by us and by the peers."""

CONFIG = """
[data]
index = "{index}"
batch_size = 8
[render]
threads = {threads}
[serve]
memory_mb = 512
[plan]
sequence_length = 1024
max_tokens = 256
max_images = 64
virtual_epoch = {epoch}
block_images = 4096
[plan.resolution]
kind = "uniform"
low = 64
high = 256
"""


def configured(work: Path, images: Path, epoch: int) -> Path:
    """A configuration of as many threads as cores over a folder's index, which is made where it is not there."""
    index, config = work / "bench.arrow", work / f"epoch-{epoch}.toml"
    if not index.exists():
        build_index(images, index)
    config.write_text(CONFIG.format(index=index, threads=len(os.sched_getaffinity(0)), epoch=epoch))
    return config


SET = int(os.environ.get("NAVIT_BENCH_SET", "48"))
"""Rendered batches in turn: 300 MB; a quick look has fewer."""


class Rendered:
    """A pending batch that was ready before it was asked for."""

    ready = True

    def __init__(self, batch: PackedBatch) -> None:
        self._batch = batch

    def wait(self, timeout: float | None = None) -> PackedBatch:
        return self._batch

    def cancel(self) -> None:
        pass


class RenderedEngine(Engine):
    """An engine that renders its first batches and gives them for every request: transport alone is left.

    There are more of them than any cache holds, so that a reader reads from memory, as it does with fresh batches.
    """

    def __init__(self, config: LoaderConfig) -> None:
        super().__init__(config, shared=True)
        self.batches: list[PackedBatch] = []
        layout, first = self.layout(0), 0
        for _ in range(SET):
            batch = self.submit(0, first, config.data.batch_size).wait()
            assert batch is not None
            self.batches.append(batch)
            first = layout.next(first, config.data.batch_size) or 0
        self._turn = 0

    def submit_planned(self, planned: Any, encoded: bool = False) -> Any:
        self._turn += 1
        return Rendered(self.batches[self._turn % len(self.batches)])


def daemon_main(config: str, bind: str, keys: str, rendered: bool) -> None:
    loaded = LoaderConfig.from_toml(config)
    with RenderedEngine(loaded) if rendered else Engine(loaded, shared=True) as engine:
        serve = ServeConfig(bind=bind, memory_mb=loaded.serve.memory_mb)
        with Server({"bench": engine}, serve, ServerKeys.read(keys) if keys else None) as server:
            server.stop_on_signals()
            print(server.endpoint, flush=True)
            server.run()


@contextlib.contextmanager
def daemon(config: Path, bind: str = "tcp://127.0.0.1:0", keys: str = "", rendered: bool = False) -> Iterator[Any]:
    """A daemon as a process of its own; yields its address and process."""
    command = [sys.executable, __file__, "daemon", str(config), bind, keys, "rendered" if rendered else ""]
    plain = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}  # advised for trainers
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=plain)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip(), process
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


def memory_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()[0]) / 1024


def forever(loader: Any) -> Iterator[PackedBatch]:
    while True:
        yield from loader


def cpu_seconds(pid: int) -> float:
    """Processor seconds that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# --- peers: each gives the same number of bytes again and again ------------------------------------------------------


@contextlib.contextmanager
def peer(kind: str, size: int) -> Iterator[tuple[Iterator[np.ndarray[Any, Any]], int]]:
    """Frames of `size` bytes from another process over loopback, by `socket` or `pyzmq`; and that process."""
    process = subprocess.Popen([sys.executable, __file__, kind, str(size)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield {"socket": socket_frames, "pyzmq": zmq_frames}[kind](process.stdout.readline().strip(), size), process.pid
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def socket_main(size: int) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (SET, size), np.uint8)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        with listener.accept()[0] as connection:
            turn = 0
            while connection.recv(1):
                connection.sendall(frames[turn % SET])
                turn += 1


def socket_frames(port: str, size: int) -> Iterator[np.ndarray[Any, Any]]:
    with socket.create_connection(("127.0.0.1", int(port))) as connection:
        connection.sendall(b"x" * AHEAD)
        frames, turn = np.zeros((AHEAD + 1, size), np.uint8), 0
        while True:
            frame = frames[turn % len(frames)]
            view, at = memoryview(frame), 0
            while at < size:
                at += connection.recv_into(view[at:])
            yield frame
            connection.sendall(b"x")
            turn += 1


def zmq_main(size: int) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (SET, size), np.uint8)
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        print(router.bind_to_random_port("tcp://127.0.0.1"), flush=True)
        turn = 0
        while True:
            who, _ = router.recv_multipart()
            router.send_multipart([who, b"", frames[turn % SET]], copy=False)
            turn += 1


def zmq_frames(port: str, size: int) -> Iterator[np.ndarray[Any, Any]]:
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.connect(f"tcp://127.0.0.1:{port}")
        for _ in range(AHEAD):
            dealer.send(b"x")
        while True:
            frames = dealer.recv_multipart(copy=False)
            yield np.frombuffer(frames[1].buffer, np.uint8)
            dealer.send(b"x")


# --- hostile peers ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def hostile(address: str, connections: int = 1000, readers: int = 6) -> Iterator[None]:
    """Connections that stop in their handshake, clients that ask for all they may and read nothing, and noise."""
    host, port = address.removeprefix("tcp://").split(":")
    hello = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32)
    ready = b"\x05READY" + b"\x0bSocket-Type" + struct.pack(">I", 6) + b"DEALER"
    greeting = hello + b"\x04" + bytes([len(ready)]) + ready
    with RemoteLoader([address]) as loader:
        ids = {"plan_id": loader.plan_id, "render_id": loader.render_id}
    with contextlib.ExitStack() as stack:
        for number in range(connections):
            caller = stack.enter_context(socket.create_connection((host, int(port)), 30))
            caller.sendall((greeting, greeting[:40], os.urandom(64))[number % 3])
        for number in range(readers):
            caller = stack.enter_context(socket.create_connection((host, int(port)), 30))
            caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            requests = [protocol.Hello(1, client=f"reads-nothing-{number}")]
            requests += [protocol.GetBatch(2 + n, **ids, epoch=n, count=2) for n in range(300)]
            words = b"".join(b"\x00" + bytes([len(w)]) + w for w in map(protocol.encode, requests))
            caller.sendall(greeting + words)
        yield


if __name__ == "__main__":
    if sys.argv[1] == "daemon":
        daemon_main(*sys.argv[2:5], rendered=sys.argv[5] == "rendered")
    else:
        {"socket": socket_main, "pyzmq": zmq_main}[sys.argv[1]](int(sys.argv[2]))
