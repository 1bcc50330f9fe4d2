"""`navit-model doctor`: what it says is so, with torch and without, with the engine and without."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

from navit_loader import _packer
from navit_model.model.attention import choose


def doctor(before: str = "") -> tuple[int, dict[str, str], str]:
    """Status, and the lines by their part, of the command in a process of its own where something was done `before`."""
    code = f"import sys; {before}\nfrom navit_model.cli import main\nsys.exit(main(['doctor']))"
    done = subprocess.run(
        [sys.executable, "-c", code], text=True, capture_output=True, cwd=Path(__file__).parent.parent,
        env={**os.environ, "COLUMNS": "400"},
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    cells = [[cell for cell in line[2:].split("  ") if cell] for line in lines]
    return done.returncode, {c[0].strip(): "  ".join(c[1:]) for c in cells}, done.stdout


def test_each_part_is_told_with_its_reason() -> None:
    status, rows, _ = doctor()
    assert status == 0
    assert torch.__version__ in rows["torch"]
    assert _packer.BUILD_PROFILE in rows["engine"]
    if not torch.cuda.is_available():
        assert rows["device"].strip().startswith("cpu")
        assert choose("auto", torch.device("cpu")) in rows["kernel"] and "CPU" in rows["kernel"]
        assert "fp32" in rows["precision"] and "train.precision" in rows["precision"]
    for name in ("jpeg", "png", "webp", "gif", "bmp", "tiff", "ppm"):
        assert rows[name].strip().startswith("ok"), name
    for part in ("nvjpeg", "dali", "shared memory", "heif", "extra model", "extra wandb", "extra mlflow"):
        assert rows[part]
    assert rows["extra model"].strip().startswith("there")


def test_without_torch_it_says_so_and_nothing_is_wrong() -> None:
    status, rows, _ = doctor("sys.modules['torch'] = None")
    assert status == 0
    assert "pip install 'packed-navit[model]'" in rows["torch"]
    assert "attention is torch's" in rows["kernel"]
    assert "without torch nothing is learnt here" in rows["device"]
    assert rows["jpeg"].strip().startswith("ok")
    assert rows["extra model"].strip().startswith("missing")


def test_what_is_broken_is_a_row(tmp_path: Path) -> None:
    """A torch whose libraries are missing, and a Pillow that writes no WebP although it says so."""
    (tmp_path / "torch.py").write_text("raise OSError('libcudart.so: cannot open shared object file')")
    status, rows, whole = doctor(f"sys.path.insert(0, {str(tmp_path)!r})")
    assert status == 1 and "! torch" in whole
    assert "libcudart.so: cannot open" in rows["torch"]
    assert rows["jpeg"].strip().startswith("ok")
    _, rows, _ = doctor("from PIL import Image; Image.init(); Image.SAVE['WEBP'] = lambda *a: open('/nowhere/x')")
    assert "not tried" in rows["webp"] and rows["png"].strip().startswith("ok")


def test_without_the_engine_the_status_says_so() -> None:
    status, rows, whole = doctor("sys.modules['navit_loader._packer'] = None")
    assert status == 1
    assert "make build" in rows["engine"] and "! engine" in whole
    assert "jpeg" not in rows


def test_a_gpu_that_is_hidden_is_looked_for() -> None:
    _, rows, _ = doctor("import os; os.environ['CUDA_VISIBLE_DEVICES'] = ''")
    assert "is there one, and its driver" in rows["device"] or "built without CUDA" in rows["device"]


def test_an_engine_that_was_built_without_nasm_says_what_it_loses() -> None:
    status, rows, _ = doctor("from navit_loader import _packer; _packer.ASSEMBLER = False")
    assert status == 0 and "without nasm: AVIF and unusual JPEGs are slower" in rows["engine"]
