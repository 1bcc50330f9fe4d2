"""Bad input to indexing: nothing crashes or hangs, everything is counted, and the message names the file."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from navit_loader import _packer, build_index, open_index
from navit_loader.errors import IndexFileError
from navit_loader.index import IndexSummary

from ..source_kit import FORMATS, encode, exif, png_chunks, png_from, write_tar, write_tree

PNG = encode("PNG", 7, 5)


def reasons(path: Path) -> dict[str, str]:
    return {line["name"]: line["reason"] for line in open_index(path).quarantine()}


def index_tree(place: Path, files: dict[str, bytes]) -> IndexSummary:
    return build_index(write_tree(place / "images", files), place / "x.arrow")


def test_broken_files_are_counted_with_their_reason(tmp_path: Path) -> None:
    jpeg = encode("JPEG", 40, 30)
    start = jpeg.index(b"\xff\xc0")
    zero_high = jpeg[: start + 5] + b"\0\0" + jpeg[start + 7 :]
    huge = png_from([(b"IHDR", struct.pack(">IIBBBBB", 2**31 + 5, 5, 8, 2, 0, 0, 0)), (b"IDAT", b""), (b"IEND", b"")])
    bad = {
        "text.jpg": (b"not an image\n", "not an image"),
        "empty.png": (b"", "empty file"),
        "short.jpg": (jpeg[:start], "truncated JPEG"),
        "two.jpg": (jpeg[:2], "truncated JPEG"),
        "zero.jpg": (zero_high, "claims 40 × 0 pixels"),
        "cut.png": (PNG[:-20], "truncated PNG"),
        "huge.png": (huge, "claims 2147483653 × 5 pixels"),
        "iphone.heic": (b"\0\0\0\x18ftypheic" + bytes(20), "broken heif"),
        "cut.webp": (encode("WEBP", 9, 9)[:-10], "truncated WebP"),
        "bad.bmp": (b"BM" + bytes(40), "unknown header size 0"),
        "bad.tiff": (b"II*\0\xff\xff\xff\xff", "truncated TIFF"),
    }
    done = index_tree(tmp_path, {"good.png": PNG} | {name: data for name, (data, _) in bad.items()})
    assert (done.rows, done.broken) == (1, len(bad))
    found = reasons(tmp_path / "x.arrow")
    for name, (_, words) in bad.items():
        assert words in found[name], (name, found[name])


def test_the_smallest_and_the_thinnest_image(tmp_path: Path) -> None:
    index_tree(
        tmp_path, {"a.png": encode("PNG", 1, 1), "b.jpg": encode("JPEG", 4000, 1), "c.gif": encode("GIF", 1, 4000)}
    )
    rows = open_index(tmp_path / "x.arrow").table().to_pylist()
    assert [(row["width"], row["height"]) for row in rows] == [(1, 1), (4000, 1), (1, 4000)]


def test_orientation_is_found_wherever_it_stands(tmp_path: Path) -> None:
    head, *rest = [chunk for chunk in png_chunks(encode("PNG", 300, 200)) if chunk[0] != b"eXIf"]
    last = png_from([head, *rest[:-1], (b"eXIf", exif(6)), rest[-1]])
    first = png_from([head, (b"eXIf", exif(6)), *rest])
    pieces = [(b"IDAT", bytes([byte])) for kind, body in rest if kind == b"IDAT" for byte in body[:50]]
    many = png_from([head, *pieces, (b"tEXt", bytes(9000)), (b"eXIf", exif(6)), rest[-1]])
    jpeg = encode("JPEG", 300, 200)
    filler = b"\xff\xe2" + struct.pack(">H", 65535) + bytes(65533)
    block = b"Exif\0\0" + exif(6)
    app1 = b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block
    xmp = b"\xff\xe1" + struct.pack(">H", 12) + b"http://a/\0"
    at = jpeg.index(b"\xff\xda")
    files = {
        "last.png": last,
        "first.png": first,
        "many.png": many,
        "late.jpg": jpeg[:2] + xmp + filler * 4 + b"\xff\xff\xff" + app1 + jpeg[2:],
        "behind.jpg": jpeg[:at] + app1 + jpeg[at:],
        "last.webp": encode("WEBP", 300, 200, orientation=6),
        "tags.tiff": encode("TIFF", 300, 200, orientation=6),
    }
    index_tree(tmp_path, files)
    for row in open_index(tmp_path / "x.arrow").table().to_pylist():
        assert (row["width"], row["height"], row["orientation"]) == (200, 300, 6), row["name"]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(FORMATS), st.data())
def test_damaged_headers_never_crash_the_probe(kind: str, data: st.DataObject) -> None:
    whole = bytearray(encode(kind, 23, 17, orientation=6))
    for _ in range(data.draw(st.integers(0, 8))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(whole[: data.draw(st.integers(0, len(whole)))])
    members = io.BytesIO()
    with tarfile.open(fileobj=members, mode="w") as tar:
        info = tarfile.TarInfo("a." + kind.lower())
        info.size = len(cut)
        tar.addfile(info, io.BytesIO(cut))
    path = Path("/dev/shm" if os.path.isdir("/dev/shm") else "/tmp", f"navit-probe-{os.getpid()}")
    try:
        path.write_bytes(cut)
        one = _packer.probe_files(b"", os.fsencode(path), 1)
        path.write_bytes(members.getvalue())
        two = _packer.probe_tar(os.fsencode(path), [kind.lower()], [])
    finally:
        path.unlink(missing_ok=True)
    assert one["errors"] == two["errors"]
    assert (one["width"].tolist(), one["height"].tolist()) == (two["width"].tolist(), two["height"].tolist())
    good = one["format"][0] != _packer.FORMAT_BROKEN
    assert good == (one["width"][0] > 0 and one["height"][0] > 0) == (not one["errors"])


def test_links_that_loop_and_links_to_nowhere(tmp_path: Path) -> None:
    images = write_tree(tmp_path / "images", {"a/1.png": PNG, "b/deep/2.png": PNG})
    (images / "b/deep/up").symlink_to(images)
    (images / "a/self").symlink_to(".")
    (images / "a/gone.png").symlink_to("nothing.png")
    (images / "c").symlink_to(images / "a")
    build_index(images, tmp_path / "x.arrow")
    found = reasons(tmp_path / "x.arrow")
    assert "leads back" in found["b/deep/up/"] and "leads back" in found["a/self/"]
    assert found["a/gone.png"] == "no such file"
    assert [row["name"] for row in open_index(tmp_path / "x.arrow").table().to_pylist()] == [
        "a/1.png", "b/deep/2.png", "c/1.png",
    ]  # fmt: skip


def test_an_entry_that_cannot_be_looked_at_is_lost_alone(tmp_path: Path) -> None:
    images = write_tree(tmp_path / "images", {f"{i % 2}/{i}.png": PNG for i in range(40)})
    (images / "0/loop").symlink_to("loop")
    (images / "ring.png").symlink_to(images / "ring.png")
    done = build_index(images, tmp_path / "x.arrow")
    found = reasons(tmp_path / "x.arrow")
    assert (done.rows, done.broken) == (40, 2)
    assert all("symbolic links" in found[name] for name in ("0/loop", "ring.png"))


@pytest.mark.parametrize("most", [1_000, 20_000, 40_000])
def test_a_disk_that_fills_is_one_line_and_the_build_goes_on_later(tmp_path: Path, most: int) -> None:
    images = write_tree(tmp_path / "images", {f"{i % 2}/{i}.png": PNG for i in range(400)})
    command = ["index", str(images), "-o", str(tmp_path / "x.arrow")]
    # A bound on the size of files is what a full disk is to whoever writes.
    script = f"import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({most}, {most})); "
    script += f"from navit_loader.cli import main; sys.exit(main({command!r}))"
    full = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (full.returncode, full.stderr.count("\n")) == (2, 1), full.stderr
    assert "cannot be written: File too large" in full.stderr
    assert not (tmp_path / "x.arrow").exists()
    assert build_index(images, tmp_path / "x.arrow").rows == 400


def test_pipes_and_folders_named_like_images_do_not_block(tmp_path: Path) -> None:
    images = write_tree(tmp_path / "images", {"a/1.png": PNG, "a/2.jpg/3.png": PNG})
    os.mkfifo(images / "a/pipe.png")
    done = build_index(images, tmp_path / "x.arrow")
    assert (done.rows, reasons(tmp_path / "x.arrow")) == (2, {"a/pipe.png": "not a regular file"})


UNPRIVILEGED = """
import os, sys
from navit_loader import build_index
place = sys.argv[1]
build_index(place + "/images", place + "/x.arrow")  # loads all that an unprivileged process may not be able to read
os.unlink(place + "/x.arrow")
os.chmod(place + "/images/a/2.png", 0)
os.chmod(place + "/images/b", 0)
if os.geteuid() == 0:
    os.setegid(65534)
    os.seteuid(65534)
