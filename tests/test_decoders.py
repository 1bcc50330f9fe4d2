"""Loaders with encoded delivery and another decoder: the same in process and from a daemon, exact resumption, the choice."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from navit_loader import LoaderConfig, PackedLoader, RemoteLoader, build_index
from navit_loader.deliver.device import DevicePrefetcher
from navit_loader.errors import ConfigError, RenderError, ServiceError, StateError
from navit_loader.render.encoded import EncodedBatch
from navit_loader.render.engine import Engine
from navit_loader.service import protocol

from .dali_kit import jpeg, same_but_pixels
from .service_kit import Daemon, digest, load, make_config

pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is not installed: pip install nvidia-dali-cuda130")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two patch sizes, a teacher, several blocks, failing images, and one file that is gone after indexing."""
    folder = tmp_path_factory.mktemp("decoders")
    config = make_config(folder, count=160)
    config.write_text(config.read_text() + "\n[plan.teacher]\npatch_size = 4\nsequence_length = 128\nmax_tokens = 64\n")
    next((folder / "images").rglob("0012.*")).unlink()
    return config


@pytest.fixture(scope="module")
def daemon(config: Path) -> Any:
    with Daemon(config) as daemon:
        yield daemon


def whole(batch: EncodedBatch) -> tuple[Any, ...]:
    arrays = ((n, a.dtype.str, a.shape, a.tobytes()) for n, a in batch.arrays().items())
    return (batch.epoch, batch.sequence, batch.patch_size, sorted(batch.render.items()), *arrays)


def test_encoded_batches_have_the_slots_of_packed_ones_and_the_files(config: Path) -> None:
    with PackedLoader(config=load(config)) as packed, PackedLoader(config=load(config)) as loader:
        names = set()
        for want, got in zip(packed, loader.encoded(), strict=True):
            assert loader.state_dict() == packed.state_dict()
            for name, array in want.arrays().items():
                found = got.slots.arrays()[name]
                if name.endswith("patches"):
                    assert found.shape == (*array.shape[:2], 0)
                elif not name.endswith(("status", "segment_ids")):  # bad pixels are not known yet
                    assert np.array_equal(found, array), name
            for s, e in np.argwhere(got.slots.status > 0).tolist():
                path = Path(got.uri(s, e))
                names.add(path.name)
                data = path.read_bytes() if path.exists() else b""
                assert got.file(s, e).tobytes() == data
                assert got.slots.status[s, e] == (1 if data else 2)
            assert got.nbytes == sum(a.nbytes for a in got.arrays().values())
        assert len(names) > 50
        assert [f["reason"] for f in loader.failures()] == ["missing"]


def test_a_daemons_encoded_batches_are_those_of_this_process(config: Path, daemon: Daemon) -> None:
    with PackedLoader(config=load(config)) as loader:
        expected = [whole(b) for _ in range(2) for b in loader.encoded()]
    with RemoteLoader([daemon.endpoint], prefetch=3) as loader:
        found = [whole(b) for b in itertools.islice(loader.encoded(), 3)]
        state = loader.state_dict()
    with RemoteLoader([daemon.endpoint]) as loader:
        loader.load_state_dict(state)
        found += [whole(b) for b in loader.encoded()]
        found += [whole(b) for b in loader.encoded()]
    assert found == expected


def test_every_field_but_pixels_is_the_cpu_decoders_wherever_it_runs(config: Path, daemon: Daemon) -> None:
    with (
        PackedLoader(config=load(config)) as cpu,
        PackedLoader(config=load(config), decode="dali") as here,
        RemoteLoader([daemon.endpoint], decode="dali") as there,
    ):
        for want, one, other in itertools.chain.from_iterable(zip(cpu, here, there, strict=True) for _ in range(2)):
            same_but_pixels(one, want)
            assert digest(one) == digest(other)
        assert here.render_id == there.render_id != cpu.render_id
        unread = {(f["epoch"], f["source"], f["image"]): f["reason"] for f in there.failures()}
        known = {(f["epoch"], f["source"], f["image"]): f["reason"] for f in cpu.failures() if f["reason"] != "missing"}
        assert unread == known and known
        everything = {(f["epoch"], f["source"], f["image"]): f["uri"] for f in here.failures()}
        assert everything == {(f["epoch"], f["source"], f["image"]): f["uri"] for f in cpu.failures()}


