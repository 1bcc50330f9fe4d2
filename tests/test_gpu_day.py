"""A GPU's day where there is no GPU: every part is there, says that it is unmeasured, and the report still stands on paper."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench" / "day"))
from gpu import PARTS, markdown, run
from gpu_report import table
from paper import H200, papers

BENCH = Path(__file__).resolve().parents[1] / "bench"


def test_the_parts_fit_into_nine_minutes() -> None:
    assert sum(part.seconds for part in PARTS) <= 540
    assert all((BENCH / "day" / f"{part.name}.py").exists() for part in PARTS)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here: bench/gpu.py measures")
def test_without_a_gpu_every_row_is_unmeasured(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCH / "gpu.py"), "--out", str(tmp_path), "--only", "decode"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "gpu.json").read_text())
    *rows, last = report["parts"]["decode"]
    assert rows and all(row["unmeasured"] == "no CUDA device here" for row in rows) and last["seconds"] > 0
    assert report["machine"]["gpu"] is None and "no CUDA device" in (tmp_path / "gpu.md").read_text()
    done = subprocess.run(
        [sys.executable, str(BENCH / "gpu_report.py"), str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert "| navit B/16 | ms |" in done.stdout and "not in this day" in done.stdout, done.stderr


def test_a_part_that_hangs_or_dies_is_a_row(tmp_path: Path) -> None:
    """What it had said stays; the reason stands beside it."""
    part = PARTS[-1]
    limited = run(part, 0.5, tmp_path, dict(os.environ))
    assert "ended at its limit" in limited[0]["failed"]
    broken = run(part, 60, tmp_path, dict(os.environ) | {"PYTHONPATH": str(tmp_path), "PYTHONHOME": str(tmp_path)})
    assert broken[0]["row"] == f"the part '{part.name}'" and broken[0]["failed"]
    day = {"machine": {"gpu": None, "date": ""}, "missing": {"timm": "|"}, "parts": {part.name: broken}}
    assert "failed" in markdown(day)


def test_paper_and_measurement_stand_side_by_side() -> None:
    floors = papers(H200["tflops"], H200["gb_per_s"])
    assert all(p.floor <= p.expected if p.unit == "ms" else p.expected <= p.floor for p in floors.values())
    rows = {
        "navit B/16": {"row": "navit B/16", "ms": 10 * floors["navit B/16"].floor},
        "x": {"row": "x", "failed": "why"},
    }
    said = table(rows)
    assert "10.0 times its floor" in said and "The largest gap: navit B/16" in said and "- x: why" in said
