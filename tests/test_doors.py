"""A picture is the same whichever way it comes: as a path, as bytes, as what Pillow opened, loaded or not."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from navit_loader import LoaderConfig, PackedBatch, pack_images
from navit_loader.errors import PlanError

Y, X = np.mgrid[0:24, 0:40]
RGB = np.stack([X * 6, Y * 10, 255 - X * 5], -1).astype(np.uint8)
SEEN = ((X - 20) ** 2 + (Y - 12) ** 2 < 90).astype(np.uint8) * 255
HIDDEN = np.where(SEEN[..., None] > 0, RGB, np.random.default_rng(0).integers(0, 256, RGB.shape)).astype(np.uint8)
DEEP = (RGB[..., 0].astype(np.uint16) * 257) ^ 3
FILES: dict[str, tuple[Image.Image, dict[str, Any]]] = {
    "rgb.png": (Image.fromarray(RGB), {}),
    "grey.png": (Image.fromarray(RGB[..., 1]), {}),
    "one.png": (Image.fromarray(SEEN).convert("1"), {}),
    "alpha.png": (Image.fromarray(np.dstack([HIDDEN, SEEN])), {}),
    "alpha.webp": (Image.fromarray(np.dstack([HIDDEN, SEEN])), {"lossless": True, "exact": True}),
    "grey_alpha.png": (Image.fromarray(np.dstack([RGB[..., 1], SEEN]), "LA"), {}),
    "palette.png": (Image.fromarray(RGB).quantize(16), {"transparency": 3}),
    "palette.gif": (Image.fromarray(RGB).quantize(16), {"transparency": 3}),
    "key.png": (Image.fromarray(RGB[..., 1]), {"transparency": int(RGB[12, 0, 1])}),
    "deep.png": (Image.fromarray(DEEP), {}),
    "deep.tif": (Image.fromarray(DEEP), {}),
    "turned.png": (Image.fromarray(RGB), {"exif": 6}),
    "turned.tif": (Image.fromarray(RGB), {"tiffinfo": {274: 8}}),
    "turned_alpha.png": (Image.fromarray(np.dstack([HIDDEN, SEEN])), {"exif": 5}),
    "turned.jpg": (Image.fromarray(RGB), {"exif": 7, "quality": 95, "subsampling": 0}),
}


def packed(image: Any) -> PackedBatch:
    plan = {"sequence_length": 64, "max_tokens": 64, "patch_sizes": [8], "resolution": {"kind": "native"}}
    render = {"background": [10, 200, 30]}
    return pack_images([image], LoaderConfig.from_dict({"plan": plan, "render": render}))


@pytest.mark.parametrize("name", FILES)
def test_a_path_its_bytes_and_what_pillow_opens_give_the_same_pixels(tmp_path: Path, name: str) -> None:
    image, options = FILES[name]
    if "exif" in options:
        tags = Image.Exif()
        tags[0x0112] = options["exif"]
        options = options | {"exif": tags}
    image.save(tmp_path / name, **options)
    data = (tmp_path / name).read_bytes()
    loaded = Image.open(io.BytesIO(data))
    loaded.load()
    expected = packed(data)
    assert expected.num_images == 1
    with Image.open(tmp_path / name) as opened:
        for how, one in {
            "path": tmp_path / name,
            "text": str(tmp_path / name),
            "opened": opened,
            "loaded": loaded,
        }.items():
            found = packed(one)
            assert (found.sizes == expected.sizes).all(), how
            # Libjpeg's conversion of colours is not ours to the last bit.
            bound = 1 if name.endswith(".jpg") and how == "loaded" else 0
            assert np.abs(found.patches.astype(int) - expected.patches).max() <= bound, how
        assert (np.asarray(opened) == np.asarray(loaded)).all(), "it can be used afterwards"


@pytest.mark.parametrize(
    ("change", "size"),
    [(lambda image: image.draft("RGB", (20, 12)), (12, 20)), (lambda image: image.thumbnail((20, 20)), (12, 20))],
)  # fmt: skip
def test_what_was_changed_after_opening_is_what_counts(change: Any, size: tuple[int, int]) -> None:
    out = io.BytesIO()
    Image.fromarray(RGB).save(out, "JPEG")
    image = Image.open(out)
    change(image)
    assert packed(image).sizes[0, 0].tolist() == list(size)


def test_modes_of_pillow_that_no_file_has(tmp_path: Path) -> None:
    white = packed(Image.fromarray(RGB)).patches
    assert (packed(Image.fromarray(RGB).convert("RGBA").convert("RGBa")).patches == white).all()
    assert (packed(Image.fromarray(DEEP).convert("I")).patches == packed(Image.fromarray(DEEP)).patches).all()
    assert packed(Image.fromarray(RGB).convert("CMYK")).num_images == 1
    for bad in (Image.new("F", (9, 9)), Image.new("I", (9, 9), 70_000)):
        with pytest.raises(PlanError, match=r"images\[0\] has samples of type '[FI]', which have no common range"):
            packed(bad)
    with pytest.raises(PlanError, match=r"images\[0\] = '/nowhere/a.png' cannot be read: No such file"):
        packed("/nowhere/a.png")
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(PlanError, match=r"images\[0\]: 8 bytes that are no image"):
        packed(tmp_path / "cut.png")