def test_resuming_at_any_step_gives_the_same_pixels(config: Path) -> None:
    def opened() -> PackedLoader:
        return PackedLoader(config=load(config), decode="dali")

    with opened() as loader:
        expected = [digest(b) for b in loader]
        assert loader.state_dict()["epoch"] == 1
    for stop in range(1, len(expected), 3):
        with opened() as loader:
            found = [digest(b) for b in itertools.islice(loader, stop)]
            state = loader.state_dict()
        with opened() as loader:
            loader.load_state_dict(state)
            assert len(loader) == len(expected) - stop
            assert found + [digest(b) for b in loader] == expected
    with opened() as loader:
        ahead = [digest(replace(b, **arrays(b), teacher=None)) for b in DevicePrefetcher(loader, "cpu")]
        assert len(ahead) == len(expected)


def arrays(batch: Any) -> dict[str, Any]:
    return {n: a.numpy() for n, a in batch.arrays().items() if "." not in n}


def test_another_decoder_says_so_and_needs_a_flag(config: Path) -> None:
    with PackedLoader(config=load(config), decode="dali") as loader:
        next(iter(loader))
        state = loader.state_dict()
    with PackedLoader(config=load(config)) as loader:
        with pytest.raises(StateError, match=r"the decoder.*other_renderer=True"):
            loader.load_state_dict(state)
        loader.load_state_dict(state, other_renderer=True)
        assert loader.decode == "cpu"
        assert loader.state_dict() == state | {"render_id": loader.render_id}


def test_auto_measures_both_says_what_it_chose_and_follows_a_state(
    config: Path, daemon: Daemon, caplog: pytest.LogCaptureFixture
) -> None:
    states = {}
    for decode in ("cpu", "dali"):
        with RemoteLoader([daemon.endpoint], decode=decode) as loader:
            next(iter(loader))
            states[decode] = loader.state_dict()
    with caplog.at_level("INFO", "navit_loader"), RemoteLoader([daemon.endpoint], decode="auto") as loader:
        assert loader.measured.keys() == {"cpu", "dali"} and min(loader.measured.values()) > 0
        assert loader.decode == max(loader.measured, key=loader.measured.__getitem__)
        assert f"decode = auto: {loader.decode} (" in caplog.text
        assert loader.state_dict() == states[loader.decode] | {"next_sequence": 0}
        for decode, state in states.items():
            loader.load_state_dict(state)
            assert (loader.decode, loader.state_dict()) == (decode, state)
            with PackedLoader(config=load(config), decode=decode) as right:
                right.load_state_dict(state)
                assert [digest(b) for b in loader] == [digest(b) for b in right]


def test_auto_measures_a_short_epoch_whole(tmp_path: Path) -> None:
    """Its last batches were made while it waited for the first ones, and take no time to fetch."""
    (tmp_path / "images").mkdir()
    for n in range(36):
        (tmp_path / f"images/{n:02d}.jpg").write_bytes(jpeg(seed=n))
    build_index(tmp_path / "images", tmp_path / "index.arrow")
    config = LoaderConfig.from_dict({"data": {"batch_size": 1}, "plan": {"sequence_length": 256, "max_tokens": 64}})
    least = float("inf")
    with PackedLoader(tmp_path / "index.arrow", config) as loader:
        for _ in range(3):
            start = time.perf_counter()
            assert 7 <= len(list(loader)) <= 9
            least = min(least, time.perf_counter() - start)
    with PackedLoader(tmp_path / "index.arrow", config, decode="auto") as loader:
        assert 36 / loader.measured["cpu"] > 0.2 * least


