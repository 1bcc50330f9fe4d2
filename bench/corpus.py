"""JPEG corpora from real photographs that ship inside Python packages (scikit-image, scikit-learn).

In: how many files, how large. Out: a folder of JPEG files (or their bytes), the same for the same arguments. Each file
is a random crop of a photograph, scaled to the wanted area and written at the quality that gives the wanted bytes per
pixel, so that entropy decoding weighs as much as it does in a real data set. Large ones are mosaics, since no package
ships many. `debian` lays out packages of pictures for those benchmarks that need some.

    python bench/corpus.py FOLDER --count 2000 --megapixels 0.2 --bytes-per-pixel 0.35
"""

from __future__ import annotations

import argparse
import io
import subprocess
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

import numpy as np
from PIL import Image

SKIMAGE = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png", "hubble_deep_field.jpg")


def debian(work: Path, packages: Mapping[str, str]) -> None:
    """Fetches packages of Debian and lays them out in `work`, where the place in each that is wanted is not there yet."""
    for name, place in packages.items():
        if not (work / place).exists():
            debs = work / "debs"
            debs.mkdir(parents=True, exist_ok=True)
            subprocess.run(["apt-get", "download", name], cwd=debs, check=True)
            subprocess.run(["dpkg-deb", "-x", next(debs.glob(f"{name}_*")), work], check=True)


def photographs() -> list[Image.Image]:
    """Real photographs, RGB, each at least 0.13 megapixels."""
    from sklearn.datasets import load_sample_images

    found = [Image.fromarray(a) for a in load_sample_images().images]
    folder = resources.files("skimage") / "data"
    for name in SKIMAGE:
        with (folder / name).open("rb") as f:
            found.append(Image.open(f).convert("RGB"))
    return found


def _mosaic(photos: list[Image.Image], rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Photographs side by side at their own size, until `width` × `height` pixels are covered."""
    canvas = Image.new("RGB", (width, height))
    top = 0
    while top < height:
        left, row = 0, height
        while left < width:
            photo = photos[int(rng.integers(len(photos)))]
            canvas.paste(photo, (left, top))
            left += photo.width
            row = min(row, photo.height)
        top += row
    return canvas


def make(count: int, megapixels: float, bytes_per_pixel: float, seed: int = 0) -> list[bytes]:
    """`count` encoded JPEG files (4:2:0, baseline) of about `megapixels` and `bytes_per_pixel`."""
    rng = np.random.default_rng(seed)
    photos = photographs()
    files = []
    for _ in range(count):
        ratio = float(np.exp(rng.uniform(np.log(2 / 3), np.log(3 / 2))))
        width = round((megapixels * 1e6 * ratio) ** 0.5)
        height = round(width / ratio)
        if megapixels > 0.5:
            image = _mosaic(photos, rng, width, height)
        else:
            photo = photos[int(rng.integers(len(photos)))]
            shrink = min(photo.width / width, photo.height / height)
            scale = shrink * float(rng.uniform(0.8, 1.0))
            w, h = int(width * scale), int(height * scale)
            x, y = int(rng.integers(photo.width - w + 1)), int(rng.integers(photo.height - h + 1))
            image = photo.resize((width, height), Image.Resampling.BICUBIC, box=(x, y, x + w, y + h))
        low, high, best = 30, 97, b""
        while low <= high:
            quality = (low + high) // 2
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=quality)
            best = buffer.getvalue()
            if len(best) > bytes_per_pixel * width * height:
                high = quality - 1
            else:
                low = quality + 1
        files.append(best)
    return files


def write(folder: Path, count: int, megapixels: float = 0.2, bytes_per_pixel: float = 0.35) -> None:
    """Writes them as `folder/000000.jpg` and so on; by default what a common data set has: 0.2 MP, 70 KB."""
    folder.mkdir(parents=True, exist_ok=True)
    for n, data in enumerate(make(count, megapixels, bytes_per_pixel)):
        (folder / f"{n:06d}.jpg").write_bytes(data)


def mix(folder: Path) -> None:
    """Of every five files one becomes progressive, one WebP and one PNG, as a folder from the web may have them."""
    for n, path in enumerate(sorted(folder.glob("*.jpg"))):
        with Image.open(path) as image:
            match n % 5:
                case 0:
                    out = io.BytesIO()
                    image.save(out, "JPEG", quality="keep", progressive=True)
                    path.write_bytes(out.getvalue())
                case 1:
                    image.save(path.with_suffix(".webp"), quality=80)
                    path.unlink()
                case 2:
                    image.save(path.with_suffix(".png"))
                    path.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--classes", type=int, default=10, help="folders that the files are dealt out to")
    parser.add_argument("--megapixels", type=float, default=0.2)
    parser.add_argument("--bytes-per-pixel", type=float, default=0.35)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for n, data in enumerate(make(args.count, args.megapixels, args.bytes_per_pixel, args.seed)):
        folder = args.folder / f"class_{n % args.classes:03d}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{n:06d}.jpg").write_bytes(data)


if __name__ == "__main__":
    main()
