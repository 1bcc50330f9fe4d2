"""Numbers that are predicted: from a column of a table to MAE, R² and `predict`, whatever wrote the table.

In: small pictures whose brightness is the number. Out: real indexes, runs and commands.
"""

from __future__ import annotations

import csv
import json
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from navit_loader import build_index, open_index, pack_images
from navit_loader.cli import main as loader
from navit_loader.errors import IndexFileError, NavitError
from navit_loader.index.subset import split_rows
from navit_model.cli import main
from navit_model.losses.regression import regression_loss
from navit_model.train import checkpoint
from navit_model.train.log import read_log
from navit_model.train.run import train
from navit_model.train.settings import RunConfig
from navit_model.use.frozen import planned
from navit_model.use.onnx import inputs_of
from navit_model.use.opened import open_model
from navit_model.use.predict import predict

sys.path.insert(0, str(Path(__file__).parent))
from packed import packed
from ranks import stopped
from shapes import table
from source_kit import encode

CPU = torch.device("cpu")


def write_numbers(root: Path, count: int = 90, seed: int = 0) -> Path:
    """`m.csv` and its pictures: the column `price` is 1000 + the mean level of the pixels, twice a blank."""
    rng = np.random.default_rng(seed)
    root.mkdir(parents=True, exist_ok=True)
    lines = ["path,price"]
    for i in range(count):
        h, w = (int(v) for v in rng.integers(10, 30, 2))
        pixels = np.clip(rng.normal(rng.uniform(40, 210), 20, (h, w, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(root / f"{i:03d}.png")
        lines.append(f"{i:03d}.png," + ("" if i in (3, 50) else f"{1000 + pixels.mean():.4f}"))
    (root / "m.csv").write_text("\n".join(lines))
    return root / "m.csv"


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `train.arrow`, `heldout.arrow` from a table of its own, and their pictures."""
    root = tmp_path_factory.mktemp("numbers")
    for name, seed in (("train", 0), ("heldout", 1)):
        build_index(write_numbers(root / name, seed=seed), root / f"{name}.arrow", target_column="price")
    return root


def config(numbers: Path, out: Path, **train: Any) -> dict[str, Any]:
    given = table(str(numbers / "train.arrow"), out, 3, **{"task": "regression", "ema": 0.9, **train})
    given["data"]["eval_index"] = str(numbers / "heldout.arrow")
    return given


@pytest.fixture(scope="module")
def run(numbers: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "run"
    train(RunConfig.from_dict(config(numbers, out, steps=150, log_every=50, checkpoint_every=0, eval_tokens=[8, 16])))
    return out


GIVEN = [-1, "2.50", 3, " 1e3 ", None, "", -0.0, 12345678901.25]
MEANT = [-1.0, 2.5, 3.0, 1000.0, None, None, 0.0, 12345678901.25]


def targets_of(path: Path) -> list[float | None]:
    index = open_index(path)
    assert index.targets is not None
    names, labels = index.table()["name"].to_pylist(), np.concatenate(index.columns()["labels"])
    found = dict(zip(names, labels, strict=True))
    return [None if found[name] < 0 else float(index.targets[found[name]]) for name in sorted(names)]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "images"])
def test_a_number_is_the_same_whatever_wrote_it(kind: str, tmp_path: Path) -> None:
    files = [f"{i}.png" for i in range(len(GIVEN))]
    given: list[Any] = list(GIVEN)
    for i, name in enumerate(files):
        (tmp_path / name).write_bytes(encode("PNG", 9, 9, seed=i))
    path = tmp_path / f"m.{'parquet' if kind == 'images' else kind}"
    if kind == "csv":
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([["path", "y"], *zip(files, given, strict=True)])
    elif kind == "jsonl":
        path.write_text("".join(json.dumps({"path": n, "y": v}) + "\n" for n, v in zip(files, given, strict=True)))
    else:
        # A column has one type; NaN is what pandas writes for a blank.
        column = pa.array([float("nan") if v in (None, "") else float(v) for v in given], pa.float64())
        pixels = pa.array([(tmp_path / name).read_bytes() for name in files], pa.binary())
        first = {"image": pixels} if kind == "images" else {"path": pa.array(files)}
        pq.write_table(pa.table({**first, "y": column}), path)
    build_index(path, tmp_path / "x.arrow", target_column="y")
    assert targets_of(tmp_path / "x.arrow") == MEANT


def test_decimals_and_halves_of_parquet_are_numbers(tmp_path: Path) -> None:
    for i in range(2):
        (tmp_path / f"{i}.png").write_bytes(encode("PNG", 9, 9, seed=i))
    for column in (pa.array([Decimal("1.25"), Decimal("-3")], pa.decimal128(9, 2)), pa.array([1.25, -3], pa.float32())):
        pq.write_table(pa.table({"path": ["0.png", "1.png"], "y": column}), tmp_path / "m.parquet")
        build_index(tmp_path / "m.parquet", tmp_path / "x.arrow", target_column="y")
        assert targets_of(tmp_path / "x.arrow") == [1.25, -3.0]


@pytest.mark.parametrize("value", ["many", "inf", "3,5", "1_000", [1.0], True, {"a": 1}])
def test_what_is_no_number_is_named_with_its_place(value: Any, tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(encode("PNG", 9, 9))
    (tmp_path / "m.jsonl").write_text(json.dumps({"path": "0.png", "y": value}))
    with pytest.raises(IndexFileError, match=r"m\.jsonl' line 1: target .* is (no number such as 3\.25|not finite)"):
        build_index(tmp_path / "m.jsonl", tmp_path / "x.arrow", target_column="y")


def test_both_sides_of_a_split_have_the_whole_range(numbers: Path, tmp_path: Path) -> None:
    index = open_index(numbers / "train.arrow")
    values = np.array([np.nan if v is None else v for v in targets_of(numbers / "train.arrow")])
    drawn = split_rows(index, 0.2, seed=0)
    assert int(drawn.sum()) == 18
    kept = values[~np.isnan(values)]
    for low, high in ((0, 33), (33, 67), (67, 100)):
        within = (values >= np.percentile(kept, low)) & (values <= np.percentile(kept, high))
        assert 3 <= int((drawn & within).sum()) <= 9
    parts = [str(tmp_path / name) for name in ("rest.arrow", "drawn.arrow")]
    assert loader(["split", str(numbers / "train.arrow"), "--fraction", "0.2", "-o", *parts]) == 0
    for part in parts:
        assert open_index(part).targets is not None
        assert loader(["info", part]) == 0


def test_the_loss_is_hubers_of_mixed_numbers() -> None:
    batch = packed([[(2, 2), (3, 1), (2, 3)]], length=20, longest=16, images=4, failed=[(0, 2)])
    labels = np.full((1, 4, 1), -1)
    labels[0, :3, 0] = (2, 0, 1)
    batch = type(batch)(**{**{f: getattr(batch, f) for f in batch.__slots__}, "labels": labels}).to("cpu")
    numbers = torch.tensor([-2.0, 0.5, 4.0])
    outputs = torch.tensor([[[3.5], [5.0], [9.0], [9.0]]])
    total, count = regression_loss(outputs, batch, numbers)
    assert int(count) == 2
    torch.testing.assert_close(total, torch.tensor(0.5 * 0.5**2 + (7.0 - 0.5)))
    mixed = (torch.tensor([[1, 0, 2, 3]]), torch.tensor([[0.75, 0.5, 1.0, 1.0]]))
    total, _ = regression_loss(outputs, batch, numbers, mixed=mixed)
    expected = F.huber_loss(outputs[0, :2, 0], torch.tensor([0.75 * 4 - 0.25 * 2, 0.5 * 4 - 0.5 * 2]), reduction="sum")
    torch.testing.assert_close(total, expected)


def test_a_run_learns_numbers_and_says_them_in_their_own_unit(
    numbers: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = checkpoint.open_checkpoint(run)
    known = np.array([v for v in targets_of(numbers / "train.arrow") if v is not None])
    assert saved.config.regression.mean == pytest.approx(known.mean())
    assert saved.config.regression.std == pytest.approx(known.std())
    (score,) = [e for e in read_log(run) if e["kind"] == "eval" and e["tokens"] == 16]
    assert score["images"] == 88 and score["r2"] > 0.9 and score["mae"] < 20
    assert "R²" in (run / "report.html").read_text()

    told = tmp_path / "scores.json"
    words = ["eval", str(run), str(numbers / "heldout.arrow"), "--tokens", "16", "--json", str(told)]
    assert main([*words, "--device", "cpu"]) == 0
    (again,) = json.loads(told.read_text())["scores"]
    assert {k: again[k] for k in ("r2", "mae", "images")} == {k: score[k] for k in ("r2", "mae", "images")}

    capsys.readouterr()
    folder = numbers / "heldout"
    assert main(["predict", str(run), str(folder), "--device", "cpu", "--csv", "--tokens", "16"]) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    truth = targets_of(numbers / "heldout.arrow")
    there = [(float(row["number"]), v) for row, v in zip(rows, truth, strict=True) if v is not None]
    assert np.mean([abs(a - b) for a, b in there]) == pytest.approx(score["mae"], rel=1e-3)
    (one,) = predict(open_model(run, CPU), [folder / "000.png"], tokens=16)
    assert one.number == pytest.approx(float(rows[0]["number"]), rel=1e-5) and not one.classes


def test_the_details_of_numbers_are_scikit_learn_s_with_a_baseline_and_the_farthest_off(
    numbers: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told, held = tmp_path / "scores.json", numbers / "heldout.arrow"
    words = ["eval", str(run), str(held), "--tokens", "8", "16", "--device", "cpu", "--json", str(told), "--details"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "always answering the training's mean" in said
    found = json.loads(told.read_text())
    mean = checkpoint.open_checkpoint(run).config.regression.mean
    for score, one in zip(found["scores"], found["details"], strict=True):
        truth, answer = np.array(one["points"]).T
        away = answer - truth
        assert len(away) == score["images"] == 88
        assert one["mae"] == pytest.approx(score["mae"]) == pytest.approx(np.abs(away).mean())
        assert one["rmse"] == pytest.approx(np.sqrt((away**2).mean())) and one["r2"] == pytest.approx(score["r2"])
        assert (one["low"], one["high"]) == (truth.min(), truth.max())
        assert one["baseline_mae"] == pytest.approx(np.abs(truth - mean).mean())
        for key in ("mae", "rmse", "r2"):
            low, high = one[f"{key}_95"]
            assert low < one[key] < high
        # As wide as theory has it for a mean.
        assert np.diff(one["mae_95"])[0] == pytest.approx(2 * 1.96 * np.abs(away).std() / np.sqrt(88), rel=0.15)
        worst = [abs(m["predicted"] - m["number"]) for m in one["mistakes"]]
        assert worst == pytest.approx(sorted(np.abs(away), reverse=True)[:24])
        assert all(m["picture"].startswith("data:image/jpeg;base64,") for m in one["mistakes"])
    assert main(["report", str(run), str(told), str(told)]) == 0
    page = (run / "report.html").read_text()
    for part in ("Predicted against true", "Worst mistakes", "Evaluations side by side (R² from the first)"):
        assert part in page
    best = max(e["r2"] for e in read_log(run) if e["kind"] == "eval")
    assert f"<b>{best:.4f}</b><span>held-out R²" in page


def test_an_onnx_file_says_by_what_its_output_is_a_number(numbers: Path, run: Path, tmp_path: Path) -> None:
    opened = open_model(run, CPU)
    file = tmp_path / "m.onnx"
    assert main(["export", str(run), "-o", str(file)]) == 0
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    meta = session.get_modelmeta().custom_metadata_map
    assert meta["loss"] == "regression" and json.loads(meta["classes"]) == []
    batch = pack_images([str(numbers / "train" / "000.png")], planned(opened))
    (output,) = session.run(None, inputs_of(batch))
    wanted = float(opened.numbers(batch)[batch.status == 1][0])
    assert float(output[0, 0]) * float(meta["std"]) + float(meta["mean"]) == pytest.approx(wanted, abs=0.05)


def test_a_picture_that_cannot_be_read_is_told_the_mean(numbers: Path, run: Path, tmp_path: Path) -> None:
    build_index(write_numbers(tmp_path / "held", 20, seed=5), tmp_path / "held.arrow", target_column="price")
    torn = tmp_path / "held" / "007.png"
    torn.write_bytes(torn.read_bytes()[:-40])
    told = tmp_path / "scores.json"
    assert main(["eval", str(run), str(tmp_path / "held.arrow"), "--json", str(told), "--device", "cpu"]) == 0
    (score,) = json.loads(told.read_text())["scores"]
    assert (score["images"], score["failed"]) == (19, 1)
    found = list(predict(open_model(run, CPU), sorted((tmp_path / "held").glob("*.png"))))
    mean = checkpoint.open_checkpoint(run).config.regression.mean
    pairs = [
        (mean if one.number is None else one.number, v)
        for one, v in zip(found, targets_of(tmp_path / "held.arrow"), strict=True)
        if v is not None
    ]
    assert score["mae"] == pytest.approx(np.mean([abs(a - b) for a, b in pairs]), rel=1e-4)


def test_a_resumed_run_is_the_same_bit_for_bit(numbers: Path, tmp_path: Path) -> None:
    mixed = {"mix": {"mixup": 0.8, "cutmix": 1.0}}
    whole, halves = (RunConfig.from_dict(config(numbers, tmp_path / n, **mixed)) for n in ("whole", "halves"))
    train(whole)
    stopped(halves, 7)
    train(halves, resume=True)
    found = [[e["loss"] for e in read_log(tmp_path / n) if e["kind"] == "train"] for n in ("whole", "halves")]
    assert found[0] == found[1] and len(found[0]) == 12


def test_fit_takes_a_column_of_numbers(numbers: Path, tmp_path: Path) -> None:
    out, small = tmp_path / "run", ["train.steps=6", "train.log_every=1", "train.device=cpu", "model.width=32"]
    small += ["model.depth=2", "model.heads=1"]
    words = ["fit", str(numbers / "train" / "m.csv"), "-o", str(out), "--target-column", "price", *small]
    assert main(words) == 0
    assert main(["train", str(out / "fit.toml"), f"train.out={tmp_path / 'again'}"]) == 0
    found = [[e["loss"] for e in read_log(at) if e["kind"] == "train"] for at in (out, tmp_path / "again")]
    assert found[0] == found[1] and found[0]
    assert "baseline_mae" in json.loads((out / "scores.json").read_text())["details"][0]
    page = (out / "report.html").read_text()
    assert "Predicted against true" in page and "always saying the mean of" in page.lower()
    assert all(open_index(out / f"{part}.arrow").targets is not None for part in ("train", "heldout"))


MISTAKES: list[tuple[str, dict[str, Any], str]] = [
    ("classes", {"data": {"index": "{other}"}}, "are no numbers; index a table with --target-column"),
    ("held-out classes", {"data": {"eval_index": "{other}"}}, r"other\.arrow' has the classes \[a, b\]"),
    ("several outputs", {"model": {"classes": 3}}, "model.classes = 3"),
    ("a loss of classes", {"train": {"loss": "sigmoid"}}, "train.loss = 'sigmoid'"),
    ("smoothing", {"train": {"label_smoothing": 0.1}}, "train.label_smoothing = 0.1"),
    ("no spread", {"regression": {"std": -1.0}}, "regression.std = -1.0"),
]


@pytest.mark.parametrize(("changes", "said"), [pytest.param(c, s, id=n) for n, c, s in MISTAKES])
def test_mistakes_are_one_line_before_the_first_step(
    numbers: Path, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    for name in "ab":
        (tmp_path / "other" / name).mkdir(parents=True)
        (tmp_path / "other" / name / "0.png").write_bytes(encode("PNG", 16, 16))
    build_index(tmp_path / "other", tmp_path / "other.arrow")
    given = config(numbers, tmp_path / "run")
    for section, keys in changes.items():
        filled = {k: str(tmp_path / "other.arrow") if v == "{other}" else v for k, v in keys.items()}
        given[section] = {**given.get(section, {}), **filled}
    with pytest.raises(NavitError, match=said):
        train(RunConfig.from_dict(given))
    assert not checkpoint.steps(tmp_path / "run")


def test_columns_that_contradict_are_refused(numbers: Path, tmp_path: Path) -> None:
    source, out = numbers / "train" / "m.csv", tmp_path / "x.arrow"
    with pytest.raises(IndexFileError, match="leave --label-column = 'price' out"):
        build_index(source, out, target_column="price", label_column="price")
    with pytest.raises(IndexFileError, match="leave --classes out"):
        build_index(source, out, target_column="price", classes=["a"])
    (tmp_path / "cats").mkdir()
    (tmp_path / "cats" / "0.png").write_bytes(encode("PNG", 9, 9))
    with pytest.raises(IndexFileError, match="class 'cats' is no number; with --target-column each source"):
        build_index([source, tmp_path], out, target_column="price")
