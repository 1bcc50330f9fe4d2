"""`navit-model fit`: from a folder to a scored model; the TOML that it writes is the run; twins stay on one side."""

from __future__ import annotations

import html
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import tomllib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from navit_loader import build_index, open_index
from navit_loader.cli import main as loader
from navit_loader.config import LoaderConfig
from navit_loader.suggest import nested
from navit_loader.twins import find_twins
from navit_model.cli import main
from navit_model.train.choices import chosen_in
from navit_model.train.recipe import SURE, Given, recipe
from navit_model.train.settings import RunConfig

SMALL = ("train.steps=6", "train.log_every=1", "train.device=cpu", "model.width=32", "model.depth=2", "model.heads=1")


def picture(seed: int, width: int = 40, height: int = 30) -> Image.Image:
    """A smooth picture of its own: four colours in the corners, blended."""
    corners = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), np.uint8)
    return Image.fromarray(corners).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of 12 pictures, the first four of each with a smaller twin as JPEG, and a file that is damaged within."""
    root = tmp_path_factory.mktemp("images") / "photos"
    for label, name in enumerate(("cat", "dog")):
        (root / name).mkdir(parents=True)
        for i in range(12):
            picture(100 * label + i, 40 + i).save(root / name / f"{i:02d}.png")
        for i in range(4):
            picture(100 * label + i, 40 + i).resize((31, 23)).save(root / name / f"z{i}.jpg", quality=85)
    torn = bytearray((root / "cat" / "05.png").read_bytes())
    torn[len(torn) // 2 - 20 : len(torn) // 2] = bytes(20)  # header and end are sound
    (root / "cat" / "torn.png").write_bytes(torn)
    return root


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "train"]


def test_a_folder_becomes_a_run_that_its_toml_gives_again_bit_for_bit(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(["fit", str(folder), "-o", str(run), *SMALL]) == 0
    said = capsys.readouterr().out
    assert (run / "report.html").exists() and "left out: 1 image that cannot be decoded" in said
    few = re.search(r"Only \d images were scored; the interval .* points wide\.", said)
    assert few
    # Each key and its reason stand in the report.
    page = html.unescape((run / "report.html").read_text())
    choices = chosen_in(run)
    assert len(choices) > 30 and all(f">{one.key}</th>" in page and f"<td>{one.why}</td>" in page for one in choices)
    table = tomllib.loads((run / "fit.toml").read_text())
    assert nested(choices).keys() == table.keys() and choices[0].value == f'"{table["data"]["index"]}"'
    # The figure on top is that of the best budget, which need not be the one that words are of.
    assert re.search(r"<span>held-out accuracy at \d+ tokens</span>", page)
    assert re.search(r"held-out images are named right at \d+ tokens\.", page)
    assert "<h2>In words" in page and "choose a step by; the last weights are settled." in page
    details = json.loads((run / "scores.json").read_text())["details"]
    assert len(details) == 1 and "Worst mistakes" in (run / "report.html").read_text()
    held, learnt = (set(open_index(run / f"{part}.arrow").table()["name"].to_pylist()) for part in ("heldout", "train"))
    assert len(held | learnt) == 32 and not held & learnt
    for name in ("cat", "dog"):
        assert any(n.startswith(name) for n in held)
        for i in range(4):
            assert len({f"{name}/{i:02d}.png" in held, f"{name}/z{i}.jpg" in held}) == 1

    again = tmp_path / "again"
    assert main(["train", str(run / "fit.toml"), f"train.out={again}"]) == 0
    assert losses(again) == losses(run) and len(losses(run)) == 6
    # Every key says why it is what it is.
    keys = [line for line in (run / "fit.toml").read_text().splitlines() if " = " in line and line[0] != "#"]
    assert keys and all("  # " in line for line in keys)

    assert main(["fit", str(folder), "-o", str(run), *SMALL]) == 0  # ended already: scored once more
    assert len(losses(run)) == 6
    capsys.readouterr()
    assert main(["fit", str(folder), "-o", str(run), *SMALL, "train.seed=1"]) == 2
    err = capsys.readouterr().err
    assert f"was begun with the changes {' '.join(SMALL)}, not" in err
    assert f"navit-model train {run}/fit.toml train.out=OTHER {' '.join(SMALL)} train.seed=1" in err
    assert main(["fit", str(folder), "-o", str(run)]) == 2  # which its configuration cannot say
    err = capsys.readouterr().err
    assert "not no changes; the command that began it" in err and "OTHER" not in err
    extra = folder / "dog" / "new.png"
    picture(999).save(extra)
    assert main(["fit", str(folder), "-o", str(run), *SMALL]) == 2
    extra.unlink()
    assert "have changed since" in capsys.readouterr().err

    tuned = tmp_path / "tuned"
    steps = SMALL[:3]
    assert main(["fit", str(folder), "-o", str(tuned), "--from", str(run), *steps]) == 0
    table = tomllib.loads((tuned / "fit.toml").read_text())
    assert table["train"]["layer_decay"] == 0.75 and "model" not in table
    assert main(["finetune", str(run), str(tuned / "fit.toml"), f"train.out={tmp_path / 'tuned2'}"]) == 0
    assert losses(tmp_path / "tuned2") == losses(tuned)


def test_twins_are_found_whatever_their_size_and_others_are_not(folder: Path, tmp_path: Path) -> None:
    build_index(folder, tmp_path / "x.arrow")
    index = open_index(tmp_path / "x.arrow")
    twins = find_twins(index)
    names = index.table()["name"].to_pylist()
    for row, name in enumerate(names):
        first = names[twins.groups[row]]
        label, file = name.split("/")
        assert first == (f"{label}/{int(file[1]):02d}.png" if file[0] == "z" else name)
        assert twins.decoded[row] == (file != "torn.png")


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "no image in"),
        ({"a/0.txt": None}, "no image in"),
        ({f"{i}.png": i for i in range(9)}, "no image of .* has a label"),
        ({f"a/{i}.png": i for i in range(9)}, "all images of .* are of one class, 'a'; give two"),
        ({"a/0.png": 0, "a/1.png": 1, "b/2.png": 2}, "has 3 labelled images; fit needs 8"),
        ({**{f"a/{i}.png": i for i in range(9)}, "b/x.png": 77, "b/y.png": 77}, "1 class with one picture each.*: b;"),
    ],
)  # fmt: skip
def test_a_set_that_cannot_be_learnt_is_one_line(
    files: dict[str, int | None], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "in"
    root.mkdir()
    for name, seed in files.items():
        (root / name).parent.mkdir(exist_ok=True)
        if seed is None:
            (root / name).write_text("nothing")
        else:
            picture(seed).save(root / name)
    assert main(["fit", str(root), "-o", str(tmp_path / "run"), *SMALL]) == 2
    err = capsys.readouterr().err.strip()
    assert "\n" not in err
    assert re.search(said, err), err


def test_a_folder_with_something_else_is_left_alone(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert main(["fit", str(folder), "-o", str(tmp_path)]) == 2
    assert "holds something else" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_what_is_suggested_is_a_configuration_that_plans_as_it_says(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index, config = tmp_path / "x.arrow", tmp_path / "x.toml"
    build_index(folder, index)
    assert loader(["suggest", str(index), "--tokens", "30", "--toml"]) == 0
    config.write_text(capsys.readouterr().out)
    plan = LoaderConfig.from_toml(config).plan
    assert plan.max_tokens == 30 and plan.sequence_length >= 4 * 30
    assert loader(["plan", str(index), str(config), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["padding"] < 0.02 and found["closed_by_max_images"] == 0
    assert loader(["suggest", str(index), "--memory-mb", "-1"]) == 2
    assert "--memory-mb = -1" in capsys.readouterr().err


def test_classes_of_uneven_size_are_told_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for label, (name, count) in enumerate((("cat", 24), ("dog", 4))):
        (tmp_path / "in" / name).mkdir(parents=True)
        for i in range(count):
            picture(100 * label + i).save(tmp_path / "in" / name / f"{i}.png")
    words = ["fit", str(tmp_path / "in"), "-o", str(tmp_path / "run"), *SMALL, "train.steps=1"]
    assert main([*words, "train.class_weights=balanced"]) == 0
    assert re.search(r"largest class has \d+ times .* train\.class_weights=balanced", capsys.readouterr().out)
    table = tomllib.loads((tmp_path / "run" / "fit.toml").read_text())
    assert table["train"]["class_weights"] == "balanced"


def test_the_folder_of_a_run_is_named_once(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", str(folder), "-o", str(tmp_path / "run"), *SMALL, f"train.out={tmp_path}/elsewhere"]) == 2
    assert "name the folder with -o" in capsys.readouterr().err


def small_set(root: Path, *folders: str) -> None:
    for label, name in enumerate(folders):
        (root / name).mkdir(parents=True)
        for i in range(5):
            picture(100 * label + i).save(root / name / f"{i}.png")


def names_of(run: Path, part: str) -> list[str]:
    return sorted(open_index(run / f"{part}.arrow").table()["name"].to_pylist())


def test_a_folder_of_splits_is_learnt_and_scored_by_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, run = tmp_path / "in", tmp_path / "run"
    small_set(root, "train/a", "train/b", "Val/a", "Val/b", "test/a", "test/b")
    for i in range(5):  # else the pictures of all splits are the same
        picture(1000 + i).save(root / "Val" / "a" / f"{i}.png")
        picture(1100 + i).save(root / "Val" / "b" / f"{i}.png")
    picture(2, 60, 45).save(root / "Val" / "a" / "twin.png")  # of train/a/2.png
    words = ["fit", str(root), "-o", str(run), *SMALL, "train.steps=1"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert f"'{root}/train' is learnt, '{root}/Val' is held out" in out
    assert f"held out: 11 images of {root}/Val, as given" in out
    assert re.search(
        r"left out of training: 1 picture also held out, such as \S*/train/a/2.png, which is \S*/twin.png", out
    )
    assert names_of(run, "train") == sorted({f"{c}/{i}.png" for c in "ab" for i in range(5)} - {"a/2.png"})
    assert len(names_of(run, "heldout")) == 11
    assert f"11 images of {root}/Val, as given" in (run / "fit.toml").read_text()
    # What is said of the split that is left does what it should.
    index, score = (
        words.split() for words in re.findall(r"navit-loader (index .*?), then navit-model (eval .*)", out)[0]
    )
    index[3] = score[2] = str(tmp_path / "x.arrow")
    assert loader(index) == 0 and main(score) == 0
    capsys.readouterr()
    assert main(words) == 0  # goes on
    picture(2000).save(root / "Val" / "a" / "new.png")
    assert main(words) == 2
    assert "have changed since" in capsys.readouterr().err
    assert main([*words, "--held-out", "0.3"]) == 2
    assert f"give the one to learn from, '{root}/train'" in capsys.readouterr().err

    assert loader(["index", str(root), "-o", str(tmp_path / "all.arrow")]) == 0
    assert "Val, test, train are names of splits" in capsys.readouterr().out
    flat = tmp_path / "flat"
    small_set(flat, "train", "exam")
    assert loader(["index", str(flat), "-o", str(tmp_path / "flat.arrow")]) == 0
    assert "names of splits" not in capsys.readouterr().out


def test_splits_without_folders_of_classes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, run = tmp_path / "in", tmp_path / "run"
    small_set(root, "train", "test")
    assert main(["fit", str(root), "-o", str(run), *SMALL]) == 2
    err = capsys.readouterr().err
    assert "holds splits, test, train, and no classes; put the images of each class into a folder" in err
    (root / "labels.csv").write_text("path,label\n")
    assert main(["fit", str(root), "-o", str(run), *SMALL]) == 2
    assert f"or give the table of their labels: '{root}/labels.csv'\n" in capsys.readouterr().err
    small_set(root / "more", "test/a", "dev/b")
    assert main(["fit", str(root / "more"), "-o", str(run), *SMALL]) == 2
    assert "none of them is called train; fit the one to learn from" in capsys.readouterr().err
    assert not run.exists()
    # A competition's: the images of its test have no labels.
    small_set(root / "half", "train/a", "train/b", "test")
    assert main(["fit", str(root / "half"), "-o", str(run), *SMALL, "train.steps=1"]) == 0
    assert "a share of it held out" in capsys.readouterr().out and len(names_of(run, "heldout")) == 2
    small_set(root / "one", "train/a", "train/b")
    assert main(["fit", str(root / "one"), "-o", str(tmp_path / "other"), *SMALL]) == 2
    assert f"or, if the folders in '{root}/one/train' are the classes, give that" in capsys.readouterr().err


def test_ones_own_validation_images_are_scored_by_the_classes_of_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small_set(tmp_path / "in", "a", "b", "c")
    own = tmp_path / "own"
    for i in range(3):
        (own / "c").mkdir(parents=True, exist_ok=True)
        picture(900 + i).save(own / "c" / f"{i}.png")
    table = tmp_path / "own.csv"
    table.write_text("path,label\n" + "".join(f"own/c/{i}.png,c\n" for i in range(3)))
    assert loader(["index", str(own), "-o", str(tmp_path / "own.arrow"), "--classes", str(tmp_path / "names.txt")]) == 2
    (tmp_path / "names.txt").write_text("a\nb\nc\n")
    assert loader(["index", str(own), "-o", str(tmp_path / "own.arrow"), "--classes", str(tmp_path / "names.txt")]) == 0
    capsys.readouterr()
    for n, source in enumerate((own, table, tmp_path / "own.arrow")):
        run = tmp_path / f"run{n}"
        words = ["fit", str(tmp_path / "in"), "-o", str(run), "--held-out", str(source), *SMALL, "train.steps=1"]
        assert main(words) == 0
        assert "no image to score of 2 classes: a, b" in capsys.readouterr().out
        held = open_index(run / "heldout.arrow")
        assert held.classes == ["a", "b", "c"] and set(np.concatenate(held.columns()["labels"]).ravel()) == {2}
        assert open_index(run / "train.arrow").num_rows == 15
    small_set(own, "zebra")
    words = ["fit", str(tmp_path / "in"), "-o", str(tmp_path / "x"), *SMALL, "--held-out"]
    assert main([*words, str(own)]) == 2
    err = capsys.readouterr().err
    assert f"folder '{own}/zebra' is no class" in err and "\n" not in err.strip() and f"'{tmp_path / 'in'}'" in err
    assert loader(["index", str(own), "-o", str(tmp_path / "own.arrow")]) == 0
    assert main([*words, str(tmp_path / "own.arrow")]) == 2
    assert "has the classes [c, zebra] (2), the model was trained on [a, b, c]" in capsys.readouterr().err
    assert main([*words, str(tmp_path / "in")]) == 2
    assert "all pictures of" in capsys.readouterr().err
    assert main([*words, str(tmp_path / "none")]) == 2
    assert "no such file or folder" in capsys.readouterr().err


@pytest.mark.parametrize("table", ["in/table.csv", "in/annotations/instances.json", "in/data/a.parquet"])
@pytest.mark.parametrize("images", [True, False])
def test_a_table_in_the_folder_is_named(
    table: str, images: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small_set(tmp_path / "in", *(["images", "images/more"] if images else []))
    (tmp_path / table).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / table).write_text('{"info": {}, "images": []}')
    (tmp_path / "in" / "settings.json").write_text("{}")
    assert main(["fit", str(tmp_path / "in"), "-o", str(tmp_path / "run"), *SMALL]) == 2
    err = capsys.readouterr().err
    assert re.search(rf"{tmp_path / table}'.* give that", err) and "settings.json" not in err


def test_a_run_that_was_stopped_says_how_fit_goes_on(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "run" / "log.jsonl"

    def stop() -> None:
        for _ in range(1200):
            if log.exists() and '"train"' in log.read_text():
                os.kill(os.getpid(), signal.SIGINT)
                return
            time.sleep(0.1)

    (folder / "dog" / "void.png").touch()
    threading.Thread(target=stop, daemon=True).start()
    assert main(["fit", str(folder), "-o", str(tmp_path / "run"), *SMALL, "train.steps=5000"]) == 130
    (folder / "dog" / "void.png").unlink()
    out = capsys.readouterr().out
    assert "is saved; give the same command again\n" in out
    assert re.search("1 broken, left out.*\n    .*dog/void.png: empty", out)


def test_a_signal_before_training_says_what_is_kept(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = [sys.executable, "-m", "navit_model", "fit", str(folder), "-o", str(run), *SMALL]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (run / "fit.json").exists() and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 130
    assert re.search(rf"nothing is trained yet; the index.* (is|are) kept in '{run}'; give the same command again", err)
    assert main(words[3:]) == 0 and len(losses(run)) == 6


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("model.widht=32", "unknown key 'model.widht' (did you mean 'width'?)"),
        ("plan.crop.flap=1", "unknown key 'plan.crop.flap' (did you mean 'flip'?)"),
        ("trian.steps=3", "unknown section 'trian'"),
        ("train.steps=many", "train.steps = 'many' must be of type int"),
    ],
)
def test_a_misspelt_change_is_told_before_any_work(
    change: str, said: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # A width of 32 needs other heads than the usual: that is for the whole configuration to say.
    assert main(["fit", str(folder), "-o", str(tmp_path / "run"), "model.width=32", change]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "run").exists()


@given(
    images=st.integers(2, 10**6),
    held_out=st.integers(1, 10**5),
    steps=st.integers(0, 10**5),
    pretrained=st.booleans(),
    best=st.sampled_from([None, True, False]),
)
def test_a_step_is_chosen_by_held_out_images_only_where_they_can_tell(
    images: int, held_out: int, steps: int, pretrained: bool, best: bool | None
) -> None:
    about = Given(images, held_out, 30.5, 64, steps, pretrained, False, False, "fp32", best)
    table = {**nested(recipe(about))["train"], **({} if best is None else {"best": best})}
    assert table["best"] == (held_out >= SURE if best is None else best)
    assert bool(table["patience"]) == table["best"]
    # Whatever is chosen is allowed, and what was asked for is too.
    config = RunConfig.from_dict({"train": table, "data": {"eval_index": "x"}}).train
    times = -(-config.steps // config.eval_every)
    assert min(2, config.steps) <= times <= 10
    said = next(choice.why for choice in recipe(about) if choice.key == "train.eval_every")
    assert said.startswith(f"{times} time") and table["patience"] in (0, max(1, times // 2))
    # Scoring an image costs a third more than learning one.
    share = times * held_out * 4 / 3 / (config.steps * 30.5)
    assert ("a tenth of the time at most" in said) <= (share / (1 + share) <= 0.1)


def test_a_run_of_few_held_out_images_ends_at_its_last_step(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(["fit", str(folder), "-o", str(run), *SMALL]) == 0
    out = capsys.readouterr().out
    assert tomllib.loads((run / "fit.toml").read_text())["train"]["best"] is False
    assert "scored best" not in out and not list((run / "checkpoints").glob("best-*"))
    scores = json.loads((run / "scores.json").read_text())
    assert scores["checkpoint"].endswith("step-00000006")
    tokens = re.search(r"use it: navit-model predict \S+ IMAGE … --tokens (\d+)", out)
    assert tokens
    assert main(["predict", str(run), str(folder / "cat"), "--tokens", tokens[1], "--json"]) == 1  # one is torn
    assert (
        main(["eval", str(run), str(run / "heldout.arrow"), "--tokens", tokens[1], "--json", str(tmp_path / "x")]) == 0
    )
    capsys.readouterr()
    last = json.loads((tmp_path / "x").read_text())
    assert (
        last["checkpoint"] == scores["checkpoint"] and last["scores"][0]["accuracy"] == scores["scores"][0]["accuracy"]
    )
    # More steps are another run, from these weights and on the same split, by the command that is printed.
    more = re.findall(r"more steps from its weights: navit-model (.*)", out)[0]
    assert html.escape(more) in (run / "report.html").read_text()
    words = ["fit", str(folder), "-o", str(run), *SMALL[1:], "train.steps=9"]
    before = sorted((path, path.stat().st_mtime_ns) for path in (run / "checkpoints").rglob("*"))
    assert main(words) == 2
    refused = capsys.readouterr().err
    assert f"navit-model {more.replace('train.steps=6', 'train.steps=9')}" in refused and "\n" not in refused.strip()
    assert sorted((path, path.stat().st_mtime_ns) for path in (run / "checkpoints").rglob("*")) == before
    assert main(more.split()) == 0
    state = json.loads(next((tmp_path / "run-longer" / "checkpoints").glob("step-*6/state.json")).read_text())
    assert state["config"]["data"]["eval_index"] == str(run / "heldout.arrow")
    assert losses(tmp_path / "run-longer")[0] < losses(run)[0]
    # Patience counts from the best step, which is then kept.
    assert main(["fit", str(folder), "-o", str(tmp_path / "asked"), *SMALL, "train.patience=2"]) == 0
    out = capsys.readouterr().out
    step = re.search(r"step (\d+) scored best, and is what predict, eval and export take", out)
    assert (
        step
        and f"Used are the weights of step {step[1]}, the best of" in (tmp_path / "asked" / "report.html").read_text()
    )
    # What got no better is not told to go on.
    assert ("without a better score (train.patience)" in out) != ("more steps from its weights" in out)
