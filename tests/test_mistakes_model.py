"""Natural mistakes with `navit-model` and the calls behind it: each is one line with file or key, value and remedy.

In: a small run, and one wrong word at a time: paths, types, keys, values, weights, endings, places, packages. Out: the
documented status (2, or 1 where some of the input is bad, or argparse's usage) and what the line names; never a traceback.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from navit_loader import build_index
from navit_loader.errors import NavitError
from navit_model import NaViT, NaViTConfig
from navit_model.cli import main
from navit_model.evaluate.classification import evaluate
from navit_model.train import checkpoint
from navit_model.train.run import train
from navit_model.train.settings import RunConfig
from navit_model.use.opened import open_model

from .shapes import table, write_index, write_toml


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an index, a run of it, a saved model, and things that are wrong each in one way."""
    root = tmp_path_factory.mktemp("mistakes")
    given = table(write_index(root), root / "run", steps=2, checkpoint_every=0)
    train(RunConfig.from_dict(given))
    checkpoint.open_checkpoint(root / "run").model().save_pretrained(root / "saved")
    new = {**given, "train": {**given["train"], "out": str(root / "new")}}
    write_toml({**new, "data": {"batch_size": 2}}, root / "no-index.toml")
    write_toml(new, root / "run.toml")
    write_toml({**new, "trian": {"steps": 3}}, root / "section.toml")
    (root / "broken.toml").write_text("[train\nsteps = 3")
    (root / "latin.toml").write_bytes('[train]\nout = "f\xfcnf"\n'.encode("latin-1"))
    (root / "text.arrow").write_text("no index")
    (root / "file").write_text("a file")
    (root / "empty").mkdir()
    for folder in ("dogs", "cats"):
        shutil.copytree(root / "images" / "class0", root / "other" / folder)
    build_index(root / "other", root / "other.arrow")
    images = sorted((root / "images").rglob("*.png"))[:6]
    (root / "bare.jsonl").write_text("".join(json.dumps({"path": str(image)}) + "\n" for image in images))
    build_index(root / "bare.jsonl", root / "bare.arrow")
    lines = [f"{image},cat,7,{n}.5" for n, image in enumerate(sorted((root / "images").rglob("*.png"))[:20])]
    (root / "said.csv").write_text("\n".join(["path,kind,one,number", *lines]))
    build_index(root / "said.csv", root / "number.arrow", target_column="number")
    train(RunConfig.from_dict(table(str(root / "number.arrow"), root / "number", steps=1, task="regression")))
    for name in ("cut", "odd"):
        shutil.copytree(root / "saved", root / name)
    (root / "cut" / "model.safetensors").write_bytes((root / "saved" / "model.safetensors").read_bytes()[:500])
    (root / "odd" / "config.json").write_text("{")
    shutil.copytree(root / "run", root / "gone")
    (checkpoint.steps(root / "gone")[-1] / "model.safetensors").unlink()
    shutil.copytree(root / "run", root / "logged")
    (root / "logged" / "log.jsonl").write_text("{\n")
    (root / os.fsdecode(b"f\xfcnf.png")).write_text("no image")
    (root / "text.png").write_text("no image")
    (root / "g.csv").write_text("path,light,sky\nnowhere.png,1,2\n")
    lines = (f"{n},{'ab'[n % 2]}{n}" for n in range(90))
    (root / "many.csv").write_text("row,name\n" + "\n".join(lines))
    (root / "latin.csv").write_bytes("path,light\n\xfc.png,1\n".encode("latin-1"))
    return root


