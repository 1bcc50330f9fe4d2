"""Columns of tables by name: every kind of table takes them, and a wrong name lists those there are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from navit_loader import build_index, open_index
from navit_loader.errors import IndexFileError

from .source_kit import encode, write_tree

PNG = encode("PNG", 9, 7)
NAMES = ["0.png", "1.png", "2.png"]
LABELS = ["cat", "dog", "cat"]
CALLED = {"image_column": "file", "label_column": "species", "caption_column": "said"}


def write(kind: str, folder: Path) -> Path:
    """Three images, two of them of one class, with nothing called as usual; another column could be taken for a label."""
    write_tree(folder, dict.fromkeys(NAMES, PNG))
    table: dict[str, list[Any]] = {"file": NAMES, "species": LABELS, "said": ["a", "b", "c"], "place": ["x", "y", "z"]}
    path = folder / f"m.{'parquet' if kind == 'embedded' else kind}"
    if kind == "csv":
        rows = zip(*table.values(), strict=True)
        path.write_text(",".join(table) + "\n" + "".join(",".join(row) + "\n" for row in rows))
    elif kind == "jsonl":
        path.write_text("".join(json.dumps({k: v[i] for k, v in table.items()}) + "\n" for i in range(3)))
    else:
        if kind == "embedded":
            table |= {"file": [PNG] * 3, "mask": [b"no image"] * 3}
        pq.write_table(pa.table(table), path)
    return path


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "embedded"])
def test_a_table_whose_columns_are_called_otherwise_gives_the_index_of_one_with_the_usual_names(
    kind: str, tmp_path: Path
) -> None:
    path = write(kind, tmp_path)
    build_index(path, tmp_path / "x.arrow", **CALLED)
    index = open_index(tmp_path / "x.arrow")
    assert [index.classes[v] for v in index.table()["label"].to_pylist()] == LABELS
    assert index.table()["caption"].to_pylist() == ["a", "b", "c"]

    for option, argument in (("--image-column", "image_column"), ("--label-column", "label_column")):
        with pytest.raises(IndexFileError, match=f"{option} = 'speceis'.*file.*species.*said.*place"):
            build_index(path, tmp_path / "y.arrow", **{**CALLED, argument: "speceis"})
    assert not (tmp_path / "y.arrow").exists()


def test_a_refresh_with_another_column_of_labels_takes_none_of_the_old(tmp_path: Path) -> None:
    path, out = write("embedded", tmp_path), tmp_path / "x.arrow"
    build_index(path, out, image_column="file", label_column="species")
    done = build_index(path, out, image_column="file", label_column="place", refresh=True)
    assert open_index(out).classes == ["x", "y", "z"] and done.reused == 0
    assert build_index(path, out, image_column="file", label_column="place", refresh=True).reused == 3


def test_columns_of_a_folder_are_refused(tmp_path: Path) -> None:
    write_tree(tmp_path, {"a/0.png": PNG})
    with pytest.raises(IndexFileError, match="--label-column = 'species', but no source is a table"):
        build_index(tmp_path, tmp_path / "x.arrow", label_column="species")


def test_the_columns_of_a_table_with_semicolons_are_shown_apart(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("Datei;Art;Kamera\na.png;x;y\n")
    said = "its columns: Datei, Art, Kamera; .*--image-column and that with the labels by --label-column"
    with pytest.raises(IndexFileError, match=said):
        build_index(tmp_path / "m.csv", tmp_path / "x.arrow")


def test_decimal_commas_are_numbers_where_all_are_written_so(tmp_path: Path) -> None:
    files = [f"{name}.png" for name in "abcd"]
    write_tree(tmp_path, dict.fromkeys(files, PNG))

    def targets(mark: str, *numbers: str) -> list[float]:
        rows = [mark.join(("path", "kg")), *(mark.join(pair) for pair in zip(files, numbers, strict=True))]
        (tmp_path / "m.csv").write_text("\n".join(rows))
        done = build_index(tmp_path / "m.csv", tmp_path / "x.arrow", target_column="kg")
        assert len([note for note in done.notes if "decimal commas" in note]) == any("," in each for each in numbers)
        return sorted(map(float, done.classes))

    assert targets(";", "0,5", "-3", "", "1,25e2") == [-3.0, 0.5, 125.0]
    assert targets(";", "0.5", "2", "1e2", "7") == [0.5, 2.0, 7.0, 100.0]
    for mark, numbers in (
        (";", ("0,5", "0.25", "1", "1")),
        ("\t", ("0,5", "1", "1", "1")),
        (";", ("1.234,5", "1", "1", "1")),
    ):
        with pytest.raises(IndexFileError, match=r"line 2: target .* its comma is read as"):
            targets(mark, *numbers)
