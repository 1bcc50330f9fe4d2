"""AVIF through dav1d: pixels against Pillow over subsamplings, ranges, matrices, depths, sizes and alpha; sizes and
orientation as Pillow has them; what is not plain goes to a helper; damage is refused where Pillow refuses it."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from navit_loader import LoaderConfig, _packer, build_index, foreign
from navit_loader.config import RenderConfig
from navit_loader.render.engine import Engine

sys.path.insert(0, str(Path(__file__).parent))
from rendering import FILTERS, LIMITS, batch, difference, encode, photo, planned, reference, render_one, source

BACKGROUND = (10, 200, 30)
OPAQUE = (1.5, 20)
"""Mean and 99.9 % of the difference where U and V are resized as they are stored; Pillow interpolates them first."""
FULL = (0.8, 14)
"""The same where U and V have every pixel: conversion after the resize, and to the last bit."""
VIDEO = (1.2, 16)
"""The same where 16 is black: Pillow rounds and clips more coarsely then."""
EXACT = (0.4, 6)
NOBODY = _packer.Helpers([])
FOLDER = Path(__file__).parents[1] / "packer_rs/tests/data"


def clear(image: Image.Image) -> Image.Image:
    """The same with alpha of every value."""
    image = image.copy()
    image.putalpha(Image.radial_gradient("L").resize(image.size))
    return image


def near(data: bytes, grid: tuple[int, int], bounds: tuple[float, float], **options: Any) -> None:
    """Without a helper, so that nobody else can have made the pixels."""
    size = _packer.probe_bytes(data, NOBODY)
    orientation = Image.open(io.BytesIO(data)).getexif().get(0x0112, 1)
    got = render_one(data, size, grid, background=BACKGROUND, orientation=orientation, **options)
    mean, most, _ = difference(got, reference(data, grid, background=BACKGROUND, **options))
    assert mean <= bounds[0] and most <= bounds[1], (mean, most)


@pytest.mark.parametrize("filter", ["bicubic", "bilinear", "lanczos"])
@pytest.mark.parametrize("range", ["full", "limited"])
@pytest.mark.parametrize("subsampling", ["4:2:0", "4:2:2", "4:4:4"])
def test_pixels_equal_pillows_as_those_of_jpeg_do(subsampling: str, range: str, filter: str) -> None:
    for quality in (20, 60, 95):
        data = encode(photo(401, 303), "AVIF", quality=quality, subsampling=subsampling, range=range)
        for grid in ((15, 18), (6, 7), (1, 2)):
            near(data, grid, FULL if subsampling == "4:4:4" else OPAQUE, filter=filter)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_pixels_are_pillows_whatever_the_file(data: st.DataObject) -> None:
    draw = data.draw
    width, height = draw(st.integers(1, 150)), draw(st.integers(1, 150))
    image = photo(width, height, draw(st.integers(0, 9)))
    image = draw(st.sampled_from([lambda i: i, clear, lambda i: i.convert("L")]))(image)
    how = {"quality": draw(st.integers(0, 100)), "range": draw(st.sampled_from(["full", "limited"]))}
    grid = (draw(st.integers(1, 7)), draw(st.integers(1, 7)))
    if image.mode != "L":
        how["subsampling"] = draw(st.sampled_from(["4:2:0", "4:2:2", "4:4:4"]))
    # Small pictures blown up show what chroma resized by itself differs in.
    bounds = (4, 48) if image.mode != "L" else (0.7, 12)
    near(encode(image, "AVIF", **how), grid, bounds, filter=draw(st.sampled_from(sorted(FILTERS))))


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("matrix", range(15))
def test_every_matrix_is_pillows(matrix: int, full: bool) -> None:
    """One file whose box says otherwise; no colour in it is beyond what a matrix allows. Of the rest a helper makes pixels."""
    image = Image.blend(photo(150, 130), Image.new("RGB", (150, 130), (128, 128, 128)), 0.6)
    data = encode(image, "AVIF", quality=90, subsampling="4:4:4")
    at = data.index(b"nclx") + 8
    data = data[:at] + bytes([0, matrix, 128 * full]) + data[at + 3 :]
    if (matrix in (1, 2, 5, 6, 9)) or (matrix, full) == (0, True):
        near(data, (7, 8), FULL if full else VIDEO)
    else:
        assert refused([data], (130, 150)) == ["unsupported"]
        try:
            want = reference(data, (7, 8))
        except (OSError, RuntimeError, ValueError):
            assert refused([data], (130, 150), foreign.helpers()) == ["corrupt"]
        else:
            assert difference(helped(data, (130, 150), (7, 8)), want)[0] <= 0.6


@pytest.mark.parametrize("name", sorted(path.name for path in FOLDER.glob("*.avif")))
def test_ten_and_twelve_bits_are_narrowed_as_pillow_does(name: str) -> None:
    data = (FOLDER / name).read_bytes()
    bounds = EXACT if "grey" in name or name == "lossless.avif" else (2, 24)
    for grid in ((3, 4), (2, 2)):
        near(data, grid, bounds)


def test_the_background_is_exact_where_nothing_covers_it() -> None:
    image = photo(64, 48)
    image.putalpha(0)
    got = render_one(encode(image, "AVIF"), (48, 64), (3, 4), background=BACKGROUND)
    assert (got == BACKGROUND).all()


XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="%d"/></x:xmpmeta>'


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("other", ["", "exif", "xmp", "exif, xmp"])
def test_sizes_and_orientation_are_pillows(orientation: int, other: str) -> None:
    """Pillow writes orientation as boxes, which count before EXIF and XMP of other words."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    if "exif" in other:
        exif[0x010F] = "maker"
    how: dict[str, Any] = {"exif": exif} | ({"xmp": XMP % 6} if "xmp" in other else {})
    data = encode(photo(90, 70), "AVIF", quality=90, **how)
    image = Image.open(io.BytesIO(data))
    turned = image.getexif().get(0x0112, 1) >= 5
    want = image.size if turned else image.size[::-1]
    assert _packer.probe_bytes(data, foreign.helpers()) == want
    # EXIF that says nothing of orientation is left to a helper.
    assert _packer.probe_bytes(data, NOBODY) == (None if "exif" in other else want)


