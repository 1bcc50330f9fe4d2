"""How fast images are found and rendered, whatever they lie in: the table of sources.

In: files, tars, Parquet and a web server that it makes in a scratch folder. Out: a row for each question. The page cache is
warm, since everything runs once before it is timed. Rendering is measured in rounds that go through all sources, by elapsed
and by processor time; on a machine where others work too, only the latter means anything.

    python bench/sources.py [--files 100000] [--tar-mb 1024] [--rows 10000000] [--images 24576] [--scratch DIR] [--repeat 3]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import sources_kit
from kit import Report, parse, seconds_of, turns
from PIL import Image

from navit_loader import build_index
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


def builds(sources: list[Path], output: Path, threads: int, repeat: int) -> list[float]:
    """Seconds of several builds from scratch, behind one that fills the page cache."""
    run = seconds_of(lambda: build_index(sources, output, threads=threads))
    return turns({"": run}, repeat)[""]


def folder(report: Report, scratch: Path, count: int, repeat: int) -> None:
    samples = images()
    for i in range(count):
        path = scratch / "files" / f"{i % 100:03d}"
        if i < 100:
            path.mkdir(parents=True)
        (path / f"{i:08d}.{('jpg', 'png')[i % 2]}").write_bytes(samples[i % 64])
    for threads in (1, len(os.sched_getaffinity(0))):
        rates = [count / s for s in builds([scratch / "files"], scratch / "files.arrow", threads, repeat)]
        goal = 20_000 * threads
        report.row(f"files, {threads} thread(s)", rates, "files/s", table="indexing", goal=goal, files=count)


def tars(report: Report, scratch: Path, megabytes: int, repeat: int) -> None:
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
    rates = [size / 1e9 / s for s in builds(paths, scratch / "tars.arrow", 1, repeat)]
    report.row("tar, 1 thread", rates, "GB/s", table="indexing", goal=1, images=key, gigabytes=round(size / 1e9, 2))


def opening(report: Report, scratch: Path, rows: int, repeat: int) -> None:
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
    command = [sys.executable, "-c", OPEN, str(scratch / "big.arrow"), str(scratch / "tiny.arrow")]
    runs = []
    for _ in range(repeat):
        runs.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    size = (scratch / "big.arrow").stat().st_size / 1e6
    given = {"table": "opening an index", "rows": rows, "megabytes": round(size)}
    for what, n, unit, goal in (
        ("open", 0, "ms", None),
        ("with all columns", 1, "ms", 50),
        ("more resident", 2, "MB", 50),
    ):
        report.row(what, [run[n] for run in runs], unit, better="lower", goal=goal, **given)


def rendering(report: Report, scratch: Path, count: int, repeat: int) -> None:
    """Each source beside files in the same order; the server beside the same tar on disk."""
    indexes = sources_kit.write(scratch, count)
    plain = [("files", "permutation"), ("x.tar", "permutation"), ("none.parquet", "permutation")]
    blocks = [("files", "blocks"), ("x.tar", "blocks"), ("snappy.parquet", "blocks")]
    why = sources_kit.missing(late=True)
    if why:
        report.left_out("rendering from a server", why)
    with contextlib.ExitStack() as stack:
        pid = 0
        if not why:
            address, pid, _ = stack.enter_context(sources_kit.nginx(scratch, LATE_MS))
            for name in ("x.tar", "snappy.parquet"):
                indexes[f"server {name}"] = scratch / f"server-{name}.arrow"
                build_index(f"{address}/{name}", indexes[f"server {name}"])
                blocks.append((f"server {name}", "blocks"))

        def way(name: str, order: Any) -> Callable[[], sources_kit.Run]:
            return lambda: sources_kit.render(indexes[name], order, pid if name.startswith("server") else 0)

        runs = turns({which: way(*which) for which in plain + blocks}, repeat)
    # What the server computes, it takes from the cores that render.
    cores = os.cpu_count() or 1
    for name, order in plain + blocks:
        table = f"rendering, order: {order}"
        own = runs[name, order]
        rates = [run.images / (run.seconds - run.served / cores) for run in own]
        if name == "files":
            report.row("files", rates, "images/s", table=table, images=count)
            continue
        remote = name.startswith("server ")
        base, bound = (name.removeprefix("server "), "on disk") if remote else ("files", "files")
        what, given = (f"{name}, {LATE_MS} ms late" if remote else name), {"table": table, "bounds": (bound,)}
        if remote:
            given["server_share_of_a_core"] = round(float(np.median([run.served / run.seconds for run in own])), 3)
        local = runs[base, order]
        ways = {"navit": rates, bound: [run.images / run.seconds for run in local]}
        report.row(what, ways, "images/s", goal=0.9 if remote else 0.95, **given)
        ways = {"navit": [run.images / run.cpu for run in own], bound: [run.images / run.cpu for run in local]}
        report.row(f"{what}, a processor second", ways, "images", **given)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--tar-mb", type=int, default=1024)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--images", type=int, default=24_576, help="photographs of 70 KB to render, in each container")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--scratch", type=Path, help="folder for the data (default: the system's)")
    args = parse(parser, {"files": 2000, "tar_mb": 20, "rows": 200_000, "images": 256, "repeat": 2})
    report = Report("sources", __doc__, args)
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        folder(report, Path(scratch), args.files, args.repeat)
        tars(report, Path(scratch), args.tar_mb, args.repeat)
        opening(report, Path(scratch), args.rows, args.repeat)
        rendering(report, Path(scratch) / "render", args.images, args.repeat)
    report.finish()


if __name__ == "__main__":
    main()
