"""Containers that people have give the batches that a folder of the same images gives; damaged ones are one line."""

from __future__ import annotations

import json
import os
import shutil
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from navit_loader import LoaderConfig, PackedLoader, _packer, build_index, open_index
from navit_loader.batch import NO_CLASS
from navit_loader.cli import main
from navit_loader.errors import IndexFileError

from .container_kit import (
    class_of,
    shard_of,
    write_coco,
    write_litdata,
    write_mds,
    write_metadata,
    write_saved,
    write_zip,
)
from .source_kit import encode, sample_files, write_tree

FILES = dict(sorted(sample_files().items()))
CONFIG = LoaderConfig.from_dict(
    {
        "data": {"batch_size": 2},
        "plan": {"sequence_length": 64, "max_tokens": 36, "max_images": 12, "patch_sizes": [4], "seed": 3},
        "render": {"threads": 2, "failure_limit": 1.0},
    }
)
Write = Callable[[Path, dict[str, bytes]], Path]
SPANS: dict[str, Write] = {
    "zip": lambda at, files: write_zip(at / "x.zip", files),
    "wrapped zip": lambda at, files: write_zip(at / "x.zip", files, above="my photos/"),
    "zip64": lambda at, files: write_zip(at / "x.zip", files, big=True),
    "saved": lambda at, files: write_saved(at / "x", files),
    "mds": lambda at, files: write_mds(at / "x", files),
    "litdata": lambda at, files: write_litdata(at / "x", files),
    "litdata arrow": lambda at, files: write_litdata(at / "x", files, ("bytes", "str"), arrow=True),
}
"""Containers whose images are spans of their files."""
FILED: dict[str, Write] = {
    "metadata.csv": lambda at, files: write_metadata(at / "x", files, "csv"),
    "metadata.jsonl": lambda at, files: write_metadata(at / "x", files, "jsonl"),
    "metadata.parquet": lambda at, files: write_metadata(at / "x", files, "parquet"),
    "coco": lambda at, files: write_coco(at / "x", files),
}
"""Tables that name files."""
EQUAL = ["length", "width", "height", "orientation", "format", "label"]


def batches(index: Path) -> list[dict[str, bytes]]:
    with PackedLoader(index, CONFIG, rank=0, world_size=1) as loader:
        return [{name: array.tobytes() for name, array in batch.arrays().items()} for batch in loader]


def masked(index: Path) -> tuple[int, set[str]]:
    """How many images are masked, and the reasons."""
    with PackedLoader(index, CONFIG, rank=0, world_size=1) as loader:
        failed = sum(int((batch.status == 2).sum()) for batch in loader)
        return failed, {failure["reason"] for failure in loader.failures()}


def refused(source: Path, match: str, **options: str) -> None:
    with pytest.raises(IndexFileError, match=match) as caught:
        build_index(source, source.parent / "refused.arrow", **options)
    assert "\n" not in str(caught.value)


