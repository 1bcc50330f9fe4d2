"""`navit_loader.pack`: invariants of every algorithm, and bad input by name."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from navit_loader import pack
from navit_loader.errors import PackError
from navit_loader.plan.packing import Algorithm

ALL = get_args(Algorithm)


@settings(max_examples=200, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 60), max_size=200),
    capacity=st.integers(60, 300),
    algorithm=st.sampled_from(ALL),
    lookahead=st.integers(1, 64),
    max_items=st.none() | st.integers(1, 9),
)
def test_items_tile_their_sequences(
    lengths: list[int], capacity: int, algorithm: Any, lookahead: int, max_items: int | None
) -> None:
    sequence, offset = pack(lengths, capacity, algorithm=algorithm, lookahead=lookahead, max_items=max_items)
    assert sequence.shape == offset.shape == (len(lengths),)
    for s in range(sequence.max() + 1 if len(lengths) else 0):
        mine = np.flatnonzero(sequence == s)
        assert 1 <= len(mine) <= (max_items or len(lengths))
        at = 0
        for item in mine[np.argsort(offset[mine])]:
            assert offset[item] == at
            at += lengths[item]
        assert at <= capacity


@settings(max_examples=60, deadline=None)
@given(data=st.data(), n=st.integers(1, 100))
def test_text_capacity_is_respected(data: st.DataObject, n: int) -> None:
    lengths = data.draw(st.lists(st.integers(1, 50), min_size=n, max_size=n))
    text = data.draw(st.lists(st.integers(0, 20), min_size=n, max_size=n))
    for algorithm in ("exact", "first_fit", "best_fit", "best_fit_decreasing", "next_fit"):
        sequence, _ = pack(lengths, 100, algorithm=algorithm, text_lengths=text, text_capacity=25)
        assert np.bincount(sequence, weights=text).max() <= 25
        assert np.bincount(sequence, weights=lengths).max() <= 100


def test_exact_beats_the_others_on_sides_of_64_to_256() -> None:
    rng = np.random.default_rng(0)
    side, aspect = rng.uniform(64, 256, 50_000), np.exp(rng.normal(0, 0.3, 50_000))
    h, w = (np.maximum(1, np.round(side * f / 16)) for f in (aspect**-0.5, aspect**0.5))
    lengths = np.minimum(h * w, 256).astype(np.int64)
    padding = {}
    for algorithm in ALL:
        sequence, _ = pack(lengths, 1024, algorithm=algorithm)
        padding[algorithm] = 1 - lengths.sum() / (1024 * (sequence.max() + 1))
    assert padding["exact"] < 2e-4
    assert padding["auto"] == padding["exact"]
    assert all(padding["exact"] < padding[a] for a in ALL if a not in ("exact", "auto"))


def test_auto_is_never_worse_where_items_can_fill_a_sequence() -> None:
    """Exact fill runs out of small items there; sorting does not."""
    rng = np.random.default_rng(0)
    side, aspect = rng.uniform(64, 256, 20_000), np.exp(rng.normal(0, 0.3, 20_000))
    h, w = (np.maximum(1, np.round(side * f / 16)) for f in (aspect**-0.5, aspect**0.5))
    lengths = np.minimum(h * w, 256).astype(np.int64)
    for capacity in (256, 300, 512, 1024):
        count = {a: pack(lengths, capacity, algorithm=a)[0].max() for a in ("exact", "best_fit_decreasing")}
        sequence, _ = pack(lengths, capacity)
        assert sequence.max() == min(count.values())
    assert count["exact"] < count["best_fit_decreasing"], "at 1,024 tokens"
    padding = 1 - lengths.sum() / (256 * (pack(lengths, 256)[0].max() + 1))
    assert padding < 0.012, "first fit pads 1.6 %, exact fill 2.8 %"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"lengths": [0], "capacity": 5}, r"lengths\[0\] = 0"),
        ({"lengths": [1, -3], "capacity": 5}, r"lengths\[1\] = -3"),
        ({"lengths": [1, 6], "capacity": 5}, r"lengths\[1\] = 6 is above the capacity 5"),
        ({"lengths": [float("nan")], "capacity": 5}, r"lengths\[0\] = nan"),
        ({"lengths": [1.5], "capacity": 5}, r"lengths\[0\] = 1.5"),
        ({"lengths": [2.0], "capacity": 5}, "dtype float64"),
        ({"lengths": ["a"], "capacity": 5}, "dtype"),
        ({"lengths": [[1, 2]], "capacity": 5}, "2 dimensions"),
        ({"lengths": [1], "capacity": 0}, "capacity = 0"),
        ({"lengths": [1], "capacity": 5, "max_items": 0}, "max_items = 0"),
        ({"lengths": [1], "capacity": 5, "lookahead": 0}, "lookahead = 0"),
        ({"lengths": [1], "capacity": 5, "algorithm": "best"}, "algorithm = 'best'"),
        ({"lengths": [1], "capacity": 5, "text_lengths": [1]}, "together"),
        ({"lengths": [1], "capacity": 5, "text_lengths": [1, 2], "text_capacity": 3}, "2 items"),
        ({"lengths": [1], "capacity": 5, "text_lengths": [4], "text_capacity": 3}, r"text_lengths\[0\] = 4"),
    ],
)
def test_bad_input_is_named(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(PackError, match=words):
        pack(**arguments)


def test_nothing_packs_to_nothing() -> None:
    sequence, offset = pack([], 10)
    assert sequence.shape == offset.shape == (0,)
