"""Planning and packing: padding, speed, first batch, memory; peers in the same run.

In: nothing but sizes, drawn here. Out: rows. Peers that are not installed are named and left out. How planning grows with
the images, to a thousand million, is for `growth.py` to say.

    python bench/packing.py [--repeat 5] [--images 65536]

Peers: `seqpacker` (`pip install seqpacker`) for next fit, first fit and best fit decreasing; `ffd over numba`: items from
long to short into the first open sequence with room, the sequences searched one after another, in groups of
`FFD_GROUP` items (`pip install numba`): the idea of axolotl's packer in our own words.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from kit import Report, installed, parse, turns

from navit_loader import _packer, pack
from navit_loader.config import Crop, Drop, PlanConfig, Resolution
from navit_loader.summary import slowest_rank

Lengths = npt.NDArray[np.int64]
Packer = Callable[[Lengths, int], int]
"""Lengths and capacity to the number of sequences."""

FFD_GROUP = 4096
ALIKE = {
    "next_fit": ("seqpacker next fit",),
    "first_fit": ("seqpacker first fit",),
    "best_fit_decreasing": ("seqpacker best fit decreasing", "ffd over numba"),
    "exact": (
        "seqpacker best fit decreasing",
        "ffd over numba",
    ),  # nobody else has it: what one would take in its place
}
UNIFORM = Resolution(kind="uniform", low=64, high=256)
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


def peers(report: Report) -> dict[str, Packer]:
    """Packers by name."""
    names = ("exact", "first_fit", "best_fit", "best_fit_decreasing", "spfhp", "next_fit")
    found: dict[str, Packer] = {f"navit {name}": ours(name) for name in names}
    if not installed("seqpacker"):
        report.left_out("seqpacker")
    else:
        import seqpacker

        for name, short in (("next fit", "nf"), ("first fit", "ff"), ("best fit decreasing", "bfd")):
            found[f"seqpacker {name}"] = _seqpacker(seqpacker.Packer, short)
    if not installed("numba"):
        report.left_out("ffd over numba")
    else:
        import numba

        found["ffd over numba"] = _decreasing(numba.njit(_first_fit_group))
    return found


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


def packers(report: Report, images: int, repeat: int) -> None:
    """Padding and nanoseconds an item of the packers alone, each of ours beside the peers that do as it does."""
    found = peers(report)
    lengths = lengths_of(sizes(images))
    for capacity in (256, 1024, 4096):
        bins: dict[str, int] = {}

        def way(name: str, bins: dict[str, int] = bins, capacity: int = capacity) -> Callable[[], float]:
            def pack_all() -> float:
                start = time.perf_counter()
                bins[name] = found[name](lengths, capacity)
                return (time.perf_counter() - start) * 1e9 / images

            return pack_all

        spent = turns({name: way(name) for name in found}, repeat, warm=0)
        empty = {name: 100 * (1 - lengths.sum() / (n * capacity)) for name, n in bins.items()}
        for name in (name for name in found if name.startswith("navit ")):
            own = name.removeprefix("navit ")
            others = [other for other in ALIKE.get(own, ()) if other in found]
            where: dict[str, Any] = {"table": f"packers alone, L = {capacity}", "better": "lower"}
            goal = {1024: 100, 4096: 60}.get(capacity) if own == "exact" else None
            ways = {other: spent[other] for other in others} | {"navit": spent[name]}
            report.row(f"{own}, time", ways, "ns an item", goal=goal, goal_of="ours", images=images, **where)
            padded = {other: [empty[other]] for other in others} | {"navit": [empty[name]]}
            report.row(f"{own}, padding, last sequence included", padded, "%", **where)


def padding(report: Report, images: int) -> None:
    """Padding of the plan, inside blocks and over an epoch."""
    goals = {"L = 1024": (1e-4, 0.02, 64), "L = 256": (None, 1.3, None)}
    goals |= dict.fromkeys(("L = 256, fit by resolution", "L = 256, fit by drop"), (None, 0.02, None))
    for name, config in CASES.items():
        layout = make(config, sizes(images * 4)).layout(0)
        found = layout.report(0, layout.num_blocks)
        empty, (inside, over, late) = found["slots"] - found["tokens"], goals.get(name, (None, None, None))
        table = f"plan, sides U(64, 256), P = 16: {name}"
        given = {"images": images * 4, "block": config.block_images}
        share = 100 * (empty - found["tail"]) / found["slots"]
        report.row("padding inside blocks", share, "%", better="lower", table=table, goal=inside, **given)
        report.row("padding over an epoch", 100 * empty / found["slots"], "%", better="lower", table=table, goal=over)
        report.row("lateness", found["lateness"], "images", better="lower", table=table, goal=late)
        report.row("images a sequence", found["images"] / found["sequences"], "images", table=table)
        if found["moved"]:
            report.row("moved by fit", 100 * found["moved"] / found["images"], "%", better="lower", table=table)
            tokens = found["moved_tokens"] / found["moved"]
            report.row("moved by fit, each by", tokens, "tokens", better="lower", table=table)


def balance(report: Report, images: int, repeat: int) -> None:
    """What attention costs the slowest rank of a step by its mean rank, and what evening it out costs the planner."""
    columns = sizes(images)
    uneven = PlanConfig(sequence_length=4096, max_tokens=1024, resolution=Resolution(kind="uniform", low=64, high=512))
    plans = {window: make(replace(uneven, balance=window), columns) for window in (0, 64, 256, 1024, 4096)}
    epochs = dict.fromkeys(plans, 0)

    def way(window: int) -> Callable[[], float]:
        def count() -> float:
            layout = plans[window].layout(epochs[window])
            epochs[window] += 1
            start = time.process_time()
            layout.counts(0, layout.num_blocks)
            return (time.process_time() - start) * 1e9 / len(columns["width"][0])

        return count

    busy = turns({window: way(window) for window in plans}, repeat, warm=0)
    worlds = ((8, 8), (8, 2), (4, 8), (2, 8), (16, 8), (5, 8), (12, 3), (8, 64))
    for window, plan in plans.items():
        layout, table = plan.layout(0), f"balance = {window}: sides U(64, 512), P = 16, L = 4096"
        for b, w in worlds:
            goal = 1.02 if window == 256 and (b, w) == (8, 8) else None
            what = f"slowest rank of a step by the mean, in Σ n², B = {b}, {w} ranks"
            report.row(what, slowest_rank(layout, b, w), "×", better="lower", table=table, goal=goal)
        ways = {"navit": busy[window], "without balance": busy[0]}
        report.row("planning", ways, "ns an image", better="lower", table=table, bounds=("without balance",))


@contextlib.contextmanager
def cores(count: int) -> Iterator[None]:
    """Pins the process, and the threads it starts, to some of its cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def speed(report: Report, planned: int, repeat: int) -> None:
    """The whole plan, order and draws included."""
    columns = sizes(planned)
    available = len(os.sched_getaffinity(0))
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

    def way(config: PlanConfig, count: int) -> Callable[[], tuple[float, float]]:
        def plan() -> tuple[float, float]:
            with cores(count):
                layout = make(config, columns).layout(0)
                start, cpu = time.perf_counter(), time.process_time()
                layout.counts(0, layout.num_blocks)
                return time.perf_counter() - start, time.process_time() - cpu

        return plan

    counts = [c for c in (1, 2, 4, 8, 16) if c <= available]
    ways = {(name, count): way(config, count) for name, config in cases.items() for count in counts}
    for (name, count), spent in turns(ways, repeat, warm=0).items():
        what, table = f"{name}, {count} core{'s'[: count > 1]}", "the whole plan: order, draws, packing"
        goal = 3.0 if count == 1 else None
        report.row(what, [planned / s / 1e6 for s, _ in spent], "M images/s", table=table, goal=goal, images=planned)
        report.row(f"{what}, a CPU second", [planned / c / 1e6 for _, c in spent], "M images", table=table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=5, metavar="N")
    parser.add_argument("--images", type=int, default=65_536, metavar="N", help="images of the packers' table")
    parser.add_argument("--planned", type=int, default=1_280_000, metavar="N", help="images of the whole plan")
    args = parse(parser, {"repeat": 2, "images": 8192, "planned": 65_536})
    report = Report("packing", __doc__, args)
    padding(report, args.images)
    packers(report, args.images, args.repeat)
    balance(report, 4 * args.images, args.repeat)
    speed(report, args.planned, args.repeat)
    report.finish()


if __name__ == "__main__":
    main()
