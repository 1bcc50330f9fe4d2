"""What has no row in an index is counted by its reason and named, whatever the source; `--strict` writes no such index."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from navit_loader import build_index, open_index
from navit_loader.errors import IndexFileError

from .source_kit import encode, write_tar, write_tree
from .test_sources import cli

PNG, JPEG = encode("PNG", 9, 7), encode("JPEG", 8, 8)
OTHERS = (
    "a/clip.mp4",
    "a/new.psd",
    "a/drawing.svg",
    "a/photo.tga",
    "a/photo.jpg.1",
    "b/no_end",
    "b/scan.nii.gz",
    "b/old.mp4",
)


def labels(path: Path) -> dict[str, int]:
    return {row["name"]: row["label"] for row in open_index(path).table().to_pylist()}


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_other_files_are_counted_by_kind_and_named(tmp_path: Path, kind: str) -> None:
    files = {"a/1.png": PNG} | dict.fromkeys(OTHERS, b"x" * 99) | {"a/.hidden": b"", "a/._1.png": b""}
    source = write_tree(tmp_path / "d", files) if kind == "folder" else write_tar(tmp_path / "d.tar", files)
    done = build_index(source, tmp_path / "x.arrow")
    assert (done.rows, done.ignored) == (1, len(OTHERS) + 2)
    found = {reason.split()[-1].strip("'."): count for reason, (count, _) in done.left_out.items()}
    assert found == {"mp4": 2, "psd": 1, "svg": 1, "tga": 1, "1": 1, "jpg": 1, "gz": 1, "hidden": 2}
    shown = cli("index", source, "-o", tmp_path / "x.arrow").stdout
    assert "10 files left out" in shown and "2 of kind '.mp4'; such as" in shown and "a/new.psd" in shown
    refused = cli("index", source, "-o", tmp_path / "y.arrow", "--strict")
    assert refused.returncode == 2 and "would be left out, such as" in refused.stderr
    assert not any(path.name.startswith("y.arrow") for path in tmp_path.iterdir())


def test_strict_passes_hidden_files_and_refuses_broken_ones(tmp_path: Path) -> None:
    write_tree(tmp_path / "d", {"a/1.png": PNG, "a/.DS_Store": b""})
    assert build_index(tmp_path / "d", tmp_path / "x.arrow", strict=True).rows == 1
    (tmp_path / "d/a/2.png").write_bytes(b"")
    with pytest.raises(IndexFileError, match=r"1 images are broken; for one, '.*2\.png': empty file"):
        build_index(tmp_path / "d", tmp_path / "x.arrow", strict=True)
    assert len(labels(tmp_path / "x.arrow")) == 1, "the old index stays"


def test_more_ends_of_names_are_read(tmp_path: Path) -> None:
    files = {"phone.mpo": JPEG, "moving.apng": PNG, "old.DIB": encode("BMP", 9, 7)}
    assert build_index(write_tree(tmp_path / "d", files), tmp_path / "x.arrow").rows == 3


@pytest.mark.parametrize(
    ("members", "found", "left"),
    [
        # Dots within names: the whole stem's label files count, else the key's.
        ({"I_2.5.jpg": JPEG, "I_2.5.cls": b"1", "I_2.jpg": JPEG, "I_2.cls": b"2"}, {"I_2.5.jpg": 1, "I_2.jpg": 2}, 0),
        ({"0.image.png": PNG, "0.cls": b"3"}, {"0.image.png": 3}, 0),
        ({"a.1.jpg": JPEG, "a.1.cls": b"1", "a.2.jpg": JPEG, "a.2.cls": b"2"}, {"a.1.jpg": 1, "a.2.jpg": 2}, 0),
        ({"v1.0/2.jpg": JPEG, "v1.0/2.cls": b"1"}, {"v1.0/2.jpg": 1}, 0),
        ({"t 1.0.jpg": JPEG, "t 1.5.jpg": JPEG}, {"t 1.0.jpg": -1, "t 1.5.jpg": -1}, 0),
        # Beside an image of the key, others are left out.
        ({"0.mask.png": PNG, "0.jpg": JPEG, "0.cls": b"3"}, {"0.jpg": 3}, 1),
        # Label files that belong to nothing.
        ({"0.jpg": JPEG, "0.cls": b"3", "1.cls": b"1", "0.x.json": b"{}"}, {"0.jpg": 3}, 2),
    ],
)  # fmt: skip
def test_images_and_texts_meet_by_their_names(
    tmp_path: Path, members: dict[str, bytes], found: dict[str, int], left: int
) -> None:
    for order in (members, dict(reversed(members.items()))):
        done = build_index(write_tar(tmp_path / "x.tar", order), tmp_path / "x.arrow")
        assert labels(tmp_path / "x.arrow") == found
        assert (done.ignored, done.broken) == (left, 0)


def test_what_cannot_be_told_apart_is_named(tmp_path: Path) -> None:
    stereo = {"0.left.jpg": JPEG, "0.right.jpg": JPEG, "0.cls": b"1"}
    both = {"0.image.jpg": JPEG, "0.image.cls": b"1", "0.cls": b"2"}
    for members, words in ((stereo, "'0.left.jpg' and '0.right.jpg' are of one key, '0'"), (both, "may be meant")):
        with pytest.raises(IndexFileError, match=words):
            build_index(write_tar(tmp_path / "x.tar", members), tmp_path / "x.arrow")
    twice = write_tar(tmp_path / "x.tar", {"0.png": PNG, "0.jpg": JPEG, "0.cls": b"1"})
    done = cli("index", twice, "-o", tmp_path / "x.arrow")
    assert "its key has the image '0.png' already, which is used" in done.stdout and labels(tmp_path / "x.arrow") == {
        "0.png": 1
    }


def test_the_last_of_several_members_of_one_name_counts(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", {"1.png": PNG, "1.cls": b"0", "2.png": PNG, "2.cls": b"0"})
    write_tree(tmp_path / "new", {"1.png": encode("PNG", 30, 20), "1.cls": b"1"})
    with tarfile.open(tmp_path / "x.tar", "a") as tar:
        for name in ("1.png", "1.cls"):
            tar.add(tmp_path / "new" / name, name)
    done = build_index(tmp_path / "x.tar", tmp_path / "x.arrow")
    assert labels(tmp_path / "x.arrow") == {"1.png": 1, "2.png": 0}
    assert open_index(tmp_path / "x.arrow").table()["width"].to_pylist() == [30, 9]
    assert (done.ignored, done.broken) == (2, 0)


def test_what_is_no_source_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "x.tar.gz").write_bytes(b"\x1f\x8b")
    write_tree(tmp_path / "saved", {"state.json": b'{"_data_files": []}', "data-00000-of-00001.arrow": b""})
    for source, words in (
        (tmp_path / "x.tar.gz", "compressed tar.* decompress it first"),
        (tmp_path / "saved", "its state.json names no data files; save it again"),
        (tmp_path / "*.tar", r"leave the quotes away, or write a range as in 'shard-\{000\.\.127\}\.tar'"),
    ):
        with pytest.raises(IndexFileError, match=words):
            build_index(source, tmp_path / "x.arrow")
