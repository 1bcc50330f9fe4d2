"""`Steps`: the state of a loader and the arithmetic of ranks, shared by `PackedLoader` and `RemoteLoader`.

In: a layout (where batches of an epoch start), rank and world size. Out: the first sequence of each of this rank's
batches, `len`, and a state that resumes onto any batch size and world size: step s of rank r takes batch s·W + r.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

from .._packer import Layout
from ..errors import ConfigError, StateError
from ..plan import identity
from . import boundary

STATE_KEYS = ("plan_id", "render_id", "epoch", "next_sequence")


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


class Steps(ABC):
    """Where a loader stands: `(plan_id, render_id, epoch, next sequence)` of the last batch handed to the user."""

    plan_id: str
    render_id: str

    def __init__(
        self,
        rank: int | None,
        world_size: int | None,
        batch_size: int,
        drop: bool,
        refresh: bool = False,
        agree: boundary.Agree | None = None,
    ) -> None:
        self.rank, self.world_size = rank_and_world(rank, world_size)
        boundary.check(refresh, agree, self.world_size)
        if batch_size < 1:
            raise ConfigError(f"batch_size = {batch_size} is not allowed; it must be at least 1")
        self.batch_size = batch_size
        self.drop = drop
        self._epoch = 0
        self._next = 0
        self._start = 0
        self._refresh, self._agree = refresh, agree
        # What was just opened is new enough for one rank alone.
        self._begun = 0 if agree is None else -1

    @abstractmethod
    def _look(self) -> str:
        """What an epoch that begins now would be read from, in words that ranks compare; `_take_up` settles on it."""

    @abstractmethod
    def _take_up(self) -> None:
        """Goes over to what `_look` saw last."""

    def _begin(self) -> None:
        """To be called before anything of an epoch is used: at its start, what was replaced is taken up.

        Raises:
            IndexFileError: the ranks see different indexes, or one has other classes than before.
        """
        if self._refresh and self._next == 0 and self._begun != self._epoch:
            boundary.settle(self._look, self._agree, self._epoch)
            self._take_up()
            self._begun = self._epoch

    @abstractmethod
    def _layout(self, epoch: int) -> Layout:
        """The layout of an epoch."""

    def _next_start(self, layout: Layout, first: int) -> int:
        """Where the batch after the one at `first` starts; a client asks its daemon for what the layout lacks."""
        found = layout.next(first, self.batch_size)
        assert found is not None, "a local layout always answers"
        return found

    def _whole(self, layout: Layout) -> Layout:
        """The layout with all its counts known."""
        layout.counts(0, layout.num_blocks)
        return layout

    @property
    def epoch(self) -> int:
        """The epoch that the current or next iteration reads."""
        return self._epoch

    def set_epoch(self, epoch: int) -> None:
        """Moves to the start of an epoch; nothing happens where it is the current one, so a resumed position stays."""
        if epoch < 0:
            raise StateError(f"epoch = {epoch} is not allowed; it must be at least 0")
        if epoch != self._epoch:
            self._epoch, self._next, self._start, self._begun = epoch, 0, 0, -1

    def __len__(self) -> int:
        """Steps of every rank from where the current or next iteration starts to the end of its epoch, exactly; behind an
        epoch's last batch, those of the next epoch.

        It never speaks to other ranks, so with `data.refresh` on several ranks an epoch's length is that of its own index only
        from its iteration on.
        """
        if self._start == 0 and self._agree is None:
            self._begin()
        for epoch, start in ((self._epoch, self._start), (self._epoch + 1, 0)):
            steps = self._whole(self._layout(epoch)).steps(start, self.batch_size, self.world_size, self.drop)
            if steps or start == 0:
                break
        return steps

    def state_dict(self) -> dict[str, Any]:
        """The position behind the last batch handed out. The same on every rank after the same number of steps."""
        return {
            "plan_id": self.plan_id,
            "render_id": self.render_id,
            "epoch": self._epoch,
            "next_sequence": self._next,
        }

    def load_state_dict(self, state: dict[str, Any], *, other_renderer: bool = False) -> None:
        """Goes to a saved position, of any rank, world size or batch size.

        Args:
            state: from `state_dict`.
            other_renderer: accept a state of another `render_id`: the same plan with other pixels.

        Raises:
            StateError: the state is of another plan or renderer, or no state at all; both ids and what differs are named.
                With `data.refresh` a state at the start of an epoch may be of an older index: that epoch is read from the
                new one.
        """
        if set(state) != set(STATE_KEYS):
            raise StateError(f"a loader state has the keys {', '.join(STATE_KEYS)}; this one has {', '.join(state)}")
        epoch, sequence = state["epoch"], state["next_sequence"]
        if not (isinstance(epoch, int) and isinstance(sequence, int) and epoch >= 0 and sequence >= 0):
            raise StateError(f"epoch = {epoch!r}, next_sequence = {sequence!r} must be whole numbers of at least 0")
        other_index = identity.same_but_for_index(str(state["plan_id"]), self.plan_id)
        renewed = self._refresh and sequence == 0 and other_index
        if state["plan_id"] != self.plan_id and not renewed:
            where = f"; it stands in the middle of epoch {epoch}, and a new index is taken up where an epoch begins"
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
        self._epoch, self._next, self._start = epoch, sequence, sequence

    def _walk(self, layout: Layout, start: int) -> Iterator[tuple[int, int]]:
        """For each step from `start`: the first sequence of this rank's batch, and where the next step starts."""
        position = start
        while True:
            firsts = [position]
            for _ in range(self.world_size):
                firsts.append(self._next_start(layout, firsts[-1]))
            total = layout.num_sequences
            if total is not None and position >= total:
                return
            if self.drop and total is not None and firsts[-1] >= total:
                # The last step counts only where it is whole; the table knows.
                self._whole(layout)
                if layout.steps(position, self.batch_size, self.world_size, True) == 0:
                    return
            yield firsts[self.rank], firsts[-1]
            position = firsts[-1]
