"""What the disk cache of remote data saves, beside LRU and beside the least that is possible, and what it costs.

In: photographs that it writes into a tar, and nginx, which serves it and logs what it sent. Out: bytes and speed. Each
epoch is read by a loader of its own, so that spans in memory play no part. An epoch without the cache says in which order
spans are wanted; LRU and Bélády's algorithm (with bypass, on the whole future) are computed on that order for the room that
it has. What the cache fetches is what the server sent. Bytes are exact whatever else the machine does; the speed is a ratio
of rounds that alternate.

    python bench/cache.py [--images 8192] [--rounds 5] [--scratch DIR]
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import tarfile
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from corpus import make
from kit import Report, parse, turns
from sources_kit import missing, nginx

from navit_loader import LoaderConfig, PackedLoader, build_index
from navit_loader.config import Order, RenderConfig

UNIQUE = 400
POSSIBLE = "the least possible (Bélády)"
EPOCHS = 4
"""The first, which finds nothing, and three more."""
Trace = list[tuple[int, int]]
"""Spans in the order in which they are wanted: where each begins, and its bytes."""


def write(folder: Path, count: int) -> Path:
    """A tar of photographs of some 70 KB."""
    photographs = make(UNIQUE, 0.2, 0.35)
    with tarfile.open(folder / "x.tar", "w") as tar:
        for i in range(count):
            info = tarfile.TarInfo(f"{i:06d}.jpg")
            info.size = len(photographs[i % UNIQUE])
            tar.addfile(info, io.BytesIO(photographs[i % UNIQUE]))
    return folder / "x.tar"


def config(cache: Path | None = None, gigabytes: float = 0.0, tokens: int = 256) -> LoaderConfig:
    """Blocks of 64 images in windows of 4, so that an epoch of some thousands has many windows."""
    base = LoaderConfig()
    plan = replace(base.plan, max_tokens=tokens, order=Order(kind="blocks", block=64, window=4))
    render = RenderConfig() if cache is None else RenderConfig(cache_dir=str(cache), cache_gb=gigabytes)
    return replace(base, plan=plan, render=render)


def read(index: Path, settings: LoaderConfig, epoch: int) -> tuple[float, float, int]:
    """Seconds, seconds of processor time, and images of an epoch by a loader of its own."""
    with PackedLoader(index, settings, rank=0, world_size=1) as loader:
        loader.set_epoch(epoch)
        start, cpu = time.perf_counter(), time.process_time()
        images = sum(batch.num_images for batch in loader)
        found = time.perf_counter() - start, time.process_time() - cpu, images
        time.sleep(0.2)  # what came last is still being written
    return found


def sent(log: Path) -> Trace:
    """What the server has sent since the last look."""
    time.sleep(0.1)
    lines = [line.split() for line in log.read_text().splitlines()]
    os.truncate(log, 0)
    return [(int(span.removeprefix("bytes=").split("-")[0]), int(n)) for span, n in lines if span != "-"]


def least_recent(trace: Trace, room: int) -> list[int]:
    """The misses of a cache that lets go of what was used least lately."""
    held: dict[int, int] = {}
    missed, used = [], 0
    for at, (span, size) in enumerate(trace):
        if span in held:
            held[span] = held.pop(span)
            continue
        missed.append(at)
        held[span], used = size, used + size
        while used > room:
            used -= held.pop(next(iter(held)))
    return missed


def belady(trace: Trace, room: int) -> list[int]:
    """The misses of one that knows all that comes."""
    later: list[int] = [0] * len(trace)
    seen: dict[int, int] = {}
    for at in range(len(trace) - 1, -1, -1):
        later[at] = seen.get(trace[at][0], sys.maxsize)
        seen[trace[at][0]] = at
    held: dict[int, tuple[int, int]] = {}
    missed, used = [], 0
    for at, (span, size) in enumerate(trace):
        if span in held:
            held[span] = (later[at], size)
            continue
        missed.append(at)
        held[span], used = (later[at], size), used + size
        while used > room:  # what was just used may be what goes
            used -= held.pop(max(held, key=lambda other: held[other][0]))[1]
    return missed


def fetched(report: Report, folder: Path, index: Path, log: Path) -> None:
    """Bytes fetched with room for half of the data."""
    size = (folder / "x.tar").stat().st_size
    trace, starts = [], []
    for epoch in range(EPOCHS):
        starts.append(len(trace))
        read(index, config(tokens=16), epoch)
        trace += sent(log)
    warm = starts[1]

    def megabytes(missed: list[int], first: int) -> list[float]:
        return [sum(trace[at][1] for at in missed if at >= first) / 1e6]

    ours = []
    for epoch in range(EPOCHS):
        read(index, config(folder / "half", size / 2 / 1e9, 16), epoch)
        ours.append(sum(n for _, n in sent(log)) / 1e6)
    lru, least = least_recent(trace, size // 2), belady(trace, size // 2)
    given = {"megabytes": round(size / 1e6), "spans": len(set(trace)), "table": "bytes fetched, room for half"}
    for what, first, own, goals in (
        ("three epochs behind the first", warm, sum(ours[1:]), (1 / 0.6, 1 / 1.02)),
        ("all four", 0, sum(ours), (None, None)),
    ):
        for name, missed, goal in (("LRU", lru, goals[0]), (POSSIBLE, least, goals[1])):
            ways = {"navit": [own], name: megabytes(missed, first)}
            report.row(
                f"{what}, beside {name}", ways, "MB", better="lower", bounds=(POSSIBLE,),
                goal=goal and round(goal, 3), **given,
            )  # fmt: skip


def speed(report: Report, folder: Path, index: Path, local: Path, log: Path, rounds: int) -> None:
    """The second epoch of a cache that holds all, beside the same tar on disk."""
    settings = config(folder / "all", 1000.0)
    read(index, settings, 0)
    sent(log)
    ways = {"navit": lambda: read(index, settings, 1), "the tar on disk": lambda: read(local, config(), 1)}
    found = turns(ways, rounds)
    table, bounds = "a second epoch, all held", ("the tar on disk",)
    report.row("bytes fetched", sum(n for _, n in sent(log)), "bytes", better="lower", table=table, goal=0)
    for n, (what, goal) in enumerate((("speed", 0.97), ("speed, by processor time", None))):
        rates = {way: [run[2] / run[n] for run in of] for way, of in found.items()}
        report.row(what, rates, "images/s", table=table, bounds=bounds, goal=goal)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=8192, help="photographs of 70 KB")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scratch", type=Path, help="folder for the data (default: the system's)")
    args = parse(parser, {"images": 512, "rounds": 2})
    if why := missing(late=False):
        raise SystemExit(f"bench/cache.py: {why}")
    report = Report("cache", __doc__, args)
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        folder = Path(scratch)
        build_index(write(folder, args.images), folder / "local.arrow")
        with nginx(folder) as (address, _, log):
            build_index(f"{address}/x.tar", folder / "x.arrow")
            sent(log)
            fetched(report, folder, folder / "x.arrow", log)
            speed(report, folder, folder / "x.arrow", folder / "local.arrow", log, args.rounds)
    report.finish()


if __name__ == "__main__":
    main()
