"""`pack`: lengths → sequences, for anyone's items. The same engine packs inside the plan.

In: lengths, checked here. Out: for each item its sequence and its offset in it.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from .. import _packer
from ..errors import PackError

Algorithm = Literal["auto", "exact", "first_fit", "best_fit", "best_fit_decreasing", "spfhp", "next_fit"]


def pack(
    lengths: npt.ArrayLike,
    capacity: int,
    *,
    algorithm: Algorithm = "auto",
    lookahead: int = 32,
    max_items: int | None = None,
    text_lengths: npt.ArrayLike | None = None,
    text_capacity: int | None = None,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Packs items into sequences of at most `capacity` tokens; no item is ever split.

    Args:
        lengths: tokens of each item, whole numbers of at least 1, one dimension.
        capacity: tokens of a sequence.
        algorithm: `exact`, head-first exact fill: the oldest item first, then in order, then the subset of the next
            `lookahead` items that fills the sequence best. `auto` is `exact`, or `best_fit_decreasing` where that needs
            fewer sequences, as where one item can fill most of one. `first_fit` (NaViT, appendix A.3), `best_fit`,
            `best_fit_decreasing`, `spfhp` (Krell et al. 2021, offline on the histogram), `next_fit` (the baseline).
        lookahead: candidates for closing a sequence, for `exact` and `auto`.
        max_items: items of a sequence at most; None means no limit.
        text_lengths: a second length of each item, at least 0, within `text_capacity` per sequence.
        text_capacity: the second capacity; needed with `text_lengths`.

    Returns:
        `(sequence, offset)`, i64 `[N]` each.

    Raises:
        PackError: names the argument, the item, its value and what is allowed.
    """
    if algorithm not in get_args(Algorithm):
        raise PackError(f"algorithm = {algorithm!r} is not known; choose one of {', '.join(get_args(Algorithm))}")
    capacity = _count("capacity", capacity)
    lookahead = _count("lookahead", lookahead, 256)
    items = 2**32 - 1 if max_items is None else _count("max_items", max_items)
    first = _lengths("lengths", lengths, 1)
    second = None
    text_limit = 2**32 - 1
    if (text_lengths is None) != (text_capacity is None):
        raise PackError("text_lengths and text_capacity are given together or not at all")
    if text_lengths is not None and text_capacity is not None:
        if algorithm == "spfhp":
            raise PackError("algorithm = 'spfhp' knows no second capacity; use another one with text_lengths")
        second = _lengths("text_lengths", text_lengths, 0)
        text_limit = _count("text_capacity", text_capacity)
        if len(second) != len(first):
            raise PackError(f"text_lengths has {len(second)} items, lengths has {len(first)}; they must be equal")
    return _packer.pack(first, capacity, algorithm, lookahead, items, second, text_limit)


def _count(name: str, value: int, most: int = 2**31 - 1) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not 1 <= value <= most:
        raise PackError(f"{name} = {value!r} is not allowed; it must be a whole number between 1 and {most}")
    return int(value)


def _lengths(name: str, values: npt.ArrayLike, least: int) -> npt.NDArray[np.uint32]:
    array = np.asarray(values)
    if array.ndim != 1:
        raise PackError(f"{name} has {array.ndim} dimensions; it must have one")
    if array.size == 0:
        return np.zeros(0, np.uint32)
    if array.dtype.kind == "f":
        broken = np.flatnonzero(~np.isfinite(array) | (array != np.floor(array)))
        if broken.size:
            raise PackError(f"{name}[{broken[0]}] = {array[broken[0]]} is not a whole number")
        raise PackError(f"{name} has dtype {array.dtype}; pass whole numbers, such as {name}.astype('int64')")
    if array.dtype.kind not in "iu":
        raise PackError(f"{name} has dtype {array.dtype}; it must be a whole-number type")
    broken = np.flatnonzero((array < least) | (array > 2**31 - 1))
    if broken.size:
        value = array[broken[0]]
        raise PackError(f"{name}[{broken[0]}] = {value} is not allowed; it must be between {least} and {2**31 - 1}")
    return np.ascontiguousarray(array, np.uint32)
