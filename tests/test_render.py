"""Rendering: pixels against Pillow, fields against a plain reading of the contract."""

from __future__ import annotations

import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from navit_loader import _packer
from navit_loader.config import RenderConfig
from navit_loader.errors import RenderError

sys.path.insert(0, str(Path(__file__).parent))
from rendering import (
    FILTERS,
    LIMITS,
    batch,
    difference,
    encode,
    photo,
    planned,
    reference,
    render_one,
    renderer,
    source,
    unpatched,
)

GRIDS = [(15, 18), (6, 7), (3, 3), (1, 2)]


def check(got: np.ndarray, want: np.ndarray, mean: float, nearly_all: float) -> None:
    found = difference(got, want)
    assert found[0] <= mean, found
    assert found[1] <= nearly_all, found


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize(
    ("sampling", "mean", "nearly_all"), [("4:4:4", 0.8, 10), ("4:2:2", 1.1, 16), ("4:2:0", 1.4, 20)]
)
def test_jpeg_at_full_size_equals_pillow(
    sampling: str, mean: float, nearly_all: float, progressive: bool, grid: tuple[int, int]
) -> None:
    """Chroma is resized as it is stored, Pillow interpolates it first; Y is the same to a rounding step."""
    data = encode(photo(401, 303), "JPEG", quality=90, subsampling=sampling, progressive=progressive)
    check(render_one(data, (303, 401), grid, dct_scaling=False), reference(data, grid), mean, nearly_all)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("sampling", ["4:4:4", "4:2:2", "4:2:0"])
def test_jpeg_at_dct_scale_stays_near_pillow(sampling: str, grid: tuple[int, int]) -> None:
    data = encode(photo(517, 390, 3), "JPEG", quality=90, subsampling=sampling)
    check(render_one(data, (390, 517), grid), reference(data, grid), 4.0, 40)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_grey_and_cmyk_jpeg_equal_pillow(mode: str, grid: tuple[int, int]) -> None:
    data = encode(photo(401, 303, 1).convert(mode), "JPEG", quality=90)
    check(render_one(data, (303, 401), grid, dct_scaling=False), reference(data, grid), 0.3, 2)
    check(render_one(data, (303, 401), grid), reference(data, grid), 4.0, 40)


@pytest.mark.parametrize("restart", [1, 7])
def test_restart_markers_change_nothing(restart: int) -> None:
    image = photo(200, 120)
    plain, marked = encode(image, "JPEG"), encode(image, "JPEG", restart_marker_blocks=restart)
    assert marked.count(b"\xff\xd1") > plain.count(b"\xff\xd1")
    assert np.array_equal(render_one(plain, (120, 200), (4, 6)), render_one(marked, (120, 200), (4, 6)))


@pytest.mark.parametrize("marker", [b"\xff\xdb", b"\xff\xc4"])
def test_no_tables_are_taken_over_from_the_file_before(marker: bytes) -> None:
    """Without its own quantisation tables a file is broken; without Huffman tables it has libjpeg-turbo's standard ones."""
    bare = encode(photo(64, 48), "JPEG")
    before = encode(photo(64, 48, 1), "JPEG", quality=20, optimize=True)
    while (at := bare.find(marker)) >= 0:
        bare = bare[:at] + bare[at + 2 + int.from_bytes(bare[at + 2 : at + 4], "big") :]
    plan = batch([[planned(0, 0, (48, 64), (3, 4)), planned(1, 12, (48, 64), (3, 4))]])
    found = []
    for first in (before, bare):
        made = renderer(source([(48, 64)] * 2, bytes=[first, bare]), threads=1, fetch_threads=0, failure_limit=1.0)
        got = made.submit(plan).wait(30)
        made.close()
        found.append((got["status"][0, 1], got["patches"][0, 12:].tobytes()))
    assert found[0] == found[1]
    assert found[0][0] == (2 if marker == b"\xff\xdb" else 1)


def _with_alpha(mode: str) -> Image.Image:
    image = photo(150, 130, 2).convert(mode)
    image.putalpha(Image.radial_gradient("L").resize(image.size))
    return image


