"""JPEG decoding on the GPU: nvJPEG alone, the same into packed batches, DALI where it is there, the patch kernel's bandwidth.

In: the kit's corpus (0.2 MP, 70 KB), in memory. Out: images/s of each way over the same files, ways in turns; processor time
per image; GB/s of the patch kernel beside a plain copy. Bare nvJPEG is the bound: torchvision's batched decoder alone.

    python bench/day/decode.py --out FILE [--seconds N]
"""

from __future__ import annotations

import os
import resource
import statistics
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from rows import Rows, copy_gbs, need_gpu, seconds_of

BATCH = 128
"""Images that nvJPEG gets at once."""


def corpus(folder: Path, count: int) -> Path:
    """A folder of `count` JPEGs: the kit's, taken several times over; made here where there is no kit."""
    kit = os.environ.get("NAVIT_GPU_KIT", "")
    files = sorted(Path(kit, "corpus").glob("*.jpg")) if kit else []
    to = folder / "files"
    if not files:
        from corpus import write

        write(folder / "made", 200)
        files = sorted((folder / "made").glob("*.jpg"))
    to.mkdir()
    for n in range(count):
        (to / f"{n:06d}.jpg").symlink_to(files[n % len(files)])
    return to


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def timed(work: Callable[[], int]) -> tuple[float, float]:
    """Images a second, and processor milliseconds an image over all threads of this process."""
    torch.cuda.synchronize()
    start, used = time.perf_counter(), cpu_seconds()
    images = work()
    torch.cuda.synchronize()
    return images / (time.perf_counter() - start), 1e3 * (cpu_seconds() - used) / images


def bare(files: list[torch.Tensor], batch: int = BATCH) -> int:
    from torchvision.io import ImageReadMode, decode_jpeg

    for n in range(0, len(files), batch):
        decode_jpeg(files[n : n + batch], mode=ImageReadMode.RGB, device="cuda")
    return len(files)


def nvimagecodec(files: list[torch.Tensor]) -> Callable[[], int]:
    from nvidia import nvimgcodec

    decoder = nvimgcodec.Decoder(device_id=0, max_num_cpu_threads=8)
    streams = [nvimgcodec.CodeStream(f.numpy().tobytes()) for f in files]

    def run() -> int:
        for n in range(0, len(streams), 256):
            if any(image is None for image in decoder.decode(streams[n : n + 256])):
                raise RuntimeError("nvImageCodec could not decode all files")
        return len(streams)

    return run


def in_turns(rows: Rows, ways: dict[str, Callable[[], int]], bound: str, repeat: int) -> None:
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for name in list(ways):
        if rows.attempt(name, ways[name], needs=5) is None:
            del ways[name]
    for _ in range(repeat):
        for name, way in ways.items():
            if rows.left > 4:
                time.sleep(0.3)  # what the way before it still had running ends
                found[name].append(timed(way))
    for name in ways:
        if found[name]:
            rates = [r for r, _ in found[name]]
            of = {}
            if bound in ways and name != bound:
                of = {"of_bare": statistics.median(r / b for r, (b, _) in zip(rates, found[bound], strict=False))}
            cpu = statistics.median(c for _, c in found[name])
            rows.add(name, images_per_s=statistics.median(rates), cpu_ms=cpu, **of)


def patch_kernel(rows: Rows) -> None:
    """Bytes read and written by the patch kernel over 1,024 images of 256 tokens, every second one mirrored."""
    from navit_loader.render.device import kernel
    from navit_loader.render.device.tokens import Tokens

    n, side, p = 1024, 16, 16
    images = [torch.randint(0, 256, (side * p, side * p, 3), dtype=torch.uint8, device="cuda") for _ in range(n)]
    grid = np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij"), -1).reshape(-1, 2)
    each = np.repeat(np.arange(n), side * side)
    tokens = Tokens(np.arange(n * side * side), each, np.tile(grid, (n, 1)), (each % 2 * 2).astype(np.uint8))
    out = torch.empty((n * side * side, p * p * 3), dtype=torch.uint8, device="cuda")
    given = kernel.per_token(images, tokens, p, out.device)
    kernel.copy(*given, p, out)
    rates = [2 * out.numel() / seconds_of(lambda: kernel.copy(*given, p, out), 30) / 1e9 for _ in range(5)]
    copy = copy_gbs()
    rows.add(
        "patch kernel", gb_per_s=statistics.median(rates), copy_gb_per_s=copy, of_copy=statistics.median(rates) / copy
    )


