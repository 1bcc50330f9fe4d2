"""The trainer: settings, schedule, exact resume, whole checkpoints, stopping on a bad loss.

In: a small folder of shapes that the test writes. Everything runs through the real loader and the real model on the CPU.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from navit_loader import build_index
from navit_loader.errors import ConfigError, ModelError
from navit_model import checkpoint
from navit_model.evaluate import evaluate
from navit_model.feed import open_loader
from navit_model.journal import read_log
from navit_model.lock import hold
from navit_model.schedule import learning_rate
from navit_model.settings import RunConfig, TrainConfig
from navit_model.train import train
from navit_model.trainer import Trainer
from navit_model.world import World


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> str:
    """90 small images of three classes: bright above, bright on the left, or bright in both."""
    root = tmp_path_factory.mktemp("shapes")
    rng = np.random.default_rng(0)
    for i in range(90):
        h, w = (int(v) for v in rng.integers(10, 30, 2))
        pixels = rng.integers(0, 60, (h, w, 3))
        if i % 3 != 1:
            pixels[: h // 2] += 150
        if i % 3 != 0:
            pixels[:, : w // 2] += 45
        folder = root / "images" / f"class{i % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    build_index(root / "images", root / "shapes.arrow")
    return str(root / "shapes.arrow")


def config(index: str, out: Path, **changes: Any) -> RunConfig:
    table: dict[str, Any] = {
        "data": {"index": index, "batch_size": 2},
        "plan": {
            "sequence_length": 64,
            "max_images": 16,
            "max_tokens": 32,
            "patch_sizes": [4],
            "resolution": {"kind": "uniform", "low": 8, "high": 20},
            "drop": {"kind": "constant", "rate": 0.4},
        },
        "render": {"threads": 1},
        "model": {"width": 16, "depth": 1, "heads": 2, "patch_size": 4, "max_grid": 16},
        "train": {
            "out": str(out),
            "steps": 12,
            "warmup": 2,
            "learning_rate": 1e-2,
            "head_weight_decay": 0.1,
            "ema": 0.9,
            "log_every": 1,
            "checkpoint_every": 5,
            "threads": 1,
            "device": "cpu",
            **changes,
        },
    }
    return RunConfig.from_dict(table)


def losses(out: Path) -> dict[int, float]:
    return {e["step"]: e["loss"] for e in read_log(out) if e["kind"] == "train"}


def test_a_resumed_run_gives_the_same_losses_and_weights_bit_for_bit(index: str, tmp_path: Path) -> None:
    whole, halves = config(index, tmp_path / "whole"), config(index, tmp_path / "halves")
    train(whole)
    world = World.join("cpu")
    with open_loader(halves, world) as loader:
        trainer = Trainer(halves, loader, world, None)
        trainer.stop_after = 7
        with pytest.raises(KeyboardInterrupt):
            trainer.run()
    assert checkpoint.open_checkpoint(tmp_path / "halves").step == 7
    train(halves, resume=True)
    assert losses(tmp_path / "whole") == losses(tmp_path / "halves")
    assert len(losses(tmp_path / "whole")) == 12
    ends = [checkpoint.open_checkpoint(tmp_path / name) for name in ("whole", "halves")]
    for name in ("model", "average", "optimizer"):
        first, second = (end.read(name) for end in ends)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[k], second[k]) for k in first), name
    assert ends[0].state["loader"] == ends[1].state["loader"]


def test_accumulated_batches_equal_one_large_batch(index: str, tmp_path: Path) -> None:
    one = config(index, tmp_path / "one", steps=2, ema=0.0)
    one = replace(one, loader=replace(one.loader, data=replace(one.loader.data, batch_size=4)))
    many = config(index, tmp_path / "many", steps=2, ema=0.0, accumulate=2)
    train(one)
    train(many)
    for step, loss in losses(tmp_path / "one").items():
        assert losses(tmp_path / "many")[step] == pytest.approx(loss, abs=1e-4)


def test_the_model_learns_and_the_score_counts_every_image(index: str, tmp_path: Path) -> None:
    run = config(index, tmp_path / "run", steps=150, log_every=50, checkpoint_every=0)
    run = replace(run, loader=replace(run.loader, data=replace(run.loader.data, eval_index=index)))
    (score,) = train(run)
    assert score.images == 90
    assert score.failed == 0
    assert score.accuracy > 0.9
    assert 0 <= score.ece <= 1
    saved = checkpoint.open_checkpoint(tmp_path / "run")
    again = evaluate(saved.model(), index, saved.config.loader, classes=saved.classes)
    assert again.accuracy == score.accuracy
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Packed sequences" in page
    assert f"{score.accuracy:.2%}" in page


def test_an_earlier_checkpoint_stays_whole_where_saving_fails(
    index: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = config(index, tmp_path, steps=8, checkpoint_every=4)
    real = checkpoint.save_file
    files = []

    def full(tensors: Any, path: Path) -> None:
        files.append(path)
        if len(files) > 6:
            raise OSError(28, "No space left on device")
        real(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(ModelError, match="No space left"):
        train(run)
    assert checkpoint.open_checkpoint(tmp_path).step == 4
    assert not list((tmp_path / "checkpoints").glob(".*"))
    monkeypatch.undo()
    train(run, resume=True)
    assert checkpoint.open_checkpoint(tmp_path).step == 8


def test_a_loss_that_is_not_finite_stops_the_run_and_names_its_batch(index: str, tmp_path: Path) -> None:
    run = config(index, tmp_path, learning_rate=1e38, warmup=0, clip=0.0, checkpoint_every=1)
    with pytest.raises(ModelError, match="not finite"):
        train(run)
    (entry,) = [e for e in read_log(tmp_path) if e["kind"] == "not_finite"]
    assert entry["batches"]
    found = checkpoint.find(tmp_path)
    assert found is None or found.step < entry["step"]


def test_a_run_is_never_overwritten_nor_continued_with_other_settings(index: str, tmp_path: Path) -> None:
    run = config(index, tmp_path, steps=2)
    train(run)
    with pytest.raises(ConfigError, match="--resume"):
        train(run)
    with pytest.raises(ModelError, match=r"train\.learning_rate"):
        train(config(index, tmp_path, steps=2, learning_rate=0.5), resume=True)
    wider = replace(run, model=replace(run.model, width=32))
    with pytest.raises(ModelError, match=r"model\.width = 16"):
        train(wider, resume=True)


def test_a_damaged_checkpoint_is_named(index: str, tmp_path: Path) -> None:
    run = config(index, tmp_path, steps=2)
    train(run)
    saved = checkpoint.open_checkpoint(tmp_path)
    path = saved.path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ModelError, match=r"model\.safetensors.*cannot be read"):
        saved.model(average=False)
    (saved.path / "state.json").write_text(json.dumps({"version": 99}))
    with pytest.raises(ModelError, match="version 99"):
        checkpoint.find(tmp_path)


@given(
    kind=st.sampled_from(["cosine", "rsqrt", "constant"]),
    steps=st.integers(2, 400),
    warmup=st.integers(0, 100),
    cooldown=st.integers(0, 100),
)
@settings(deadline=None)
def test_the_rate_rises_to_its_peak_and_never_leaves_it_upwards(
    kind: Any, steps: int, warmup: int, cooldown: int
) -> None:
    run = TrainConfig(steps=steps, schedule=kind, warmup=warmup, cooldown=cooldown, learning_rate=0.5)
    rates = [learning_rate(s, run) for s in range(steps)]
    assert all(0 <= r <= 0.5 for r in rates)
    rising = rates[: min(warmup, steps)]
    assert rising == sorted(rising)
    falling = rates[min(warmup, steps) :]
    assert all(a >= b - 1e-12 for a, b in itertools.pairwise(falling))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("train.stepz=3", "did you mean 'steps'"),
        ("train.steps=0", "at least 1"),
        ("train.schedule=square", "'cosine', 'rsqrt', 'constant'"),
        ("model.width=x", "model.width = 'x'"),
        ("steps=3", "section.key=value"),
        ("train.steps", "section.key=value"),
        ("trian.steps=3", r"unknown section '\[trian\]'"),
    ],
)
def test_a_wrong_change_is_refused_by_name(tmp_path: Path, change: str, words: str) -> None:
    path = tmp_path / "run.toml"
    path.write_text("[train]\nsteps = 5\n")
    with pytest.raises(ConfigError, match=words):
        RunConfig.from_toml(path, [change])


def test_two_processes_give_the_losses_of_one_with_the_doubled_batch(index: str, tmp_path: Path) -> None:
    text = f"""
