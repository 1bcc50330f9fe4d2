"""DALI beside the Rust renderer on the same plan: every other field equal, pixels within a stated bound, whatever breaks."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from navit_loader import LoaderConfig, PackedLoader, build_index
from navit_loader.batch import FAILED, OK
from navit_loader.errors import ConfigError, RenderError

from .dali_kit import DEVICES, SIZE, VIEWS, both, host, impossible_table, jpeg, pixels, same_but_pixels, turned
from .rendering import difference, encode, photo, planned

pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is not installed: pip install nvidia-dali-cuda130")
from dataclasses import replace

from navit_loader.render.dali import DaliRenderer
from navit_loader.render.dali.pipeline import Runs
from navit_loader.render.device.runs import Chunk


def alpha(mode: str) -> Image.Image:
    image = photo(150, 130, 2).convert(mode)
    image.putalpha(Image.radial_gradient("L").resize(image.size))
    return image


OTHERS = {
    "jpeg cmyk": lambda o: encode(photo(150, 130).convert("CMYK"), "JPEG", o),
    "png": lambda o: encode(photo(150, 130), "PNG", o),
    "png 16 bits": lambda o: encode(
        Image.fromarray(np.asarray(photo(150, 130).convert("L")).astype(np.uint16) * 257), "PNG", o
    ),
    "png palette": lambda o: encode(photo(150, 130).quantize(60), "PNG", o),
    "png alpha": lambda o: encode(alpha("RGB"), "PNG", o),
    "webp": lambda o: encode(photo(150, 130), "WEBP", o, quality=80),
    "webp lossless": lambda o: encode(photo(150, 130), "WEBP", o, lossless=True),
    "webp alpha": lambda o: encode(alpha("RGB"), "WEBP", o, lossless=True),
    "gif": lambda o: encode(photo(150, 130).quantize(60), "GIF"),
    "bmp": lambda o: encode(photo(150, 130), "BMP"),
    "tiff": lambda o: encode(photo(150, 130), "TIFF"),
}
"""What goes to the CPU renderer, and so gives its very pixels."""


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("kind", "mean", "nearly_all"),
    [("4:4:4", 0.6, 8), ("4:2:2", 1.1, 14), ("4:2:0", 1.4, 18), ("progressive", 1.4, 18), ("grey", 0.1, 5)],
)
def test_jpeg_equals_the_rust_renderer(kind: str, mean: float, nearly_all: float, device: str) -> None:
    """At full size; chroma is resized as it is stored there, interpolated first by DALI. Grey shows that all else agrees."""
    files, sizes, sequences, orientations = turned(lambda o: jpeg(kind, o))
    options = {"orientations": orientations, "limits": VIEWS, "patch_size": 8, "batch_size": 5}
    want, encoded, _ = both(files, sizes, sequences, **options)
    with DaliRenderer(device) as dali:
        got = dali(encoded)
        assert dali.stats() == {"images": 16, "by_cpu": 0, "failed": 0, "pipelines": 1}
    same_but_pixels(got, want)
    # nvJPEG rounds its inverse DCT otherwise.
    more = 1.0 if device == "cpu" else 1.5
    for a, b in zip(pixels(got), pixels(want), strict=True):
        taken = b.any(-1)
        found = difference(a[taken], b[taken])
        assert found[0] <= mean * more and found[1] <= nearly_all * more, found
    scaled, encoded, _ = both(files, sizes, sequences, dct_scaling=True, **options)
    for a, b in zip(pixels(got), pixels(scaled), strict=True):
        assert difference(a, b)[0] <= 4 and difference(a, b)[1] <= 48


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", OTHERS)
def test_other_formats_give_the_cpu_renderers_pixels(name: str, device: str) -> None:
    files, sizes, sequences, orientations = turned(OTHERS[name])
    options = {"orientations": orientations, "limits": VIEWS, "patch_size": 8, "background": (10, 200, 30)}
    want, encoded, _ = both(files, sizes, sequences, **options)
    with DaliRenderer(device) as dali:
        got = dali(encoded)
        assert dali.stats() == {"images": 16, "by_cpu": 16, "failed": 0, "pipelines": 0}
    same_but_pixels(got, want)
    assert all(np.array_equal(a, b) for a, b in zip(pixels(got), pixels(want), strict=True))


def test_formats_that_pillow_reads_give_the_cpu_renderers_pixels(tmp_path: Path) -> None:
    """Through helper processes, beside a JPEG for DALI."""
    (tmp_path / "images").mkdir()
    for n, (suffix, kind) in enumerate((("jp2", "JPEG2000"), ("avif", "AVIF"), ("ppm", "PPM"), ("jpg", "JPEG"))):
        photo(150, 130, n + 1).convert("L" if kind == "JPEG" else "RGB").save(tmp_path / f"images/{n}.{suffix}", kind)
    build_index(tmp_path / "images", tmp_path / "index.arrow")
    config = LoaderConfig.from_dict({"data": {"batch_size": 1}, "plan": {"sequence_length": 256, "max_tokens": 64}})
    with (
        PackedLoader(tmp_path / "index.arrow", config) as cpu,
        PackedLoader(tmp_path / "index.arrow", config, decode="dali") as loader,
    ):
        (want,), (got,) = list(cpu), list(loader)
        same_but_pixels(got, want)
        assert (want.status == OK).sum() == 4 and loader._decoder.renderer is not None
        assert loader._decoder.renderer.stats() == {"images": 4, "by_cpu": 3, "failed": 0, "pipelines": 1}
    (jpeg_at,) = np.flatnonzero(want.image_ids[0] == 3)
    others = want.segment_ids != jpeg_at
    assert np.array_equal(got.patches[others], want.patches[others])


@pytest.mark.parametrize("filter", ["bicubic", "bilinear", "lanczos"])
@pytest.mark.parametrize("grid", [(2, 3), (9, 11)])
def test_filters_equal_up_and_down(filter: str, grid: tuple[int, int]) -> None:
    files = [encode(photo(150, 130).convert("L"), "JPEG", quality=95)]
    plan = [[planned(0, 0, SIZE, grid, crop=(3, 5, 101, 120))]]
    want, encoded, _ = both(files, [SIZE], plan, filter=filter)
    with DaliRenderer() as dali:
        got = dali(encoded)
    same_but_pixels(got, want)
    assert difference(got.patches, want.patches)[2] <= 2


def test_a_filter_that_dali_lacks_is_refused_by_name() -> None:
    _, encoded, _ = both([jpeg()], [SIZE], [[planned(0, 0, SIZE, (2, 3))]], filter="area")
    with DaliRenderer() as dali, pytest.raises(ConfigError, match=r"'area'.*bicubic.*decode = 'cpu'"):
        dali(encoded)


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


BAD = {
    "cut": cut,
    "zeros": lambda data: data[:-300] + bytes(300),
    "noise": lambda data: np.random.default_rng(0).bytes(len(data)),
    "other size": lambda data: jpeg(seed=3)[:2] + encode(photo(90, 90), "JPEG")[2:],
    "impossible table": impossible_table,
    "an early end": lambda data: data[:-400] + b"\xff\xd9" + data[-398:],
    "one byte": lambda data: b"\xff",
    "png cut": lambda data: cut(encode(photo(150, 130), "PNG")),
    "webp cut": lambda data: cut(encode(photo(150, 130), "WEBP", quality=80)),
}
"""All of it fails in the Rust renderer too; an impossible table passes the check of the markers and fails in DALI."""


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", BAD)
def test_a_bad_image_in_any_place_masks_its_slot_alone(
    kind: str, device: str, caplog: pytest.LogCaptureFixture
) -> None:
    """An end marker in the middle is all that DALI may take for an image: its decoder fills up what is missing."""
    good = [jpeg(seed=n + 1) for n in range(5)]
    plan = [
        [planned(0, 0, SIZE, (3, 4)), planned(1, 12, SIZE, (4, 4), kept=9), planned(2, 21, SIZE, (2, 2))],
        [planned(3, 0, SIZE, (5, 6), flip=True), planned(4, 30, SIZE, (3, 3))],
    ]
    _, undisturbed, _ = both(good, [SIZE] * 5, plan)
    with DaliRenderer(device) as dali:
        right = host(dali(undisturbed).patches)
        for at in range(5):
            files = [BAD[kind](data) if n == at else data for n, data in enumerate(good)]
            want, encoded, ledger = both(files, [SIZE] * 5, plan, failure_limit=1.0)
            s, e = divmod(at, 3)
            assert want.status[s, e] == FAILED and len(ledger) == 1
            got = dali(replace(encoded, slots=replace(encoded.slots, epoch=at)))
            if kind == "an early end" and got.status[s, e] == OK:
                continue
            same_but_pixels(replace(got, epoch=0), want)
            others = want.segment_ids != -1
            assert np.array_equal(host(got.patches)[others], right[others])
            entry = dali.failures()[-1]
            assert entry | {"epoch": 0, "uri": ""} == ledger[0] | {"uri": ""}
        assert np.array_equal(host(dali(undisturbed).patches), right)
        if kind == "impossible table":
            assert dali.stats()["pipelines"] == 6  # built anew after each failure
            assert "dali could not decode 1 of" in caplog.text


@pytest.mark.parametrize("device", DEVICES)
def test_several_bad_images_and_nothing_but_bad_images(device: str) -> None:
    bad = impossible_table(jpeg())
    plan = [[planned(n, 4 * n, SIZE, (2, 2)) for n in range(6)]]
    with DaliRenderer(device, failure_limit=1.0) as dali:
        for places in ({0, 2, 5}, set(range(6))):
            files = [bad if n in places else jpeg(seed=n + 1) for n in range(6)]
            want, encoded, _ = both(files, [SIZE] * 6, plan, failure_limit=1.0)
            same_but_pixels(dali(encoded), want)


def test_any_damage_inside_a_scan_leaves_the_neighbours_alone() -> None:
    """What DALI still decodes stays `ok`, as it may; what it does not is masked. Nothing else changes, nothing ends."""
    rng = np.random.default_rng(5)
    good = jpeg(seed=1)
    start = good.index(b"\xff\xda") + 20
    plan = [[planned(n, 6 * n, SIZE, (2, 3)) for n in range(3)]]
    _, encoded, _ = both([good] * 3, [SIZE] * 3, plan)
    with DaliRenderer(failure_limit=1.0) as dali:
        right = dali(encoded)
        for _ in range(25):
            damaged = bytearray(good)
            for at in rng.integers(start, len(good) - 2, 6):
                damaged[at] = rng.integers(0, 255)
            _, encoded, _ = both([good, bytes(damaged), good], [SIZE] * 3, plan, failure_limit=1.0)
            got = dali(encoded)
            assert got.status[0, :3].tolist() in ([OK, OK, OK], [OK, FAILED, OK])
            assert np.array_equal(got.patches[0, :6], right.patches[0, :6])
            assert np.array_equal(got.patches[0, 12:18], right.patches[0, 12:18])


def test_too_many_failures_stop_it_and_the_ledger_is_written(tmp_path: Path) -> None:
    plan = [[planned(n, 4 * n, SIZE, (2, 2)) for n in range(16)] for _ in range(5)]
    for s, sequence in enumerate(plan):
        for image in sequence:
            image["row"] += 16 * s
    _, encoded, _ = both([cut(jpeg())] * 80, [SIZE] * 80, plan, failure_limit=1.0)
    with DaliRenderer(ledger=str(tmp_path / "bad.jsonl")) as dali:
        with pytest.raises(RenderError, match="images failed"):
            dali(encoded)
    assert len((tmp_path / "bad.jsonl").read_text().splitlines()) >= 64


def test_bounded_runs_give_the_same() -> None:
    """With 16 MiB each run holds 4 MiB of pixels: a large image has one of its own."""
    sizes = [(1100, 1300), *[SIZE] * 300]
    files = [encode(photo(1300, 1100), "JPEG"), *[jpeg("grey")] * 300]
    plan = [
        [planned(64 * s + n, 2 * n, size, (1, 2)) for n, size in enumerate(sizes[64 * s : 64 * s + 64])]
        for s in range(5)
    ]
    want, encoded, _ = both(files, sizes, plan, limits={"max_images": 64})
    with DaliRenderer(memory_mb=16) as small, DaliRenderer() as large:
        one, other = small(encoded), large(encoded)
    same_but_pixels(one, want)
    assert np.array_equal(one.patches, other.patches)


def test_batches_under_way_come_back_in_order_and_closing_ends_all() -> None:
    plans = [[[planned(n, 6 * n, SIZE, (2, 3)) for n in range(1 + k)]] for k in range(4)]
    found = [both([jpeg(seed=n + 1) for n in range(4)], [SIZE] * 4, plan) for plan in plans]
    dali = DaliRenderer()
    waiting = [dali.submit(encoded) for _, encoded, _ in found]
    for rendering, (want, _, _) in zip(waiting, found, strict=True):
        same_but_pixels(rendering.wait(), want)
    dali.submit(found[0][1]).cancel()
    dali.close()
    dali.close()
    with pytest.raises(RenderError, match="closed"):
        dali(found[0][1])
    assert not [t for t in threading.enumerate() if t.name.startswith("navit-dali")]


def until(done: Any) -> None:
    late = time.monotonic() + 60
    while not done():
        assert time.monotonic() < late
        time.sleep(0.005)


def test_the_next_batch_is_decoded_while_this_one_is_used(tmp_path: Path) -> None:
    """Nobody waits for it: the caller does something else until it is there."""
    (tmp_path / "images").mkdir()
    for n in range(24):
        (tmp_path / f"images/{n:02d}.jpg").write_bytes(jpeg(seed=n + 1))
    build_index(tmp_path / "images", tmp_path / "index.arrow")
    config = LoaderConfig.from_dict({"data": {"batch_size": 1}, "plan": {"sequence_length": 256, "max_tokens": 64}})
    with PackedLoader(tmp_path / "index.arrow", config, decode="dali") as loader:
        batches = loader._rendered(0)
        next(batches)
        ahead = [rendering for rendering, _ in batches.gi_frame.f_locals["ahead"]]  # type: ignore[union-attr]
        assert ahead
        until(lambda: all(rendering.ready for rendering in ahead))
        batches.close()


def test_pixels_stay_where_dali_put_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """DLPack hands over addresses, for as long as a tensor lives; nothing is copied between DALI and the patch pass."""
    runs = Runs(torch.device("cpu"), "bicubic", 2, 1)
    files = [np.frombuffer(jpeg(seed=n + 1), np.uint8) for n in range(3)]
    crops = np.array([[0, 0, 130, 150]] * 3, np.float32)
    chunk = Chunk(files, crops, [np.full((3, 2), side, np.float32) for side in (64, 32)])
    runs.start(chunk)
    share, addresses = runs._pipeline.share_outputs, []

    def noting(**options: Any) -> Any:
        outputs = share(**options)
        addresses.extend([output[n].data_ptr() for n in range(3)] for output in outputs)
        return outputs

    monkeypatch.setattr(runs._pipeline, "share_outputs", noting)
    images = runs.take()
    assert [[image.data_ptr() for image in view] for view in images] == addresses
    kept = [image.clone() for image in images[0]]
    for _ in range(3):  # later runs write elsewhere
        runs.start(replace(chunk, files=files[::-1]))
        runs.take()
    assert all(torch.equal(a, b) for a, b in zip(images[0], kept, strict=True))


@pytest.mark.parametrize(
    ("field", "change", "says"),
    [
        ("spans", (0, 10**12), "span"),
        ("spans", (-5, 10), "span"),
        ("keys", 12345, "keys"),
    ],
)
def test_a_damaged_batch_is_refused(field: str, change: Any, says: str) -> None:
    _, encoded, _ = both([OTHERS["png"](1)], [SIZE], [[planned(0, 0, SIZE, (3, 4), kept=5)]])
    broken = getattr(encoded, field).copy()
    broken[0, 0] = change
    with DaliRenderer() as dali, pytest.raises(RenderError, match=says):
        dali(replace(encoded, **{field: broken}))


@pytest.mark.parametrize(
    ("field", "change"),
    [("positions", (0, 7)), ("segment_ids", 300), ("grids", (0, 0)), ("crops", (0, 0, 400, 10))],
)
def test_damaged_slots_are_refused_before_anything_is_read(field: str, change: Any) -> None:
    _, encoded, _ = both([jpeg()], [SIZE], [[planned(0, 0, SIZE, (3, 4))]])
    broken = getattr(encoded.slots, field).copy()
    broken[0, 0] = change
    with DaliRenderer() as dali, pytest.raises(RenderError, match="damaged"):
        dali(replace(encoded, slots=replace(encoded.slots, **{field: broken})))


def test_devices_and_configurations_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="'mps'"):
        DaliRenderer("mps")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="no CUDA device"):
            DaliRenderer("cuda")
    _, encoded, _ = both([jpeg()], [SIZE], [[planned(0, 0, SIZE, (3, 4))]])
    with DaliRenderer() as dali:
        dali(encoded)
        with pytest.raises(ConfigError, match="one for each configuration"):
            dali(replace(encoded, render=encoded.render | {"filter": "bilinear"}))


def test_closing_in_the_middle_ends_what_was_queued() -> None:
    plan = [[planned(n, 6 * n, SIZE, (2, 3)) for n in range(4)]]
    _, encoded, _ = both([jpeg(seed=n + 1) for n in range(4)], [SIZE] * 4, plan)
    for _ in range(5):
        dali = DaliRenderer()
        right = dali(encoded).patches
        waiting = [dali.submit(encoded) for _ in range(20)]
        dali.close()
        said = []
        for rendering in waiting:  # each is whole or an error, and none hangs
            try:
                assert np.array_equal(rendering.wait().patches, right)
            except RenderError as e:
                said.append(str(e))
        assert all("closed" in words for words in said)
        with pytest.raises(RenderError, match="closed"):
            dali.submit(encoded)


def test_dali_says_nothing_when_all_is_well(caplog: pytest.LogCaptureFixture) -> None:
    _, encoded, _ = both([jpeg()], [SIZE], [[planned(0, 0, SIZE, (3, 4))]])
    with caplog.at_level(logging.DEBUG), DaliRenderer() as dali:
        dali(encoded)
    assert not caplog.records