def main() -> None:
    rows = Rows.begin(__doc__)
    need_gpu(rows, "nvJPEG alone", "nvJPEG into packed batches", "patch kernel")
    rows.attempt("patch kernel", lambda: patch_kernel(rows))
    with TemporaryDirectory() as name:
        folder = Path(name)
        made = corpus(folder, 4096)
        files = [torch.from_numpy(np.fromfile(p, np.uint8)) for p in sorted(made.iterdir())]
        for batch in (32, 64, 256):
            label = f"nvJPEG alone, {batch} at once"
            rate = rows.attempt(
                label, lambda batch=batch: (bare(files[:1024], batch), timed(lambda: bare(files, batch)))[1]
            )
            if rate:
                rows.add(label, images_per_s=rate[0], cpu_ms=rate[1])
        ways: dict[str, Callable[[], int]] = {"nvJPEG alone": lambda: bare(files)}
        packed = rows.attempt("packed batches", lambda: packed_ways(rows, folder, made)) or {}
        engine = {name: packed.pop(name) for name in list(packed) if name.startswith("CPU")}
        in_turns(rows, ways | packed, "nvJPEG alone", 4)
        in_turns(rows, engine, "", 2)
        codec = rows.attempt("nvImageCodec alone", lambda: nvimagecodec(files), needs=10)
        if codec:
            in_turns(rows, {"nvImageCodec alone": codec}, "", 2)


def packed_ways(rows: Rows, folder: Path, made: Path) -> dict[str, Callable[[], int]]:
    """Packed batches of the same files by each decoder: from encoded batches in memory, and the whole loader."""
    from navit_loader import LoaderConfig, PackedLoader, build_index

    index = folder / "files.arrow"
    build_index(made, index)
    resolution = {"kind": "fixed", "low": 256, "high": 256}
    plan = {"sequence_length": 1024, "max_tokens": 256, "max_images": 16, "resolution": resolution}
    config = LoaderConfig.from_dict({"data": {"batch_size": 32}, "plan": plan, "render": {"threads": 0}})
    ways: dict[str, Callable[[], int]] = {}
    with PackedLoader(index, config) as loader:
        held = list(loader.encoded())
    total = sum(b.slots.num_images for b in held)

    def memory(renderer: Any) -> Callable[[], int]:
        def run() -> int:
            ahead: deque[Any] = deque()
            for batch in held:
                ahead.append(renderer.submit(batch))
                if len(ahead) == 3:
                    ahead.popleft().wait()
            while ahead:
                ahead.popleft().wait()
            return total

        return run

    def whole(decode: str) -> Callable[[], int]:
        def run() -> int:
            # A loader of its own each time: nothing of it runs on into the next way, and nothing was made ahead of the clock.
            with PackedLoader(index, config, decode=decode, device="cuda") as loader:  # type: ignore[arg-type]
                if sum(1 for _ in loader) != len(held):
                    raise RuntimeError("batches are missing")
            return total

        PackedLoader(index, config, decode=decode, device="cuda").close()  # type: ignore[arg-type]
        return run

    def engine() -> int:
        with PackedLoader(index, config) as loader:
            return sum(b.num_images for b in loader)

    ways["CPU renderer, whole loader, all cores"] = engine
    for decode in ("nvjpeg", "dali"):
        for where, make in (
            ("from memory", lambda d=decode: memory(renderer_of(d))),
            ("whole loader", lambda d=decode: whole(d)),
        ):
            name = f"{decode} into packed batches, {where}"
            if (way := rows.attempt(name, make)) is not None:
                ways[name] = way
    return ways


def renderer_of(decode: str) -> Any:
    if decode == "dali":
        from navit_loader.render.dali import DaliRenderer

        return DaliRenderer("cuda", threads=8)
    from navit_loader.render.nvjpeg import NvjpegRenderer

    return NvjpegRenderer("cuda", threads=8)


if __name__ == "__main__":
    main()
