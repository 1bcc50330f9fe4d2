"""What happens where an epoch begins: indexes that were replaced are taken up, by all ranks or by none.

In: what this rank sees now, and what all ranks say that they see. Out: one view for all of them, or one error. A plan is a
function of its indexes, so ranks that read different ones would have other images and another number of steps: they must
notice before the first batch. Apart from `cursor`, since it is the only place where ranks speak to one another.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from ..errors import ConfigError, IndexFileError, NavitError

Agree = Callable[[str], Sequence[str]]
"""Gives every rank's text, in the order of ranks, to every rank; such as an all-gather. It is called by all ranks alike."""

LOOKS = 4
"""A file is replaced for one rank before it is for another, so ranks that disagree look again."""
_PAUSE_S = 0.5


def check(refresh: bool, agree: Agree | None, world_size: int) -> None:
    """Refuses what could leave ranks with different plans.

    Raises:
        ConfigError: several ranks that cannot speak to one another.
    """
    if refresh and agree is None and world_size > 1:
        raise ConfigError(
            f"data.refresh = true with world_size = {world_size} needs agree=FUNCTION, by which ranks compare their indexes "
            "(torch.distributed.all_gather_object does it); navit-model gives it by itself"
        )


def settle(look: Callable[[], str], agree: Agree | None, epoch: int) -> None:
    """Looks until all ranks see the same.

    Args:
        look: says in one text what this rank would read.
        agree: the texts of all ranks; None for a rank alone.
        epoch: which begins.

    Raises:
        NavitError: from `look`, where that is what keeps failing.
        IndexFileError: the ranks see different indexes.
    """
    said: Sequence[str] = ()
    failure: NavitError | None = None
    for attempt in range(LOOKS):
        if attempt:
            time.sleep(_PAUSE_S)
        failure = None
        try:
            mine = look()
        except NavitError as e:
            # The others wait for an answer: they are told, and all look again.
            mine, failure = f"an error: {e}", e
        said = [mine] if agree is None else list(agree(mine))
        if failure is None and len(set(said)) == 1:
            return
        if agree is None:
            break
    if failure is not None:
        raise failure
    views = "; ".join(f"rank {rank} has {view}" for rank, view in enumerate(said))
    raise IndexFileError(
        f"the ranks see different indexes at the start of epoch {epoch}: {views}; give every host the same file, and begin "
        "again from the last state"
    )
