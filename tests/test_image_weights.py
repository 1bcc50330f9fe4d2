"""Weights of images: read from a column of every kind of table, kept by what is made of an index, and what they do to a loss.

In: small tables and pictures. Out: real indexes, runs and a daemon.
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from navit_loader import PackedLoader, build_index, open_index
from navit_loader.batch import OK
from navit_loader.cli import main as loader
from navit_loader.config import LoaderConfig
from navit_loader.errors import ConfigError, IndexFileError, StateError
from navit_loader.index.subset import write_subset
from navit_model.cli import main as model
from navit_model.losses.classification import classification_loss
from navit_model.losses.distillation import distillation_loss
from navit_model.losses.regression import regression_loss
from navit_model.train import checkpoint
from navit_model.train.log import read_log
from navit_model.train.run import train
from navit_model.train.settings import RunConfig
from navit_model.train.worth import Worth

from .container_kit import write_mds, write_saved
from .packed import packed
from .ranks import work
from .service_kit import Daemon
from .shapes import table, write_index, write_toml
from .source_kit import encode, write_tree
from .test_train_ranks import torchrun

NAMES = ["0.png", "1.png", "2.png", "3.png"]
WEIGHTS = [0.25, 1, 0, 3]
PNG = encode("PNG", 9, 7)


def write(kind: str, folder: Path, weights: list[Any]) -> Path:
    write_tree(folder, dict.fromkeys(NAMES, PNG))
    columns: dict[str, list[Any]] = {"path": NAMES, "label": ["cat", "dog", "cat", "dog"], "trust": weights}
    path = folder / f"m.{'parquet' if kind == 'embedded' else kind}"
    if kind == "csv":
        path.write_text(
            "path,label,trust\n"
            + "".join(",".join(map(str, row)) + "\n" for row in zip(*columns.values(), strict=True))
        )
    elif kind == "jsonl":
        path.write_text("".join(json.dumps({k: v[i] for k, v in columns.items()}) + "\n" for i in range(4)))
    else:
        if kind == "embedded":
            columns["path"] = [PNG] * 4
        pq.write_table(pa.table(columns), path)
    return path


def indexed(source: Path | list[Path], out: Path, **options: Any) -> Any:
    build_index(source, out, **{"weight_column": "trust", **options})
    index = open_index(out)
    index.check()
    return index


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "embedded"])
def test_every_table_gives_the_weights_of_its_column(kind: str, tmp_path: Path) -> None:
    index = indexed(write(kind, tmp_path, WEIGHTS), tmp_path / "x.arrow", **columns_of(kind))
    assert index.weights.dtype == np.float32 and index.weights.tolist() == WEIGHTS
    again = indexed(write(kind, tmp_path, WEIGHTS), tmp_path / "x.arrow", refresh=True, **columns_of(kind))
    assert again.weights.tolist() == WEIGHTS and again.plan_fingerprint == index.plan_fingerprint
    keep = np.array([True, False, True, True])
    write_subset(index, keep, tmp_path / "part.arrow")
    assert open_index(tmp_path / "part.arrow").weights.tolist() == [0.25, 0, 3]
    with pytest.raises(
        IndexFileError, match=r"--weight-column = 'trsut'.*no such column; its columns: path, label, trust"
    ):
        indexed(tmp_path / index_source(kind), tmp_path / "y.arrow", weight_column="trsut", **columns_of(kind))


def columns_of(kind: str) -> dict[str, str]:
    return {"image_column": "path"} if kind == "embedded" else {}


def index_source(kind: str) -> str:
    return f"m.{'parquet' if kind == 'embedded' else kind}"


def test_containers_that_have_columns_give_weights_too(tmp_path: Path) -> None:
    files = {f"{name}/{i}.png": encode("PNG", 9, 7, seed=i) for i in range(3) for name in ("a", "b")}
    saved = indexed(write_saved(tmp_path / "saved", files), tmp_path / "saved.arrow", weight_column="label")
    assert saved.weights.tolist() == [float(saved.classes[i] == "b") for i in saved.table()["label"].to_pylist()]
    mds = indexed(write_mds(tmp_path / "mds", files), tmp_path / "mds.arrow", weight_column="number")
    assert mds.weights.tolist() == [7.0] * 6


@pytest.mark.parametrize("wrong", [-1, math.nan, math.inf, "much", "", None, True, "1_0"])
def test_a_weight_that_is_none_is_one_line(wrong: Any, tmp_path: Path) -> None:
    weights = [1, wrong, 1, 1]
    for kind in ("csv", "jsonl", "parquet"):
        if kind == "parquet" and isinstance(wrong, str | bool):
            continue  # a column has one type
        said = "None" if kind == "csv" and wrong is None else wrong
        path = write(kind, tmp_path / kind, ["1", said, "1", "1"] if isinstance(said, str) else weights)
        with pytest.raises(
            IndexFileError, match=rf"m\.{kind}' line \d: weight .* is not allowed; give a number of 0 or more"
        ):
            indexed(path, tmp_path / "x.arrow")
    if not isinstance(wrong, str | bool):
        # Of images in a table the row is left out, as for a wrong label.
        embedded = indexed(write("embedded", tmp_path / "e", weights), tmp_path / "e.arrow", **columns_of("embedded"))
        assert (embedded.num_rows, embedded.broken) == (3, 1)
        assert "is not allowed; give a number" in embedded.quarantine()[0]["reason"]


def test_a_line_without_a_weight_and_weights_of_nothing_are_refused(tmp_path: Path) -> None:
    path = write("jsonl", tmp_path, WEIGHTS)
    path.write_text(path.read_text().replace(', "trust": 0.25', ""))
    with pytest.raises(IndexFileError, match=r"line 1: no 'trust'; give each image a weight"):
        indexed(path, tmp_path / "x.arrow")
    with pytest.raises(IndexFileError, match="all weights are 0"):
        indexed(write("csv", tmp_path, [0, 0, 0, 0]), tmp_path / "x.arrow")
    assert not (tmp_path / "x.arrow").exists()
    indexed(write("csv", tmp_path, [0, 0, 0, 1]), tmp_path / "x.arrow")


def test_weights_of_one_are_no_weights_and_others_are_in_the_plan_s_name(tmp_path: Path) -> None:
    plain = indexed(write("csv", tmp_path, [1, 1, 1, 1]), tmp_path / "plain.arrow", weight_column="")
    ones = indexed(tmp_path / "m.csv", tmp_path / "ones.arrow")
    assert ones.weights is None and not ones.weighted
    assert ones.table().column_names == plain.table().column_names
    assert (ones.plan_fingerprint, ones.render_fingerprint) == (plain.plan_fingerprint, plain.render_fingerprint)
    seen = {plain.plan_fingerprint}
    for i, weights in enumerate(([2, 1, 1, 1], [1, 2, 1, 1], [1, 3, 1, 1], WEIGHTS)):
        other = indexed(write("csv", tmp_path, weights), tmp_path / f"{i}.arrow")
        seen.add(other.plan_fingerprint)
        assert other.render_fingerprint == plain.render_fingerprint
    assert len(seen) == 5


def test_info_and_index_say_what_images_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write("csv", tmp_path, WEIGHTS)
    assert loader(["index", str(path), "-o", str(tmp_path / "x.arrow"), "--weight-column", "trust"]) == 0
    assert "an image counts from 0 to 3 in a loss, 1.062 in the mean" in capsys.readouterr().out
    assert loader(["info", str(tmp_path / "x.arrow")]) == 0
    assert "weights in a loss: from 0 to 3, 1.062 in the mean" in capsys.readouterr().out


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("kind", ["softmax", "sigmoid", "regression", "distillation"])
def test_whole_weights_count_as_so_many_images(kind: Any, mixed: bool) -> None:
    """The loss of each image, found by a weight of 1 for it alone, times its weight; and the sum of the weights."""
    batch = packed([[(2, 2)] * 3, [(2, 2)] * 4], length=16, longest=4, images=4, failed=[(1, 2)]).to("cpu")
    generator = torch.Generator().manual_seed(0)
    logits, other = (torch.randn(*batch.status.shape, 5, generator=generator) for _ in range(2))
    partner = torch.tensor([[1, 2, 0, 3], [1, 3, 2, 0]])
    mixing = (partner, torch.rand(partner.shape, generator=generator)) if mixed else None

    def loss(weights: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        if kind == "distillation":
            return distillation_loss(logits, other, batch, image_weights=weights)
        if kind == "regression":
            numbers = torch.arange(5.0)
            return regression_loss(logits[..., :1], batch, numbers, mixed=mixing, image_weights=weights)
        return classification_loss(logits, batch, kind=kind, mixed=mixing, image_weights=weights)

    weights = torch.randint(0, 4, batch.status.shape, generator=generator).float()
    total, count = loss(weights)
    parts = torch.zeros(())
    for b, e in np.argwhere(batch.status.numpy() == OK):
        one = torch.zeros_like(weights)
        one[b, e] = 1
        alone, unit = loss(one)
        assert float(unit) == 1
        parts += weights[b, e] * alone
    torch.testing.assert_close(total, parts)
    assert float(count) == float(weights[batch.status == OK].sum())
    plain, number = loss(None)
    same, ones = loss(torch.ones_like(weights))
    torch.testing.assert_close(plain, same)
    assert int(number) == float(ones) == int((batch.status == OK).sum())


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 90 shapes."""
    root = tmp_path_factory.mktemp("shapes")
    write_index(root)
    return root