def helped(data: bytes, size: tuple[int, int], grid: tuple[int, int]) -> np.ndarray:
    """The same through a renderer that has helpers."""
    plan = batch([[planned(0, 0, size, grid)]])
    got = _packer.render_images([data], plan, LIMITS, RenderConfig().to_json(), foreign.helpers())
    assert got["status"][0, 0] == 1
    h, w = grid
    patches = got["patches"][0, : h * w].reshape(h, w, 16, 16, 3)
    return np.asarray(patches.transpose(0, 2, 1, 3, 4).reshape(h * 16, w * 16, 3))


def refused(files: list[bytes], size: tuple[int, int], helpers: Any = NOBODY) -> list[str | None]:
    """Why each file fails, or None."""
    config = RenderConfig(threads=2, failure_limit=1.0).to_json()
    made = _packer.Renderer(config, LIMITS, [source([size] * len(files), bytes=files)], helpers)
    waiting = [made.submit(batch([[planned(n, 0, size, (3, 4))]])) for n in range(len(files))]
    for one in waiting:
        one.wait(60)
    why = {e["image"]: e["reason"] for e in made.failures()}
    made.close()
    return [why.get(n) for n in range(len(files))]


def test_what_is_not_plain_is_a_helpers() -> None:
    image = photo(64, 48)
    files = {
        "animated": encode(image, "AVIF", save_all=True, append_images=[image.rotate(180)]),
        "premultiplied": encode(clear(image), "AVIF", alpha_premultiplied=True),
        "a box unknown": encode(image, "AVIF").replace(b"pixi", b"PIXI"),
        "a crop": encode(image, "AVIF").replace(b"pixi", b"clap"),
        "two frames in one item": frames(encode(image, "AVIF")),
    }
    for name, data in files.items():
        assert refused([data], (48, 64)) == ["unsupported"], name
        try:
            image = Image.open(io.BytesIO(data))
            image.load()
        except (OSError, RuntimeError, ValueError):
            assert refused([data], (48, 64), foreign.helpers()) != [None], name
        else:
            assert difference(helped(data, (48, 64), (3, 4)), reference(data, (3, 4)))[0] <= 0.6, name


