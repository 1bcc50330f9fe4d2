"""Colour profiles that are named and applied, damaged files that are kept, and scans that are missing."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

sys.path.insert(0, str(Path(__file__).parent))
from rendering import difference, encode, photo

from navit_loader import LoaderConfig, build_index, open_index, pack_images
from navit_loader.config import RenderConfig, deciding
from navit_loader.errors import ConfigError
from navit_loader.render.engine import Engine

SRGB = ImageCms.createProfile("sRGB")


def curve(gamma: float) -> bytes:
    return b"curv" + bytes(4) + (1).to_bytes(4, "big") + round(gamma * 256).to_bytes(2, "big") + bytes(2)


def xyz(*values: float) -> bytes:
    return b"XYZ " + bytes(4) + b"".join(round(v * 65536).to_bytes(4, "big", signed=True) for v in values)


def profile(name: str, space: bytes, tags: dict[bytes, bytes]) -> bytes:
    """A colour profile of version 4 for screens."""
    text = name.encode("utf-16-be")
    words = b"mluc\0\0\0\0\0\0\0\x01\0\0\0\x0cenUS" + len(text).to_bytes(4, "big") + b"\0\0\0\x1c" + text
    tags = {b"desc": words, b"cprt": words, b"wtpt": xyz(0.9642, 1.0, 0.8249)} | tags
    at, table, bodies = 132 + 12 * len(tags), b"", b""
    for name_, body in tags.items():
        body += bytes(-len(body) % 4)
        table += name_ + (at + len(bodies)).to_bytes(4, "big") + len(body).to_bytes(4, "big")
        bodies += body
    head = bytearray(128)
    head[8:12], head[12:24], head[36:40] = b"\x04\x30\0\0", b"mntr" + space + b"XYZ ", b"acsp"
    head[68:80] = xyz(0.9642, 1.0, 0.8249)[8:]
    whole = head + len(tags).to_bytes(4, "big") + table + bodies
    whole[:4] = len(whole).to_bytes(4, "big")
    return bytes(whole)


P3 = profile(
    "Display P3",
    b"RGB ",
    {
        b"rXYZ": xyz(0.5151, 0.2412, -0.0011),
        b"gXYZ": xyz(0.2920, 0.6922, 0.0419),
        b"bXYZ": xyz(0.1571, 0.0666, 0.7841),
        **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve(2.2)),
    },
)
GREY = profile("Dot Gain 20%", b"GRAY", {b"kTRC": curve(1.0)})


def pixels(data: bytes, image: Image.Image, **options: str) -> np.ndarray | None:
    """The whole image through `pack_images`, or None where it is masked. Its sides are multiples of 16."""
    config = LoaderConfig.from_dict({"render": {"dct_scaling": False, "threads": 1} | options}).for_evaluation()
    got = pack_images([data], config)
    if got.status[0, 0] != 1:
        return None
    rows, columns = image.height // 16, image.width // 16
    assert got.grids[0, 0].tolist() == [rows, columns]
    patches = np.asarray(got.patches[0, : rows * columns])
    return patches.reshape(rows, columns, 16, 16, 3).swapaxes(1, 2).reshape(image.height, image.width, 3)


def in_srgb(data: bytes) -> np.ndarray:
    """As Pillow converts it, over white."""
    image = Image.open(io.BytesIO(data))
    source = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
    alpha = image.getchannel("A") if image.mode == "RGBA" else None
    plain = image.convert("L" if image.mode in ("L", "LA") else "RGB")
    intent, flags = ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.Flags.BLACKPOINTCOMPENSATION
    out = ImageCms.profileToProfile(plain, source, SRGB, intent, "RGB", flags=flags)
    assert out is not None
    if alpha is not None:
        out = Image.composite(out, Image.new("RGB", out.size, "white"), alpha)
    return np.asarray(out)


def files() -> dict[str, tuple[bytes, Image.Image]]:
    wide, grey = photo(96, 64), photo(96, 64).convert("L")
    clear = wide.copy()
    clear.putalpha(grey)
    return {
        "jpeg": (encode(wide, "JPEG", icc_profile=P3, quality=95, subsampling=0), wide),
        "png": (encode(wide, "PNG", icc_profile=P3), wide),
        "png with alpha": (encode(clear, "PNG", icc_profile=P3), wide),
        "webp": (encode(wide, "WEBP", icc_profile=P3, lossless=True), wide),
        "tiff": (encode(wide, "TIFF", icc_profile=P3), wide),
        "avif": (encode(wide, "AVIF", icc_profile=P3), wide),
        "grey jpeg": (encode(grey, "JPEG", icc_profile=GREY, quality=95), wide),
        "grey png": (encode(grey, "PNG", icc_profile=GREY), wide),
    }


@pytest.mark.parametrize("kind", files())
def test_profiles_are_applied_where_that_is_set(kind: str) -> None:
    data, image = files()[kind]
    plain, converted = pixels(data, image), pixels(data, image, profiles="convert")
    assert plain is not None and converted is not None
    assert difference(converted, in_srgb(data))[0] < 1
    assert difference(converted, plain)[0] > 2, "it makes a difference"


def test_inks_are_converted_by_their_profile(tmp_path: Path) -> None:
    """A profile of CMYK is none that can be made here, so one that does not fit stands for it: nothing is applied."""
    image = photo(96, 64).convert("CMYK")
    data = encode(image, "JPEG", icc_profile=P3)
    plain, converted = pixels(data, image), pixels(data, image, profiles="convert")
    assert plain is not None and converted is not None and (plain == converted).all()


def test_what_is_no_profile_or_srgb_changes_nothing() -> None:
    image = photo(96, 64)
    for profile_ in (b"no profile at all", ImageCms.ImageCmsProfile(SRGB).tobytes()):
        data = encode(image, "PNG", icc_profile=profile_)
        plain, converted = pixels(data, image), pixels(data, image, profiles="convert")
        assert plain is not None and converted is not None and (plain == converted).all()


def test_damage_is_damage_with_profiles_too() -> None:
    """Pillow, which applies them, would let this pass."""
    image = photo(96, 64)
    data = encode(image, "JPEG", icc_profile=P3, quality=95, restart_marker_blocks=2)
    at = data.index(b"\xff\xd1")
    assert pixels(data[:at] + b"\x01\x02\x03" + data[at:], image, profiles="convert") is None


def test_keys_are_part_of_render_id_where_they_are_set(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/0.jpg").write_bytes(files()["jpeg"][0])
    build_index(tmp_path / "d", tmp_path / "x.arrow")
    ids = []
    for options in ({}, {"profiles": "convert"}, {"damaged": "keep"}, {"profiles": "ignore", "damaged": "mask"}):
        config = LoaderConfig.from_dict({"render": options})
        assert set(deciding(config.render)) - set(deciding(RenderConfig())) == {
            k for k, v in options.items() if v in ("convert", "keep")
        }
        engine = Engine(config, open_index(tmp_path / "x.arrow"))
        ids.append(engine.render_id)
        engine.close()
    assert len(set(ids)) == 3 and ids[0] == ids[3]
    with pytest.raises(ConfigError, match="profiles"):
        LoaderConfig.from_dict({"render": {"profiles": "apply"}})


def test_lint_and_info_name_kinds_and_files(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    for name, (data, _) in files().items():
        (tmp_path / f"d/{name.replace(' ', '_')}").with_suffix(
            "." + name.split()[-1 if "grey" in name else 0]
        ).write_bytes(data)
    Image.new("RGB", (20, 20)).save(tmp_path / "d/plain.png")
    build_index(tmp_path / "d", tmp_path / "x.arrow")
    said = {}
    for command in ("lint", "info"):
        run = [sys.executable, "-m", "navit_loader", command, str(tmp_path / "x.arrow")]
        said[command] = subprocess.run(run, capture_output=True, text=True, check=True).stdout
    assert "8 have a colour profile other than sRGB" in said["lint"]
    assert "Display P3 6 (" in said["lint"] and "grey 2 (grey_" in said["lint"]
    assert "Display P3 6 (" in said["info"] and "grey 2 (grey_" in said["info"] and "in 9 files" in said["info"]
    for path in (tmp_path / "d").iterdir():
        path.unlink()
    run = [sys.executable, "-m", "navit_loader", "info", str(tmp_path / "x.arrow")]
    assert (
        "profiles other than sRGB: none; in 0 files"
        in subprocess.run(run, capture_output=True, text=True, check=True).stdout
    )


def test_damaged_files_are_kept_where_nothing_is_missing() -> None:
    image = photo(96, 64)
    data = encode(image, "JPEG", quality=95, restart_marker_blocks=2)
    at = data.index(b"\xff\xd1")
    stray = data[:at] + b"\x01\x02\x03" + data[at:]
    assert pixels(stray, image) is None
    kept = pixels(stray, image, damaged="keep")
    assert kept is not None and (kept == pixels(data, image)).all()
    for missing in (
        data[: at - 30] + data[at:],
        stray[: at - 30] + stray[at:],
        stray[:-2],
        data[: len(data) // 2] + b"\xff\xd9",
    ):
        assert pixels(missing, image, damaged="keep") is None


def test_progressive_files_without_their_last_scans() -> None:
    """Libjpeg, and so Pillow, says nothing of it."""
    image = photo(96, 64)
    data = encode(image, "JPEG", quality=95, progressive=True)
    scans = [at for at in range(len(data)) if data[at : at + 2] == b"\xff\xda"]
    for at in scans[1:]:
        cut = data[:at] + b"\xff\xd9"
        Image.open(io.BytesIO(cut)).load()
        assert pixels(cut, image) is None
        assert pixels(cut, image, damaged="keep") is not None
    assert pixels(data, image) is not None
