"""WebP through libwebp: pixels against Pillow over qualities, sizes, crops, alpha and animations, and what is refused."""

from __future__ import annotations

import io
import struct
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from navit_loader import LoaderConfig, build_index
from navit_loader.render.engine import Engine

sys.path.insert(0, str(Path(__file__).parent))
from rendering import FILTERS, batch, difference, encode, photo, planned, reference, render_one, renderer, source

BACKGROUND = (10, 200, 30)
OPAQUE = (1.4, 20)
"""Mean and 99.9 % of the difference where U and V are resized as they are stored; Pillow interpolates them first."""
EXACT = (0.4, 6)


def clear(image: Image.Image) -> Image.Image:
    """The same with alpha of every value."""
    image = image.copy()
    image.putalpha(Image.radial_gradient("L").resize(image.size))
    return image


def chunk(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)


def animated(
    size: tuple[int, int], frames: list[tuple[Image.Image, tuple[int, int]]], alpha: bool, flags: int = 0, **how: Any
) -> bytes:
    """A file of these frames and corners, written by hand, since Pillow writes frames of its own choice."""
    three = lambda n: struct.pack("<I", n)[:3]  # noqa: E731
    body = b"WEBP" + chunk(b"VP8X", bytes([2 + 16 * alpha, 0, 0, 0]) + three(size[0] - 1) + three(size[1] - 1))
    body += chunk(b"ANIM", b"\x10\x80\xf0\xff\0\0")
    for image, (x, y) in frames:
        whole = encode(image, "WEBP", **how)
        # An extended file has the frame's chunks behind its own header.
        picture = whole[30:] if whole[12:16] == b"VP8X" else whole[12:]
        where = three(x // 2) + three(y // 2) + three(image.width - 1) + three(image.height - 1)
        body += chunk(b"ANMF", where + three(100) + bytes([flags]) + picture)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def near(data: bytes, grid: tuple[int, int], bounds: tuple[float, float], **options: Any) -> None:
    width, height = Image.open(io.BytesIO(data)).size
    got = render_one(data, (height, width), grid, background=BACKGROUND, **options)
    mean, most, _ = difference(got, reference(data, grid, background=BACKGROUND, **options))
    assert mean <= bounds[0] and most <= bounds[1], (mean, most)


@pytest.mark.parametrize("filter", ["bicubic", "bilinear", "lanczos"])
@pytest.mark.parametrize("quality", [20, 60, 80, 95])
def test_lossy_files_equal_pillow_as_jpeg_does(quality: int, filter: str) -> None:
    data = encode(photo(401, 303), "WEBP", quality=quality)
    for grid in ((15, 18), (6, 7), (3, 3), (1, 2)):
        near(data, grid, OPAQUE, filter=filter)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_pixels_are_pillows_whatever_the_file(data: st.DataObject) -> None:
    draw = data.draw
    width, height, alpha = draw(st.integers(1, 150)), draw(st.integers(1, 150)), draw(st.booleans())
    image = photo(width, height, draw(st.integers(0, 9)))
    lossless = draw(st.booleans())
    how = {"lossless": True} if lossless else {"quality": draw(st.integers(0, 100)), "method": draw(st.integers(0, 6))}
    encoded = encode(clear(image) if alpha else image, "WEBP", exact=True, **how)
    grid = (draw(st.integers(1, 7)), draw(st.integers(1, 7)))
    # Small pictures blown up show what chroma resized by itself differs in.
    near(encoded, grid, (0.7, 12) if lossless or alpha else (4, 48), filter=draw(st.sampled_from(sorted(FILTERS))))


@pytest.mark.parametrize("flags", range(4), ids=["blended", "blended, cleared", "over", "over, cleared"])
@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("how", [{"quality": 80}, {"lossless": True, "exact": True}], ids=["lossy", "lossless"])
@pytest.mark.parametrize("corner", [None, (0, 0), (20, 30), (90, 90)])
def test_an_animations_first_frame_is_pillows(
    corner: tuple[int, int] | None, how: dict[str, Any], alpha: bool, flags: int
) -> None:
    size = (150, 130)
    for image in (photo(60, 40, 1) if corner else photo(*size), clear(photo(60, 40, 1) if corner else photo(*size))):
        data = animated(size, [(image, corner or (0, 0)), (photo(*size, 3), (0, 0))], alpha, flags, **how)
        with Image.open(io.BytesIO(data)) as seen:
            assert seen.n_frames == 2  # type: ignore[attr-defined]
        lossy = not corner and not alpha and "quality" in how
        near(data, (7, 8), OPAQUE if lossy else EXACT)


def refused(files: list[bytes], size: tuple[int, int]) -> list[str | None]:
    """Why each file fails, or None."""
    made = renderer(source([size] * len(files), bytes=files))
    for n in range(len(files)):
        made.submit(batch([[planned(n, 0, size, (3, 4))]])).wait(30)
    why = {e["image"]: e["reason"] for e in made.failures()}
    made.close()
    return [why.get(n) for n in range(len(files))]


def kinds() -> dict[str, bytes]:
    image = photo(64, 48)
    two = [(image, (0, 0)), (photo(20, 20), (4, 6))]
    return {
        "lossy": encode(image, "WEBP", quality=80),
        "lossless": encode(image, "WEBP", lossless=True),
        "alpha": encode(clear(image), "WEBP", quality=80),
        "alpha, lossless": encode(clear(image), "WEBP", lossless=True),
        "animated": animated((64, 48), two, False, quality=80),
        "exif": encode(image, "WEBP", 3),
    }


@pytest.mark.parametrize("name", kinds())
def test_every_cut_is_refused(name: str) -> None:
    data = kinds()[name]
    found = refused([data, data + bytes(9), *(data[:n] for n in range(0, len(data), 7)), data[:-1]], (48, 64))
    assert found[:2] == [None, None], "whole, and with more behind it"
    assert None not in found[2:]
    assert set(found[4:]) == {"truncated"}, "but for those too short to be told"


@pytest.mark.parametrize("name", ["lossy", "lossless", "alpha"])
def test_data_that_end_early_are_refused_where_chunks_do_not_say_so(name: str) -> None:
    """The picture's last bytes are gone, and every length says that this is so."""
    data = kinds()[name]
    at = data.index(b"VP8L" if name == "lossless" else b"VP8 ")
    (length,) = struct.unpack("<I", data[at + 4 : at + 8])
    files = []
    for less in range(10, length // 2, 50):
        picture = data[at + 8 : at + 8 + length - less]
        body = data[8:at] + chunk(data[at : at + 4], picture)
        files.append(b"RIFF" + struct.pack("<I", len(body)) + body)
    assert len(files) > 5
    assert None not in refused(files, (48, 64))


@pytest.mark.parametrize("kind", [b"VP8 ", b"VP8L"])
def test_a_canvas_of_another_size_than_its_picture_is_refused(kind: bytes) -> None:
    picture = encode(photo(64, 48), "WEBP", lossless=kind == b"VP8L")[12:]
    head = chunk(b"VP8X", bytes(4) + struct.pack("<I", 63)[:3] + struct.pack("<I", 79)[:3])
    body = b"WEBP" + head + picture
    assert refused([b"RIFF" + struct.pack("<I", len(body)) + body], (80, 64)) == ["corrupt"]


def test_the_decoder_is_named_where_an_index_holds_webp(tmp_path: Path) -> None:
    """Its pixels are other ones than those of the decoder before; an index without such files keeps its name."""
    names = {}
    for kind in ("PNG", "WEBP"):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / f"a.{kind.lower()}").write_bytes(encode(photo(64, 48), kind))
        build_index(tmp_path / kind, tmp_path / f"{kind}.arrow")
        engine = Engine(
            LoaderConfig.from_dict({"plan": {"max_tokens": 64, "sequence_length": 64}}), tmp_path / f"{kind}.arrow"
        )
        names[kind] = engine.render_id.split(".")[1]
        engine.close()
    assert names == {"PNG": "rust", "WEBP": "rust-libwebp"}
