"""Long runs over small sets plan several passes as one epoch, say so, and go on with as many as they began with."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from navit_model.train import checkpoint
from navit_model.train.feed import open_loader
from navit_model.train.log import read_log
from navit_model.train.passes import MANY, with_passes
from navit_model.train.run import train
from navit_model.train.settings import RunConfig
from navit_model.world import World

sys.path.insert(0, str(Path(__file__).parent))
from shapes import table, write_index

ALONE = World(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_index(tmp_path_factory.mktemp("shapes"))


def made(index: str, out: Path, steps: int, plan: dict[str, Any] | None = None, **train: Any) -> RunConfig:
    given = table(index, out, steps=steps, **train)
    given["plan"] |= plan or {}
    return RunConfig.from_dict(given)


def steps_of_one_pass(run: RunConfig, world: World) -> int:
    with open_loader(run, ALONE) as loader:
        return len(loader)


def losses(out: Path) -> dict[int, float]:
    return {e["step"]: e["loss"] for e in read_log(out) if e["kind"] == "train"}


def test_a_long_run_plans_passes_together_and_goes_on_with_them(
    index: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    steps = (MANY + 2) * steps_of_one_pass(made(index, out, 1), ALONE)
    run = made(index, out, steps, checkpoint_every=steps // 2)
    train(run)
    last = checkpoint.find(out)
    assert last is not None
    passes = last.config.loader.plan.passes
    assert MANY <= passes <= MANY + 3
    assert f"plan.passes = {passes}" in capsys.readouterr().out
    whole = losses(out)
    assert len(whole) == steps
    # Again from the middle of the epoch of all passes.
    shutil.rmtree(last.path)
    train(run, resume=True)
    again = checkpoint.find(out)
    assert again is not None and again.config.loader.plan.passes == passes
    assert losses(out) == whole


def test_epochs_stay_where_they_are_given_or_matter(index: str, tmp_path: Path) -> None:
    one = steps_of_one_pass(made(index, tmp_path, 1), ALONE)
    long = 50 * one
    assert with_passes(made(index, tmp_path, long), ALONE, None).loader.plan.passes > 1
    for stays in (
        made(index, tmp_path, (MANY - 2) * one),
        made(index, tmp_path, long, {"virtual_epoch": 90}),
        made(index, tmp_path, long, {"passes": 3}),
        made(index, tmp_path, long, augment={"layers": 1}),
        made(index, tmp_path, long, augment={"erase": 0.5}),
    ):
        assert with_passes(stays, ALONE, None) == stays
    run = made(index, tmp_path, long)
    for change in ({"remainder": "drop"}, {"refresh": True}):
        other = replace(run, loader=replace(run.loader, data=replace(run.loader.data, **change)))
        assert with_passes(other, ALONE, None) == other
    assert with_passes(run, ALONE, made(index, tmp_path, 1)) == run, "what goes on keeps the epochs that it began with"
