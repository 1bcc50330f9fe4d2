"""What delivery costs: the service beside the same batches in process, in one run on one machine.

In: nothing, or a folder of images. Out: rows. Transport alone (batches already rendered) beside one copy from local memory,
a plain TCP socket and bare pyzmq; added latency of one 6 MB batch; images/s of the remote loader beside the in-process
loader and torch's DataLoader with torchvision, of two trainers that share renderings beside two that do not, and with
hostile peers; shares and memory of 64 clients.

    python bench/service.py [--images FOLDER] [--seconds 2] [--rounds 5] [--plain-malloc] [--soak MINUTES]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import corpus
import numpy as np
from kit import Report, parse, turns
from serving import AHEAD, SET, RenderedEngine, configured, cpu_seconds, daemon, forever, hostile, memory_mb, peer

from navit_loader import LoaderConfig, PackedLoader, RemoteLoader
from navit_loader.service.security import make_keys

MALLOC = {"MALLOC_TRIM_THRESHOLD_": "268435456", "MALLOC_MMAP_THRESHOLD_": "33554432"}
"""What docs/rooms/service.md advises where batches come over TCP: large blocks are kept, not taken page by page each time."""


TORCH = "torch DataLoader + torchvision"
GOALS = {"shared memory": (0.9, "local memory", "ratio"), "tcp": (4.0, "pyzmq", "ours")}
LATENCY = {"shared memory": (1.0, 3.0), "tcp": (3.0, 8.0)}


# --- transport alone -------------------------------------------------------------------------------------------------


def gigabytes(arrays: Iterator[np.ndarray[Any, Any]], seconds: float) -> float:
    """GB/s of arrays, each copied once into a reused buffer, as into pinned memory."""
    buffer = np.zeros(2**26, np.uint8)
    done, before = 0, time.perf_counter()
    while (passed := time.perf_counter() - before) < seconds:
        array = next(arrays).reshape(-1)
        np.copyto(buffer[: array.size], array)
        done += array.size
    return done / passed / 1e9


def latency(loader: RemoteLoader, count: int) -> np.ndarray[Any, Any]:
    """Milliseconds from asking for a batch that is rendered to having it, one at a time: p50 and p99."""
    connection = loader._connection
    times = []
    for _ in range(count):
        before = time.perf_counter()
        connection.batch(connection.want_batch(0, 0, loader.batch_size))
        times.append(1e3 * (time.perf_counter() - before))
    return np.percentile(times[count // 10 :], [50, 99])


def transport(report: Report, config: Path, seconds: float, count: int) -> None:
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        os.chmod(folder, 0o700)
        make_keys(f"{folder}/keys", ["bench"])
        tcp = "tcp://127.0.0.1:0"
        loaders: dict[str, RemoteLoader] = {}
        pids = {"local memory": os.getpid()}
        for name, bind, keys, options in (
            ("shared memory", tcp, "", {"shared": True}),
            ("tcp", tcp, "", {"shared": False}),
            ("ipc", f"ipc://{folder}/socket", "", {"shared": False}),
            ("tcp with keys", tcp, f"{folder}/keys/server", {"shared": False, "keys": f"{folder}/keys/bench"}),
        ):
            address, process = stack.enter_context(daemon(config, bind, keys, rendered=True))
            loaders[name] = stack.enter_context(RemoteLoader([address], prefetch=AHEAD, **options))  # type: ignore[arg-type]
            pids[name] = process.pid
        engine = stack.enter_context(RenderedEngine(LoaderConfig.from_toml(config)))
        size = engine.batches[0].patches.nbytes
        sources = {"local memory": (engine.batches[i % SET].patches for i in range(10**9))}
        sources |= {name: (batch.patches for batch in forever(loader)) for name, loader in loaders.items()}
        for kind in ("socket", "pyzmq"):
            sources[kind], pids[kind] = stack.enter_context(peer(kind, size))

        def measured(name: str) -> Callable[[], tuple[float, float]]:
            def measure() -> tuple[float, float]:
                before, start = cpu_seconds(pids[name]), time.perf_counter()
                speed = gigabytes(sources[name], seconds)
                spent = cpu_seconds(pids[name]) - before
                return speed, speed * (time.perf_counter() - start) / spent if spent else 0.0

            return measure

        found = turns({name: measured(name) for name in sources}, count)
        times = {name: latency(loaders[name], 300) for name in loaders}
    table = "transport alone, one copy into a reused buffer"
    others = ("local memory", "socket", "pyzmq")
    for name in loaders:
        ways = {"navit": found[name]} | {other: found[other] for other in others}
        speeds = {way: [speed for speed, _ in of] for way, of in ways.items()}
        goal, beside, goal_of = GOALS.get(name, (None, "local memory", ""))
        report.row(
            name, speeds, "GB/s", table=table, bounds=("local memory",), beside=beside, goal=goal, goal_of=goal_of,
            megabytes=round(size / 1e6, 1),
        )  # fmt: skip
        for n, (what, goal) in enumerate(zip(("p50", "p99"), LATENCY.get(name, (None, None)), strict=True)):
            report.row(f"{name}, latency, {what}", times[name][n], "ms", better="lower", table=table, goal=goal)
        spent = {way: [core for _, core in of] for way, of in ways.items() if way != "local memory"}
        if all(all(of) for of in spent.values()):  # a short round may be less than the clock's tick
            report.row(f"{name}, a processor second of the sender", spent, "GB", table=table)


# --- the whole loader ------------------------------------------------------------------------------------------------


def images(batches: Iterator[Any], seconds: float) -> float:
    """Images a second."""
    done, before = 0, time.perf_counter()
    while (passed := time.perf_counter() - before) < seconds:
        done += next(batches).num_images
    return done / passed


def torch_images(files: list[str], seconds: float) -> Callable[[], float]:
    """Images a second of torch's DataLoader with torchvision and two workers, as `loader.py` has it."""
    from loader import COLLATE, WORKERS, Patches, first_fit
    from torch.utils.data import DataLoader

    peer = DataLoader(
        Patches(files),
        COLLATE,
        shuffle=True,
        num_workers=WORKERS,
        collate_fn=lambda items: (len(items), *first_fit(items)),
        persistent_workers=True,
        prefetch_factor=4,
    )

    def measure() -> float:
        # Whole epochs: between them its workers idle, as ours do.
        done, before = 0, time.perf_counter()
        while (passed := time.perf_counter() - before) < seconds:
            done += sum(count for count, _, _ in peer)
        return done / passed

    return measure


