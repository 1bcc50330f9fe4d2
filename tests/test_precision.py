"""Half precision by GPU, and the scaled loss of float16: what is decided and what a checkpoint carries, without a GPU.

In: compute capabilities; small runs on the CPU in float32, whose loss is scaled as float16's is. A power of two changes no
digit, so such a run gives the losses of one without.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from navit_model.model.attention import automatic
from navit_model.train import checkpoint
from navit_model.train.feed import open_loader
from navit_model.train.log import read_log
from navit_model.train.run import train
from navit_model.train.settings import RunConfig
from navit_model.train.trainer import Trainer, slower
from navit_model.world import World, half_of

sys.path.insert(0, str(Path(__file__).parent))
from shapes import table, write_index


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_index(tmp_path_factory.mktemp("shapes"))


def losses(out: Path) -> list[float]:
    return [e["loss"] for e in read_log(out) if e["kind"] == "train"]


def scaled(run: RunConfig, scale: float, stop_after: int | None = None, afresh: bool = False) -> Trainer:
    """Runs with a scaled loss, from the newest checkpoint where there is one, with its scale if not `afresh`."""
    start = checkpoint.find(run.train.out)
    with open_loader(run, World.join("cpu")) as loader:
        trainer = Trainer(run, loader, World.join("cpu"), start)
        trainer.scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=4)
        if start is not None and not afresh:
            trainer.scaler.load_state_dict(start.state["scaler"])
        trainer.stop_after = stop_after
        if stop_after is None:
            trainer.run()
        else:
            with pytest.raises(KeyboardInterrupt):
                trainer.run()
    return trainer


@pytest.mark.parametrize(
    ("capability", "flash", "own", "backend", "precision"),
    [
        (None, False, False, "segments", None),
        ((7, 0), False, False, "segments", "fp16"),
        ((7, 5), False, False, "segments", "fp16"),
        ((8, 0), False, False, "torch_varlen", "bf16"),
        ((8, 9), False, False, "torch_varlen", "bf16"),
        ((9, 0), False, False, "torch_varlen", "bf16"),
        ((9, 0), False, True, "triton", "bf16"),
        ((9, 0), True, True, "flash_attn", "bf16"),
        ((12, 0), False, False, "torch_varlen", "bf16"),
    ],
)
def test_what_each_gpu_gets(
    capability: tuple[int, int] | None, flash: bool, own: bool, backend: str, precision: str | None
) -> None:
    assert automatic(capability, flash, own) == backend
    if capability is not None:
        assert half_of(capability) == precision
        for asked in ("fp32", "bf16", "fp16"):
            said = slower(capability, asked)
            assert ("no kernel of packed attention" in said) == (backend == "segments") and "\n" not in said
            assert ("train.precision = 'fp16'" in said) == (precision == "fp16" != asked)


def test_a_scaled_loss_changes_nothing_and_goes_on_bit_for_bit(index: str, tmp_path: Path) -> None:
    plain, whole, halves = (RunConfig.from_dict(table(index, tmp_path / n)) for n in ("plain", "whole", "halves"))
    train(plain)
    assert "scaler" not in checkpoint.open_checkpoint(tmp_path / "plain").state
    end = scaled(whole, 2.0**16)
    assert losses(tmp_path / "whole") == losses(tmp_path / "plain")
    scaled(halves, 2.0**16, stop_after=7)
    state = checkpoint.open_checkpoint(tmp_path / "halves").state["scaler"]
    assert (state["scale"], state["_growth_tracker"]) == (2.0**17, 3)
    again = scaled(halves, 1.0)
    assert losses(tmp_path / "halves") == losses(tmp_path / "plain")
    assert again.scaler.state_dict() == end.scaler.state_dict() == {**state, "scale": 2.0**19, "_growth_tracker": 0}


def test_a_step_whose_gradients_overflow_is_left_out(index: str, tmp_path: Path) -> None:
    wild: dict[str, Any] = {"learning_rate": 0.3, "schedule": "constant", "clip": 0.0, "ema": 0.5}
    run = RunConfig.from_dict(table(index, tmp_path, **wild))
    scaled(run, 1.0, stop_after=7)
    before = checkpoint.open_checkpoint(tmp_path).read("model")
    most = float(torch.finfo(torch.float32).max)
    scaled(run, most, stop_after=8, afresh=True)
    after = checkpoint.open_checkpoint(tmp_path)
    assert all(torch.equal(after.read("model")[name], value) for name, value in before.items())
    assert after.state["scaler"]["scale"] == pytest.approx(most / 2)
    entry = [e for e in read_log(tmp_path) if e["kind"] == "train"][-1]
    assert entry["grad_norm"] == 0 and json.loads(json.dumps(entry, allow_nan=False)) == entry
    scaled(run, 1.0, stop_after=9, afresh=True)
    moved = checkpoint.open_checkpoint(tmp_path).read("model")
    assert not any(torch.equal(moved[name], value) for name, value in before.items())
