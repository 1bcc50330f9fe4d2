"""What people write boxes in: each form says the same of the same images."""

from __future__ import annotations

import io
import json
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from navit_loader import build_index, open_index
from navit_loader.batch import CROWD, DIFFICULT, TRUNCATED
from navit_loader.errors import IndexFileError
from navit_loader.index.sources.columns import Columns
from navit_loader.index.sources.targets import column

sys.path.insert(0, str(Path(__file__).parent))
from test_targets import pictures

SAID = {
    "000.png": [((1, 2, 11, 9), "cat", 0), ((3, 3, 8, 14), "dog", DIFFICULT | TRUNCATED)],
    "001.png": [],
    "002.png": [((-2, 0, 5, 6), "cat", TRUNCATED)],
}
"""Corners, class and flags of each box of each image."""


def said(index: Any) -> dict[str, list[Any]]:
    """The same of an index."""
    found = {}
    for row in range(index.num_rows):
        own = index.boxes(row)
        boxes = [
            (tuple(round(float(v), 3) for v in corners), index.classes[label], int(flags))
            for corners, label, flags in zip(own["boxes"], own["labels"], own["flags"], strict=True)
        ]
        found[index.uri(row).replace("#", "/").rpartition("/")[2]] = boxes
    return found


def plain(flags: bool = True) -> dict[str, list[Any]]:
    return {name: [(c, k, f if flags else 0) for c, k, f in boxes] for name, boxes in SAID.items()}


def test_voc(tmp_path: Path) -> None:
    sizes = pictures(tmp_path / "JPEGImages", 3)
    (tmp_path / "Annotations").mkdir()
    for name, boxes in SAID.items():
        width, height = sizes[name]
        objects = "".join(
            f"<object><name>{label}</name><difficult>{int(flags & DIFFICULT > 0)}</difficult>"
            f"<truncated>{int(flags & TRUNCATED > 0)}</truncated><bndbox><xmin>{x0 + 1}</xmin><ymin>{y0 + 1}</ymin>"
            f"<xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
            for (x0, y0, x1, y1), label, flags in boxes
        )
        size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
        (tmp_path / "Annotations" / f"{name[:-4]}.xml").write_text(f"<annotation>{size}{objects}</annotation>")
    build_index(tmp_path / "JPEGImages", tmp_path / "x.arrow", boxes=tmp_path / "Annotations")
    index = open_index(tmp_path / "x.arrow")
    assert index.classes == ["cat", "dog"] and said(index) == plain() and index.category_ids == [0, 1]
    assert [index.boxes(0)["ids"].tolist(), index.boxes(2)["ids"].tolist()] == [[1, 2], [3]]
    (tmp_path / "Annotations" / "000.xml").write_text("<annotation><object><name>x</name></object></annotation>")
    with pytest.raises(IndexFileError, match=r"000\.xml' is no annotation as Pascal VOC writes them"):
        build_index(tmp_path / "JPEGImages", tmp_path / "x.arrow", boxes=tmp_path / "Annotations")


@pytest.mark.parametrize("names", ["classes.txt", "data.yaml", "list.yaml", ""])
def test_yolo(tmp_path: Path, names: str) -> None:
    sizes = pictures(tmp_path / "images" / "train", 3)
    folder = tmp_path / "labels" / "train"
    folder.mkdir(parents=True)
    for name, boxes in SAID.items():
        w, h = sizes[name]
        lines = []
        for (x0, y0, x1, y1), label, flags in boxes:
            number = ["cat", "dog"].index(label)
            if flags:  # as a polygon
                shares = [x0 / w, y0 / h, x1 / w, y0 / h, x1 / w, y1 / h, x0 / w, y1 / h]
            else:
                shares = [(x0 + x1) / 2 / w, (y0 + y1) / 2 / h, (x1 - x0) / w, (y1 - y0) / h]
            lines.append(" ".join(map(str, [number, *shares])))
        (folder / f"{name[:-4]}.txt").write_text("\n".join(lines))
    if names == "classes.txt":
        (tmp_path / "labels" / names).write_text("cat\ndog\n")
    elif names == "data.yaml":
        (tmp_path / names).write_text("train: x\nnames:\n  0: cat\n  1: 'dog'\nnc: 2\n")
    elif names:
        (tmp_path / "data.yaml").write_text("names: ['cat', \"dog\"]\n")
    build_index(tmp_path / "images" / "train", tmp_path / "x.arrow", boxes=folder)
    index = open_index(tmp_path / "x.arrow")
    assert index.classes == (["cat", "dog"] if names else ["0", "1"])
    index.classes = ["cat", "dog"]
    assert said(index) == plain(flags=False)
    (folder / "000.txt").write_text("0 0.5 0.5 0.1\n")
    with pytest.raises(IndexFileError, match=r"000\.txt' line 1: it is no class number and four shares"):
        build_index(tmp_path / "images" / "train", tmp_path / "x.arrow", boxes=folder)