data = {{ index = "{index}", batch_size = 2 }}
[plan]
sequence_length = 64
max_images = 16
max_tokens = 32
patch_sizes = [4]
resolution = {{ kind = "uniform", low = 8, high = 20 }}
[model]
width = 16
depth = 1
heads = 2
patch_size = 4
[train]
steps = 8
warmup = 2
learning_rate = 1e-2
log_every = 1
checkpoint_every = 4
threads = 1
device = "cpu"
"""
    (tmp_path / "run.toml").write_text(text)
    command = ["-m", "navit_model", "train", str(tmp_path / "run.toml")]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    out = f"train.out={tmp_path / 'two'}"
    done = subprocess.run(
        [sys.executable, *torchrun, *command, out, "data.batch_size=1"], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    train(RunConfig.from_toml(tmp_path / "run.toml", [f"train.out={tmp_path / 'one'}"]))
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(one) == 8
    assert two == pytest.approx(one, abs=1e-4)
    ends = [checkpoint.open_checkpoint(tmp_path / name) for name in ("one", "two")]
    assert ends[0].state["loader"] == ends[1].state["loader"]
    assert ends[0].state["images"] == ends[1].state["images"]


def test_two_runs_never_share_a_folder(index: str, tmp_path: Path) -> None:
    run = config(index, tmp_path, steps=2)
    with hold(tmp_path), pytest.raises(ConfigError, match="in use by another run"):
        train(run)
    assert checkpoint.find(tmp_path) is None
    train(run)
    assert checkpoint.open_checkpoint(tmp_path).step == 2
