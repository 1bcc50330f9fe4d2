"""Images and captions together: two towers, their training through the real commands, retrieval and zero-shot."""

from __future__ import annotations

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

from navit_loader import PackedLoader, build_index
from navit_loader.errors import ConfigError, ModelError
from navit_model import NaViTConfig
from navit_model.cli import main
from navit_model.config import ContrastiveConfig, TextConfig
from navit_model.evaluate.retrieval import AT, evaluate_retrieval, recalls
from navit_model.losses.contrastive import sigmoid_contrastive, softmax_contrastive
from navit_model.model.text import pack_captions
from navit_model.model.towers import TwoTowers, pairs
from navit_model.train import checkpoint
from navit_model.train.log import read_log
from navit_model.train.run import train
from navit_model.train.settings import RunConfig
from navit_model.use.zero_shot import ZeroShot

from .pairs_kit import COLOURS, drawn, write_pairs
from .ranks import stopped

TOML = """
[data]
index = "{root}/train.arrow"
eval_index = "{root}/heldout.arrow"
batch_size = 2
[plan]
sequence_length = 128
max_images = 20
max_tokens = 36
patch_sizes = [4]
text_tokens = 320
max_text_tokens = 16
[plan.resolution]
kind = "uniform"
low = 12
high = 24
[render]
threads = 1
[model]
width = 32
depth = 2
heads = 2
patch_size = 4
max_grid = 16
[text]
width = 32
depth = 2
heads = 2
[contrastive]
width = 16
[train]
task = "contrastive"
out = "{root}/run"
steps = 220
warmup = 20
learning_rate = 4e-3
head_weight_decay = 0.03
checkpoint_every = 0
threads = 1
device = "cpu"
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Indexes of pictures with captions, one of them broken, and a configuration."""
    root = tmp_path_factory.mktemp("pairs")
    for seed, (name, count) in enumerate((("train", 480), ("heldout", 72))):
        build_index(write_pairs(root / name, count, seed), root / f"{name}.arrow")
    (root / "run.toml").write_text(TOML.format(root=root))
    return root


@pytest.fixture(scope="module")
def trained(root: Path) -> Path:
    """A run of `navit-model train`."""
    assert main(["train", str(root / "run.toml")]) == 0
    return root / "run"


def test_pictures_find_their_captions_and_captions_their_pictures(root: Path, trained: Path, tmp_path: Path) -> None:
    """Twelve captions: chance is 8 % at R@1 and 42 % at R@5."""
    index, out = str(root / "heldout.arrow"), tmp_path / "s.json"
    assert main(["eval", str(trained), index, "--retrieval", "--tokens", "16", "36", "--json", str(out)]) == 0
    scores = json.loads(out.read_text())["scores"]
    assert [s["tokens"] for s in scores] == [16, 36]
    for score in scores:
        assert (score["images"], score["texts"], score["failed"]) == (72, 12, 0)
        assert score["image_to_text"]["1"] > 0.5
        assert score["text_to_image"]["1"] > 0.5
        assert score["image_to_text"]["5"] > 0.9
    page = (trained / "report.html").read_text()
    assert "R@1, mean of both ways" in page
    losses = [entry["loss"] for entry in read_log(trained) if entry["kind"] == "train"]
    assert losses[-1] < 0.7 * losses[0]