def forms(boxes: list[Any]) -> dict[str, Any]:
    """The forms of a column, of one image."""
    corners = [list(c) for c, _, _ in boxes]
    labels = [label for _, label, _ in boxes]
    coco = [[c[0], c[1], c[2] - c[0], c[3] - c[1]] for c in corners]
    truncated = [bool(flags & TRUNCATED) for _, _, flags in boxes]
    difficult = [bool(flags & DIFFICULT) for _, _, flags in boxes]
    return {
        "lists": [[*c, label] for c, label in zip(corners, labels, strict=True)],
        "objects": [
            {"box": c, "label": label, "truncated": t, "difficult": d}
            for c, label, t, d in zip(corners, labels, truncated, difficult, strict=True)
        ],
        "columns": {"bbox": coco, "category": labels, "truncated": truncated, "difficult": difficult},
    }


@pytest.mark.parametrize("form", ["lists", "objects", "columns"])
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_column(tmp_path: Path, form: str, kind: str) -> None:
    if (form, kind) == ("lists", "parquet"):
        pytest.skip("lists of numbers and texts are no column")
    pictures(tmp_path / "images", 3)
    rows = [{"file": f"images/{name}", "objects": forms(boxes)[form]} for name, boxes in SAID.items()]
    table = tmp_path / f"table.{kind}"
    if kind == "jsonl":
        table.write_text("\n".join(map(json.dumps, rows)))
    else:
        pq.write_table(pa.Table.from_pylist(rows), table)
    build_index(table, tmp_path / "x.arrow", boxes="column:objects", image_column="file")
    assert said(open_index(tmp_path / "x.arrow")) == plain(flags=form != "lists")
    with pytest.raises(IndexFileError, match=r"column:boxes: .* has no such column; its columns: file, objects"):
        build_index(table, tmp_path / "x.arrow", boxes="column:boxes", image_column="file")


def test_a_column_beside_images_in_parquet(tmp_path: Path) -> None:
    pictures(tmp_path / "images", 3)
    rows = [
        {"image": {"bytes": (tmp_path / "images" / name).read_bytes()}, "objects": forms(boxes)["columns"]}
        for name, boxes in SAID.items()
    ]
    for part in "01":
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{part}.parquet")
    build_index([tmp_path / "{0..1}.parquet"], tmp_path / "x.arrow", boxes="column:objects")
    index = open_index(tmp_path / "x.arrow")
    assert [index.boxes(row)["labels"].tolist() for row in range(6)] == [[0, 1], [], [0]] * 2


def test_images_in_a_tar_go_by_their_names(tmp_path: Path) -> None:
    sizes = pictures(tmp_path / "images", 3)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(tmp_path / "images", "data")
    images = [
        {"id": n, "file_name": f"data/{name}", "width": w, "height": h}
        for n, (name, (w, h)) in enumerate(sizes.items())
    ]
    annotations = [
        {"image_id": n, "category_id": ["cat", "dog"].index(label), "bbox": [c[0], c[1], c[2] - c[0], c[3] - c[1]]}
        for n, boxes in enumerate(SAID.values())
        for c, label, _ in boxes
    ]
    categories = [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}]
    table = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "said.json").write_text(json.dumps(table))
    build_index(tmp_path / "a.tar", tmp_path / "x.arrow", boxes=tmp_path / "said.json")
    assert said(open_index(tmp_path / "x.arrow")) == plain(flags=False)


