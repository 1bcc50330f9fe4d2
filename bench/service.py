"""What delivery costs: the service beside the same batches in process, in one run on one machine.

In: nothing, or a folder of images. Out: tables. Transport alone (batches already rendered) through shared memory, TCP,
TCP with keys and ipc, beside one copy from local memory; added latency of one 6 MB batch; images/s of the remote loader
beside the in-process loader; shares and memory of 64 clients.

    python bench/service.py [--images FOLDER] [--seconds 3] [--soak MINUTES]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from navit_loader import LoaderConfig, PackedBatch, PackedLoader, RemoteLoader, build_index
from navit_loader.config import ServeConfig
from navit_loader.engine import Engine
from navit_loader.security import ServerKeys, make_keys
from navit_loader.server import Server

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
virtual_epoch = 0
block_images = 4096
[plan.resolution]
kind = "uniform"
low = 64
high = 256
"""


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
    """An engine that renders its first four batches and gives them for every request: transport alone is left."""

    def __init__(self, config: LoaderConfig) -> None:
        super().__init__(config)
        self.batches: list[PackedBatch] = []
        layout, first = self.layout(0), 0
        for _ in range(4):
            batch = super().submit(0, first, config.data.batch_size).wait()
            assert batch is not None
            self.batches.append(batch)
            first = layout.next(first, config.data.batch_size) or 0
        self._turn = 0

    def submit(self, epoch: int, first: int, batch_size: int) -> Any:
        self._turn += 1
        return Rendered(self.batches[self._turn % len(self.batches)])


def daemon_main(config: str, bind: str, keys: str, rendered: bool) -> None:
    loaded = LoaderConfig.from_toml(config)
    with (RenderedEngine if rendered else Engine)(loaded) as engine:
        serve = ServeConfig(bind=bind, memory_mb=loaded.serve.memory_mb)
        with Server({"bench": engine}, serve, ServerKeys.read(keys) if keys else None) as server:
            server.stop_on_signals()
            print(server.endpoint, flush=True)
            server.run()


@contextlib.contextmanager
def daemon(config: Path, bind: str = "tcp://127.0.0.1:0", keys: str = "", rendered: bool = False) -> Iterator[Any]:
    """A daemon as a process of its own; yields its address and process."""
    command = [sys.executable, __file__, "--daemon", str(config), bind, keys, "rendered" if rendered else ""]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip(), process
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


def memory_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()[0]) / 1024


def forever(loader: RemoteLoader) -> Iterator[PackedBatch]:
    while True:
        yield from loader


def copy_into(buffer: np.ndarray[Any, Any], batch: PackedBatch) -> int:
    """One copy into a reused buffer, as into pinned memory; the bytes."""
    patches = batch.patches.reshape(-1)
    np.copyto(buffer[: patches.size], patches)
    return int(patches.size)


def throughput(batches: Iterator[PackedBatch], seconds: float) -> float:
    """GB/s of patches, each copied once into a reused buffer."""
    buffer = np.zeros(2**26, np.uint8)
    for _ in range(8):
        copy_into(buffer, next(batches))
    end, done, before = time.perf_counter() + seconds, 0, time.perf_counter()
    while time.perf_counter() < end:
        done += copy_into(buffer, next(batches))
    return done / (time.perf_counter() - before) / 1e9


