"""Formats that go through Pillow, and AVIF, of which some does: equal to Pillow's own pixels, by the common orientation
rule, in index, loader and `pack_images` alike; broken files are masked with a reason; helper processes come, crash and go
without harm."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from navit_loader import LoaderConfig, PackedLoader, _packer, build_index, foreign, open_index, pack_images
from navit_loader.config import RenderConfig
from navit_loader.errors import RenderError
from navit_loader.render.engine import Engine

sys.path.insert(0, str(Path(__file__).parent))
from rendering import LIMITS, batch, difference, encode, photo, planned, reference, source, unpatched

pillow_heif = pytest.importorskip("pillow_heif", reason="HEIF needs pillow-heif")
pillow_heif.register_heif_opener()

BACKGROUND = (10, 200, 30)


def _alpha(image: Image.Image) -> Image.Image:
    image = image.copy()
    image.putalpha(Image.radial_gradient("L").resize(image.size))
    return image


def _deep(width: int, height: int, kind: str) -> bytes:
    """16 bits of grey."""
    deep = np.linspace(0, 65535, width * height).reshape(height, width).astype(np.uint16)
    if kind == "PPM":
        return b"P5\n%d %d\n65535\n" % (width, height) + deep.astype(">u2").tobytes()
    return encode(Image.fromarray(deep), kind)


SQUARE = photo(128, 128)
FILES: dict[str, tuple[str, bytes]] = {
    "avif": ("avif", encode(photo(150, 130), "AVIF", quality=80)),
    "avif alpha": ("avif", encode(_alpha(photo(150, 130)), "AVIF", quality=90)),
    "heif": ("heif", encode(photo(150, 130), "HEIF", quality=80)),
    "jpeg 2000": ("jpeg2000", encode(photo(150, 130), "JPEG2000")),
    "jpeg 2000, bare": ("jpeg2000", encode(photo(150, 130), "JPEG2000", no_jp2=True)),
    "jpeg 2000 alpha": ("jpeg2000", encode(_alpha(photo(150, 130)), "JPEG2000")),
    "jpeg 2000 grey": ("jpeg2000", encode(photo(150, 130).convert("L"), "JPEG2000")),
    "ppm": ("ppm", encode(photo(150, 130), "PPM")),
    "pgm": ("ppm", encode(photo(150, 130).convert("L"), "PPM")),
    "pbm": ("ppm", encode(photo(150, 130).convert("1"), "PPM")),
    "ico": ("ico", encode(_alpha(SQUARE), "ICO", sizes=[(16, 16), (128, 128)])),
    "icns": ("icns", encode(_alpha(SQUARE.resize((256, 256))), "ICNS")),
    "dds": ("dds", encode(photo(150, 130), "DDS")),
    "sgi": ("sgi", encode(photo(150, 130), "SGI")),
    "tiff palette": ("tiff", encode(photo(150, 130).quantize(60), "TIFF")),
    "tiff cmyk": ("tiff", encode(photo(150, 130).convert("CMYK"), "TIFF")),
    "tiff palette, zip": ("tiff", encode(photo(150, 130).quantize(60), "TIFF", compression="tiff_adobe_deflate")),
    # Pillow reads QOI and, depending on its version, does not write it: one run of equal pixels, by hand.
    "qoi": ("qoi", b"qoif" + bytes([0, 0, 0, 62, 0, 0, 0, 1, 3, 0, 0xFE, 9, 99, 199, 0xFC, *([0] * 7), 1])),
}


def size_of(data: bytes) -> tuple[int, int]:
    """(height, width) after orientation, as the index has it."""
    found = _packer.probe_bytes(data, foreign.helpers())
    assert found
    return found


def rendered(
    data: bytes, size: tuple[int, int], grid: tuple[int, int], orientation: int = 1, **options: Any
) -> tuple[np.ndarray, dict[str, Any], list[dict[str, Any]]]:
    """u8 [h·16, w·16, 3], the fields of the batch, and the ledger."""
    changes = {k: options.pop(k) for k in ("crop", "flip") if k in options}
    config = RenderConfig(**{"threads": 1, "failure_limit": 1.0} | options)
    columns = source([size], [orientation], bytes=[data])
    made = _packer.Renderer(config.to_json(), LIMITS, [columns], foreign.helpers())
    got = made.submit(batch([[planned(0, 0, size, grid, **changes)]])).wait(60)
    got["profiles"] = made.stats()["profiles"]
    ledger = made.failures()
    made.close()
    return unpatched(got["patches"][0, : grid[0] * grid[1]], grid, 16), got, ledger


@pytest.mark.parametrize("name", FILES)
def test_pixels_equal_pillows(name: str) -> None:
    data = FILES[name][1]
    size = size_of(data)
    assert size == Image.open(io.BytesIO(data)).size[::-1]
    for grid in ((7, 8), (3, 3)):
        got, fields, _ = rendered(data, size, grid, background=BACKGROUND)
        assert fields["status"][0, 0] == 1
        mean, nearly_all, _ = difference(got, reference(data, grid, background=BACKGROUND))
        # Of black and white alone every edge overshoots, and Pillow clips between its passes.
        # The engine reads AVIF itself, and resizes U and V as they are stored.
        bounds = {"pbm": (4, 40), "avif": (1.5, 20), "avif alpha": (1.5, 20)}.get(name, (0.6, 6))
        assert mean <= bounds[0] and nearly_all <= bounds[1], (mean, nearly_all)


@pytest.mark.parametrize("kind", ["PPM", "TIFF", "JPEG2000"])
def test_of_sixteen_bits_the_high_byte_counts(kind: str) -> None:
    data = _deep(48, 32, kind)
    got, fields, _ = rendered(data, size_of(data), (2, 3))
    assert fields["status"][0, 0] == 1
    want = (np.linspace(0, 65535, 48 * 32).reshape(32, 48).astype(np.uint16) >> 8).astype(int)
    assert np.abs(got - want[..., None]).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["AVIF", "HEIF", "TIFF"])
def test_orientation_is_pillows(kind: str, orientation: int) -> None:
    image = photo(90, 70)
    if kind == "TIFF":
        data = encode(image.quantize(60), "TIFF", tiffinfo={0x0112: orientation})
    else:
        data = encode(image, kind, orientation, quality=90)
    # HEIF has a box of its own for turning, which its library obeys; EXIF there says nothing of the pixels.
    size = (70, 90) if orientation < 5 or kind == "HEIF" else (90, 70)
    assert size_of(data) == size
    crop = (5, 10, 51, 42)
    plan = batch([[planned(0, 0, size, (3, 2), crop=crop, flip=True)]])
    got = _packer.render_images([data], plan, LIMITS, RenderConfig().to_json(), foreign.helpers())
    assert got["status"][0, 0] == 1
    want = reference(data, (3, 2), crop=crop, flip=True)
    # The engine reads AVIF itself, and resizes U and V as they are stored.
    assert difference(unpatched(got["patches"][0, :6], (3, 2), 16), want)[0] <= (1.5 if kind == "AVIF" else 0.6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("foreign")
    suffixes = {"jpeg2000": "jp2", "heif": "heic"}
    (root / "images").mkdir()
    for name, (kind, data) in FILES.items():
        (root / "images" / f"{name.replace(' ', '_').replace(',', '')}.{suffixes.get(kind, kind)}").write_bytes(data)
    (root / "images" / "broken.avif").write_bytes(FILES["avif"][1][:60])
    (root / "images" / "film.avif").write_bytes(b"\0\0\0\x18ftypisom" + bytes(40))
    (root / "images" / "plain.png").write_bytes(encode(photo(150, 130), "PNG"))
    build_index(root / "images", root / "index.arrow", threads=2)
    return root


CONFIG = {
    "data": {"batch_size": 2},
    "plan": {
        "sequence_length": 256,
        "max_tokens": 64,
        "patch_sizes": [16],
        "resolution": {"kind": "uniform", "low": 64, "high": 96},
    },
}


def test_the_index_holds_them_and_lists_the_broken_ones(folder: Path) -> None:
    index = open_index(folder / "index.arrow")
    assert set(index.formats) == {kind for kind, _ in FILES.values()} | {"png"}
    assert index.num_rows == len(FILES) + 1
    reasons = {Path(line["name"]).name: line["reason"] for line in index.quarantine()}
    assert set(reasons) == {"broken.avif", "film.avif"}
    assert "avif" in reasons["broken.avif"]
    assert "not an image" in reasons["film.avif"]


def test_loader_and_pack_images_see_the_same(folder: Path) -> None:
    """Every image of an epoch, alone through `pack_images`' path, has the pixels that the loader gave."""
    index = open_index(folder / "index.arrow")
    with PackedLoader(index, LoaderConfig.from_dict(CONFIG | {"render": {"threads": 2}})) as loader:
        batches = list(loader)
        assert loader.failures() == []
    assert sum(b.num_images for b in batches) == index.num_rows
    for found in batches:
        for s, e in np.argwhere(found.status == 1):
            row = int(found.image_ids[s, e])
            data = Path(index.uri(row)).read_bytes()
            size, grid = tuple(found.sizes[s, e].tolist()), tuple(found.grids[s, e].tolist())
            plan = batch([[planned(0, 0, size, grid)]])
            alone = _packer.render_images([data], plan, LIMITS, RenderConfig().to_json(), foreign.helpers())
            slots = found.segment_ids[s] == e
            assert np.array_equal(found.patches[s, slots], alone["patches"][0, : grid[0] * grid[1]])


