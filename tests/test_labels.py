"""Labels as people write them: one rule for every format, and what cannot be told is refused where it stands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from navit_loader import LoaderConfig, PackedLoader, build_index, open_index
from navit_loader.batch import NO_CLASS, OK
from navit_loader.errors import IndexFileError
from navit_loader.index import IndexSummary
from navit_loader.shards import pack_shards

from .source_kit import encode, write_tar, write_tree
from .test_sources import cli

PNG = encode("PNG", 9, 7)


def write(kind: str, folder: Path, labels: list[Any]) -> Path:
    """The same labels in a source of each kind; texts in CSV as they are, lists where the format has them."""
    names = [f"{i:02d}.png" for i in range(len(labels))]
    write_tree(folder, dict.fromkeys(names, PNG))
    path = folder / f"m.{kind.replace('embedded', 'parquet')}"
    if kind == "csv":
        path.write_text(
            "path,label\n" + "".join(f"{n},{'' if v is None else v}\n" for n, v in zip(names, labels, strict=True))
        )
    elif kind == "jsonl":
        path.write_text("".join(json.dumps({"path": n, "label": v}) + "\n" for n, v in zip(names, labels, strict=True)))
    elif kind == "parquet":
        pq.write_table(pa.table({"path": names, "label": labels}), path)
    elif kind == "embedded":
        pq.write_table(pa.table({"image": [PNG] * len(names), "label": labels}), path)
    else:
        members = {}
        for name, label in zip(names, labels, strict=True):
            members |= {name: PNG, f"{name[:-4]}.json": json.dumps({"label": label}).encode()}
        write_tar(path, members)
    return path


def told(source: Path, **options: Any) -> tuple[IndexSummary, list[Any]]:
    """The summary, and each image's labels: class names, "none" where it is known to be of no class."""
    done = build_index(source, source.with_suffix(".arrow"), **options)
    index = open_index(source.with_suffix(".arrow"))
    rows = np.concatenate(index.columns()["labels"]).reshape(-1, index.label_width).tolist()
    return done, [
        "none" if row[0] == NO_CLASS else [index.classes[v] for v in row if v >= 0] if index.label_width > 1 else
        index.classes[row[0]] if row[0] >= 0 else None
        for row in rows
    ]  # fmt: skip


PLAN = {"sequence_length": 64, "max_tokens": 16, "patch_sizes": [4]}
TEXTS = ["csv", "jsonl", "parquet", "embedded"]


@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize(
    ("labels", "classes", "found"),
    [
        (["0", "2", "1"], ["0", "1", "2"], ["0", "2", "1"]),
        ([f"{i}.0" for i in range(12)], [str(i) for i in range(12)], [str(i) for i in range(12)]),
        (["1.0", "0.0", None], ["0", "1"], ["1", "0", None]),
        (["007", "010", "7"], ["007", "010", "7"], ["007", "010", "7"]),
        (["1_0", "٣", "0"], ["0", "1_0", "٣"], ["1_0", "٣", "0"]),
        ([" cat", "cat ", "dog"], ["cat", "dog"], ["cat", "cat", "dog"]),
        ([" ", "cat", ""], ["cat"], [None, "cat", None]),
        (["-1", "cat", "dog"], ["cat", "dog"], [None, "cat", "dog"]),
        (["A", "0", "9"], ["0", "9", "A"], ["A", "0", "9"]),
    ],
)
def test_texts_mean_the_same_in_every_format(
    tmp_path: Path, kind: str, labels: list[Any], classes: list[str], found: list[Any]
) -> None:
    done, labels = told(write(kind, tmp_path, labels))
    assert (done.classes, labels) == (classes, found)
    assert done.counts == [labels.count(name) for name in classes]


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "embedded", "tar"])
def test_lists_and_the_empty_list_mean_the_same_in_every_format(tmp_path: Path, kind: str) -> None:
    done, labels = told(write(kind, tmp_path, [[2, 0], [], None, [1], [3, 3]]))
    assert labels == [["0", "2"], "none", [], ["1"], ["3"]]
    assert (done.unlabelled, done.negatives, done.counts) == (1, 1, [1, 1, 1, 1])


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "embedded", "tar"])
@pytest.mark.parametrize(
    "labels",
    [[[1, 0, 0], [0, 0, 1]], [[0, 1, 1, 0]], [[1, 0], [0, 1], [1, 0]], [[1.0, 0.0, 0.0]], [[True, False, False]]],
)
def test_what_may_be_a_one_hot_vector_is_refused(tmp_path: Path, kind: str, labels: list[Any]) -> None:
    with pytest.raises(IndexFileError, match="may be a one-hot vector"):
        build_index(write(kind, tmp_path, labels), tmp_path / "x.arrow")


