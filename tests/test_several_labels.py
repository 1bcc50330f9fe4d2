"""A run whose images have several labels, or none: what is said of it, in the terminal, as CSV and in the report.

In: the tiny shapes, with two independent labels. Out: a real run, and its commands.
"""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest

from navit_loader import build_index
from navit_model.cli import main
from navit_model.train.run import train
from navit_model.train.settings import RunConfig

from .shapes import table, write_index


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `several.arrow`, whose images are bright above, on the left, both or neither, and `run`."""
    root = tmp_path_factory.mktemp("several")
    write_index(root)
    lines = []
    for path in sorted((root / "images").rglob("*.png")):
        kind = int(path.stem) % 3
        labels = (["above"] if kind != 1 else []) + (["left"] if kind != 0 else [])
        lines.append(json.dumps({"path": str(path.relative_to(root)), "label": labels}))
    (root / "several.jsonl").write_text("\n".join(lines))
    build_index(root / "several.jsonl", root / "several.arrow")
    train(RunConfig.from_dict(table(str(root / "several.arrow"), root / "run", loss="sigmoid", checkpoint_every=0)))
    return root


def test_predict_says_which_labels_hold(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["predict", str(root / "run"), str(root / "images"), "--device", "cpu"]
    for given, threshold in (([], 0.5), (["--threshold", "0.7"], 0.7)):
        capsys.readouterr()
        # All labels that hold are said, also where fewer classes are shown.
        assert main([*words, *given, "--csv", "--top", "1"]) == 0
        held = [row["labels"].split(";") if row["labels"] else [] for row in csv.DictReader(_out(capsys))]
        assert main([*words, *given, "--json"]) == 0
        rows = [json.loads(line) for line in _out(capsys)]
        assert [row["labels"] for row in rows] == held and any(held)
        assert held == [[name for name, share in row["classes"].items() if share >= threshold] for row in rows]
        assert main([*words, *given]) == 0
        assert [line.split("; labels: ")[1] for line in _out(capsys)] == [", ".join(h) or "none" for h in held]


def test_a_threshold_is_of_several_labels_alone(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(RunConfig.from_dict(table(str(root / "shapes.arrow"), root / "one", steps=1, checkpoint_every=0)))
    image = str(next((root / "images").rglob("*.png")))
    assert main(["predict", str(root / "one"), image, "--threshold", "0.4"]) == 2
    assert "--threshold = 0.4" in capsys.readouterr().err
    assert main(["predict", str(root / "one"), image, "--csv"]) == 0
    assert "labels" not in _out(capsys)[0]


def test_rankings_come_first_and_in_one_unit(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores = root / "scores.json"
    words = [
        "eval",
        str(root / "run"),
        str(root / "several.arrow"),
        "--device",
        "cpu",
        "--details",
        "--json",
        str(scores),
    ]
    assert main(words) == 0
    said = capsys.readouterr().out
    (one,) = json.loads(scores.read_text())["details"]
    for key, name in (("roc_auc", "ROC AUC"), ("map", "mAP")):
        low, high = one[f"{key}_95"]
        assert f"{name} {one[key]:.2%} in [{low:.2%}, {high:.2%}]" in said
    assert main(["report", str(root / "run"), str(scores)]) == 0
    first = re.search(r'class="tile"><b>([^<]*)</b><span>([^<]*)<', (root / "run" / "report.html").read_text())
    assert first and first.groups() == (f"{one['map']:.2%}", "mAP on several.arrow")


def _out(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()
