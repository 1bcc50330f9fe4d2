"""The daemon: answers requests for batches of one or more plans over ZeroMQ, and holds no state that matters.

In: engines (plan and renderer in this process) and an address. Out: batches, to whoever asks for them by name. One
thread turns a loop over sockets, the engines' eventfds and a wake-up descriptor: what clients say (`Router`) becomes
requests, whose turn it is says `FairShare`, what has to be planned for them first goes to the `Planner`, pixels are
made by the engines' own threads, and the `Lender` hands batches to clients of this host. Nothing is rendered that no
client has asked for, and what several ask for is rendered once (`Kept`). A batch goes out as views of the renderer's
memory, which stays accounted until nobody reads it.
Whatever a peer sends that is not a well-formed request is refused, counted, and logged at most once a second.
"""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import secrets
import signal
import time
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import zmq

from .. import _packer
from ..batch import OK, PackedBatch
from ..config import ServeConfig
from ..errors import NavitError, ServiceError
from ..render.encoded import EncodedBatch
from . import protocol
from .editions import Editions
from .fair import FairShare
from .kept import Kept, Name
from .lender import Lender
from .log import ServiceLog
from .planner import Planner, Planning
from .roots import Roots
from .router import Router
from .security import ServerKeys
from .session import Delivery, Rendering, Session

if TYPE_CHECKING:
    from ..render.engine import Engine

MAX_SESSIONS = 4096
PROBE_S = 30.0  # an idle client that is gone is noticed by a message that cannot be delivered
DRAIN_S = 60.0
STUCK_S = 60.0
MAX_REFUSALS = 1000  # of one peer in a second; what it sends beyond is thrown away unread


