"""The trainer: settings, schedule, exact resume, whole checkpoints, stopping on a bad loss.

In: a small folder of shapes that the test writes. Everything runs through the real loader and the real model on the CPU.
"""

from __future__ import annotations

import itertools
import json
import resource
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from navit_loader import PackedLoader, build_index
from navit_loader.errors import ConfigError, ModelError
from navit_loader.render.engine import Engine
from navit_model import NaViT
from navit_model.evaluate.classification import evaluate
from navit_model.train import checkpoint
from navit_model.train.feed import open_loader
from navit_model.train.lock import hold
from navit_model.train.log import read_log
from navit_model.train.optim import optimiser
from navit_model.train.run import train
from navit_model.train.schedule import learning_rate
from navit_model.train.settings import RunConfig, TrainConfig
from navit_model.train.tasks.classification import Classification
from navit_model.train.trainer import Trainer
from navit_model.weights import tensors
from navit_model.world import World

sys.path.insert(0, str(Path(__file__).parent))
from ranks import stopped
from shapes import table, write_index


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_index(tmp_path_factory.mktemp("shapes"))


def config(index: str, out: Path, **changes: Any) -> RunConfig:
    return RunConfig.from_dict(table(index, out, **{"ema": 0.9, **changes}))


def losses(out: Path) -> dict[int, float]:
    return {e["step"]: e["loss"] for e in read_log(out) if e["kind"] == "train"}


def test_a_resumed_run_gives_the_same_losses_and_weights_bit_for_bit(index: str, tmp_path: Path) -> None:
    mixed = {"mix": {"mixup": 0.8, "cutmix": 1.0, "probability": 0.9}, "layer_decay": 0.75}
    whole, halves = (config(index, tmp_path / name, **mixed) for name in ("whole", "halves"))
    train(whole)
    stopped(halves, 7)
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
    assert "The first training batch" in page
    assert f"{score.accuracy:.2%}" in page


