"""Planning and packing: padding, speed, first batch, memory; peers in the same run.

In: nothing but sizes, drawn here. Out: tables. Repetitions of the peers are interleaved and medians are shown, since a
shared machine drifts. Peers that are not installed are named and left out. A debug build is refused.

    python bench/packing.py [--repeat 5] [--images 65536] [--large]

`--large`: the epoch of the first-batch row has 400 million images (two size columns of 1.6 GB in a temporary directory)
in place of 40 million.

Peers: `seqpacker` (`pip install seqpacker`) for next fit, first fit and best fit decreasing; `ffd over numba`: items from
long to short into the first open sequence with room, the sequences searched one after another, in groups of
`FFD_GROUP` items (`pip install numba`): the idea of axolotl's packer in our own words.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from navit_loader import _packer, pack
from navit_loader.config import Crop, Drop, PlanConfig, Resolution
from navit_loader.summary import slowest_rank

Lengths = npt.NDArray[np.int64]
Packer = Callable[[Lengths, int], int]
"""Lengths and capacity to the number of sequences."""

FFD_GROUP = 4096
UNIFORM = Resolution(kind="uniform", low=64, high=256)
EPOCH = 1_280_000
NO_CAPTIONS: list[npt.NDArray[np.int32]] = []


def sizes(n: int, seed: int = 0) -> dict[str, Any]:
    """Columns of `n` photographs: aspect ratio lognormal (0.3), area about a megapixel, never below 256 × 256."""
    rng = np.random.default_rng(seed)
    root_aspect = np.exp(rng.normal(0, 0.3, n) / 2)
    side = 1000 * np.exp(rng.normal(0, 0.2, n))
    width, height = (np.maximum(256, side * f).astype(np.int32) for f in (root_aspect, 1 / root_aspect))
    return {"width": [width], "height": [height], "caption_tokens": NO_CAPTIONS}


def make(config: PlanConfig, columns: dict[str, Any]) -> _packer.Plan:
    """A plan over one index."""
    return _packer.Plan(config.to_json(), [columns], [(0, None, 1.0)])


def lengths_of(columns: dict[str, Any]) -> Lengths:
    """Tokens of each image as the plan draws them, in no order."""
    layout = make(CASES["L = 1024"], columns).layout(0)
    found: list[int] = []
    for first in range(0, int(layout.counts(0, layout.num_blocks).sum()), 512):
        found += [image["kept"] for images in layout.batch(first, 512).sequences for image in images]
    lengths = np.array(found, np.int64)
    np.random.default_rng(1).shuffle(lengths)
    return lengths


CASES = {
    "L = 1024": PlanConfig(resolution=UNIFORM),
    "L = 256": PlanConfig(sequence_length=256, resolution=UNIFORM),
    "L = 256, fit by resolution": PlanConfig(sequence_length=256, resolution=UNIFORM, fit="resolution"),
    "L = 256, fit by drop": PlanConfig(sequence_length=256, resolution=UNIFORM, fit="drop"),
    "L = 256, drop 0.2 to 0.8 by resolution": PlanConfig(
        sequence_length=256, resolution=UNIFORM, drop=Drop(kind="resolution_dependent", min_rate=0.2, max_rate=0.8)
    ),
    "L = 256, drop beta, mean 0.5, max 0.8": PlanConfig(
        sequence_length=256, resolution=UNIFORM, drop=Drop(kind="beta", rate=0.5, max_rate=0.8)
    ),
}


def ours(algorithm: str) -> Packer:
    """`navit_loader.pack`."""
    return lambda lengths, capacity: int(pack(lengths, capacity, algorithm=algorithm)[0].max()) + 1  # type: ignore[arg-type]


def peers() -> tuple[dict[str, Packer], list[str]]:
    """Packers by name, and what is missing."""
    names = ("exact", "first_fit", "best_fit", "best_fit_decreasing", "spfhp", "next_fit")
    found: dict[str, Packer] = {f"navit {name}": ours(name) for name in names}
    missing = []
    try:
        import seqpacker
    except ImportError:
        missing.append("seqpacker")
    else:
        for name, short in (("next fit", "nf"), ("first fit", "ff"), ("best fit decreasing", "bfd")):
            found[f"seqpacker {name}"] = _seqpacker(seqpacker.Packer, short)
    try:
        import numba
    except ImportError:
        missing.append("numba")
    else:
        found["ffd over numba"] = _decreasing(numba.njit(_first_fit_group))
    return found, missing


def _seqpacker(packer: Any, short: str) -> Packer:
    def run(lengths: Lengths, capacity: int) -> int:
        # Its flat result is its fastest one: item numbers, and where each sequence starts.
        _, starts = packer(capacity, strategy=short).pack_flat(lengths)
        return len(starts) + 1

    return run


def _first_fit_group(lengths: Any, capacity: int, room: Any, bin_of: Any) -> int:
    used = 0
    for i in range(len(lengths)):
        place = 0
        while place < used and room[place] < lengths[i]:
            place += 1
        if place == used:
            room[place] = capacity
            used += 1
        room[place] -= lengths[i]
        bin_of[i] = place
    return used


def _decreasing(first_fit: Callable[..., int]) -> Packer:
    def run(lengths: Lengths, capacity: int) -> int:
        total = 0
        for start in range(0, len(lengths), FFD_GROUP):
            group = np.sort(lengths[start : start + FFD_GROUP])[::-1].copy()
            total += first_fit(group, capacity, np.zeros_like(group), np.zeros_like(group))
        return total

    run(np.array([3, 2], np.int64), 8)  # compile
    return run


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds and result."""
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