LOSSLESS = {
    "png rgb": lambda: encode(photo(150, 130), "PNG"),
    "png grey": lambda: encode(photo(150, 130).convert("L"), "PNG"),
    "png palette": lambda: encode(photo(150, 130).quantize(60), "PNG"),
    "png palette, one transparent": lambda: encode(photo(150, 130).quantize(60), "PNG", transparency=3),
    "png grey, alpha": lambda: encode(_with_alpha("L"), "PNG"),
    "png alpha": lambda: encode(_with_alpha("RGB"), "PNG"),
    "webp, lossy with alpha": lambda: encode(_with_alpha("RGB"), "WEBP", quality=80, exact=True),
    "webp lossless": lambda: encode(photo(150, 130), "WEBP", lossless=True),
    "webp alpha": lambda: encode(_with_alpha("RGB"), "WEBP", lossless=True, exact=True),
    "gif": lambda: encode(photo(150, 130).quantize(60), "GIF"),
    "bmp": lambda: encode(photo(150, 130), "BMP"),
    "tiff": lambda: encode(photo(150, 130), "TIFF"),
    "tiff lzw": lambda: encode(photo(150, 130), "TIFF", compression="tiff_lzw"),
    "tiff deflate": lambda: encode(photo(150, 130), "TIFF", compression="tiff_adobe_deflate"),
    "tiff grey": lambda: encode(photo(150, 130).convert("L"), "TIFF"),
}


@pytest.mark.parametrize("name", LOSSLESS)
def test_other_formats_equal_pillow(name: str) -> None:
    data = LOSSLESS[name]()
    background = (10, 200, 30)
    for grid in ((7, 8), (3, 3)):
        got = render_one(data, (130, 150), grid, background=background)
        check(got, reference(data, grid, background=background), 0.4, 6)


@pytest.mark.parametrize("colours", [1, 3])
def test_of_sixteen_bits_the_high_byte_counts(colours: int) -> None:
    rng = np.random.default_rng(0)
    deep = rng.integers(0, 65536, (48, 64, colours), dtype=np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in deep)
    header = struct.pack(">IIBBBBB", 64, 48, 16, 0 if colours == 1 else 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(rows)) + _chunk(b"IEND", b"")
    got = render_one(data, (48, 64), (3, 4))
    assert np.array_equal(got, np.broadcast_to(deep >> 8, (48, 64, 3)))


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def test_interlaced_png_equals_the_same_without() -> None:
    """Adam7, written by hand: Pillow reads it but does not write it."""
    pixels = np.asarray(photo(45, 37))
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    rows = b"".join(b"\0" + row.tobytes() for y, x, dy, dx in passes for row in pixels[y::dy, x::dx])
    header = struct.pack(">IIBBBBB", 45, 37, 8, 2, 0, 0, 1)
    data = b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(rows)) + _chunk(b"IEND", b"")
    plain = encode(Image.fromarray(pixels), "PNG")
    assert np.array_equal(render_one(data, (37, 45), (2, 2)), render_one(plain, (37, 45), (2, 2)))


@pytest.mark.parametrize("filter", FILTERS)
@pytest.mark.parametrize("size", [(427, 640), (61, 97), (1, 300), (300, 1), (1, 1), (16, 16)])
def test_filters_equal_pillow_up_and_down(filter: str, size: tuple[int, int]) -> None:
    data = encode(photo(size[1], size[0]), "PNG")
    for grid, p in (((12, 14), 16), ((2, 1), 14), ((5, 3), 7)):
        check(render_one(data, size, grid, p, filter=filter), reference(data, grid, p, filter=filter), 0.5, 3)


def _metadata_last(kind: str, orientation: int) -> bytes:
    """A file whose orientation stands as late as its format allows."""
    image = photo(90, 70)
    if kind == "TIFF":
        return encode(image, "TIFF", tiffinfo={0x0112: orientation})
    data = encode(image, kind, orientation, **({"lossless": True} if kind == "WEBP" else {}))
    if kind == "PNG" and orientation != 1:
        at = data.index(b"eXIf") - 4
        end = at + 12 + struct.unpack(">I", data[at : at + 4])[0]
        data = data[:at] + data[end:-12] + data[at:end] + data[-12:]
        assert data.index(b"eXIf") > data.index(b"IDAT")
    return data


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_orientation_is_pillows_wherever_it_stands(kind: str, orientation: int, flip: bool) -> None:
    data = _metadata_last(kind, orientation)
    size = (70, 90) if orientation < 5 else (90, 70)
    crop = (5, 10, 51, 42)
    plan = batch([[planned(0, 0, size, (3, 2), crop=crop, flip=flip)]])
    got = _packer.render_images([data], plan, LIMITS, RenderConfig(dct_scaling=False).to_json())
    assert tuple(got["sizes"][0, 0]) == size
    want = reference(data, (3, 2), crop=crop, flip=flip)
    check(unpatched(got["patches"][0, :6], (3, 2), 16), want, 1.6, 24)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_crop_flip_and_orientation_equal_pillow(data: st.DataObject) -> None:
    draw = data.draw
    orientation, flip = draw(st.integers(1, 8)), draw(st.booleans())
    width, height = draw(st.integers(1, 80)), draw(st.integers(1, 80))
    encoded = encode(photo(width, height, 5), "PNG", orientation)
    size = (height, width) if orientation < 5 else (width, height)
    ch, cw = draw(st.integers(1, size[0])), draw(st.integers(1, size[1]))
    crop = (draw(st.integers(0, size[0] - ch)), draw(st.integers(0, size[1] - cw)), ch, cw)
    p, grid = draw(st.sampled_from([1, 3, 8, 14, 16])), (draw(st.integers(1, 6)), draw(st.integers(1, 6)))
    got = render_one(encoded, size, grid, p, orientation, crop=crop, flip=flip)
    check(got, reference(encoded, grid, p, crop=crop, flip=flip), 0.7, 12)