def test_pack_images_takes_bytes() -> None:
    config = LoaderConfig.from_dict(CONFIG)
    packed = pack_images([data for _, data in FILES.values()], config)
    assert (packed.status[packed.image_ids >= 0] == 1).all()
    assert packed.num_images == len(FILES)


def test_the_render_id_covers_pillow_where_it_is_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another version of Pillow is another render_id for these images, and the same one for JPEG and PNG."""
    plain = folder / "plain"
    plain.mkdir(exist_ok=True)
    (plain / "a.png").write_bytes(encode(photo(60, 60), "PNG"))
    build_index(plain, folder / "plain.arrow")

    def ids() -> list[str]:
        found = []
        for name in ("index.arrow", "plain.arrow"):
            with Engine(LoaderConfig.from_dict(CONFIG), folder / name) as engine:
                found.append(engine.render_id)
        return found

    before = ids()
    assert before == ids()
    monkeypatch.setattr("PIL.__version__", "0.0")
    after = ids()
    assert before[0] != after[0]
    assert before[1] == after[1]


def test_broken_files_are_masked_with_a_reason() -> None:
    """Cut and overwritten files of each format, indexed as if they were whole, beside a good one."""
    names = [name for name in FILES if name != "qoi"]
    rng = np.random.default_rng(0)
    files, sizes = [], []
    for name in names:
        data = FILES[name][1]
        size = size_of(data)
        noisy = bytearray(data)
        at = len(data) // 3
        noisy[at : at + 200] = rng.bytes(200)
        files += [data[: len(data) // 2], bytes(noisy), data[:40]]
        sizes += [size] * 3
    good = FILES["heif"][1]
    columns = source([*sizes, size_of(good)], bytes=[*files, good])
    config = RenderConfig(threads=2, failure_limit=1.0)
    made = _packer.Renderer(config.to_json(), LIMITS, [columns], foreign.helpers())
    last = len(files)
    want = None
    statuses = []
    for n, size in enumerate(sizes):
        pair = [planned(n, 0, size, (3, 4)), planned(last, 12, size_of(good), (3, 4))]
        got = made.submit(batch([pair])).wait(60)
        assert got["status"][0, 1] == 1
        want = got["patches"][0, 12:24].copy() if want is None else want
        assert np.array_equal(got["patches"][0, 12:24], want)
        statuses.append(int(got["status"][0, 0]))
    ledger = made.failures()
    made.close()
    assert {e["image"] for e in ledger} == {n for n, s in enumerate(statuses) if s == 2}
    assert set(statuses[2::3]) == {2}, "a file of 40 bytes is no image"
    assert statuses.count(2) >= 2 * len(names)
    assert {e["reason"] for e in ledger} <= {"truncated", "corrupt", "unsupported", "changed"}
    assert all(e["detail"] for e in ledger)


def _claims(kind: str) -> tuple[bytes, tuple[int, int]]:
    """A tiny file that claims to be vast."""
    if kind == "ppm":
        return b"P6\n60000 60000\n255\n" + bytes(100), (60000, 60000)
    if kind == "ico":
        # The icon says 128 × 128, the PNG inside it 60,000 × 60,000.
        inside = bytearray(FILES["ico"][1])
        at = inside.rindex(b"IHDR") + 4
        inside[at : at + 8] = (60000).to_bytes(4, "big") * 2
        inside[at + 13 : at + 17] = zlib.crc32(inside[at - 4 : at + 13]).to_bytes(4, "big")
        return bytes(inside), (128, 128)
    data = bytearray(FILES["jpeg 2000, bare"][1])
    at = data.index(b"\xff\x51") + 6
    data[at : at + 8] = (60000).to_bytes(4, "big") * 2
    return bytes(data), (60000, 60000)


@pytest.mark.parametrize("kind", ["ppm", "jpeg2000", "ico"])
def test_a_bomb_is_refused_before_it_is_decoded(kind: str) -> None:
    data, size = _claims(kind)
    start = time.monotonic()
    _, _, ledger = rendered(data, size, (3, 4))
    assert [e["reason"] for e in ledger] == ["too_large"]
    assert "render.max_pixels" in ledger[0]["detail"]
    assert time.monotonic() - start < 20


def test_a_file_that_changed_since_it_was_indexed() -> None:
    _, _, ledger = rendered(FILES["jpeg 2000"][1], (131, 150), (3, 4))
    assert [e["reason"] for e in ledger] == ["changed"]


def test_floating_point_samples_are_unsupported() -> None:
    data = encode(Image.fromarray(np.linspace(0, 1, 48 * 32, dtype=np.float32).reshape(32, 48)), "TIFF")
    _, _, ledger = rendered(data, (32, 48), (2, 3))
    assert [e["reason"] for e in ledger] == ["unsupported"]


@pytest.mark.parametrize("kind", ["AVIF", "HEIF"])
def test_profiles_are_counted(kind: str) -> None:
    """An embedded profile that does not name sRGB."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for profile, expected in ((srgb, 0), (srgb.replace(b"sRGB", b"none").replace(b"s\0R\0G\0B", b"n\0o\0n\0e"), 1)):
        data = encode(photo(64, 48), kind, icc_profile=profile)
        assert Image.open(io.BytesIO(data)).info["icc_profile"] == profile
        _, fields, _ = rendered(data, (48, 64), (2, 3))
        assert fields["status"][0, 0] == 1
        assert fields["profiles"] == expected


