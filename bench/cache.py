"""What the disk cache of remote data saves, beside LRU and beside the least that is possible, and what it costs.

In: photographs that it writes into a tar, and nginx, which serves it and logs what it sent. Out: a Markdown table. Each epoch
is read by a loader of its own, so that spans in memory play no part. An epoch without the cache says in which order spans are
wanted; LRU and Bélády's algorithm (with bypass, on the whole future) are computed on that order for the room that it has.
What the cache fetches is what the server sent. Bytes are exact whatever else the machine does; the speed is a ratio of rounds
that alternate.

    python bench/cache.py [--images 8192] [--rounds 3] [--scratch DIR]
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from corpus import make
from sources_kit import free_port

from navit_loader import LoaderConfig, PackedLoader, _packer, build_index
from navit_loader.config import Order, RenderConfig

UNIQUE = 400
EPOCHS = 4
"""The first, which finds nothing, and three more."""
Trace = list[tuple[int, int]]
"""Spans in the order in which they are wanted: where each begins, and its bytes."""


@contextmanager
def logging_nginx(folder: Path) -> Iterator[tuple[str, Path]]:
    """Serves a folder; yields its address and the log of ranges and bytes sent."""
    found = shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin")
    if found is None:
        sys.exit("bench/cache.py: nginx is not installed; on Debian: apt-get install nginx-light")
    home, port = folder / "nginx", free_port()
    home.mkdir()
    paths = "".join(f"{kind}_temp_path {home}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    (home / "nginx.conf").write_text(
        f"daemon off; pid {home}/pid; error_log stderr; worker_processes 1;{'user root;' if os.getuid() == 0 else ''} "
        f"events {{}} http {{ log_format sent '$http_range $body_bytes_sent'; access_log {home}/sent sent; {paths} "
        f"server {{ listen 127.0.0.1:{port}; root {folder}; }} }}"
    )
    with subprocess.Popen([found, "-p", str(home), "-c", str(home / "nginx.conf")]) as server:
        try:
            time.sleep(0.5)
            yield f"http://127.0.0.1:{port}", home / "sent"
        finally:
            server.terminate()


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


def fetched(folder: Path, index: Path, log: Path) -> None:
    """Bytes fetched with room for half of the data."""
    size = (folder / "x.tar").stat().st_size
    trace, starts = [], []
    for epoch in range(EPOCHS):
        starts.append(len(trace))
        read(index, config(tokens=16), epoch)
        trace += sent(log)
    warm = starts[1]

    def bytes_of(missed: list[int], first: int) -> int:
        return sum(trace[at][1] for at in missed if at >= first)

    ours = []
    for epoch in range(EPOCHS):
        read(index, config(folder / "half", size / 2 / 1e9, 16), epoch)
        ours.append(sum(n for _, n in sent(log)))
    lru, least = least_recent(trace, size // 2), belady(trace, size // 2)
    spans = f"{size / 1e6:,.0f} MB in {len(set(trace))} spans, room for half"
    for what, first, own, goals in (
        ("three epochs behind the first", warm, sum(ours[1:]), ("0.6", "1.02")),
        ("all four", 0, sum(ours), ("", "")),
    ):
        a, b = bytes_of(lru, first), bytes_of(least, first)
        row(
            f"{spans}: bytes fetched, {what}, of LRU's", f"{own / a:.3f} ({own / 1e6:,.0f} of {a / 1e6:,.0f} MB)", "0.6"
        )
        row(f"the same, of what is possible, {what}", f"{own / b:.3f} ({b / 1e6:,.0f} MB)", goals[1])


def speed(folder: Path, index: Path, local: Path, log: Path, rounds: int) -> None:
    """The second epoch of a cache that holds all, beside the same tar on disk."""
    settings = config(folder / "all", 1000.0)
    read(index, settings, 0)
    sent(log)
    ratios = []
    for number in range(rounds + 1):
        here, held = (read(*what, 1) for what in ((local, config()), (index, settings)))
        if number:  # the first warms up
            ratios.append((here[0] / held[0], here[1] / held[1]))
    wall, cpu = (float(np.median(column)) for column in zip(*ratios, strict=True))
    row("a second epoch, all held: bytes fetched", f"{sum(n for _, n in sent(log)):,}", "0")
    row("the same: images/s, of the tar on disk", f"{wall:.2f} (processor time {cpu:.2f})", "0.97")


def row(what: str, found: str, goal: str) -> None:
    print(f"| {what} | {found} | {goal} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=8192, help="photographs of 70 KB")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scratch", type=Path, help="folder for the data (default: the system's)")
    args = parser.parse_args()
    if _packer.BUILD_PROFILE != "release":
        sys.exit("bench/cache.py: this is a debug build; run `make build` first")
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n")
    print("| what | measured | goal |\n|---|---|---|")
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        folder = Path(scratch)
        build_index(write(folder, args.images), folder / "local.arrow")
        with logging_nginx(folder) as (address, log):
            build_index(f"{address}/x.tar", folder / "x.arrow")
            sent(log)
            fetched(folder, folder / "x.arrow", log)
            speed(folder, folder / "x.arrow", folder / "local.arrow", log, args.rounds)


if __name__ == "__main__":
    main()
