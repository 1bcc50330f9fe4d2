"""Geometry from header to pixels: grids keep the aspect ratio as nearly as whole patches can, hold one patch at least, and
what is rendered covers the whole crop, neither shifted nor cut."""

from __future__ import annotations

import io
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from navit_loader import _packer
from navit_loader.config import PlanConfig, RenderConfig, Resolution

sys.path.insert(0, str(Path(__file__).parent))
from rendering import FILTERS, LIMITS, batch, encode, planned, unpatched

sides = st.one_of(st.integers(1, 60), st.integers(1, 3000))


def grids(sizes: list[tuple[int, int]], config: PlanConfig) -> list[tuple[int, int]]:
    """The planned grid of each (height, width)."""
    columns = {
        "width": [np.array([w for _, w in sizes], np.int32)],
        "height": [np.array([h for h, _ in sizes], np.int32)],
    }
    layout = _packer.Plan(config.to_json(), [columns], [(0, None, 1.0)]).layout(0)
    layout.counts(0, layout.num_blocks)
    found = {i["row"]: i["grid"] for s in layout.batch(0, layout.num_sequences or 1).sequences for i in s}
    return [found[row] for row in range(len(sizes))]


def spans(patches: int, own: int, upscale: bool, thin: bool, scale: float) -> tuple[float, float]:
    """The sides (√area, in units of `scale` pixels) that give this many patches: half a patch of rounding either way, or a
    whole one upwards where the token cap rounds down. Nothing below one patch, nothing above the image's own size."""
    low = 0.0 if patches == 1 else patches - 0.5
    high = float("inf") if thin or (not upscale and patches >= own) else patches + 1
    return low * scale, high * scale


@settings(max_examples=150, deadline=None)
@given(
    sizes=st.lists(st.tuples(sides, sides), min_size=1, max_size=30),
    patch=st.sampled_from([8, 14, 16]),
    resolution=st.sampled_from(
        [
            Resolution(kind="uniform", low=32, high=256),
            Resolution(kind="uniform", low=32, high=256, upscale=True),
            Resolution(kind="native"),
            Resolution(kind="budget", upscale=True),
        ]
    ),
    cap=st.sampled_from([16, 64, 256]),
    seed=st.integers(0, 99),
)
def test_grids_keep_the_aspect_ratio(
    sizes: list[tuple[int, int]], patch: int, resolution: Resolution, cap: int, seed: int
) -> None:
    # Where no image holds one patch, the plan is refused.
    sizes = [*sizes, (400, 300)]
    config = PlanConfig(
        seed=seed,
        sequence_length=256,
        max_tokens=cap,
        patch_sizes=(patch,),
        resolution=resolution,
    )
    for (height, width), (h, w) in zip(sizes, grids(sizes, config), strict=True):
        assert h >= 1 and w >= 1 and h * w <= cap
        root = (height / width) ** 0.5
        thin = min(h, w) == 1
        low_h, high_h = spans(h, height // patch, resolution.upscale, thin, patch / root)
        low_w, high_w = spans(w, width // patch, resolution.upscale, thin, patch * root)
        slack = 1 + 1e-9
        assert max(low_h, low_w) <= min(high_h, high_w) * slack, "no one side of the image gives both"


@pytest.mark.parametrize("filter", FILTERS)
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@settings(max_examples=15, deadline=None)
@given(
    size=st.tuples(st.integers(40, 400), st.integers(40, 400)),
    grid=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    share=st.tuples(*[st.floats(0.1, 0.4)] * 2),
)
def test_what_is_rendered_covers_the_whole_crop(
    filter: str, kind: str, size: tuple[int, int], grid: tuple[int, int], share: tuple[float, float]
) -> None:
    """A plane that rises to the right and downwards: every target pixel has the value of its own place in the crop."""
    height, width = size
    y, x = np.mgrid[0:height, 0:width]
    plane = 100 * (x + 0.5) / width + 100 * (y + 0.5) / height + 20
    image = Image.fromarray(np.repeat(plane.round().astype(np.uint8)[..., None], 3, 2))
    data = encode(image, kind, **({"quality": 98, "subsampling": 0} if kind == "JPEG" else {}))
    top, left = int(height * share[0]), int(width * share[1])
    crop = (top, left, height - 2 * top, width - 2 * left)
    plan = batch([[planned(0, 0, size, grid, crop=crop)]])
    got = _packer.render_images([data], plan, LIMITS, RenderConfig(filter=filter).to_json())
    pixels = unpatched(got["patches"][0, : grid[0] * grid[1]], grid, 16)[..., 0].astype(float)
    ty, tx = np.mgrid[0 : grid[0] * 16, 0 : grid[1] * 16]
    at_y = top + (ty + 0.5) * crop[2] / (grid[0] * 16)
    at_x = left + (tx + 0.5) * crop[3] / (grid[1] * 16)
    want = 100 * at_x / width + 100 * at_y / height + 20
    # Nearest neighbour (`area`, upwards) is off by half a source pixel; JPEG by its quantisation.
    step = 50 / width + 50 / height if filter == "area" else 0
    assert np.abs(pixels - want).max() <= 2.5 + step + (3 if kind == "JPEG" else 0)


def test_a_row_of_one_pixel_is_rendered_whole() -> None:
    for size in ((1, 500), (500, 1)):
        image = Image.fromarray(np.linspace(0, 255, 500).astype(np.uint8).reshape(size))
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        plan = batch([[planned(0, 0, size, (1, 1))]])
        got = _packer.render_images([buffer.getvalue()], plan, LIMITS, RenderConfig().to_json())
        pixels = unpatched(got["patches"][0, :1], (1, 1), 16)[..., 0].astype(int)
        along = pixels[0] if size[0] == 1 else pixels[:, 0]
        assert along[0] < 16 and along[-1] > 239 and (np.diff(along) > 0).all()


def _chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def _with(kind: str, exif: int | None, xmp: int | None, packed: bool) -> bytes:
    """A picture of 64 × 32 whose orientation stands in EXIF (0: EXIF without one), in XMP, or in both."""
    image = Image.new("RGB", (64, 32))
    block = b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHIHH", 0x0112 if exif else 0x0110, 3, 1, exif or 0, 0) + bytes(4)
    words = b'<rdf:Description tiff:Orientation="%d"/>' if packed else b"<tiff:Orientation>%d</tiff:Orientation>"
    packet = None if xmp is None else words % xmp
    if kind == "PNG":
        data = encode(image, "PNG")
        at, more = data.index(b"IDAT") - 4, b""
        if exif is not None:
            raw = b"Exif\0\0" + block
            text = b"\nexif\n%8d\n" % len(raw) + raw.hex().encode() + b"\n"
            name = b"Raw profile type exif\0"
            more += _chunk(b"zTXt", name + b"\0" + zlib.compress(text)) if packed else _chunk(b"tEXt", name + text)
        if packet is not None:
            body = b"\x01\0\0\0" + zlib.compress(packet) if packed else b"\0\0\0\0" + packet
            more += _chunk(b"iTXt", b"XML:com.adobe.xmp\0" + body)
        return data[:at] + more + data[at:]
    options = {} if exif is None else {"exif": b"Exif\0\0" + block}
    return encode(image, kind, **options | ({} if packet is None else {"xmp": packet}))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("packed", [False, True])
def test_orientation_stands_where_pillow_finds_it(kind: str, packed: bool) -> None:
    for exif in (None, 0, 1, 3, 6):
        for xmp in (None, 1, 8, 9):
            data = _with(kind, exif, xmp, packed)
            turned = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
            assert _packer.probe_bytes(data) == turned.size[::-1], (exif, xmp)