def notes(source: Path, **options: str) -> str:
    return "\n".join(build_index(source, source.parent / "noted.arrow", **options).notes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("containers")
    build_index(write_tree(place / "images", FILES), place / "folder.arrow")
    return place / "folder.arrow"


@pytest.mark.parametrize("kind", [*SPANS, *FILED])
def test_each_container_gives_the_batches_of_the_folder(folder: Path, tmp_path: Path, kind: str) -> None:
    source = (SPANS | FILED)[kind](tmp_path, FILES)
    done = build_index(source, tmp_path / "x.arrow")
    index, expected = open_index(tmp_path / "x.arrow"), open_index(folder)
    assert (done.rows, done.broken, done.classes) == (len(FILES), 0, expected.classes)
    assert index.table().select(EQUAL).to_pylist() == expected.table().select(EQUAL).to_pylist()
    for row, data in enumerate(FILES.values()):
        uri, _, member = index.uri(row).partition("#")
        assert bool(member) == (kind in SPANS)
        offset = index.table()["offset"][row].as_py()
        assert Path(uri).read_bytes()[offset : offset + len(data)] == data
    assert batches(tmp_path / "x.arrow") == batches(folder)
    whole = (tmp_path / "x.arrow").read_bytes()
    assert build_index(source, tmp_path / "x.arrow", refresh=True).reused == len(FILES)
    assert (tmp_path / "x.arrow").read_bytes() == whole


@given(
    st.lists(
        st.tuples(st.sampled_from(["a", "b", "c"]), st.integers(4, 40), st.integers(4, 40)), min_size=1, max_size=9
    )
)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_images_are_the_same_in_any_container(tmp_path: Path, images: list[tuple[str, int, int]]) -> None:
    files = {f"{top}/{i}.png": encode("PNG", w, h, seed=i) for i, (top, w, h) in enumerate(images)}
    files = dict(sorted(files.items()))
    found = []
    for kind, write in {"folder": lambda at, files: write_tree(at / "x", files), **SPANS}.items():
        place = tmp_path / kind
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        build_index(write(place, files), place / "x.arrow")
        found.append((open_index(place / "x.arrow").table().select(EQUAL).to_pylist(), batches(place / "x.arrow")))
    # Of one class alone a wrapping folder cannot be told from a class.
    several = len({class_of(name) for name in files}) > 1
    assert all(one == found[0] for i, one in enumerate(found) if several or list(SPANS)[i - 1] != "wrapped zip")


@pytest.mark.parametrize("kind", SPANS)
def test_a_container_that_is_written_anew_is_noticed(tmp_path: Path, kind: str) -> None:
    small = {name: encode("BMP", 12, 10, seed=i) for i, name in enumerate(f"c/{n}.bmp" for n in range(8))}
    source = SPANS[kind](tmp_path, small)
    build_index(source, tmp_path / "x.arrow")
    others = dict(zip(small, [encode("BMP", 12, 10, seed=100 + i) for i in range(8)], strict=True))
    for files in (others, {**others, "c/9.bmp": encode("BMP", 30, 30)}):
        SPANS[kind](tmp_path, files)
        assert masked(tmp_path / "x.arrow") == (8, {"changed"})
    build_index(source, tmp_path / "x.arrow", refresh=True)
    assert masked(tmp_path / "x.arrow") == (0, set())


@given(st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_container_is_one_line(tmp_path: Path, data: st.DataObject) -> None:
    files = {f"{'ab'[i % 2]}/{i}.png": encode("PNG", 5, 4, seed=i) for i in range(4)}
    kind = data.draw(st.sampled_from([*SPANS, "coco", "metadata.jsonl"]))
    place = tmp_path / "place"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    source = (SPANS | FILED)[kind](place, files)
    inside = sorted(path for path in place.rglob("*") if path.is_file() and path.suffix != ".png")
    victim = data.draw(st.sampled_from(inside))
    whole = bytearray(victim.read_bytes())
    if data.draw(st.booleans()):
        del whole[data.draw(st.integers(0, len(whole) - 1)) :]
    else:
        for _ in range(data.draw(st.integers(1, 4))):
            whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    victim.write_bytes(whole)
    said = ""
    try:
        build_index(source, tmp_path / "x.arrow")
    except IndexFileError as e:
        said = str(e)
    assert "\n" not in said and (str(place) in said) == bool(said)
    if not said:
        batches(tmp_path / "x.arrow")


def test_a_place_beyond_the_end_is_a_reason_and_no_error(tmp_path: Path) -> None:
    png = encode("PNG", 9, 7)
    (tmp_path / "x").write_bytes(b"before" + png)
    offset, length = np.array([6, 7, 2**63, 0], np.uint64), np.array([len(png), len(png), 2**63, 0], np.uint64)
    found = _packer.probe_members(str(tmp_path / "x").encode(), offset, length, 2)
    assert found["width"].tolist() == [9, 0, 0, 0] and found["container_length"] == 6 + len(png)
    assert ["beyond the end" in reason for _, reason in found["errors"]] == [True, True, False]
    with pytest.raises(IndexFileError, match="no such file"):
        _packer.probe_members(b"/nowhere", offset, length, 2)


def test_a_zip_that_cannot_be_read_in_place_says_what_to_do(tmp_path: Path) -> None:
    png = encode("PNG", 9, 7)
    flat = {"a/1.png": png, "b/2.bmp": encode("BMP", 30, 30)}
    refused(
        write_zip(tmp_path / "deflated.zip", flat, compression=zipfile.ZIP_DEFLATED),
        "2 of 2 images are compressed.*zip -q -0",
    )
    locked = bytearray(write_zip(tmp_path / "locked.zip", flat).read_bytes())
    for mark, flag in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        at = locked.find(mark)
        while at >= 0:
            locked[at + flag] |= 1
            at = locked.find(mark, at + 1)
    (tmp_path / "locked.zip").write_bytes(locked)
    refused(tmp_path / "locked.zip", "is encrypted, such as 'a/1.png'; unpack it")
    whole = write_zip(tmp_path / "whole.zip", flat).read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[: len(whole) // 2])
    refused(tmp_path / "cut.zip", "no zip, or a damaged or shortened one.*zip -FF")
    (tmp_path / "whole.z01").write_bytes(b"")
    refused(tmp_path / "whole.zip", "last part of several; join them: zip -s 0")
    write_zip(tmp_path / "nested.zip", {"x/inner.zip": whole})
    refused(tmp_path / "nested.zip", "no images but archives, such as 'x/inner.zip'")
    # A directory that leads elsewhere.
    torn = bytearray(write_zip(tmp_path / "torn.zip", flat).read_bytes())
    torn[:4] = b"none"
    (tmp_path / "torn.zip").write_bytes(torn)
    done = build_index(tmp_path / "torn.zip", tmp_path / "x.arrow")
    assert (done.rows, done.broken) == (1, 1)
    assert "no member at byte 0" in open_index(done.path).quarantine()[0]["reason"]


def test_what_else_is_in_a_zip_is_counted(tmp_path: Path) -> None:
    png = encode("PNG", 9, 7)
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as out, warnings.catch_warnings(action="ignore"):
        out.mkdir("cat")
        for name in ("cat/1.png", "cat/notes.txt", "__MACOSX/cat/._1.png", "./dog/2.png", "top.png", "top.png"):
            out.writestr(name, png)
    done = build_index(tmp_path / "x.zip", tmp_path / "x.arrow")
    assert {reason: count for reason, (count, _) in done.left_out.items()} == {
        "of kind '.txt'": 1,
        "hidden": 1,
        "that stand again behind themselves in the zip, where the last counts": 1,
    }
    assert [name for reason, (_, name) in done.left_out.items() if "again" in reason] == [f"{tmp_path}/x.zip#top.png"]
    index = open_index(done.path)
    assert index.classes == ["cat", "dog"] and index.table()["label"].to_pylist() == [1, 0, -1]
    # Classes are those of a table given, never the numbers that their names may be.
    done = build_index(
        write_zip(tmp_path / "y.zip", {"7/1.png": png, "a/2.png": png}), tmp_path / "y.arrow", classes=["a"] * 1
    )
    assert (done.rows, done.broken) == (1, 1)


def test_saved_data_sets(tmp_path: Path) -> None:
    files = {f"c{i % 2}/{i}.png": encode("PNG", 9, 7 + i) for i in range(4)}
    refused(write_saved(tmp_path / "packed", files, "zstd"), "its batches are compressed")
    (tmp_path / "dict").mkdir()
    (tmp_path / "dict/dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    write_saved(tmp_path / "dict/train", files)
    refused(tmp_path / "dict", "holds the splits train, test; give one of them: .*dict/train or ")
    (tmp_path / "dict/dataset_dict.json").write_text('{"splits": ["train"]}')
    assert build_index(tmp_path / "dict", tmp_path / "x.arrow").classes == ["c0", "c1"]
    # One file of it, such as the cache holds, is a source; an index is none.
    assert build_index(tmp_path / "dict/train/data-00000-of-00002.arrow", tmp_path / "y.arrow").rows == 2
    refused(tmp_path / "y.arrow", "is an index already")
    state = json.loads((tmp_path / "dict/train/state.json").read_text())
    (tmp_path / "dict/train/state.json").write_text(json.dumps({**state, "_indices_data_files": [{"filename": "i"}]}))
    refused(tmp_path / "dict/train", r"another order than its files do; save it again: .*flatten_indices")
    (tmp_path / "dict/train/state.json").write_text('{"_data_files": []}')
    refused(tmp_path / "dict/train", "names no data files")
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    for name, table, words in (
        ("paths", pa.table({"image": pa.array([{"path": "1.png"}], image)}), "hold paths and no bytes"),
        ("none", pa.table({"a": [1]}), "no column of images; its columns: a"),
        ("view", pa.table({"image": pa.array([b"x"], pa.binary_view())}), "of type binary_view; write them as binary"),
    ):
        with pa.ipc.new_stream(tmp_path / f"{name}.arrow", table.schema) as out:
            out.write_table(table)
        refused(tmp_path / f"{name}.arrow", words)
    rows = [{"bytes": encode("PNG", 5, 5)}, None, {"path": "x"}]
    table = pa.table({"image": pa.array(rows, image), "kind": ["cat", "dog", "dog"], "text": ["a", None, "c"]})
    with pa.ipc.new_stream(tmp_path / "some.arrow", table.schema) as out:
        out.write_table(table)
    done = build_index(tmp_path / "some.arrow", tmp_path / "x.arrow", label_column="kind")
    assert (done.rows, done.broken, done.classes) == (1, 2, ["cat", "dog"])
    assert open_index(done.path).table()["caption"].to_pylist() == ["a"]


def test_mds_and_litdata_that_cannot_be_read_in_place(tmp_path: Path) -> None:
    files = {f"c{i % 2}/{i}.png": encode("PNG", 9, 7 + i) for i in range(4)}
    refused(
        write_mds(tmp_path / "pixels", files, "pil"),
        "no column of encoded images .image: pil, .*write it anew by streaming.MDSWriter",
    )
    packed = write_mds(
        tmp_path / "packed", files, said={"compression": "zstd:3", "zip_data": {"basename": "shard.00000.mds.zstd"}}
    )
    assert build_index(packed, tmp_path / "x.arrow").rows == 4  # what was unpacked lies beside it
    (packed / "shard.00000.mds").unlink()
    refused(packed, r"is compressed, and cannot be read in place; unpack all beside it: zstd -d .*\*\.zstd")
    short = write_mds(tmp_path / "short", files)
    (short / "shard.00001.mds").write_bytes((short / "shard.00001.mds").read_bytes()[:-3])
    refused(short, "bytes where index.json says .*fetch it again")
    (short / "shard.00001.mds").unlink()
    refused(short, "which index.json names, cannot be read: No such file")
    write_mds(tmp_path / "splits/train", files)
    refused(tmp_path / "splits", "give the data set in it: .*splits/train")
    refused(
        write_litdata(tmp_path / "pixels2", files, ("pil", "str")), "encoded images .image: pil.*by litdata.optimize"
    )
    refused(
        write_litdata(tmp_path / "packed2", files, compression="zstd"), "has compression = 'zstd', .*litdata.optimize"
    )
    refused(write_litdata(tmp_path / "tokens", files, item_loader="TokensLoader"), "written for TokensLoader")
    refused(
        write_litdata(tmp_path / "pickled", files, ("jpeg", "pickle")), "'label' is of kind 'pickle', which is not read"
    )
    two = write_litdata(tmp_path / "two", files, ("bytes", "bytes"))
    assert build_index(two, tmp_path / "y.arrow").classes == ["c0", "c1"]  # one of them has a usual name
    refused(two, "holds no|no usable image|is no shard", image_column="label")
    refused(two, "--label-column = 'kind'.*no such column; its columns: image, label", label_column="kind")


def test_labels_of_samples_are_of_any_kind(tmp_path: Path) -> None:
    png = encode("PNG", 5, 5)
    for kind, values, expected in (
        ("int", [struct.pack("<q", 1), struct.pack("<q", -1)], [1, -1]),
        ("uint8", [b"\1", b"\0"], [1, 0]),
        ("json", [b"[0, 2]", b"[]"], [[0, 2], [NO_CLASS, -1]]),
        ("str", ["é".encode(), b"a"], [1, 0]),
        ("str_int", [b"1", b"0"], [1, 0]),
    ):
        fixed = {"int": 8, "uint8": 1}.get(kind)
        whole = shard_of([(value, png) for value in values], (fixed is None, True))
        (tmp_path / "x").mkdir(exist_ok=True)
        (tmp_path / "x/shard.00000.mds").write_bytes(whole)
        shard = {"format": "mds", "compression": None, "zip_data": None, "column_names": ["label", "picture"]}
        shard |= {"column_encodings": [kind, "png"], "column_sizes": [fixed, None]}
        shard["raw_data"] = {"basename": "shard.00000.mds", "bytes": len(whole)}
        (tmp_path / "x/index.json").write_text(json.dumps({"version": 2, "shards": [shard]}))
        build_index(tmp_path / "x", tmp_path / "x.arrow")
        assert open_index(tmp_path / "x.arrow").table()["label"].to_pylist() == expected, kind


def test_metadata_count_as_hugging_face_has_them(tmp_path: Path) -> None:
    png = encode("PNG", 9, 7)
    root = write_tree(
        tmp_path / "x", {f"train/{i}.png": png for i in range(3)} | {"test/0.png": png, "more/1.png": png}
    )
    (root / "train/metadata.jsonl").write_text(
        '{"file_name": "0.png", "kind": "cat", "text": "a cat"}\n{"file_name": "1.png", "kind": null}\n'
    )
    (root / "test/metadata.csv").write_text("file_name;kind;text\n0.png;dog;a dog\n")
    done = build_index(root, tmp_path / "x.arrow", label_column="kind")
    assert (done.rows, done.classes, done.unlabelled) == (3, ["cat", "dog"], 1)
    assert done.left_out == {"images that no metadata name": (2, f"{root}/more/1.png")}
    assert open_index(done.path).table()["caption"].to_pylist() == ["a dog", "a cat", None]
    assert "labels are those of its metadata, which give none" in notes(root)
    # Other columns: what they are called is asked for, and the folder is one of classes meanwhile.
    other = write_tree(
        tmp_path / "y", {"cat/0.png": png, "dog/1.png": png, "metadata.csv": b"file,class\ncat/0.png,3\n"}
    )
    assert "has no column 'file_name', and is not read" in notes(other)
    assert build_index(other, tmp_path / "y.arrow").classes == ["cat", "dog"]
    assert build_index(other, tmp_path / "y.arrow", image_column="file", label_column="class").counts == [0, 0, 0, 1]
    (other / "metadata.csv").write_text("file_name\ncat/0.png\ncat/0.png\n")
    refused(other, "line 3: .*cat/0.png' stands twice")
    (other / "metadata.csv").write_text("file_name\n../elsewhere.png\n")
    refused(other, "lies outside")


def test_coco_categories_captions_and_images_of_none(tmp_path: Path) -> None:
    files = {f"{name}/{name}{i}.png": encode("PNG", 9, 7 + i) for name in ("cat", "dog") for i in range(2)}
    path = write_coco(tmp_path / "x", files)
    said = json.loads(path.read_text())
    boxes = said["annotations"]
    boxes[0]["category_id"], boxes[1]["image_id"] = 20, 100
    path.write_text(json.dumps({**said, "annotations": [*boxes, {**boxes[0], "category_id": 10}]}))
    done = build_index(path, tmp_path / "x.arrow")
    assert open_index(done.path).table()["label"].to_pylist() == [[0, 1], [NO_CLASS, -1], [1, -1], [1, -1]]
    assert "boxes are taken by --boxes, masks by --masks coco:" in "\n".join(done.notes) and "val2017" in "\n".join(
        done.notes
    )
    # Without annotations nothing is known of any image; the classes stay those of the file.
    path.write_text(json.dumps({key: value for key, value in said.items() if key != "annotations"}))
    done = build_index(path, tmp_path / "x.arrow")
    assert (done.unlabelled, done.classes) == (4, ["cat", "dog"])
    captions = [{"id": i, "image_id": 100 + i // 2, "caption": f"caption {i}"} for i in range(6)]
    path.write_text(json.dumps({"images": said["images"], "annotations": captions}))
    done = build_index(path, tmp_path / "x.arrow")
    assert open_index(done.path).table()["caption"].to_pylist() == ["caption 0", "caption 2", "caption 4", None]
    assert "of several captions of an image the first is taken; 3 are left out" in "\n".join(done.notes)
    # As Roboflow lays it out: beside its images, found by the folder.
    shutil.copytree(tmp_path / "x/val2017", tmp_path / "robo")
    (tmp_path / "robo/_annotations.coco.json").write_text(json.dumps(said))
    assert build_index(tmp_path / "robo", tmp_path / "y.arrow").classes == ["cat", "dog"]
    for content, words in (
        ({**said, "annotations": [{**boxes[0], "category_id": 9}]}, "category 9, which is not listed"),
        ({**said, "annotations": [{**boxes[0], "image_id": 9}]}, "an annotation is of image 9, which it does not list"),
        (
            {**said, "images": [{"id": 1, "file_name": "gone.png"}]},
            r"such as 'gone.png', are in none of .*; move it beside",
        ),
        ({**said, "images": []}, "lists no image"),
        ({**said, "images": said["images"] * 2}, "two images have the id"),
        ({"images": [1]}, "no COCO file as they are written"),
        ([{"path": "x.png"}], r"no list 'images'; of a list of objects make a manifest: jq -c"),
        ({"a": 1}, "no list 'images'"),
    ):
        path.write_text(json.dumps(content))
        refused(path, words)
    path.write_text("{")
    refused(path, "cannot be read as JSON")
    path.write_text(json.dumps(said))
    with pytest.raises(IndexFileError, match=r"--label-column = 'x'.*no source is a table"):
        build_index(path, tmp_path / "z.arrow", label_column="x")


@pytest.mark.parametrize("mark", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("header", [True, False])
def test_csv_as_spreadsheets_save_it(tmp_path: Path, mark: str, encoding: str, header: bool) -> None:
    write_tree(tmp_path, {"ä.png": encode("PNG", 9, 7), "1.png": encode("PNG", 5, 7)})
    lines = [["path", "label"]] * header + [["ä.png", "Käse, Brot; Wein"], ["1.png", "cat"]]
    text = "\r\n".join(mark.join(f'"{field}"' if set(field) & set(",;") else field for field in line) for line in lines)
    (tmp_path / "m.csv").write_bytes(text.encode(encoding))
    done = build_index(tmp_path / "m.csv", tmp_path / "x.arrow")
    assert (done.rows, done.broken, done.classes) == (2, 0, ["Käse, Brot; Wein", "cat"])
    assert any("has no header line" in note for note in done.notes) == (not header)


def test_csv_without_a_header_is_never_guessed_at(tmp_path: Path) -> None:
    write_tree(tmp_path, {"0.png": encode("PNG", 9, 7), "1.png": encode("PNG", 5, 7)})
    for content, words in (
        ("0.png,cat,a cat\n1.png,dog,a dog\n", "has no header line; write one, such as path,label,caption"),
        ("gone.png,cat\n1.png,dog\n", "no column 'path'; its columns: gone.png, cat; .*or write a header line"),
        ("0.png\n", None),
    ):
        (tmp_path / "m.csv").write_text(content)
        if words:
            refused(tmp_path / "m.csv", words)
        else:
            assert build_index(tmp_path / "m.csv", tmp_path / "x.arrow").unlabelled == 1
    (tmp_path / "m.csv").write_text("0.png,cat\n")
    refused(tmp_path / "m.csv", "--label-column = 'kind': .*its columns: path, label", label_column="kind")
    (tmp_path / "m.csv").write_bytes("path,label\n0.png,cat".encode("utf-16")[:-1])
    refused(tmp_path / "m.csv", "not UTF-8 but UTF-16, and damaged")
    (tmp_path / "m.jsonl").write_text('{"path": "0.png", "label": "ä"}\n', encoding="utf-16")
    assert build_index(tmp_path / "m.jsonl", tmp_path / "x.arrow").classes == ["ä"]


def test_what_no_container_can_do_is_said(tmp_path: Path) -> None:
    (tmp_path / "x.lance").mkdir()
    refused(tmp_path / "x.lance", "Lance data set.*pq.write_table")
    (tmp_path / "x.7z").write_bytes(b"7z")
    refused(tmp_path / "x.7z", "unpack it: 7z x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/index.json").write_text("[1]")
    refused(tmp_path / "folder", "no image in")
    (tmp_path / "folder/index.json").write_text("{")
    refused(tmp_path / "folder", "no image in")
    (tmp_path / "folder/shard.00000.mds").write_bytes(b"")
    refused(tmp_path / "folder", "index.json. cannot be read as JSON")


@pytest.mark.parametrize("kind", [*SPANS, *FILED])
def test_the_commands_take_each(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    source = (SPANS | FILED)[kind](tmp_path, FILES)
    index = str(tmp_path / "x.arrow")
    assert main(["index", str(source), "-o", index]) == 0
    for command in ("info", "lint", "suggest"):
        assert main([command, index]) == 0
    assert "60 images" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["zip", "saved", "mds", "coco"])
def test_each_becomes_a_trained_model_by_one_command(tmp_path: Path, kind: str) -> None:
    from navit_model.cli import main as model

    files = {name: FILES[name] for name in sorted(FILES)[::2]}
    source = (SPANS | FILED)[kind](tmp_path, files)
    small = ("train.steps=2", "train.device=cpu", "model.width=32", "model.depth=1", "model.heads=1")
    assert model(["fit", str(source), "-o", str(tmp_path / "run"), *small]) == 0
    parts = [open_index(tmp_path / f"run/{part}.arrow") for part in ("train", "heldout")]
    assert sum(index.num_rows for index in parts) == len(files) and parts[0].classes == ["c0", "c1", "c2"]


def test_files_of_the_real_libraries(folder: Path, tmp_path: Path) -> None:
    """Skipped where none is installed; the writers in `container_kit` are made after them."""
    made = []
    try:
        import datasets

        features = datasets.Features(
            {"image": datasets.Image(), "label": datasets.ClassLabel(names=["c0", "c1", "c2"])}
        )
        rows = [{"image": {"bytes": data, "path": None}, "label": int(name[1])} for name, data in FILES.items()]
        datasets.Dataset.from_list(rows, features).save_to_disk(tmp_path / "saved", num_shards=3)
        made.append(tmp_path / "saved")
    except ImportError:
        pass
    try:
        from streaming import MDSWriter

        with MDSWriter(out=str(tmp_path / "mds"), columns={"image": "bytes", "label": "str"}, size_limit=9000) as out:
            for name, data in FILES.items():
                out.write({"image": data, "label": class_of(name)})
        made.append(tmp_path / "mds")
    except ImportError:
        pass
    try:
        from litdata.streaming.writer import BinaryWriter
        from litdata.types import Image

        for how in (lambda data: data, lambda data: Image(bytes=data)):
            place = tmp_path / f"lit{len(made)}"
            writer = BinaryWriter(str(place), chunk_size=25)
            for i, (name, data) in enumerate(FILES.items()):
                writer[i] = {"image": how(data), "label": class_of(name)}
            writer.done()
            writer.merge()
            made.append(place)
    except ImportError:
        pass
    if not made:
        pytest.skip("neither datasets nor streaming nor litdata is installed")
    for source in made:
        build_index(source, tmp_path / "x.arrow")
        assert (
            open_index(tmp_path / "x.arrow").table().select(EQUAL).to_pylist()
            == open_index(folder).table().select(EQUAL).to_pylist()
        )
        assert batches(tmp_path / "x.arrow") == batches(folder), source
        os.remove(tmp_path / "x.arrow")


@pytest.mark.parametrize(("kind", "column"), [("mds", "number"), ("saved", "label")])
def test_numbers_to_be_predicted_are_read_where_they_lie(kind: str, column: str, tmp_path: Path) -> None:
    build_index(SPANS[kind](tmp_path, FILES), tmp_path / "x.arrow", target_column=column)
    index = open_index(tmp_path / "x.arrow")
    assert index.targets is not None
    numbers = {name: float(n) for n, name in enumerate(sorted({class_of(name) for name in FILES}))}
    meant = [7.0 if kind == "mds" else numbers[class_of(name)] for name in FILES]
    assert index.targets[index.table()["label"].to_numpy()].tolist() == meant


def test_a_text_is_no_number_to_be_predicted(tmp_path: Path) -> None:
    with pytest.raises(IndexFileError, match=r"target 'c0' is no number"):
        build_index(SPANS["mds"](tmp_path, FILES), tmp_path / "x.arrow", target_column="label", strict=True)


def test_a_coco_file_that_contradicts_itself_is_refused(tmp_path: Path) -> None:
    path = write_coco(tmp_path / "x", FILES)
    whole = json.loads(path.read_text())
    for change, said in (
        ({"images": [*whole["images"], whole["images"][0]]}, "two images have the id 100"),
        (
            {"annotations": [{"id": 1, "image_id": 0, "category_id": 10}]},
            "an annotation is of image 0, which it does not list",
        ),
    ):
        path.write_text(json.dumps(whole | change))
        with pytest.raises(IndexFileError, match=said):
            build_index(path, tmp_path / "x.arrow")


def test_numbers_that_no_machine_holds_are_one_line(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", FILES, big=True)
    with zipfile.ZipFile(path, "a") as out:
        out.filelist[0].file_size = out.filelist[1].header_offset = (1 << 63) + 5
        out._didModify = True  # type: ignore[attr-defined]
    index = build_index(path, tmp_path / "x.arrow")
    assert (index.rows, index.broken) == (len(FILES) - 2, 2)
    about = write_mds(tmp_path / "mds", FILES) / "index.json"
    for size in ("Infinity", 2**70, 1.5):
        about.write_text(about.read_text().replace("[null, null, 8]", f"[null, null, {size}]"))
        with pytest.raises(IndexFileError, match="no index of MDS shards, or a damaged one"):
            build_index(tmp_path / "mds", tmp_path / "x.arrow")
        write_mds(tmp_path / "mds", FILES)


def test_a_data_set_reads_no_file_outside_its_folder(tmp_path: Path) -> None:
    other = write_mds(tmp_path / "other", FILES)
    for name in (str(other / "shard.00000.mds"), "../other/shard.00000.mds"):
        about = write_mds(tmp_path / "mds", FILES) / "index.json"
        about.write_text(about.read_text().replace("shard.00000.mds", name))
        with pytest.raises(IndexFileError, match="which is not in it"):
            build_index(tmp_path / "mds", tmp_path / "x.arrow")


def test_folders_that_only_look_like_data_sets_are_folders(tmp_path: Path) -> None:
    write_tree(tmp_path / "x", FILES)
    (tmp_path / "x/state.json").write_text('{"window": [3, 4]}')
    (tmp_path / "x/index.json").write_text('{"chunks": [], "config": {}}')
    (tmp_path / "x/chunk-0-0.bin").write_bytes(b"")
    assert build_index(tmp_path / "x", tmp_path / "x.arrow").rows == len(FILES)
    for splits in ("null", "[]", '["."]', '["../x"]'):
        (tmp_path / "x/dataset_dict.json").write_text(f'{{"splits": {splits}}}')
        with pytest.raises(IndexFileError, match="names no splits"):
            build_index(tmp_path / "x", tmp_path / "x.arrow")


def test_litdata_of_older_writers_counts_its_items_alone(tmp_path: Path) -> None:
    folder = write_litdata(tmp_path / "x", FILES)
    about = json.loads((folder / "index.json").read_text())
    for chunk in about["chunks"]:
        chunk["chunk_bytes"] -= 4 * (chunk["chunk_size"] + 2)
    (folder / "index.json").write_text(json.dumps(about))
    assert build_index(folder, tmp_path / "x.arrow").rows == len(FILES)


def test_shards_without_a_label_stand_beside_those_with_names(tmp_path: Path) -> None:
    write_tree(tmp_path / "x", FILES)
    names = list(FILES)
    for part, label in (("a", "cat"), ("b", "")):
        rows = names[::2] if part == "a" else names[1::2]
        (tmp_path / f"x/{part}.csv").write_text("path,label\n" + "".join(f"{name},{label}\n" for name in rows))
    build_index([tmp_path / "x/a.csv", tmp_path / "x/b.csv"], tmp_path / "x.arrow")
    assert open_index(tmp_path / "x.arrow").classes == ["cat"]


def test_a_column_whose_name_is_no_text_is_one_line(tmp_path: Path) -> None:
    folder = write_saved(tmp_path / "x", FILES)
    for file in folder.glob("*.arrow"):
        file.write_bytes(file.read_bytes().replace(b"label\0", b"\x80abel\0"))
    refused(folder, "is no Arrow file, or a damaged or shortened one: .*utf-8")
