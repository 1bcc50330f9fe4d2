"""Thousands of damaged files, bombs, and formats that are not what they say: none may crash, hang, pass the pixel cap,
or touch another image's slot; each that fails is in the ledger with its reason."""

from __future__ import annotations

import io
import struct
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))
from rendering import batch, encode, photo, planned, renderer, source

SIZE = (48, 64)
PER_FORMAT = 2_000
"""Damaged files of each format."""
REASONS = {"changed", "corrupt", "missing", "too_large", "truncated", "unsupported"}


def seeds() -> dict[str, bytes]:
    """One good file of 64 × 48 pixels for each kind of stream that a decoder here reads."""
    image = photo(64, 48)
    alpha = image.copy()
    alpha.putalpha(Image.linear_gradient("L").resize(image.size))
    frames = [image.quantize(40), image.rotate(90).resize(image.size).quantize(40)]
    return {
        "jpeg": encode(image, "JPEG"),
        "jpeg progressive": encode(image, "JPEG", progressive=True, subsampling="4:4:4"),
        "jpeg restart, exif": encode(image, "JPEG", 6, restart_marker_blocks=2),
        "jpeg grey": encode(image.convert("L"), "JPEG"),
        "jpeg cmyk": encode(image.convert("CMYK"), "JPEG"),
        "png": encode(image, "PNG"),
        "png palette": encode(image.quantize(16), "PNG", transparency=1),
        "png alpha": encode(alpha, "PNG"),
        "webp": encode(image, "WEBP"),
        "webp alpha": encode(alpha, "WEBP"),
        "webp lossless": encode(image, "WEBP", lossless=True),
        "webp lossless alpha": encode(alpha, "WEBP", lossless=True),
        "webp animated": encode(image, "WEBP", save_all=True, append_images=[image.rotate(90).resize(image.size)]),
        "avif": encode(image, "AVIF"),
        "avif alpha": encode(alpha, "AVIF"),
        "gif": encode(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "bmp": encode(image, "BMP"),
        "bmp palette": encode(image.quantize(16), "BMP"),
        "tiff": encode(image, "TIFF"),
        "tiff lzw": encode(image, "TIFF", compression="tiff_lzw"),
        "tiff deflate": encode(alpha, "TIFF", compression="tiff_adobe_deflate"),
        "tiff jpeg": encode(image, "TIFF", compression="jpeg"),
    }


def mutants(data: bytes, count: int, rng: np.random.Generator) -> list[bytes]:
    """Damaged copies: cut, flipped, overwritten, repeated and removed, more often near the start, where headers are."""
    found = []
    for n in range(count):
        b = bytearray(data)
        at = int(len(b) * rng.random() ** (3 if n % 2 else 1))
        match n % 6:
            case 0:
                del b[at:]
            case 1:
                for k in rng.integers(0, len(b), 1 + n % 5):
                    b[k] ^= 1 << int(rng.integers(8))
            case 2:
                b[at : at + 4] = rng.choice([b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x80\0\0\0"])
            case 3:
                b[at : at + 16] = rng.bytes(16)
            case 4:
                b[at:at] = b[at : at + 40]
            case 5:
                del b[at : at + 1 + n % 30]
        found.append(bytes(b))
    return found


def render_all(files: list[bytes], size: tuple[int, int] = SIZE, **options: Any) -> tuple[list[int], list[dict]]:
    """Statuses by file and the ledger, each file beside a good one whose pixels must not change."""
    good = encode(photo(64, 48, 7), "PNG")
    sizes = [size] * len(files) + [SIZE]
    made = renderer(source(sizes, bytes=[*files, good]), {"prefix_tokens": 1}, **options)
    last = len(files)
    pending = []
    for n in range(len(files)):
        bad = planned(n, 13, size, (3, 4), kept=9)
        pending.append(made.submit(batch([[planned(last, 0, SIZE, (3, 4)), bad, planned(last, 23, SIZE, (3, 4))]])))
    want = made.submit(batch([[planned(last, 0, SIZE, (3, 4))]])).wait(60)["patches"][0, :13].copy()
    statuses = []
    for p in pending:
        got = p.wait(60)
        assert got is not None
        status = got["status"][0]
        assert (status[0], status[2]) == (1, 1)
        assert np.array_equal(got["patches"][0, :13], want)
        assert np.array_equal(got["patches"][0, 23:36], want)
        assert not got["patches"][0, 36:].any()
        if status[1] == 2:
            assert not got["patches"][0, 13:23].any()
            assert (got["segment_ids"][0, 13:23] == -1).all()
        statuses.append(int(status[1]))
    ledger = made.failures()
    made.close()
    assert {e["image"] for e in ledger} == {n for n, s in enumerate(statuses) if s == 2}
    assert {e["reason"] for e in ledger} <= REASONS
    assert all(e["detail"] and e["stage"] in ("fetch", "decode") for e in ledger)
    return statuses, ledger


def test_the_seeds_are_good() -> None:
    assert render_all(list(seeds().values()))[0] == [1] * len(seeds())


@pytest.mark.parametrize("name", seeds())
def test_damaged_files_are_masked_and_entered(name: str) -> None:
    """2,000 mutants of each format, shared out among its seeds."""
    rng = np.random.default_rng(list(seeds()).index(name))
    alike = sum(other.split()[0] == name.split()[0] for other in seeds())
    files = mutants(seeds()[name], -(-PER_FORMAT // alike), rng)
    start = time.monotonic()
    statuses, ledger = render_all(files, threads=2)
    assert time.monotonic() - start < 60
    assert len(files) // 8 < statuses.count(2) == len(ledger)


@pytest.mark.parametrize("name", seeds())
def test_every_truncation_of_a_header_is_survived(name: str) -> None:
    data = seeds()[name]
    statuses, _ = render_all([data[:n] for n in range(min(len(data) - 1, 120))])
    assert set(statuses) == {2}


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _png(width: int, height: int, depth: int = 8, colour: int = 2) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", body) + _chunk(b"IEND", b"")


def bombs() -> dict[str, tuple[bytes, tuple[int, int]]]:
    """Tiny files that claim to be vast, with the (height, width) that they claim."""
    jpeg = bytearray(encode(photo(64, 48), "JPEG"))
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = struct.pack(">HH", 65500, 65500)
    gif = bytearray(encode(photo(64, 48).quantize(8), "GIF"))
    gif[6:10] = struct.pack("<HH", 65535, 65535)
    bmp = bytearray(encode(photo(64, 48), "BMP"))
    bmp[18:26] = struct.pack("<ii", 60000, 60000)
    tiff = bytearray(encode(photo(64, 48), "TIFF"))
    (first,) = struct.unpack_from("<I", tiff, 4)
    for n in range(struct.unpack_from("<H", tiff, first)[0]):
        entry = first + 2 + 12 * n
        if struct.unpack_from("<H", tiff, entry)[0] in (256, 257, 278):  # width, height, rows per strip
            struct.pack_into("<HII", tiff, entry + 2, 4, 1, 60000)
    progressive = bytearray(encode(photo(64, 48), "JPEG", progressive=True))
    at = progressive.index(b"\xff\xc2") + 5
    progressive[at : at + 4] = struct.pack(">HH", 65500, 65500)
    webp = bytearray(encode(photo(64, 48), "WEBP"))
    webp[26:30] = struct.pack("<HH", 16383, 16383)
    return {
        "jpeg progressive": (bytes(progressive), (65500, 65500)),
        "webp": (bytes(webp), (16383, 16383)),
        "png": (_png(60000, 60000), (60000, 60000)),
        "png, 16 bits": (_png(40000, 40000, 16, 6), (40000, 40000)),
        "jpeg": (bytes(jpeg), (65500, 65500)),
        "gif": (bytes(gif), (65535, 65535)),
        "bmp": (bytes(bmp), (60000, 60000)),
        "tiff": (bytes(tiff), (60000, 60000)),
    }


def _peak() -> int:
    text = Path("/proc/self/status").read_text()
    return int(text.split("VmHWM:")[1].split()[0]) * 1024


@pytest.mark.parametrize("name", bombs())
@pytest.mark.parametrize("indexed", [True, False], ids=["the index agrees", "the index does not"])
def test_a_bomb_is_refused_by_its_header(name: str, indexed: bool) -> None:
    data, claimed = bombs()[name]
    before = _peak()
    _, ledger = render_all([data], claimed if indexed else SIZE)
    assert [e["reason"] for e in ledger] == ["too_large"]
    assert _peak() - before < 200 * 2**20


def test_the_cap_is_on_pixels() -> None:
    data = encode(photo(64, 48), "PNG")
    assert render_all([data], max_pixels=64 * 48)[0] == [1]
    # The good neighbour is of the same size, so the renderer is asked for the one file alone.
    made = renderer(source([SIZE], bytes=[data]), max_pixels=64 * 48 - 1)
    assert made.submit(batch([[planned(0, 0, SIZE, (3, 4))]])).wait(30)["status"][0, 0] == 2
    assert [e["reason"] for e in made.failures()] == ["too_large"]
    made.close()


def test_a_progressive_file_of_endless_scans_is_refused() -> None:
    """The last scan of a progressive file, repeated thousands of times: seconds of work in a few hundred kilobytes."""
    data = encode(photo(640, 427), "JPEG", progressive=True, quality=20)
    last = data.rindex(b"\xff\xda")
    endless = data[:last] + data[last:-2] * 3000 + data[-2:]
    start = time.monotonic()
    _, ledger = render_all([endless], (427, 640))
    assert [e["reason"] for e in ledger] == ["corrupt"]
    assert time.monotonic() - start < 20


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"\xff\xd8",
        b"\xff\xd8\xff\xd9",
        b"GIF89a",
        b"BM",
        b"RIFF\0\0\0\0WEBP",
        b"II*\0",
        b"<svg/>",
        b"\x89PNG\r\n\x1a\n",
        b"a text file named .jpg",
        bytes(100),
        b"\0\0\0\x1cftypavif" + bytes(40),
    ],
)
def test_what_is_no_image_is_one_entry(data: bytes) -> None:
    statuses, ledger = render_all([data])
    assert statuses == [2]
    assert ledger[0]["reason"] in REASONS


def test_a_harmless_warning_does_not_cost_an_image() -> None:
    """Stray bytes before a marker: no pixel depends on them, and data sets are full of them."""
    data = encode(photo(64, 48), "JPEG")
    at = data.index(b"\xff\xdb")
    for stray in (data[:at] + b"\0\0\0" + data[at:], data[:-2] + bytes(5) + data[-2:]):
        assert Image.open(io.BytesIO(stray)).size == (64, 48)
        made = renderer(source([SIZE] * 2, bytes=[data, stray]))
        got = made.submit(batch([[planned(0, 0, SIZE, (3, 4)), planned(1, 12, SIZE, (3, 4))]])).wait(30)
        made.close()
        assert got["status"][0, :2].tolist() == [1, 1]
        assert np.array_equal(got["patches"][0, :12], got["patches"][0, 12:24])
