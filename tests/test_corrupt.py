"""Corruption: what it does to pixels, that nothing but the image decides it, and accuracy under it over an index.

In: images of many sizes, some that cannot be read, and a tiny run. Out: pixels against definitions, and scores.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from navit_loader import PackedLoader, build_index, open_index, pack_images
from navit_loader.config import LoaderConfig
from navit_loader.picture import pixels_of
from navit_model.cli import main
from navit_model.evaluate.corrupt import KINDS, STRENGTHS, corrupt
from navit_model.evaluate.sources import ROOM, source_batches
from navit_model.train.run import train
from navit_model.train.settings import RunConfig
from navit_model.world import World

from .shapes import table, write_index

ALONE = World(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over `shapes.arrow`; and `torn.arrow`, the same with two images cut after indexing."""
    root = tmp_path_factory.mktemp("corrupt")
    given = table(write_index(root), root / "run", steps=40, checkpoint_every=0)
    train(RunConfig.from_dict(given))
    files = sorted((root / "images").rglob("*.png"))
    lines = []
    for n, file in enumerate(files):
        torn = root / f"torn{n}.png"
        torn.write_bytes(file.read_bytes())
        lines.append({"path": str(torn), "label": file.parent.name})
    (root / "torn.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    build_index(root / "torn.jsonl", root / "torn.arrow", classes=root / "shapes.arrow")
    for n in (3, 60):
        torn = root / f"torn{n}.png"
        torn.write_bytes(torn.read_bytes()[:60] + bytes(torn.stat().st_size - 60))
    return root


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 256, (6, 7, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("kind", KINDS)
def test_stronger_is_farther_and_nothing_is_nothing(kind: str) -> None:
    image = photo(180, 240)
    assert corrupt(image, kind, 0, row=5) is image
    far = [np.abs(corrupt(image, kind, s, row=5).astype(int) - image).mean() for s in range(STRENGTHS + 1)]
    assert np.all(np.diff(far) > 0), far
    again = corrupt(image.copy(), kind, 3, row=5)
    assert again.dtype == np.uint8 and again.shape == image.shape
    assert np.array_equal(again, corrupt(image, kind, 3, row=5))


def test_each_kind_is_what_it_says() -> None:
    grey = np.full((200, 200, 3), 128, np.uint8)
    noise = corrupt(grey, "noise", 1, row=0).astype(float) - 128
    assert noise.std() == pytest.approx(0.08 * 255, rel=0.02) and abs(noise.mean()) < 0.3
    stronger = corrupt(grey, "noise", 2, row=0).astype(float) - 128
    assert np.corrcoef(noise.ravel(), stronger.ravel())[0, 1] > 0.99, "one field at all strengths"
    other = corrupt(grey, "noise", 1, row=1).astype(float) - 128
    assert abs(np.corrcoef(noise.ravel(), other.ravel())[0, 1]) < 0.02
    image = photo(150, 224)
    hue, saturation, value = np.asarray(Image.fromarray(image).convert("HSV")).astype(int).transpose(2, 0, 1)
    bright = corrupt(image, "brightness", 2, row=0)
    assert np.abs(bright.max(2).astype(int) - np.minimum(value + 51, 255)).max() <= 1
    turned = np.asarray(Image.fromarray(bright).convert("HSV")).astype(int)
    clear = (saturation > 60) & (value > 60)
    assert np.abs(turned[..., 1] - saturation)[clear].max() <= 4
    turn = np.abs(turned[..., 0] - hue)[clear]
    assert np.minimum(turn, 256 - turn).max() <= 4
    assert (corrupt(np.zeros((9, 9, 3), np.uint8), "brightness", 2, row=0) == 51).all()
    flat = corrupt(image, "contrast", 3, row=0)
    assert flat.mean((0, 1)) == pytest.approx(image.mean((0, 1)), abs=0.5)
    assert flat.std((0, 1)) == pytest.approx(0.2 * image.std((0, 1)), abs=0.5)


def test_blur_is_a_share_of_the_side() -> None:
    edge = np.zeros((448, 448, 3), np.uint8)
    edge[:, 224:] = 255
    widths = []
    for side in (448, 224):
        rows = corrupt(edge[:side, 224 - side // 2 : 224 + side // 2], "blur", 3, row=0)[side // 2, :, 0].astype(float)
        widths.append(np.sum((rows > 16) & (rows < 239)) / side)
    assert widths[0] == pytest.approx(widths[1], rel=0.15)


def test_sources_are_the_files_pixels_on_any_rank_and_thread(tmp_path: Path) -> None:
    sizes = [(1, 1), (17, 90), (181, 181), (40, 800), (182, 181), (300, 211), (900, 1201)]
    for n, size in enumerate(sizes):
        Image.fromarray(photo(*size, seed=n)).save(tmp_path / f"{n}.png")
    build_index(tmp_path, tmp_path / "all.arrow")
    index = open_index(tmp_path / "all.arrow")

    def seen(world: World, threads: int) -> dict[int, np.ndarray]:
        config = LoaderConfig.from_dict({"render": {"threads": threads}})
        batches = source_batches(index.path, config, 224 * 224, world)
        return {row: pixels for batch in batches for row, _, pixels in pixels_of(batch)}

    found = seen(ALONE, 1)
    assert sorted(found) == list(range(len(sizes)))
    for row, (height, width) in enumerate(sizes):
        pixels = found[row]
        if height * width <= ROOM:
            assert np.array_equal(pixels, np.asarray(Image.open(index.uri(row))))
        else:
            assert pixels.shape[0] * pixels.shape[1] <= max(224 * 224, ROOM)
            assert pixels.shape[0] / pixels.shape[1] == pytest.approx(height / width, rel=0.03)
    parts = [seen(World(rank, 2, ALONE.device), 3) for rank in range(2)]
    assert not parts[0].keys() & parts[1].keys() and parts[0].keys() | parts[1].keys() == found.keys()
    for row, pixels in {**parts[0], **parts[1]}.items():
        assert np.array_equal(corrupt(pixels, "noise", 2, row=row), corrupt(found[row], "noise", 2, row=row))


def test_at_strength_0_the_model_is_fed_what_it_is_fed_of_the_index(root: Path) -> None:
    config = RunConfig.from_dict(table(str(root / "shapes.arrow"), root / "x")).loader
    plan = config.for_evaluation(max_tokens=16)
    fed = {}
    with PackedLoader(str(root / "shapes.arrow"), plan) as loader:
        for batch in loader:
            for b, e in np.argwhere(batch.status == 1):
                fed[int(batch.image_ids[b, e])] = batch.patches[b][batch.segment_ids[b] == e]
    rows, pixels = zip(
        *(
            (row, corrupt(pixels, "noise", 0, row=row))
            for batch in source_batches(str(root / "shapes.arrow"), config, 224 * 224, ALONE)
            for row, _, pixels in pixels_of(batch)
        ),
        strict=True,
    )
    batch = pack_images(pixels, plan)
    assert len(rows) == len(fed) == 90
    for b, e in np.argwhere(batch.status == 1):
        mine = batch.patches[b][batch.segment_ids[b] == e]
        assert np.array_equal(mine, fed[rows[int(batch.image_ids[b, e])]])


def test_accuracy_under_corruption(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = {}
    for name in ("shapes", "torn"):
        index, out = root / f"{name}.arrow", root / f"{name}.json"
        words = ["eval", root / "run", index, "--tokens", "9", "25", "--device", "cpu", "--json", out, "--corrupt"]
        assert main([*map(str, words), *(("jpeg", "contrast") if name == "torn" else ())]) == 0
        found[name] = json.loads(out.read_text())
    said = capsys.readouterr().out
    assert "at 25 tokens, under corruption of strength 1 to 5" in said and "of clean" in said
    whole, torn = (found[name]["corruptions"] for name in ("shapes", "torn"))
    assert [list(one["kinds"]) for one in (*whole, *torn)] == [list(KINDS)] * 2 + [["jpeg", "contrast"]] * 2
    for one, score in zip((*whole, *torn), found["shapes"]["scores"] + found["torn"]["scores"], strict=True):
        assert one["clean"] == score["accuracy"] and one["tokens"] == score["tokens"]
        for row in one["kinds"].values():
            assert row["mean"] == pytest.approx(np.mean(row["accuracy"]), abs=1e-6)
            assert row["relative"] == pytest.approx(row["mean"] / one["clean"])
            assert row["mean_95"][0] <= row["mean"] <= row["mean_95"][1]
        assert one["mean"] == pytest.approx(np.mean([row["mean"] for row in one["kinds"].values()]), abs=1e-6)
    for one, other in zip(whole, torn, strict=True):
        for kind in ("jpeg", "contrast"):
            for all_of, some in zip(one["kinds"][kind]["accuracy"], other["kinds"][kind]["accuracy"], strict=True):
                assert all_of - 2 / 90 - 1e-6 <= some <= 88 / 90, (
                    "an image that cannot be read is wrong at each strength"
                )