def test_auto_takes_the_cpu_where_dali_cannot_work(config: Path, caplog: pytest.LogCaptureFixture) -> None:
    area = load(config)
    area = replace(area, render=replace(area.render, filter="area"))
    with caplog.at_level("INFO", "navit_loader"), PackedLoader(config=area, decode="auto") as loader:
        assert loader.decode == "cpu" and not loader.measured
        assert "'area' is not one that decode = 'dali' has" in caplog.text
    with pytest.raises(ConfigError, match=r"'gpu'.*auto, cpu, dali"):
        PackedLoader(config=load(config), decode="gpu")  # type: ignore[arg-type]


def test_without_dali_the_message_says_what_to_install(config: Path) -> None:
    program = f"""
import sys
import time
sys.modules["nvidia"] = None
from navit_loader import LoaderConfig, PackedLoader
from navit_loader.errors import ConfigError
config = LoaderConfig.from_toml({str(config)!r})
with PackedLoader(config=config, decode="auto") as loader:
    assert loader.decode == "cpu" and sum(1 for _ in loader)
try:
    PackedLoader(config=config, decode="dali")
except ConfigError as e:
    print(e)
"""
    said = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    ).stdout
    assert "pip install nvidia-dali-cuda130 (our extra 'dali')" in said and "decode = 'cpu'" in said


def test_more_bytes_than_allowed_are_refused_on_both_sides(config: Path, daemon: Daemon) -> None:
    with RemoteLoader([daemon.endpoint], memory_mb=1, prefetch=64) as loader:
        with pytest.raises(ServiceError, match=r"the client .its memory_mb over its prefetch. allows 16,384"):
            next(loader.encoded())
    with Engine(load(config)) as engine:
        info = protocol.PlanInfo.of(engine, "config", 2**30)
        batch = engine.submit_encoded(0, 0, 4).wait()
        assert batch is not None
        assert engine.encoded_bytes(engine.layout(0).batch(0, 4)) >= batch.nbytes
        frames = protocol.batch_frames(batch)
        request = protocol.GetEncoded(count=4, limit=batch.nbytes)
        assert whole(protocol.read_encoded(info, request, batch.patch_size, frames)) == whole(batch)
        for wrong, says in (
            ((replace(request, limit=batch.nbytes - 1), batch.patch_size, frames), "were allowed"),
            ((request, batch.patch_size, frames[:-1]), "frames where"),
            ((request, batch.patch_size, [*frames[:-2], b"", frames[-1]]), "'file_offsets' has 0 bytes"),
            ((request, 7, frames), "patch size 7"),
        ):
            with pytest.raises(ServiceError, match=says):
                protocol.read_encoded(info, *wrong)
    tight = load(config)
    tight = replace(tight, render=replace(tight.render, memory_mb=16), data=replace(tight.data, batch_size=8))
    grown = Path(next(batch.uri(0, e) for e in range(12) if len(batch.file(0, e))))
    kept = grown.read_bytes()
    try:
        with Engine(tight) as engine:
            # A file that has grown since it was indexed is masked; it never takes more than the index says.
            grown.write_bytes(kept + bytes(40 << 20))
            found = [engine.submit_encoded(0, first, 8).wait() for first in (0, 8)]
            assert max(b.nbytes for b in found if b is not None) < 4 << 20
            assert "changed" in {f["reason"] for f in engine.failures()}
    finally:
        grown.write_bytes(kept)


def test_files_beyond_the_memory_are_refused_by_name(tmp_path: Path) -> None:
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 256, (2200, 2200, 3), np.uint8)
    (tmp_path / "images").mkdir()
    for n in range(2):
        Image.fromarray(noise).save(tmp_path / f"images/{n}.png", compress_level=0)
    build_index(tmp_path / "images", tmp_path / "big.arrow")
    config = LoaderConfig.from_dict({"render": {"memory_mb": 16}, "plan": {"sequence_length": 512, "max_tokens": 256}})
    with PackedLoader(tmp_path / "big.arrow", config) as loader:
        with pytest.raises(RenderError, match=r"render.memory_mb allows.*\.png' with 14"):
            next(loader.encoded())