def whole(report: Report, config: Path, files: list[str], seconds: float, count: int) -> None:
    with contextlib.ExitStack() as stack:
        measures: dict[str, Callable[[], float]] = {}
        local = stack.enter_context(PackedLoader(config=LoaderConfig.from_toml(config)))
        address, _ = stack.enter_context(daemon(config))
        for name, loader in (
            ("in process", local),
            ("remote, shared memory", stack.enter_context(RemoteLoader([address]))),
            ("remote, tcp", stack.enter_context(RemoteLoader([address], shared=False))),
        ):
            # A fresh iteration each time: nothing that was rendered ahead for free counts, and nobody else is at work.
            def measure(loader: Any = loader) -> float:
                batches = forever(loader)
                for _ in range(4):
                    next(batches)
                speed = images(batches, seconds)
                batches.close()  # type: ignore[attr-defined]
                return speed

            measures[name] = measure
        measures["torch DataLoader + torchvision"] = torch_images(files, seconds)
        found = turns(measures, count)
    table = "whole loader, daemon and trainer on the same cores"
    for name in ("in process", "remote, shared memory", "remote, tcp"):
        ways = {"navit": found[name], TORCH: found[TORCH], "in process": found["in process"]}
        if name == "in process":
            report.row(name, {"navit": found[name], TORCH: found[TORCH]}, "images/s", table=table)
            continue
        goal = 0.95 if "shared" in name else 0.85
        report.row(name, ways, "images/s", table=table, bounds=("in process",), beside="in process", goal=goal)
        report.row(
            f"{name}, beside torch", ways, "images/s", table=table, bounds=("in process",), beside=TORCH, goal=1.9
        )


def with_hostile_peers(report: Report, config: Path, seconds: float, count: int) -> None:
    """Two daemons, one of them with peers that lie, stall and hang: images/s of an honest client of each."""
    with contextlib.ExitStack() as stack:
        (alone, _), (beset, process) = (stack.enter_context(daemon(config)) for _ in range(2))
        before = memory_mb(process.pid)
        stack.enter_context(hostile(beset))
        time.sleep(2.0)
        names = {"alone": alone, "navit": beset}
        loaders = {name: stack.enter_context(RemoteLoader([address])) for name, address in names.items()}
        streams = {name: forever(loader) for name, loader in loaders.items()}
        found = turns({name: partial(images, stream, seconds) for name, stream in streams.items()}, count)
        after = memory_mb(process.pid)
    table = "an honest client beside 1,000 idle or broken connections and 6 readers that read nothing"
    report.row("speed", found, "images/s", table=table, bounds=("alone",), goal=0.8)
    report.row("the daemon's memory, beyond what it was", after - before, "MiB", better="lower", table=table)


# --- many clients, long runs -----------------------------------------------------------------------------------------


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


def many(config: Path, clients: int, seconds: float) -> tuple[np.ndarray[Any, Any], float]:
    """So many clients of one daemon: the batches that each of them got, and the daemon's memory in MiB."""
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
        return np.array([int(worker.communicate()[0]) for worker in workers]), memory


def fair(report: Report, config: Path, clients: int, seconds: float) -> None:
    served, memory = many(config, clients, seconds)
    table = "many clients of one daemon, memory_mb = 512"
    report.row("together", served.sum() / seconds, "batches/s", table=table, clients=clients)
    report.row("least by the mean", served.min() / served.mean(), "of it", table=table, goal=0.9)
    report.row("most by the mean", served.max() / served.mean(), "of it", better="lower", table=table, goal=1.1)
    report.row("the daemon's memory", memory, "MiB", better="lower", table=table)


