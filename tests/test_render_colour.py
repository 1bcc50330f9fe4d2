"""Colour of unusual files: samplings that Pillow reads but does not write, YCCK, and embedded profiles."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

sys.path.insert(0, str(Path(__file__).parent))
from rendering import batch, difference, encode, photo, planned, reference, render_one, renderer, source

GRIDS = [(15, 18), (6, 7), (3, 3), (1, 2)]


def check(got: np.ndarray, want: np.ndarray, mean: float, nearly_all: float) -> None:
    found = difference(got, want)
    assert found[0] <= mean, found
    assert found[1] <= nearly_all, found


def segments(data: bytes) -> tuple[dict[int, bytes], bytes]:
    """The segments of a baseline JPEG, those of one marker joined, and what follows the start of its scan."""
    found: dict[int, bytes] = {}
    at = 2
    while True:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == 0xDA:
            return found, data[at + 2 + length : -2]
        found[marker] = found.get(marker, b"") + data[at : at + 2 + length]
        at += 2 + length


def subsampled(image: Image.Image, across: int, down: int) -> bytes:
    """A JPEG with chroma at 1/across × 1/down: Y, Cb and Cr as grey files, put together as scans of their own."""
    small = (-(-image.width // across), -(-image.height // down))
    planes = [
        p if n == 0 else p.resize(small, Image.Resampling.BOX) for n, p in enumerate(image.convert("YCbCr").split())
    ]
    parts = [segments(encode(plane, "JPEG", quality=90)) for plane in planes]
    head = parts[0][0]
    size = image.height.to_bytes(2, "big") + image.width.to_bytes(2, "big")
    frame = b"\xff\xc0\0\x11\x08" + size + bytes([3, 1, across << 4 | down, 0, 2, 0x11, 0, 3, 0x11, 0])
    scans = b"".join(b"\xff\xda\0\x08\x01" + bytes([n, 0, 0, 63, 0]) + p[1] for n, p in enumerate(parts, 1))
    return b"\xff\xd8" + head[0xE0] + head[0xDB] + frame + head[0xC4] + scans + b"\xff\xd9"


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("size", [(303, 401), (304, 400)])
@pytest.mark.parametrize(
    ("across", "down", "mean", "nearly_all"), [(1, 1, 0.8, 10), (1, 2, 1.1, 16), (4, 1, 1.4, 20), (1, 4, 1.4, 20)]
)
def test_any_sampling_equals_pillow(
    across: int, down: int, mean: float, nearly_all: float, size: tuple[int, int], grid: tuple[int, int]
) -> None:
    """4:4:4 (to test the maker of the files), 4:4:0, 4:1:1 and 4:4:1."""
    image = photo(size[1], size[0])
    data = subsampled(image, across, down)
    decoded = Image.open(io.BytesIO(data))
    assert decoded.layer[0][1:3] == (across, down)  # type: ignore[attr-defined]
    assert difference(np.asarray(decoded), np.asarray(image))[0] < 8, "it is the photograph"
    check(render_one(data, size, grid, dct_scaling=False), reference(data, grid), mean, nearly_all)
    check(render_one(data, size, grid), reference(data, grid), 4.0, 40)


def ycck(image: Image.Image) -> bytes:
    """Y, Cb, Cr and K of the inks, saved as if they were inks; then the Adobe marker says what they are."""
    inks = np.asarray(image.convert("CMYK")).copy()
    inks[..., 3] = np.asarray(image.convert("L")) // 4
    # YCCK decodes to 255 less what YCbCr gives, and Adobe's files hold inks inverted: so these are Y, Cb, Cr of the inks
    # themselves. Pillow inverts what it saves, which must not happen to them.
    planes = [plane.point(lambda v: 255 - v) for plane in Image.fromarray(inks[..., :3]).convert("YCbCr").split()]
    data = bytearray(encode(Image.merge("CMYK", [*planes, Image.fromarray(inks[..., 3])]), "JPEG", quality=90))
    at = data.index(b"Adobe")
    assert data[at + 11] == 0
    data[at + 11] = 2
    return bytes(data)


@pytest.mark.parametrize("grid", GRIDS)
def test_ycck_equals_pillow(grid: tuple[int, int]) -> None:
    image = photo(401, 303, 1)
    data = ycck(image)
    decoded = Image.open(io.BytesIO(data))
    assert decoded.mode == "CMYK"
    dark = np.asarray(image) * (1 - np.asarray(image.convert("L"))[..., None] // 4 / 255)
    assert difference(np.asarray(decoded.convert("RGB")), dark)[0] < 8, "it is the photograph, under black ink"
    check(render_one(data, (303, 401), grid, dct_scaling=False), reference(data, grid), 0.3, 2)
    check(render_one(data, (303, 401), grid), reference(data, grid), 4.0, 40)


def profile(description: str, utf16: bool = False) -> bytes:
    """The bytes of Pillow's own sRGB profile under another description, as version 2 (ASCII) or 4 (UTF-16)."""
    if utf16:
        text = description.encode("utf-16-be")
        body = b"mluc\0\0\0\0\0\0\0\x01\0\0\0\x0cenUS" + len(text).to_bytes(4, "big") + b"\0\0\0\x1c" + text
    else:
        text = description.encode() + b"\0"
        body = b"desc\0\0\0\0" + len(text).to_bytes(4, "big") + text + bytes(78)
    table = (1).to_bytes(4, "big") + b"desc" + (144).to_bytes(4, "big") + len(body).to_bytes(4, "big")
    head = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()[:128])
    head[:4] = (144 + len(body)).to_bytes(4, "big")
    return bytes(head) + table + body


