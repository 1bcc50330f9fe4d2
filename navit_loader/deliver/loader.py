"""`Loader`: what `next()` does, whoever makes the batches.

In: a cursor (which batch comes next), a supply (who makes it: the engine in this process, or daemons) and a decoder. Out: an
iterator over `PackedBatch` in plan order, asked for ahead, and the state behind the last one. `PackedLoader` and `RemoteLoader`
only say which supply it is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from typing import Any, NoReturn, Protocol, Self

from ..batch import PackedBatch
from ..errors import StateError
from ..render.encoded import EncodedBatch
from . import boundary
from .cursor import Cursor, Step, Steps
from .decoder import Decoder

Found = Generator[tuple[Any, int], None, None]
"""Batches, and where the step behind each starts."""


_FEW = 4  # blocks that tell about how long an epoch is


class Asked(Protocol):
    """A batch that was asked for: whether it is there, what became of it, and a way to give it up."""

    @property
    def ready(self) -> bool: ...  # noqa: D102
    def wait(self) -> Any: ...  # noqa: D102
    def cancel(self) -> None: ...  # noqa: D102


class Supply(Protocol):
    """Who makes a loader's batches.

    Attributes:
        plan_id, render_id: what they are made of.
    """

    plan_id: str
    render_id: str

    def layout(self, epoch: int) -> Steps:
        """How the sequences of an epoch fall into batches."""

    def counts(self, epoch: int, most: int) -> tuple[int, list[int]]:
        """Planning blocks of an epoch, and the sequences in each of the first ones, `most` of them at most."""

    def ask(self, epoch: int, steps: Iterator[Step], batch_size: int, encoded: bool) -> Iterator[tuple[Asked, int]]:
        """Asks for the batch of the next step each time that it is asked itself; steps are looked at ahead of that."""

    def ahead(self, encoded: bool) -> tuple[int, int]:
        """Of how few batches on their way on others are asked for, and up to how many."""

    def look(self) -> str:
        """What an epoch that begins now would be read from, in words that ranks compare; `take_up` settles on it."""

    def take_up(self) -> None:
        """Goes over to what `look` saw last."""

    def close(self) -> None:
        """Ends everything. Safe to call twice."""


class Loader:
    """Iterates the packed batches of an epoch.

    After an epoch's last batch the state moves to the start of the next one, so that `for epoch in range(n)` around
    `for batch in loader` needs nothing else. Breaking out of a loop and iterating again goes on behind the last batch.

    Attributes:
        rank, world_size: this process among those that share an epoch.
        batch_size: B.
        drop: whether an epoch's last step counts only where it is whole for all ranks.
        plan_id: names everything that decides what goes where.
        render_id: names everything that decides the pixels, the decoder included.
        decode: the name of the decoder in use, `cpu` for the engine's.
        measured: images per second of each decoder, over all ranks, where `decode = "auto"` measured them; else empty.
    """

    plan_id: str
    render_id: str
    decode: str

    def __init__(
        self, cursor: Cursor, supply: Supply, decoder: Decoder, refresh: bool, agree: boundary.Agree | None
    ) -> None:
        self._cursor, self._supply, self._decoder = cursor, supply, decoder
        self.rank, self.world_size = cursor.rank, cursor.world_size
        self.batch_size, self.drop = cursor.batch_size, cursor.drop
        self.measured = decoder.measured
        self._refresh, self._agree = refresh, agree
        # What was just opened is new enough for one rank alone.
        self._begun = 0 if agree is None else -1
        try:
            decoder.settle(lambda dali: self._rendered(cursor.epoch) if dali else self._ahead(cursor.epoch, False))
            self._name()
        except BaseException:
            self.close()
            raise

    @property
    def epoch(self) -> int:
        """The epoch that the current or next iteration reads."""
        return self._cursor.epoch

    def set_epoch(self, epoch: int) -> None:
        """Moves to the start of an epoch; nothing happens where it is the current one, so a resumed position stays."""
        if epoch < 0:
            raise StateError(f"epoch = {epoch} is not allowed; it must be at least 0")
        if epoch != self._cursor.epoch:
            self._cursor.move(epoch)
            self._begun = -1

    def state_dict(self) -> dict[str, Any]:
        """The position behind the last batch handed out. The same on every rank after the same number of steps."""
        return self._cursor.state_dict()

    def load_state_dict(self, state: dict[str, Any], *, other_renderer: bool = False) -> None:
        """Goes to a saved position, of any rank, world size or batch size.

        Args:
            state: from `state_dict`; with `decode = "auto"` its decoder is taken in place of the measured one.
            other_renderer: accept a state of another `render_id`: the same plan with other pixels.

        Raises:
            StateError: the state is of another plan or renderer, or no state at all; both ids and what differs are named.
                With `data.refresh` a state at the start of an epoch may be of an older index: that epoch is read from the
                new one.
        """
        if not isinstance(state, dict):
            raise StateError(f"state = {state!r} is no state of a loader; give what state_dict() gave")
        if not other_renderer:
            self._decoder.follow(str(state.get("render_id", "")))
            self._name()
        self._cursor.load_state_dict(state, other_renderer=other_renderer, refresh=self._refresh)

    def __len__(self) -> int:
        """Steps of every rank from where the current or next iteration starts to the end of its epoch, exactly; behind an
        epoch's last batch, those of the next epoch.

        It never speaks to other ranks, so with `data.refresh` on several ranks an epoch's length is that of its own index only
        from its iteration on.
        """
        if self._cursor.start == 0 and self._agree is None:
            self._begin()
        return self._cursor.count(self._supply.layout)

    def steps_about(self) -> int:
        """About as many steps as `len` of a whole epoch, from the counts of its first blocks: quick, however large it is."""
        blocks, counts = self._supply.counts(self.epoch, _FEW)
        cursor = self._cursor
        if len(counts) == blocks:
            return self._supply.layout(self.epoch).steps(0, cursor.batch_size, cursor.world_size, cursor.drop)
        return round(sum(counts) / len(counts) * blocks / (cursor.batch_size * cursor.world_size))

    def __iter__(self) -> Iterator[PackedBatch]:
        """The batches from the current position to the end of the epoch; behind its last batch, those of the next epoch.

        Raises:
            RenderError: a batch could not be rendered; the state still names it.
        """
        yield from self._hand_out(lambda n: self._ahead(n, False) if self.decode == "cpu" else self._rendered(n))

    def encoded(self) -> Iterator[EncodedBatch]:
        """The same batches with encoded files in place of pixels; the state moves as in an iteration of the loader.

        Raises:
            RenderError: a file stayed out of reach, or the files of a batch do not fit into the memory allowed.
        """
        yield from self._hand_out(lambda n: self._ahead(n, True))

    def failures(self) -> list[dict[str, Any]]:
        """The quarantine ledger of what was fetched or decoded in this process: one entry per (epoch, image)."""
        return [] if self._decoder.renderer is None else self._decoder.renderer.failures()

    def close(self) -> None:
        """Stops threads, or says goodbye to daemons. Safe to call twice."""
        self._decoder.close()
        self._supply.close()

    def __getitem__(self, number: Any) -> NoReturn:
        """Raises StateError: whoever wraps a loader into a `torch.utils.data.DataLoader` asks for batches by number."""
        raise StateError(
            "a loader gives whole batches in the order of its plan, none by number; iterate over it as it is, not through a "
            "DataLoader: it reads and decodes ahead on threads of its own ([render] threads, prefetch)"
        )

    def __reduce__(self) -> NoReturn:
        """Raises StateError: threads and connections belong to their process."""
        raise StateError(
            f"a {type(self).__name__} cannot be pickled or copied; make one in each process, and carry its state_dict over"
        )

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes."""
        self.close()

    def _name(self) -> None:
        """The position is of what is now in use."""
        self.decode = self._decoder.name
        self.plan_id = self._cursor.plan_id = self._supply.plan_id
        self.render_id = self._cursor.render_id = self._decoder.render_id(self._supply.render_id)

    def _begin(self) -> None:
        """To be called before anything of an epoch is used: at its start, what was replaced is taken up.

        Raises:
            IndexFileError: the ranks see different indexes, or one has other classes than before.
        """
        epoch = self._cursor.epoch
        if self._refresh and self._cursor.next == 0 and self._begun != epoch:
            boundary.settle(self._supply.look, self._agree, epoch)
            self._supply.take_up()
            self._name()
            self._begun = epoch

    def _hand_out(self, made: Callable[[int], Found]) -> Iterator[Any]:
        """Hands out what is made of the epoch at hand, moving the cursor."""
        cursor, some, resumed = self._cursor, False, True
        # Whoever takes exactly `len` batches never sees an epoch end; the next time it means the next one.
        while resumed and not some:
            self._begin()
            resumed = cursor.next > 0
            cursor.start, epoch = cursor.next, cursor.epoch
            layout = self._supply.layout(epoch)
            with closing(made(epoch)) as found:
                while (pair := next(found, None)) is not None:
                    some = True
                    batch, behind = pair
                    cursor.advance(epoch, behind, layout)
                    del pair
                    yield batch
                    # Let go of it, so that its memory is free as soon as the caller has let go too.
                    del batch
            cursor.move(epoch + 1)

    def _ahead(self, epoch: int, encoded: bool) -> Found:
        """From the cursor's start to the epoch's end: each batch, packed or encoded, in order."""
        walk = self._cursor.walk(self._supply.layout(epoch))
        asking = self._supply.ask(epoch, walk, self.batch_size, encoded)
        ahead: deque[tuple[Asked, int]] = deque()
        try:
            while True:
                few, many = self._supply.ahead(encoded)
                if len(ahead) <= few or not ahead[0][0].ready:
                    while len(ahead) < many and (asked := next(asking, None)) is not None:
                        ahead.append(asked)
                        del asked
                if not ahead:
                    return
                found = ahead[0][0].wait(), ahead[0][1]
                ahead.popleft()
                yield found
                # Let go of it, so that its buffers return to the pool as soon as the caller does too.
                del found
        finally:
            for waiting, _ in ahead:
                waiting.cancel()

    def _rendered(self, epoch: int) -> Found:
        """The encoded batches through another decoder: one is decoded while the one before it is used."""
        assert self._decoder.renderer is not None
        ahead: deque[tuple[Asked, int]] = deque()
        with closing(self._ahead(epoch, True)) as encoded:
            try:
                while True:
                    while len(ahead) < 2 and (pair := next(encoded, None)) is not None:
                        ahead.append((self._decoder.renderer.submit(pair[0]), pair[1]))
                        del pair
                    if not ahead:
                        return
                    found = ahead[0][0].wait(), ahead[0][1]
                    ahead.popleft()
                    yield found
                    del found
            finally:
                for rendering, _ in ahead:
                    rendering.cancel()
