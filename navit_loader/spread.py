"""Work in parts: what a command does once for each of many things, in this process or on many machines.

In: what is to be done, and the things. Out: the answers, as they come. Apart from whoever has such work and from whoever
spreads it (`fleet/jobs.py`), so that a room below says what a part is and knows of no cluster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Spread(Protocol):
    """Who does the parts."""

    def __call__(self, do: Callable[[T], R], items: Sequence[T], *, kept: bool = False) -> Iterator[tuple[int, R]]:
        """Yields the number of an item and the answer for it, in any order.

        Args:
            do: called with one item. It may be copied to other machines, which see the same files, and called again where one
                was lost: twice must leave what once does.
            items: the things.
            kept: whether `do` holds what is slow to make, so that a worker keeps its copy for all of its items.

        Raises:
            NavitError, OSError: what `do` raised, of whichever item came first.
        """


def here(do: Callable[[T], R], items: Sequence[T], *, kept: bool = False) -> Iterator[tuple[int, R]]:
    """A `Spread` over nothing: one item after the other, in this process."""
    return enumerate(map(do, items))
