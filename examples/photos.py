"""Writes a folder of photos of any size and shape: pieces of the pictures inside scikit-image, scikit-learn and matplotlib.

In: nothing but these packages (no download). Out: `OUT/<class>/*`, the picture that a piece is of being its class; in three
formats, some turned by EXIF, a few there twice in another size, and two files torn off. Apart from those who show something on
it, since such a folder is what a user brings. The same files each time.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib
import numpy as np
import skimage
import sklearn
from PIL import Image

PICTURES = {
    "astronaut": (skimage, "data/astronaut.png"),
    "cat": (skimage, "data/chelsea.png"),
    "coffee": (skimage, "data/coffee.png"),
    "rocket": (skimage, "data/rocket.jpg"),
    "stars": (skimage, "data/hubble_deep_field.jpg"),
    "flower": (sklearn, "datasets/images/flower.jpg"),
    "temple": (sklearn, "datasets/images/china.jpg"),
    "officer": (matplotlib, "mpl-data/sample_data/grace_hopper.jpg"),
}
SMALLEST, LARGEST, SHAPE = 60, 240, 2.0
"""Bounds of the side, the square root of a piece's area, in pixels; and the largest ratio of two sides."""


def write(out: Path, each: int = 40) -> int:
    """Writes the folder, and returns how many files it has.

    Args:
        out: folder to write to; files of the same name are replaced.
        each: pieces of each picture; a third of the stars, so that the classes are not of one size.
    """
    rng, count = np.random.default_rng(0), 0
    for name, (package, place) in PICTURES.items():
        picture = Image.open(Path(package.__file__).parent / place).convert("RGB")
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        for n in range(each // 3 if name == "stars" else each):
            side, shape = rng.uniform(SMALLEST, LARGEST), np.exp(rng.uniform(-np.log(SHAPE), np.log(SHAPE)))
            wanted = (side * shape**0.5, side / shape**0.5)
            width, height = (int(min(a, b - 1)) for a, b in zip(wanted, picture.size, strict=True))
            left, top = (int(rng.integers(0, a - b)) for a, b in zip(picture.size, (width, height), strict=True))
            piece, path = picture.crop((left, top, left + width, top + height)), folder / f"{name}-{n:02}"
            tags = Image.Exif()
            if n % 7 == 3:
                tags[274] = 6  # the camera was turned
            suffix = (".png", ".webp", ".jpg", ".jpg", ".jpg")[n % 5]
            piece.save(path.with_suffix(suffix), exif=tags, quality=88)
            count += 1
            if n % 13 == 5:
                piece.resize((width * 2 // 3, height * 2 // 3)).save(folder / f"{name}-{n:02}-small.jpg", quality=80)
                count += 1
    for name in ("coffee/coffee-04.jpg", "flower/flower-07.jpg"):
        whole = (out / name).read_bytes()
        (out / name.replace("-", "-torn-")).write_bytes(whole[: len(whole) * 2 // 3])
        count += 1
    (out / "cat" / "notes.jpg").write_bytes(b"three more of these in the attic")
    return count + 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, nargs="?", default=Path("photos"), help="folder to write to (photos)")
    print(f"{write(parser.parse_args().out)} files in {parser.parse_args().out}")
