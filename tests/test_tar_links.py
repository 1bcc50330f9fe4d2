"""Members of a tar that hold nothing themselves, or not in one piece: links give what they lead to, and the walk goes on behind
sparse members.

In: tars as GNU tar, Python and `tar -r` write them. Out: rows and labels, and reasons for what cannot be read in place.
"""

from __future__ import annotations

import io
import shutil
import struct
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from navit_loader import LoaderConfig, PackedLoader, build_index, open_index

STYLES = {"gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
LONG = "a/folder/whose/name/is/so/long/" + "that/no/header/has/room/for/it/" * 5


def png(colour: tuple[int, int, int]) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (16, 16), colour).save(out, "PNG")
    return out.getvalue()


def rows(path: Path) -> dict[str, tuple[int, tuple[int, ...]]]:
    """Label and colour of each image of a tar."""
    index = path.with_suffix(".arrow")
    build_index(path, index)
    opened = open_index(index)
    names, labels = (opened.table()[column].to_pylist() for column in ("name", "label"))
    plan = {"sequence_length": 64, "max_tokens": 16, "patch_sizes": [4], "resolution": {"kind": "native"}}
    found = {}
    with PackedLoader(index, LoaderConfig.from_dict({"plan": plan}), rank=0, world_size=1) as loader:
        for batch in loader:
            for b, e in np.argwhere(batch.status == 1):
                pixels = batch.patches[b][batch.segment_ids[b] == e].reshape(-1, 3)
                row = int(batch.image_ids[b, e])
                found[names[row]] = (labels[row], tuple(int(v) for v in pixels[0]))
    return found


def reasons(path: Path) -> dict[str, str]:
    return {line["name"]: line["reason"] for line in open_index(path.with_suffix(".arrow")).quarantine()}


def add(tar: tarfile.TarFile, name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, target: str = "") -> None:
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.size = kind, target, len(data)
    tar.addfile(member, io.BytesIO(data))


@pytest.mark.parametrize("style", STYLES)
def test_links_give_what_they_lead_to(tmp_path: Path, style: str) -> None:
    red, blue = png((200, 0, 0)), png((0, 0, 200))
    with tarfile.open(tmp_path / "t.tar", "w", format=STYLES[style]) as tar:
        add(tar, "early.png", kind=tarfile.SYMTYPE, target="red.png")
        add(tar, "red.png", red)
        add(tar, "red.cls", b"1")
        add(tar, "hard.png", kind=tarfile.LNKTYPE, target="red.png")
        add(tar, "hard.cls", kind=tarfile.LNKTYPE, target="red.cls")
        add(tar, "./x/blob", blue)
        add(tar, "x/y/soft.png", kind=tarfile.SYMTYPE, target="../blob")
        add(tar, "twice.png", kind=tarfile.SYMTYPE, target="x/y/soft.png")
        add(tar, LONG + "member", blue)
        add(tar, "far.png", kind=tarfile.LNKTYPE, target=LONG + "member")
        add(tar, LONG + "named.png", kind=tarfile.LNKTYPE, target="red.png")
        add(tar, "nowhere.png", kind=tarfile.SYMTYPE, target="/etc/passwd")
        add(tar, "round.png", kind=tarfile.SYMTYPE, target="round.png")
        add(tar, "unlabelled.png", red)
        add(tar, "unlabelled.cls", kind=tarfile.SYMTYPE, target="gone.cls")
    assert rows(tmp_path / "t.tar") == {
        "early.png": (-1, (200, 0, 0)),
        "red.png": (1, (200, 0, 0)),
        "hard.png": (1, (200, 0, 0)),
        "x/y/soft.png": (-1, (0, 0, 200)),
        "twice.png": (-1, (0, 0, 200)),
        "far.png": (-1, (0, 0, 200)),
        LONG + "named.png": (-1, (200, 0, 0)),
    }
    said = reasons(tmp_path / "t.tar")
    assert set(said) == {"nowhere.png", "round.png", "unlabelled.png"}
    assert "a link to 'etc/passwd', which is no member of this tar" in said["nowhere.png"]
    assert "a link to 'gone.cls'" in said["unlabelled.png"]


def sparse_member(name: str, pieces: int) -> bytes:
    """An old GNU sparse member of so many pieces of one block each; its map runs on in blocks of its own."""
    member = tarfile.TarInfo(name)
    member.type, member.size = b"S", 512 * pieces
    header = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    entries = b"".join(b"%011o\0%011o\0" % (n * 4096, 512) for n in range(pieces))
    header[386 : 386 + min(pieces, 4) * 24] = entries[: 4 * 24]
    rest, blocks = entries[4 * 24 :], b""
    header[482] = bool(rest)
    header[483:495] = b"%011o\0" % (pieces * 4096)
    while rest:
        blocks += rest[: 21 * 24].ljust(21 * 24, b"\0") + bytes([len(rest) > 21 * 24]) + bytes(7)
        rest = rest[21 * 24 :]
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + blocks + b"x" * 512 * pieces


@pytest.mark.parametrize("pieces", [1, 4, 5, 25, 26, 60])
def test_the_walk_goes_on_behind_a_sparse_member(tmp_path: Path, pieces: int) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        add(tar, "first.png", png((1, 2, 3)))
        tar.fileobj.write(sparse_member("thin.png", pieces))  # type: ignore[union-attr]
        tar.offset += len(sparse_member("thin.png", pieces))
        add(tar, "last.png", png((4, 5, 6)))
    (tmp_path / "t.tar").write_bytes(out.getvalue())
    assert rows(tmp_path / "t.tar") == {"first.png": (-1, (1, 2, 3)), "last.png": (-1, (4, 5, 6))}
    assert "a sparse member" in reasons(tmp_path / "t.tar")["thin.png"]


@pytest.mark.parametrize("style", ["gnu", "posix"])
def test_sparse_files_as_tar_writes_them(tmp_path: Path, style: str) -> None:
    if shutil.which("tar") is None:
        pytest.skip("tar is not installed")
    folder = tmp_path / "images"
    folder.mkdir()
    for name, colour in (("a.png", (1, 2, 3)), ("c.png", (4, 5, 6))):
        (folder / name).write_bytes(png(colour))
    with (folder / "b.png").open("wb") as file:
        for n in range(12):
            file.seek(n << 20)
            file.write(struct.pack("<Q", n) * 512)
    names = ["a.png", "b.png", "c.png"]
    subprocess.run(["tar", "-S", f"--format={style}", "-cf", "../t.tar", *names], cwd=folder, check=True)
    assert rows(tmp_path / "t.tar") == {"a.png": (-1, (1, 2, 3)), "c.png": (-1, (4, 5, 6))}
    assert "a sparse member" in reasons(tmp_path / "t.tar")["b.png"]