def _crashing(tmp_path: Path, body: str) -> Any:
    """Helpers that do something else with an image than answer."""
    script = tmp_path / "helper.py"
    script.write_text(f"import os, signal, sys\nsys.stdin.buffer.read(17)\n{body}\n")
    return _packer.Helpers([sys.executable, str(script)])


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "signal 11"),
        ("os.kill(os.getpid(), signal.SIGXCPU)", "did not come to an end"),
        ("sys.stdout.buffer.write(bytes(19)); sys.stdout.flush()", "no sense"),
        ("sys.stdout.buffer.write(b'\\xff' * 19); sys.stdout.flush()", "no sense"),
    ],
)
def test_a_helper_that_crashes_costs_one_image(tmp_path: Path, body: str, reason: str) -> None:
    columns = source([(130, 150)] * 2, bytes=[FILES["jpeg 2000"][1], encode(photo(150, 130), "PNG")])
    config = RenderConfig(threads=1, failure_limit=1.0)
    made = _packer.Renderer(config.to_json(), LIMITS, [columns], _crashing(tmp_path, body))
    got = made.submit(batch([[planned(0, 0, (130, 150), (3, 4)), planned(1, 12, (130, 150), (3, 4))]])).wait(60)
    assert got["status"][0, :2].tolist() == [2, 1]
    (entry,) = made.failures()
    made.close()
    assert entry["reason"] == "panic"
    assert reason in entry["detail"]