CONFIG = "{run.toml}"
TRAIN: list[tuple[str, list[str], str]] = [
    ("no file", ["train", "{nothing.toml}"], "nothing.toml"),
    ("a folder as file", ["train", "{empty}"], "empty"),
    ("no TOML", ["train", "{broken.toml}"], "broken.toml"),
    ("not UTF-8", ["train", "{latin.toml}"], "latin.toml"),
    ("unknown section", ["train", "{section.toml}"], r"\[trian\]"),
    ("unknown key", ["train", CONFIG, "train.stepz=3"], "did you mean 'steps'"),
    ("a word for a number", ["train", CONFIG, "train.steps=many"], "train.steps = 'many'"),
    ("a number below", ["train", CONFIG, "train.steps=0"], "train.steps = 0"),
    ("not a number", ["train", CONFIG, "train.learning_rate=nan"], "train.learning_rate = nan"),
    ("no equals", ["train", CONFIG, "train.steps"], "section.key=value"),
    ("no section", ["train", CONFIG, "steps=3"], "section.key=value"),
    ("a table in a value", ["train", CONFIG, "train.steps.more=3"], "train.steps.more"),
    ("a choice that is none", ["train", CONFIG, "train.schedule=square"], "'cosine', 'rsqrt'"),
    ("no index file", ["train", CONFIG, "data.index={nothing.arrow}"], "nothing.arrow"),
    ("no index but text", ["train", CONFIG, "data.index={text.arrow}"], "text.arrow"),
    ("a folder as index", ["train", CONFIG, "data.index={images}"], "images"),
    ("no index at all", ["train", "{no-index.toml}"], "data.index = ''"),
    ("index and mixture", ["train", CONFIG, "data.mixture=[{{index='{shapes.arrow}'}}]"], "data.mixture"),
    ("batch size 0", ["train", CONFIG, "data.batch_size=0"], "data.batch_size = 0"),
    ("no eval index", ["train", CONFIG, "data.eval_index={nothing.arrow}"], "nothing.arrow"),
    ("eval index of text", ["train", CONFIG, "data.eval_index={text.arrow}"], "text.arrow"),
    ("eval index of other classes", ["train", CONFIG, "data.eval_index={other.arrow}"], r"other.arrow.*--classes"),
    ("eval index without labels", ["train", CONFIG, "data.eval_index={bare.arrow}"], "bare.arrow"),
    (
        "eval budget too large",
        ["train", CONFIG, "data.eval_index={shapes.arrow}", "train.eval_tokens=[16, 4000000]"],
        "4000000",
    ),
    ("eval budget 0", ["train", CONFIG, "train.eval_tokens=[0]"], "train.eval_tokens"),
    ("out is a file", ["train", CONFIG, "train.out={file}"], "file"),
    ("out in a file", ["train", CONFIG, "train.out={file}/run"], "file/run"),
    ("out where nobody writes", ["train", CONFIG, "train.out=/proc/run"], "/proc/run"),
    ("a run that is there", ["train", CONFIG, "train.out={run}"], r"run.*--resume"),
    ("another model on resuming", ["train", CONFIG, "train.out={run}", "model.width=32", "--resume"], "model.width"),
    ("another plan on resuming", ["train", CONFIG, "train.out={run}", "plan.seed=9", "--resume"], "plan.seed"),
    ("a checkpoint without weights", ["train", CONFIG, "train.out={gone}", "--resume"], "model.safetensors"),
    ("heads that do not divide", ["train", CONFIG, "model.heads=3"], "model.heads = 3"),
    ("patches of another size", ["train", CONFIG, "plan.patch_sizes=[5]"], r"plan\.patch_sizes"),
    ("prefix tokens of the model alone", ["train", CONFIG, "model.class_token=true"], r"plan\.prefix_tokens = 1"),
    ("another number of classes", ["train", CONFIG, "model.classes=7"], "model.classes = 7"),
    ("a budget above a sequence", ["train", CONFIG, "plan.max_tokens=100"], "plan.max_tokens = 100"),
    ("no address", ["train", CONFIG, "data.endpoints=['10.0.0.7']"], "10.0.0.7"),
    ("a word for addresses", ["train", CONFIG, "data.endpoints=tcp://127.0.0.1:1"], "data.endpoints"),
    (
        "nobody at the address",
        ["train", CONFIG, "data.endpoints=['tcp://127.0.0.1:1']", "data.remote.connect_timeout_s=0.5"],
        "tcp://127.0.0.1:1",
    ),
    (
        "no keys in the folder",
        ["train", CONFIG, "data.endpoints=['tcp://127.0.0.1:1']", "data.remote.keys={empty}"],
        "client.key_secret",
    ),
    ("captions that are not there", ["train", CONFIG, "train.task=contrastive"], "plan.text_tokens"),
    ("no teacher", ["train", CONFIG, "train.task=distillation"], "distillation.teacher"),
    (
        "a teacher that is not there",
        ["train", CONFIG, "train.task=distillation", "distillation.teacher={nothing}", "plan.teacher={{patch_size=4}}"],
        "nothing",
    ),
    ("a filter that is none", ["train", CONFIG, "plan.filter='width >'"], "plan.filter"),
    ("a filter of no column", ["train", CONFIG, "plan.filter='colour > 3'"], "colour"),
    ("a filter that leaves nothing", ["train", CONFIG, "plan.filter='width > 9999'"], "width > 9999"),
    ("a class that is none", ["train", CONFIG, "plan.class_weights={{zebra=2}}"], "zebra"),
    ("colours beyond", ["train", CONFIG, "train.augment={{layers=99}}"], "train.augment.layers = 99"),
    ("patience without a best", ["train", CONFIG, "train.patience=3"], "train.patience = 3.*train.best = true"),
    (
        "patience without evaluations",
        ["train", CONFIG, "data.eval_index={shapes.arrow}", "train.best=true", "train.patience=3"],
        "train.patience = 3.*train.eval_every",
    ),
    ("a best that nothing scores", ["train", CONFIG, "train.best=true"], r"train\.best = True.*data\.eval_index"),
    ("patience below", ["train", CONFIG, "train.patience=-1"], "train.patience = -1"),
    ("float16 on a CPU", ["train", CONFIG, "train.precision=fp16"], "train.precision = 'fp16'.*CPU"),
    ("a precision that is none", ["train", CONFIG, "train.precision=float16"], "'fp32', 'bf16', 'fp16'"),
    (
        "a class in the loss that is none",
        ["train", CONFIG, "train.class_weights={{zebra=2}}"],
        "train.class_weights.zebra",
    ),
    ("a weight of nothing", ["train", CONFIG, "train.class_weights={{class0=0}}"], "train.class_weights.class0 = 0"),
    ("a word for weights", ["train", CONFIG, "train.class_weights=equal"], "train.class_weights = 'equal'.*'balanced'"),
    (
        "weights of numbers",
        ["train", CONFIG, "train.task=regression", "train.class_weights=balanced"],
        "train.class_weights",
    ),
    ("classes as numbers", ["train", CONFIG, "train.task=regression"], "class0.*no numbers.*--target-column"),
    ("mixing pairs", ["train", CONFIG, "train.task=contrastive", "train.mix.mixup=0.2"], r"train\.mix"),
    ("mixing beyond", ["train", CONFIG, "train.mix.cutmix=-1"], r"train\.mix\.cutmix = -1"),
    ("a decay above", ["train", CONFIG, "train.layer_decay=1.5"], "train.layer_decay = 1.5"),
    ("more frozen than there is", ["train", CONFIG, "train.freeze=9"], "train.freeze = 9"),
    ("fit: nothing", ["fit", "{nothing}", "-o", "{fit}"], "nothing"),
    ("fit: an empty folder", ["fit", "{empty}", "-o", "{fit}"], "no image in"),
    ("fit: where nobody writes", ["fit", "{images}", "-o", "/proc/fit"], "/proc/fit"),
    ("fit: into a file", ["fit", "{images}", "-o", "{file}"], "file"),
    ("fit: into something else", ["fit", "{images}", "-o", "{images}"], "holds something else.*-o"),
    (
        "fit: a column of an index",
        ["fit", "{shapes.arrow}", "-o", "{fit}", "--weight-column", "trust"],
        "--weight-column trust is of no use where .* is an index",
    ),
    ("fit: all held out", ["fit", "{images}", "-o", "{fit}", "--held-out", "1"], "--held-out = 1.0"),
    (
        "fit: no such held-out images",
        ["fit", "{images}", "-o", "{fit}", "--held-out", "{nothing}"],
        "--held-out .*nothing",
    ),
    (
        "fit: held out is what is learnt",
        ["fit", "{images}", "-o", "{fit}", "--held-out", "{images}"],
        "all pictures of .* are in",
    ),
    ("fit: tokens", ["fit", "{images}", "-o", "{fit}", "--tokens", "-3"], "--tokens = -3"),
    ("fit: a key that is none", ["fit", "{images}", "-o", "{fit}", "train.stepz=3"], "did you mean 'steps'"),
    ("fit: no section", ["fit", "{images}", "-o", "{fit}", "steps=3"], "section.key=value"),
    ("fit: no weights", ["fit", "{images}", "-o", "{fit}", "--from", "{nothing}"], "nothing"),
    (
        "fit: no such column",
        ["fit", "{bare.jsonl}", "-o", "{fit}", "--label-column", "kind"],
        "kind.*its columns: path",
    ),
    ("fit: no labels", ["fit", "{bare.jsonl}", "-o", "{fit}"], "has a label.*--label-column or --target-column"),
    (
        "fit: words as numbers",
        ["fit", "{said.csv}", "-o", "{fit}", "--target-column", "kind"],
        "said.csv' line 2: target 'cat'",
    ),
    ("fit: one number", ["fit", "{said.csv}", "-o", "{fit}", "--target-column", "one"], "have the number '7.0'"),
    ("a ledger in no folder", ["train", CONFIG, "render.ledger={nothing}/l.jsonl"], "render.ledger"),
    ("no weights", ["finetune", "{nothing}", CONFIG], "nothing"),
    ("weights of text", ["finetune", "{file}", CONFIG], "file"),
    ("no such model of timm", ["finetune", "timm:no_such_model", CONFIG], "no_such_model"),
    ("no such file for timm", ["finetune", "timm:vit_tiny_patch16_224@{nothing}", CONFIG], "nothing"),
    ("weights that are cut", ["finetune", "{cut}", CONFIG], "model.safetensors"),
    ("a shape that weights do not have", ["finetune", "{saved}", CONFIG, "model.width=32"], "width|shape"),
]
USE: list[tuple[str, list[str], str]] = [
    ("eval: no model", ["eval", "{nothing}", "{shapes.arrow}"], "nothing"),
    ("eval: a file as model", ["eval", "{file}", "{shapes.arrow}"], "file"),
    ("eval: a folder without a model", ["eval", "{empty}", "{shapes.arrow}"], "empty"),
    ("eval: weights that are cut", ["eval", "{cut}", "{shapes.arrow}"], "model.safetensors"),
    (
        "eval: a folder of images",
        ["eval", "{run}", "{images}"],
        r"is no index.*navit-loader index .*images -o images.arrow --classes .*arrow",
    ),
    ("eval: a table as index", ["eval", "{run}", "{nothing.json}"], r"is no index.*navit-loader index"),
    ("eval: no configuration", ["eval", "{odd}", "{shapes.arrow}"], "config.json"),
    ("eval: a checkpoint without weights", ["eval", "{gone}", "{shapes.arrow}"], "model.safetensors"),
    ("eval: no index", ["eval", "{run}", "{nothing.arrow}"], "nothing.arrow"),
    ("eval: images as index", ["eval", "{run}", "{images}"], "images"),
    ("eval: other classes", ["eval", "{run}", "{other.arrow}"], "--classes"),
    ("eval: no labels", ["eval", "{run}", "{bare.arrow}"], "bare.arrow"),
    ("eval: budget 0", ["eval", "{run}", "{shapes.arrow}", "--tokens", "0"], "--tokens"),
    ("eval: budget too large", ["eval", "{run}", "{shapes.arrow}", "--tokens", "16", "9999999"], "9999999"),
    ("eval: patches", ["eval", "{run}", "{shapes.arrow}", "--patch-size", "4", "7"], "4 pixels, not of 7"),
    ("eval: one budget", ["eval", "{run}", "{shapes.arrow}", "--tokens", "16", "--cascade"], "--tokens"),
    ("eval: no folder", ["eval", "{run}", "{shapes.arrow}", "--json", "{nothing}/s.json"], "--json.*make it first"),
    ("eval: a folder", ["eval", "{run}", "{shapes.arrow}", "--json", "{empty}"], "--json.*is a folder"),
    ("eval: no picture", ["eval", "{run}", "{shapes.arrow}", "--plot", "{empty}/p.txt"], r"p\.txt.*\.svg"),
    ("eval: no folder for it", ["eval", "{run}", "{shapes.arrow}", "--plot", "{nothing}/p.svg"], "--plot"),
    ("eval: no column", ["eval", "{run}", "{shapes.arrow}", "--group-by", "colour"], "colour.*format.*FILE.csv"),
    ("eval: a column of names", ["eval", "{run}", "{shapes.arrow}", "--group-by", "{many.csv}"], "90 different values"),
    ("eval: no groups", ["eval", "{run}", "{shapes.arrow}", "--group-by", "{nothing.csv}"], "nothing.csv"),
    ("eval: groups of no column", ["eval", "{run}", "{shapes.arrow}", "--group-by", "{g.csv}:age"], "g.csv.*light"),
    ("eval: groups of two columns", ["eval", "{run}", "{shapes.arrow}", "--group-by", "{g.csv}"], "g.csv.*several"),
    ("eval: groups of others", ["eval", "{run}", "{shapes.arrow}", "--group-by", "{g.csv}:sky"], "names no image"),
    ("eval: groups of bytes", ["eval", "{run}", "{shapes.arrow}", "--group-by", "{latin.csv}"], "latin.csv.*UTF-8"),
    ("eval: no corruption", ["eval", "{run}", "{shapes.arrow}", "--corrupt", "fog"], "fog.*noise.*blur.*jpeg"),
    ("eval: pairs by group", ["eval", "{run}", "{shapes.arrow}", "--retrieval", "--group-by", "label"], "--group-by"),
    ("eval: corrupt pairs", ["eval", "{run}", "{shapes.arrow}", "--retrieval", "--corrupt"], "--corrupt"),
    ("eval: no pairs", ["eval", "{run}", "{shapes.arrow}", "--retrieval"], "no contrastive model"),
    ("eval: no names", ["eval", "{run}", "{shapes.arrow}", "--zero-shot"], "no contrastive model"),
    (
        "eval: numbers by group",
        ["eval", "{number}", "{number.arrow}", "--group-by", "width"],
        "--group-by.*predicts numbers",
    ),
    ("eval: numbers of classes", ["eval", "{number}", "{shapes.arrow}"], "shapes.arrow' has the classes"),
    ("eval: a GPU", ["eval", "{run}", "{shapes.arrow}", "--device", "cuda"], "cuda"),
    ("probe: no shot", ["probe", "{run}", "{shapes.arrow}", "{shapes.arrow}", "--shots", "0"], "--shots"),
    ("probe: no draw", ["probe", "{run}", "{shapes.arrow}", "{shapes.arrow}", "--draws", "0"], "--draws"),
    ("probe: other classes", ["probe", "{run}", "{shapes.arrow}", "{other.arrow}"], "different classes"),
    ("probe: few images", ["probe", "{run}", "{shapes.arrow}", "{shapes.arrow}", "--shots", "99"], "99 shots"),
    ("probe: no folder", ["probe", "{run}", "{shapes.arrow}", "{shapes.arrow}", "--json", "{nothing}/s"], "--json"),
    ("probe: negative seed", ["probe", "{run}", "{shapes.arrow}", "{shapes.arrow}", "--seed", "-1"], "--seed"),
    ("embed: ending", ["embed", "{run}", "{shapes.arrow}", "-o", "{empty}/e.csv"], ".npy or .arrow"),
    ("embed: no folder", ["embed", "{run}", "{shapes.arrow}", "-o", "{nothing}/e.npy"], "make it first"),
    ("embed: where nobody writes", ["embed", "{run}", "{shapes.arrow}", "-o", "/proc/e.npy"], "/proc/e.npy"),
    ("embed: no index", ["embed", "{run}", "{nothing.arrow}", "-o", "{empty}/e.npy"], "nothing.arrow"),
    ("embed: patches", ["embed", "{run}", "{shapes.arrow}", "-o", "{empty}/e.npy", "--patch-size", "7"], "7"),
    ("embed: budget", ["embed", "{run}", "{shapes.arrow}", "-o", "{empty}/e.npy", "--tokens", "9999999"], "9999999"),
    ("predict: no class", ["predict", "{run}", "{images}", "--top", "0"], "--top"),
    ("predict: names", ["predict", "{run}", "{images}", "--labels", "a", "b"], "no contrastive model"),
    ("predict: no model", ["predict", "{images}", "{images}"], "images"),
    ("predict: patches", ["predict", "{run}", "{images}", "--patch-size", "7"], "7"),
    ("export: no folder", ["export", "{run}", "-o", "{nothing}/m.onnx"], "--output.*make it first"),
    ("export: no model", ["export", "{images}", "-o", "{empty}/m.onnx"], "images"),
    ("report: no run", ["report", "{empty}"], "log.jsonl"),
    ("report: nothing", ["report", "{nothing}"], "nothing"),
    ("report: no scores", ["report", "{run}", "{nothing.json}"], "nothing.json"),
    ("report: a picture as scores", ["report", "{run}", "{run}/packed.svg"], r"packed\.svg.*--json"),
    ("report: a damaged log", ["report", "{logged}"], "log.jsonl"),
]
SOME_BAD: list[tuple[str, list[str], str]] = [
    ("predict: no file", ["predict", "{run}", "{nothing.png}"], "nothing.png"),
    ("predict: no images", ["predict", "{run}", "{empty}"], "a folder without images"),
    ("predict: no image", ["predict", "{run}", "{text.png}"], "text.png"),
    ("predict: a name of other letters", ["predict", "{run}", "{f\udcfcnf.png}"], r"f.{1,6}nf\.png"),
]
USAGE: list[tuple[str, list[str], str]] = [
    ("no command", [], "COMMAND"),
    ("no such command", ["trian"], "trian"),
    ("no configuration", ["train"], "CONFIG.toml"),
    ("no such option", ["train", CONFIG, "--stepz", "3"], "--stepz"),
    ("a word for a budget", ["predict", "{run}", "{images}", "--tokens", "few"], "--tokens"),
    ("no budget", ["embed", "{run}", "{shapes.arrow}", "-o", "e.npy", "--tokens", "0"], "--tokens"),
    ("no such device", ["eval", "{run}", "{shapes.arrow}", "--device", "tpu"], "--device"),
    ("no output", ["embed", "{run}", "{shapes.arrow}"], "--output"),
]


