"""Who decodes: the CPU renderer, encoded delivery alone, and DALI on the same plan; on a GPU where there is one.

In: JPEG files of 0.2 megapixels (`corpus.py`), indexed and in the page cache, planned at 256 tokens. Out: images/s and CPU
milliseconds per image of each way, bytes of a batch on the wire, and the patch pass beside a plain copy. On a GPU also
nvImageCodec's bare batched decoding of the same files, which bounds what any loader can do. Ways alternate over the
repetitions and medians count, since a shared machine drifts.

    python bench/decode_gpu.py [--count 600] [--repeat 5] [--threads 4] [--device cuda]
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from corpus import make

from navit_loader import LoaderConfig, PackedLoader, build_index
from navit_loader.dali import DaliRenderer
from navit_loader.dali.patchify import patchify
from navit_loader.dali.tokens import Tokens

P = 16


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def settle(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def timed(way: Callable[[], int], device: str) -> tuple[float, float]:
    """Images per second, and CPU milliseconds per image over all threads of this process."""
    settle(device)
    start, used = time.perf_counter(), cpu_seconds()
    images = way()
    settle(device)
    return images / (time.perf_counter() - start), 1e3 * (cpu_seconds() - used) / images


def ways(folder: Path, args: argparse.Namespace) -> tuple[dict[str, Callable[[], int]], dict[str, float]]:
    """Each way over one epoch, and the bytes per image that a batch of either kind takes."""
    config = LoaderConfig.from_dict(
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
    index = folder / "files.arrow"
    loaders = {decode: PackedLoader(index, config, decode=decode, device=args.device) for decode in ("cpu", "dali")}
    renderer = DaliRenderer(args.device, threads=args.threads)
    with PackedLoader(index, config) as loader:
        held = list(loader.encoded())
        packed = next(iter(loader))
    images = sum(b.slots.num_images for b in held)
    files = [b.file(s, e) for b in held for s, e in np.argwhere(b.slots.status == 1).tolist()]

    def encoded() -> int:
        return sum(b.slots.num_images for b in loaders["cpu"].encoded())

    def render() -> int:
        ahead = [renderer.submit(batch) for batch in held]
        for rendering in ahead:
            rendering.wait()
        return images

    found: dict[str, Callable[[], int]] = {
        "CPU renderer, whole loader": lambda: sum(b.num_images for b in loaders["cpu"]),
        "encoded delivery alone": encoded,
        f"DALI on {args.device}, encoded batches in memory": render,
        f"DALI on {args.device}, whole loader": lambda: sum(b.num_images for b in loaders["dali"]),
    }
    if args.device != "cpu":
        from nvidia import nvimgcodec

        decoder = nvimgcodec.Decoder(max_num_cpu_threads=args.threads)

        def bare() -> int:
            for n in range(0, len(files), 256):
                decoder.decode(files[n : n + 256])
            return len(files)

        found["nvImageCodec, bare decoding"] = bare
    sizes = {
        "packed": sum(a.nbytes for a in packed.arrays().values()) / packed.num_images,
        "encoded": sum(b.nbytes for b in held) / images,
    }
    return found, sizes


def patch_pass(device: str, repeat: int) -> dict[str, float]:
    """GB/s of the patch pass (read and written) over 512 images of 256 tokens, and of a plain copy of as many bytes."""
    n, side = 512, 16
    images = list(torch.randint(0, 256, (n, side * P, side * P, 3), dtype=torch.uint8, device=device))
    grid = np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij"), -1).reshape(-1, 2)
    tokens = Tokens(
        np.arange(n * side * side),
        np.repeat(np.arange(n), side * side),
        np.tile(grid, (n, 1)),
        np.repeat(np.arange(n) % 8, side * side).astype(np.uint8) & 2,
    )
    out = torch.empty((n * side * side, P * P * 3), dtype=torch.uint8, device=device)
    other = torch.empty_like(out)

    def rate(work: Callable[[], Any]) -> float:
        found = []
        for _ in range(repeat + 1):
            settle(device)
            start = time.perf_counter()
            work()
            settle(device)
            found.append(2 * out.numel() / (time.perf_counter() - start) / 1e9)
        return median(found[1:])

    return {"patch pass": rate(lambda: patchify(images, tokens, P, out)), "copy": rate(lambda: other.copy_(out))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=600)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dct-scaling", action="store_true", help="let the CPU renderer decode at a smaller DCT scale")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "files").mkdir()
        for n, data in enumerate(make(args.count, 0.2, 0.35)):
            (folder / f"files/{n:06d}.jpg").write_bytes(data)
        build_index(folder / "files", folder / "files.arrow")
        found, sizes = ways(folder, args)
        for way in found.values():
            way()  # warm
        results: dict[str, list[tuple[float, float]]] = {name: [] for name in found}
        for _ in range(args.repeat):
            for name, way in found.items():
                results[name].append(timed(way, args.device))
    patches = patch_pass(args.device, args.repeat)
    rows = {
        name: {"images/s": median(r for r, _ in v), "CPU ms": median(c for _, c in v)} for name, v in results.items()
    }
    if args.json:
        print(json.dumps({"rows": rows, "bytes": sizes, "GB/s": patches, "device": args.device}))
        return
    base = rows["CPU renderer, whole loader"]["CPU ms"]
    print(f"{args.count} files, {args.threads} threads, device {args.device}")
    print(f"{'':45} {'images/s':>10} {'CPU ms/image':>13} {'of the CPU renderer':>20}")
    for name, row in rows.items():
        print(f"{name:45} {row['images/s']:10,.0f} {row['CPU ms']:13.3f} {row['CPU ms'] / base:20.2f}")
    print(f"bytes per image: packed {sizes['packed']:,.0f}, encoded {sizes['encoded']:,.0f}")
    share = patches["patch pass"] / patches["copy"]
    print(f"patch pass {patches['patch pass']:.1f} GB/s, {share:.0%} of a plain copy ({patches['copy']:.1f} GB/s)")
    if args.device == "cpu":
        print("rows of a GPU are not measured: there is none here")


if __name__ == "__main__":
    main()
