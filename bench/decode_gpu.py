"""Who decodes on a CPU: the engine's renderer, encoded delivery alone, and DALI on the same plan.

In: JPEG files of 0.2 megapixels (`corpus.py`), indexed and in the page cache, planned at 256 tokens. Out: images/s and CPU
milliseconds per image of each way, and bytes of a batch on the wire. A row that fails says why, and the others go on. What
a GPU decodes: `bench/gpu.py`.

    python bench/decode_gpu.py [--count 600] [--repeat 5] [--threads 4]        # needs the extra `dali`
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from corpus import write
from kit import Report, parse, turns

from navit_loader import LoaderConfig, PackedLoader, RemoteLoader, build_index
from navit_loader.errors import ConfigError

try:
    from navit_loader.render.dali import DaliRenderer
except ConfigError as e:
    raise SystemExit(f"decode_gpu.py: {e}") from None

Way = Callable[[], int]
"""One round over the files; how many images it made."""


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def timed(way: Way) -> tuple[float, float]:
    """Images per second, and CPU milliseconds per image over all threads of this process."""
    start, used = time.perf_counter(), cpu_seconds()
    images = way()
    return images / (time.perf_counter() - start), 1e3 * (cpu_seconds() - used) / images


class Bench:
    """The files, their batches, and the ways over them; each made on demand, so that one that cannot be made fails alone."""

    def __init__(self, folder: Path, args: argparse.Namespace) -> None:
        self.args = args
        self.daemon: subprocess.Popen[str] | None = None
        self.index = folder / "files.arrow"
        self.config = LoaderConfig.from_dict(
            {
                "data": {"batch_size": 16},
                "plan": {
                    "sequence_length": 1024,
                    "max_tokens": 256,
                    "max_images": 16,
                    "resolution": {"kind": "fixed", "low": 256, "high": 256},
                },
                "render": {"threads": args.threads, "dct_scaling": args.dct_scaling},
            }
        )
        with PackedLoader(self.index, self.config) as loader:
            self.held = list(loader.encoded())
            packed = next(iter(loader))
        self.images = sum(b.slots.num_images for b in self.held)
        self.sizes = {
            "packed": sum(a.nbytes for a in packed.arrays().values()) / packed.num_images,
            "encoded": sum(b.nbytes for b in self.held) / self.images,
        }

    def loader(self, decode: str) -> PackedLoader:
        return PackedLoader(self.index, self.config, decode=decode, device="cpu")  # type: ignore[arg-type]

    def by_cpu(self) -> Way:
        loader = self.loader("cpu")
        return lambda: sum(b.num_images for b in loader)

    def encoded(self) -> Way:
        loader = self.loader("cpu")
        return lambda: sum(b.slots.num_images for b in loader.encoded())

    def from_daemon(self) -> Way:
        """From a daemon on this host; its own CPU time is not counted here."""
        config = self.index.with_suffix(".toml")
        args = self.args
        config.write_text(
            f'[data]\nindex = "{self.index}"\nbatch_size = 16\n[render]\nthreads = {args.threads}\n'
            "[plan]\nsequence_length = 1024\nmax_tokens = 256\nmax_images = 16\n"
            '[plan.resolution]\nkind = "fixed"\nlow = 256\nhigh = 256\n'
        )
        command = [sys.executable, "-m", "navit_loader", "serve", str(config), "--bind", "tcp://127.0.0.1:0"]
        self.daemon = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self.daemon.stdout is not None
        loader = RemoteLoader([self.daemon.stdout.readline().split()[-1]])
        return lambda: sum(b.slots.num_images for b in loader.encoded())

    def close(self) -> None:
        if self.daemon is not None:
            self.daemon.kill()
            self.daemon.wait()

    def in_memory(self) -> Way:
        renderer = DaliRenderer("cpu", threads=self.args.threads)

        def run() -> int:
            # Two batches under way, as in a loader: all at once would hold the whole epoch on the device.
            ahead: list[Any] = []
            for batch in self.held:
                ahead.append(renderer.submit(batch))
                if len(ahead) == 3:
                    ahead.pop(0).wait()
            for rendering in ahead:
                rendering.wait()
            return self.images

        return run

    def whole(self) -> Way:
        loader = self.loader("dali")

        def run() -> int:
            # Counting a batch's images would wait for the device.
            batches = sum(1 for _ in loader)
            if batches != len(self.held):
                raise RuntimeError(f"{batches} batches where {len(self.held)} belong")
            return self.images

        return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=600)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--dct-scaling", action="store_true", help="let the CPU renderer decode at a smaller DCT scale")
    args = parse(parser, {"count": 48, "repeat": 2})
    report = Report("decode-gpu", __doc__, args)
    torch.set_num_threads(args.threads)
    failed: set[str] = set()

    def attempt(name: str, work: Callable[[], Any]) -> Any:
        """What `work` gives; None where it fails. A benchmark's other rows are worth having."""
        try:
            return work()
        except Exception as e:
            failed.add(name)
            report.left_out(name, f"failed, {type(e).__name__}: {' '.join(str(e).split())[:300]}")
            return None

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder / "files", args.count)
        build_index(folder / "files", folder / "files.arrow")
        bench = Bench(folder, args)
        made: dict[str, Callable[[], Way]] = {
            "navit": bench.by_cpu,
            "encoded delivery alone": bench.encoded,
            "encoded delivery from a daemon": bench.from_daemon,
            "DALI, encoded batches in memory": bench.in_memory,
            "DALI, whole loader": bench.whole,
        }
        ways = {name: way for name, make in made.items() if (way := attempt(name, make))}
        ways = {name: way for name, way in ways.items() if attempt(name, way)}  # warm
        found = turns({name: partial(timed, way) for name, way in ways.items()}, args.repeat, warm=0)
        bench.close()
    bounds = [name for name in ways if name.startswith("encoded")]
    rates = {name: [rate for rate, _ in of] for name, of in found.items()}
    costs = {name: [cost for _, cost in of] for name, of in found.items()}
    report.row("the CPU renderer, whole loader", rates, "images/s", bounds=bounds)
    report.row("the CPU renderer, whole loader, processor time", costs, "ms an image", better="lower", bounds=bounds)
    for name, size in bench.sizes.items():
        report.row(f"bytes an image, {name}", size, "bytes", better="lower")
    report.finish()
    if failed:
        raise SystemExit(f"failed: {', '.join(sorted(failed))}")


if __name__ == "__main__":
    main()
