"""What the tensors of a vision-language model cost from JPEG files, beside transformers' own processors in the same run.

In: photographs (`corpus.py`). Out: processor time an image of ours and of transformers' fast and Pillow processors, one core,
and how many times ours theirs is; medians over interleaved repetitions, each ratio within one repetition. The first
repetition warms up. Ours twice: from the very pixels that the others see, and by the loader's way (`exact=False`).

    python bench/processors.py [--count 16] [--repeat 7] [--megapixels 1.0]
"""

from __future__ import annotations

import argparse
import importlib
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from corpus import make
from PIL import Image

from navit_loader import ImageProcessor, _packer
from navit_loader.config import RenderConfig

FAMILIES = {"Qwen2VLImageProcessor": "qwen2_vl", "Siglip2ImageProcessor": "siglip2", "PixtralImageProcessor": "pixtral"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=16)
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--megapixels", type=float, default=1.0)
    args = parser.parse_args()
    if _packer.BUILD_PROFILE != "release":
        raise SystemExit("a debug build measures nothing; run make build")
    torch.set_num_threads(1)
    one = RenderConfig(threads=1)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{n}.jpg" for n in range(args.count)]
        for path, data in zip(paths, make(args.count, args.megapixels, 0.35), strict=True):
            path.write_bytes(data)
        print(f"{'':24}{'ours':>10}{'not exact':>11}{'fast':>10}{'Pillow':>10}   times ours")
        for kind, name in FAMILIES.items():
            module = f"transformers.models.{name}.image_processing_"
            fast = getattr(importlib.import_module(module + name), kind)()
            slow = getattr(importlib.import_module(f"{module}pil_{name}"), kind + "Pil")()
            ours = [ImageProcessor(kind, render=one, exact=exact) for exact in (True, False)]
            peers = [
                lambda p=ours[0]: p(paths),
                lambda p=ours[1]: p(paths),
                lambda p=fast: p([Image.open(path) for path in paths], return_tensors="pt"),
                lambda p=slow: p([Image.open(path) for path in paths], return_tensors="pt"),
            ]
            rounds = []
            for _ in range(args.repeat + 1):
                spent = []
                for peer in peers:
                    start = time.process_time()
                    peer()
                    spent.append(1000 * (time.process_time() - start) / args.count)
                rounds.append(spent)
            cost = [median(spent[n] for spent in rounds[1:]) for n in range(4)]
            ratio = [median(spent[n] / spent[0] for spent in rounds[1:]) for n in (2, 3)]
            print(
                f"{kind:24}"
                + "".join(f"{ms:7.2f} ms" for ms in cost)
                + f"   {ratio[0]:.2f} fast, {ratio[1]:.2f} Pillow"
            )


if __name__ == "__main__":
    main()