@pytest.mark.parametrize(
    ("body", "says"), [("os.kill(os.getpid(), signal.SIGKILL)", "memory"), ("sys.exit(3)", "exit status: 3")]
)
def test_a_helper_that_is_killed_or_cannot_start_masks_nothing(tmp_path: Path, body: str, says: str) -> None:
    columns = source([(130, 150)], bytes=[FILES["jpeg 2000"][1]])
    for helpers, words in ((_crashing(tmp_path, body), says), (_packer.Helpers(["/none/python"]), "/none/python")):
        made = _packer.Renderer(RenderConfig(threads=1).to_json(), LIMITS, [columns], helpers)
        with pytest.raises(RenderError, match=words):
            made.submit(batch([[planned(0, 0, (130, 150), (3, 4))]])).wait(60)
        assert made.failures() == []
        made.close()


def test_without_helpers_it_is_unsupported() -> None:
    made = _packer.Renderer(
        RenderConfig(threads=1, failure_limit=1.0).to_json(),
        LIMITS,
        [source([(130, 150)], bytes=[FILES["jpeg 2000"][1]])],
    )
    got = made.submit(batch([[planned(0, 0, (130, 150), (3, 4))]])).wait(60)
    assert got["status"][0, 0] == 2
    assert made.failures()[0]["reason"] == "unsupported"
    made.close()


