"""The configurations of `examples/` are read, planned and learnt from as they stand, with small data in place of the user's."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from navit_loader import build_index
from navit_model.train import checkpoint
from navit_model.train.run import train
from navit_model.train.settings import RunConfig

sys.path.insert(0, str(Path(__file__).parent))
from pairs_kit import write_pairs
from shapes import write_index

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
SMALL = ("width=16", "depth=1", "heads=2")


@pytest.mark.parametrize("name", ["folder", "webdataset"])
def test_an_example_trains(name: str, tmp_path: Path) -> None:
    if name == "folder":
        index = write_index(tmp_path)
    else:
        build_index(write_pairs(tmp_path / "pairs", 24), tmp_path / "pairs.arrow")
        index = str(tmp_path / "pairs.arrow")
    # Only what a test machine asks for: its data, a small model, few steps, no half precision.
    changes = [f"data.index={index}", "data.eval_index=", "data.batch_size=1", f"train.out={tmp_path / 'run'}"]
    changes += ["train.steps=2", "train.device=cpu", "train.precision=fp32", "render.threads=1"]
    changes += [f"model.{key}" for key in SMALL] + ([f"text.{key}" for key in SMALL] if name == "webdataset" else [])
    train(RunConfig.from_toml(EXAMPLES / f"{name}.toml", changes))
    assert checkpoint.open_checkpoint(tmp_path / "run").step == 2