def test_labels_of_images_stay_where_the_classes_are_theirs(tmp_path: Path) -> None:
    """Of a COCO JSON that is source and boxes in one; a folder's own classes are not taken, which is said."""
    sizes = pictures(tmp_path / "things", 3)
    images = [{"id": n, "file_name": name, "width": w, "height": h} for n, (name, (w, h)) in enumerate(sizes.items())]
    boxes = [{"image_id": 0, "category_id": c, "bbox": [0, 0, 5, 5], "iscrowd": c == 9} for c in (9, 2)]
    categories = [{"id": 9, "name": "ant"}, {"id": 2, "name": "bee"}]
    path = tmp_path / "things" / "said.json"
    path.write_text(json.dumps({"images": images, "annotations": boxes, "categories": categories}))
    build_index(path, tmp_path / "x.arrow", boxes=path)
    index = open_index(tmp_path / "x.arrow")
    assert index.classes == ["bee", "ant"] and index.labels()[0].tolist() == [0, 1]
    assert index.boxes(0)["flags"].tolist() == [CROWD, 0] and index.boxes(0)["labels"].tolist() == [1, 0]
    (tmp_path / "folder" / "red").mkdir(parents=True)
    for name in sizes:
        (tmp_path / "folder" / "red" / name).write_bytes((tmp_path / "things" / name).read_bytes())
    notes = build_index(tmp_path / "folder", tmp_path / "y.arrow", boxes=path).notes
    assert any("labels of whole images are not taken" in note for note in notes)
    assert (open_index(tmp_path / "y.arrow").labels() == -1).all()
    with pytest.raises(IndexFileError, match="class 'bee' of the boxes is not in the class table given"):
        build_index(tmp_path / "things", tmp_path / "z.arrow", boxes=path, classes=["ant"])
    build_index(path, tmp_path / "z.arrow", boxes=path, classes=["none", "ant", "bee"])
    index = open_index(tmp_path / "z.arrow")
    assert index.boxes(0)["labels"].tolist() == [1, 2] and index.category_ids == [-1, 9, 2]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"boxes": "nowhere"}, "--boxes: no such file or folder"),
        ({"masks": "nowhere"}, "--masks: no such file or folder"),
        ({"boxes": "."}, "holds neither .xml"),
        ({"boxes": "column:x"}, "no source is a table"),
        ({"masks": "panoptic:x"}, "give the JSON and the folder"),
        ({"boxes": "x", "masks": "panoptic:x,y"}, "boxes come from panoptic"),
    ],
)
def test_what_is_named_wrongly_is_said(tmp_path: Path, monkeypatch: Any, options: Any, words: str) -> None:
    pictures(tmp_path / "images", 1)
    monkeypatch.chdir(tmp_path / "images")
    with pytest.raises(IndexFileError, match=words):
        build_index(tmp_path / "images", tmp_path / "x.arrow", **options)


def test_a_refresh_and_the_command(tmp_path: Path) -> None:
    from navit_loader.cli import main

    pictures(tmp_path / "images", 3)
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "000.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    command = ["index", str(tmp_path / "images"), "-o", str(tmp_path / "x.arrow"), "--boxes", str(tmp_path / "labels")]
    assert main(command) == 0
    before = (tmp_path / "x.arrow").read_bytes()
    assert main([*command, "--refresh"]) == 0
    assert (tmp_path / "x.arrow").read_bytes() == before
    (tmp_path / "labels" / "001.txt").write_text("0 0.5 0.5 0.5 0.5\n0 0.2 0.2 0.1 0.1\n")
    assert main([*command, "--refresh"]) == 0
    assert open_index(tmp_path / "x.arrow").box_counts().tolist() == [1, 2, 0]