def test_lists_of_zeros_and_ones_that_are_class_numbers_pass(tmp_path: Path) -> None:
    assert told(write("jsonl", tmp_path, [[0, 1], [0], [1, 0], [1]]))[1] == [["0", "1"], ["0"], ["0", "1"], ["1"]]


@pytest.mark.parametrize(
    ("kind", "labels", "words"),
    [
        ("jsonl", ["cat", "bird", 0, 1], r"line 1: label 'cat' is a name, but .* line 3 has the number 0"),
        ("jsonl", [[0, 2], [1], "cat"], r"line 3: label 'cat' is a name"),
        ("jsonl", [["cat", 0]], r"line 1: label 'cat' is a name"),
        ("csv", ["cat", "do\0g"], r"line 3: .*control character, such as NUL"),
        ("jsonl", [0, 2.5], r"line 2: label 2\.5 is not a number"),
        ("jsonl", [0, float("nan")], r"line 2: label nan is not a number"),
        ("jsonl", [0, {"a": 1}], r"line 2: label .* is not a number"),
    ],
)
def test_what_cannot_be_told_is_refused_where_it_stands(
    tmp_path: Path, kind: str, labels: list[Any], words: str
) -> None:
    with pytest.raises(IndexFileError, match=words):
        build_index(write(kind, tmp_path, labels), tmp_path / "x.arrow")


def test_numbers_of_one_manifest_and_names_of_another_need_a_table(tmp_path: Path) -> None:
    for name, labels in (("a", "cat,dog"), ("b", "1,0")):
        write_tree(tmp_path, {f"{name}{i}.png": PNG for i in range(2)})
        rows = "".join(f"{name}{i}.png,{label}\n" for i, label in enumerate(labels.split(",")))
        (tmp_path / f"{name}.csv").write_text("path,label\n" + rows)
    with pytest.raises(
        IndexFileError, match=r"a\.csv' line 2: label 'cat' is a name, but .*b\.csv' line 2 has the number '1'"
    ):
        build_index([tmp_path / "a.csv", tmp_path / "b.csv"], tmp_path / "x.arrow")
    (tmp_path / "names.txt").write_text("dog\ncat\n")
    done = build_index([tmp_path / "a.csv", tmp_path / "b.csv"], tmp_path / "x.arrow", classes=tmp_path / "names.txt")
    assert open_index(done.path).table()["label"].to_pylist() == [1, 0, 1, 0] and done.classes == ["dog", "cat"]


def test_a_class_table_may_be_a_text(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "x.tar", {"1.png": PNG, "1.cls": b"cat", "2.png": PNG, "2.cls": b"007"})
    with pytest.raises(
        IndexFileError, match=r"label 'cat' is not a number, and there is no class table; give one with --cl"
    ):
        build_index(tar, tmp_path / "x.arrow")
    (tmp_path / "names.txt").write_text("007\ncat\n\n")
    build_index(tar, tmp_path / "x.arrow", classes=tmp_path / "names.txt")
    assert open_index(tmp_path / "x.arrow").table()["label"].to_pylist() == [1, 0]
    for content, words in ((b"a\n\nb", "line 2: a blank line"), (b"a\na", "stands twice"), (b"\0\xff", "is no index")):
        (tmp_path / "names.txt").write_bytes(content)
        with pytest.raises(IndexFileError, match=words):
            build_index(tar, tmp_path / "y.arrow", classes=tmp_path / "names.txt")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"path,label,label\n0.png,cat,1\n", "column 'label' twice"),
        ("path,label\n0.png,dog\n1.png,Käse\n".encode("latin-1"), "not UTF-8 in line 3; save it as UTF-8"),
        ("path,label\n0.png,cat\n".encode("utf-16"), "but UTF-16; save it as UTF-8"),
        (b'path,label\n0.png,cat\n1.png,"dog\n', "line 3: .*is a quote left open"),
    ],
)
def test_manifests_as_programs_save_them(tmp_path: Path, content: bytes, words: str) -> None:
    write_tree(tmp_path, {f"{i}.png": PNG for i in range(2)})
    (tmp_path / "m.csv").write_bytes(content)
    with pytest.raises(IndexFileError, match=words):
        build_index(tmp_path / "m.csv", tmp_path / "x.arrow")


