"""Writes scikit-learn's 1,797 handwritten digits as image files of varied size and aspect ratio.

In: the digits that ship inside scikit-learn (8 × 8 grey values, no download). Out: `OUT/train/<class>/*` and
`OUT/heldout/<class>/*`, half JPEG and half PNG. Apart from the demo, since a class-per-folder tree is also what a user
brings. The same seed writes the same bytes, so plans and results can be compared.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

SMALLEST, LARGEST = 24, 64
"""Bounds of the side, the square root of an image's area, in pixels."""

ASPECT = 4 / 3
"""Largest ratio between the two sides."""


def split(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the training digits and of the held-out fifth, stratified by class."""
    labels = load_digits().target
    train, heldout = train_test_split(np.arange(len(labels)), test_size=0.2, stratify=labels, random_state=seed)
    return np.sort(train), np.sort(heldout)


def draw(pixels: np.ndarray, rng: np.random.Generator) -> Image.Image:
    """One digit, `[8, 8]` values in 0..16, as dark ink on light paper at a drawn size and aspect ratio."""
    side = rng.uniform(SMALLEST, LARGEST)
    stretch = np.sqrt(np.exp(rng.uniform(-np.log(ASPECT), np.log(ASPECT))))
    paper, ink = rng.integers(200, 256, 3), rng.integers(0, 90, 3)
    share = (pixels / 16.0)[..., None]
    rgb = (paper * (1 - share) + ink * share).round().astype(np.uint8)
    size = (round(side * stretch), round(side / stretch))
    return Image.fromarray(rgb).resize(size, Image.Resampling.BICUBIC)


def write(out: Path, seed: int = 0) -> dict[str, int]:
    """Writes both folders and returns how many files each has.

    Args:
        out: folder that gets `train` and `heldout`; files of the same name are replaced.
        seed: of the split, the sizes and the colours.
    """
    digits = load_digits()
    counts = {}
    for name, rows in zip(("train", "heldout"), split(seed), strict=True):
        for row in rows:
            folder = out / name / str(digits.target[row])
            folder.mkdir(parents=True, exist_ok=True)
            # Keyed by the row, so that a digit looks the same however many are written.
            image = draw(digits.images[row], np.random.default_rng([seed, int(row)]))
            if row % 2:
                image.save(folder / f"digit-{row:04d}.png")
            else:
                image.save(folder / f"digit-{row:04d}.jpg", quality=92)
        counts[name] = len(rows)
    return counts


def main() -> None:
    """Command line of this file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder to write to")
    parser.add_argument("--seed", type=int, default=0, help="of the split, the sizes and the colours")
    args = parser.parse_args()
    counts = write(args.out, args.seed)
    print(f"wrote {counts['train']} training and {counts['heldout']} held-out digits to {args.out}")


if __name__ == "__main__":
    main()