def test_alpha_and_colours_are_no_classes(tmp_path: Path) -> None:
    """A mask in colours fails its image where it is rendered, and says why."""
    from navit_loader import LoaderConfig, PackedLoader

    pictures(tmp_path / "images", 1)
    with Image.open(tmp_path / "images" / "000.png") as image:
        size = image.size
    (tmp_path / "masks").mkdir()
    for mode, words in (("RGB", "is in colours"), ("RGBA", "its samples are no numbers")):
        out = io.BytesIO()
        Image.fromarray(np.zeros((size[1], size[0], len(mode)), np.uint8), mode).save(out, "PNG")
        (tmp_path / "masks" / "000.png").write_bytes(out.getvalue())
        build_index(tmp_path / "images", tmp_path / "x.arrow", masks=tmp_path / "masks")
        table = {"plan": {"targets": {"masks": 1}}, "render": {"failure_limit": 1.0, "threads": 1}}
        with PackedLoader(tmp_path / "x.arrow", LoaderConfig.from_dict(table), rank=0, world_size=1) as loader:
            assert [(batch.masks == -1).all() for batch in loader] == [True]
            assert words in loader.failures()[0]["detail"]


@pytest.mark.parametrize(
    ("boxes", "words"),
    [
        ([{"box": [0, 0, 9, 9], "id": {"id": "x"}}], "id {'id': 'x'} is no whole number"),
        ([{"box": [0, 0, 9, 9], "id": "x"}], "id 'x' is no whole number"),
        ([{"box": [0, 0, 9, 9], "area": {}}], "TypeError"),
        ([[0, 0, 10**400, 9]], "too large"),
        ("[" * 100_000 + "]" * 100_000, "nested too deeply"),
        ([[0, 0, 9, 9, None]], "label None is neither"),
        ([[0, 0, 9, 9, float("nan")]], "label nan is neither"),
        ([[0, 0, 9, 9, 1.5]], "label 1.5 is neither"),
        ([[0, 0, 9, 9, [1]]], r"label \[1\] is neither"),
        ({"bbox": [[0, 0, 9, 9]], "category": [""]}, "label '' is neither"),
        ([[0, 0, 9, 9, 3_000_000_000]], "class 3000000000 is too high to have no name"),
    ],
)
def test_a_value_that_is_no_list_of_boxes_is_named(tmp_path: Path, boxes: Any, words: str) -> None:
    pictures(tmp_path, 1)
    (tmp_path / "table.jsonl").write_text(json.dumps({"path": "000.png", "objects": boxes}))
    with pytest.raises(IndexFileError, match=rf"table\.jsonl' line 1: .*{words}"):
        build_index(tmp_path / "table.jsonl", tmp_path / "x.arrow", boxes="column:objects")


def test_urls_in_a_table_stay_as_they_are(tmp_path: Path) -> None:
    rows = [{"path": path, "objects": [[0, 0, 9, 9]]} for path in ("s3://bucket/a.jpg", "sub/../b.jpg")]
    (tmp_path / "table.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = column.read("objects", [str(tmp_path / "table.jsonl")], None, Columns())
    assert list(found.images) == ["s3://bucket/a.jpg", str(tmp_path / "b.jpg")]


def test_class_numbers_run_as_high_as_those_of_images(tmp_path: Path) -> None:
    """The table of 40,000 classes costs no time to speak of, and beyond a million one needs names."""
    pictures(tmp_path / "images", 1)
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "000.txt").write_text("40000 0.5 0.5 0.5 0.5\n")
    started = time.process_time()
    build_index(tmp_path / "images", tmp_path / "x.arrow", boxes=tmp_path / "labels")
    assert time.process_time() - started < 8  # a list that is searched takes half a minute
    assert len(open_index(tmp_path / "x.arrow").classes) == 40_001
    (tmp_path / "labels" / "000.txt").write_text("3000000000 0.5 0.5 0.5 0.5\n")
    with pytest.raises(IndexFileError, match=r"000\.txt' line 1: class 3000000000 is too high to have no name"):
        build_index(tmp_path / "images", tmp_path / "x.arrow", boxes=tmp_path / "labels")