def test_classes_are_told_by_their_names(root: Path, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Labels are colours, which no loss has ever seen as labels."""
    templates = ["a {} disc", "a {} box", "a {} cross"]
    index = str(root / "heldout.arrow")
    assert main(["eval", str(trained), index, "--zero-shot", *templates]) == 0
    table = capsys.readouterr().out
    assert float(table.splitlines()[1].split()[1].rstrip("%")) > 80, table
    assert main(["eval", str(trained), index]) == 2
    assert "give --retrieval or --zero-shot" in capsys.readouterr().err
    # The same names tell single files apart, and images have unit vectors.
    images = []
    for n, colour in enumerate(list(COLOURS) * 4):
        images.append(root / f"one-{n}.png")
        drawn("box", colour, np.random.default_rng([9, n])).save(images[-1])
    words = ("--labels", *COLOURS, "--template", "a {} box", "--top", "1")
    assert main(["predict", str(trained), *map(str, images), *words]) == 0
    told = [line.rsplit(" ", 2)[-2] for line in capsys.readouterr().out.splitlines()]
    assert np.mean([word == name for word, name in zip(told, list(COLOURS) * 4, strict=True)]) > 0.8
    assert main(["predict", str(trained), str(images[0])]) == 2
    assert "--labels" in capsys.readouterr().err
    assert main(["embed", str(trained), index, "-o", str(root / "vectors.npy")]) == 0
    assert np.allclose(np.linalg.norm(np.load(root / "vectors.npy"), axis=1), 1, atol=1e-5)


def test_recall_counts_an_image_that_cannot_be_read_against_the_model(
    root: Path, trained: Path, tmp_path: Path
) -> None:
    manifest = write_pairs(tmp_path / "images", 24, 7)
    build_index(manifest, tmp_path / "x.arrow")
    saved = checkpoint.open_checkpoint(trained)
    towers = saved.module()
    assert isinstance(towers, TwoTowers)
    whole = evaluate_retrieval(towers, str(tmp_path / "x.arrow"), saved.config.loader)
    for name in ("0003.png", "0004.png"):
        data = (tmp_path / "images" / name).read_bytes()
        (tmp_path / "images" / name).write_bytes(data[: len(data) // 2] + b"\0" * (len(data) - len(data) // 2))
    hurt = evaluate_retrieval(towers, str(tmp_path / "x.arrow"), saved.config.loader)
    assert (whole.failed, hurt.failed) == (0, 2)
    assert hurt.images == whole.images == 24
    assert hurt.image_to_text[10] <= 22 / 24


@pytest.mark.slow
def test_two_ranks_lose_what_one_loses(root: Path, tmp_path: Path) -> None:
    """Half the batch on each of two ranks, with unequal numbers of pairs, gives the losses of one process."""
    short = ["train.steps=6", "train.log_every=1", "train.eval_tokens=[]", "data.eval_index=''"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "-m", "navit_model", "train", str(root / "run.toml"), *short, "data.batch_size=1"]
    done = subprocess.run([*command, f"train.out={tmp_path / 'two'}"], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    train(RunConfig.from_toml(root / "run.toml", [*short, f"train.out={tmp_path / 'one'}"]))
    one, two = (
        {e["step"]: e["loss"] for e in read_log(tmp_path / name) if e["kind"] == "train"} for name in ("one", "two")
    )
    assert len(one) == 6
    assert two == pytest.approx(one, abs=1e-4)


def test_a_stopped_run_goes_on_bit_for_bit(root: Path, tmp_path: Path) -> None:
    changes = ["train.steps=6", "train.log_every=1", "data.eval_index=''", "train.ema=0.9", "text.dropout=0.1"]
    whole, halves = (RunConfig.from_toml(root / "run.toml", [*changes, f"train.out={tmp_path / n}"]) for n in "ab")
    train(whole)
    stopped(halves, 3)
    train(halves, resume=True)
    ends = [checkpoint.open_checkpoint(tmp_path / n).read("average") for n in "ab"]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    losses = [[e["loss"] for e in read_log(tmp_path / n) if e["kind"] == "train"] for n in "ab"]
    assert losses[0] == losses[1] and len(losses[0]) == 6


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_a_locked_tower_stays_and_the_text_follows(root: Path, trained: Path, tmp_path: Path, loss: str) -> None:
    changes = [f"contrastive.image_from={trained}", "contrastive.locked=true", f"train.loss={loss}", "train.steps=30"]
    train(
        RunConfig.from_toml(
            root / "run.toml", [*changes, f"train.out={tmp_path}", "model.dropout=0.1", "train.ema=0.5"]
        )
    )
    before = checkpoint.open_checkpoint(trained).module().state_dict()
    after = checkpoint.open_checkpoint(tmp_path).module().state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before if name.startswith("image."))
    moved = [name for name in before if name.startswith("text.") and not torch.equal(before[name], after[name])]
    assert moved
    assert ("logit_bias" in after) == (loss == "sigmoid")
    losses = [entry["loss"] for entry in read_log(tmp_path) if entry["kind"] == "train"]
    assert losses[-1] < losses[0]


def test_a_locked_tower_does_not_drop_out() -> None:
    image = NaViTConfig(width=16, depth=1, heads=2, patch_size=4, dropout=0.5)
    text = TextConfig(width=16, depth=1, heads=2, vocabulary=9, max_tokens=4, dropout=0.5)
    towers = TwoTowers(image, text, ContrastiveConfig(width=8, image_from="x", locked=True)).train()
    assert not any(part.training for part in towers.image.modules())
    assert all(part.training for part in towers.text.modules())
    assert not any(p.requires_grad for p in towers.image.parameters())


def test_the_temperature_is_held_back_and_stays_alive() -> None:
    image = NaViTConfig(width=16, depth=1, heads=2, patch_size=4)
    towers = TwoTowers(image, TextConfig(width=16, depth=1, heads=2, vocabulary=9, max_tokens=4), ContrastiveConfig())
    with torch.no_grad():
        towers.logit_scale.fill_(9.0)
    scale = towers.scale()
    assert float(scale.detach()) == pytest.approx(100.0)
    scale.backward()
    assert towers.logit_scale.grad is not None and float(towers.logit_scale.grad) == pytest.approx(100.0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="gpu: no CUDA device here")
@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_a_contrastive_step_on_the_gpu_never_waits_for_the_host(root: Path, loss: Any) -> None:
    run = RunConfig.from_toml(root / "run.toml")
    image = replace(run.model, width=128, heads=2)
    text = TextConfig(width=128, depth=2, heads=2, vocabulary=257, max_tokens=16, causal=True)
    towers = TwoTowers(image, text, ContrastiveConfig(width=16), loss).cuda().train()
    with PackedLoader(root / "train.arrow", run.loader) as loader:
        batch = next(iter(loader)).to("cuda")
    for synchronises in ("default", "error"):  # the first step warms up
        torch.cuda.set_sync_debug_mode(synchronises)
        try:
            with torch.autocast("cuda", torch.bfloat16):
                images, texts, scale, bias = towers(batch)
            if bias is None:
                total, count = softmax_contrastive(images, texts, pairs(batch), scale)
            else:
                total, count = sigmoid_contrastive(images, texts, pairs(batch), scale, bias)
            (total / count).backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")


@settings(max_examples=60, deadline=None)
@given(
    queries=st.integers(1, 12),
    targets=st.integers(1, 12),
    extra=st.integers(0, 20),
    coarse=st.booleans(),
    seed=st.integers(0, 999),
)
def test_recall_equals_sorting(queries: int, targets: int, extra: int, coarse: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    q_of = np.concatenate([np.arange(queries), rng.integers(0, queries, extra)])
    t_of = rng.integers(0, targets, len(q_of))
    # Coarse vectors make ties.
    q, t = (rng.integers(-1, 2, (n, 2)) if coarse else rng.standard_normal((n, 4)) for n in (queries, targets))
    q_there, t_there = rng.random(queries) < 0.8, rng.random(targets) < 0.8
    found = recalls(
        *(torch.from_numpy(x.astype(np.float64)) for x in (q, t)),
        q_of,
        t_of,
        *map(torch.from_numpy, (q_there, t_there)),
    )
    for k in AT:
        hits = 0
        for i in range(queries):
            own = {int(j) for a, j in zip(q_of, t_of, strict=True) if a == i}
            order = sorted((j for j in range(targets) if t_there[j]), key=lambda j: (-float(q[i] @ t[j]), j in own))
            hits += bool(q_there[i]) and any(j in own for j in order[:k])
        assert found[k] == pytest.approx(hits / queries)


def test_which_images_are_pairs(root: Path, tmp_path: Path) -> None:
    """Those that were read and have a caption."""
    folder = tmp_path / "images"
    folder.mkdir()
    entries: list[dict[str, Any]] = []
    for i in range(8):
        Image.new("RGB", (16, 16), (9 * i, 0, 0)).save(folder / f"{i}.png")
        entries.append({"path": f"{i}.png"} | ({"caption": f"number {i}"} if i % 2 else {}))
    (folder / "m.jsonl").write_text("\n".join(map(json.dumps, entries)))
    build_index(folder / "m.jsonl", tmp_path / "x.arrow")
    data = (folder / "3.png").read_bytes()
    (folder / "3.png").write_bytes(data[:-40] + b"\0" * 40)
    run = RunConfig.from_toml(root / "run.toml")
    plan = run.loader.for_evaluation()
    seen = {}
    with PackedLoader(tmp_path / "x.arrow", plan) as loader:
        for batch in loader:
            for row, pair in zip(batch.image_ids.ravel(), pairs(batch.to("cpu")).ravel().tolist(), strict=True):
                if row >= 0:
                    seen[int(row)] = pair
    assert seen == {i: i in (1, 5, 7) for i in range(8)}


def test_bad_input_is_named(root: Path, trained: Path, tmp_path: Path) -> None:
    toml = root / "run.toml"
    with pytest.raises(ConfigError, match=r"plan\.text_tokens = 0"):
        train(RunConfig.from_toml(toml, ["plan.text_tokens=0", "plan.max_text_tokens=0", f"train.out={tmp_path}"]))
    with pytest.raises(ConfigError, match=r"text\.vocabulary = 100 is not allowed; the data need 257"):
        train(RunConfig.from_toml(toml, ["text.vocabulary=100", f"train.out={tmp_path}"]))
    with pytest.raises(ConfigError, match=r"possible with contrastive\.image_from alone"):
        RunConfig.from_toml(toml, ["contrastive.locked=true"])
    build_index(write_pairs(tmp_path / "plain", 12, captions=False), tmp_path / "plain.arrow")
    with pytest.raises(ConfigError, match=r"no image of .* has a caption"):
        train(RunConfig.from_toml(toml, [f"data.index={tmp_path / 'plain.arrow'}", f"train.out={tmp_path}"]))
    towers = checkpoint.open_checkpoint(trained).module()
    assert isinstance(towers, TwoTowers)
    with pytest.raises(ModelError, match="zero-shot needs names"):
        ZeroShot(towers, list(COLOURS), ["a picture"])
    other = TwoTowers(replace(towers.image.config), replace(towers.text.config, tokenizer="feed"), towers.config)
    with pytest.raises(ModelError, match="trained with the tokenizer 'feed'"):
        ZeroShot(other, list(COLOURS))
    with pytest.raises(ModelError, match="have the tokenizer 'bytes', the model was trained with 'feed'"):
        evaluate_retrieval(other, str(root / "heldout.arrow"), checkpoint.open_checkpoint(trained).config.loader)


def test_a_long_name_is_cut_as_captions_are(trained: Path) -> None:
    towers = checkpoint.open_checkpoint(trained).module()
    assert isinstance(towers, TwoTowers)
    name = "a very long name of a class"
    ids = [*name.encode()[:15], 256]
    with torch.no_grad():
        wanted = towers.encode_text(pack_captions([ids]), normalize=True)[0]
    assert torch.allclose(ZeroShot(towers, [name]).weight, wanted, atol=1e-6)
