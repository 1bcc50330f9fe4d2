"""Which formats DALI could take besides JPEG: do its pixels agree with ours, and does it cost less?

In: one photograph in many formats. Out: for each the CPU milliseconds of DALI and of our renderer for an image, decoded and
resized in one thread (medians over interleaved repetitions), and how the pixels differ in steps of 1/255. DALI decodes all of
these on the CPU, whatever its device. Where DALI fails, the row says so. Formats that our renderer reads through Pillow are
compared with Pillow itself.

    python bench/decode_formats.py [--repeat 5]
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable
from statistics import median

import numpy as np
from corpus import photographs
from decode import ours
from PIL import Image

try:
    from nvidia import dali
    from nvidia.dali import fn, types
except ImportError as e:
    raise SystemExit(
        f"decode_formats.py: NVIDIA DALI cannot be loaded here ({e}); pip install nvidia-dali-cuda130"
    ) from None

WIDTH, HEIGHT, GRID, COUNT = 640, 427, (13, 20), 16


def files() -> dict[str, bytes]:
    """The photograph in each format."""
    photo = photographs()[0].resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
    transparent = photo.copy()
    transparent.putalpha(Image.radial_gradient("L").resize(photo.size))
    deep = Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) * 257)
    palette = photo.quantize(60)
    found = {}

    def add(name: str, image: Image.Image, kind: str, **options: object) -> None:
        out = io.BytesIO()
        image.save(out, kind, **options)
        found[name] = out.getvalue()

    add("JPEG, 4:2:0", photo, "JPEG", quality=90)
    add("PNG", photo, "PNG")
    add("PNG, palette", palette, "PNG")
    add("PNG, 16 bits, grey", deep, "PNG")
    add("PNG, alpha", transparent, "PNG")
    add("WebP, lossy", photo, "WEBP", quality=80)
    add("WebP, lossless", photo, "WEBP", lossless=True)
    add("WebP, alpha", transparent, "WEBP", lossless=True)
    add("BMP", photo, "BMP")
    add("TIFF", photo, "TIFF")
    add("TIFF, LZW", photo, "TIFF", compression="tiff_lzw")
    add("TIFF, 16 bits, grey", deep, "TIFF")
    add("GIF", palette, "GIF")
    add("JPEG 2000", photo, "JPEG2000", quality_mode="rates", quality_layers=[10])
    return found


def by_dali(data: bytes) -> Callable[[], np.ndarray]:
    pipeline = dali.Pipeline(batch_size=COUNT, num_threads=1, device_id=None, exec_dynamic=True, prefetch_queue_depth=1)
    with pipeline:
        given = fn.external_source(
            source=lambda: [np.frombuffer(data, np.uint8)] * COUNT, batch=True, dtype=types.UINT8, ndim=1
        )
        image = fn.decoders.image(given, device="cpu", output_type=types.RGB, adjust_orientation=False)
        size = [side * 16 for side in GRID]
        pipeline.set_outputs(fn.resize(image, size=size, interp_type=types.INTERP_CUBIC, antialias=True))
    pipeline.build()
    return lambda: np.array(pipeline.run()[0].at(0))


def by_us(data: bytes) -> Callable[[], np.ndarray]:
    run = ours(([data] * COUNT, [(HEIGHT, WIDTH)] * COUNT, [GRID] * COUNT), dct_scaling=False)

    def patches() -> np.ndarray:
        run()
        h, w = GRID
        found = run.last["patches"][0, : h * w]  # type: ignore[attr-defined]
        return found.reshape(h, w, 16, 16, 3).swapaxes(1, 2).reshape(h * 16, w * 16, 3)

    return patches


def by_pillow(data: bytes) -> Callable[[], np.ndarray]:
    def one() -> np.ndarray:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        return np.asarray(image.resize((GRID[1] * 16, GRID[0] * 16), Image.Resampling.BICUBIC))

    return lambda: [one() for _ in range(COUNT)].pop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=5)
    args = parser.parse_args()
    print("| format | DALI, ms | ours, ms | DALI over ours | mean difference | 99.9 % |\n|---|---|---|---|---|---|")
    for name, data in files().items():
        own = by_pillow(data) if name == "JPEG 2000" else by_us(data)
        try:
            theirs = by_dali(data)
            gap = np.abs(theirs().astype(int) - own().astype(int))
        except RuntimeError:
            print(f"| {name} | cannot decode it | | | | |")
            continue
        rounds = []
        for _ in range(args.repeat):
            start = time.process_time()
            theirs()
            between = time.process_time()
            own()
            rounds.append((between - start, time.process_time() - between))
        a, b = (1e3 * median(column) / COUNT for column in zip(*rounds, strict=True))
        ratio = median(x / y for x, y in rounds)
        print(
            f"| {name} | {a:.2f} | {b:.2f} | {ratio:.2f} | {gap.mean():.2f} | {np.quantile(gap, 0.999):.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