def test_dropped_tokens_leave_the_others_exactly_as_they_were() -> None:
    data = encode(photo(300, 200), "JPEG")
    grid = (8, 12)
    whole = render_one(data, (200, 300), grid).reshape(8, 16, 12, 16, 3).transpose(0, 2, 1, 3, 4)
    made = renderer(source([(200, 300)], bytes=[data]))
    for kept in (1, 2, 31, 95, 96):
        got = made.submit(batch([[planned(0, 0, (200, 300), grid, kept=kept)]])).wait(30)
        places = got["positions"][0, :kept].astype(int)
        order = places[:, 0] * 12 + places[:, 1]
        assert (np.diff(order) > 0).all()
        assert order.min() >= 0
        assert order.max() < 96
        for patch, (y, x) in zip(got["patches"][0, :kept], places, strict=True):
            assert np.array_equal(patch, whole[y, x].reshape(-1))
    made.close()


@st.composite
def sequences(draw: st.DrawFn) -> tuple[dict[str, int], list[list[dict]], int]:
    """Limits, sequences that respect them, and B. Rows 0 and 1 are good files, row 2 is not an image."""
    length, prefix = draw(st.integers(8, 60)), draw(st.integers(0, 3))
    most = draw(st.integers(prefix + 1, length))
    limits = {"sequence_length": length, "max_tokens": most, "prefix_tokens": prefix, "max_images": 5}
    found = []
    for _ in range(draw(st.integers(0, 3))):
        sequence, end = [], 0
        for _ in range(draw(st.integers(0, 5))):
            grid = (draw(st.integers(1, 4)), draw(st.integers(1, 4)))
            kept = draw(st.integers(1, grid[0] * grid[1]))
            if prefix + kept > most or end + prefix + kept > length:
                break
            row = draw(st.integers(0, 2))
            sequence.append(planned(row, end, (20, 30), grid, kept=kept, flip=draw(st.booleans())))
            end += prefix + kept
        found.append(sequence)
    return limits, found, len(found) + draw(st.integers(1, 2))


GOOD = [encode(photo(30, 20, n), kind) for n, kind in enumerate(("JPEG", "PNG"))]


