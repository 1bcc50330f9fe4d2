"""What the tensors of a vision-language model cost from JPEG files, beside transformers' own processors in the same run.

In: photographs (`corpus.py`). Out: processor time an image of ours and of transformers' fast and Pillow processors, one
core. Ours twice: from the very pixels that the others see, and by the loader's way (`exact=False`).

    python bench/processors.py [--count 16] [--repeat 7] [--megapixels 1.0]
"""

from __future__ import annotations

import argparse
import importlib
import tempfile
import time
from pathlib import Path

import torch
from corpus import make
from kit import Report, parse, seconds_of, turns
from PIL import Image

from navit_loader import ImageProcessor
from navit_loader.config import RenderConfig

FAMILIES = {"Qwen2VLImageProcessor": "qwen2_vl", "Siglip2ImageProcessor": "siglip2", "PixtralImageProcessor": "pixtral"}

GOALS = {"transformers, fast": 4, "transformers, Pillow": 6}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=16)
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--megapixels", type=float, default=1.0)
    args = parse(parser, {"count": 2, "repeat": 2})
    report = Report("processors", __doc__, args)
    torch.set_num_threads(1)
    one = RenderConfig(threads=1)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{n}.jpg" for n in range(args.count)]
        for path, data in zip(paths, make(args.count, args.megapixels, 0.35), strict=True):
            path.write_bytes(data)
        for kind, name in FAMILIES.items():
            module = f"transformers.models.{name}.image_processing_"
            fast = getattr(importlib.import_module(module + name), kind)()
            slow = getattr(importlib.import_module(f"{module}pil_{name}"), kind + "Pil")()
            exact, loose = (ImageProcessor(kind, render=one, exact=exact) for exact in (True, False))
            ways = {
                "exact": lambda p=exact: p(paths),
                "not exact": lambda p=loose: p(paths),
                "transformers, fast": lambda p=fast: p([Image.open(path) for path in paths], return_tensors="pt"),
                "transformers, Pillow": lambda p=slow: p([Image.open(path) for path in paths], return_tensors="pt"),
            }
            spent = turns({way: seconds_of(run, time.process_time) for way, run in ways.items()}, args.repeat)
            costs = {way: [1000 * s / args.count for s in of] for way, of in spent.items()}
            for own in ("exact", "not exact"):
                for peer, goal in GOALS.items():
                    found = {"navit": costs[own], peer: costs[peer]}
                    report.row(f"{own}, beside {peer}", found, "ms an image", better="lower", table=kind, goal=goal)
    report.finish()


if __name__ == "__main__":
    main()
