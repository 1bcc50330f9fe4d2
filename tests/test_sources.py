"""Every source gives the same batches for the same images, and its labels and captions as people write them."""

from __future__ import annotations

import csv
import itertools
import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from navit_loader import LoaderConfig, PackedLoader, build_index, open_index
from navit_loader.errors import ConfigError, IndexFileError
from navit_loader.index.sources import expand_braces
from navit_loader.index.subset import split_rows, write_subset

from .source_kit import encode, sample_files, write_tar, write_tree

FILES = sample_files()
LABELS = {name: int(name[1]) for name in FILES}
CONFIG = LoaderConfig.from_dict(
    {
        "data": {"batch_size": 2},
        "plan": {"sequence_length": 64, "max_tokens": 36, "max_images": 12, "patch_sizes": [4], "seed": 3},
        "render": {"threads": 2},
    }
)


def table_rows(path: Path) -> list[dict[str, Any]]:
    return open_index(path).table().to_pylist()


def batches(index: Path) -> list[dict[str, bytes]]:
    with PackedLoader(index, CONFIG, rank=0, world_size=1) as loader:
        return [{name: array.tobytes() for name, array in batch.arrays().items()} for batch in loader]


def with_labels() -> dict[str, bytes]:
    members: dict[str, bytes] = {}
    for name, data in FILES.items():
        members[name] = data
        members[name.rpartition(".")[0] + ".cls"] = str(LABELS[name]).encode()
    return members


def write_csv(path: Path) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["label", "path"])
        writer.writerows([f"c{LABELS[name]}", f"images/{name}"] for name in reversed(list(FILES)))
    return path


def write_jsonl(path: Path) -> Path:
    path.write_text("".join(json.dumps({"path": f"images/{n}", "label": LABELS[n]}) + "\n\n" for n in FILES))
    return path


def write_parquet(path: Path) -> Path:
    names = list(FILES)
    columns = {
        "path": [f"images/{n}" for n in names],
        "label": [f"c{LABELS[n]}" for n in names],
        "junk": [0] * len(names),
    }
    pq.write_table(pa.table(columns), path)
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("sources")
    write_tree(place / "images", FILES)
    build_index(place / "images", place / "folder.arrow")
    return place


@pytest.mark.parametrize(
    "source", ["ustar.tar", "gnu.tar", "pax.tar", "m.csv", "m.jsonl", "m.parquet", "half-{0..1}.tar"]
)
def test_each_source_gives_the_same_batches(place: Path, source: str) -> None:
    styles = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
    members = with_labels()
    if source.startswith("half"):
        names = sorted(members)
        cut = names.index("c1/0001.cls")
        write_tar(place / "half-0.tar", {name: members[name] for name in names[:cut]})
        write_tar(place / "half-1.tar", {name: members[name] for name in names[cut:]})
    elif source.endswith(".tar"):
        write_tar(place / source, dict(reversed(members.items())), styles[source[:-4]])
    else:
        {"m.csv": write_csv, "m.jsonl": write_jsonl, "m.parquet": write_parquet}[source](place / source)
    output = place / f"{source}.arrow"
    build_index(place / source, output)
    expected = table_rows(place / "folder.arrow")
    found = table_rows(output)
    shared = ("length", "width", "height", "orientation", "format", "label")
    assert [[row[k] for k in shared] for row in found] == [[row[k] for k in shared] for row in expected]
    assert batches(output) == batches(place / "folder.arrow")


def test_long_names_and_big_headers_are_followed(tmp_path: Path) -> None:
    name = "d" * 90 + "/" + "e" * 120 + "/ü.png"
    for style in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        write_tar(tmp_path / "x.tar", {name: encode("PNG", 7, 5), name[:-3] + "cls": b"4\n"}, style)
        build_index(tmp_path / "x.tar", tmp_path / "x.arrow")
        (row,) = table_rows(tmp_path / "x.arrow")
        assert (row["name"], row["width"], row["height"], row["label"]) == (name, 7, 5, 4)