@settings(max_examples=80, deadline=None)
@given(sequences())
def test_every_field_is_what_the_contract_says(case: tuple[dict[str, int], list[list[dict]], int]) -> None:
    limits, rows, b = case
    length, most, prefix, e = (limits[k] for k in ("sequence_length", "max_tokens", "prefix_tokens", "max_images"))
    columns = source([(20, 30)] * 3, bytes=[*GOOD, b"no image"], labels=[np.arange(6)], label_width=2)
    made = renderer(columns, limits | {"label_width": 2}, threads=1)
    got = made.submit(batch(rows, 4, b, epoch=3)).wait(30)
    made.close()
    cuts = [0]
    for s in range(b):
        sequence = rows[s] if s < len(rows) else []
        end = 0
        for i, image in enumerate(sequence):
            n, row = image["kept"], image["row"]
            slots = slice(end, end + prefix + n)
            failed = row == 2
            assert (got["segment_ids"][s, slots] == (-1 if failed else i)).all()
            assert [tuple(v) for v in got["positions"][s, end : end + prefix]] == [(-1, j) for j in range(prefix)]
            places = got["positions"][s, end + prefix : end + prefix + n]
            assert (places >= 0).all()
            assert (places < np.array(image["grid"])).all()
            assert not got["patches"][s, end : end + prefix].any()
            assert got["patches"][s, end + prefix : end + prefix + n].any() != failed
            assert tuple(got["grids"][s, i]) == image["grid"]
            assert got["status"][s, i] == (2 if failed else 1)
            assert tuple(got["labels"][s, i]) == (2 * row, 2 * row + 1)
            assert (got["image_ids"][s, i], got["source_ids"][s, i], got["flips"][s, i]) == (row, 0, image["flip"])
            assert tuple(got["sizes"][s, i]) == (20, 30)
            assert tuple(got["crops"][s, i]) == image["crop"]
            end += prefix + n
            cuts.append(s * length + end)
        for name, empty in (("status", 0), ("labels", -1), ("image_ids", -1), ("source_ids", -1), ("grids", 0)):
            assert (got[name][s, len(sequence) :] == empty).all()
        assert (got["segment_ids"][s, end:] == -1).all()
        assert (got["positions"][s, end:] == -1).all()
        assert not got["patches"][s, end:].any()
        while end < length:
            end = min(end + most, length)
            cuts.append(s * length + end)
    want = np.full(b * (e + -(-length // most)) + 1, b * length)
    want[: len(cuts)] = cuts
    assert np.array_equal(got["cu_seqlens"], want)
    assert (got["epoch"], got["sequence"], got["patch_size"], got["max_seqlen"]) == (3, 0, 4, most)


def test_the_teacher_sees_the_same_crop_with_its_own_patches() -> None:
    data = encode(photo(300, 200), "JPEG")
    view = {"sequence_length": 64, "max_tokens": 40, "prefix_tokens": 1, "patch_size": 8}
    made = renderer(source([(200, 300)], bytes=[data]), {"teacher": view, "prefix_tokens": 2}, dct_scaling=False)
    image = planned(0, 0, (200, 300), (4, 5), crop=(10, 20, 150, 200), flip=True, kept=7, teacher_grid=(5, 6))
    got = made.submit(batch([[image]])).wait(30)
    made.close()
    teacher = got["teacher"]
    assert (teacher["patch_size"], teacher["max_seqlen"], teacher["prefix_tokens"]) == (8, 40, 1)
    assert (teacher["segment_ids"][0, :31] == 0).all()
    assert not teacher["patches"][0, 0].any()
    alone = render_one(data, (200, 300), (5, 6), 8, crop=(10, 20, 150, 200), flip=True, dct_scaling=False)
    assert np.array_equal(unpatched(teacher["patches"][0, 1:31], (5, 6), 8), alone)


def test_captions_have_their_segments() -> None:
    offsets, ids = np.array([0, 4, 10], np.int64), np.array([5, 6, 7, 8, 9, 1, 2, 3, 4, 99], np.int32)
    columns = source([(20, 30)] * 2, bytes=GOOD, caption_ids=[(offsets, ids)], text_end=99)
    made = renderer(columns, {"text_tokens": 10, "max_text_tokens": 5, "max_images": 3})
    rows = [[planned(0, 0, (20, 30), (1, 1)), planned(1, 1, (20, 30), (1, 1), text_offset=4)], []]
    got = made.submit(batch(rows)).wait(30)
    assert got["text"].shape == (2, 10)
    # Whole, then cut to five with its end mark.
    assert got["text"][0].tolist() == [5, 6, 7, 8, 9, 1, 2, 3, 99, -1]
    assert (got["text"][1] == -1).all()
    assert got["text_cu_seqlens"].tolist() == [0, 4, 9, 10, 20, 20, 20, 20, 20]
    for offset in (3, 5, 2**32 - 1):
        with pytest.raises(RenderError, match="caption of 5 tokens"):
            made.submit(batch([[rows[0][0], rows[0][1] | {"text_offset": offset}]]))
    made.close()


def test_arrays_in_memory_render_like_a_lossless_file() -> None:
    image = photo(64, 48)
    plan = batch([[planned(0, 0, (48, 64), (2, 3)), planned(1, 6, (48, 64), (2, 3))]])
    images = [np.ascontiguousarray(image), encode(image, "PNG")]
    got = _packer.render_images(images, plan, LIMITS, RenderConfig().to_json())
    assert np.array_equal(got["patches"][0, :6], got["patches"][0, 6:12])


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (np.zeros((4, 4), np.uint8), "images"),
        (np.zeros((4, 4, 4), np.uint8), "shape"),
        (np.zeros((4, 4, 3), np.float32), "u8"),
        (np.zeros((8, 8, 3), np.uint8)[::2, ::2], "contiguous"),
        (b"no image", "cannot be read"),
    ],
)
def test_what_is_no_image_is_refused_by_its_place(bad: object, says: str) -> None:
    with pytest.raises(RenderError, match=says) as e:
        _packer.render_images([bad], batch([[]]), LIMITS, RenderConfig().to_json())
    assert "images[0]" in str(e.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"row": 9},
        {"source": 3},
        {"kept": 0},
        {"kept": 13},
        {"offset": 1},
        {"crop": (0, 0, 21, 30)},
        {"crop": (-1, 0, 5, 5)},
        {"crop": (0, 2**31 - 1, 1, 1)},
        {"grid": (0, 5)},
        {"grid": (40, 40), "kept": 1600},
    ],
)
def test_a_plan_that_does_not_fit_is_refused(changes: dict) -> None:
    made = renderer(source([(20, 30)], bytes=GOOD[:1]))
    with pytest.raises(RenderError):
        made.submit(batch([[planned(0, 0, (20, 30), (3, 4)) | changes]]))
    made.close()