build_index(place + "/images", place + "/x.arrow")
"""


def test_what_may_not_be_read_is_reported() -> None:
    # Permissions do not bind root, so the child gives its rights up; pytest's own folders would be closed to it then.
    with tempfile.TemporaryDirectory() as place:
        images = write_tree(Path(place, "images"), {"a/1.png": PNG, "a/2.png": PNG, "b/3.png": PNG})
        os.chmod(place, 0o777)
        try:
            subprocess.run([sys.executable, "-c", UNPRIVILEGED, place], check=True, timeout=60)
            assert reasons(Path(place, "x.arrow")) == {
                "a/2.png": "permission denied",
                "b/": "folder cannot be read: Permission denied",
            }
        finally:
            (images / "b").chmod(0o755)


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    folder = os.fsencode(write_tree(tmp_path / "images", {"a/1.png": PNG}))
    with open(folder + b"/a/\xff\xfe.png", "wb") as file:
        file.write(PNG)
    done = build_index(tmp_path / "images", tmp_path / "x.arrow")
    assert (done.rows, done.broken) == (1, 1)
    assert reasons(tmp_path / "x.arrow") == {"a/\\xff\\xfe.png": "its name is not UTF-8; rename it"}
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as tar:
        for name in ("ÿ.png", "ok.png"):
            info = tarfile.TarInfo(name)
            info.size = len(PNG)
            tar.addfile(info, io.BytesIO(PNG))
    done = build_index(tmp_path / "x.tar", tmp_path / "y.arrow")
    assert (done.rows, reasons(tmp_path / "y.arrow")) == (1, {"\\xff.png": "its name is not UTF-8; rename it"})


def test_everything_broken_is_an_error_with_an_example(tmp_path: Path) -> None:
    with pytest.raises(IndexFileError, match=r"no usable image.*a\.jpg': empty file"):
        index_tree(tmp_path, {"a.jpg": b""})
    assert os.listdir(tmp_path) == ["images"]


MEMBERS = {f"{i}.png": PNG for i in range(5)} | {f"{i}.cls": b"1" for i in range(5)}


def test_tars_that_end_early(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "whole.tar", MEMBERS).read_bytes()
    third = whole.index(b"3.png\0")
    for cut, rows, words in (
        (third + 600, 3, "'3.png' claims bytes"),
        (third, 3, "no end mark"),
        (third + 9, 3, "no end mark"),
    ):
        (tmp_path / "x.tar").write_bytes(whole[:cut])
        done = build_index(tmp_path / "x.tar", tmp_path / "x.arrow")
        (reason,) = reasons(tmp_path / "x.arrow").values()
        assert (done.rows, done.broken) == (rows, 1) and words in reason, reason


@pytest.mark.parametrize("lie", [1, 513, 5000])
def test_a_member_that_lies_about_its_length(tmp_path: Path, lie: int) -> None:
    data = bytearray(
        write_tar(tmp_path / "x.tar", dict.fromkeys(("0.png", "1.png", "2.png"), PNG + b"\1" * 4000)).read_bytes()
    )
    at = data.index(b"1.png\0")
    data[at + 124 : at + 136] = b"%011o\0" % (len(PNG) + 4000 - lie if lie < 5000 else 6000)
    data[at + 148 : at + 156] = b" " * 8
    data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
    (tmp_path / "x.tar").write_bytes(data)
    done = build_index(tmp_path / "x.tar", tmp_path / "x.arrow")
    if lie == 1:
        # Within the same block nobody can tell; the image is whole all the same.
        assert (done.rows, done.broken) == (3, 0)
        return
    assert (done.rows, done.broken) == (1, 2)
    found = reasons(tmp_path / "x.arrow")
    assert "length of member '1.png' leads to byte" in found["1.png"] and found[""] == found["1.png"]


def test_tars_that_were_joined(tmp_path: Path) -> None:
    data = write_tar(tmp_path / "x.tar", MEMBERS).read_bytes()
    (tmp_path / "x.tar").write_bytes(data * 2)
    done = build_index(tmp_path / "x.tar", tmp_path / "x.arrow")
    assert (done.rows, done.broken) == (5, 1)
    assert f"data at byte {len(data)}, behind the end mark" in reasons(tmp_path / "x.arrow")[""]


@pytest.mark.parametrize("content", [b"", b"x" * 511, b"text " * 300, b"\x1f\x8b" + bytes(600), bytes(100)])
def test_files_that_are_no_tars(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.tar").write_bytes(content)
    with pytest.raises(IndexFileError, match=r"no usable image in '.*x\.tar'; for one, '.*x\.tar'"):
        build_index(tmp_path / "x.tar", tmp_path / "x.arrow")


def test_labels_and_keys_that_make_no_sense(tmp_path: Path) -> None:
    bad = {
        "word.cls": (b"seven", "'word.cls': label 'seven' is not a number"),
        "minus.cls": (b"-7", "out of range"),
        "big.cls": (b"9" * 30, "out of range"),
        "bytes.cls": (b"\xff\xfe", "'bytes.cls'"),
        "list.json": (b"[1]", "not a JSON object"),
        "deep.json": (b"[" * 100_000, "'deep.json'"),
        "half.json": (b'{"label": 1', "'half.json'"),
        "float.json": (b'{"label": 1.5}', "label 1.5 is not a number"),
        "number.json": (b'{"caption": 4}', "caption 4 is no text"),
        "huge.txt": (b"x" * (1 << 20) + b"x", "1048577 bytes"),
    }
    members = {"good.png": PNG, "good.cls": b"3\n"}
    for name, (content, _) in bad.items():
        members |= {name.partition(".")[0] + ".png": PNG, name: content}
    done = build_index(write_tar(tmp_path / "x.tar", members), tmp_path / "x.arrow")
    assert (done.rows, done.broken) == (1, len(bad))
    found = reasons(tmp_path / "x.arrow")
    for name, (_, words) in bad.items():
        assert words in found[name.partition(".")[0] + ".png"], (name, found)


def test_keys_that_stand_twice(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name, data in (
            ("a.png", PNG),
            ("a.jpg", encode("JPEG", 9, 9)),
            ("b.png", PNG),
            ("b.cls", b"1"),
            ("b.cls", b"2"),
            ("c.png", PNG),
            ("c.cls", b"1"),
            ("c.CLS", b"2"),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    build_index(tmp_path / "x.tar", tmp_path / "x.arrow")
    kept = open_index(tmp_path / "x.arrow").table().to_pylist()
    assert [(row["name"], row["label"]) for row in kept] == [("a.png", -1), ("b.png", 2)]
    found = reasons(tmp_path / "x.arrow")
    assert "its key has the image 'a.png' already" in found["a.jpg"]
    assert "'c.CLS' stands twice in this tar, in small and capital letters" in found["c.png"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("m.csv", "path,label\na.png\n", "line 2: not as many fields"),
        ("m.csv", "file,label\na.png,1\n", "no column 'path'; its columns: file, label"),
        ("m.csv", "path\n", "names no image"),
        ("m.csv", "", "no column 'path'"),
        ("m.csv", "path,label\na.png,1\n./a.png,2\n", "line 3: '@/a.png' stands twice (also '@/m.csv' line 2)"),
        ("m.csv", "path,label\na.png,-5\n", "line 2: label -5 is out of range"),
        ("m.csv", "path\n\xff\n", "no usable image"),
        ("m.jsonl", '{"path": "a.png"}\n{"path": 4}\n', "line 2: 'path' is 4"),
        ("m.jsonl", '{"path": "a.png"\n', "line 1: not JSON"),
        ("m.jsonl", '["a.png"]\n', "line 1: not an object"),
        ("m.jsonl", '{"path": "a.png", "label": {"x": 1}}\n', "line 1: label"),
        ("m.jsonl", '{"path": "a.png", "caption": 7}\n', "line 1: caption 7 is no text"),
        ("m.parquet", "PAR1 no", "cannot be indexed"),
    ],
)
def test_manifests_that_make_no_sense(tmp_path: Path, name: str, content: str, words: str) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    (tmp_path / name).write_text(content)
    with pytest.raises(IndexFileError) as caught:
        build_index(tmp_path / name, tmp_path / "x.arrow")
    words = words.replace("@", str(tmp_path))
    assert words in str(caught.value) and name.partition(".")[0] in str(caught.value)


def test_a_manifest_may_name_what_is_gone(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    (tmp_path / "m.csv").write_text("path,label,caption\na.png,cat,a cat\ngone.png,dog,\n../outside.png,dog,\n")
    done = build_index(tmp_path / "m.csv", tmp_path / "x.arrow")
    assert (done.rows, done.broken, done.classes) == (1, 2, ["cat", "dog"])
    assert set(reasons(tmp_path / "x.arrow").values()) == {"no such file"}


def test_damaged_indexes_are_refused(tmp_path: Path) -> None:
    index_tree(tmp_path, {f"a/{i}.png": PNG for i in range(20)})
    whole = (tmp_path / "x.arrow").read_bytes()
    path = tmp_path / "y.arrow"
    for content in (b"", b"text", whole[:100], whole[: len(whole) // 2], whole[:-1], bytes(len(whole))):
        path.write_bytes(content)
        with pytest.raises(IndexFileError, match=r"y\.arrow"):
            open_index(path).columns()
    path.write_bytes(whole.replace(b"navit.version", b"navit.versiom"))
    with pytest.raises(IndexFileError, match="version"):
        open_index(path)
    with pytest.raises(IndexFileError, match="no index at"):
        open_index(tmp_path / "none.arrow")
    with pytest.raises(IndexFileError, match="no row 20"):
        open_index(tmp_path / "x.arrow").uri(20)
