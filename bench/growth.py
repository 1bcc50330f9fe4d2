"""How does it grow: with cores, image size, images, clients and the length of a sequence? Every point is measured, none
reckoned.

In: nothing. Out: five curves.

- cores: a plan and a whole loader on one core, on two, and on as many powers of two as there are;
- image size: decode, resize, patches on one core from 0.05 to 12.8 megapixels, beside torchvision;
- images: a plan over drawn sizes of 10⁴ to 10⁹ images, each in a fresh process: first batch, one block in the middle,
  memory, and up to `--counted` images the table of all counts and a batch in the middle by it. Two columns of four bytes
  an image lie in a file; what the disk cannot hold is named;
- clients: trainers of one daemon, 1 to 16;
- sequence length: 256 to 65,536 tokens: planning, padding, a loader on one core, and a training step of a small model.

    python bench/growth.py [--only cores images …] [--repeat 3] [--scratch DIR]
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import corpus
import decode
import numpy as np
from kit import Report, parse, seconds_of, turns
from packing import UNIFORM, cores, make, sizes
from PIL import Image
from service import many
from serving import configured

from navit_loader import LoaderConfig, PackedLoader, build_index, pack_images
from navit_loader.config import PlanConfig, Resolution

FREE_GB = 4
"""Of a disk that are left alone."""

FRESH = """
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
watcher = threading.Thread(target=watch, daemon=True)
watcher.start()
def planned():
    return _packer.Plan(config.to_json(), [columns], [(0, None, 1.0)]).layout(3)
if mode == "block":
    # Those before it count as the first one does: a block is planned by itself, whatever came before.
    each, middle = int(planned().counts(0, 1)[0]), planned().num_blocks // 2
start = time.perf_counter()
layout = planned()
if mode == "count":
    np.save(f"{folder}/counts.npy", layout.counts(0, layout.num_blocks))
else:
    position = 0
    if mode == "block":
        layout.extend([each] * middle)
        position = each * middle
    elif mode == "middle":
        layout.extend(np.load(f"{folder}/counts.npy").tolist())
        position = layout.num_sequences // 2
    assert layout.batch(position, 64).sequences
