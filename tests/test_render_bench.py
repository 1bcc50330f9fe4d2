"""`navit-loader bench` over real files: its counts are those of the batches that were rendered."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from navit_loader import build_index
from navit_loader.cli import main

sys.path.insert(0, str(Path(__file__).parent))
from rendering import encode, photo

CONFIG = """
[data]
batch_size = 2
[plan]
sequence_length = 96
max_tokens = 64
max_images = 8
patch_sizes = [16]
block_images = 16
resolution = { kind = "uniform", low = 32, high = 96 }
[render]
threads = 2
prefetch = 3
failure_limit = 1.0
"""


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Index and configuration of forty images, one of which has gone since."""
    root = tmp_path_factory.mktemp("bench")
    for n in range(40):
        kind = "PNG" if n % 4 == 0 else "JPEG"
        path = root / "images" / f"class{n % 2}" / f"{n}.{kind.lower()}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(photo(60 + 3 * n, 150 - 2 * n, n), kind))
    build_index([root / "images"], root / "index.arrow")
    (root / "images" / "class1" / "7.jpeg").unlink()
    (root / "config.toml").write_text(CONFIG)
    return str(root / "index.arrow"), str(root / "config.toml")


def test_counts_and_rates_agree(paths: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    """Thirty batches go far beyond one epoch, so that the missing image is met and epochs follow one another."""
    assert main(["bench", *paths, "--batches", "30", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["batches"] == 30
    assert 30 <= found["sequences"] <= 60
    assert found["images"] > 80
    assert found["failed"] >= 2
    assert found["profiles"] == 0
    assert found["images_per_second"] * found["seconds"] == pytest.approx(found["images"])
    assert found["tokens_per_second"] * found["seconds"] == pytest.approx(found["tokens"])
    assert found["tokens"] == pytest.approx((1 - found["padding"]) * 30 * 2 * 96), "no prefix tokens: all are patches"
    assert set(found["stages"]) == {"fetch", "decode", "resize", "patches", "wait"}
    assert all(seconds > 0 for seconds in found["stages"].values())
    busy = sum(seconds for name, seconds in found["stages"].items() if name not in ("fetch", "wait"))
    assert busy <= 2 * found["seconds"], "two threads cannot work longer than twice the wall time"


def test_the_table_names_every_stage(paths: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *paths, "--batches", "2"]) == 0
    printed = capsys.readouterr().out
    for word in ("images/s", "tokens/s", "padding", "fetch", "decode", "resize", "patches", "wait"):
        assert word in printed


def test_nothing_to_measure_is_one_clear_line(paths: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *paths, "--batches", "0"]) == 2
    assert "--batches 0" in capsys.readouterr().err
