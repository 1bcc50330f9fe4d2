"""The index: what headers say, in which order, and that it is the same however it was made."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from navit_loader import build_index, open_index
from navit_loader.errors import IndexFileError
from navit_loader.index import Index, reader, write
from navit_loader.index.sources import folder

from .source_kit import FORMATS, encode, sample_files, write_tree


def rows(index: Index) -> list[dict[str, Any]]:
    return index.table().to_pylist()


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tree(tmp_path_factory.mktemp("tree") / "images", sample_files())


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(FORMATS), st.integers(1, 90), st.integers(1, 90), st.integers(1, 8)),
        min_size=1,
        max_size=6,
    )
)
def test_sizes_are_those_of_the_oriented_image(images: list[tuple[str, int, int, int]]) -> None:
    with tempfile.TemporaryDirectory() as place:
        files = {f"a/{i}.{kind.lower()}": encode(kind, *rest) for i, (kind, *rest) in enumerate(images)}
        build_index(write_tree(Path(place, "images"), files), Path(place, "x.arrow"))
        for row in rows(open_index(Path(place, "x.arrow"))):
            with Image.open(io.BytesIO(files[row["name"]])) as image:
                expected = ImageOps.exif_transpose(image).size
            assert (row["width"], row["height"]) == expected, row
            assert row["length"] == len(files[row["name"]])


def test_rows_are_sorted_by_key_and_labelled_by_their_top_folder(tmp_path: Path) -> None:
    png = encode("PNG", 5, 4)
    names = ["b/z.png", "b/deep/er/x.png", "a/1.PNG", "é/2.png", "Z/3.png", "top.png", "a/skip.txt", ".hidden/4.png"]
    done = build_index(write_tree(tmp_path / "images", dict.fromkeys(names, png)), tmp_path / "x.arrow")
    index = open_index(tmp_path / "x.arrow")
    found = [row["name"] for row in rows(index)]
    assert found == sorted(found, key=str.encode) and len(found) == 6 == done.rows
    assert index.classes == ["Z", "a", "b", "é"] == done.classes
    assert {r["name"]: r["label"] for r in rows(index)} == {
        "Z/3.png": 0, "a/1.PNG": 1, "b/deep/er/x.png": 2, "b/z.png": 2, "top.png": -1, "é/2.png": 3,
    }  # fmt: skip
    assert (done.unlabelled, done.ignored) == (1, 2)


@pytest.mark.parametrize("threads", [1, 3])
def test_the_same_files_give_the_same_bytes(tree: Path, tmp_path: Path, threads: int) -> None:
    build_index(tree, tmp_path / "x.arrow", threads=threads)
    first = (tmp_path / "x.arrow").read_bytes()
    build_index(tree, tmp_path / "x.arrow", threads=2)
    assert (tmp_path / "x.arrow").read_bytes() == first


def test_batches_are_equal_and_fingerprints_ignore_them(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_index(tree, tmp_path / "one.arrow")
    monkeypatch.setattr(write, "BATCH_ROWS", 7)
    monkeypatch.setattr(folder, "CHUNK", 11)
    build_index(tree, tmp_path / "many.arrow")
    one, many = open_index(tmp_path / "one.arrow"), open_index(tmp_path / "many.arrow")
    assert [len(chunk) for chunk in many.columns()["width"]] == [7] * 8 + [4]
    assert rows(one) == rows(many)
    assert [one.uri(i) for i in range(60)] == [many.uri(i) for i in range(60)]
    assert (one.plan_fingerprint, one.render_fingerprint) == (many.plan_fingerprint, many.render_fingerprint)


def test_fingerprints_follow_what_each_room_reads(tmp_path: Path) -> None:
    def prints(name: str, files: dict[str, bytes]) -> tuple[str, str]:
        build_index(write_tree(tmp_path / name, files), tmp_path / f"{name}.arrow")
        index = open_index(tmp_path / f"{name}.arrow")
        return index.plan_fingerprint, index.render_fingerprint

    base = {"a/1.png": encode("PNG", 5, 4), "b/2.png": encode("PNG", 6, 6)}
    plan, render = prints("base", base)
    assert prints("elsewhere", base) == (plan, render), "where the data lie is no part of it"
    size = prints("size", base | {"b/2.png": encode("PNG", 6, 7)})
    assert size[0] != plan
    other = prints("bytes", base | {"b/2.png": encode("BMP", 6, 6)})
    assert other[0] == plan and other[1] != render
    label = prints("label", {"a/1.png": base["a/1.png"], "c/2.png": base["b/2.png"]})
    assert label[0] != plan


def test_columns_are_views_of_the_mapped_file(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "SMALL", 0)
    build_index(tree, tmp_path / "x.arrow")
    index = open_index(tmp_path / "x.arrow")
    before = pa.total_allocated_bytes()
    columns = index.columns()
    assert pa.total_allocated_bytes() == before
    arrays = [a for name in ("width", "height", "shard", "offset", "length", "orientation") for a in columns[name]]
    arrays += [a for pair in columns["name"] for a in pair] + columns["labels"]
    with open("/proc/self/maps") as maps:
        spans = [line.split()[0].split("-") for line in maps if "x.arrow" in line]
    inside = [(int(a, 16), int(b, 16)) for a, b in spans]
    for array in arrays:
        at = array.__array_interface__["data"][0]
        assert any(low <= at < high for low, high in inside)
        assert not array.flags.writeable
    kinds = {"width": "i4", "height": "i4", "shard": "i4", "offset": "i8", "length": "i8", "orientation": "u1"}
    assert all(columns[name][0].dtype == np.dtype(kind) for name, kind in kinds.items())
    offsets, text = columns["name"][0]
    assert bytes(text[offsets[3] : offsets[4]]).decode() == rows(index)[3]["name"]


def test_a_mapped_index_survives_its_replacement(tree: Path, tmp_path: Path) -> None:
    build_index(tree, tmp_path / "x.arrow")
    old = open_index(tmp_path / "x.arrow")
    smaller = write_tree(tmp_path / "few", {"a/1.png": encode("PNG", 5, 4)})
    build_index(smaller, tmp_path / "x.arrow")
    assert old.num_rows == 60 == len(rows(old))
    assert open_index(tmp_path / "x.arrow").num_rows == 1
    assert sorted(os.listdir(tmp_path)) == ["few", "x.arrow"]


KILLED = """
import os, signal, sys
from navit_loader import build_index
from navit_loader.index.sources import folder
folder.CHUNK = 8
left = int(sys.argv[3])
def progress(at):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
build_index(sys.argv[1].split(":"), sys.argv[2], progress=progress)
"""


@pytest.mark.parametrize("torn", [0, 1, 100])
def test_a_killed_build_restarts_to_the_same_index(tree: Path, tmp_path: Path, torn: int) -> None:
    shutil.copytree(tree, tmp_path / "images")
    (tmp_path / "images/c1/broken.jpg").write_bytes(b"text")
    build_index(tmp_path / "images", tmp_path / "whole.arrow")
    output = tmp_path / "x.arrow"
    for after in (2, 5):
        killed = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "images", output, str(after)], check=False)
        assert killed.returncode == -signal.SIGKILL
        assert not output.exists()
    if torn:
        newest = tmp_path / "x.arrow.building/1.arrows"
        newest.write_bytes(newest.read_bytes()[:-torn])
    done = build_index(tmp_path / "images", output)
    assert done.reused >= 16 and done.broken == 1
    assert output.read_bytes() == (tmp_path / "whole.arrow").read_bytes()
    assert not (tmp_path / "x.arrow.building").exists()


def test_two_builds_of_one_index_do_not_meet(tree: Path, tmp_path: Path) -> None:
    def progress(_: Any) -> None:
        with pytest.raises(IndexFileError, match="another process is building"):
            build_index(tree, tmp_path / "x.arrow")

    build_index(tree, tmp_path / "x.arrow", progress=progress)
    assert open_index(tmp_path / "x.arrow").num_rows == 60


def test_a_refresh_reads_only_what_changed(tree: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    shutil.copytree(tree, images)
    build_index(images, tmp_path / "x.arrow")
    (images / "c0/0000.jpg").unlink()
    (images / "c1/0001.png").write_bytes(encode("PNG", 77, 78))
    (images / "c2/new.png").write_bytes(encode("PNG", 9, 8))
    (images / "d").mkdir()
    (images / "d/other.png").write_bytes(encode("PNG", 9, 8))
    refreshed = build_index(images, tmp_path / "x.arrow", refresh=True)
    fresh = build_index(images, tmp_path / "fresh.arrow")
    assert (fresh.rows, fresh.reused) == (61, 0)
    assert refreshed.reused == 58, "another class table voids nothing that is known of files"
    assert (tmp_path / "x.arrow").read_bytes() == (tmp_path / "fresh.arrow").read_bytes()
    again = build_index(images, tmp_path / "x.arrow", refresh=True)
    assert again.reused == 61


def test_another_index_gives_the_class_table(tmp_path: Path) -> None:
    png = encode("PNG", 5, 4)
    build_index(write_tree(tmp_path / "train", {"a/1.png": png, "b/2.png": png, "c/3.png": png}), tmp_path / "t.arrow")
    build_index(
        write_tree(tmp_path / "val", {"c/1.png": png, "a/2.png": png}),
        tmp_path / "v.arrow",
        classes=tmp_path / "t.arrow",
    )
    index = open_index(tmp_path / "v.arrow")
    assert index.classes == ["a", "b", "c"]
    assert [row["label"] for row in rows(index)] == [0, 2]
    odd = write_tree(tmp_path / "odd", {"z/1.png": png})
    with pytest.raises(IndexFileError, match="odd/z' is no class"):
        build_index(odd, tmp_path / "o.arrow", classes=tmp_path / "t.arrow")


def test_moved_data_are_found(tmp_path: Path) -> None:
    png = encode("PNG", 5, 4)
    write_tree(tmp_path / "home/images", {"a/1.png": png})
    build_index(tmp_path / "home/images", tmp_path / "home/x.arrow")
    shutil.move(tmp_path / "home", tmp_path / "new")
    assert open_index(tmp_path / "new/x.arrow").uri(0) == str(tmp_path / "new/images/a/1.png")
    shutil.move(tmp_path / "new/images", tmp_path / "far")
    assert open_index(tmp_path / "new/x.arrow", root=tmp_path / "far").uri(0) == str(tmp_path / "far/a/1.png")


def test_other_tools_read_it(tree: Path, tmp_path: Path) -> None:
    import duckdb
    import pandas as pd
    import polars as pl

    build_index(tree, tmp_path / "x.arrow")
    index = open_index(tmp_path / "x.arrow")
    expected = sum(row["width"] for row in rows(index))
    frame = pd.read_feather(tmp_path / "x.arrow")
    assert int(frame["width"].sum()) == expected and set(frame["format"]) == {"jpeg", "png"}
    polar = pl.read_ipc(tmp_path / "x.arrow")
    assert polar["width"].sum() == expected and polar["shard"].unique().to_list() == ["./"]
    table = index.table()
    found = duckdb.from_arrow(table).aggregate("format, sum(width)::int as w").fetchall()
    assert sum(w for _, w in found) == expected and len(found) == 2
    assert table.num_rows == 60
