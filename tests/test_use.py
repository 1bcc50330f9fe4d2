"""Using a trained model: evaluation over budgets and patch sizes, cascades, probes, embeddings, prediction, fine-tuning.

In: one small run, trained once. Everything goes through the real commands' `main`, in this process.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars
import pytest
import torch
from PIL import Image

from navit_loader import PackedLoader, build_index, open_index
from navit_loader.batch import OK
from navit_loader.errors import ModelError
from navit_loader.schema import toml_value
from navit_model.cli import main
from navit_model.evaluate.cascade import Answers, cascade
from navit_model.model.navit import NaViT
from navit_model.train import checkpoint
from navit_model.train.run import train
from navit_model.train.settings import RunConfig
from navit_model.use import vectors
from navit_model.use.finetune import load
from navit_model.use.frozen import planned
from navit_model.use.opened import open_model
from navit_model.use.probe import linear

sys.path.insert(0, str(Path(__file__).parent))
from shapes import table, write_index

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images, their index `shapes.arrow`, and a run at two patch sizes."""
    folder = tmp_path_factory.mktemp("use")
    given = table(write_index(folder), folder / "run", steps=120, log_every=40, checkpoint_every=0, ema=0.9)
    given["plan"] |= {"patch_sizes": [4, 5], "patch_run": 4}
    given["model"] |= {"patch_sizes": [4, 5]}
    train(RunConfig.from_dict(given))
    return folder


def call(capsys: pytest.CaptureFixture[str], *args: object, status: int = 0) -> tuple[str, str]:
    capsys.readouterr()
    assert main([str(a) for a in args]) == status
    said = capsys.readouterr()
    return said.out, said.err


