"""Resize alone: our passes beside Pillow's, from decoded pixels to the target size, one core.

In: photographs of 0.2 and 2 megapixels (`corpus.py`). Out: µs an image for each filter, and the ratio. Ours is the
renderer's own clock of its resize stage, full-size DCT, so that both sides start from as many pixels: as Y, Cb and Cr
planes with half-size chroma, which is what it makes of a JPEG file, and as RGB, which is what it makes of BMP. Pillow's is
`Image.resize` of the decoded RGB image.

    python bench/resize.py [--count 60] [--repeat 7]
"""

from __future__ import annotations

import argparse
import io
import os
import time
from collections.abc import Callable

from corpus import make
from decode import P, grids, ours
from kit import Report, parse, turns
from PIL import Image

FILTERS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "area": Image.Resampling.BOX,
    "lanczos": Image.Resampling.LANCZOS,
}


def stage(
    files: list[bytes], sizes: list[tuple[int, int]], targets: list[tuple[int, int]], name: str
) -> Callable[[], float]:
    """Seconds that our resize stage takes for all files."""
    run = ours((files, sizes, targets), filter=name, dct_scaling=False)
    run()
    before = [run.stats["resize"]]  # type: ignore[attr-defined]

    def seconds() -> float:
        run()
        now = run.stats["resize"]  # type: ignore[attr-defined]
        spent, before[0] = now - before[0], now
        return float(spent)

    return seconds


def pillow(images: list[Image.Image], targets: list[tuple[int, int]], how: Image.Resampling) -> Callable[[], float]:
    """Seconds that Pillow takes."""

    def seconds() -> float:
        start = time.perf_counter()
        for image, (h, w) in zip(images, targets, strict=True):
            image.resize((w * P, h * P), how)
        return time.perf_counter() - start

    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)))
    args = parse(parser, {"count": 16, "repeat": 2})
    report = Report("resize", __doc__, args)
    os.sched_setaffinity(0, {args.core})
    for area, count in ((0.2, args.count), (2.0, max(4, args.count // 6))):
        jpegs = make(count, area, 0.35)
        images = [Image.open(io.BytesIO(data)).convert("RGB") for data in jpegs]
        sizes = [image.size[::-1] for image in images]
        targets = grids(sizes, 256, None)
        bitmaps = []
        for image in images:
            buffer = io.BytesIO()
            image.save(buffer, "BMP")
            bitmaps.append(buffer.getvalue())
        for name, resampling in FILTERS.items():
            ours_rgb, ours_planes = (stage(files, sizes, targets, name) for files in (bitmaps, jpegs))
            ways = {"Pillow": pillow(images, targets, resampling), "RGB": ours_rgb, "Y, Cb, Cr": ours_planes}
            found = {way: [s / count * 1e6 for s in spent] for way, spent in turns(ways, args.repeat, warm=0).items()}
            for kind in ("RGB", "Y, Cb, Cr"):
                pair = {"navit": found[kind], "Pillow": found["Pillow"]}
                report.row(f"{name} from {kind}", pair, "µs an image", better="lower", table=f"{area:g} MP", goal=5)
    report.finish()


if __name__ == "__main__":
    main()
