"""Images and captions from a WebDataset: tars → index → two towers → retrieval and zero-shot classes.

In: scikit-learn's digits, written as tars with a caption beside each image, as a user's WebDataset holds them. Out:
`OUT/{train,heldout}-*.tar`, their indexes, and a run of `contrastive.toml` with its report. The captions name digit, ink and
paper, so that there is more to say than ten classes.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
from digits import split
from PIL import Image
from sklearn.datasets import load_digits

from navit_loader import build_index

NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
COLOURS = {"red": (200, 40, 40), "green": (30, 150, 60), "blue": (40, 70, 210), "grey": (90, 90, 90)}
SHARD = 500
"""Samples of a tar."""


def draw(pixels: np.ndarray, ink: tuple[int, int, int], rng: np.random.Generator) -> Image.Image:
    """One digit, `[8, 8]` values in 0..16, in coloured ink on light paper, 20 to 48 pixels a side."""
    share = (pixels / 16.0)[..., None]
    rgb = (rng.integers(220, 256, 3) * (1 - share) + np.array(ink) * share).round().astype(np.uint8)
    width, height = (int(v) for v in rng.integers(20, 49, 2))
    return Image.fromarray(rgb).resize((width, height), Image.Resampling.BICUBIC)


def write(out: Path) -> dict[str, list[Path]]:
    """Writes the tars and returns them by part; `KEY.png`, `KEY.txt` with the caption and `KEY.cls` with the class."""
    out.mkdir(parents=True, exist_ok=True)
    digits = load_digits()
    tars: dict[str, list[Path]] = {}
    for part, rows in zip(("train", "heldout"), split(), strict=True):
        for start in range(0, len(rows), SHARD):
            path = out / f"{part}-{start // SHARD:03d}.tar"
            tars.setdefault(part, []).append(path)
            with tarfile.open(path, "w") as tar:
                for row in rows[start : start + SHARD]:
                    rng = np.random.default_rng(int(row))
                    name, colour = NAMES[digits.target[row]], list(COLOURS)[int(rng.integers(len(COLOURS)))]
                    image = io.BytesIO()
                    draw(digits.images[row], COLOURS[colour], rng).save(image, "png")
                    files = {"png": image.getvalue(), "txt": f"a {colour} {name}".encode(), "cls": name.encode()}
                    for suffix, data in files.items():
                        member = tarfile.TarInfo(f"{row:06d}.{suffix}")
                        member.size = len(data)
                        tar.addfile(member, io.BytesIO(data))
    return tars


def main() -> None:
    """Command line of this file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, nargs="?", default=Path("runs/pairs"), help="folder to write to (runs/pairs)")
    parser.add_argument("--steps", type=int, default=600, help="optimiser steps (600)")
    args = parser.parse_args()
    for part, tars in write(args.out).items():
        build_index(tars, args.out / f"{part}.arrow", classes=NAMES)
    heldout, run = args.out / "heldout.arrow", args.out / "run"
    data = [f"data.index={args.out / 'train.arrow'}", f"data.eval_index={heldout}"]
    navit_model = [sys.executable, "-m", "navit_model"]
    config = Path(__file__).with_name("contrastive.toml")
    subprocess.run([*navit_model, "train", config, *data, f"train.out={run}", f"train.steps={args.steps}"], check=True)
    subprocess.run([*navit_model, "eval", run, heldout, "--retrieval", "--tokens", "16", "36", "64"], check=True)
    # The classes of the index are the digits' names; every ink is as likely.
    templates = [f"a {colour} {{}}" for colour in COLOURS]
    subprocess.run([*navit_model, "eval", run, heldout, "--tokens", "64", "--zero-shot", *templates], check=True)


if __name__ == "__main__":
    main()
