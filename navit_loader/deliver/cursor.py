"""`Cursor`: where a loader stands, and the arithmetic of ranks. No threads, no files, no sockets.

In: rank, world size, batch size, and a layout (where the batches of an epoch start). Out: the first sequence of each of this
rank's batches, the number of steps, and a state that resumes onto any batch size and world size: step s of rank r takes batch
s·W + r.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from ..errors import ConfigError, StateError
from ..plan import identity

STATE_KEYS = ("plan_id", "render_id", "epoch", "next_sequence")

Step = tuple[int, int]
"""First sequence of this rank's batch, and where the next step starts."""


class Steps(Protocol):
    """What is asked of a layout; those of the engine and of a daemon's plan both have it."""

    @property
    def num_sequences(self) -> int | None: ...  # noqa: D102
    def next(self, first: int, batch_size: int) -> int | None: ...  # noqa: D102
    def steps(self, first: int, batch_size: int, world_size: int, drop: bool) -> int: ...  # noqa: D102


def rank_and_world(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """Rank and world size, from torchrun's environment (`RANK`, `WORLD_SIZE`) where they are not given.

    Raises:
        ConfigError: the rank is not below the world size, or the environment holds no numbers.
    """
    try:
        rank = int(os.environ.get("RANK", "0")) if rank is None else rank
        world_size = int(os.environ.get("WORLD_SIZE", "1")) if world_size is None else world_size
    except ValueError as e:
        raise ConfigError(f"RANK and WORLD_SIZE must be whole numbers: {e}") from None
    if world_size < 1 or not 0 <= rank < world_size:
        raise ConfigError(f"rank = {rank} of world_size = {world_size} is not allowed; 0 <= rank < world_size")
    return rank, world_size


class Cursor:
    """The position behind the last batch handed to the user.

    Args:
        rank, world_size: as for `rank_and_world`.
        batch_size: B.
        drop: whether an epoch's last step counts only where it is whole for all ranks.

    Attributes:
        epoch: which the current or next iteration reads.
        next: first sequence of the next step.
        start: first sequence of the current iteration's first step.
        ended: whether the epoch has no step behind the position, as far as that is known.
        plan_id, render_id: what the position is of.

    Raises:
        ConfigError: a rank or batch size that is not allowed.
    """

    plan_id: str
    render_id: str

    def __init__(self, rank: int | None, world_size: int | None, batch_size: int, drop: bool) -> None:
        self.rank, self.world_size = rank_and_world(rank, world_size)
        if batch_size < 1:
            raise ConfigError(f"batch_size = {batch_size} is not allowed; it must be at least 1")
        self.batch_size, self.drop = batch_size, drop
        self.move(0)

    def move(self, epoch: int, sequence: int = 0) -> None:
        """Goes to a position."""
        self.epoch, self.next, self.start, self.ended = epoch, sequence, sequence, False

    def advance(self, epoch: int, sequence: int, layout: Steps) -> None:
        """Goes behind a batch that is handed out; counts nothing that is not known yet."""
        self.epoch, self.next = epoch, sequence
        total = layout.num_sequences
        near = total is not None and sequence + self.batch_size * self.world_size >= total
        self.ended = near and self._steps(layout, sequence) == 0

    def state_dict(self) -> dict[str, Any]:
        """The position with its two ids. The same on every rank after the same number of steps; behind an epoch's last step it
        is the start of the next one, which may be read from a new index."""
        place = (self.epoch + 1, 0) if self.ended else (self.epoch, self.next)
        return dict(zip(STATE_KEYS, (self.plan_id, self.render_id, *place), strict=True))

    def load_state_dict(self, state: dict[str, Any], *, other_renderer: bool = False, refresh: bool = False) -> None:
        """Goes to a saved position, of any rank, world size or batch size.

        Args:
            state: from `state_dict`.
            other_renderer: accept another `render_id`.
            refresh: accept the start of an epoch of an older index.

        Raises:
            StateError: the state is of another plan or renderer, or no state at all; both ids and what differs are named.
        """
        if set(state) != set(STATE_KEYS):
            raise StateError(f"a loader state has the keys {', '.join(STATE_KEYS)}; this one has {', '.join(state)}")
        epoch, sequence = state["epoch"], state["next_sequence"]
        if not (isinstance(epoch, int) and isinstance(sequence, int) and epoch >= 0 and sequence >= 0):
            raise StateError(f"epoch = {epoch!r}, next_sequence = {sequence!r} must be whole numbers of at least 0")
        other_index = identity.same_but_for_index(str(state["plan_id"]), self.plan_id)
        renewed = refresh and sequence == 0 and other_index
        if state["plan_id"] != self.plan_id and not renewed:
            where = f"; it stands in the middle of epoch {epoch}, and a new index is taken up where an epoch begins"
            if sequence == 0:
                where = (
                    f", or with data.refresh = true read epoch {epoch}, at whose start it stands, from the new index"
                )
            raise StateError(
                f"the state is of plan {state['plan_id']}, this loader has {self.plan_id} "
                f"({identity.difference(str(state['plan_id']), self.plan_id, identity.PLAN_PARTS)}); "
                f"open the index and the configuration that the state was saved with{where if other_index else ''}"
            )
        if state["render_id"] != self.render_id and not other_renderer and not renewed:
            raise StateError(
                f"the state is of renderer {state['render_id']}, this loader has {self.render_id} "
                f"({identity.difference(str(state['render_id']), self.render_id, identity.RENDER_PARTS)}); "
                "pass other_renderer=True to go on with other pixels"
            )
        self.move(epoch, sequence)

    def walk(self, layout: Steps) -> Iterator[Step]:
        """The steps from `start` to the end of the epoch."""
        position = self.start
        while True:
            firsts = [position]
            for _ in range(self.world_size):
                following = layout.next(firsts[-1], self.batch_size)
                assert following is not None, "planned here or asked for, it always answers"
                firsts.append(following)
            total = layout.num_sequences
            if total is not None and position >= total:
                return
            # The last step counts only where it is whole; the table knows.
            if self.drop and total is not None and firsts[-1] >= total and not self._steps(layout, position):
                return
            yield firsts[self.rank], firsts[-1]
            position = firsts[-1]

    def count(self, layout: Callable[[int], Steps]) -> int:
        """Steps from `start` to the end of the epoch; behind an epoch's last step, those of the next epoch.

        Args:
            layout: of an epoch.
        """
        steps = self._steps(layout(self.epoch), self.start)
        return steps if steps or self.start == 0 else self._steps(layout(self.epoch + 1), 0)

    def _steps(self, layout: Steps, first: int) -> int:
        return layout.steps(first, self.batch_size, self.world_size, self.drop)