def test_a_long_field_and_spaces_in_the_header_are_read(tmp_path: Path) -> None:
    write_tree(tmp_path, {"0.png": PNG})
    (tmp_path / "m.csv").write_text("path, label, caption\n0.png,cat," + "x" * 200_000 + "\n")
    done = build_index(tmp_path / "m.csv", tmp_path / "x.arrow")
    assert done.classes == ["cat"] and open_index(done.path).table()["caption_tokens"].to_pylist() == [200_001]


def test_index_prints_the_class_table_and_what_may_surprise(tmp_path: Path) -> None:
    write_tree(tmp_path, {f"{i}.png": PNG for i in range(3)})
    for content, words in (
        ("path,label\n0.png,dog\n1.png,cat\n2.png,dog\n", ["classes: 0 = cat, 1 = dog"]),
        ("path,label\n0.png,1\n1.png,2\n2.png,2\n", ["the numbers 0 to 2", "of class 0; class numbers are counted from 0"]),
        ("path,class\n0.png,dog\n1.png,cat\n", ["2 images have no label", "its columns: path, class. Name the one"]),
        ("path,label\n0.png,dog\n1.png,0\n2.png,1\n", ["line 3: label '0' stands among names"]),
        ('path,label\n0.png,"dog,cat"\n1.png,cat\n', ["0 = cat, 1 = dog,cat"]),
    ):  # fmt: skip
        (tmp_path / "m.csv").write_text(content)
        done = cli("index", tmp_path / "m.csv", "-o", tmp_path / "x.arrow")
        assert done.returncode == 0 and all(word in done.stdout for word in words), done.stdout
    pq.write_table(pa.table({"image": [PNG], "fine_label": [3]}), tmp_path / "x.parquet")
    done = cli("index", tmp_path / "x.parquet", "-o", tmp_path / "x.arrow")
    assert "has no column 'label'; its columns: image, fine_label" in done.stdout


def test_no_class_travels_in_batches_refreshes_subsets_and_shards(tmp_path: Path) -> None:
    """An image that is known to be of no class stays so wherever its row goes; an unlabelled one stays unlabelled."""
    build_index(write("tar", tmp_path, [[], 1, None]), tmp_path / "x.arrow")
    whole = (tmp_path / "x.arrow").read_bytes()
    assert build_index(tmp_path / "m.tar", tmp_path / "x.arrow", refresh=True).reused == 3
    assert (tmp_path / "x.arrow").read_bytes() == whole
    pack_shards(open_index(tmp_path / "x.arrow"), tmp_path / "small")
    build_index(tmp_path / "small/shard-000000.tar", tmp_path / "y.arrow")
    for name in ("x", "y"):
        config = LoaderConfig.from_dict({"data": {"batch_size": 1}, "plan": PLAN})
        with PackedLoader(tmp_path / f"{name}.arrow", config.for_evaluation(), rank=0, world_size=1) as loader:
            found = np.concatenate([batch.labels[batch.status == OK] for batch in loader])
        assert found.tolist() == [[NO_CLASS], [1], [-1]]
    shown = cli("info", tmp_path / "x.arrow")
    assert "unlabelled images: 1, known to be of no class: 1" in shown.stdout


def test_labels_that_were_right_give_the_same_index(tmp_path: Path) -> None:
    """The fingerprints of indexes written before there was one rule."""
    done = build_index(write("jsonl", tmp_path, [0, 2, [1, 2], None]), tmp_path / "x.arrow")
    assert done.rows == 4
    assert open_index(tmp_path / "x.arrow").plan_fingerprint == FINGERPRINT


FINGERPRINT = "fec8826a63f379b8823d400d34fc3c93588b711308698c27d54c58c5891a0186"
