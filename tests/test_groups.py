"""Scores by group, and the page that shows evaluations: groups partition the images, and nothing that is shown steers a page.

In: a tiny run over an index, CSV files beside it. Out: groups, JSON files, HTML.
"""

from __future__ import annotations

import csv
import html.parser
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from navit_loader import build_index, open_index
from navit_loader.errors import ModelError
from navit_model.cli import main
from navit_model.evaluate.cascade import Answers
from navit_model.evaluate.confusion import MOST_CLASSES, confused_pairs, confusion_svg, pairs_of
from navit_model.evaluate.groups import Groups, by_group, groups_text, read_groups
from navit_model.evaluate.page import caution
from navit_model.train import report
from navit_model.train.run import train
from navit_model.train.settings import RunConfig

from .shapes import table, write_index

NASTY = '<script>alert("x")</script>'


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over an index of which a class and the groups have hostile names, and `groups.csv` beside it."""
    root = tmp_path_factory.mktemp("groups")
    write_index(root)
    (root / "images" / "class0").rename(root / "images" / NASTY.replace("/", "∕"))
    build_index(root / "images", root / "shapes.arrow")
    given = table(str(root / "shapes.arrow"), root / "run", steps=8, checkpoint_every=0)
    train(RunConfig.from_dict(given))
    files = sorted((root / "images").rglob("*.png"))
    with (root / "groups.csv").open("w", newline="", encoding="utf-8-sig") as file:
        lines = csv.writer(file)
        lines.writerow(["path", "light", "age"])
        for n, path in enumerate(files[:80]):
            lines.writerow([path.relative_to(root), f"<b>{n % 3}</b>$\\x$", "" if n % 7 == 0 else n])
    return root


def test_a_csv_names_images_as_a_manifest_beside_it_or_as_the_index_does(root: Path, tmp_path: Path) -> None:
    index = open_index(root / "shapes.arrow")
    by_path = read_groups(f"{root}/groups.csv:light", index)
    assert by_path.column == "light" and by_path.names == [f"<b>{n}</b>$\\x$" for n in range(3)]
    assert np.bincount(by_path.of + 1).tolist() == [10, 27, 27, 26]
    names = index.table()["name"].to_pylist()
    for header, ids in (
        ("row", [str(n) for n in range(90)]),
        ("image", [index.uri(n) for n in range(90)]),
        ("file", names),
    ):
        text = "".join(f'"{one.replace(chr(34), chr(34) * 2)}",{by_path.of[n]}\n' for n, one in enumerate(ids))
        (tmp_path / "g.csv").write_text(f"{header},group\n{text}", encoding="utf-8")
        found = read_groups(str(tmp_path / "g.csv"), index)
        assert found.names == ["-1", "0", "1", "2"] and np.array_equal(found.of - 1, by_path.of)


@pytest.mark.parametrize(("mark", "encoding"), [(";", "utf-8"), ("\t", "utf-16"), (",", "utf-8-sig")])
def test_a_table_is_read_as_a_manifest_is(root: Path, tmp_path: Path, mark: str, encoding: str) -> None:
    index, path = open_index(root / "shapes.arrow"), tmp_path / "g.csv"
    lines = [("row", "Kamera", "x"), *((str(n), f"Ä{n % 2}", "1,5") for n in range(90))]
    quoted = [mark.join(f'"{cell}"' if mark in cell else cell for cell in line) for line in lines]
    path.write_text("\n".join(quoted), encoding=encoding)
    found = read_groups(f"{path}:Kamera", index)
    assert found.names == ["Ä0", "Ä1"] and found.of.tolist() == [n % 2 for n in range(90)]
    with pytest.raises(ModelError, match=r"no column 'Camera' beside 'row'; give .* of Kamera, x$"):
        read_groups(f"{path}:Camera", index)


def test_an_image_of_several_labels_counts_in_the_group_of_each(root: Path, tmp_path: Path) -> None:
    files = sorted(str(path) for path in (root / "images").rglob("*.png"))[:6]
    given = [["a"], ["b"], ["a", "c"], [], ["c", "b", "a"], ["c"]]
    lines = [json.dumps({"path": path, "label": labels}) for path, labels in zip(files, given, strict=True)]
    (tmp_path / "m.jsonl").write_text("\n".join(lines))
    build_index(tmp_path / "m.jsonl", tmp_path / "m.arrow")
    index = open_index(tmp_path / "m.arrow")
    groups = read_groups("label", index)
    assert groups.names == ["a", "b", "c"]
    labels = np.concatenate(index.columns()["labels"]).reshape(-1, index.label_width)
    one, chances = np.ones(6), np.full((6, 3), 0.6)
    values = (0.6 * one, one, one, one, chances, labels)
    answers = Answers(*(torch.from_numpy(np.asarray(v, np.float32)) for v in values))
    found = by_group(answers, groups, index.classes, sigmoid=True)
    assert {row["group"]: row["images"] for row in found["groups"]} == {"a": 3, "b": 2, "c": 3}
    assert (found["several"], found["without"]) == (2, 1)
    assert "2 images are in several groups" in groups_text(16, found)


@pytest.mark.parametrize("column", ["label", "format", "width", "aspect", "age"])
def test_groups_partition_the_images(root: Path, column: str) -> None:
    index = open_index(root / "shapes.arrow")
    groups = read_groups(f"{root}/groups.csv:age" if column == "age" else column, index)
    rng = np.random.default_rng(1)
    labels = np.concatenate(index.columns()["labels"])
    chances = rng.dirichlet(np.ones(3), 90).astype(np.float32)
    counted = rng.random(90) < 0.9
    right = (chances.argmax(1) == labels) & counted
    values = (chances.max(1), right, np.ones(90), counted, chances, labels[:, None])
    answers = Answers(*(torch.from_numpy(np.asarray(v, np.float32)) for v in values))
    found = by_group(answers, groups, index.classes, sigmoid=False)
    rows = found["groups"]
    assert sum(row["images"] for row in rows) + found["without"] == counted.sum()
    assert {"width": 4, "aspect": 4, "label": 3, "format": 1, "age": 4}[column] == len(rows)
    for row in rows:
        mine = counted & ((groups.of.reshape(90, -1) == groups.names.index(row["group"])).any(1))
        assert row["accuracy"] == pytest.approx(right[mine].mean())
        assert row["accuracy_95"][0] <= row["accuracy"] <= row["accuracy_95"][1]
    shares = {row["group"]: row["accuracy"] for row in rows}
    assert shares[found["worst"]] == min(shares.values()) and shares[found["best"]] == max(shares.values())
    assert found["gap"] == pytest.approx(max(shares.values()) - min(shares.values()))
    assert found["gap_95"][0] <= found["gap"] <= found["gap_95"][1]


def test_a_group_of_three_images_is_not_named_worst() -> None:
    of = np.array([0] * 3 + [1] * 20 + [2] * 20)
    right = np.array([0] * 3 + [1] * 15 + [0] * 5 + [1] * 20, np.float32)
    chances = np.stack([right, 1 - right], 1)
    one = np.ones(43, np.float32)
    values = (one, right, one, one, chances, np.zeros((43, 1), np.float32))
    groups = Groups("kind", ["few", "many", "more"], of)
    found = by_group(Answers(*map(torch.from_numpy, values)), groups, ["a", "b"], sigmoid=False)
    assert (found["worst"], found["best"], found["gap"]) == ("many", "more", 0.25)
    assert found["groups"][0] == {**found["groups"][0], "group": "few", "images": 3, "accuracy": 0.0}
    # Of three wrong answers nobody is sure that all are wrong; what is drawn from them alone has no interval.
    assert found["groups"][0]["accuracy_95"] == pytest.approx([0, 0.5615], abs=1e-3)
    assert "macro_f1_95" not in found["groups"][0] and "macro_f1_95" in found["groups"][1]
    assert found["gap_95"] == pytest.approx([0.0378, 0.4687], abs=1e-3)


def test_few_images_are_said_with_how_wide_the_interval_is() -> None:
    score = {"tokens": 16, "patch_size": 4, "images": 20, "accuracy": 0.75}
    assert caution({"scores": [score]}, True) == (
        "Only 20 images were scored, and the same ones chose the best step, so that others will score rather lower; the "
        "interval of 95 % of accuracy, 53.1% to 88.8%, is 36 points wide."
    )
    closer = {"map": 0.6, "map_95": [0.4, 0.9]}
    assert "mAP, 40.0% to 90.0%, is 50 points" in caution({"scores": [score], "details": [closer]}, False)
    number = {"tokens": 16, "patch_size": 4, "images": 20, "r2": 0.5}
    assert caution({"scores": [number]}, False) == "Only 20 images were scored."
    assert "R², -0.10 to 0.80, is 0.90 wide" in caution({"scores": [number], "details": [{"r2_95": [-0.1, 0.8]}]}, True)
    assert not caution({"scores": [{**score, "images": 100}]}, True)


class Page(html.parser.HTMLParser):
    """Counts the elements of a page, and remembers what stands in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_evaluations_stand_in_the_report_and_steer_nothing(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores = [root / "one.json", root / "two.json"]
    words = ["eval", root / "run", root / "shapes.arrow", "--tokens", "9", "25", "--device", "cpu", "--details"]
    groups = ["--group-by", f"{root}/groups.csv:light", "aspect", "--corrupt", "blur"]
    for path in scores:
        assert main([*map(str, [*words, "--json", path]), *groups]) == 0
    said = capsys.readouterr().out
    assert "worst is" in said and "labelled images have no group" in said
    found = json.loads(scores[0].read_text())
    assert len(found["details"]) == len(found["groups"]) == len(found["corruptions"]) == 2
    for closer, score in zip(found["details"], found["scores"], strict=True):
        assert closer["accuracy"] == pytest.approx(score["accuracy"])
        wrong = closer["mistakes"]
        assert len(wrong) == min(24, round(90 * (1 - score["accuracy"])))
        assert [w["confidence"] for w in wrong] == sorted((w["confidence"] for w in wrong), reverse=True)
        assert all(w["labels"] != [w["predicted"]] for w in wrong)
        assert sum(b["images"] for b in closer["reliability"]) == 90
    assert main(["report", str(root / "run"), *map(str, scores)]) == 0
    page = Page((root / "run" / "report.html").read_text())
    text = " ".join(page.words)
    assert "script" not in page.tags and page.tags.count("b") == 6, "those of the tiles"
    assert NASTY.replace("/", "∕") in text and "<b>1</b>$\\x$" in text
    assert {"Evaluations side by side (in points from the first)", "label → answer"} <= set(page.words)
    for part in (
        "What is taken for what",
        "Calibration",
        "By light",
        "By aspect",
        "Under corruption",
        "Worst mistakes",
    ):
        assert sum(part in one for one in page.words) == 2, part
    pictures = [v for k, v in page.attributes if k == "src"]
    assert pictures and all(str(p).startswith("data:image/jpeg;base64,") for p in pictures)
    assert main(["report", str(root / "run")]) == 0
    assert "Worst mistakes" not in (root / "run" / "report.html").read_text()


def test_what_eval_did_not_write_is_refused_by_name(root: Path, tmp_path: Path) -> None:
    good = json.loads((root / "one.json").read_text())
    for name, wrong in (
        ("list", [1]),
        ("none", {"scores": []}),
        ("pairs", {"scores": [{"tokens": 3}]}),
        ("cut", {**good, "details": [{}]}),
        ("odd", {**good, "groups": [[{"column": "x"}]] * 2}),
        ("text", {**good, "corruptions": "none"}),
    ):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(wrong))
        with pytest.raises(ModelError, match=f"{name}.json"):
            report.write(root / "run", evaluated=[path])