def weighted(shapes: Path, name: str, weight: Any, label: Any = None) -> str:
    """An index of the shapes with a weight, and perhaps a label, by class."""
    lines = []
    for path in sorted((shapes / "images").rglob("*.png")):
        kind = path.parent.name
        line = {"path": str(path), "label": kind if label is None else label(kind), "trust": weight(kind)}
        lines.append(json.dumps(line) + "\n")
    (shapes / f"{name}.jsonl").write_text("".join(lines))
    build_index(
        shapes / f"{name}.jsonl",
        shapes / f"{name}.arrow",
        weight_column="trust",
        classes=["class0", "class1", "class2"],
    )
    return str(shapes / f"{name}.arrow")


def losses(out: Path) -> dict[int, float]:
    return {e["step"]: e["loss"] for e in read_log(out) if e["kind"] == "train"}


def some(kind: str) -> float:
    return {"class0": 0.5, "class1": 2.0, "class2": 0.0}[kind]


def test_the_loss_is_divided_by_the_sum_of_the_weights(shapes: Path, tmp_path: Path) -> None:
    index = weighted(shapes, "some", some)

    def run(name: str, where: str, batch: int = 2, **changes: Any) -> dict[int, float]:
        train(RunConfig.from_dict(table(where, tmp_path / name, batch, **{"steps": 4, **changes})))
        return losses(tmp_path / name)

    one = run("one", index, 4)
    for step, loss in run("accumulated", index, accumulate=2, steps=2).items():
        assert loss == pytest.approx(one[step], abs=1e-5)
    # What counts is how they stand to one another, even where all are far below 1.
    small = weighted(shapes, "small", lambda kind: some(kind) * 1e-3)
    assert run("small", small, 4) == pytest.approx(one, rel=1e-4)
    # An image of weight 0 is learnt as little as one without a label.
    none = weighted(shapes, "none", lambda kind: some(kind) or 1.0, lambda kind: None if kind == "class2" else kind)
    assert run("none", none, 4) == pytest.approx(one, rel=1e-5)
    assert one != pytest.approx(run("plain", str(shapes / "shapes.arrow"), 4), rel=1e-3)
    # And the count of images is of images.
    seen = [[e["images_seen"] for e in read_log(tmp_path / name) if e["kind"] == "train"] for name in ("one", "plain")]
    assert seen[0] == seen[1]


