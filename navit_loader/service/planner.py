"""Plans what the daemon was asked for, beside its loop: planning a block takes tens of milliseconds, a whole epoch minutes.

In: requests whose plan is not at hand. Out: planned batches, and counts of sequences. One thread works in slices of a
few blocks, one client after the other, so that a client that asks for the end of a large epoch, or for many epochs,
delays itself and nobody else. A client that has counted says where in the epoch its batch lies: then its block alone is
planned, and a daemon that starts late in an epoch answers at once. Such a word is believed for that client's batch
alone. Each client keeps the counts of its last two epochs, so it cannot crowd out another's.
"""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import NavitError, ServiceError
from .protocol import GetBatch, GetEncoded, GetLayout

if TYPE_CHECKING:
    from .._packer import Layout, PlannedBatch
    from ..render.engine import Engine
    from .session import Delivery, Session

Request = GetBatch | GetEncoded | GetLayout
"""What has to be planned."""

EPOCHS_OF_A_CLIENT = 2
_IMAGES_AT_ONCE = 4 * 65536 * (os.cpu_count() or 1)
_PARTIAL_S = 1.0  # after so long, those counts that are known are the answer; the client asks on


@dataclass(eq=False, slots=True)
class _Epoch:
    """An epoch of a plan, and the clients that keep it."""

    engine: Engine
    epoch: int
    layout: Layout | None = None
    users: set[Session] = field(default_factory=set)


@dataclass(eq=False, slots=True)
class Planning:
    """A request that has to be planned, and what came of it: `error`, or `planned` for a batch, or what was looked up.

    Attributes:
        session: who asked.
        request: for what.
        delivery: the batch's.
        planned: the planned batch.
        nbytes: bytes of an encoded batch.
        near: a layout that begins where counts are asked for.
        run, num_blocks, counts: sequences per run, blocks of the epoch, and the counts asked for (u32).
        error: why there is none.
    """

    session: Session
    request: Request
    epoch: _Epoch
    delivery: Delivery | None = None
    planned: PlannedBatch | None = None
    near: Layout | None = None
    nbytes: int = 0
    run: int = 0
    num_blocks: int = 0
    counts: Any = None
    error: NavitError | None = None
    begun: float = 0.0
    blocks: int = 1


class Planner:
    """One thread, and the layouts of the epochs that clients read.

    Args:
        plans: engines by plan name.
        wake: called on the planner's thread whenever something is done.
    """

    def __init__(self, plans: Mapping[str, Engine], wake: Callable[[], None]) -> None:
        self._plans, self._wake = plans, wake
        self._epochs: dict[tuple[str, int], _Epoch] = {}
        self._kept: dict[Session, OrderedDict[tuple[str, int], _Epoch]] = {}
        self._turns: OrderedDict[Session, deque[Planning]] = OrderedDict()
        self._news = threading.Condition()
        self._done: deque[Planning] = deque()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="navit-plan", daemon=True)
        self._thread.start()

    def batch(self, delivery: Delivery) -> PlannedBatch | None:
        """The batch where it is at hand; else None, and it comes out of `done` some time later."""
        session, request = delivery.session, delivery.request
        epoch = self._keep(session, request.epoch)
        if epoch.layout is not None:
            with suppress(NavitError):  # which the thread meets too, and tells whoever asked
                planned = epoch.layout.batch_at_hand(request.first, request.count)
                if planned is not None:
                    return planned
        self._add(Planning(session, request, epoch, delivery))
        return None

    def look_up(self, session: Session, request: GetEncoded | GetLayout) -> None:
        """Asks what only the plan says, which comes out of `done`: how many bytes an encoded batch takes; or the counts of
        blocks, at least one where there is one, and all that are quick to have."""
        epoch = self._keep(session, request.epoch)
        blocks = 1 if isinstance(request, GetEncoded) else _blocks_at_once(epoch)
        self._add(Planning(session, request, epoch, blocks=blocks))

    def done(self) -> Iterator[Planning]:
        """What is finished, each once."""
        while self._done:
            yield self._done.popleft()

    def drop(self, session: Session, unwanted: Callable[[Request], bool]) -> list[Request]:
        """Takes back what is no longer wanted and not begun, and returns what was to be looked up."""
        with self._news:
            tasks = self._turns.get(session, deque())
            dropped = [task for task in tasks if unwanted(task.request)]
            if dropped:
                self._turns[session] = deque(task for task in tasks if not unwanted(task.request))
        return [task.request for task in dropped if task.delivery is None]

    def forget(self, session: Session) -> None:
        """Forgets a client, its requests and its epochs."""
        with self._news:
            self._turns.pop(session, None)
            done = [task for task in self._done if task.session is not session]
            self._done.clear()
            self._done.extend(done)
        for name in list(self._kept.pop(session, ())):
            self._let_go(session, name)

    def close(self) -> None:
        """Stops the thread, at the latest when the slice at hand is planned."""
        with self._news:
            self._closing = True
            self._news.notify()
        self._thread.join()

    def _keep(self, session: Session, number: int) -> _Epoch:
        name = (session.plan, number)
        kept = self._kept.setdefault(session, OrderedDict())
        epoch = self._epochs.setdefault(name, _Epoch(self._plans[session.plan], number))
        epoch.users.add(session)
        kept[name] = epoch
        kept.move_to_end(name)
        while len(kept) > EPOCHS_OF_A_CLIENT:
            self._let_go(session, kept.popitem(last=False)[0])
        return epoch

    def _let_go(self, session: Session, name: tuple[str, int]) -> None:
        users = self._epochs[name].users
        users.discard(session)
        if not users:
            del self._epochs[name]

    # --- the thread ------------------------------------------------------------------------------------------------

    def _add(self, task: Planning) -> None:
        with self._news:
            self._turns.setdefault(task.session, deque()).append(task)
            self._news.notify()

    def _run(self) -> None:
        while True:
            with self._news:
                while not self._closing and not any(self._turns.values()):
                    self._turns.clear()
                    self._news.wait()
                if self._closing:
                    return
                session, tasks = self._turns.popitem(last=False)
                if not tasks:
                    continue
                self._turns[session] = tasks  # behind all others
                task = tasks[0]
            try:
                finished = _plan(task)
            except NavitError as e:
                task.error, finished = e, True
            except BaseException as e:  # a panic of the engine is no Exception; whoever waits must hear of it
                task.error, finished = ServiceError(f"the plan failed: {type(e).__name__}: {e}"), True
            if not finished:
                continue
            with self._news:
                if session in self._turns and task in self._turns[session]:
                    self._turns[session].remove(task)
                    self._done.append(task)
            self._wake()


