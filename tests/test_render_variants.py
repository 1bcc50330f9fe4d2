"""Rarer ways of writing a picture, whose exact pixels are known: each is rendered as it is meant, or refused with a reason.

In: TIFF, BMP and GIF files made here, byte by byte where Pillow does not write them. Out: their pixels at their own size.
"""

from __future__ import annotations

import io
import lzma
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from navit_loader import LoaderConfig, PackedLoader, build_index, pack_images
from navit_loader.errors import PlanError

HEIGHT, WIDTH, P = 48, 64, 8
CONFIG = LoaderConfig.from_dict(
    {
        "plan": {
            "sequence_length": 1024, "max_tokens": 1024, "patch_sizes": [P], "resolution": {"kind": "native"},
        },
        "render": {"threads": 1},
    }
)  # fmt: skip
Y, X = np.mgrid[:HEIGHT, :WIDTH]
RGB = np.stack([X * 4, Y * 5, 255 - X * 2 - Y * 2], -1).astype(np.uint8)
GREY = RGB[..., 0]
BITS = ((X // 3 + Y // 5) % 2 * 255).astype(np.uint8)
REVERSED = bytes(int(f"{v:08b}"[::-1], 2) for v in range(256))


def rendered(data: bytes) -> np.ndarray | None:
    """u8 `[H, W, 3]`, or None where the image is masked."""
    batch = pack_images([data], CONFIG)
    if batch.status[0, 0] != 1:
        return None
    h, w = (int(v) for v in batch.grids[0, 0])
    return batch.patches[0, : h * w].reshape(h, w, P, P, 3).transpose(0, 2, 1, 3, 4).reshape(h * P, w * P, 3)


def thrice(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, 2)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def tiff(entries: list[tuple[int, int, list[int]]], pixels: bytes, offsets: int = 273) -> bytes:
    """A little-endian TIFF of these (tag, type, values); strip or tile offsets are filled in, for equal pieces."""
    sizes = {1: "B", 3: "H", 4: "I", 8: "h", 9: "i"}
    start = 8 + 2 + 12 * len(entries) + 4
    extra = b""
    out = b"II*\0" + struct.pack("<IH", 8, len(entries))
    count = next(len(values) for name, _, values in entries if name == offsets)
    room = sum(len(v) * struct.calcsize(sizes[k]) for _, k, v in entries if len(v) * struct.calcsize(sizes[k]) > 4)
    for name, kind, values in sorted(entries):
        if name == offsets:
            values = [start + room + i * (len(pixels) // count) for i in range(count)]
        packed = struct.pack(f"<{len(values)}{sizes[kind]}", *values)
        if len(packed) > 4:
            extra += packed
            packed = struct.pack("<I", start + len(extra) - len(packed))
        out += struct.pack("<HHI", name, kind, len(values)) + packed.ljust(4, b"\0")
    return out + bytes(4) + extra + pixels


def grey_tiff(*more: tuple[int, int, list[int]], bits: int = 8, pixels: bytes = GREY.tobytes()) -> bytes:
    entries = [(256, 3, [WIDTH]), (257, 3, [HEIGHT]), (258, 3, [bits]), (259, 3, [1]), (262, 3, [1]), (273, 4, [0])]
    return tiff([*entries, (277, 3, [1]), (278, 3, [HEIGHT]), (279, 4, [len(pixels)]), *more], pixels)


def planar_tiles(picture: np.ndarray) -> bytes:
    """A plane a colour in tiles of 16 × 16, as GDAL writes them; the sides of the picture are no multiples of 16."""
    height, width = picture.shape[:2]
    padded = np.zeros((-(-height // 16) * 16, -(-width // 16) * 16, 3), np.uint8)
    padded[:height, :width] = picture
    tiles = padded.reshape(padded.shape[0] // 16, 16, padded.shape[1] // 16, 16, 3).transpose(4, 0, 2, 1, 3)
    count = tiles.shape[0] * tiles.shape[1] * tiles.shape[2]
    entries = [(256, 3, [width]), (257, 3, [height]), (258, 3, [8] * 3), (259, 3, [1]), (262, 3, [2]), (277, 3, [3])]
    entries += [(284, 3, [2]), (322, 3, [16]), (323, 3, [16]), (324, 4, [0] * count), (325, 4, [256] * count)]
    return tiff(entries, tiles.tobytes(), offsets=324)


@pytest.mark.parametrize("compression", ["raw", "packbits", "tiff_lzw", "group4", "bits"])
def test_tiff_whose_bits_run_from_the_lowest(compression: str) -> None:
    if compression == "raw":
        found, expected = rendered(grey_tiff((266, 3, [2]), pixels=GREY.tobytes().translate(REVERSED))), GREY
    else:
        bilevel = compression in ("group4", "bits")
        expected = BITS if bilevel else GREY
        image = Image.fromarray(expected)
        directory = TiffImagePlugin.ImageFileDirectory_v2()
        directory[266] = 2
        if compression == "bits":
            data = np.packbits(BITS > 0, axis=1).tobytes().translate(REVERSED)
            found = rendered(grey_tiff((266, 3, [2]), bits=1, pixels=data))
        else:
            image = image.convert("1") if bilevel else image
            found = rendered(saved(image, "TIFF", compression=compression, tiffinfo=directory))
    assert found is not None and np.array_equal(found, thrice(expected))


@pytest.mark.parametrize("kind", [1, 2])
@pytest.mark.parametrize("deep", [False, True])
def test_alpha_of_tiff_is_multiplied_once(kind: int, deep: bool) -> None:
    alpha = np.tile(np.linspace(0, 255, WIDTH).round().astype(int), (HEIGHT, 1))
    colours = (RGB * alpha[..., None] + 127) // 255 if kind == 1 else RGB.astype(int)
    samples = np.dstack([colours, alpha])
    pixels = (samples * 257).astype("<u2").tobytes() if deep else samples.astype(np.uint8).tobytes()
    entries = [(256, 3, [WIDTH]), (257, 3, [HEIGHT]), (258, 3, [16 if deep else 8] * 4), (259, 3, [1]), (262, 3, [2])]
    entries += [(273, 4, [0]), (277, 3, [4]), (278, 3, [HEIGHT]), (279, 4, [len(pixels)]), (338, 3, [kind])]
    found = rendered(tiff(entries, pixels))
    expected = (RGB.astype(int) * alpha[..., None] + 255 * (255 - alpha[..., None])) / 255
    assert found is not None and np.abs(found - expected).max() <= 3


def test_tiff_of_twelve_bits_is_scaled() -> None:
    wide = GREY.astype(int) << 4 | GREY >> 4
    pairs = wide.reshape(HEIGHT, -1, 2)
    packed = np.stack([pairs[..., 0] >> 4, (pairs[..., 0] & 15) << 4 | pairs[..., 1] >> 8, pairs[..., 1] & 255], -1)
    found = rendered(grey_tiff(bits=12, pixels=packed.astype(np.uint8).tobytes()))
    assert found is not None and np.array_equal(found, thrice(GREY))


@pytest.mark.parametrize("white", [0, 1])
@pytest.mark.parametrize("compression", [1, 34925])
def test_sixteen_bits_of_tiff_where_white_is_0(white: int, compression: int) -> None:
    # The engine reads what is not compressed, and Pillow LZMA.
    pixels = (GREY.astype("<u2") * 257).tobytes()
    data = grey_tiff(bits=16, pixels=pixels if compression == 1 else lzma.compress(pixels))
    for name, before, now in ((262, 1, white), (259, 1, compression)):
        data = data.replace(struct.pack("<HHIH", name, 3, 1, before), struct.pack("<HHIH", name, 3, 1, now))
    found = rendered(data)
    assert found is not None and np.array_equal(found, thrice(GREY if white else 255 - GREY))


def test_what_the_crate_panics_over_goes_to_pillow_and_prints_nothing() -> None:
    # One tile more and the sides are multiples; 40 × 56 is none.
    picture = RGB[:40, :56]
    found = rendered(planar_tiles(picture))
    assert found is not None and np.array_equal(found, picture)
    # The crate's reason stays where Pillow fails too, and nothing is printed of the panic.
    script = """
import sys
from navit_loader import pack_images
from tests.test_render_variants import CONFIG, RGB, planar_tiles
batch = pack_images([planar_tiles(RGB[:40, :56])[:-3000]], CONFIG)
assert batch.status[0, 0] == 2
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""


@pytest.mark.parametrize("kind", [1, 3, 4, 8, 9])
def test_orientation_of_tiff_has_any_integer_type(kind: int) -> None:
    assert rendered(grey_tiff((274, kind, [1]))) is not None
    turned = rendered(grey_tiff((274, kind, [6])))
    assert turned is not None and np.array_equal(turned, thrice(np.rot90(GREY, -1)))


@pytest.mark.parametrize("kind", ["<f4", "<f2", "<i2", "i1", "<u4"])
def test_tiff_of_samples_without_a_common_range_is_unsupported(tmp_path: Path, kind: str) -> None:
    pixels, bits = GREY.astype(kind).tobytes(), 8 * np.dtype(kind).itemsize
    (tmp_path / "images").mkdir()
    sample_format = {"u": 1, "i": 2, "f": 3}[np.dtype(kind).kind]
    (tmp_path / "images" / "a.tif").write_bytes(grey_tiff((339, 3, [sample_format]), bits=bits, pixels=pixels))
    build_index(tmp_path / "images", tmp_path / "x.arrow")
    config = LoaderConfig.from_dict(
        {"plan": {"sequence_length": 64, "max_tokens": 64}, "render": {"failure_limit": 1.0}}
    )
    with PackedLoader(tmp_path / "x.arrow", config) as loader:
        list(loader)
        assert [failure["reason"] for failure in loader.failures()] == ["unsupported"]


def bmp(header: bytes, pixels: bytes, palette: bytes = b"") -> bytes:
    start = 14 + len(header) + len(palette)
    return b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start) + header + palette + pixels


def test_bmp_of_os2_with_its_long_header() -> None:
    header = struct.pack("<IiiHHIIiiII", 64, WIDTH, HEIGHT, 1, 24, 0, 0, 2835, 2835, 0, 0) + bytes(24)
    found = rendered(bmp(header, RGB[::-1, :, ::-1].tobytes()))
    assert found is not None and np.array_equal(found, RGB)


def test_bmp_whose_alpha_is_nowhere_set_is_opaque() -> None:
    pixels = np.dstack([RGB[::-1, :, ::-1], np.zeros((HEIGHT, WIDTH), np.uint8)]).tobytes()
    masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000) + b"BGRs"
    header = struct.pack("<IiiHHIIiiII", 124, WIDTH, HEIGHT, 1, 32, 3, len(pixels), 2835, 2835, 0, 0) + masks
    found = rendered(bmp(header.ljust(124, b"\0"), pixels))
    assert found is not None and np.array_equal(found, RGB)


def test_bmp_of_run_lengths_that_skip_pixels_shows_the_first_colour() -> None:
    colours = [(200, 230, 250), (30, 60, 90)]
    lengths = np.minimum(np.arange(HEIGHT) + 1, WIDTH)
    runs = b"".join(bytes([n, 1]) + b"\0\0" for n in lengths) + b"\0\1"
    palette = b"".join(bytes([b, g, r, 0]) for r, g, b in colours)
    header = struct.pack("<IiiHHIIiiII", 40, WIDTH, HEIGHT, 1, 8, 1, len(runs), 2835, 2835, 2, 0)
    expected = np.array(colours, np.uint8)[(lengths[::-1, None] > X).astype(int)]
    found = rendered(bmp(header, runs, palette))
    assert found is not None and np.array_equal(found, expected)


@pytest.mark.parametrize("screen", [(40, 32), (0, 0), (WIDTH, HEIGHT), (WIDTH + 8, HEIGHT)])
def test_gif_frame_larger_than_its_screen(screen: tuple[int, int]) -> None:
    picture = np.where((X < 24)[..., None], np.uint8([200, 0, 0]), np.uint8([0, 0, 200]))
    data = bytearray(saved(Image.fromarray(picture).quantize(4), "GIF"))
    data[6:10] = struct.pack("<HH", *screen)
    found = rendered(bytes(data))
    assert found is not None and found.shape == (max(HEIGHT, screen[1]), max(WIDTH, screen[0]), 3)
    assert np.array_equal(found[:HEIGHT, :WIDTH], picture)


def test_a_gif_without_a_frame_is_no_image() -> None:
    data = saved(Image.fromarray(GREY), "GIF")
    with pytest.raises(PlanError):
        pack_images([data[: 13 + 3 * 2 ** ((data[10] & 7) + 1)] + b";"], CONFIG)
