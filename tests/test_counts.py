"""Counts of an epoch's blocks, and what is kept of them on disk: whatever stands there, batches are the true ones."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from navit_loader import _packer
from navit_loader.config import Crop, PlanConfig
from navit_loader.errors import IndexFileError, StateError
from navit_loader.render.engine import Engine

from .service_kit import load, make_config


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_config(tmp_path_factory.mktemp("counts"))


def epoch_of(engine: Engine) -> list[object]:
    layout, found, first = engine.layouts.open(0), [], 0
    steps = layout.steps(0, 4, 1, False)
    for _ in range(steps):
        found.append(layout.batch(first, 4).sequences)
        first = layout.next(first, 4) or 0
    return [steps, found]


def damaged(good: bytes) -> Iterator[bytes]:
    chance = random.Random(5)
    for _ in range(70):
        content = bytearray(good)
        for _ in range(chance.choice([1, 1, 2, 30])):
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        yield bytes(content)
    for _ in range(30):
        at = chance.randrange(len(good))
        yield chance.choice([good[:at], good[:at] + bytes(len(good) - at), good + good[:at]])


def test_damaged_counts_on_disk_change_no_batch(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with Engine(load(config)) as engine:
        layout = engine.layouts.open(0)
        expected = epoch_of(engine)
        layout.counts(0, layout.num_blocks)
        engine.layouts.keep(0, layout)
        (kept,) = (tmp_path / "navit").iterdir()
        assert engine.layouts.open(0).num_sequences, "a good one is used"
        good = kept.read_bytes()
        for content in damaged(good):
            kept.write_bytes(content)
            assert epoch_of(engine) == expected
        # Counts of another epoch under this one's name, and such as an earlier version wrote.
        other = engine.layouts.open(1)
        other.counts(0, other.num_blocks)
        engine.layouts.keep(1, other)
        (kept.parent / kept.name.replace("-0.", "-1.")).rename(kept)
        assert epoch_of(engine) == expected
        np.save(kept, np.full(layout.num_blocks, 7, np.uint32))
        assert epoch_of(engine) == expected


def test_a_count_that_is_not_the_blocks_is_refused_when_it_is_planned(config: Path) -> None:
    with Engine(load(config)) as engine:
        counts = engine.layouts.open(0).counts(0, engine.plan.num_blocks)
        for wrong in (counts + 1, counts - 1, counts[::-1].copy() + np.arange(len(counts), dtype=np.uint32)):
            layout = engine.plan.layout(0)
            layout.extend(wrong)
            for _ in range(2):  # planned anew, and from those at hand
                with pytest.raises(StateError, match=r"block \d+ of epoch 0 has \d+ sequences, but its count said"):
                    [layout.batch(first, 1) for first in range(int(wrong.sum()))]


def test_a_row_that_no_image_has_is_named_when_it_is_planned() -> None:
    widths = np.full(1000, 64, np.int32)
    widths[617] = 0
    for crop in (Crop(), Crop(kind="random_resized")):
        plan = _packer.Plan(
            PlanConfig(block_images=50, crop=crop).to_json(),
            [{"path": "/data/x.arrow", "width": [widths], "height": [np.full(1000, 64, np.int32)]}],
            [(0, None, 1.0)],
        )
        for ask in (lambda layout: layout.counts(0, 20), lambda layout: layout.steps(0, 8, 1, True)):
            with pytest.raises(IndexFileError, match=r"'/data/x.arrow' is damaged: row 617 is 0 × 64 pixels"):
                ask(plan.layout(0))


def test_counting_a_large_epoch_ends_at_the_first_signal() -> None:
    script = """
import signal
import numpy as np
from navit_loader import _packer
from navit_loader.config import PlanConfig
signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever the shell that runs the tests ignores
columns = {name: [np.full(1000, 64, np.int32)] for name in ("width", "height")}
plan = _packer.Plan(PlanConfig(virtual_epoch=10**12).to_json(), [columns], [(0, None, 1.0)])
layout = plan.layout(0)
print("counting", flush=True)
layout.steps(0, 8, 1, True)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "counting\n"
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert "KeyboardInterrupt" in said