def latency(loader: RemoteLoader, count: int) -> np.ndarray[Any, Any]:
    """Milliseconds from asking for a batch that is rendered to having it, one at a time."""
    connection = loader._connection
    times = []
    for _ in range(count):
        before = time.perf_counter()
        connection.batch(connection.want_batch(0, 0, loader.batch_size))
        times.append(1e3 * (time.perf_counter() - before))
    return np.percentile(times[count // 10 :], [50, 99])


def transport(config: Path, seconds: float) -> None:
    loaded = LoaderConfig.from_toml(config)
    with RenderedEngine(loaded) as engine:
        size = engine.batches[0].patches.nbytes / 1e6
        local = throughput((engine.batches[i % 4] for i in range(10**9)), seconds)
    print(f"\ntransport alone, batches of {size:.1f} MB, one copy into a reused buffer\n")
    print("| path | GB/s | of local | p50 ms | p99 ms |\n|---|---|---|---|---|")
    print(f"| local memory | {local:.2f} | 1.00 | – | – |")
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o700)
        make_keys(f"{folder}/keys", ["bench"])
        rows = [
            ("shared memory", "tcp://127.0.0.1:0", "", {"shared": True}),
            ("tcp", "tcp://127.0.0.1:0", "", {"shared": False}),
            ("ipc", f"ipc://{folder}/socket", "", {"shared": False}),
            (
                "tcp with keys",
                "tcp://127.0.0.1:0",
                f"{folder}/keys/server",
                {"shared": False, "keys": f"{folder}/keys/bench"},
            ),
        ]
        for name, bind, keys, options in rows:
            with daemon(config, bind, keys, rendered=True) as (address, _):
                with RemoteLoader([address], prefetch=4, **options) as loader:  # type: ignore[arg-type]
                    speed = throughput(forever(loader), seconds)
                    p50, p99 = latency(loader, 300)
            print(f"| {name} | {speed:.2f} | {speed / local:.2f} | {p50:.2f} | {p99:.2f} |", flush=True)


def images_per_second(batches: Iterator[PackedBatch], seconds: float) -> float:
    for _ in range(8):
        next(batches)
    done, before = 0, time.perf_counter()
    while time.perf_counter() < before + seconds:
        done += next(batches).num_images
    return done / (time.perf_counter() - before)


def whole(config: Path, seconds: float) -> None:
    with PackedLoader(config=LoaderConfig.from_toml(config)) as loader:
        local = images_per_second(forever(loader), seconds)  # type: ignore[arg-type]
    print(
        "\nwhole loader, daemon and trainer on the same cores\n\n| loader | images/s | of in-process |\n|---|---|---|"
    )
    print(f"| in process | {local:,.0f} | 1.00 |")
    for name, shared in (("remote, shared memory", True), ("remote, tcp", False)):
        with daemon(config) as (address, _), RemoteLoader([address], shared=shared) as loader:
            speed = images_per_second(forever(loader), seconds)
        print(f"| {name} | {speed:,.0f} | {speed / local:.2f} |", flush=True)


CLIENT = """
import sys, time
from navit_loader import RemoteLoader
with RemoteLoader([sys.argv[1]], prefetch=2, batch_size=2, timeout_s=300) as loader:
    print("ready", flush=True); sys.stdin.readline()
    end, n = time.monotonic() + float(sys.argv[2]), 0
    while time.monotonic() < end:
        for batch in loader:
            n += 1
            if time.monotonic() > end: break
    print(n, flush=True)
"""


def many(config: Path, clients: int, seconds: float) -> None:
    with daemon(config) as (address, process):
        command = [sys.executable, "-c", CLIENT, address, str(seconds)]
        workers = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(clients)
        ]
        for worker in workers:
            assert worker.stdout is not None
            worker.stdout.readline()
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write("go\n")
            worker.stdin.flush()
        time.sleep(seconds * 0.8)
        memory = memory_mb(process.pid)
        served = np.array([int(worker.communicate()[0]) for worker in workers])
    print(
        f"\n{clients} clients: {served.sum() / seconds:,.0f} batches/s; least {served.min()}, "
        f"mean {served.mean():.1f}, most {served.max()} batches each; {memory:,.0f} MiB resident, memory_mb = 512"
    )


def soak(config: Path, minutes: float) -> None:
    print("\n| minute | images | daemon MiB | descriptors | threads | trainer MiB |\n|---|---|---|---|---|---|")
    with daemon(config) as (address, process), RemoteLoader([address]) as loader:
        batches, images = forever(loader), 0
        before = time.monotonic()
        last = -1
        while (passed := (time.monotonic() - before) / 60) < minutes:
            images += next(batches).num_images
            if int(passed) > last:
                last = int(passed)
                folder = f"/proc/{process.pid}"
                fds, tasks = len(os.listdir(f"{folder}/fd")), len(os.listdir(f"{folder}/task"))
                own = memory_mb(os.getpid())
                print(
                    f"| {last} | {images:,} | {memory_mb(process.pid):,.0f} | {fds} | {tasks} | {own:,.0f} |",
                    flush=True,
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="class-per-folder images; without it, crops of real photographs")
    parser.add_argument("--count", type=int, default=2000, help="photographs to make")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--soak", type=float, default=0.0, metavar="MINUTES", help="only this: serve for so long")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        images = args.images
        if images is None:
            import corpus

            images = Path(work) / "images"
            (images / "photographs").mkdir(parents=True)
            for i, data in enumerate(corpus.make(args.count, 0.2, 0.35)):
                (images / "photographs" / f"{i:05}.jpg").write_bytes(data)
        index = Path(work) / "bench.arrow"
        build_index(images, index)
        config = Path(work) / "bench.toml"
        config.write_text(CONFIG.format(index=index, threads=len(os.sched_getaffinity(0))))
        print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
        if args.soak:
            soak(config, args.soak)
            return
        transport(config, args.seconds)
        whole(config, args.seconds)
        many(config, args.clients, max(10.0, args.seconds))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--daemon"]:
        daemon_main(*sys.argv[2:5], rendered=sys.argv[5] == "rendered")
    else:
        main()