def test_json_and_text_members_by_key(tmp_path: Path) -> None:
    png = encode("PNG", 7, 5)
    members = {
        "a.png": png, "a.json": b'{"label": 2, "caption": "from json"}',
        "b.JPG": encode("JPEG", 6, 6), "b.txt": "three wörds".encode(),
        "c.png": png, "c.cls": b"0", "c.json": b'{"label": 1, "text": "json too"}', "c.npy": b"ignored",
        "d.png": png, "d.json": b'{"cls": [3, 1]}',
    }  # fmt: skip
    done = build_index(write_tar(tmp_path / "x.tar", members), tmp_path / "x.arrow")
    index = open_index(tmp_path / "x.arrow")
    assert [row["label"] for row in index.table().to_pylist()] == [[2, -1], [-1, -1], [0, -1], [1, 3]]
    assert index.label_width == 2 and index.classes == ["0", "1", "2", "3"] and done.ignored == 1
    assert [row["caption"] for row in index.table().to_pylist()] == ["from json", "three wörds", "json too", None]
    columns = index.columns()
    assert columns["caption_tokens"][0].tolist() == [10, 13, 9, 0]
    assert columns["labels"][0].tolist() == [2, -1, -1, -1, 0, -1, 1, 3]
    offsets, text = columns["caption"][0]
    assert [bytes(text[a:b]).decode() for a, b in itertools.pairwise(offsets)][1] == "three wörds"


def test_class_names_in_tars_need_a_table(tmp_path: Path) -> None:
    members = {"a.png": encode("PNG", 7, 5), "a.cls": b"cat", "b.png": encode("PNG", 7, 5), "b.cls": b"1"}
    write_tar(tmp_path / "x.tar", members)
    done = build_index(tmp_path / "x.tar", tmp_path / "x.arrow")
    assert (done.rows, done.broken) == (1, 1)
    assert "'cat' is not a number" in open_index(tmp_path / "x.arrow").quarantine()[0]["reason"]
    done = build_index(tmp_path / "x.tar", tmp_path / "y.arrow", classes=["dog", "cat"])
    assert [row["label"] for row in table_rows(tmp_path / "y.arrow")] == [1, 1] and done.classes == ["dog", "cat"]


def test_an_unchanged_tar_is_not_read_again(tmp_path: Path) -> None:
    for i in range(3):
        write_tar(tmp_path / f"s-{i}.tar", {f"{i}{j}.png": encode("PNG", 7, 5 + j) for j in range(4)})
    pattern = tmp_path / "s-{0..2}.tar"
    build_index(pattern, tmp_path / "x.arrow")
    write_tar(tmp_path / "s-1.tar", {"new.png": encode("PNG", 30, 31)})
    done = build_index(pattern, tmp_path / "x.arrow", refresh=True)
    assert (done.rows, done.reused) == (9, 8)
    build_index(pattern, tmp_path / "fresh.arrow")
    assert (tmp_path / "x.arrow").read_bytes() == (tmp_path / "fresh.arrow").read_bytes()


def test_several_sources_and_their_tables(tmp_path: Path) -> None:
    png = encode("PNG", 7, 5)
    one = write_tree(tmp_path / "one", {"b/1.png": png})
    two = write_tree(tmp_path / "two", {"a/1.png": png})
    tar = write_tar(tmp_path / "x.tar", {"k.png": png, "k.cls": b"0"})
    build_index([two, one], tmp_path / "x.arrow")
    index = open_index(tmp_path / "x.arrow")
    assert index.classes == ["a", "b"]
    assert [index.uri(i) for i in range(2)] == [f"{one}/b/1.png", f"{two}/a/1.png"]
    with pytest.raises(IndexFileError, match="--classes FROM"):
        build_index([one, tar], tmp_path / "y.arrow")
    build_index([one, tar], tmp_path / "y.arrow", classes=tmp_path / "x.arrow")
    assert open_index(tmp_path / "y.arrow").uri(1) == f"{tar}#k.png"
    with pytest.raises(IndexFileError, match="covered twice"):
        build_index([one, tmp_path / "one/b"], tmp_path / "z.arrow")


