"""Distillation: the losses against their formulas, and students that learn from a teacher's own view."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from navit_loader import build_index
from navit_loader.batch import OK
from navit_loader.errors import ConfigError, ModelError
from navit_model import NaViT
from navit_model.evaluate.classification import evaluate
from navit_model.losses.distillation import distillation_loss
from navit_model.train import checkpoint
from navit_model.train.begin import take_over
from navit_model.train.log import read_log
from navit_model.train.run import train
from navit_model.train.settings import RunConfig
from navit_model.train.tasks.distillation import Distillation

from .packed import packed
from .pairs_kit import write_pairs


@settings(max_examples=30, deadline=None)
@given(
    kind=st.sampled_from(["soft", "hard"]),
    temperature=st.sampled_from([1.0, 3.0]),
    failed=st.booleans(),
    seed=st.integers(0, 99),
)
def test_losses_are_their_formulas_and_masked_slots_reach_nothing(
    kind: Any, temperature: float, failed: bool, seed: int
) -> None:
    sequences = [[(1, 2), (2, 2)], [], [(1, 1)]]
    batch = packed(sequences, length=8, longest=8, images=3, failed=[(0, 1)] if failed else []).to("cpu")
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(3, 3, 4, generator=generator) * 3 for _ in range(2))
    gone = batch.status != OK
    student, teacher = (x.masked_fill(gone[..., None], torch.nan) for x in (student, teacher))
    student.requires_grad_()
    total, count = distillation_loss(student, teacher, batch, kind=kind, temperature=temperature)
    total.backward()
    expected = 0.0
    for b, e in (~gone).nonzero().tolist():
        s, t = (x[b, e].detach().double().numpy() / (temperature if kind == "soft" else 1) for x in (student, teacher))
        p, q = (np.exp(x) / np.exp(x).sum() for x in (s, t))
        expected += -np.log(p[q.argmax()]) if kind == "hard" else temperature**2 * (q * np.log(q / p)).sum()
    assert int(count) == int((~gone).sum())
    assert float(total.detach()) == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert not student.grad[gone].any()
    assert student.grad[~gone].abs().sum(-1).gt(0).all()


def test_a_teacher_of_other_classes_is_refused() -> None:
    batch = packed([[(1, 1)]], length=4, longest=4, images=1).to("cpu")
    with pytest.raises(ModelError, match="a teacher of the same classes"):
        distillation_loss(torch.zeros(1, 1, 3), torch.zeros(1, 1, 4), batch)


def run(index: Path, out: Path, train: dict[str, Any], **sections: dict[str, Any]) -> RunConfig:
    table: dict[str, Any] = {
        "data": {"index": str(index), "eval_index": str(index), "batch_size": 2},
        "plan": {
            "sequence_length": 128,
            "max_images": 24,
            "max_tokens": 36,
            "patch_sizes": [4],
            "resolution": {"kind": "uniform", "low": 12, "high": 24},
        },
        "render": {"threads": 1},
        "model": {"width": 32, "depth": 2, "heads": 2, "patch_size": 4, "max_grid": 16},
        "train": {
            "out": str(out),
            "warmup": 10,
            "learning_rate": 4e-3,
            "head_weight_decay": 0.05,
            "log_every": 10,
            "checkpoint_every": 0,
            "threads": 1,
            "device": "cpu",
            **train,
        },
    }
    for name, keys in sections.items():
        table[name] = {**table.get(name, {}), **keys}
    return RunConfig.from_dict(table)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An index of four colours, and a run that knows them."""
    root = tmp_path_factory.mktemp("distillation")
    build_index(write_pairs(root / "images", 240, captions=False), root / "x.arrow")
    (score,) = train(run(root / "x.arrow", root / "teacher", {"steps": 60}))
    assert score.to_dict()["accuracy"] > 0.9
    return root / "x.arrow", root / "teacher"


VIEW = {"patch_size": 4, "sequence_length": 256, "max_tokens": 64}


