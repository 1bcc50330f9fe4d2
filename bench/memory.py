"""Memory over a long run: resident bytes while hundreds of thousands of images of mixed sizes are rendered.

In: nothing; makes JPEG, PNG and WebP files from 0.01 to 4 megapixels. Out: a line every tenth of the run, and the growth
after warm-up, which is the first tenth: the medians of the second tenth and of the last. Warm-up begins with more batches
held at once than the run ever needs; otherwise the pool of their memory grows by one when the machine's load makes the
trainer late.

    python bench/memory.py [--images 200000] [--files 400]
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
from corpus import photographs
from kit import Report, parse
from PIL import Image

from navit_loader import LoaderConfig, PackedBatch, PackedLoader, build_index

KINDS = [("JPEG", "jpg")] * 8 + [("PNG", "png"), ("WEBP", "webp")]


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def write(folder: Path, count: int) -> None:
    """Files whose areas are spread evenly over the logarithm; few are large, as in real data sets."""
    rng = np.random.default_rng(0)
    photos = photographs()
    for n in range(count):
        area = 10 ** rng.uniform(4, 5.3 if n % 40 else 6.6)
        ratio = float(np.exp(rng.uniform(-0.5, 0.5)))
        size = (max(8, round((area * ratio) ** 0.5)), max(8, round((area / ratio) ** 0.5)))
        image = photos[int(rng.integers(len(photos)))].resize(size, Image.Resampling.BICUBIC)
        kind, suffix = KINDS[n % len(KINDS)]
        buffer = io.BytesIO()
        image.save(buffer, kind)
        (folder / f"{n:05d}.{suffix}").write_bytes(buffer.getvalue())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=200_000)
    parser.add_argument("--files", type=int, default=400)
    args = parse(parser, {"images": 3000, "files": 40})
    report = Report("memory", __doc__, args)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "images"
        folder.mkdir()
        write(folder, args.files)
        index = Path(temporary) / "index.arrow"
        build_index(folder, index)
        config = LoaderConfig.from_dict(
            {
                "data": {"batch_size": 8},
                "plan": {
                    "sequence_length": 1024,
                    "max_tokens": 256,
                    "patch_sizes": [16],
                    "resolution": {"kind": "uniform", "low": 64, "high": 256},
                    "drop": {"kind": "constant", "rate": 0.25},
                },
                "render": {"threads": 2},
            }
        )
        watch(report, index, config, args.images)
    report.finish()


def watch(report: Report, index: Path, config: LoaderConfig, images: int) -> None:
    """Renders, and says what it held."""
    seen: list[list[int]] = [[] for _ in range(10)]
    done, start = 0, time.perf_counter()
    with PackedLoader(index, config) as loader:
        held: list[PackedBatch] = []
        while len(held) < config.render.prefetch + 4:
            held.extend(loader)
        del held
        while done < images:
            for batch in loader:
                done += batch.num_images
                tenth = min(9, done * 10 // images)
                if not seen[tenth] and tenth:
                    mean = median(seen[tenth - 1]) / 2**20
                    rate = done / (time.perf_counter() - start)
                    print(f"{done:>9,} images, {mean:7.1f} MiB in the median so far, {rate:,.0f} images/s", flush=True)
                seen[tenth].append(resident())
                if done >= images:
                    break
    first, last = median(seen[1]), median(seen[9])
    report.row("growth after warm-up", 100 * (last / first - 1), "%", better="lower", goal=2, images=images)
    report.row("resident at the end", last / 2**20, "MiB", better="lower")


if __name__ == "__main__":
    main()