@pytest.mark.slow
def test_two_ranks_divide_by_the_weights_of_both(shapes: Path, tmp_path: Path) -> None:
    index = weighted(shapes, "ranks", some)
    changes: dict[str, Any] = {"steps": 6, "ema": 0.9, "augment": {"erase": 0.5}, "mix": {"cutmix": 1.0}}
    work(table(index, tmp_path / "one", 4, **changes))
    torchrun(2, [{"table": table(index, tmp_path / "two", 2, **changes)}], tmp_path)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-4)
    assert len(losses(tmp_path / "one")) == 6


def test_fit_takes_the_column_to_both_of_its_parts(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weighted(shapes, "fitted", lambda kind: some(kind) + 0.25)
    out = tmp_path / "run"
    assert (
        model(["fit", str(shapes / "fitted.jsonl"), "-o", str(out), "--weight-column", "trust", "train.steps=2"]) == 0
    )
    said = capsys.readouterr().out
    assert "an image counts from 0.25 to 2.25 in a loss" in said
    assert "images count by their weights in the index: from 0.25 to 2.25" in said
    for part in ("train", "heldout"):
        weights = open_index(out / f"{part}.arrow").weights
        assert weights is not None and set(weights.tolist()) == {0.25, 0.75, 2.25}


def test_balanced_classes_count_the_same_with_their_weights(shapes: Path, tmp_path: Path) -> None:
    index = weighted(shapes, "uneven", lambda kind: {"class0": 1.0, "class1": 4.0, "class2": 0.5}[kind])
    train(RunConfig.from_dict(table(index, tmp_path / "run", steps=1, class_weights="balanced")))
    weights = checkpoint.open_checkpoint(tmp_path / "run").config.train.class_weights
    assert isinstance(weights, dict)
    assert weights["class0"] == pytest.approx(4 * weights["class1"])
    assert weights["class2"] == pytest.approx(8 * weights["class1"])


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_column_without_a_name_is_no_weight(kind: str, tmp_path: Path) -> None:
    """As pandas writes its row numbers."""
    path = write(kind, tmp_path, [1, 1, 1, 1])
    plain = indexed(path, tmp_path / "plain.arrow", weight_column="")
    if kind == "csv":
        first, *others = path.read_text().splitlines()
        path.write_text("".join(f"{n},{line}\n" for n, line in zip(("", *range(4)), (first, *others), strict=True)))
    elif kind == "jsonl":
        lines = [{"": n} | json.loads(line) for n, line in enumerate(path.read_text().splitlines())]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    else:
        table = pq.read_table(path)
        pq.write_table(table.add_column(0, "", pa.array(range(4))), path)
    found = indexed(path, tmp_path / "numbered.arrow", weight_column="")
    assert found.weights is None and found.plan_fingerprint == plain.plan_fingerprint


def test_images_that_all_weigh_nothing_are_refused(shapes: Path, tmp_path: Path) -> None:
    index = weighted(shapes, "zero", lambda kind: float(kind != "class1"))
    given = table(index, tmp_path / "run", steps=1)
    given["plan"]["filter"] = "label == 1"
    with pytest.raises(ConfigError, match="all images that the run would learn weigh 0"):
        train(RunConfig.from_dict(given))


def test_what_cannot_learn_by_weights_says_so(shapes: Path, tmp_path: Path) -> None:
    index = weighted(shapes, "refused", some)
    given = table(index, tmp_path / "run", steps=2)
    given["data"]["refresh"] = True
    with pytest.raises(ConfigError, match=r"data\.refresh = true is not allowed where .*refused\.arrow' has weights"):
        train(RunConfig.from_dict(given))
    del given["data"]["refresh"]
    train(RunConfig.from_dict(given))
    other = weighted(shapes, "refused", lambda kind: 2 * some(kind) + 1)
    given["data"]["index"] = other
    with pytest.raises(StateError, match="plan"):
        train(RunConfig.from_dict(given), resume=True)
    text = {"sequence_length": 64, "max_images": 16, "max_tokens": 32, "patch_sizes": [4], "text_tokens": 64}
    pairs = shapes / "pairs.jsonl"
    lines = [json.loads(line) | {"caption": "a shape"} for line in (shapes / "refused.jsonl").read_text().splitlines()]
    pairs.write_text("".join(json.dumps(line) + "\n" for line in lines))
    build_index(pairs, shapes / "pairs.arrow", weight_column="trust")
    pair = table(str(shapes / "pairs.arrow"), tmp_path / "pairs", steps=1, task="contrastive")
    pair["plan"] = text
    with pytest.raises(ConfigError, match=r"train\.task = 'contrastive' does not learn by; index again without"):
        train(RunConfig.from_dict(pair))


def test_an_index_that_gains_weights_in_the_middle_of_a_run_ends_it(shapes: Path, tmp_path: Path) -> None:
    weighted(shapes, "gains", some)
    build_index(shapes / "gains.jsonl", tmp_path / "gains.arrow", classes=["class0", "class1", "class2"])
    given = table(str(tmp_path / "gains.arrow"), tmp_path / "run", steps=5000)
    given["data"]["refresh"] = True
    log = tmp_path / "run" / "log.jsonl"

    def replaced() -> None:
        for _ in range(600):
            if log.exists() and '"train"' in log.read_text():
                os.replace(shapes / "gains.arrow", tmp_path / "gains.arrow")
                return
            time.sleep(0.1)

    thread = threading.Thread(target=replaced, daemon=True)
    thread.start()
    with pytest.raises(ConfigError, match=r"gains\.arrow' has got weights of images since the run began"):
        train(RunConfig.from_dict(given))
    thread.join()


def test_a_daemon_tells_that_there_are_weights_which_it_does_not_send(shapes: Path, tmp_path: Path) -> None:
    given = table(weighted(shapes, "served", some), tmp_path / "run", steps=2)
    toml = write_toml({key: given[key] for key in ("data", "plan", "render")}, tmp_path / "serve.toml")
    with Daemon(toml) as daemon:
        given["data"] = {"batch_size": 2, "endpoints": [daemon.endpoint]}
        with pytest.raises(
            ConfigError, match=r"weights of images, which batches of daemons do not carry; train in process"
        ):
            train(RunConfig.from_dict(given))
    with PackedLoader(str(shapes / "served.arrow"), LoaderConfig.from_dict({"plan": given["plan"]})) as here:
        assert next(iter(here)).num_images > 0


def test_each_image_has_the_weight_of_its_row_in_its_index(shapes: Path) -> None:
    """In a mixture, of which one index has no weights, with classes that are sources of their own."""
    first, second = weighted(shapes, "first", some), weighted(shapes, "second", lambda kind: 1.0)
    third = weighted(shapes, "third", lambda kind: some(kind) + 3)
    data = {"mixture": [{"index": path} for path in (first, second, third)], "batch_size": 2}
    plan = {**table(first, shapes)["plan"], "class_weights": {"class1": 3.0}}
    config = LoaderConfig.from_dict({"data": data, "plan": plan})
    cpu = torch.device("cpu")
    met = set()
    with PackedLoader(None, config) as mixed:
        worth = Worth.of(mixed, cpu, "classification", True)
        assert worth is not None
        indexes = [open_index(path) for path in (first, second, third)]
        for batch in mixed:
            found = worth(batch.to("cpu"))
            for b, e in np.argwhere(batch.status == OK):
                source, row = int(batch.source_ids[b, e]), int(batch.image_ids[b, e])
                given = indexes[source].weights
                wanted = 1.0 if given is None else float(given[row])
                assert float(found[b, e]) == wanted
                met.add((source, wanted))
    assert met == {(0, 0.5), (0, 2.0), (0, 0.0), (1, 1.0), (2, 3.5), (2, 5.0), (2, 3.0)}
