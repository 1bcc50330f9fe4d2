"""The whole path through the real commands, in processes of their own: index, serve, train, eval; and bad input.

Each command must end by itself with the status that it promises, and say what is wrong in one line without a traceback.
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from navit_loader import LoaderConfig, PackedLoader, build_index
from navit_loader.batch import FAILED, OK

CONFIG = """
[data]
index = "{root}/train.arrow"
eval_index = "{root}/train.arrow"
batch_size = 2
[plan]
sequence_length = 64
max_images = 16
max_tokens = 32
patch_sizes = [4]
resolution = {{ kind = "uniform", low = 8, high = 20 }}
[render]
threads = 1
retries = 0
failure_limit = 1.0
[model]
width = 16
depth = 1
heads = 2
patch_size = 4
[train]
out = "{root}/run"
steps = 6
warmup = 1
log_every = 2
device = "cpu"
threads = 1
eval_tokens = [16]
"""


def run(package: str, *args: object, status: int = 0) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end and checks its status, that it hangs nowhere, and that no traceback is shown."""
    line = [sys.executable, "-m", package, *map(str, args)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120)
    said = done.stdout + done.stderr
    assert "Traceback" not in said, said
    assert done.returncode == status, said
    if status == 2:
        # A wait is told of before it ends.
        lines = [line for line in done.stderr.strip().splitlines() if not line.startswith("waiting for ")]
        assert len(lines) == 1, done.stderr
    return done


def write_images(folder: Path, count: int = 30) -> None:
    rng = np.random.default_rng(0)
    for i in range(count):
        h, w = (int(v) for v in rng.integers(10, 30, 2))
        target = folder / f"class{i % 2}"
        target.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 100, (h, w, 3)) + 100 * (i % 2)
        Image.fromarray(pixels.astype(np.uint8)).save(target / f"{i:03}.{'png' if i % 3 else 'jpg'}")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder of images, their index, and a configuration."""
    write_images(tmp_path / "images")
    build_index(tmp_path / "images", tmp_path / "train.arrow")
    (tmp_path / "run.toml").write_text(CONFIG.format(root=tmp_path))
    return tmp_path


@contextmanager
def daemon(root: Path) -> Iterator[str]:
    line = [sys.executable, "-m", "navit_loader", "serve", root / "run.toml", "--bind", "tcp://127.0.0.1:0"]
    with (root / "serve.log").open("w") as errors:
        process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=errors, text=True)
        try:
            assert process.stdout is not None
            found = re.search(r"tcp://\S+", process.stdout.readline())
            assert found is not None, (root / "serve.log").read_text()
            yield found[0]
        finally:
            process.terminate()
            assert process.wait(30) == 0
            assert process.stdout is not None
            process.stdout.close()


def losses(out: Path) -> list[float]:
    entries = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [e["loss"] for e in entries if e["kind"] == "train"]


@pytest.mark.slow
def test_from_a_folder_to_scores_in_process_and_through_a_daemon(root: Path) -> None:
    said = run("navit_loader", "index", root / "images", "-o", root / "again.arrow").stdout
    assert "30 images" in said
    run("navit_model", "train", root / "run.toml")
    with daemon(root) as address:
        run("navit_model", "train", root / "run.toml", f"data.endpoints=['{address}']", f"train.out={root / 'remote'}")
    # The same batches, byte for byte, give the same losses, bit for bit.
    assert losses(root / "run") == losses(root / "remote")
    scores = root / "scores.json"
    said = run("navit_model", "eval", root / "run", root / "again.arrow", "--tokens", 9, 16, "--json", scores).stdout
    rows = json.loads(scores.read_text())["scores"]
    assert [r["tokens"] for r in rows] == [9, 16]
    assert all(r["images"] == 30 and r["failed"] == 0 for r in rows)
    assert all(f"{r['accuracy']:.2%}" in said for r in rows)
    assert (root / "run" / "report.html").exists()
    run("navit_model", "report", root / "run")


@pytest.mark.slow
def test_broken_and_extreme_files_are_counted_and_named(root: Path) -> None:
    folder = root / "images" / "class0"
    (folder / "text.jpg").write_text("not an image")
    (folder / "empty.png").write_bytes(b"")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    Image.fromarray(noise).save(folder / "cut.jpg")
    whole = (folder / "cut.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    Image.new("RGB", (1, 1)).save(folder / "one.png")
    Image.new("RGB", (1, 4000)).save(folder / "tall.png")
    Image.new("RGB", (4000, 1)).save(folder / "wide.png")
    said = run("navit_loader", "index", root / "images", "-o", root / "train.arrow").stdout
    assert "2 broken" in said
    (root / "images" / "class1" / "001.png").unlink()
    config = LoaderConfig.from_toml(root / "run.toml")
    with PackedLoader(root / "train.arrow", config) as loader:
        batches = list(loader)
        states = np.concatenate([b.status.ravel() for b in batches])
        failures = loader.failures()
    # 30 + one.png, tall.png, wide.png and the cut file; the last may decode in part, the vanished one cannot.
    assert (states == OK).sum() + (states == FAILED).sum() == 34
    assert (states == FAILED).sum() == len(failures)
    uris = " ".join(f["uri"] for f in failures)
    assert "001.png" in uris
    assert "cut.jpg" in uris
    assert len(failures) == 2
    done = run("navit_model", "train", root / "run.toml")
    assert "held-out" in done.stdout
    scores = root / "scores.json"
    run("navit_model", "eval", root / "run", root / "train.arrow", "--json", scores)
    (row,) = json.loads(scores.read_text())["scores"]
    assert (row["images"], row["failed"]) == (34, 2)


def test_nothing_to_index_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for source in ("empty", "missing"):
        done = run("navit_loader", "index", tmp_path / source, "-o", tmp_path / "x.arrow", status=2)
        assert source in done.stderr
    assert not (tmp_path / "x.arrow").exists()


def test_a_port_in_use_is_one_line(root: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        done = subprocess.run(
            [sys.executable, "-m", "navit_loader", "serve", str(root / "run.toml"), "--bind", address],
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert address in done.stderr.splitlines()[-1]


def test_a_daemon_that_is_not_there_is_one_line(root: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    done = run("navit_model", "train", root / "run.toml", f"data.endpoints=['{address}']", status=2)
    assert address in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("data.index=/nowhere.arrow", "/nowhere.arrow"),
        ("train.stepz=1", "did you mean 'steps'"),
        ("plan.patch_sizes=[0]", "plan.patch_sizes"),
        ("model.patch_size=8", "patch_size"),
        ("model.classes=7", "model.classes = 7"),
    ],
)
def test_a_wrong_configuration_is_one_line(root: Path, change: str, words: str) -> None:
    assert words in run("navit_model", "train", root / "run.toml", change, status=2).stderr


def test_evaluation_of_what_is_not_there_is_one_line(root: Path) -> None:
    assert "no checkpoint at" in run("navit_model", "eval", root, root / "train.arrow", status=2).stderr
    assert "log.jsonl" in run("navit_model", "report", root, status=2).stderr