TRAINER = """
import sys, time
from navit_loader import RemoteLoader
with RemoteLoader([sys.argv[1]]) as loader:
    loader.set_epoch(int(sys.argv[2]))
    batches = (batch for _ in range(10**9) for batch in loader)
    print("ready", flush=True)
    for line in sys.stdin:
        end, n = time.monotonic() + float(line), 0
        while time.monotonic() < end:
            n += next(batches).num_images
        print(n, flush=True)
"""


def sweep(report: Report, config: Path, seconds: float, count: int) -> None:
    """Images/s of two trainers of one plan together, at the same batches, and of two that are in epochs of their own."""
    with contextlib.ExitStack() as stack:
        pairs: dict[str, list[subprocess.Popen[str]]] = {}
        for name, epochs in (("apart", (0, 1000)), ("together", (0, 0))):
            address, _ = stack.enter_context(daemon(config))
            for epoch in epochs:
                command = [sys.executable, "-c", TRAINER, address, str(epoch)]
                process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
                stack.callback(process.wait)
                stack.callback(process.kill)
                assert process.stdout is not None
                process.stdout.readline()
                pairs.setdefault(name, []).append(process)

        def measured(name: str) -> float:
            for process in pairs[name]:
                assert process.stdin is not None
                process.stdin.write(f"{seconds}\n")
                process.stdin.flush()
            return sum(int(process.stdout.readline()) for process in pairs[name] if process.stdout) / seconds

        found = turns({name: partial(measured, name) for name in pairs}, count)
    table = "two trainers of one plan on one daemon"
    ways = {"navit": found["together"], "each at batches of its own": found["apart"]}
    report.row("together at the same batches", ways, "images/s", table=table, bounds=list(ways)[1:], goal=1.8)


def held(pid: int) -> list[float]:
    """What a process holds: resident MiB, descriptors, threads."""
    return [memory_mb(pid), *(float(len(os.listdir(f"/proc/{pid}/{what}"))) for what in ("fd", "task"))]


def soak(report: Report, config: Path, minutes: float) -> None:
    """Serves for so long, with a line a minute, and says whether what the two processes hold still grows at the end."""
    names = [f"{who} {what}" for who in ("daemon", "trainer") for what in ("MiB", "descriptors", "threads")]
    lines: list[list[float]] = []
    with daemon(config) as (address, process), RemoteLoader([address]) as loader:
        batches, images, start = forever(loader), 0, time.monotonic()
        while (passed := (time.monotonic() - start) / 60) < minutes or len(lines) <= minutes:
            images += next(batches).num_images
            if passed >= len(lines):
                lines.append([*held(process.pid), *held(os.getpid())])
                values = ", ".join(f"{name} {value:,.0f}" for name, value in zip(names, lines[-1], strict=True))
                print(f"minute {len(lines) - 1}: {images:,} images; {values}", flush=True)
    # What is filled once, such as buffers and the 64 MiB of planned blocks, is full after the first half of a long run.
    late = np.array(lines[len(lines) // 2 :])
    for name, values in zip(names, late.T, strict=True):
        slope = float(np.polyfit(np.arange(len(values)), values, 1)[0]) if len(values) > 1 else 0.0
        table = "the second half of a long run"
        report.row(f"{name}, growth", slope, "a minute", better="lower", table=table, minutes=minutes, images=images)
        report.row(f"{name}, most", float(values.max()), name.split()[-1], better="lower", table=table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="class-per-folder images; without it, crops of real photographs")
    parser.add_argument("--count", type=int, default=2000, help="photographs to make")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=5, help="how often each is repeated")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument(
        "--plain-malloc", action="store_true", help="without the setting of malloc that the docs advise"
    )
    parser.add_argument("--soak", type=float, default=0.0, metavar="MINUTES", help="only this: serve for so long")
    args = parse(parser, {"count": 60, "seconds": 0.2, "rounds": 2, "clients": 4})
    if not args.plain_malloc and not MALLOC.items() <= os.environ.items():
        # It is read where a process starts. The peers in this process and torch's workers have it too.
        env = {**os.environ, **MALLOC} | ({"NAVIT_BENCH_SET": "6"} if args.quick else {})
        os.execve(sys.executable, [sys.executable, *sys.argv], env)
    report = Report("service-soak" if args.soak else "service", __doc__, args)
    with tempfile.TemporaryDirectory() as work:
        folder = args.images
        if folder is None:
            folder = Path(work) / "images"
            corpus.write(folder / "photographs", args.count)
        config = configured(Path(work), folder, 0)
        if args.soak:
            soak(report, config, args.soak)
        else:
            # Transport alone has nothing to do with the end of an epoch, where nothing is asked for ahead.
            long = configured(Path(work), folder, 1_000_000)
            transport(report, long, args.seconds, args.rounds)
            whole(report, config, sorted(map(str, folder.rglob("*.jpg"))), args.seconds, args.rounds)
            sweep(report, long, args.seconds, args.rounds)
            with_hostile_peers(report, config, args.seconds, args.rounds)
            fair(report, config, args.clients, max(1.0, 5 * args.seconds))
    report.finish()


if __name__ == "__main__":
    main()