@pytest.mark.parametrize("classes", [1, 2, 3, 40, MOST_CLASSES])
def test_a_confusion_matrix_shows_every_image_once(classes: int) -> None:
    rng = np.random.default_rng(classes)
    counts = rng.poisson(0.4, (classes, classes)) + 20 * np.eye(classes, dtype=int)
    counts[:, -1] = 0  # a class that is never answered
    names = [f"class {n}" for n in range(classes)]
    drawn = re.findall(r"<title>class (\d+) → class (\d+): ([\d,]+) of", confusion_svg(names, counts.tolist()))
    found = np.zeros_like(counts)
    for own, said, n in drawn:
        found[int(own), int(said)] = int(n)
    assert np.array_equal(found, counts)
    pairs = pairs_of(names, counts.tolist())
    labels, answers = (at.repeat(counts.flatten()) for at in np.divmod(np.arange(classes**2), classes))
    assert confused_pairs(names, labels, answers) == pairs
    assert sum(pair[2] for pair in pairs) == counts.sum() - np.trace(counts)


def test_classes_that_are_taken_for_each_other_stand_together() -> None:
    counts = 90 * np.eye(20, dtype=int)
    for a, b in ((0, 17), (3, 11), (5, 19)):
        counts[a, b] = counts[b, a] = 30
    names = [f"c{n:02d}" for n in range(20)]
    order = re.findall(r'text-anchor="end"[^>]*>(c\d\d)<', confusion_svg(names, counts.tolist()))
    assert sorted(order) == names
    for a, b in (("c00", "c17"), ("c03", "c11"), ("c05", "c19")):
        assert abs(order.index(a) - order.index(b)) == 1


def test_no_pictures_of_images_that_cannot_be_read(tmp_path: Path) -> None:
    write_index(tmp_path)
    given = table(str(tmp_path / "shapes.arrow"), tmp_path / "run", steps=1, checkpoint_every=0)
    train(RunConfig.from_dict(given))
    for n, path in enumerate(sorted((tmp_path / "images").rglob("*.png"))):
        if n % 2:
            Image.new("RGB", (9, 9)).save(path)  # of another size than indexed
    words = ["eval", "run", "shapes.arrow", "--details", "--device", "cpu", "--json", "s.json"]
    assert main([str(tmp_path / w) if n in (1, 2, 7) else w for n, w in enumerate(words)]) == 0
    (closer,) = json.loads((tmp_path / "s.json").read_text())["details"]
    assert all(w["picture"] for w in closer["mistakes"]) and len(closer["mistakes"]) <= 24