def test_manifests_over_one_folder(place: Path, tmp_path: Path) -> None:
    """train.csv and val.csv beside the images are two indexes, or one of both; an image that both name is refused."""
    write_tree(tmp_path / "images", FILES)
    names = list(FILES)
    lines = [f"images/{name},c{LABELS[name]}\n" for name in names]
    for name, part in (("train.csv", lines[:40]), ("val.csv", lines[40:]), ("deep/more.csv", lines[39:])):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        back = "../" if "/" in name else ""
        (tmp_path / name).write_text("path,label\n" + "".join(back + line for line in part))
    train, val = tmp_path / "train.csv", tmp_path / "val.csv"
    assert build_index(train, tmp_path / "train.arrow").rows == 40
    done = build_index(val, tmp_path / "val.arrow", classes=tmp_path / "train.arrow")
    assert (done.rows, done.classes) == (20, ["c0", "c1", "c2"])
    assert build_index([val, train], tmp_path / "both.arrow").rows == 60
    assert batches(tmp_path / "both.arrow") == batches(place / "folder.arrow")
    for second in (train, tmp_path / "deep/more.csv"):
        with pytest.raises(IndexFileError, match=r"stands twice \(also .*train.csv' line \d+\)"):
            build_index([train, second], tmp_path / "x.arrow")
    with pytest.raises(IndexFileError, match="covered twice, by a manifest"):
        build_index([train, tmp_path / "images/c1"], tmp_path / "x.arrow")
    # A folder that the manifest says nothing of may lie beside its images.
    write_tree(tmp_path / "extra", {"c0/1.png": encode("PNG", 9, 9)})
    assert build_index([train, tmp_path / "extra"], tmp_path / "x.arrow").rows == 41


def test_a_mixture_of_different_class_tables_is_refused(tmp_path: Path) -> None:
    png = encode("PNG", 30, 30)
    for name, classes in (("train", "ab"), ("val", "b"), ("other", "bc")):
        write_tree(tmp_path / name, {f"{c}/1.png": png for c in classes})
        build_index(tmp_path / name, tmp_path / f"{name}.arrow")

    def mixed(*names: str) -> PackedLoader:
        table = [{"index": str(tmp_path / f"{name}.arrow")} for name in names]
        return PackedLoader(config=LoaderConfig.from_dict({"data": {"mixture": table}, "plan": {"virtual_epoch": 60}}))

    for other in ("val", "other"):
        with pytest.raises(
            ConfigError, match=rf"train\.arrow and .*{other}\.arrow have different class tables.*--classes"
        ):
            mixed("train", other)
    build_index(tmp_path / "val", tmp_path / "val.arrow", classes=tmp_path / "train.arrow")
    with mixed("train", "val") as loader:
        found = set()
        for batch in loader:
            ok = batch.status == 1
            found |= set(zip(batch.source_ids[ok].tolist(), batch.labels[ok][:, 0].tolist(), strict=True))
        assert loader.classes == ["a", "b"] and found == {(0, 0), (0, 1), (1, 1)}


