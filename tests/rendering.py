"""What the tests of rendering share: photographs, plans of a few images, and Pillow as the reference."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from navit_loader import _packer
from navit_loader.config import RenderConfig

FILTERS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "area": Image.Resampling.BOX,
    "lanczos": Image.Resampling.LANCZOS,
}
_FILES = tempfile.TemporaryDirectory(prefix="navit-files-")
LIMITS: dict[str, Any] = {
    "sequence_length": 1024,
    "max_tokens": 512,
    "prefix_tokens": 0,
    "max_images": 16,
    "label_width": 0,
    "text_tokens": 0,
    "max_text_tokens": 0,
    "teacher": None,
}


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """A crop of a real photograph, RGB."""
    from sklearn.datasets import load_sample_images

    pictures = load_sample_images().images
    rng = np.random.default_rng(seed)
    picture = Image.fromarray(pictures[int(rng.integers(len(pictures)))])
    x, y = (int(rng.integers(max(1, a - b + 1))) for a, b in zip(picture.size, (width, height), strict=True))
    if width > picture.width or height > picture.height:
        return picture.resize((width, height), Image.Resampling.BICUBIC)
    return picture.crop((x, y, x + width, y + height))


def encode(image: Image.Image, kind: str, orientation: int = 1, **options: Any) -> bytes:
    """The image as a file; an orientation other than 1 is written as EXIF."""
    if orientation != 1:
        exif = Image.Exif()
        exif[0x0112] = orientation
        options["exif"] = exif
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def planned(row: int, offset: int, size: tuple[int, int], grid: tuple[int, int], **changes: Any) -> dict[str, Any]:
    """One planned image: the whole of it (`size` is height, width), all tokens kept, unless changed."""
    image = {"row": row, "key": 77 * row + 1, "crop": (0, 0, *size), "offset": offset, "kept": grid[0] * grid[1]}
    image |= {"teacher_offset": 0, "text_offset": 0, "grid": grid, "teacher_grid": (0, 0), "source": 0, "flip": False}
    return image | changes


def batch(sequences: list[list[dict[str, Any]]], patch_size: int = 16, batch_size: int = 0, epoch: int = 0) -> Any:
    """A planned batch of these sequences."""
    return _packer.PlannedBatch(epoch, 0, patch_size, batch_size or len(sequences), sequences)


def source(
    sizes: list[tuple[int, int]],
    orientations: list[int] | None = None,
    bytes: list[bytes] | None = None,
    **columns: Any,
) -> dict[str, Any]:
    """An index's columns: oriented sizes (height, width), orientations, files of these bytes, and whatever else is given."""
    rows = len(sizes)
    if bytes is not None:
        folder = Path(tempfile.mkdtemp(dir=_FILES.name))
        names = [str(n) for n in range(len(bytes))]
        for name, data in zip(names, bytes, strict=True):
            (folder / name).write_bytes(data)
        columns = located(folder, names, [len(data) for data in bytes]) | columns
    return {
        "width": [np.array([w for _, w in sizes], np.int32)],
        "height": [np.array([h for h, _ in sizes], np.int32)],
        "orientation": [np.array(orientations or [1] * rows, np.uint8)],
        **columns,
    }


def located(folder: Any, names: list[str], lengths: list[int]) -> dict[str, Any]:
    """The columns that say where files of one folder are."""
    text = "".join(names).encode()
    offsets = np.cumsum([0, *(len(n.encode()) for n in names)]).astype(np.int64)
    return {
        "shard": [np.zeros(len(names), np.int32)],
        "shards": [f"{folder}/"],
        "name": [(offsets, np.frombuffer(text, np.uint8))],
        "offset": [np.zeros(len(names), np.int64)],
        "length": [np.array(lengths, np.int64)],
    }


def in_folder(folder: Any, names: list[str], sizes: list[tuple[int, int]], lengths: list[int]) -> dict[str, Any]:
    """An index's columns for files in one folder."""
    return source(sizes, **located(folder, names, lengths))


def renderer(columns: dict[str, Any], limits: dict[str, Any] | None = None, **options: Any) -> Any:
    """A renderer of one index, two threads unless told otherwise."""
    options = {"threads": 2, "failure_limit": 1.0} | options
    return _packer.Renderer(RenderConfig(**options).to_json(), LIMITS | (limits or {}), [columns])


def render_one(
    data: bytes, size: tuple[int, int], grid: tuple[int, int], p: int = 16, orientation: int = 1, **changes: Any
) -> np.ndarray:
    """The image as u8 [h·P, w·P, 3], all tokens kept. `size` is oriented."""
    options = {k: changes.pop(k) for k in ("dct_scaling", "filter", "background") if k in changes}
    made = renderer(source([size], [orientation], bytes=[data]), {"max_tokens": 1024}, **options)
    got = made.submit(batch([[planned(0, 0, size, grid, **changes)]], p)).wait(30)
    assert got["status"][0, 0] == 1, made.failures()
    made.close()
    return unpatched(got["patches"][0, : grid[0] * grid[1]], grid, p)


def unpatched(patches: np.ndarray, grid: tuple[int, int], p: int) -> np.ndarray:
    """[h·w, P·P·3] → [h·P, w·P, 3]."""
    h, w = grid
    return patches.reshape(h, w, p, p, 3).transpose(0, 2, 1, 3, 4).reshape(h * p, w * p, 3)


def reference(
    data: bytes,
    grid: tuple[int, int],
    p: int = 16,
    crop: tuple[int, int, int, int] | None = None,
    flip: bool = False,
    filter: str = "bicubic",
    background: tuple[int, int, int] = (255, 255, 255),
) -> np.ndarray:
    """What Pillow makes of the same: u8 [h·P, w·P, 3]. `crop` is (top, left, height, width)."""
    image: Image.Image = Image.open(io.BytesIO(data))
    image = ImageOps.exif_transpose(image)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        under = Image.new("RGBA", image.size, (*background, 255))
        under.paste(image, mask=image)
        image = under
    image = image.convert("RGB")
    top, left, height, width = crop or (0, 0, image.height, image.width)
    box = (left, top, left + width, top + height)
    image = image.resize((grid[1] * p, grid[0] * p), FILTERS[filter], box=box)
    return np.asarray(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else image)


def difference(a: np.ndarray, b: np.ndarray) -> tuple[float, float, int]:
    """Mean, 99.9th percentile and largest of the absolute difference."""
    d = np.abs(a.astype(int) - b.astype(int))
    return float(d.mean()), float(np.quantile(d, 0.999)), int(d.max())
