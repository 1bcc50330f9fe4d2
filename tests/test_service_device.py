"""`DevicePrefetcher`: the same batches on a device, the loader's interface, and the state of what the user has seen."""

from __future__ import annotations

import gc
import itertools
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from navit_loader import PackedLoader, RemoteLoader
from navit_loader.deliver import device
from navit_loader.deliver.device import DevicePrefetcher
from navit_loader.errors import ConfigError, StateError

from .service_kit import Daemon, digest, load, make_config


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("device")
    config = make_config(folder, count=160)
    config.write_text(config.read_text() + "\n[plan.teacher]\npatch_size = 4\nsequence_length = 128\nmax_tokens = 64\n")
    return config


def on_host(batch: Any) -> tuple[Any, ...]:
    head = (batch.epoch, batch.sequence, batch.patch_size, batch.max_seqlen, batch.prefix_tokens)
    arrays = {n: np.ascontiguousarray(a.cpu().numpy()) for n, a in batch.arrays().items()}
    return (*head, *((n, a.dtype.str, a.shape, a.tobytes()) for n, a in arrays.items()))


def check(config: Path, where: str, batch_size: int = 0) -> None:
    given = load(config)
    given = replace(given, data=replace(given.data, batch_size=batch_size or given.data.batch_size))
    with PackedLoader(config=given) as loader:
        expected = [digest(b) for _ in range(2) for b in loader]
    with PackedLoader(config=given) as loader:
        ahead = DevicePrefetcher(loader, where)
        assert len(ahead) == len(loader)
        held = [b for _ in range(2) for b in ahead]  # held together: no batch is written over by a later one
        assert all(a.device.type == where for b in held for a in b.arrays().values())
        assert [on_host(b) for b in held] == expected
        assert all(slot.held is None for slot in ahead._slots)  # the loader's memory is let go of


def test_batches_on_the_cpu_equal_the_loaders(config: Path) -> None:
    check(config, "cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("batch_size", [0, 256])
def test_batches_on_the_gpu_equal_the_loaders(config: Path, batch_size: int) -> None:
    """Small batches go through buffers, those of 256 sequences, some 40 MB, from where they were rendered."""
    check(config, "cuda", batch_size)


def test_a_batch_is_one_block_and_goes_as_it_lies(config: Path) -> None:
    with PackedLoader(config=load(config)) as loader:
        released: list[int] = []
        for batch in itertools.islice(loader, 2):
            arrays = batch.arrays()
            block = device._block(arrays.values())
            assert block is not None and "teacher.patches" in arrays
            moved = device._as_it_lies(block, arrays, torch.device("cpu"))
            assert list(moved) == list(arrays)
            for name, value in moved.items():
                assert value.numpy().dtype == arrays[name].dtype and np.array_equal(value.numpy(), arrays[name]), name
            assert block.bound is not block.bind(lambda: released.append(1)) and block.bound
        # Arrays of two blocks, or of none, are copied one by one.
        other = next(iter(loader)).arrays()
        assert device._block([arrays["patches"], other["patches"]]) is None
        assert device._block([np.zeros(3)]) is None
    assert not released
    del loader, batch, block, arrays, other, value, moved
    gc.collect()
    assert released


def test_over_shared_memory_too(config: Path) -> None:
    with PackedLoader(config=load(config)) as loader:
        expected = [digest(b) for b in loader]
    with Daemon(config) as daemon, RemoteLoader([daemon.endpoint]) as loader:
        assert [on_host(b) for b in DevicePrefetcher(loader, "cpu", depth=3)] == expected


def test_its_state_is_that_of_the_users_last_batch(config: Path) -> None:
    with PackedLoader(config=load(config)) as loader:
        expected = [digest(b) for b in loader]
    with PackedLoader(config=load(config)) as loader:
        ahead = DevicePrefetcher(loader, "cpu", depth=4)
        found = [on_host(b) for b in itertools.islice(ahead, 2)]
        state = ahead.state_dict()
        # The same prefetcher goes on from there, although the loader had run ahead.
        assert found + [on_host(b) for b in ahead] == expected
        assert ahead.state_dict()["epoch"] == 1
    with PackedLoader(config=load(config)) as loader:
        ahead = DevicePrefetcher(loader, "cpu")
        ahead.load_state_dict(state)
        assert found + [on_host(b) for b in ahead] == expected


def test_it_leaves_no_thread_and_passes_errors_on(config: Path) -> None:
    class Broken(PackedLoader):
        def __iter__(self) -> Any:
            yield from itertools.islice(super().__iter__(), 1)
            raise ValueError("from the loader")

    with Broken(config=load(config)) as loader:
        batches = iter(DevicePrefetcher(loader, "cpu"))
        next(batches)
        with pytest.raises(ValueError, match="from the loader"):
            next(batches)
    assert not [t for t in threading.enumerate() if t.name == "navit-device"]
    with PackedLoader(config=load(config)) as loader:
        ahead = DevicePrefetcher(loader, "cpu")
        batches = iter(ahead)
        next(batches)
        with pytest.raises(StateError, match="while an iteration runs"):
            ahead.set_epoch(3)
        with pytest.raises(StateError, match="while an iteration runs"):
            next(iter(ahead))
        with pytest.raises(ConfigError, match="depth = 0"):
            DevicePrefetcher(loader, "cpu", depth=0)
        batches.close()  # type: ignore[attr-defined]
        ahead.set_epoch(3)
        assert next(iter(ahead)).epoch == 3
    assert not [t for t in threading.enumerate() if t.name == "navit-device"]
