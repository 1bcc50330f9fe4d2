"""What the tests of indexing share: images as bytes in every container, and trees of them."""

from __future__ import annotations

import io
import struct
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")


def exif(orientation: int) -> bytes:
    """An EXIF block with nothing but the orientation."""
    return b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)


def encode(kind: str, width: int, height: int, orientation: int = 1, seed: int = 0) -> bytes:
    """One image of noise; the orientation is written where the container has a place for it."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    out = io.BytesIO()
    options = {}
    if orientation > 1 and kind in ("JPEG", "PNG", "WEBP"):
        options["exif"] = b"Exif\0\0" + exif(orientation)
    if orientation > 1 and kind == "TIFF":
        options["tiffinfo"] = {274: orientation}
    Image.fromarray(pixels).save(out, kind, **options)
    return out.getvalue()


def png_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """(kind, body) of each chunk."""
    found, at = [], 8
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        found.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    return found


def png_from(chunks: list[tuple[bytes, bytes]]) -> bytes:
    """The inverse of `png_chunks`."""
    parts = [b"\x89PNG\r\n\x1a\n"]
    for kind, body in chunks:
        parts += [struct.pack(">I", len(body)), kind, body, struct.pack(">I", zlib.crc32(kind + body))]
    return b"".join(parts)


def write_tree(root: Path, files: Mapping[str, bytes]) -> Path:
    """Writes files beneath a folder."""
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def sample_files(count: int = 60, classes: int = 3) -> dict[str, bytes]:
    """JPEG and PNG files of several sizes by name, a folder for each class."""
    rng = np.random.default_rng(7)
    found = {}
    for i in range(count):
        kind = ("JPEG", "PNG")[i % 2]
        width, height = (int(v) for v in rng.integers(8, 60, 2))
        name = f"c{i % classes}/{i:04d}.{'jpg' if kind == 'JPEG' else 'png'}"
        found[name] = encode(kind, width, height, orientation=1 + i % 8, seed=i)
    return found


def write_tar(path: Path, members: Mapping[str, bytes], style: int = tarfile.USTAR_FORMAT) -> Path:
    """A plain tar of these members, in this order."""
    with tarfile.open(path, "w", format=style) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path