def test_brace_patterns() -> None:
    assert expand_braces("a-{08..11}-{0..1}.tar")[:3] == ["a-08-0.tar", "a-08-1.tar", "a-09-0.tar"]
    assert expand_braces("plain.tar") == ["plain.tar"]
    for bad in ("{3..1}", "{0..99999999999}"):
        with pytest.raises(IndexFileError, match="must run upwards"):
            expand_braces(bad)


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5])
def test_a_split_is_stratified_seeded_and_whole(place: Path, fraction: float) -> None:
    index = open_index(place / "folder.arrow")
    drawn = split_rows(index, fraction, seed=1)
    assert drawn.sum() == round(60 * fraction)
    labels = np.concatenate(index.columns()["labels"])
    for label in range(3):
        assert abs(drawn[labels == label].sum() - 20 * fraction) < 1
    assert (split_rows(index, fraction, seed=1) == drawn).all()
    assert (split_rows(index, fraction, seed=2) != drawn).any()
    write_subset(index, ~drawn, place / "rest.arrow")
    write_subset(index, drawn, place / "drawn.arrow")
    rest, held = table_rows(place / "rest.arrow"), table_rows(place / "drawn.arrow")
    assert sorted(row["name"] for row in rest + held) == sorted(FILES)
    assert open_index(place / "drawn.arrow").classes == index.classes == open_index(place / "rest.arrow").classes
    assert batches(place / "drawn.arrow")


def cli(*args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "navit_loader", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_the_commands(place: Path, tmp_path: Path) -> None:
    tree = write_tree(
        tmp_path / "images", {"a/1.png": encode("PNG", 20, 10), "b/2.jpg": b"", "b/3.jpg": encode("JPEG", 9, 9)}
    )
    truncated = encode("JPEG", 90, 90)
    (tree / "b/4.jpg").write_bytes(truncated[: len(truncated) // 2])
    done = cli("index", tree, "-o", tmp_path / "x.arrow")
    assert done.returncode == 0 and "3 images, 2 classes" in done.stdout and "1 broken" in done.stdout
    shown = cli("info", tmp_path / "x.arrow")
    assert shown.returncode == 0 and "b/2.jpg: empty file" in shown.stdout and "jpeg 2, png 1" in shown.stdout
    lint = cli("lint", tmp_path / "x.arrow")
    assert lint.returncode == 1 and "b/4.jpg" in lint.stdout and "2 of 3 images decode, 1 are broken" in lint.stdout
    split = cli("split", place / "folder.arrow", "--fraction", "0.2", "-o", tmp_path / "r.arrow", tmp_path / "d.arrow")
    assert split.returncode == 0 and "48 images" in split.stdout and "12 images" in split.stdout


def test_lint_counts_colour_profiles(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    for i, options in enumerate(({}, {"icc_profile": b"Display P3" + bytes(190)})):
        Image.new("RGB", (20, 20)).save(tmp_path / f"d/{i}.png", **options)
    build_index(tmp_path / "d", tmp_path / "x.arrow")
    assert "1 have a colour profile other than sRGB" in cli("lint", tmp_path / "x.arrow").stdout


def test_every_error_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars/x.tar").write_bytes(bytes(1024))
    (tmp_path / "x.bin").write_bytes(b"PK")
    output = tmp_path / "x.arrow"
    for args, words in (
        (("index", tmp_path / "nothing", "-o", output), "no such file or folder"),
        (("index", tmp_path / "empty", "-o", output), "no image in"),
        (("index", tmp_path / "tars", "-o", output), f"give them in its place: {tmp_path / 'tars'}/*.tar"),
        (("index", tmp_path / "x.bin", "-o", output), "is no source"),
        (("index", tmp_path / "empty", "-o", "/nowhere/x.arrow"), "cannot be made"),
        (("info", tmp_path / "x.bin"), "is no index"),
        (("split", output, "--fraction", "0.5", "-o", output, "r.arrow"), "three different files"),
    ):
        done = cli(*args)
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
        assert done.stderr.startswith("navit-loader: error: ") and words in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "tars", "x.bin"]


def test_a_closed_pipe_is_quiet(place: Path) -> None:
    done = subprocess.run(
        f"'{sys.executable}' -m navit_loader info '{place / 'folder.arrow'}' | true; echo ${{PIPESTATUS[0]}}",
        shell=True, executable="/bin/bash", capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("0\n", "")
