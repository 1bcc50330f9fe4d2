"""`DevicePrefetcher`: the same batches on a device, the loader's interface, and the state of what the user has seen."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from navit_loader import PackedLoader, RemoteLoader
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


def check(config: Path, device: str) -> None:
    with PackedLoader(config=load(config)) as loader:
        expected = [digest(b) for _ in range(2) for b in loader]
    with PackedLoader(config=load(config)) as loader:
        ahead = DevicePrefetcher(loader, device)
        assert len(ahead) == len(loader)
        held = [b for _ in range(2) for b in ahead]  # held together: no batch is written over by a later one
        assert all(a.device.type == device for b in held for a in b.arrays().values())
        assert [on_host(b) for b in held] == expected


def test_batches_on_the_cpu_equal_the_loaders(config: Path) -> None:
    check(config, "cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_batches_on_the_gpu_equal_the_loaders(config: Path) -> None:
    check(config, "cuda")


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
