"""Samples of 16 bits of which a file uses few: which value is white is what `[render] depth` says, whoever decodes the file.

In: PNG and TIFF, which the engine reads, and PGM, which goes through Pillow. Out: pixels, the count of images that are nearly
black, and identities that only change where the key is set.
"""

from __future__ import annotations

import io
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from navit_loader import LoaderConfig, PackedLoader, RemoteLoader, build_index, open_index, pack_images
from navit_loader.config import deciding
from navit_loader.errors import ConfigError

from .service_kit import Daemon
from .source_kit import png_from

TABLE = {
    "plan": {"sequence_length": 256, "max_tokens": 64, "patch_sizes": [4], "resolution": {"kind": "native"}},
    "render": {"threads": 1},
}
SIDE = 16


def config(depth: str = "full") -> LoaderConfig:
    return LoaderConfig.from_dict(TABLE | {"render": {"threads": 1, "depth": depth}})


def values(largest: int) -> np.ndarray:
    return np.linspace(0, largest, SIDE * SIDE).round().astype(np.uint16).reshape(SIDE, SIDE)


def encoded(grey: np.ndarray, kind: str) -> bytes:
    out = io.BytesIO()
    if kind == "pgm":
        return b"P5 %d %d 65535\n" % (SIDE, SIDE) + grey.astype(">u2").tobytes()
    Image.fromarray(grey).save(out, {"png": "PNG", "tif": "TIFF"}[kind])
    return out.getvalue()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Images of 10, 12 and 16 bits in each format, and their index."""
    (tmp_path / "images").mkdir()
    for bits in (10, 12, 16):
        for kind in ("png", "tif", "pgm"):
            (tmp_path / "images" / f"{bits}.{kind}").write_bytes(encoded(values((1 << bits) - 1), kind))
    build_index(tmp_path / "images", tmp_path / "x.arrow")
    return tmp_path


def pixels(place: Path, loader: PackedLoader | RemoteLoader) -> dict[str, np.ndarray]:
    names = open_index(place / "x.arrow").table()["name"].to_pylist()
    found = {}
    for batch in loader:
        for b, e in np.argwhere(batch.status == 1):
            own = batch.patches[b][batch.segment_ids[b] == e].reshape(4, 4, 4, 4, 3).transpose(0, 2, 1, 3, 4)
            found[names[int(batch.image_ids[b, e])]] = own.reshape(SIDE, SIDE, 3)[..., 0]
    return found


@pytest.mark.parametrize("depth", ["full", "largest", "10", "12"])
def test_white_is_what_the_key_says(place: Path, depth: str) -> None:
    with PackedLoader(place / "x.arrow", config(depth), rank=0, world_size=1) as loader:
        found, dark = pixels(place, loader), loader.stats()["dark"]
    for bits in (10, 12, 16):
        grey = values((1 << bits) - 1).astype(int)
        white = grey.max() if depth == "largest" else 65535 if depth == "full" else (1 << int(depth)) - 1
        expected = grey >> 8 if white == 65535 else (grey.clip(0, white) * 255 + white // 2) // white
        for kind in ("png", "tif", "pgm"):
            assert np.array_equal(found[f"{bits}.{kind}"], expected), (bits, kind)
    assert dark == (6 if depth == "full" else 0)


def test_alpha_keeps_its_sixteen_bits() -> None:
    grey = np.full((SIDE, SIDE, 2), 1023, ">u2")
    grey[:, SIDE // 2 :, 1] = 65535
    header = SIDE.to_bytes(4, "big") * 2 + bytes([16, 4, 0, 0, 0])
    rows = b"".join(b"\0" + row.tobytes() for row in grey)
    data = png_from([(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")])
    over_black = replace(config("10"), render=replace(config("10").render, background=(0, 0, 0)))
    batch = pack_images([data], over_black)
    # Half of it is white at an alpha of 3 of 255, half of it white.
    assert np.unique(batch.patches[batch.segment_ids == 0]).tolist() == [3, 255]


def test_what_is_not_set_has_its_old_name(place: Path) -> None:
    assert set(deciding(LoaderConfig().render)) == {"filter", "dct_scaling", "background", "max_pixels"}
    names = {}
    for depth in ("full", "largest", "12"):
        with PackedLoader(place / "x.arrow", config(depth)) as loader:
            names[depth] = loader.render_id
    assert len(set(names.values())) == 3
    with pytest.raises(ConfigError, match="depth"):
        config("8")


def test_a_daemon_tells_its_clients(place: Path) -> None:
    text = (
        f'[data]\nindex = "{place / "x.arrow"}"\n[render]\nthreads = 1\ndepth = "12"\n[plan]\nsequence_length = 256\n'
    )
    text += 'max_tokens = 64\npatch_sizes = [4]\nresolution = { kind = "native" }\n'
    (place / "c.toml").write_text(text)
    with (
        Daemon(place / "c.toml") as daemon,
        RemoteLoader([daemon.endpoint]) as remote,
        PackedLoader(place / "x.arrow", config("12"), rank=0, world_size=1) as local,
    ):
        assert remote.render_id == local.render_id
        ours, theirs = pixels(place, local), pixels(place, remote)
        assert ours.keys() == theirs.keys() and all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_lint_says_how_many_are_nearly_black(place: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "navit_loader", "lint", str(place / "x.arrow")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "6 images of 16 bits a sample are nearly black" in done.stdout