def test_an_earlier_checkpoint_stays_whole_where_saving_fails(index: str, tmp_path: Path) -> None:
    run = config(index, tmp_path, steps=8, checkpoint_every=4)
    stopped(run, 4)
    saved = checkpoint.open_checkpoint(tmp_path)
    weights = saved.read("model")
    largest = max(file.stat().st_size for file in saved.path.iterdir())
    # A real limit of the system's, as a full disk is: no file may grow to the size that the largest needs.
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest - 100, before[1]))
    try:
        with pytest.raises(ModelError, match=r"step 8 could not be saved.*go on from there"):
            train(run, resume=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert checkpoint.open_checkpoint(tmp_path).step == 4
    again = checkpoint.open_checkpoint(tmp_path).read("model")
    assert all(torch.equal(weights[k], again[k]) for k in weights)
    assert not list((tmp_path / "checkpoints").glob(".*"))
    train(run, resume=True)
    assert checkpoint.open_checkpoint(tmp_path).step == 8


def test_a_loss_that_is_not_finite_stops_the_run_and_names_its_batch(index: str, tmp_path: Path) -> None:
    run = config(index, tmp_path, learning_rate=1e38, warmup=0, clip=0.0, checkpoint_every=1)
    with pytest.raises(ModelError, match="not finite"):
        train(run)
    (entry,) = [e for e in read_log(tmp_path) if e["kind"] == "not_finite"]
    ((epoch, first),) = entry["batches"]
    with PackedLoader(index, run.loader) as loader:
        loader.set_epoch(epoch)
        batches = list(itertools.islice(loader, entry["step"]))
    # What the entry names is the batch of that step, and it can be rendered by itself.
    assert (batches[-1].epoch, batches[-1].sequence) == (epoch, first)
    with Engine(run.loader, index) as engine:
        again = engine.submit(epoch, first, run.loader.data.batch_size).wait()
    assert again is not None and (again.patches == batches[-1].patches).all()
    found = checkpoint.find(tmp_path)
    assert found is None or found.step < entry["step"]


def test_a_run_is_never_overwritten_nor_continued_with_other_settings(index: str, tmp_path: Path) -> None:
    run = config(index, tmp_path, steps=2)
    train(run)
    with pytest.raises(ConfigError, match="--resume"):
        train(run)
    with pytest.raises(ModelError, match=r"train\.learning_rate"):
        train(config(index, tmp_path, steps=2, learning_rate=0.5), resume=True)
    other = table(index, tmp_path, steps=2, ema=0.9)
    other["plan"]["drop"]["rate"] = 0.25
    with pytest.raises(ModelError, match=r"plan\.drop\.rate = 0\.4, the run now says 0\.25"):
        train(RunConfig.from_dict(other), resume=True)
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
    (saved.path / checkpoint.SUMS).unlink()
    with pytest.raises(ModelError, match=r"model\.safetensors.*cannot be read"):
        checkpoint.find(tmp_path)
    path.unlink()
    (saved.path / "state.json").write_text(json.dumps({"version": 99}))
    with pytest.raises(ModelError, match="version 99"):
        checkpoint.find(tmp_path)


@pytest.mark.parametrize("file", ["average", "optimizer"])
def test_a_run_goes_on_only_with_everything_that_was_saved(index: str, tmp_path: Path, file: str) -> None:
    """Neither an average nor moments that are missing, of another shape or of another model pass for others."""
    run = config(index, tmp_path, steps=2)
    train(run)
    path = checkpoint.open_checkpoint(tmp_path).path / f"{file}.safetensors"
    whole = load_file(path)
    # As a checkpoint of before there were hashes, which has to fit all the same.
    (path.parent / checkpoint.SUMS).unlink()
    state = json.loads((path.parent / "state.json").read_text())
    (path.parent / "state.json").write_text(json.dumps({k: v for k, v in state.items() if k != "sums"}))
    name = next(key for key, value in whole.items() if key.startswith("norm.weight") and value.ndim)
    for changed, message in (
        ({k: v for k, v in whole.items() if k.split("/")[0] != "norm.weight"}, "has no weight 'norm.weight"),
        ({**whole, name: whole[name][:-1].clone()}, r"has shape \[15\]"),
        ({**whole, f"other/{name}": whole[name].clone()}, f"a weight 'other/{name}'"),
    ):
        save_file(changed, path)
        with pytest.raises(ModelError, match=message):
            train(run, resume=True)
    save_file(whole, path)
    train(run, resume=True)


def test_what_is_decayed(index: str, tmp_path: Path) -> None:
    """Matrices of the body and of the classifier each at their rate, position tables among them; nothing else is."""
    run = config(index, tmp_path, weight_decay=0.25, head_weight_decay=0.5)
    net = NaViT(replace(run.model, classes=2, registers=1, pool="map"))
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    rates = {names[id(p)]: g["weight_decay"] for g in optimiser(net, run.train).param_groups for p in g["params"]}
    assert rates.keys() == set(names.values())
    for name, parameter in net.named_parameters():
        assert rates[name] == (0.0 if parameter.ndim < 2 else 0.5 if name == "head.weight" else 0.25), name
    assert {name.split(".")[0] for name, rate in rates.items() if rate == 0.25} >= {"positions", "prefix", "pool"}


def test_each_layer_has_its_rate(index: str, tmp_path: Path) -> None:
    """The classifier the whole, each layer below it `layer_decay` times that of the one above."""
    run = config(index, tmp_path, layer_decay=0.5)
    net = NaViT(replace(run.model, depth=2, classes=2, registers=1, pool="map"))
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    found = {names[id(p)]: g["scale"] for g in optimiser(net, run.train).param_groups for p in g["params"]}
    assert found.keys() == set(names.values())
    for name, scale in found.items():
        top, block = name.split(".")[:2] if "." in name else (name, "")
        wanted = 0.5 ** (2 - int(block)) if top == "blocks" else 1.0 if top in ("norm", "pool", "head") else 0.125
        assert scale == wanted, name
    assert {g["scale"] for g in optimiser(net, replace(run.train, layer_decay=1.0)).param_groups} == {1.0}


def test_what_is_frozen_stays_and_the_rest_learns(index: str, tmp_path: Path) -> None:
    run = config(index, tmp_path, freeze=2, layer_decay=0.9, ema=0.0, mix={"mixup": 0.8, "cutmix": 1.0})
    run = replace(run, model=replace(run.model, depth=2))
    world = World.join("cpu")
    with open_loader(run, world) as loader:
        trainer = Trainer(run, loader, world, None)
        before = {name: value.clone() for name, value in trainer.module.state_dict().items()}
        trainer.run()
    frozen = ("patch_embed.", "positions.", "blocks.0.")
    for name, value in trainer.module.state_dict().items():
        if trainer.module.get_parameter(name).ndim >= 2:
            assert torch.equal(value, before[name]) == name.startswith(frozen), name
    train(run, resume=True)  # at its end: what it saved is read again
    with pytest.raises(ConfigError, match=r"train\.freeze = 4 is not allowed; it must be at most 3"):
        train(replace(run, train=replace(run.train, freeze=4, out=str(tmp_path / "more"))))


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
    slow = replace(run, timescale=3 * max(warmup, 1))
    assert all(learning_rate(s, slow) >= r for s, r in enumerate(rates))
    if kind == "rsqrt" and not cooldown and steps > 5 * max(warmup, 1):
        assert learning_rate(4 * max(warmup, 1), slow) == pytest.approx(0.5 / 2**0.5)
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


# PyTorch's tracer looks at the gradient of what the embedding hands to the encoder, and is warned by itself.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_the_recipe_s_switches_change_speed_and_never_the_meaning(index: str, tmp_path: Path) -> None:
    """Recomputed blocks give the same losses; compiled and bfloat16 steps nearly the same; augmented ones others."""

    def run(name: str, model: dict[str, Any], **changes: Any) -> list[float]:
        given = table(index, tmp_path / name, steps=4, **changes)
        given["model"] |= {"attention": "dense", **model}
        train(RunConfig.from_dict(given))
        return [loss for _, loss in sorted(losses(tmp_path / name).items())]

    plain = run("plain", {})
    assert run("recomputed", {"checkpointing": True}) == pytest.approx(plain, abs=1e-6)
    assert run("compiled", {}, compile=True) == pytest.approx(plain, abs=1e-4)
    half = run("half", {}, precision="bf16")
    assert half != plain
    assert half == pytest.approx(plain, rel=0.05)
    changed = {"layers": 2, "magnitude": 10.0}
    coloured = run("coloured", {}, augment=changed)
    assert coloured != plain
    assert run("again", {}, augment=changed) == coloured


def test_tensorboard_holds_what_the_log_holds(index: str, tmp_path: Path) -> None:
    given = table(index, tmp_path, steps=3, tensorboard=True, peak_tflops=0.5)
    given["data"]["eval_index"] = index
    train(RunConfig.from_dict(given))
    accumulator = EventAccumulator(str(tmp_path / "tensorboard"))
    accumulator.Reload()
    entries = [e for e in read_log(tmp_path) if e["kind"] == "train"]
    for name in ("loss", "mfu", "starved"):
        shown = {e.step: e.value for e in accumulator.Scalars(f"train/{name}")}
        assert shown == pytest.approx({e["step"]: e[name] for e in entries})
    assert 0 < entries[-1]["mfu"] < 1
    assert entries[-1]["mfu"] == pytest.approx(entries[-1]["tflops"] / 0.5)
    (score,) = accumulator.Scalars("eval/32/accuracy")
    assert score.step == 3


def test_two_runs_never_share_a_folder(index: str, tmp_path: Path) -> None:
    run = config(index, tmp_path, steps=2)
    with hold(tmp_path), pytest.raises(ConfigError, match="in use by another run"):
        train(run)
    assert checkpoint.find(tmp_path) is None
    train(run)
    assert checkpoint.open_checkpoint(tmp_path).step == 2


def test_a_run_goes_on_behind_the_last_batch_of_an_epoch(index: str, tmp_path: Path) -> None:
    run = config(index, tmp_path, steps=9)
    with open_loader(run, World.join("cpu")) as loader:
        steps = len(loader)
        trainer = Trainer(run, loader, World.join("cpu"), None)
        trainer.stop_after = steps
        with pytest.raises(KeyboardInterrupt):
            trainer.run()
    train(run, resume=True)
    assert sorted(losses(tmp_path)) == list(range(1, 10))


def test_data_that_a_task_cannot_learn_from_are_refused(index: str, tmp_path: Path) -> None:
    run = config(index, tmp_path / "run", steps=2)
    world = World.join("cpu")
    with open_loader(run, world) as loader:
        task = Classification(run, loader.classes[:2], world, checkpoint.open_image_model)
        with pytest.raises(ModelError, match=r"image \d+ of index 0 has the label 2, but there are 2 classes"):
            list(map(task.check, loader))
    images = sorted((Path(index).parent / "images").rglob("*.png"))[:6]
    manifest = tmp_path / "bare.jsonl"
    manifest.write_text("".join(json.dumps({"path": str(path)}) + "\n" for path in images))
    build_index(manifest, tmp_path / "bare.arrow")
    with pytest.raises(ConfigError, match="no classes to learn"):
        train(config(str(tmp_path / "bare.arrow"), tmp_path / "bare", steps=2))
    with pytest.raises(ConfigError, match="text_tokens"):
        train(config(index, tmp_path / "pairs", steps=2, task="contrastive"))


def test_large_checkpoints_come_in_parts_and_a_missing_one_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensors, "PART_BYTES", 1000)
    given = {f"t{n}": torch.randn(10, 10) for n in range(7)}
    tensors.write(tmp_path, "model", given)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert files[0].name == "model-00001-of-00004.safetensors" and len(files) == 4
    found = tensors.read(tmp_path, "model")
    assert found.keys() == given.keys() and all(torch.equal(found[k], given[k]) for k in given)
    files[2].unlink()
    with pytest.raises(ModelError, match="3 of 4 parts"):
        tensors.read(tmp_path, "model")