seconds = time.perf_counter() - start
done.set()
watcher.join()
print(json.dumps([seconds, max(most, private()) - before]))
"""
"""Run in fresh processes; what it prints: seconds, MiB."""


def by_cores(report: Report, args: argparse.Namespace, work: Path) -> None:
    corpus.write(work / "photos", args.photos)
    build_index(work / "photos", work / "photos.arrow")
    columns = sizes(args.planned)
    counts = [c for c in (1, 2, 4, 8, 16, 32) if c <= len(os.sched_getaffinity(0))]

    def plan(count: int) -> Callable[[], float]:
        def way() -> float:
            with cores(count):
                layout = make(PlanConfig(resolution=UNIFORM), columns).layout(0)
                return args.planned / seconds_of(lambda: layout.counts(0, layout.num_blocks))() / 1e6

        return way

    def load(count: int) -> Callable[[], float]:
        config = replace(LoaderConfig(), render=replace(LoaderConfig().render, threads=count))

        def way() -> float:
            with cores(count), PackedLoader(work / "photos.arrow", config, rank=0, world_size=1) as loader:
                next(iter(loader))  # threads and memory
                loader.set_epoch(1)
                start = time.perf_counter()
                return sum(batch.num_images for batch in loader) / (time.perf_counter() - start)

        return way

    for what, unit, way in (("plan", "M images/s", plan), ("whole loader", "images/s", load)):
        found = turns({count: way(count) for count in counts}, args.repeat)
        for count in counts:
            ways = {"navit": found[count]} | ({"one core": found[1]} if count > 1 else {})
            report.row(f"{what}, {count}", ways, unit, table="cores", bounds=("one core",), x=count)


def by_size(report: Report, args: argparse.Namespace, work: Path) -> None:
    for megapixels in args.megapixels:
        files = corpus.make(max(4, round(args.photos / 10 / max(megapixels, 0.1))), megapixels, 0.35)
        shapes = [Image.open(io.BytesIO(data)).size[::-1] for data in files]
        case = (files, shapes, decode.grids(shapes, 256, None))
        with cores(1):
            ways = {"navit": seconds_of(decode.ours(case)), "torchvision": seconds_of(decode.torchvision(case))}
            found = {name: [len(files) / s for s in of] for name, of in turns(ways, args.repeat).items()}
        report.row(
            f"one core, {megapixels:g} MP", found, "images/s", table="megapixels", x=megapixels, files=len(files)
        )


def by_images(report: Report, args: argparse.Namespace, work: Path) -> None:
    free = shutil.disk_usage(work).free / 1e9 - FREE_GB
    counts = [n for n in args.images if 8 * n / 1e9 <= free]
    for n in sorted(set(args.images) - set(counts)):
        report.left_out(f"{n:,} images", f"{8 * n / 1e9:,.0f} GB of size columns, {free:,.0f} GB of disk are free")
    rng = np.random.default_rng(0)
    for name in ("width", "height"):
        with (work / name).open("wb") as out:
            for start in range(0, max(counts), 1 << 22):
                rng.integers(256, 1500, min(1 << 22, max(counts) - start), np.int32).tofile(out)

    def fresh(rows: int, mode: str) -> list[float]:
        command = [sys.executable, "-c", FRESH, str(rows), str(work), mode]
        return list(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))

    for n in counts:
        modes = {"first batch of 64 sequences": "first", "one block in the middle": "block"}
        runs: dict[str, list[list[float]]] = {}
        if n <= args.counted:
            runs["table of all counts"] = [fresh(n, "count")]
            modes["a batch in the middle by it"] = "middle"
        for what, mode in modes.items():
            runs[what] = [fresh(n, mode) for _ in range(args.repeat)]
        for what, of in runs.items():
            given: dict[str, Any] = {"better": "lower", "table": "images of an epoch", "x": n}
            first = what.startswith("first") and n >= 400_000_000
            report.row(f"{what}, {n:,}", [s for s, _ in of], "s", goal=1 if first else None, **given)
            most = max(mib for _, mib in of)
            report.row(f"{what}, {n:,}", most, "MiB beyond the columns", goal=1000 if first else None, **given)
    for name in ("width", "height"):
        (work / name).unlink()


def by_clients(report: Report, args: argparse.Namespace, work: Path) -> None:
    if not (work / "photos").exists():
        corpus.write(work / "photos", args.photos)
    config = configured(work, work / "photos", 1_000_000)
    for clients in (1, 2, 4, 8, 16):
        served, memory = many(config, clients, args.seconds)
        given = {"table": "clients of one daemon", "x": clients}
        report.row(f"together, {clients}", served.sum() / args.seconds, "batches/s", **given)
        report.row(f"least by the mean, {clients}", served.min() / served.mean(), "of the mean", **given)
        report.row(f"the daemon, {clients}", memory, "MiB", better="lower", **given)


def by_length(report: Report, args: argparse.Namespace, work: Path) -> None:
    if not (work / "photos").exists():
        corpus.write(work / "photos", args.photos)
    if not (work / "photos.arrow").exists():
        build_index(work / "photos", work / "photos.arrow")
    columns, longest = sizes(args.planned), max(args.lengths)
    for length in args.lengths:
        given: dict[str, Any] = {"table": "tokens of a sequence", "x": length}
        plan = PlanConfig(sequence_length=length, max_tokens=256, max_images=max(16, length // 16), resolution=UNIFORM)
        made = make(plan, columns)
        layouts = (made.layout(epoch) for epoch in range(args.repeat))
        spent = []
        for layout in layouts:
            spent.append(
                1e9 / args.planned * seconds_of(lambda lay=layout: lay.counts(0, lay.num_blocks), time.process_time)()
            )
        report.row(f"planning, {length:,}", spent, "ns an image", better="lower", **given)
        found = made.layout(0).report(0, made.layout(0).num_blocks)
        padded = 100 * (found["slots"] - found["tokens"]) / found["slots"]
        report.row(f"padding over an epoch, {length:,}", padded, "%", better="lower", **given)
        config = LoaderConfig.from_dict(
            {"data": {"batch_size": max(1, 8192 // length)}, "render": {"threads": 1, "fetch_threads": 0}}
        )
        with cores(1), PackedLoader(work / "photos.arrow", replace(config, plan=plan), rank=0, world_size=1) as loader:
            way = lambda: sum(b.num_images for b in loader)  # noqa: E731
            rates = [args.photos / s for s in turns({"": seconds_of(way)}, args.repeat)[""]]
        report.row(f"loader, one core, {length:,}", rates, "images/s", **given)
        report.row(f"training step, {length:,}", step_rates(length, longest, args.repeat), "tokens/s", **given)


def step_rates(length: int, tokens: int, repeat: int) -> list[float]:
    """Tokens a CPU second of a training step of a block of width 192 over `tokens` tokens, images of 64 to 256 each."""
    import torch
    from model import trained

    from navit_model import NaViT, NaViTConfig

    torch.set_num_threads(1)
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    pixels = [
        rng.integers(0, 256, (16 * h, 16 * w, 3), np.uint8) for h, w in rng.integers(8, 17, (tokens // 150 + 1, 2))
    ]
    plan = PlanConfig(
        sequence_length=length, max_images=max(16, length // 16), max_tokens=256, resolution=Resolution(kind="native")
    )
    batch = pack_images(pixels, LoaderConfig(plan=plan)).to("cpu")
    net = NaViT(NaViTConfig(width=192, depth=1, heads=3, patch_size=16, max_grid=16, classes=10))
    run = seconds_of(trained(net, lambda: net(batch).square().mean()), time.process_time)
    return [batch.num_tokens / s for s in turns({"": run}, repeat)[""]]


CURVES = {"cores": by_cores, "sizes": by_size, "images": by_images, "clients": by_clients, "lengths": by_length}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=tuple(CURVES), help="some of the curves")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--photos", type=int, default=2000, help="of 0.2 megapixels")
    parser.add_argument("--planned", type=int, default=1_280_000, help="images of the plans by cores and by length")
    parser.add_argument("--megapixels", type=float, nargs="+", default=[0.05, 0.2, 0.8, 3.2, 12.8])
    powers = [10**n for n in range(4, 11)]
    parser.add_argument("--images", type=int, nargs="+", default=sorted([*powers, 400_000_000]))
    parser.add_argument("--counted", type=int, default=400_000_000, help="images whose counts are all made")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each number of clients")
    parser.add_argument("--lengths", type=int, nargs="+", default=[256 << n for n in range(9)])
    parser.add_argument("--scratch", type=Path, help="folder for the data (default: the system's)")
    quick = {"repeat": 1, "photos": 60, "planned": 65_536, "megapixels": [0.05, 0.2], "images": [10_000, 1_000_000]}
    args = parse(parser, quick | {"seconds": 0.3, "lengths": [256, 4096]})
    report = Report("growth", __doc__, args)
    with tempfile.TemporaryDirectory(dir=args.scratch) as folder:
        for name in args.only or CURVES:
            CURVES[name](report, args, Path(folder))
    report.finish()


if __name__ == "__main__":
    main()
