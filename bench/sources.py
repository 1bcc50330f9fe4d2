"""How fast images are found and rendered, whatever they lie in: the table of sources.

In: files, tars, Parquet and a web server that it makes in a scratch folder. Out: a Markdown table, a row for each question with
the goal beside it. The page cache is warm, since everything runs once before it is timed. Rendering is measured in rounds that
go through all sources; what counts is the median of the rounds' ratios, of elapsed time and of processor time. On a machine
where others work too, only the latter means anything.

    python bench/sources.py [--files 100000] [--tar-mb 1024] [--rows 10000000] [--images 8192] [--scratch DIR] [--repeat 3]
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import sources_kit
from PIL import Image

from navit_loader import _packer, build_index
from navit_loader.index.sources.rows import make_rows, single_labels
from navit_loader.index.tokens import TokenFacts
from navit_loader.index.write import survey, write_index

LATE_MS = 20
"""How late the server answers each request."""
NO_TOKENS = TokenFacts("", 0, -1)

OPEN = """
import json, resource, sys, time
import numpy, pyarrow, pyarrow.compute
from navit_loader import open_index
def resident():
    with open("/proc/self/smaps_rollup") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("Rss:")) / 1024
open_index(sys.argv[2]).columns()
before = resident()
start = time.perf_counter()
index = open_index(sys.argv[1])
opened = time.perf_counter() - start
columns = index.columns()
ready = time.perf_counter() - start
print(json.dumps([opened * 1e3, ready * 1e3, resident() - before, index.num_rows]))
"""


def images() -> list[bytes]:
    """Sixty-four JPEG and PNG files of 1 to 30 KB."""
    rng = np.random.default_rng(0)
    found = []
    for i in range(64):
        width, height = rng.integers(32, 200, 2)
        pixels = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
        out = io.BytesIO()
        Image.fromarray(pixels).resize((width, height)).save(out, ("JPEG", "PNG")[i % 2])
        found.append(out.getvalue())
    return found


def best(sources: list[Path], output: Path, threads: int, repeat: int) -> float:
    """Seconds of the quickest of several builds from scratch."""
    seconds = []
    for _ in range(repeat + 1):
        start = time.perf_counter()
        build_index(sources, output, threads=threads)
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def folder(scratch: Path, count: int, repeat: int) -> None:
    samples = images()
    for i in range(count):
        path = scratch / "files" / f"{i % 100:03d}"
        if i < 100:
            path.mkdir(parents=True)
        (path / f"{i:08d}.{('jpg', 'png')[i % 2]}").write_bytes(samples[i % 64])
    for threads in (1, len(os.sched_getaffinity(0))):
        rate = count / best([scratch / "files"], scratch / "files.arrow", threads, repeat)
        row(f"index of {count:,} files, {threads} thread(s)", f"{rate:,.0f} files/s", "20,000 a core")


def tars(scratch: Path, megabytes: int, repeat: int) -> None:
    content = os.urandom(70_000)
    head = next(sample for sample in images() if sample.startswith(b"\xff\xd8"))
    paths, size, key = [], 0, 0
    while size < megabytes * 1_000_000:
        paths.append(scratch / f"shard-{len(paths):04d}.tar")
        with tarfile.open(paths[-1], "w") as tar:
            for _ in range(3000):
                key += 1
                for name, data in ((f"{key:08d}.jpg", head + content), (f"{key:08d}.cls", b"%d" % (key % 10))):
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        size += paths[-1].stat().st_size
    seconds = best(paths, scratch / "tars.arrow", 1, repeat)
    row(f"index of {size / 1e9:.1f} GB of tar, {key:,} images, 1 thread", f"{size / 1e9 / seconds:.1f} GB/s", "1 GB/s")


def opening(scratch: Path, rows: int, repeat: int) -> None:
    part = 65_536

    def batches() -> list[pa.RecordBatch]:
        found = []
        for start in range(0, rows, part):
            n = min(part, rows - start)
            row = np.arange(start, start + n)
            columns = {
                "width": 100 + row % 400, "height": 100 + row % 300, "length": 70_000 + row % 1000,
                "format": np.zeros(n, np.uint8), "labels": single_labels(row % 1000),
            }  # fmt: skip
            names = pa.array([f"{i % 1000:04d}/{i:09d}.jpg" for i in range(start, start + n)], pa.large_utf8())
            found.append(make_rows("/data/", names, columns, {}))
        return found

    held = batches()
    few = held[:1]
    classes = [f"{i:04d}" for i in range(1000)]
    found = survey(lambda: held, "/data", classes, NO_TOKENS)
    write_index(str(scratch / "big.arrow"), lambda: held, found, "/data", classes, NO_TOKENS)
    found = survey(lambda: few, "/data", classes, NO_TOKENS)
    write_index(str(scratch / "tiny.arrow"), lambda: few, found, "/data", classes, NO_TOKENS)
    held = []
    runs = []
    for _ in range(repeat):
        command = [sys.executable, "-c", OPEN, str(scratch / "big.arrow"), str(scratch / "tiny.arrow")]
        runs.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    opened, ready, resident, count = min(runs)
    size = (scratch / "big.arrow").stat().st_size / 1e6
    row(
        f"open {count:,} rows ({size:,.0f} MB)",
        f"{opened:.1f} ms, with all columns {ready:.1f} ms; {resident:.1f} MB more resident",
        "50 ms, 50 MB",
    )


def rendering(scratch: Path, count: int, repeat: int) -> None:
    """Each source beside files in the same order; the server beside the same tar on disk."""
    indexes = sources_kit.write(scratch, count)
    plain = [("files", "permutation"), ("x.tar", "permutation"), ("none.parquet", "permutation")]
    blocks = [("files", "blocks"), ("x.tar", "blocks"), ("snappy.parquet", "blocks")]
    with sources_kit.late_nginx(scratch, LATE_MS) as server:
        pid = 0
        if server is not None:
            address, pid = server
            for name in ("x.tar", "snappy.parquet"):
                indexes[f"server {name}"] = scratch / f"server-{name}.arrow"
                build_index(f"{address}/{name}", indexes[f"server {name}"])
                blocks.append((f"server {name}", "blocks"))
        runs: dict[tuple[str, str], list[sources_kit.Run]] = {}
        for _ in range(repeat + 1):
            for name, order in plain + blocks:
                found = sources_kit.render(indexes[name], order, pid if name.startswith("server") else 0)
                runs.setdefault((name, order), []).append(found)
    for name, order in plain + blocks:
        if name == "files":
            own = runs[name, order][1:]
            row(f"render from files, {order}", f"{max(run.images / run.seconds for run in own):,.0f} images/s", "")
            continue
        base = runs[name.removeprefix("server ") if name.startswith("server") else "files", order][1:]
        own = runs[name, order][1:]
        # What the server computes, it takes from the cores that render.
        cores = os.cpu_count() or 1
        ratios = [(b.seconds / (o.seconds - o.served / cores), b.cpu / o.cpu) for b, o in zip(base, own, strict=True)]
        wall, cpu = (float(np.median(column)) for column in zip(*ratios, strict=True))
        said = f"{wall:.2f} (processor time {cpu:.2f})"
        if name.startswith("server"):
            served = float(np.median([run.served / run.seconds for run in own]))
            said += f"; the server takes {served:.1%} of a core, subtracted"
            row(f"render from {name}, {LATE_MS} ms late, {order}, of the same on disk", said, "0.9")
        else:
            row(f"render from {name}, {order}, of files", said, "0.95")
    if server is None:
        row("render from a server", "not measured: no nginx, or no libnginx-mod-http-echo", "0.9")


def row(what: str, found: str, goal: str) -> None:
    print(f"| {what} | {found} | {goal} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--tar-mb", type=int, default=1024)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--images", type=int, default=8192, help="photographs of 70 KB to render, in each container")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--scratch", type=Path, help="folder for the data (default: the system's)")
    args = parser.parse_args()
    if _packer.BUILD_PROFILE != "release":
        sys.exit("bench/sources.py: this is a debug build; run `make build` first")
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n")
    print("| what | measured | goal |\n|---|---|---|")
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        folder(Path(scratch), args.files, args.repeat)
        tars(Path(scratch), args.tar_mb, args.repeat)
        opening(Path(scratch), args.rows, args.repeat)
        rendering(Path(scratch) / "render", args.images, args.repeat)


if __name__ == "__main__":
    main()
