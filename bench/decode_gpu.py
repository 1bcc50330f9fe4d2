"""Who decodes: the CPU renderer, encoded delivery alone, and DALI on the same plan; on a GPU where there is one.

In: JPEG files of 0.2 megapixels (`corpus.py`), indexed and in the page cache, planned at 256 tokens. Out: images/s and CPU
milliseconds per image of each way, bytes of a batch on the wire, and the patch pass beside a plain copy. On a GPU also
nvImageCodec's bare batched decoding of the same files, which bounds what any loader can do, and the share of its time for which
a ViT-S starves in training from encoded batches. Ways alternate over the repetitions and medians count, since a shared machine
drifts. A row that fails says why, and the others go on. On an H200, all of it:

    python bench/decode_gpu.py --device cuda --count 4000 --threads 4

Without a GPU: python bench/decode_gpu.py [--count 600] [--repeat 5] [--threads 4]. Needs the extra `dali`.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from corpus import write

from navit_loader import LoaderConfig, PackedLoader, RemoteLoader, build_index
from navit_loader.errors import ConfigError

try:
    from navit_loader.render.dali import DaliRenderer
except ConfigError as e:
    raise SystemExit(f"decode_gpu.py: {e}") from None
from navit_loader.render.dali.patchify import patchify
from navit_loader.render.dali.tokens import Tokens

from navit_loader.render.dali import kernel

P = 16
H200_GBS = 4800.0
"""Memory bandwidth of an H200, in its maker's words."""

Way = Callable[[], int]
"""One round over the files; how many images it made."""


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def settle(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def timed(way: Way, device: str) -> tuple[float, float]:
    """Images per second, and CPU milliseconds per image over all threads of this process."""
    settle(device)
    start, used = time.perf_counter(), cpu_seconds()
    images = way()
    settle(device)
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
        return PackedLoader(self.index, self.config, decode=decode, device=self.args.device)  # type: ignore[arg-type]

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
        renderer = DaliRenderer(self.args.device, threads=self.args.threads)

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

    def nvimagecodec(self) -> Way:
        from nvidia import nvimgcodec

        decoder = nvimgcodec.Decoder(device_id=torch.cuda.current_device(), max_num_cpu_threads=self.args.threads)
        files = [bytes(b.file(s, e)) for b in self.held for s, e in np.argwhere(b.slots.status == 1).tolist()]
        streams = [nvimgcodec.CodeStream(data) for data in files]

        def run() -> int:
            for n in range(0, len(streams), 256):
                found = decoder.decode(streams[n : n + 256])
                if any(image is None for image in found):  # it says so only here
                    raise RuntimeError("nvImageCodec could not decode all files")
            return len(files)  # their memory is what the streams read

        return run


BARE, DALI, WHOLE = "nvImageCodec, bare decoding", "DALI on {}, encoded batches in memory", "DALI on {}, whole loader"


def patch_pass(device: str, repeat: int) -> dict[str, float]:
    """GB/s, read and written, over 512 images of 256 tokens, every second one mirrored: the patch pass, and a plain copy of as
    many bytes. On a GPU also the kernel alone, without what the host does before it."""
    n, side = 512, 16
    images = list(torch.randint(0, 256, (n, side * P, side * P, 3), dtype=torch.uint8, device=device))
    grid = np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij"), -1).reshape(-1, 2)
    tokens = Tokens(
        np.arange(n * side * side),
        np.repeat(np.arange(n), side * side),
        np.tile(grid, (n, 1)),
        np.repeat(np.arange(n) % 2 * 2, side * side).astype(np.uint8),
    )
    out = torch.empty((n * side * side, P * P * 3), dtype=torch.uint8, device=device)
    other = torch.empty_like(out)

    def rate(work: Callable[[], Any], rounds: int = 1) -> float:
        found = []
        for _ in range(repeat + 1):
            settle(device)
            start = time.perf_counter()
            for _ in range(rounds):
                work()
            settle(device)
            found.append(2 * rounds * out.numel() / (time.perf_counter() - start) / 1e9)
        return median(found[1:])

    # Twenty launches in a row, so that the device is never waiting for the host.
    rounds = 20 if device != "cpu" else 1
    rates = {
        "patch pass": rate(lambda: patchify(images, tokens, P, out)),
        "copy": rate(lambda: other.copy_(out), rounds),
    }
    if device != "cpu" and kernel.launch is not None:
        per_token = kernel.per_token(images, tokens, P, out.device)
        rates["kernel"] = rate(lambda: kernel.copy(per_token, P, out), rounds)
    return rates


def starved(bench: Bench, steps: int, compiled: bool) -> dict[str, float]:
    """Training a ViT-S/16 from encoded batches: images/s, the share of the time in which its thread waited for a batch, and the
    share by which `steps` steps took longer than as many over one batch that lies on the device."""
    from navit_loader.deliver.device import DevicePrefetcher
    from navit_model.config import NaViTConfig
    from navit_model.model.navit import NaViT

    device = torch.device(bench.args.device)
    model = NaViT(NaViTConfig.preset("S/16", classes=1000)).to(device).train()
    if compiled:
        model.compile()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=device.type == "cuda")

    def step(batch: Any) -> None:
        with torch.autocast(device.type, torch.bfloat16):
            outputs = model(batch)
        outputs.float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    with bench.loader("dali") as loader:
        feed = DevicePrefetcher(loader, device)

        def endless() -> Any:
            while True:
                yield from feed

        batches = endless()
        held = next(batches).to(device)
        images = int((held.status == 1).sum())
        for _ in range(min(5, steps)):  # kernels are chosen or compiled, the loader runs ahead
            step(next(batches).to(device))
        settle(bench.args.device)
        waited, seen, start = 0.0, [], time.perf_counter()
        for _ in range(steps):
            before = time.perf_counter()
            batch = next(batches).to(device)
            waited += time.perf_counter() - before
            seen.append((batch.status == 1).sum())
            step(batch)
        settle(bench.args.device)
        fed = time.perf_counter() - start
        batches.close()
    start = time.perf_counter()
    for _ in range(steps):
        step(held)
    settle(bench.args.device)
    alone = time.perf_counter() - start
    total = int(torch.stack(seen).sum())
    # Batches hold different numbers of images; their sequences, and so their work, are the same but for an epoch's end.
    return {
        "images/s": total / fed,
        "waited": waited / fed,
        "longer than from the device": max(0.0, 1 - alone / fed),
        "images/s from the device": images * steps / alone,
    }


