"""Checkpoints that were damaged after they were saved: each one is a clear error, or the whole one before takes its place.

In: a run with two checkpoints, and files with flipped bits or without their ends. Out: an error that names the file, or the
same tensors as were saved; never other ones. `NAVIT_DAMAGES=200` does it at length.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from navit_loader.errors import NavitError
from navit_model.cli import main
from navit_model.train import checkpoint
from navit_model.train.run import train
from navit_model.train.settings import RunConfig

from .shapes import table, write_index

DAMAGES = int(os.environ.get("NAVIT_DAMAGES", "40"))
FILES = ("model", "average", "optimizer")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with the checkpoints of steps 4 and 8."""
    folder = tmp_path_factory.mktemp("damage")
    given = table(write_index(folder), folder / "run", steps=8, checkpoint_every=4, ema=0.9)
    train(RunConfig.from_dict(given))
    return folder / "run"


def whole(run: Path) -> dict[int, dict[str, dict[str, torch.Tensor]]]:
    found = [checkpoint.find(folder) for folder in checkpoint.steps(run)]
    return {c.step: {name: c.read(name) for name in FILES} for c in found if c is not None}


def same(found: checkpoint.Checkpoint, tensors: dict[str, dict[str, torch.Tensor]]) -> bool:
    read = {name: found.read(name) for name in FILES}
    return all(read[n].keys() == tensors[n].keys() for n in FILES) and all(
        torch.equal(read[n][k], tensors[n][k]) for n in FILES for k in tensors[n]
    )


def damaged(file: Path, chance: random.Random) -> str:
    data = bytearray(file.read_bytes())
    if chance.random() < 0.3:
        file.write_bytes(data[: chance.randrange(len(data))])
        return "cut"
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    file.write_bytes(data)
    return "flipped"


def test_a_step_that_was_being_saved_once_more_is_not_lost(run: Path, tmp_path: Path) -> None:
    """Killed between the moving away of the one and the coming of the other; and what lies there later is in nobody's way."""
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    folder = copy / "checkpoints"
    (folder / "step-00000008").rename(folder / "step-00000008.before")
    found = checkpoint.find(copy)
    assert found is not None and found.step == 8 and same(found, whole(run)[8])
    shutil.copytree(run / "checkpoints" / "step-00000008", folder / "step-00000008")
    assert [f.name for f in checkpoint.steps(copy)] == ["step-00000004", "step-00000008"]
    files = {name: found.read(name) for name in FILES}
    checkpoint.save(copy, 8, files, found.state, keep=2)
    assert sorted(f.name for f in folder.iterdir()) == ["step-00000004", "step-00000008"]


def test_each_damage_is_said_and_the_whole_one_before_is_taken(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saved, chance = whole(run), random.Random(5)
    assert sorted(saved) == [4, 8]
    for n in range(DAMAGES):
        copy = tmp_path / "copy"
        shutil.copytree(run, copy)
        newest = checkpoint.steps(copy)[-1]
        file = chance.choice(sorted(newest.iterdir()))
        how = damaged(file, chance)
        caplog.clear()
        with caplog.at_level(logging.WARNING, "navit_model"):
            found = checkpoint.find(copy)
        assert found is not None
        assert found.step == 4, (n, file.name, how)
        assert same(found, saved[4])
        (said,) = caplog.messages
        assert str(newest) in said and "step 4 is whole" in said
        with pytest.raises(NavitError, match="go back to an earlier checkpoint"):
            checkpoint.find(newest)
        shutil.rmtree(copy)


def test_where_all_are_damaged_one_line_names_the_file(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    for folder in checkpoint.steps(copy):
        damaged(folder / "model.safetensors", random.Random(1))
        damaged(folder / "average.safetensors", random.Random(2))
    index = str(run.parent / "shapes.arrow")
    assert main(["eval", str(copy), index]) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1 and "average.safetensors" in said and "is damaged" in said


def test_moments_that_are_damaged_hinder_nobody_who_uses_the_model(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    damaged(checkpoint.steps(copy)[-1] / "optimizer.safetensors", random.Random(1))
    assert checkpoint.open_checkpoint(copy).step == 8
    found = checkpoint.find(copy)
    assert found is not None and found.step == 4


def test_a_resumed_run_goes_on_from_the_whole_one_and_keeps_what_it_saves(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    given = table(str(run.parent / "shapes.arrow"), copy, steps=8, checkpoint_every=2, ema=0.9, keep=1)
    damaged(checkpoint.steps(copy)[-1] / "model.safetensors", random.Random(1))
    train(RunConfig.from_dict(given), resume=True)
    assert [folder.name for folder in checkpoint.steps(copy)] == ["step-00000008"]
    found = checkpoint.find(copy)
    assert found is not None and same(found, whole(run)[8])


def test_checkpoints_of_before_there_were_hashes_stay_readable(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    for folder in checkpoint.steps(copy):
        (folder / checkpoint.SUMS).unlink()
        state = json.loads((folder / "state.json").read_text())
        del state["sums"]
        (folder / "state.json").write_text(json.dumps(state))
    found = checkpoint.find(copy)
    assert found is not None and found.step == 8 and same(found, whole(run)[8])
    # As far as their lengths tell, those are looked at too.
    (checkpoint.steps(copy)[-1] / "model.safetensors").write_bytes(b"short")
    found = checkpoint.find(copy)
    assert found is not None and found.step == 4


def test_a_checkpoint_that_lost_its_hashes_is_none(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (checkpoint.steps(copy)[-1] / checkpoint.SUMS).unlink()
    found = checkpoint.find(copy)
    assert found is not None and found.step == 4


@pytest.mark.parametrize(("value", "words"), [(float("nan"), "is not finite"), (3e38, "no answer (NaN)")])
def test_weights_that_ran_away_score_nothing(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], value: float, words: str
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    newest = checkpoint.steps(copy)[-1]
    weights = load_file(newest / "average.safetensors")
    weights["head.weight"][:] = value
    save_file(weights, newest / "average.safetensors")
    sums = newest / checkpoint.SUMS
    digest = hashlib.sha256((newest / "average.safetensors").read_bytes()).hexdigest()
    pairs = [line.split() for line in sums.read_text().splitlines()]
    sums.write_text("".join(f"{digest if 'average' in name else old}  {name}\n" for old, name in pairs))
    index, image = str(run.parent / "shapes.arrow"), str(next((run.parent / "images").rglob("*.png")))
    for command in (["eval", str(copy), index], ["predict", str(copy), image]):
        assert main(command) == 2
        said = capsys.readouterr().err
        assert len(said.splitlines()) == 1 and words in said
