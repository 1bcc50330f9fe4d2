"""The picture of packed sequences: the same from the command as SVG and as pixels, and true to the batch."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from navit_loader import LoaderConfig, build_index, pack_images
from navit_loader.batch import FAILED
from navit_loader.cli import main
from navit_loader.config import Drop, PlanConfig, Resolution
from navit_loader.picture import packed_image, packed_svg

SHADES = [(250, 10, 20), (20, 240, 30), (30, 20, 230), (220, 210, 10), (10, 200, 190)]
SVG = "{http://www.w3.org/2000/svg}"


def test_every_image_is_drawn_and_named() -> None:
    sizes = [(32, 48), (16, 16), (64, 16), (24, 40), (40, 40)]
    images = [np.full((*size, 3), shade, np.uint8) for size, shade in zip(sizes, SHADES, strict=True)]
    plan = PlanConfig(
        sequence_length=24,
        max_tokens=16,
        max_images=4,
        patch_sizes=(8,),
        resolution=Resolution(kind="native"),
        drop=Drop(kind="constant", rate=0.25),
    )
    batch = pack_images(images, LoaderConfig(plan=plan), labels=[0, 1, 0, 1, 0])
    sequences = len(batch.status)
    tree = ET.fromstring(packed_svg(batch, ["<a>", "b & c"], sequences))
    drawn = [e for e in tree.iter() if e.tag == f"{SVG}image"]
    assert len(drawn) == sequences + len(images)  # each sequence, and each image put together again
    titles = {title.text.split(":")[0] for title in tree.iter(f"{SVG}title") if title.text}
    assert titles == {f"image {n}, class {['<a>', 'b & c'][n % 2]}" for n in range(5)}
    seen = {tuple(colour) for _, colour in packed_image(batch, sequences).getcolors(1 << 24)}
    assert seen >= set(SHADES)
    # A failed image has no pixels of its own, and a sequence without any image is still one.
    batch.status[:] = FAILED
    assert len([e for e in ET.fromstring(packed_svg(batch)).iter() if e.tag == f"{SVG}image"]) == min(2, sequences)


def test_preview_writes_what_the_suffix_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "images").mkdir()
    for n, shade in enumerate(SHADES):
        Image.new("RGB", (64, 48), shade).save(tmp_path / "images" / f"{n}.png")
    build_index(tmp_path / "images", tmp_path / "i.arrow")
    config = tmp_path / "c.toml"
    config.write_text("[plan]\nsequence_length = 64\nmax_tokens = 16\nmax_images = 8\npatch_sizes = [16]\n")
    given = ["preview", str(tmp_path / "i.arrow"), str(config), "--sequences", "1", "-o"]
    for name in ("a.svg", "b.PNG", "c.webp"):
        assert main([*given, str(tmp_path / name)]) == 0
    assert "5 images in 1 sequences" in capsys.readouterr().out
    assert ET.parse(tmp_path / "a.svg").getroot().tag == f"{SVG}svg"
    with Image.open(tmp_path / "b.PNG") as picture:
        assert {tuple(colour) for _, colour in picture.getcolors(1 << 24)} >= set(SHADES)
    with Image.open(tmp_path / "c.webp") as picture:
        assert picture.format == "WEBP"
    assert main([*given, str(tmp_path / "d.nothing")]) != 0
    assert "d.nothing' cannot be written" in capsys.readouterr().err