def counted(*files: bytes) -> dict[str, Any]:
    image = [planned(n, 4 * n, (48, 64), (2, 2)) for n in range(len(files))]
    made = renderer(source([(48, 64)] * len(files), bytes=list(files)))
    got = made.submit(batch([image])).wait(30)
    assert got["status"][0, : len(files)].tolist() == [1] * len(files), made.failures()
    stats: dict[str, Any] = made.stats()
    made.close()
    return stats | {"patches": got["patches"][0, : 4 * len(files)].reshape(len(files), -1)}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_profiles_other_than_srgb_are_counted_and_not_applied(kind: str) -> None:
    image = photo(64, 48)
    lossless = {"lossless": True} if kind == "WEBP" else {}
    srgb = [
        b"",
        profile("sRGB IEC61966-2.1"),
        profile("sRGB built-in", utf16=True),
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
    ]
    others = [profile("Display P3"), profile("Adobe RGB (1998)", utf16=True), b"no profile at all"]
    for profiles, expected in ((srgb, 0), (others, len(others)), (srgb + others, len(others))):
        files = [encode(image, kind, **(lossless | ({"icc_profile": p} if p else {}))) for p in profiles]
        found = counted(*files)
        assert found["profiles"] == expected
        assert (found["patches"] == found["patches"][0]).all(), "the same pixels with and without"


def test_a_profile_in_several_segments_is_counted_once() -> None:
    """The description stands in the first part; a JPEG segment ends at 64 KiB."""
    for name, expected in (("sRGB", 0), ("ProPhoto RGB", 1)):
        data = encode(photo(64, 48), "JPEG", icc_profile=profile(name) + bytes(100_000))
        assert data.count(b"ICC_PROFILE\0") == 2
        assert counted(data)["profiles"] == expected


def test_an_image_that_fails_is_not_counted() -> None:
    data = encode(photo(64, 48), "JPEG", icc_profile=profile("Display P3"))
    made = renderer(source([(48, 64)] * 2, bytes=[data, data[:-100]]))
    made.submit(batch([[planned(0, 0, (48, 64), (2, 2)), planned(1, 4, (48, 64), (2, 2))]])).wait(30)
    stats = made.stats()
    assert (stats["images"], stats["failed"], stats["profiles"]) == (1, 1, 1)
    made.close()
