"""JPEG XL: the pixels that libjxl gives, by Pillow's plug-in, and a verdict on whatever is damaged."""

from __future__ import annotations

import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from navit_loader import _packer, build_index, open_index, pack_images
from navit_loader.config import LoaderConfig

sys.path.insert(0, str(Path(__file__).parent))
from rendering import (
    FILTERS,
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

pytest.importorskip("pillow_jxl")

NOBODY = _packer.Helpers([])
BACKGROUND = (10, 200, 30)
LOSSY, EXACT = (0.6, 6), (0.4, 6)
"""Mean and most of the difference to Pillow's resize; the decoders themselves differ by a step or two where a file is lossy."""


def near(data: bytes, grid: tuple[int, int], bounds: tuple[float, float], **options: Any) -> None:
    got = render_one(data, _packer.probe_bytes(data, NOBODY), grid, background=BACKGROUND, **options)
    mean, most, _ = difference(got, reference(data, grid, background=BACKGROUND, **options))
    assert mean <= bounds[0] and most <= bounds[1], (mean, most)


@pytest.mark.parametrize("filter", FILTERS)
@pytest.mark.parametrize("container", [False, True])
def test_pixels_equal_pillows(container: bool, filter: str) -> None:
    for options, bounds in (({"lossless": True}, EXACT), ({"quality": 90}, LOSSY), ({"quality": 40}, LOSSY)):
        for mode in ("RGB", "L"):
            data = encode(photo(401, 303).convert(mode), "JXL", use_container=container, **options)
            assert data.startswith(b"\0\0\0\x0cJXL " if container else b"\xff\x0a")
            for grid in ((15, 18), (6, 7), (1, 2)):
                near(data, grid, bounds, filter=filter)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_lies_over_the_background(mode: str) -> None:
    image = photo(96, 64)
    image.putalpha(Image.radial_gradient("L").resize(image.size))
    near(encode(image.convert(mode), "JXL", lossless=True), (4, 6), EXACT)


def test_orientation_is_that_of_the_codestream(tmp_path: Path) -> None:
    """A JPEG file packed without loss keeps its orientation and its pixels."""
    for orientation in range(1, 9):
        jpeg = tmp_path / f"{orientation}.jpg"
        jpeg.write_bytes(encode(photo(320, 192), "JPEG", orientation, quality=95, subsampling="4:4:4"))
        packed = tmp_path / f"{orientation}.jxl"
        with Image.open(jpeg) as image:
            image.save(packed, lossless_jpeg=True)
        both = [path.read_bytes() for path in (jpeg, packed)]
        sizes = [_packer.probe_bytes(data, NOBODY) for data in both]
        assert sizes[0] == sizes[1] == ((192, 320) if orientation < 5 else (320, 192))
        plan = {"plan": {"patch_sizes": [16], "resolution": {"kind": "native"}}}
        ours, theirs = (pack_images([data], LoaderConfig.from_dict(plan)) for data in both)
        assert np.array_equal(ours.grids, theirs.grids)
        mean = np.abs(ours.patches.astype(int) - theirs.patches).mean()
        assert mean < 1.0, (orientation, mean)


def test_the_index_takes_the_suffix_and_the_name(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for n in range(3):
        photo(60 + n, 40).save(tmp_path / "images" / f"{n}.jxl")
    build_index(tmp_path / "images", tmp_path / "index.arrow")
    index = open_index(tmp_path / "index.arrow")
    assert (index.num_rows, index.formats) == (3, ["jxl"])


def test_16_bits_and_films() -> None:
    """The high byte of 16 bits counts, and of a film the first frame."""
    wide = np.linspace(0, 65535, 64 * 96, dtype=np.uint16).reshape(64, 96)
    image = Image.fromarray(wide)
    deep = encode(image, "JXL", lossless=True)
    got = render_one(deep, _packer.probe_bytes(deep, NOBODY), (4, 6))
    assert np.abs(got[..., 0].astype(int) - (wide >> 8)).max() <= 1
    assert (got == got[..., :1]).all()


def test_damage_is_one_verdict_and_never_another_picture() -> None:
    """2,000 damaged files: each is refused where libjxl refuses it and has its pixels else; a whole one stays whole."""
    rng = random.Random(3)
    image = photo(64, 48)
    image.putalpha(Image.radial_gradient("L").resize(image.size))
    files = [
        encode(photo(64, 48), "JXL", quality=80),
        encode(image, "JXL", lossless=True),
        encode(photo(64, 48), "JXL", use_container=True),
    ]
    whole, files = files[0], [damaged(rng.choice(files), rng) for _ in range(2000)]
    rows = source([(48, 64)] * 2001, bytes=[*files, whole])
    made = renderer(rows, threads=1)
    waiting = [made.submit(batch([[planned(n, 0, (48, 64), (3, 4))]])) for n in range(2001)]
    pixels = [one.wait(60)["patches"][0, :12].copy() for one in waiting]
    why = {e["image"]: e["reason"] for e in made.failures()}
    made.close()
    assert np.array_equal(unpatched(pixels[2000], (3, 4), 16), render_one(whole, (48, 64), (3, 4)))
    assert set(why.values()) <= {"corrupt", "truncated", "unsupported", "too_large", "changed"}, Counter(why.values())
    accepted = sorted(set(range(2000)) - why.keys())
    assert len(accepted) > 40
    for n, file in enumerate(files):
        try:
            theirs = reference(file, (3, 4))
        except Exception:
            assert n in why
        else:
            assert n not in why
            assert difference(unpatched(pixels[n], (3, 4), 16), theirs)[0] <= 1.5


def damaged(data: bytes, rng: random.Random) -> bytes:
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 3))):
        at = rng.randrange(2, len(found))
        match rng.randrange(5):
            case 0:
                del found[at + 12 :]
            case 1:
                found[at] = rng.randrange(256)
            case _:
                found[at] ^= 1 << rng.randrange(8)
    return bytes(found)


def test_every_cut_is_told(tmp_path: Path) -> None:
    whole = encode(photo(64, 48), "JXL", quality=80)
    cuts = [whole[:n] for n in range(2, len(whole), 11)]
    for cut in cuts[:4]:
        assert _packer.probe_bytes(cut, NOBODY) in (None, (48, 64))
    made = renderer(source([(48, 64)] * len(cuts), bytes=cuts))
    for one in [made.submit(batch([[planned(n, 0, (48, 64), (3, 4))]])) for n in range(len(cuts))]:
        one.wait(60)
    assert [e["reason"] for e in made.failures()] == ["truncated"] * len(cuts)
    made.close()


def test_another_size_than_indexed_is_refused_before_anything_is_decoded() -> None:
    made = renderer(source([(40, 64)], bytes=[encode(photo(64, 48), "JXL")]))
    made.submit(batch([[planned(0, 0, (40, 64), (2, 4))]])).wait(60)
    assert [e["reason"] for e in made.failures()] == ["changed"]
    made.close()