@pytest.mark.parametrize(
    ("model", "distillation"),
    [
        ({"patch_sizes": (4, 8)}, {"from_teacher": True}),
        ({"distill_token": True}, {"kind": "hard", "weight": 0.5}),
    ],
    ids=["flexivit", "deit"],
)
def test_a_student_learns_what_its_teacher_knows(
    teacher: tuple[Path, Path], tmp_path: Path, model: dict[str, Any], distillation: dict[str, Any]
) -> None:
    index, path = teacher
    prefix = int(model.get("distill_token", False))
    plan = {"teacher": VIEW, "drop": {"kind": "constant", "rate": 0.3}, "prefix_tokens": prefix}
    if "patch_sizes" in model:
        plan |= {"patch_sizes": [4, 8], "patch_run": 2}
    steps = {"steps": 60}
    wanted = run(index, tmp_path, steps, model=model, plan=plan, distillation={"teacher": str(path), **distillation})
    wanted = replace(wanted, train=replace(wanted.train, task="distillation"))
    (score,) = train(wanted)
    losses = [entry["loss"] for entry in read_log(tmp_path) if entry["kind"] == "train"]
    assert losses[-1] < 0.7 * losses[0]
    assert score.to_dict()["accuracy"] > 0.8
    saved = checkpoint.open_checkpoint(tmp_path)
    if "patch_sizes" in model:
        # At a patch size that the teacher never saw.
        other = evaluate(saved.model(), str(index), saved.config.loader, patch_size=8, classes=saved.classes)
        assert other.accuracy > 0.6


def test_a_student_of_another_base_size_starts_as_its_teacher(teacher: tuple[Path, Path]) -> None:
    """It says of the enlarged patches what the teacher says of the patches."""
    source = checkpoint.open_checkpoint(teacher[1]).model()
    student = NaViT(replace(source.config, patch_size=8, patch_sizes=(4, 8))).eval()
    take_over(student, source, str(teacher[1]))
    layout = [[(3, 4), (2, 5)], [(5, 3)]]
    small = packed(layout, length=24, longest=24, images=2, floats=True).to("cpu")
    pixels = small.patches.unflatten(-1, (4, 4, 3)).flatten(0, 1).permute(0, 3, 1, 2)
    enlarged = F.interpolate(pixels, (8, 8), mode="bilinear").permute(0, 2, 3, 1).reshape(2, 24, -1)
    large = replace(small, patches=enlarged, patch_size=8)
    with torch.no_grad():
        ok = small.status == OK
        assert (student(large)[ok] - source(small)[ok]).abs().max() < 1e-3
    with pytest.raises(ModelError, match=r"has model\.width = 32, the run says 16"):
        take_over(NaViT(replace(source.config, width=16)), source, str(teacher[1]))


def test_bad_input_is_named(teacher: tuple[Path, Path], tmp_path: Path) -> None:
    index, path = teacher
    base = run(index, tmp_path, {"steps": 1, "task": "distillation"}, distillation={"teacher": str(path)})
    with pytest.raises(ConfigError, match=r"set \[plan\.teacher\]"):
        train(base)
    with pytest.raises(ConfigError, match=r"distillation\.teacher = ''"):
        train(replace(base, distillation=replace(base.distillation, teacher="")))
    one = {"steps": 1, "task": "distillation"}
    seen = run(index, tmp_path, one, plan={"teacher": VIEW}, distillation={"teacher": str(tmp_path / "nobody")})
    with pytest.raises(ModelError, match="no checkpoint at"):
        train(seen)
    plan = {"teacher": {**VIEW, "patch_size": 8}}
    other = run(index, tmp_path, one, plan=plan, distillation={"teacher": str(path)})
    with pytest.raises(ModelError, match=r"in the teacher's view .* patches of 8 pixels, the model takes 4"):
        train(other)


def test_class_weights_that_nothing_reads_are_refused() -> None:
    """Where a run begins: those that were saved with them are still opened."""
    given = RunConfig.from_dict({"train": {"task": "distillation", "class_weights": {"cat": 2.0}}})
    loader: Any = None
    with pytest.raises(ConfigError, match=r"train\.class_weights = .*left out where distillation\.weight = 1"):
        Distillation.prepare(given, loader)
