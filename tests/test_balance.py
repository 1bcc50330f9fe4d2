"""`plan.balance`: sequences change places within their windows alone, runs of them cost attention alike, and neither size nor
anything else goes with the step."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from navit_loader import LoaderConfig, PackedLoader, RemoteLoader
from navit_loader.config import PlanConfig, Resolution
from navit_loader.errors import ConfigError
from navit_loader.summary import slowest_rank

from .service_kit import PLAN, Daemon, digest, load, make_config
from .test_plan import columns, configs, make, sequences

UNEVEN = PlanConfig(sequence_length=4096, max_tokens=1024, resolution=Resolution(kind="uniform", low=64, high=512))
"""The issue's: sides U(64, 512), P = 16."""


def runs(layout: Any, run: int) -> Iterator[list[Any]]:
    """The sequences of each block, or of each of its runs of one patch size."""
    found = sequences(layout, 1)
    first = 0
    for count in layout.counts(0, layout.num_blocks).tolist():
        block = found[first : first + count]
        for at in range(0, count, run or count):
            yield block[at : at + (run or count)]
        first += count


@settings(max_examples=60, deadline=None)
@given(config=configs(), n=st.integers(1, 320), epoch=st.integers(0, 2), window=st.integers(8, 40))
def test_sequences_change_places_within_their_windows_alone(
    config: PlanConfig, n: int, epoch: int, window: int
) -> None:
    source = columns(n, 1, low=16, captions=config.text_tokens > 0)
    plain = make(config, source).layout(epoch)
    balanced = make(dataclasses.replace(config, balance=window), source).layout(epoch)
    for before, after in zip(runs(plain, plain.run), runs(balanced, balanced.run), strict=True):
        assert len(before) == len(after)
        for at in range(0, len(before), window):
            was, is_now = before[at : at + window], after[at : at + window]
            assert sorted(map(str, was)) == sorted(map(str, is_now))
    # And any batch without its predecessors, whatever its size.
    alone = make(dataclasses.replace(config, balance=window), source).layout(epoch)
    last = balanced.num_sequences - 1
    assert alone.batch(last // 2, 1).sequences == balanced.batch(last // 2, 1).sequences
    assert plain.report(0, plain.num_blocks)["tail"] == balanced.report(0, balanced.num_blocks)["tail"]


def test_a_window_is_another_plan_and_none_is_the_same() -> None:
    assert "balance" not in PlanConfig().to_json()
    assert '"balance":256' in PlanConfig(balance=256).to_json()
    with pytest.raises(
        ConfigError, match="balance = 7 is not allowed; it must be 0, or between 8 and 4194304 sequences"
    ):
        PlanConfig(balance=7)
    assert LoaderConfig(plan=PlanConfig(balance=64)).for_evaluation().plan.balance == 0


@pytest.fixture(scope="module")
def uneven() -> dict[int, Any]:
    """An epoch of 25,000 sequences, as it is and in windows of 256."""
    source = columns(262_144, 4, low=512, high=1200)
    return {s: make(dataclasses.replace(UNEVEN, balance=s), source).layout(0) for s in (0, 256)}


@pytest.mark.parametrize(("batch", "world"), [(8, 8), (8, 2), (4, 8), (16, 8), (2, 8), (5, 8), (12, 3), (10, 7)])
def test_ranks_have_even_work(uneven: dict[int, Any], batch: int, world: int) -> None:
    chance, balanced = (slowest_rank(uneven[s], batch, world) for s in (0, 256))
    assert balanced - 1 < 0.6 * (chance - 1)
    if (batch, world) == (8, 8):
        assert balanced <= 1.02 < 1.06 < chance


def ranks(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The rank of each value, those of equal ones their mean."""
    _, at, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts + 1) / 2)[at]


def correlation(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    """Spearman's, in standard deviations of what chance gives."""
    return float(np.corrcoef(ranks(a), ranks(b))[0, 1] * np.sqrt(len(a)))


def test_size_goes_neither_with_the_step_nor_with_the_rank(uneven: dict[int, Any]) -> None:
    """Work and image size against the position in the epoch, in the window and among ranks, over four epochs."""
    source = columns(131_072, 4, low=512, high=1200)
    plan = make(dataclasses.replace(UNEVEN, balance=256), source)
    work, step, place, rank, leads = [], [], [], [], []
    for epoch in range(4):
        layout = plan.layout(epoch)
        counts = layout.counts(0, layout.num_blocks)
        work.append(layout.squares(0, layout.num_blocks))
        total = len(work[-1])
        step.append(np.arange(total) // 64)
        place.append(np.concatenate([np.arange(n) % 256 for n in counts]))
        rank.append(np.arange(total) // 8 % 8)
        first = 0
        for n in counts.tolist():
            windows = work[-1][first : first + n // 256 * 256].reshape(-1, 128, 2).astype(float)
            leads += list(windows.mean(1) @ (1, -1))
            first += n
    found = {
        name: correlation(np.concatenate(work), np.concatenate(of))
        for name, of in {"step": step, "place": place, "rank": rank}.items()
    }
    assert all(abs(z) < 4 for z in found.values()), found
    # Neighbours are a light and a heavy one: which comes first is drawn for each window.
    assert abs(np.mean(leads)) < 4 * np.std(leads) / len(leads) ** 0.5
    # Sizes of images, each by itself: the same, in the epoch that is read image by image.
    kept, at = [], []
    for i, (_, images) in enumerate(sequences(uneven[256], 64)[:8192]):
        kept += [image["kept"] for image in images]
        at += [i] * len(images)
    for of in (np.array(at), np.array(at) % 256, np.array(at) // 8 % 8):
        assert abs(correlation(np.array(kept), of)) < 4


BALANCED = PLAN.replace("patch_run = 8", "patch_run = 20\nbalance = 8")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_config(tmp_path_factory.mktemp("balance"), BALANCED)


def test_a_state_goes_on_in_another_world_and_daemons_agree(config: Path) -> None:
    def read(
        rank: int, world: int, state: dict[str, Any] | None, steps: int | None
    ) -> tuple[list[Any], dict[str, Any]]:
        with PackedLoader(None, load(config), rank, world) as loader:
            if state:
                loader.load_state_dict(state)
            found = [digest(batch) for _, batch in zip(range(steps or 10**6), loader, strict=False)]
            return found, loader.state_dict()

    whole, _ = read(0, 1, None, None)
    halves = [read(rank, 2, None, 3) for rank in (0, 1)]
    assert halves[0][1] == halves[1][1]
    rest = [read(rank, 3, halves[0][1], None)[0] for rank in range(3)]
    together = [b for step in zip(*(h[0] for h in halves), strict=True) for b in step]
    together += [b for step in zip(*rest, strict=True) for b in step]
    assert together[: len(whole)] == whole
    assert all(not batch_has_images(b) for b in together[len(whole) :])
    with Daemon(config) as daemon, RemoteLoader([daemon.endpoint], rank=1, world_size=2) as remote:
        assert [digest(batch) for batch in remote] == read(1, 2, None, None)[0]


def batch_has_images(digested: tuple[Any, ...]) -> bool:
    """Whether any slot of a digested batch has an image."""
    ids = next(field for field in digested if isinstance(field, tuple) and field[0] == "image_ids")
    return bool((np.frombuffer(ids[3], np.int64) >= 0).any())