def table(title: str, heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """Prints a table as Markdown."""
    print(f"\n### {title}\n\n| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")


def packers(images: int, repeat: int) -> None:
    """Padding and nanoseconds an item of the packers alone."""
    found, missing = peers()
    lengths = lengths_of(sizes(images))
    for capacity in (256, 1024, 4096):
        seconds: dict[str, list[float]] = {name: [] for name in found}
        padding = {}
        for _ in range(repeat):
            for name, run in found.items():
                took, bins = timed(partial(run, lengths, capacity))
                seconds[name].append(took)
                padding[name] = 1 - lengths.sum() / (bins * capacity)
        rows = [
            (name, f"{padding[name]:.4%}", f"{median(seconds[name]) * 1e9 / images:,.0f}")
            for name in sorted(found, key=lambda name: padding[name])
        ]
        table(
            f"Packers alone, {images:,} images of {lengths.mean():.0f} tokens on average, L = {capacity}",
            ("packer", "padding, last sequence included", "ns an item"),
            rows,
        )
    if missing:
        print(f"\nNot installed, left out: {', '.join(missing)}.")


def padding(images: int) -> None:
    """Padding of the plan, inside blocks and over an epoch."""
    rows = []
    for name, config in CASES.items():
        layout = make(config, sizes(images * 4)).layout(0)
        report = layout.report(0, layout.num_blocks)
        empty = report["slots"] - report["tokens"]
        moved = f"{report['moved'] / report['images']:.1%} by {report['moved_tokens'] / max(1, report['moved']):.1f}"
        rows.append(
            (
                name,
                f"{(empty - report['tail']) / report['slots']:.6%}",
                f"{empty / report['slots']:.4%}",
                f"{report['lateness']:,}",
                f"{report['images'] / report['sequences']:.2f}",
                moved if report["moved"] else "",
            )
        )
    heads = ("plan", "padding inside blocks", "over an epoch", "lateness", "images a sequence", "moved by fit, tokens")
    table(
        f"Plan, sides U(64, 256), P = 16, {images * 4:,} images in blocks of {CASES['L = 1024'].block_images:,}",
        heads,
        rows,
    )


def balance(repeat: int) -> None:
    """What attention costs the slowest rank of a step by its mean rank, and what evening it out costs the planner."""
    columns = sizes(262_144)
    uneven = PlanConfig(sequence_length=4096, max_tokens=1024, resolution=Resolution(kind="uniform", low=64, high=512))
    windows = (0, 64, 256, 1024)
    plans = {window: make(replace(uneven, balance=window), columns) for window in windows}
    busy: dict[int, list[float]] = {window: [] for window in windows}
    for epoch in range(repeat):
        for window, plan in plans.items():
            layout = plan.layout(epoch)
            start = time.process_time()
            layout.counts(0, layout.num_blocks)
            busy[window].append((time.process_time() - start) * 1e9 / len(columns["width"][0]))
    worlds = ((8, 8), (8, 2), (4, 8), (2, 8), (16, 8), (5, 8), (12, 3), (8, 64))
    rows = []
    for window, plan in plans.items():
        layout = plan.layout(0)
        found = (f"{slowest_rank(layout, b, w):.3f}" for b, w in worlds)
        rows.append((str(window), *found, f"{median(busy[window]):.0f}"))
    heads = ("balance", *(f"B = {b}, {w} ranks" for b, w in worlds), "ns an image to plan")
    table("Slowest rank of a step by the mean, in Σ n²: sides U(64, 512), P = 16, L = 4096", heads, rows)


@contextlib.contextmanager
def cores(count: int) -> Iterator[None]:
    """Pins the process, and the threads it starts, to some of its cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def speed(repeat: int) -> None:
    """The whole plan, order and draws included."""
    columns = sizes(EPOCH)
    available = len(os.sched_getaffinity(0))
    counts = [c for c in (1, 2, 4, 8, 16) if c <= available]
    cases = {
        "U(64, 256), L = 1024": CASES["L = 1024"],
        "truncated normal, L = 4096": PlanConfig(sequence_length=4096),
        "U(64, 256), L = 256": CASES["L = 256"],
        "random crop, flip, beta drop, L = 1024": PlanConfig(
            resolution=UNIFORM,
            drop=Drop(kind="beta"),
            crop=Crop(kind="random_resized", flip=0.5),
        ),
    }
    seconds: dict[tuple[str, int], list[float]] = {(name, c): [] for name in cases for c in counts}
    busy: dict[tuple[str, int], list[float]] = {key: [] for key in seconds}
    for _ in range(repeat):
        for name, config in cases.items():
            for count in counts:
                with cores(count):
                    layout = make(config, columns).layout(0)
                    start = time.process_time()
                    seconds[name, count].append(timed(partial(layout.counts, 0, layout.num_blocks))[0])
                    busy[name, count].append(time.process_time() - start)
    rows = [
        (
            name,
            str(c),
            f"{EPOCH / median(s) / 1e6:.2f}",
            f"{median(s):.2f}",
            f"{EPOCH / median(busy[name, c]) / 1e6:.2f}",
        )
        for (name, c), s in seconds.items()
    ]
    heads = ("plan", "cores", "M images/s", f"s for {EPOCH:,}", "M images per CPU second")
    table("The whole plan: order, draws, packing", heads, rows)


LARGE = """
import json, sys, threading, time
import numpy as np
from navit_loader import _packer
from navit_loader.config import PlanConfig, Resolution
rows, folder, mode = int(sys.argv[1]), sys.argv[2], sys.argv[3]
columns = {n: [np.asarray(np.memmap(f"{folder}/{n}", np.int32, "r", shape=(rows,)))] for n in ("width", "height")}
config = PlanConfig(resolution=Resolution(kind="uniform", low=64, high=256))
def private():
    # Anonymous memory alone: the mapped columns are the page cache's.
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon")) / 1024
most = before = private()
done = threading.Event()
def watch():
    global most
    while not done.wait(0.02):
        most = max(most, private())
watcher = threading.Thread(target=watch)
watcher.start()
start = time.perf_counter()
layout = _packer.Plan(config.to_json(), [columns], [(0, None, 1.0)]).layout(3)
if mode == "count":
    np.save(f"{folder}/counts.npy", layout.counts(0, layout.num_blocks))
else:
    position = 0
    if mode == "middle":
        layout.extend(np.load(f"{folder}/counts.npy").tolist())
        position = layout.num_sequences // 2
    assert len(layout.batch(position, 64).sequences) == 64
seconds = time.perf_counter() - start
done.set()
watcher.join()
print(json.dumps([seconds, max(most, private()) - before, layout.num_blocks]))
"""
"""Run in fresh processes; what it prints: seconds, MiB, blocks."""


def large(rows: int, repeat: int) -> None:
    """First batch, the whole table, and a state in the middle, each in a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        rng = np.random.default_rng(0)
        for name in ("width", "height"):
            with Path(folder, name).open("wb") as out:
                for start in range(0, rows, 1 << 22):
                    rng.integers(256, 1500, min(1 << 22, rows - start), np.int32).tofile(out)

        def run(mode: str) -> list[float]:
            command = [sys.executable, "-c", LARGE, str(rows), folder, mode]
            return list(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))

        count = run("count")
        runs = [(run("first"), run("middle")) for _ in range(repeat)]
    found = [
        (what, f"{median(r[0] for r in of):.3f}", f"{max(r[1] for r in of):.0f}")
        for what, of in (
            ("first batch of 64 sequences, nothing known", [first for first, _ in runs]),
            ("a batch in the middle, table restored", [middle for _, middle in runs]),
            ("the table of all counts, which len needs", [count]),
        )
    ]
    heads = ("what, from opening the plan on", "s", "MiB beyond the mapped columns")
    table(f"An epoch of {rows:,} images ({count[2]:,} blocks), each in a fresh process", heads, found)


def main() -> None:
    """Prints all tables."""
    parser = argparse.ArgumentParser(description="Planning and packing beside peers.")
    parser.add_argument("--repeat", type=int, default=5, metavar="N")
    parser.add_argument("--images", type=int, default=65_536, metavar="N", help="images of the packers' table")
    parser.add_argument("--large", action="store_true", help="400 million images; 3.2 GB of temporary files")
    args = parser.parse_args()
    if _packer.BUILD_PROFILE != "release":
        sys.exit(f"bench/packing.py: the extension is a {_packer.BUILD_PROFILE} build; build it with maturin --release")
    load = os.getloadavg()[0]
    print(f"{len(os.sched_getaffinity(0))} cores, load {load:.1f} at the start, medians of {args.repeat} repetitions")
    padding(args.images)
    packers(args.images, args.repeat)
    balance(args.repeat)
    speed(args.repeat)
    large(400_000_000 if args.large else 40_000_000, args.repeat)


if __name__ == "__main__":
    main()