def filled(words: list[str], place: Path) -> list[str]:
    """Words with the paths of what `{}` names; `{{` and `}}` are braces."""
    path = re.compile(r"\{\{|\}\}|\{([^{}=]*)\}")
    return [path.sub(lambda m: m[0][0] if m[1] is None else str(place / m[1]), word) for word in words]


def named(rows: list[tuple[str, list[str], str]]) -> Any:
    return pytest.mark.parametrize(("words", "said"), [pytest.param(w, s, id=n) for n, w, s in rows])


@named(TRAIN + USE)
def test_one_line_with_status_2(place: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str) -> None:
    assert main(filled(words, place)) == 2
    line = capsys.readouterr().err
    assert len(line.splitlines()) == 1, line
    assert line.startswith(f"navit-model {words[0]}: ")
    assert re.search(said, line), line
    assert not checkpoint.steps(place / "new"), "no step was made before it was said"


@named(SOME_BAD)
def test_input_that_is_bad_in_part(
    place: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert main(filled(words, place)) == 1
    line = capsys.readouterr().err
    assert len(line.splitlines()) == 1 and re.search(said, line), line


@named(USAGE)
def test_usage(place: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(filled(words, place))
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


CALLS: list[tuple[str, Callable[[Path], Any], str]] = [
    ("a path as run", lambda p: train(p / "run.toml"), "RunConfig"),  # type: ignore[arg-type]
    ("a table as run", lambda p: train({"train": {}}), "RunConfig"),  # type: ignore[arg-type]
    ("a table as model", lambda p: NaViT({"width": 32}), "NaViTConfig"),  # type: ignore[arg-type]
    ("no such preset", lambda p: NaViTConfig.preset("XXL/16"), "XXL"),
    ("a word for a width", lambda p: NaViTConfig(width="wide"), "width = 'wide'"),  # type: ignore[arg-type]
    ("no such folder", lambda p: NaViT.from_pretrained(p / "nothing"), "nothing"),
    ("a folder without a model", lambda p: NaViT.from_pretrained(p / "empty"), "empty"),
    ("a key that is none", lambda p: NaViT.from_pretrained(p / "saved", widht=3), "widht"),
    ("another shape", lambda p: NaViT.from_pretrained(p / "saved", width=32), "shape"),
    ("no module of timm", lambda p: NaViT.from_timm(torch.nn.Linear(1, 1)), "Linear"),
    ("no tower", lambda p: NaViT.from_transformers(torch.nn.Linear(1, 1)), "Linear"),
    ("no batch", lambda p: NaViT.from_pretrained(p / "saved")(torch.zeros(1, 3, 32, 32)), "PackedBatch"),
    ("an image that is none", lambda p: NaViT.from_pretrained(p / "saved").classify([p / "text.png"]), "text.png"),
    ("an image that is not there", lambda p: NaViT.from_pretrained(p / "saved").embed([p / "nothing"]), "nothing"),
    ("one path for many", lambda p: NaViT.from_pretrained(p / "saved").classify(str(p / "text.png")), "list"),
    ("floats", lambda p: NaViT.from_pretrained(p / "saved").classify([np.zeros((8, 8, 3))]), "float"),
    (
        "no budget",
        lambda p: NaViT.from_pretrained(p / "saved").classify([np.zeros((8, 8, 3), np.uint8)], tokens=0),
        "0",
    ),
    ("a model of nowhere", lambda p: open_model(p / "nothing", torch.device("cpu")), "nothing"),
    (
        "an index of nowhere",
        lambda p: evaluate(
            open_model(p / "run", torch.device("cpu")).model, str(p / "nothing"), RunConfig.from_dict({}).loader
        ),
        "nothing",
    ),
    ("a section that is no table", lambda p: RunConfig.from_dict({"train": 3}), "train = 3"),
]


@pytest.mark.parametrize(("call", "said"), [pytest.param(c, s, id=n) for n, c, s in CALLS])
def test_calls_raise_errors_of_navit(place: Path, call: Callable[[Path], Any], said: str) -> None:
    with pytest.raises(NavitError) as error:
        call(place)
    assert said in str(error.value), error.value


WITHOUT = """
import sys
for name in {packages!r}:
    sys.modules[name] = None
{code}
"""


def without(packages: list[str], code: str) -> subprocess.CompletedProcess[str]:
    """Python that finds some packages nowhere, as after `pip install .` without an extra."""
    line = [sys.executable, "-c", WITHOUT.format(packages=packages, code=code)]
    return subprocess.run(line, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    "words", [["train", CONFIG], ["predict", "{run}", "{images}"], ["eval", "{run}", "{shapes.arrow}"]]
)
def test_without_torch_a_command_names_the_extra(place: Path, words: list[str]) -> None:
    done = without(["torch"], f"from navit_model.cli import main; sys.exit(main({filled(words, place)!r}))")
    assert done.returncode == 2, done
    assert len(done.stderr.splitlines()) == 1 and "packed-navit[model]" in done.stderr and "'torch'" in done.stderr


CAUGHT = """
from navit_loader.errors import NavitError
try:
    {code}
except ImportError as e:
    print(isinstance(e, NavitError), e)
"""


@pytest.mark.parametrize(
    "code",
    [
        "import navit_model; navit_model.NaViT",
        "from navit_model import NaViT",
        "import numpy as n, navit_loader as l; l.pack_images([n.zeros((16, 16, 3), n.uint8)], l.LoaderConfig()).to('cpu')",
    ],
)
def test_without_torch_a_call_names_the_extra(code: str) -> None:
    done = without(["torch"], CAUGHT.format(code=code))
    assert done.stdout.startswith("True") and "packed-navit[model]" in done.stdout, done


BLOCKED = """
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "matplotlib" else found(name, *rest)
from navit_model.cli import main
sys.exit(main({words!r}))
"""


def test_without_what_draws_a_run_does_not_begin(place: Path) -> None:
    done = without([], BLOCKED.format(words=filled(["train", CONFIG, "train.out={drawn}"], place)))
    assert done.returncode == 2 and "'matplotlib'" in done.stderr and "packed-navit[model]" in done.stderr, done


def test_a_wrong_word_is_told_before_torch_is_loaded(place: Path) -> None:
    words = filled(["train", CONFIG, "train.stepz=3"], place)
    code = f"from navit_model.cli import main; status = main({words!r}); print(status, 'torch' in sys.modules)"
    assert without([], code).stdout == "2 False\n"