def _children() -> list[int]:
    here = os.getpid()
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == here and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def test_helpers_end_with_their_owner_and_killed_ones_are_replaced() -> None:
    before = set(_children())
    helpers = _packer.Helpers(foreign.command())
    data = FILES["jpeg 2000"][1]
    assert _packer.probe_bytes(data, helpers) == (130, 150)
    (child,) = set(_children()) - before
    assert _packer.probe_bytes(data, helpers) == (130, 150)
    assert set(_children()) - before == {child}, "it is used again"
    os.kill(child, signal.SIGKILL)
    assert _packer.probe_bytes(data, helpers) == (130, 150)
    (other,) = set(_children()) - before
    assert other != child
    del helpers
    deadline = time.monotonic() + 10
    while set(_children()) - before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert set(_children()) == before


FORKS = """
import os, sys
from navit_loader import _packer, foreign
data = open(sys.argv[1], "rb").read()
found = _packer.probe_bytes(data, foreign.helpers())
child = os.fork()
if child == 0:
    own = _packer.probe_bytes(data, foreign.helpers()) == found
    # The parent's object ends here too, but not the parent's process.
    foreign._SHARED.clear()
    os._exit(0 if own else 1)
assert os.waitpid(child, 0)[1] == 0
helpers = set(open(f"/proc/self/task/{os.getpid()}/children").read().split())
assert _packer.probe_bytes(data, foreign.helpers()) == found
assert set(open(f"/proc/self/task/{os.getpid()}/children").read().split()) == helpers, "the same one serves on"
"""


def test_a_forked_child_has_helpers_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "image.jp2"
    path.write_bytes(FILES["jpeg 2000"][1])
    subprocess.run([sys.executable, "-c", FORKS, str(path)], check=True, timeout=60)


DIES = """
import os, sys
from navit_loader import _packer, foreign
assert _packer.probe_bytes(open(sys.argv[1], "rb").read(), foreign.helpers())
sys.stdout.write("ready\\n"); sys.stdout.flush()
if sys.argv[2] == "kill":
    os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("how", ["exit", "kill"])
def test_a_process_that_ends_leaves_no_helper(tmp_path: Path, how: str) -> None:
    """Helpers inherit the environment, so that they can be found by it after their parent is gone."""
    path = tmp_path / "image.jp2"
    path.write_bytes(FILES["jpeg 2000"][1])
    marker = f"navit-test-{os.getpid()}-{how}"
    with subprocess.Popen(
        [sys.executable, "-c", DIES, str(path), how],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"MARK": marker},
    ) as child:
        assert child.stdout
        assert child.stdout.readline() == "ready\n"
    deadline = time.monotonic() + 20

    def left() -> list[str]:
        found = []
        for env in Path("/proc").glob("[0-9]*/environ"):
            try:
                if marker.encode() in env.read_bytes():
                    found.append(env.parent.name)
            except OSError:
                continue
        return found

    while left() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left()