def frames(data: bytes) -> bytes:
    """The same with its frame twice."""
    at = data.index(b"mdat") + 4
    obus = data[at:]
    length = len(obus).to_bytes(4, "big")
    # The item's length stands in the box that places it, and the box of the data has its own.
    place = data.index(length, data.index(b"iloc"))
    twice = data[:place] + (2 * len(obus)).to_bytes(4, "big") + data[place + 4 :]
    return twice[: at - 8] + (2 * len(obus) + 8).to_bytes(4, "big") + b"mdat" + obus + obus


@pytest.mark.parametrize("name", ["plain", "alpha", "grey", "10_bits"])
def test_every_cut_is_refused(name: str) -> None:
    data = (FOLDER / f"{name}.avif").read_bytes()
    found = refused([data, data + bytes(9), *(data[:n] for n in range(0, len(data), 7)), data[:-1]], (47, 61))
    assert found[0] is None
    assert None not in found[2:]


def test_another_size_than_indexed_is_refused() -> None:
    assert refused([(FOLDER / "plain.avif").read_bytes()], (48, 61)) == ["changed"]


def test_a_frame_larger_than_its_container_says_is_refused_before_it_is_decoded() -> None:
    data = encode(photo(1200, 900), "AVIF")
    at = data.index(b"ispe") + 8
    small = data[:at] + (64).to_bytes(4, "big") + (48).to_bytes(4, "big") + data[at + 8 :]
    assert refused([small], (48, 64)) == ["corrupt"]


def test_damage_is_never_accepted_where_pillow_refuses() -> None:
    """Sizes and pixels alike: what a plain file's container says is believed only where Pillow believes it."""
    helpers = foreign.helpers()
    rng = np.random.default_rng(5)
    accepted = 0
    for path in sorted(FOLDER.glob("*.avif")):
        data = path.read_bytes()
        size = Image.open(io.BytesIO(data)).size[::-1]
        files = list(damaged(data, 40, rng))
        verdicts = refused(files, size, helpers)
        for file, verdict in zip(files, verdicts, strict=True):
            try:
                image = Image.open(io.BytesIO(file), formats=["AVIF"])
                found: Any = image.size[::-1]
                if image.getexif().get(0x0112, 1) >= 5:
                    found = image.size
                image.load()
                whole = True
            except Exception:
                whole = False
            if whole:
                assert _packer.probe_bytes(file, helpers) == found
            if verdict is None:
                assert whole, path
                accepted += 1
    assert accepted > 100  # of 440


def damaged(data: bytes, count: int, rng: np.random.Generator) -> Any:
    """Copies with a few bits flipped, bytes overwritten or removed; half of it where boxes are."""
    boxes = data.index(b"mdat")
    for n in range(count):
        found = bytearray(data)
        for _ in range(1 + int(rng.integers(3))):
            at = int(rng.integers(boxes if n % 2 else len(data)))
            if n % 3:
                found[at] ^= 1 << int(rng.integers(8))
            else:
                found[at] = int(rng.integers(256))
        if n % 11 == 0:
            del found[int(rng.integers(len(found))) :][:3]
        yield bytes(found)


def test_the_decoder_is_named_where_an_index_holds_avif(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/a.avif").write_bytes(encode(photo(64, 48), "AVIF"))
    build_index(tmp_path / "d", tmp_path / "a.arrow")
    engine = Engine(LoaderConfig.from_dict({"plan": {"max_tokens": 64, "sequence_length": 64}}), tmp_path / "a.arrow")
    assert engine.render_id.split(".")[1].startswith("rust-dav1d-pillow-")
    engine.close()
