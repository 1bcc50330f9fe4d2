"""pack-shards: the same data set with smaller images, however often the run was stopped."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from navit_loader import build_index, open_index
from navit_loader.errors import IndexFileError
from navit_loader.shards import pack_shards

from .source_kit import encode, write_tar, write_tree

KILLED = """
import os, signal, sys
from navit_loader import open_index
from navit_loader.shards import pack_shards
def progress(done, total):
    if done >= 128:
        os.kill(os.getpid(), signal.SIGKILL)
pack_shards(open_index(sys.argv[1]), sys.argv[2], max_side=40, shard_images=64, progress=progress)
"""


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("shards")
    rng = np.random.default_rng(1)
    files = {}
    for i in range(150):
        kind, name = (("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp"))[i % 3]
        width, height = (int(v) for v in rng.integers(20, 90, 2))
        files[f"c{i % 2}/{i:03d}.{name}"] = encode(kind, width, height, orientation=1 + i % 8, seed=i)
    files["c0/999.jpg"] = encode("JPEG", 90, 90)[:3000]
    write_tree(place / "images", files)
    build_index(place / "images", place / "x.arrow")
    return place / "x.arrow"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix == ".tar"}


def test_the_tars_hold_the_same_data_set_but_smaller(index: Path, tmp_path: Path) -> None:
    done = pack_shards(open_index(index), tmp_path / "out", max_side=40, shard_images=64)
    assert (done.shards, done.images, done.broken) == (3, 150, 1)
    (broken,) = map(json.loads, (tmp_path / "out/broken.jsonl").read_text().splitlines())
    assert broken["uri"].endswith("c0/999.jpg") and broken["reason"]
    build_index(tmp_path / "out/shard-{000000..000002}.tar", tmp_path / "y.arrow", classes=index)
    old, new = (open_index(path).table().to_pylist() for path in (index, tmp_path / "y.arrow"))
    old = [row for row in old if not row["name"].endswith("999.jpg")]
    assert [row["label"] for row in new] == [row["label"] for row in old]
    for before, after in zip(old, new, strict=True):
        scale = min(1, 40 / max(before["width"], before["height"]))
        assert (after["format"], after["orientation"]) == ("jpeg", 1)
        assert abs(after["width"] - scale * before["width"]) < 1 and abs(after["height"] - scale * before["height"]) < 1
    # The picture is upright: compared with Pillow's own.
    with tarfile.open(tmp_path / "out/shard-000000.tar") as tar:
        member = tar.extractfile("000000001.jpg")
        assert member is not None
        packed = np.asarray(Image.open(io.BytesIO(member.read())).convert("RGB"), float)
    with Image.open(open_index(index).uri(1)) as image:
        from PIL import ImageOps

        upright = ImageOps.exif_transpose(image).convert("RGB").resize(packed.shape[1::-1], Image.Resampling.BICUBIC)
    assert np.abs(packed - np.asarray(upright, float)).mean() < 16


def test_a_run_that_was_killed_goes_on(index: Path, tmp_path: Path) -> None:
    pack_shards(open_index(index), tmp_path / "whole", max_side=40, shard_images=64)
    killed = subprocess.run([sys.executable, "-c", KILLED, index, tmp_path / "out"], check=False)
    assert killed.returncode == -signal.SIGKILL and 1 <= len(contents(tmp_path / "out")) < 3
    first = os.stat(tmp_path / "out/shard-000000.tar").st_mtime_ns
    pack_shards(open_index(index), tmp_path / "out", max_side=40, shard_images=64)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert os.stat(tmp_path / "out/shard-000000.tar").st_mtime_ns == first
    with pytest.raises(IndexFileError, match="another run \\(max_side differ\\)"):
        pack_shards(open_index(index), tmp_path / "out", max_side=41, shard_images=64)


def test_small_jpegs_labels_and_captions_stay_as_they_are(tmp_path: Path) -> None:
    jpeg = encode("JPEG", 30, 20)
    members = {"a.jpg": jpeg, "a.json": b'{"label": [1, 3]}', "a.txt": b"two words", "b.jpg": jpeg, "b.cls": b"2"}
    build_index(write_tar(tmp_path / "x.tar", members), tmp_path / "x.arrow")
    pack_shards(open_index(tmp_path / "x.arrow"), tmp_path / "out", max_side=30)
    build_index(tmp_path / "out/shard-000000.tar", tmp_path / "y.arrow")
    old, new = (open_index(tmp_path / f"{name}.arrow").table().to_pylist() for name in "xy")
    kept = ("length", "width", "height", "label", "caption")
    assert [[row[key] for key in kept] for row in new] == [[row[key] for key in kept] for row in old]
    with tarfile.open(tmp_path / "out/shard-000000.tar") as tar:
        member = tar.extractfile("000000000.jpg")
        assert member is not None and member.read() == jpeg


def test_the_command(index: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "navit_loader", "pack-shards", index, "-o", tmp_path / "out", "--max-side", "32"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0 and "150 images written" in done.stdout and "1 broken" in done.stdout, done.stderr
    bad = subprocess.run([*command, "--shard-images", "7"], capture_output=True, text=True, check=False, timeout=60)
    assert bad.returncode == 2 and "multiple of 64" in bad.stderr and bad.stderr.count("\n") == 1