def attempt(name: str, work: Callable[[], Any], failed: dict[str, str]) -> Any:
    """What `work` gives; None, and a line about it, where it fails. A benchmark's other rows are worth having."""
    try:
        return work()
    except Exception as e:
        failed[name] = f"{type(e).__name__}: {' '.join(str(e).split())[:300]}"
        print(f"{name}: failed, {failed[name]}", flush=True)
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=600)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dct-scaling", action="store_true", help="let the CPU renderer decode at a smaller DCT scale")
    parser.add_argument("--steps", type=int, help="training steps; 100 by default on a GPU, none without one")
    parser.add_argument("--no-compile", action="store_true", help="train without torch.compile")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.device != "cpu" and not torch.cuda.is_available():
        raise SystemExit(
            f"decode_gpu.py: --device {args.device}, but torch sees no CUDA device here; take --device cpu"
        )
    on_gpu = args.device != "cpu"
    steps = (100 if on_gpu else 0) if args.steps is None else args.steps
    torch.set_num_threads(args.threads)
    failed: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder / "files", args.count)
        build_index(folder / "files", folder / "files.arrow")
        bench = Bench(folder, args)
        made: dict[str, Callable[[], Way]] = {
            "CPU renderer, whole loader": bench.by_cpu,
            "encoded delivery alone": bench.encoded,
            "encoded delivery from a daemon": bench.from_daemon,
            DALI.format(args.device): bench.in_memory,
            WHOLE.format(args.device): bench.whole,
        }
        if on_gpu:
            made[BARE] = bench.nvimagecodec
        ways = {name: way for name, make in made.items() if (way := attempt(name, make, failed))}
        ways = {name: way for name, way in ways.items() if attempt(name, way, failed)}  # warm
        results: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for _ in range(args.repeat):
            for name, way in ways.items():
                if name not in failed and (found := attempt(name, lambda way=way: timed(way, args.device), failed)):
                    results[name].append(found)
        bench.close()
        patches = attempt("patch pass", lambda: patch_pass(args.device, args.repeat), failed) or {}
        learnt = (
            attempt("ViT-S", lambda: starved(bench, steps, not args.no_compile and on_gpu), failed) if steps else None
        )
    rows = {
        name: {"images/s": median(r for r, _ in v), "CPU ms": median(c for _, c in v)}
        for name, v in results.items()
        if v
    }
    report = {
        "rows": rows,
        "bytes": bench.sizes,
        "GB/s": patches,
        "ViT-S": learnt,
        "failed": failed,
        "device": args.device,
    }
    if args.json:
        print(json.dumps(report))
        return
    device = torch.cuda.get_device_name() if on_gpu else "cpu"
    base = rows.get("CPU renderer, whole loader", {}).get("CPU ms", float("nan"))
    print(f"{args.count} files, {args.threads} threads, device {device}")
    print(f"{'':45} {'images/s':>10} {'CPU ms/image':>13} {'of the CPU renderer':>20}")
    for name, row in rows.items():
        print(f"{name:45} {row['images/s']:10,.0f} {row['CPU ms']:13.3f} {row['CPU ms'] / base:20.2f}")
    print(f"bytes per image: packed {bench.sizes['packed']:,.0f}, encoded {bench.sizes['encoded']:,.0f}")
    for name in DALI.format(args.device), WHOLE.format(args.device):
        if name in rows and BARE in rows:
            print(f"{name}: {rows[name]['images/s'] / rows[BARE]['images/s']:.2f} of {BARE} (goal 0.85)")
    for name, rate in patches.items():
        peak = f", {rate / H200_GBS:.0%} of {H200_GBS:,.0f} GB/s" if "H200" in device else ""
        print(f"{name}: {rate:,.1f} GB/s, {rate / patches['copy']:.0%} of a plain copy{peak}")
    if learnt:
        print(
            f"ViT-S/16 from encoded batches: {learnt['images/s']:,.0f} images/s, waited {learnt['waited']:.1%} of the time, "
            f"{learnt['longer than from the device']:.1%} longer than from the device's own memory "
            f"({learnt['images/s from the device']:,.0f} images/s)"
        )
    if not on_gpu:
        print("rows of a GPU are not measured: there is none here")
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