def _blocks_at_once(epoch: _Epoch) -> int:
    """How many blocks take some tens of milliseconds on all cores: many, where they are small."""
    return max(1, _IMAGES_AT_ONCE // epoch.engine.config.plan.block_images)


def _plan(task: Planning) -> bool:
    """One slice of work; whether the task is finished."""
    epoch, request = task.epoch, task.request
    epoch.engine.check_unchanged()
    if epoch.layout is None:
        epoch.layout = epoch.engine.layouts.open(epoch.epoch)
    layout = epoch.layout
    task.begun = task.begun or time.monotonic()
    if not isinstance(request, GetLayout):
        if not layout.reaches(request.first, request.count):
            if request.block >= 0:
                layout = _at(epoch, request)
            else:
                _count(task, layout, layout.num_blocks)
                if not layout.reaches(request.first, request.count):
                    return False
        planned = layout.batch(request.first, request.count)
        if task.delivery is None:
            task.nbytes = epoch.engine.encoded_bytes(planned)
        else:
            task.planned = planned
        return True
    first, wanted = request.first, min(request.first + request.count, layout.num_blocks)
    if first > layout.num_blocks:
        raise ServiceError(f"block {first} was asked for; there are {layout.num_blocks}")
    if layout.known < first:
        # Blocks are planned each for itself: what lies before need not be counted.
        task.near = layout = task.near or epoch.engine.layouts.near(epoch.epoch, first, 0)
    if layout.known < wanted:
        _count(task, layout, wanted)
    late = layout.known > first and time.monotonic() > task.begun + _PARTIAL_S
    if layout.known < wanted and not late:
        return False
    task.run, task.num_blocks = layout.run, layout.num_blocks
    task.counts = layout.counts(first, min(wanted, layout.known))
    return True


def _at(epoch: _Epoch, request: GetBatch | GetEncoded) -> Layout:
    """A layout from the block on in which the client says that its batch lies; checked by planning that block."""
    layout = epoch.engine.layouts.near(epoch.epoch, request.block, request.before)
    layout.counts(request.block, request.block + 1)
    if layout.place(request.first) != (request.block, request.before):
        raise ServiceError(
            f"sequence {request.first} is not in block {request.block} with {request.before} sequences before it"
        )
    return layout


def _count(task: Planning, layout: Layout, stop: int) -> None:
    """Counts the next blocks: one at first, which then is at hand, and more each time, on all cores."""
    layout.counts(layout.known, min(layout.known + task.blocks, stop))
    task.blocks = min(2 * task.blocks, _blocks_at_once(task.epoch))
    if layout is task.epoch.layout:
        task.epoch.engine.layouts.keep(task.epoch.epoch, layout)