class Server:
    """A daemon, bound but not yet serving.

    Args:
        plans: engines by plan name; the first is the default plan of clients that name none.
        serve: address, memory bound, heartbeat.
        keys: the daemon's key pair and its allow-list; needed beyond loopback.

    Attributes:
        endpoint: where it listens, with the real port.
        counts: what happened so far, by name, for logs and metrics.

    Raises:
        ServiceError: the address is taken, not possible, or open to others without keys.
    """

    def __init__(self, plans: Mapping[str, Engine], serve: ServeConfig, keys: ServerKeys | None = None) -> None:
        self.bound = serve.memory_mb * 2**20
        self.sessions: dict[bytes, Session] = {}
        self._names: dict[str, Session] = {}
        self.share: FairShare[Session, Delivery] = FairShare(self.bound)
        self._log = ServiceLog()
        self.counts = self._log.counts
        self._poller = zmq.Poller()
        self._engine_fds: list[int] = []
        self._editions: Editions[tuple[bytes, str, protocol.Hello]] = Editions(
            plans, self.bound, self._log, self._attend, self._let_go, self._wake
        )
        self.plans, self.infos = self._editions.engines, self._editions.infos
        self._depth = sum(e.config.render.prefetch for e in self.plans.values())
        self._rendering: dict[Name, Rendering] = {}
        self.kept: Kept[Session] = Kept(lambda session: self.sessions.get(session.peer) is session)
        self._freed: deque[tuple[Session, int]] = deque()
        self._lost: dict[Session, str] = {}  # found out while sending; forgotten at the end of the turn
        self._unsent = 0  # batches that ZeroMQ still holds
        self._refusals: Counter[bytes] = Counter()  # by peer, this second
        self._stopping = 0
        self._looked = time.monotonic()
        self._router = Router(serve, keys, self._log)
        self.endpoint = self._router.endpoint
        self._wake_fd, self._wake_end = os.pipe()
        for fd in (self._wake_fd, self._wake_end):
            os.set_blocking(fd, False)
        self._lender = Lender(self._poller, self.share, self._log)
        self._planner = Planner(self.plans, self._wake)
        self._roots = Roots(lambda: [i for e in list(self.plans.values()) for i in e.indexes], self._wake)
        self._absent = ""  # why, when it was last looked at

    @property
    def ready(self) -> bool:
        """Whether it has its images, and so answers for them."""
        return not self._roots.why

    @property
    def unready(self) -> str:
        """Why it should be asked nothing new, its images being out of reach or its end near; empty where it should."""
        return "it is draining" if self._stopping else self._roots.why

    @property
    def stuck(self) -> str:
        """Why it should be started anew: its loop, which turns once a second, has long not done so; empty where it has."""
        silent = time.monotonic() - self._looked
        return f"its loop has not turned for {silent:.0f} s" if silent > STUCK_S else ""

    # --- life ------------------------------------------------------------------------------------------------------

    def run(self, draining: Callable[[], None] = lambda: None) -> None:
        """Serves until `stop`, then finishes what is being rendered, hands it over, and returns.

        Args:
            draining: called where that begins.
        """
        self._poller.register(self._wake_fd, zmq.POLLIN)
        for engine in self.plans.values():
            self._attend(engine)
        self._router.register(self._poller)
        deadline = float("inf")
        while True:
            ready = dict(self._poller.poll(1000))
            for fd in (self._wake_fd, *self._engine_fds):
                if fd in ready:
                    with contextlib.suppress(BlockingIOError):
                        os.read(fd, 4096)
            for message in self._router.receive(ready):
                self._handle(*message)
            self._router.watch(ready)
            for message in self._lender.receive(ready, self._forget):
                self._handle(*message)
            for visitor in self._editions.looked(lambda: {session.plan for session in self.sessions.values()}):
                self._hello(*visitor, looked=True)
            while self._freed:
                self._unsent -= 1
                self.share.release(*self._freed.popleft())
            for task in self._planner.done():
                self._planned(task)
            self._look_at_roots()
            self._start()
            while self._finish():
                self._start()
            self._look_after()
            for session, why in self._lost.items():
                self._forget(session, why)
            self._lost.clear()
            if self._stopping and deadline == float("inf"):
                deadline = time.monotonic() + DRAIN_S
                draining()
                self._refuse_waiting("draining", "this daemon is stopping; ask another")
            if self._stopping and _packer.storage()["waiting"]:
                why = "this daemon is stopping, and its storage does not answer; ask another"
                self._refuse_rendering("draining", why)
            if self._stopping and (not (self._rendering or self._unsent) or time.monotonic() > deadline):
                return

    def stop(self) -> None:
        """Asks `run` to drain and return; may be called from any thread or signal handler."""
        self._stopping += 1
        self._wake()

    def stop_on_signals(self) -> None:
        """SIGTERM and SIGINT drain; a second one ends the process at once with status 128 + its number."""

        def handle(number: int, _: object) -> None:
            if self._stopping:
                self._router.unlink()
                os._exit(128 + number)
            self.stop()

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, handle)

    def close(self) -> None:
        """Closes the socket and forgets all clients; the engines stay open, they are the caller's."""
        self._roots.close()
        self._planner.close()
        for session in list(self.sessions.values()):
            self._forget(session, "the daemon ends")
        self._lender.close()
        self._router.close()
        self._editions.close()
        if self._wake_fd >= 0:
            os.close(self._wake_fd)
            os.close(self._wake_end)
            self._wake_fd = self._wake_end = -1

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _attend(self, engine: Engine) -> None:
        self._engine_fds.append(engine.fileno())
        self._poller.register(engine.fileno(), zmq.POLLIN)

    def _let_go(self, engine: Engine) -> None:
        self._engine_fds.remove(engine.fileno())
        self._poller.unregister(engine.fileno())

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # full: it will wake anyway; closed: nobody sleeps
            os.write(self._wake_end, b"x")

    # --- requests --------------------------------------------------------------------------------------------------

    def _handle(self, peer: bytes, key: str, frames: list[bytes]) -> None:
        if len(frames) > protocol.MAX_TOGETHER:
            why = f"{len(frames)} frames in one message; at most {protocol.MAX_TOGETHER} requests may travel together"
            self._refuse(peer, 0, "request", why)
            return
        for frame in frames:
            self._handle_one(peer, key, frame)

    def _handle_one(self, peer: bytes, key: str, frame: bytes) -> None:
        if self._refusals.get(peer, 0) >= MAX_REFUSALS:
            self.counts["refused_flood"] += 1
            return
        try:
            request = protocol.decode_request(frame)
        except ServiceError as e:
            self._refuse(peer, 0, "request", str(e))
            return
        self.counts[f"requests_{request.kind}"] += 1
        if isinstance(request, protocol.Hello):
            self._hello(peer, key, request)
            return
        session = self.sessions.get(peer)
        if session is None:
            if isinstance(request, protocol.GetBatch | protocol.GetEncoded | protocol.GetLayout):
                self._refuse(peer, request.id, "hello", "say hello first")
            return
        session.heard = time.monotonic()
        if isinstance(request, protocol.Credit | protocol.GetBatch) and request.slots:
            self._lender.take_back(session, request.slots)
        match request:
            case protocol.Credit():
                pass
            case protocol.Bye():
                self._forget(session, "said goodbye")
            case protocol.Cancel():
                self._cancel(session, set(request.requests))
            case _ if self._stopping:
                why = "this daemon is stopping; ask another, or this one again later"
                self._refuse(peer, request.id, "draining", why)
            case _ if self._absent:
                self._refuse(peer, request.id, "busy", _not_ready(self._absent))
            case protocol.GetLayout(count=0):  # whether this daemon lives and knows the client
                self._send(peer, protocol.LayoutReply(request.id), [b""])
            case _ if session.asked >= protocol.MAX_IN_FLIGHT:
                why = f"{session.asked} requests are outstanding; wait for their answers"
                self._refuse(peer, request.id, "busy", why)
            case _:
                self._ask(session, request)

    def _hello(self, peer: bytes, key: str, request: protocol.Hello, looked: bool = False) -> None:
        if self._stopping:
            self._refuse(peer, request.id, "draining", "this daemon is stopping")
            return
        if self._roots.why:
            self._refuse(peer, request.id, "busy", _not_ready(self._roots.why))
            return
        try:
            plan = self._editions.choose(request.plan, request.plan_id, request.render_id, looked)
        except ServiceError as e:
            self._refuse(peer, request.id, "plan", str(e))
            return
        if plan is None:
            self._editions.look(request.plan, peer, (peer, key, request))
            return
        if (old := self.sessions.get(peer)) is not None:
            self._forget(old, "came back")
        name = request.client
        if (old := self._names.get(name)) is not None:
            # Only who shows the same key can end another's session. Else it ends where its connection turns out to be over.
            why = (
                "came back"
                if key and key == old.key
                else self._router.send(old.peer, [protocol.encode(protocol.Beat())])
            )
            if why:
                self._forget(old, why)
                # Where its connection lives on, it learns here that what it asked for is not coming.
                self._send(
                    old.peer, protocol.ErrorReply(0, "hello", "another connection took the name over; say hello again")
                )
            while name in self._names:
                name = f"{request.client}@{secrets.token_hex(4)}"
        if len(self.sessions) >= MAX_SESSIONS:
            self._refuse(peer, request.id, "busy", f"{MAX_SESSIONS} clients are connected; no more are allowed")
            return
        session = self.sessions[peer] = Session(peer, key, name, plan, time.monotonic())
        self._names[name] = session
        self._log.say("client", f"client={name!r} plan={plan!r} joined", logging.INFO)
        passage = self._lender.invite(session) if request.shared else ()
        self._send(session.peer, protocol.Welcome(request.id, self.infos[plan].to_table(), passage))

    def _ask(self, session: Session, request: protocol.GetBatch | protocol.GetEncoded | protocol.GetLayout) -> None:
        info = self.infos[session.plan]
        for key in ("plan_id",) if isinstance(request, protocol.GetLayout) else ("plan_id", "render_id"):
            asked, ours = getattr(request, key), getattr(info, key)
            if asked != ours:
                self._refuse(session.peer, request.id, "plan", f"{key} {asked!r} was asked for, but this is {ours!r}")
                return
        session.asked += 1
        if not isinstance(request, protocol.GetLayout):
            session.starved += request.starved_us / 1e6
            self.counts["starved_us"] += request.starved_us
        if isinstance(request, protocol.GetBatch):
            self._queue(session, request, info.nbytes(request.count))
        else:  # how much an encoded batch holds is known from its plan alone
            self._planner.look_up(session, request)

    def _queue(self, session: Session, request: protocol.GetBatch | protocol.GetEncoded, nbytes: int) -> None:
        """Queues a batch of a known size, or refuses one that would never fit."""
        allowed, whose = self.bound, "serve.memory_mb"
        if isinstance(request, protocol.GetEncoded) and request.limit < allowed:
            allowed, whose = request.limit, "the client (its memory_mb over its prefetch)"
        if nbytes > allowed:
            session.asked -= 1
            self._refuse(
                session.peer,
                request.id,
                "request",
                f"a batch of {request.count} sequences takes {nbytes:,} bytes, but {whose} allows "
                f"{allowed:,}; raise it or lower data.batch_size",
            )
            return
        encoded = isinstance(request, protocol.GetEncoded)
        place = request.epoch, request.first, request.count, request.block, request.before
        delivery = Delivery(session, request, nbytes, Name(session.plan, encoded, *place))
        self.kept.asked(delivery.name, session)
        self.share.push(session, delivery, nbytes)

    def _cancel(self, session: Session, ids: set[int]) -> None:
        session.asked -= len(self.share.drop(session, lambda delivery: delivery.request.id in ids))
        session.asked -= len(self._planner.drop(session, lambda request: request.id in ids))
        for delivery in [j for j in self._taken() if j.session is session and j.request.id in ids]:
            self._abandon(delivery)

    def _taken(self) -> Iterator[Delivery]:
        """All that is being rendered, once for each who is to have it."""
        return (delivery for rendering in self._rendering.values() for delivery in rendering.takers)

    def _abandon(self, delivery: Delivery) -> None:
        rendering = self._rendering[delivery.name]
        rendering.takers.remove(delivery)
        if not rendering.takers:
            rendering.pending.cancel()
            del self._rendering[delivery.name]
        delivery.session.asked -= 1
        self.share.release(delivery.session, delivery.nbytes)

    def _forget(self, session: Session, why: str) -> None:
        if self.sessions.get(session.peer) is not session:
            return
        del self.sessions[session.peer], self._names[session.client]
        for delivery in [j for j in self._taken() if j.session is session]:
            self._abandon(delivery)
        if self.kept.useful and sum(other.plan == session.plan for other in self.sessions.values()) < 2:
            self.kept.forget(session.plan)
        self._planner.forget(session)
        self._lender.forget(session)
        self.share.forget(session)
        self._log.say("client", f"client={session.client!r} left: {why}", logging.INFO)

    def _refuse_waiting(self, error: str, why: str) -> None:
        for session in list(self.sessions.values()):
            waiting = [delivery.request.id for delivery in self.share.drop(session)]
            waiting += [request.id for request in self._planner.drop(session, lambda _: True)]
            session.asked -= len(waiting)
            for id in waiting:
                self._refuse(session.peer, id, error, why)

    def _refuse_rendering(self, error: str, why: str) -> None:
        for delivery in list(self._taken()):
            self._abandon(delivery)
            self._refuse(delivery.session.peer, delivery.request.id, error, why)

    def _look_at_roots(self) -> None:
        """Sends everybody away while its images are out of reach: others have them."""
        why = self._roots.why
        if bool(why) != bool(self._absent):
            words = f"not ready: {why}" if why else "ready: its images are there again"
            self._log.say("ready", words, logging.WARNING)
            self.kept.clear()  # in what was rendered meanwhile images may be masked that are there again
        self._absent = why
        if why and not self._stopping:
            self._refuse_waiting("busy", _not_ready(why))
            self._refuse_rendering("busy", _not_ready(why))

    # --- answers ---------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        """Hands requests to the engines, as many as render at once, the fairest next. What is being rendered or was lately for
        another client needs no engine; in its turn and in memory each client pays for all that it gets."""
        while (free := len(self._rendering) < self._depth) or self.kept.useful:
            found = self.share.pop(self._at_hand if free else self._is_made)
            if found is None:
                return
            session, delivery, _ = found
            if (rendering := self._rendering.get(delivery.name)) is not None:
                rendering.takers.append(delivery)
                continue
            if (batch := self.kept.get(delivery.name)) is not None:
                self.counts["batches_reused"] += 1
                self._deliver(delivery, batch)
                continue
            self._trim()
            assert delivery.planned is not None, "pop passes over what is not planned"
            try:
                pending = self.plans[session.plan].submit_planned(delivery.planned, delivery.name.encoded)
            except NavitError as e:
                self.share.release(session, delivery.nbytes)
                self._failed(session, delivery.request.id, e)
            else:
                self._rendering[delivery.name] = Rendering(pending, [delivery])

    def _trim(self) -> None:
        """What is kept has half of the room that clients leave, and makes way for them."""
        self.kept.trim((self.bound - self.share.used) // 2)

    def _is_made(self, delivery: Delivery) -> bool:
        """Whether a request's batch is there for another client, or soon will be."""
        return delivery.name in self._rendering or self.kept.get(delivery.name) is not None

    def _at_hand(self, delivery: Delivery) -> bool:
        """Whether a request's plan is there, or none is needed; if not, it is asked for."""
        if delivery.planned is not None or self._is_made(delivery):
            return True
        if not delivery.planning:
            delivery.planned = self._planner.batch(delivery)
            delivery.planning = delivery.planned is None
        return delivery.planned is not None

    def _planned(self, task: Planning) -> None:
        """Takes what the planner has finished."""
        session, request = task.session, task.request
        if self.sessions.get(session.peer) is not session:
            return
        if task.delivery is not None:
            task.delivery.planned = task.planned
            if task.error is None or not self.share.drop(session, lambda delivery: delivery is task.delivery):
                return
        if task.error is not None:
            self._failed(session, request.id, task.error)
            return
        if isinstance(request, protocol.GetEncoded):
            self._queue(session, request, task.nbytes)
            return
        session.asked -= 1
        frame = memoryview(task.counts.astype("<u4").data).cast("B") if len(task.counts) else b""
        self._send(session.peer, protocol.LayoutReply(request.id, task.run, task.num_blocks), [frame])

    def _finish(self) -> bool:
        """Sends what the engines have finished; whether that made room for more."""
        finished = [(name, found) for name, found in self._rendering.items() if found.pending.ready]
        for name, rendering in finished:
            del self._rendering[name]
            try:
                batch = rendering.pending.wait(0)
                if batch is None:  # pragma: no cover - `ready` was true
                    raise ServiceError("the batch was withdrawn")
            except NavitError as e:
                for delivery in rendering.takers:
                    self.share.release(delivery.session, delivery.nbytes)
                    self._failed(delivery.session, delivery.request.id, e)
                continue
            self.kept.keep(name, batch, rendering.takers[0].nbytes)
            self._trim()
            self.counts["batches_reused"] += len(rendering.takers) - 1
            for delivery in rendering.takers:
                self._deliver(delivery, batch)
        return bool(finished)

    def _failed(self, session: Session, id: int, error: NavitError) -> None:
        session.asked -= 1
        self.counts["failed"] += 1
        self._log.say("failed", f"client={session.client!r} error={str(error)!r}", logging.WARNING)
        self._send(session.peer, protocol.error_reply(id, error))

    def _deliver(self, delivery: Delivery, batch: PackedBatch | EncodedBatch) -> None:
        session = delivery.session
        session.asked -= 1
        slots = batch.slots if isinstance(batch, EncodedBatch) else batch
        images, tokens = int(np.count_nonzero(slots.status == OK)), int(np.count_nonzero(slots.segment_ids >= 0))
        for name, n in (("images", images), ("tokens", tokens), ("batches", 1), ("slots", slots.segment_ids.size)):
            self.counts[name] += n
            session.counts[name] += n
        if isinstance(batch, PackedBatch) and (slot := self._lender.lend(session, batch, delivery.nbytes)) >= 0:
            self.counts["batches_shared"] += 1
            reply = protocol.BatchReply(delivery.request.id, slots.patch_size, slot)
            if session.loans is None or not session.loans.say(protocol.encode(reply)):
                self._send(session.peer, reply)
            return
        # When ZeroMQ has sent the last frame and lets go of it, nothing keeps the loan any more, and its bytes come back.
        loan = protocol.Sending()
        self._unsent += 1
        weakref.finalize(loan, self._release, session, delivery.nbytes).atexit = False
        frames = protocol.batch_frames(batch, loan)
        self.counts["bytes_sent"] += sum(f.nbytes for f in frames)
        del loan
        kind = protocol.EncodedReply if isinstance(batch, EncodedBatch) else protocol.BatchReply
        self._send(session.peer, kind(delivery.request.id, slots.patch_size), frames)

    def _release(self, session: Session, nbytes: int) -> None:
        # In ZeroMQ's own thread, or wherever the last view dies.
        self._freed.append((session, nbytes))
        self._wake()

    def _send(self, peer: bytes, reply: protocol.Reply, frames: list[Any] | None = None) -> None:
        why = self._router.send(peer, [protocol.encode(reply), *(frames or [])])
        if why and peer in self.sessions:
            self._lost[self.sessions[peer]] = why

    def _refuse(self, peer: bytes, id: int, error: str, message: str) -> None:
        self.counts[f"refused_{error}"] += 1
        self._refusals[peer] += 1
        name = self.sessions[peer].client if peer in self.sessions else peer.hex()
        words = f"client={name!r} refused={error} reason={message!r}"
        self._log.say(f"refused_{error}", words, logging.WARNING)
        self._send(peer, protocol.ErrorReply(id, error, message))

    def _look_after(self) -> None:
        """Once a second: clients that are gone, shared memory that does not come back, callers that say nothing."""
        now = time.monotonic()
        if now - self._looked < 1:
            return
        self._looked = now
        self._refusals.clear()
        self._lender.look_after(now)
        self._trim()
        _packer.storage_news()
        for session in [s for s in self.sessions.values() if now - s.heard > PROBE_S]:
            session.heard = now
            self._send(session.peer, protocol.Beat())


def raise_file_limit() -> None:
    """A descriptor per client, and more in shared memory: take what the system allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _not_ready(why: str) -> str:
    return f"this daemon is not ready: {why}"