def test_eval_by_budget_and_patch_size_with_a_cascade_and_a_plot(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ("--json", tmp_path / "s.json", "--plot", tmp_path / "s.png")
    out, _ = call(capsys, "eval", root / "run", root / "shapes.arrow", "--tokens", 4, 16, 30, "--cascade", *files)
    found = json.loads((tmp_path / "s.json").read_text())
    scores = {(s["patch_size"], s["tokens"]): s for s in found["scores"]}
    assert set(scores) == {(p, t) for p in (4, 5) for t in (4, 16, 30)}
    assert all(s["images"] == 90 and s["mean_tokens"] <= s["tokens"] for s in scores.values())
    assert scores[4, 16]["accuracy"] > 0.9
    assert scores[4, 30]["outside"] and not scores[4, 16]["outside"]
    assert "16" in out and "30*" in out and "patch" in out
    for patch in (4, 5):
        curve = found["cascades"][str(patch)]
        # Never sure enough: every image is looked at at every budget. Always: at the first alone.
        everything = sum(scores[patch, t]["mean_tokens"] for t in (4, 16, 30))
        assert curve[0]["accuracy"] == pytest.approx(scores[patch, 4]["accuracy"])
        assert curve[0]["tokens"] == pytest.approx(scores[patch, 4]["mean_tokens"])
        assert curve[-1]["accuracy"] == pytest.approx(scores[patch, 30]["accuracy"])
        assert curve[-1]["tokens"] == pytest.approx(everything)
        assert curve[-1]["looks"] == 3
    with Image.open(tmp_path / "s.png") as picture:
        assert picture.width > 500


def test_json_stands_alone_and_quiet_leaves_results(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of each command that uses a run; and of training, whose steps are no result."""
    run, index, cut = root / "run", root / "shapes.arrow", ("--tokens", 16)
    made = json.loads(
        json.dumps(table(index, tmp_path / "short", steps=2, log_every=1, checkpoint_every=0), default=str)
    )
    lines = [
        f"[{name}]\n" + "".join(f"{k} = {toml_value(v)}\n" for k, v in keys.items()) for name, keys in made.items()
    ]
    (tmp_path / "c.toml").write_text("\n".join(lines))
    commands = {
        "eval": (run, index, *cut, "--patch-size", 4),
        "probe": (run, index, index, "--shots", 1, *cut),
        "predict": (run, next(root.rglob("*.png")), *cut),
        "embed": (run, index, "-o", tmp_path / "v.npy", *cut),
        "report": (run,),
        "train": (tmp_path / "c.toml",),
    }
    for name, words in commands.items():
        out, err = call(capsys, name, *words, "--json")
        (line,) = out.splitlines()
        assert json.loads(line) and not err, name
        again = (f"train.out={tmp_path}/other",) if name == "train" else ()
        out, err = call(capsys, name, *words, *again, "--quiet")
        assert bool(out) == (name in ("eval", "probe", "predict")) and not err, name


def test_a_cascade_spends_tokens_only_where_the_model_is_not_sure() -> None:
    cheap = Answers(*(torch.tensor(v) for v in ([0.9, 0.3, 0.6], [1.0, 0.0, 0.0], [2.0, 2.0, 2.0], [1.0, 1.0, 0.0])))
    dear = Answers(*(torch.tensor(v) for v in ([0.9, 0.8, 0.9], [1.0, 1.0, 1.0], [10.0, 6.0, 8.0], [1.0, 1.0, 0.0])))
    curve = {round(p.threshold, 3): p for p in cascade([cheap, dear], points=3)}
    assert (curve[0.0].accuracy, curve[0.0].tokens) == (0.5, 2.0)
    # The second image alone is looked at again; the third has no label and counts nowhere.
    assert (curve[0.6].accuracy, curve[0.6].tokens, curve[0.6].looks) == (1.0, 5.0, 1.5)


def test_the_probe_tells_shapes_apart(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = root / "shapes.arrow"
    file = root / "probe.json"
    out, _ = call(capsys, "probe", root / "run", index, index, "--shots", 1, 8, "--tokens", 16, "--json", file)
    one, eight = json.loads(file.read_text())["probes"]
    assert eight["mean"] >= max(0.9, one["mean"])
    assert len(eight["accuracies"]) == 3
    assert (eight["images"], eight["failed"]) == (90, 0)
    assert f"{eight['mean']:.2%}" in out
    _, err = call(capsys, "probe", root / "run", index, index, "--shots", 31, status=2)
    assert "fewer than 31 shots" in err


def test_the_probe_s_regression_is_scikit_learn_s(root: Path) -> None:
    from sklearn.linear_model import RidgeCV

    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 60)
    x = rng.standard_normal((60, 25)) + 2 * np.eye(25)[labels]
    y = np.where(labels[:, None] == np.arange(3), 1.0, -1.0)
    weights, bias = linear(x, labels, 3)
    strengths = 2.0 ** np.arange(-12, 13) * (np.linalg.svd(x - x.mean(0), compute_uv=False) ** 2).mean()
    theirs = RidgeCV(alphas=strengths).fit(x, y)
    assert np.allclose(weights, theirs.coef_.T, atol=1e-6)
    assert np.allclose(bias, theirs.intercept_, atol=1e-6)


def test_embeddings_are_those_of_the_model_in_the_order_of_the_index(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = root / "shapes.arrow"
    for name in ("e.npy", "e.arrow"):
        call(capsys, "embed", root / "run", index, "-o", tmp_path / name, "--tokens", 16)
    vectors = np.load(tmp_path / "e.npy")
    assert vectors.shape == (90, 16) and vectors.dtype == np.float32
    opened = open_model(root / "run", CPU)
    with PackedLoader(index, planned(opened, 16)) as loader:
        for batch in loader:
            found = opened.embed(batch).numpy()
            for b, e in np.argwhere(batch.status == OK):
                assert np.allclose(vectors[batch.image_ids[b, e]], found[b, e], atol=1e-5)
    frame = polars.read_ipc(tmp_path / "e.arrow")
    assert frame.columns == ["row", "shard", "name", "label", "embedding"]
    assert np.array_equal(np.stack(frame["embedding"].to_numpy()), vectors)
    assert frame["row"].to_list() == list(range(90))
    assert not list(tmp_path.glob("*.part"))
    _, err = call(capsys, "embed", root / "run", index, "-o", tmp_path / "e.csv", status=2)
    assert ".npy or .arrow" in err


def test_embedding_goes_on_where_it_was_and_refuses_the_work_of_another_model(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, output = str(root / "shapes.arrow"), tmp_path / "e.npy"
    opened = open_model(root / "run", CPU)
    monkeypatch.setattr(vectors, "SAVE_EVERY", 1)
    calls: list[int] = []

    def stop(done: int, total: int) -> None:
        calls.append(done)
        if len(calls) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        vectors.export(opened, index, output, tokens=16, progress=stop)
    assert not output.exists()
    again: list[int] = []
    assert vectors.export(opened, index, output, tokens=16, progress=lambda done, total: again.append(done)) == 0
    assert again[0] > calls[-1]
    assert again[-1] == 90
    whole = tmp_path / "whole.npy"
    vectors.export(opened, index, whole, tokens=16)
    assert np.array_equal(np.load(output), np.load(whole))
    calls.clear()
    with pytest.raises(KeyboardInterrupt):
        vectors.export(opened, index, output, tokens=16, progress=stop)
    NaViT(opened.model.config).save_pretrained(tmp_path / "other")
    with pytest.raises(ModelError, match="was begun with model"):
        vectors.export(open_model(tmp_path / "other", CPU), index, output, tokens=16)


def test_prediction_names_classes_and_bad_files(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "no.png").write_text("no image")
    images = sorted((root / "images" / "class1").glob("*.png"))
    given = (images[0], tmp_path / "no.png", root / "images" / "class2", tmp_path / "gone.jpg")
    out, err = call(capsys, "predict", root / "run", *given, "--tokens", 16, "--json", status=1)
    rows = [json.loads(line) for line in out.splitlines()]
    assert [r["path"] for r in rows] == [str(p) for p in [images[0], *sorted((root / "images" / "class2").glob("*"))]]
    best = [max(r["classes"], key=r["classes"].get) for r in rows]
    assert best[0] == "class1"
    assert np.mean([b == "class2" for b in best[1:]]) > 0.9
    assert all(abs(sum(r["classes"].values()) - 1) < 1e-4 for r in rows)
    lines = err.strip().splitlines()
    assert len(lines) == 2 and "no.png" in lines[0] and "gone.jpg" in lines[1]
    comma = tmp_path / "a, b.png"
    comma.write_bytes(images[0].read_bytes())
    out, _ = call(capsys, "predict", root / "run", comma, images[0], "--tokens", 16, "--csv", "--top", 2)
    head, *table = csv.reader(out.splitlines())
    assert head == ["path", "class_1", "probability_1", "class_2", "probability_2"]
    assert [row[0] for row in table] == [str(comma), str(images[0])]
    assert table[0][1:] == table[1][1:] and table[0][1] == "class1"
    assert float(table[0][2]) == pytest.approx(rows[0]["classes"]["class1"], abs=1e-5)


def test_prediction_sees_in_a_folder_what_an_index_sees(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    with Image.open(next((root / "images" / "class1").glob("*"))) as image:
        for name, kind in (
            ("a.jfif", "JPEG"),
            ("b.JPE", "JPEG"),
            ("c.ppm", "PPM"),
            ("d.avif", "AVIF"),
            ("e.txt", "PNG"),
        ):
            image.convert("RGB").save(images / name, kind)
    build_index(images, tmp_path / "images.arrow")
    out, _ = call(capsys, "predict", root / "run", images, "--tokens", 16, "--json")
    seen = [Path(json.loads(line)["path"]).name for line in out.splitlines()]
    assert seen == ["a.jfif", "b.JPE", "c.ppm", "d.avif"]
    assert len(seen) == open_index(tmp_path / "images.arrow").num_rows
    (tmp_path / "empty" / "below").mkdir(parents=True)
    out, err = call(capsys, "predict", root / "run", tmp_path / "empty", status=1)
    assert not out and err.count("\n") == 1 and f"'{tmp_path / 'empty'}': a folder without images" in err


def test_a_saved_model_predicts_as_its_run_does(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint.open_checkpoint(root / "run").model().save_pretrained(tmp_path / "model")
    image = next((root / "images" / "class0").glob("*"))
    outs = [call(capsys, "predict", m, image, "--tokens", 16)[0] for m in (root / "run", tmp_path / "model")]
    assert outs[0].replace(": class", ": ").replace(", class", ", ") == outs[1]


def test_fine_tuning_starts_from_weights_of_timm(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import timm

    name = "test_vit.r160_in1k"
    torch.manual_seed(1)
    torch.save(timm.create_model(name, pretrained=False).state_dict(), tmp_path / "weights.pth")
    (tmp_path / "run.toml").write_text(
        f"""
data = {{ index = "{root / "shapes.arrow"}", batch_size = 2 }}
plan = {{ sequence_length = 64, max_images = 16, max_tokens = 32, resolution = {{ kind = "native" }} }}
model = {{ drop_path = 0.1 }}
train = {{ out = "{tmp_path / "run"}", steps = 2, device = "cpu", threads = 1, learning_rate = 1e-9, warmup = 0 }}
"""
    )
    weights = f"timm:{name}@{tmp_path / 'weights.pth'}"
    call(capsys, "finetune", weights, tmp_path / "run.toml")
    tuned = checkpoint.open_checkpoint(tmp_path / "run").model()
    start = NaViT.from_timm(timm.create_model(name, checkpoint_path=str(tmp_path / "weights.pth")))
    assert tuned.config.classes == 3
    assert tuned.config.drop_path == 0.1
    assert torch.allclose(tuned.blocks[0].qkv.weight, start.blocks[0].qkv.weight, atol=1e-6)
    # From a run, onto another one.
    call(capsys, "finetune", tmp_path / "run", tmp_path / "run.toml", f"train.out={tmp_path / 'second'}")
    assert checkpoint.open_checkpoint(tmp_path / "second").step == 2
    _, err = call(capsys, "finetune", "timm:no_such_model", tmp_path / "run.toml", status=2)
    assert "no_such_model" in err
    # Weights of another shape: which weight, and both shapes.
    torch.save({"cls_token": torch.zeros(1, 1, 7)}, tmp_path / "other.pth")
    _, err = call(capsys, "finetune", f"timm:{name}@{tmp_path / 'other.pth'}", tmp_path / "run.toml", status=2)
    assert "Missing key" in err and "pos_embed" in err
    _, err = call(capsys, "finetune", tmp_path / "nothing", tmp_path / "run.toml", status=2)
    assert "no checkpoint" in err


def test_weights_of_transformers_are_found_by_their_folder(tmp_path: Path) -> None:
    import transformers

    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.SiglipVisionConfig(**shape, image_size=32, patch_size=8)
    theirs = transformers.SiglipVisionModel(config)
    theirs.save_pretrained(tmp_path / "tower")
    model = load(f"transformers:{tmp_path / 'tower'}", {"drop_path": 0.2})
    assert model.config.drop_path == 0.2
    straight = NaViT.from_transformers(theirs)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), straight.parameters(), strict=True))
    with pytest.raises(ModelError, match="cannot be had"):
        load(f"transformers:{tmp_path}", {})


def test_one_process_commands_refuse_to_run_several_times(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["embed", str(root / "run"), str(root / "x.arrow"), "-o", str(root / "x.npy")]) == 2
    assert "start it without torchrun" in capsys.readouterr().err


def test_what_is_no_model_is_one_line(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (("predict", root, root / "images"), ("embed", root, root / "shapes.arrow", "-o", root / "e.npy")):
        _, err = call(capsys, *words, status=2)
        assert "no checkpoint" in err and len(err.strip().splitlines()) == 1
    _, err = call(capsys, "eval", root / "run", root / "shapes.arrow", "--cascade", status=2)
    assert "--tokens" in err


def test_help_loads_nothing_heavy() -> None:
    code = """
import subprocess
import sys
from navit_model.cli import main
try:
    main(["embed", "--help"])
finally:
    print([name for name in ("torch", "matplotlib", "pyarrow") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_trainer_that_shards_nothing_does_not_load_fsdp() -> None:
    code = (
        "import sys, navit_model.train.run; print([n for n in sys.modules if n.startswith('torch.distributed.fsdp')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "[]\n"
