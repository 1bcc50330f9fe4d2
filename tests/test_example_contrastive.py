"""The example of images and captions: its tars, index and configuration are what the commands take."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from navit_loader import build_index, open_index
from navit_model.train.run import train
from navit_model.train.settings import RunConfig

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_the_contrastive_example_trains_from_its_tars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from contrastive import NAMES, write

    tars = write(tmp_path)
    assert [len(paths) for paths in tars.values()] == [3, 1]
    index = tmp_path / "train.arrow"
    found = build_index(tars["train"], index, classes=NAMES)
    assert (found.rows, found.broken, found.unlabelled) == (1437, 0, 0)
    words = {caption.split()[2] for caption in open_index(index).table()["caption"].to_pylist()}
    assert words == set(NAMES)
    changes = [f"data.index={index}", f"train.out={tmp_path / 'run'}", "train.steps=2", "train.threads=1"]
    train(RunConfig.from_toml(EXAMPLES / "contrastive.toml", [*changes, "train.device=cpu"]))
    assert (tmp_path / "run" / "report.html").exists()
    assert sys.modules.pop("contrastive", None) is not None
