"""What delivery costs: the service beside the same batches in process, in one run on one machine.

In: nothing, or a folder of images. Out: tables. Transport alone (batches already rendered) beside one copy from local memory, a
plain TCP socket and bare pyzmq; added latency of one 6 MB batch; images/s of the remote loader beside the in-process loader and
torch's DataLoader with torchvision, of two trainers that share renderings beside two that do not, and with hostile peers;
shares and memory of 64 clients. Measurements are interleaved, and ratios are medians of those within one round, since a shared
machine drifts.

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
from pathlib import Path
from typing import Any

import numpy as np
from serving import AHEAD, CONFIG, SET, RenderedEngine, cpu_seconds, daemon, hostile, memory_mb, peer

from navit_loader import LoaderConfig, PackedBatch, PackedLoader, RemoteLoader, build_index
from navit_loader._packer import BUILD_PROFILE
from navit_loader.service.security import make_keys

MALLOC = {"MALLOC_TRIM_THRESHOLD_": "268435456", "MALLOC_MMAP_THRESHOLD_": "33554432"}
"""What docs/rooms/service.md advises where batches come over TCP: large blocks are kept, not taken page by page each time."""


def forever(loader: Any) -> Iterator[PackedBatch]:
    while True:
        yield from loader


def rounds(measures: dict[str, Callable[[], float]], count: int) -> dict[str, np.ndarray[Any, Any]]:
    """Each measure in turn, `count` times over; after one round that does not count."""
    for measure in measures.values():
        measure()
    found = [[measure() for measure in measures.values()] for _ in range(count)]
    return dict(zip(measures, np.array(found).T, strict=True))


def ratio(found: dict[str, np.ndarray[Any, Any]], name: str, base: str) -> float:
    return float(np.median(found[name] / found[base]))


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


def transport(config: Path, seconds: float, count: int) -> None:
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
        spent = dict.fromkeys(sources, 0.0)
        moved = dict.fromkeys(sources, 0.0)

        def measured(name: str) -> Callable[[], float]:
            def measure() -> float:
                before, start = cpu_seconds(pids[name]), time.perf_counter()
                speed = gigabytes(sources[name], seconds)
                spent[name] += cpu_seconds(pids[name]) - before
                moved[name] += speed * (time.perf_counter() - start)
                return speed

            return measure

        found = rounds({name: measured(name) for name in sources}, count)
        print(f"\ntransport alone, batches of {size / 1e6:.1f} MB, one copy into a reused buffer\n")
        print("| path | GB/s | of local | of bare pyzmq | GB a processor second of the sender | p50 ms | p99 ms |")
        print("|---|---|---|---|---|---|---|")
        for name, speeds in found.items():
            times = " | ".join(f"{t:.2f}" for t in latency(loaders[name], 300)) if name in loaders else "– | –"
            core = f"{moved[name] / spent[name]:.1f}" if spent[name] and name != "local memory" else "–"
            of = f"{ratio(found, name, 'local memory'):.2f} | {ratio(found, name, 'pyzmq'):.2f}"
            print(f"| {name} | {np.median(speeds):.2f} | {of} | {core} | {times} |", flush=True)


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


def whole(config: Path, files: list[str], seconds: float, count: int) -> None:
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
        found = rounds(measures, count)
    print("\nwhole loader, daemon and trainer on the same cores\n")
    print("| loader | images/s | of in-process | of torch |\n|---|---|---|---|")
    for name, speeds in found.items():
        of = f"{ratio(found, name, 'in process'):.2f} | {ratio(found, name, 'torch DataLoader + torchvision'):.2f}"
        print(f"| {name} | {np.median(speeds):,.0f} | {of} |", flush=True)


def with_hostile_peers(config: Path, seconds: float, count: int) -> None:
    """Two daemons, one of them with peers that lie, stall and hang: images/s of an honest client of each."""
    with contextlib.ExitStack() as stack:
        (alone, _), (beset, process) = (stack.enter_context(daemon(config)) for _ in range(2))
        before = memory_mb(process.pid)
        stack.enter_context(hostile(beset))
        time.sleep(2.0)
        names = {"alone": alone, "with hostile peers": beset}
        loaders = {name: stack.enter_context(RemoteLoader([address])) for name, address in names.items()}
        streams = {name: forever(loader) for name, loader in loaders.items()}
        found = rounds({name: lambda s=s: images(s, seconds) for name, s in streams.items()}, count)  # type: ignore[misc]
        after = memory_mb(process.pid)
    print(
        f"\nhonest client beside 1,000 idle or broken connections and 6 readers that read nothing: "
        f"{ratio(found, 'with hostile peers', 'alone'):.2f} of its speed alone; daemon {before:,.0f} -> {after:,.0f} MiB"
    )


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


def sweep(config: Path, seconds: float, count: int) -> None:
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

        found = rounds({name: lambda n=name: measured(n) for name in pairs}, count)  # type: ignore[misc]
    print(
        f"\ntwo trainers of one plan on one daemon: {np.median(found['together']):,.0f} images/s together at the same batches, "
        f"{np.median(found['apart']):,.0f} where each has its own; {ratio(found, 'together', 'apart'):.2f} of that"
    )


def held(pid: int) -> list[float]:
    """What a process holds: resident MiB, descriptors, threads."""
    return [memory_mb(pid), *(float(len(os.listdir(f"/proc/{pid}/{what}"))) for what in ("fd", "task"))]


def soak(config: Path, minutes: float) -> None:
    """Serves for so long, with a row a minute, and says whether what the two processes hold still grows at the end."""
    print("\n| minute | images | daemon: MiB | descriptors | threads | trainer: MiB | descriptors | threads |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    rows: list[list[float]] = []
    with daemon(config) as (address, process), RemoteLoader([address]) as loader:
        batches, images, start = forever(loader), 0, time.monotonic()
        while (passed := (time.monotonic() - start) / 60) < minutes or len(rows) <= minutes:
            images += next(batches).num_images
            if passed >= len(rows):
                rows.append([*held(process.pid), *held(os.getpid())])
                values = " | ".join(f"{value:,.0f}" for value in rows[-1])
                print(f"| {len(rows) - 1} | {images:,} | {values} |", flush=True)
    # What is filled once, such as buffers and the 64 MiB of planned blocks, is full after the first half of a long run.
    late = np.array(rows[len(rows) // 2 :])
    names = [f"{who} {what}" for who in ("daemon", "trainer") for what in ("MiB", "descriptors", "threads")]
    words = []
    for name, values in zip(names, late.T, strict=True):
        slope = np.polyfit(np.arange(len(values)), values, 1)[0] if len(values) > 1 else 0.0
        words.append(f"{name} {values.min():,.0f} to {values.max():,.0f}, {round(slope, 2) + 0.0:+.2f} a minute")
    print(f"\nover the last {len(late)} rows: " + "; ".join(words))


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
    args = parser.parse_args()
    if BUILD_PROFILE != "release":
        raise SystemExit(f"the engine is a {BUILD_PROFILE} build; measure a release build: make build")
    if not args.plain_malloc and not MALLOC.items() <= os.environ.items():
        # It is read where a process starts. The peers in this process and torch's workers have it too.
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **MALLOC})
    with tempfile.TemporaryDirectory() as work:
        folder = args.images
        if folder is None:
            import corpus

            folder = Path(work) / "images"
            corpus.write(folder / "photographs", args.count)
        index = Path(work) / "bench.arrow"
        build_index(folder, index)
        config = Path(work) / "bench.toml"
        threads = len(os.sched_getaffinity(0))
        config.write_text(CONFIG.format(index=index, threads=threads, epoch=0))
        # Transport alone has nothing to do with the end of an epoch, where nothing is asked for ahead.
        long = Path(work) / "long.toml"
        long.write_text(CONFIG.format(index=index, threads=threads, epoch=1_000_000))
        print(
            f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, malloc {'plain' if args.plain_malloc else 'as advised'}"
        )
        if args.soak:
            soak(config, args.soak)
            return
        transport(long, args.seconds, args.rounds)
        whole(config, sorted(map(str, folder.rglob("*.jpg"))), args.seconds, args.rounds)
        sweep(long, args.seconds, args.rounds)
        with_hostile_peers(config, args.seconds, args.rounds)
        many(config, args.clients, max(10.0, args.seconds))


if __name__ == "__main__":
    main()
