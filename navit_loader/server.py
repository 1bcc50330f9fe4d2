"""The daemon: answers requests for batches of one or more plans over ZeroMQ, and holds no state that matters.

In: engines (plan and renderer in this process) and an address. Out: batches, to whoever asks for them by name. One
thread turns a loop over the socket, the engines' eventfds and a wake-up descriptor; pixels are made by the engines'
own threads. Nothing is rendered that no client has asked for. Who is next and who may hold how much is decided by
`FairShare`. A batch goes out as views of the renderer's memory, which stays accounted until ZeroMQ has let go of it.
Whatever a peer sends that is not a well-formed request is refused, counted, and logged at most once a second.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
import weakref
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import zmq
from zmq.utils.monitor import recv_monitor_message

from . import protocol
from .batch import PackedBatch
from .config import ServeConfig
from .encoded import EncodedBatch
from .errors import NavitError, ServiceError
from .fair import FairShare
from .protocol import PlanInfo, Reply, Request
from .security import ServerKeys, allow_list, check_bind
from .shm import SUPPORTED, Door, Shelf, slot_bytes

if TYPE_CHECKING:
    from .encoded import PendingEncoded
    from .engine import Engine, Pending

log = logging.getLogger("navit_loader.serve")

MAX_SESSIONS = 4096
PROBE_S = 30.0  # an idle client that is gone is noticed by a message that cannot be delivered
DRAIN_S = 60.0
MAX_REFUSALS = 1000  # of one peer in a second; what it sends beyond is thrown away unread
_EVENTS_PER_TURN = 256


@dataclass(eq=False, slots=True)
class Session:
    """A client that has said hello: its name, plan, and what it asked for."""

    peer: bytes
    client: str
    plan: str
    heard: float
    asked: int = 0  # requests without an answer yet
    starved: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    token: str = ""  # by which it may fetch shared memory
    shelf: Shelf | None = None


@dataclass(frozen=True, slots=True)
class Sized:
    """A request for an encoded batch whose size is known by now."""

    request: Request
    nbytes: int


@dataclass(eq=False, slots=True)
class Job:
    """One batch on its way: asked for, perhaps being rendered."""

    session: Session
    request: Request
    nbytes: int
    since: float
    pending: Pending | PendingEncoded | None = None


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
        check_bind(serve.bind, keys)
        self.plans = dict(plans)
        self.bound = serve.memory_mb * 2**20
        self.infos = {name: PlanInfo.of(engine, name, self.bound) for name, engine in self.plans.items()}
        self.counts: Counter[str] = Counter()
        self.sessions: dict[bytes, Session] = {}
        self.share: FairShare[Session, Job] = FairShare(self.bound)
        self._depth = sum(e.config.render.prefetch for e in self.plans.values())
        self._rendering: list[Job] = []
        self._layouts: deque[tuple[Session, Request]] = deque()
        self._layout_busy = False
        self._freed: deque[tuple[Session, int]] = deque()
        self._lost: dict[Session, str] = {}  # found out while sending; forgotten at the end of the turn
        self._unsent = 0  # batches that ZeroMQ still holds
        self._done: deque[tuple[Session, Reply | Sized, list[Any]]] = deque()
        self._refusals: Counter[bytes] = Counter()  # by peer, this second
        self._said: dict[str, float] = {}
        self._stopping = 0
        self._probed = time.monotonic()
        self._wake_fd, self._wake_end = os.pipe()
        for fd in (self._wake_fd, self._wake_end):
            os.set_blocking(fd, False)
        self._door = Door() if SUPPORTED else None
        self._callers: set[int] = set()  # at the door, or with a shelf
        self._poller = zmq.Poller()
        self._executor = ThreadPoolExecutor(1, "navit-layout")
        self._context = zmq.Context()
        self._auth = None
        try:
            self._socket = self._context.socket(zmq.ROUTER)
            for option, value in _options(serve).items():
                self._socket.setsockopt(option, value)
            if keys is not None:
                self._auth = allow_list(self._context, keys, self.counts)
                keys.apply(self._socket)
            self._monitor = self._socket.get_monitor_socket(
                zmq.EVENT_HANDSHAKE_FAILED_AUTH
                | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
                | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
                | zmq.EVENT_ACCEPTED
                | zmq.EVENT_DISCONNECTED
            )
            self.endpoint = _bind(self._socket, serve.bind)
        except BaseException:
            self.close()
            raise

    # --- life ------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Serves until `stop`, then finishes what is being rendered, hands it over, and returns."""
        poller = self._poller
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._monitor, zmq.POLLIN)
        poller.register(self._wake_fd, zmq.POLLIN)
        for engine in self.plans.values():
            poller.register(engine.fileno(), zmq.POLLIN)
        if self._door is not None:
            poller.register(self._door.fileno(), zmq.POLLIN)
        deadline = float("inf")
        while True:
            ready = dict(poller.poll(1000))
            for fd in (self._wake_fd, *(engine.fileno() for engine in self.plans.values())):
                if fd in ready:
                    with contextlib.suppress(BlockingIOError):
                        os.read(fd, 4096)
            if self._monitor in ready:
                self._watch_connections()
            if self._socket in ready:
                for peer, frames in self._received():
                    self._handle(peer, frames)
            if self._door is not None:
                self._attend(self._door, ready)
            while self._freed:
                self._unsent -= 1
                self.share.release(*self._freed.popleft())
            self._start()
            while self._finish():
                self._start()
            self._look_after()
            for session, why in self._lost.items():
                self._forget(session, why)
            self._lost.clear()
            if self._stopping and deadline == float("inf"):
                deadline = time.monotonic() + DRAIN_S
                self._refuse_waiting()
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
                if self.endpoint.startswith("ipc://"):
                    with contextlib.suppress(OSError):
                        os.unlink(self.endpoint.removeprefix("ipc://"))
                os._exit(128 + number)
            self.stop()

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, handle)

    def close(self) -> None:
        """Closes the socket and forgets all clients; the engines stay open, they are the caller's."""
        for job in self._rendering:
            if job.pending is not None:
                job.pending.cancel()
        self._rendering.clear()
        self._executor.shutdown(wait=True, cancel_futures=True)
        for session in self.sessions.values():
            self._close_shelf(session)
        if self._door is not None:
            self._door.close()
            self._door = None
        if self._auth is not None:
            self._auth.stop()
            self._auth = None
        if not self._context.closed:
            for socket in (getattr(self, "_monitor", None), getattr(self, "_socket", None)):
                if socket is not None:
                    socket.close(linger=500)
            self._context.term()
        if self._wake_fd >= 0:
            os.close(self._wake_fd)
            os.close(self._wake_end)
            self._wake_fd = self._wake_end = -1

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # full: it will wake anyway; closed: nobody sleeps
            os.write(self._wake_end, b"x")

    # --- requests --------------------------------------------------------------------------------------------------

    def _received(self) -> Iterator[tuple[bytes, list[bytes]]]:
        for _ in range(_EVENTS_PER_TURN):
            try:
                peer, *frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            yield peer, frames

    def _handle(self, peer: bytes, frames: list[bytes]) -> None:
        if self._refusals.get(peer, 0) >= MAX_REFUSALS:
            self.counts["refused_flood"] += 1
            return
        try:
            if len(frames) != 1:
                raise ServiceError(f"a request of {len(frames)} frames; one belongs")
            request = protocol.decode_request(frames[0])
        except ServiceError as e:
            self._refuse(peer, Request("bye"), "request", str(e))
            return
        self.counts[f"requests_{request.kind}"] += 1
        if request.kind == "hello":
            self._hello(peer, request)
            return
        session = self.sessions.get(peer)
        if session is None:
            if request.kind not in ("bye", "cancel", "credit"):
                self._refuse(peer, request, "hello", "say hello first")
            return
        session.heard = time.monotonic()
        if request.kind == "bye":
            self._forget(session, "said goodbye")
        elif request.kind == "credit":
            if session.shelf is not None:
                session.shelf.give_back(request.ids)
        elif request.kind == "cancel":
            self._cancel(session, set(request.ids))
        elif self._stopping:
            self._refuse(peer, request, "draining", "this daemon is stopping; ask another, or this one again later")
        elif session.asked >= protocol.MAX_IN_FLIGHT:
            self._refuse(peer, request, "busy", f"{session.asked} requests are outstanding; wait for their answers")
        else:
            self._ask(session, request)

    def _hello(self, peer: bytes, request: Request) -> None:
        name = request.plan or next(iter(self.plans))
        if name not in self.plans:
            known = ", ".join(self.plans)
            self._refuse(peer, request, "plan", f"no plan '{name}' is served here; there is {known}")
            return
        if self._stopping:
            self._refuse(peer, request, "draining", "this daemon is stopping")
            return
        for old in [s for s in self.sessions.values() if s.peer == peer or s.client == request.client]:
            self._forget(old, "came back")
        if len(self.sessions) >= MAX_SESSIONS:
            self._refuse(peer, request, "busy", f"{MAX_SESSIONS} clients are connected; no more are allowed")
            return
        session = Session(peer, request.client, name, time.monotonic())
        self.sessions[peer] = session
        self._say("client", f"client={request.client!r} plan={name!r} joined", logging.INFO)
        door: tuple[str, ...] = ()
        if request.shared and self._door is not None:
            session.token = self._door.token()
            door = (self._door.name, session.token)
        self._send(session.peer, Reply("hello", request.id, info=self.infos[name].to_table(), door=door))

    def _ask(self, session: Session, request: Request) -> None:
        info = self.infos[session.plan]
        for key in ("plan_id", "render_id"):
            asked, ours = getattr(request, key), getattr(info, key)
            if asked != ours and not (key == "render_id" and request.kind == "layout"):
                self._refuse(session.peer, request, "plan", f"{key} {asked!r} was asked for, but this is {ours!r}")
                return
        session.asked += 1
        session.starved += request.starved_us / 1e6
        if request.kind in ("layout", "encoded"):  # how much an encoded batch holds is known from its plan alone
            self._layouts.append((session, request))
            self._next_layout()
            return
        self._queue(session, request, info.nbytes(request.count))

    def _queue(self, session: Session, request: Request, nbytes: int) -> None:
        """Queues a batch of a known size, or refuses one that would never fit."""
        allowed, whose = self.bound, "serve.memory_mb"
        if request.kind == "encoded" and request.limit < allowed:
            allowed, whose = request.limit, "the client (its memory_mb over its prefetch)"
        if nbytes > allowed:
            session.asked -= 1
            self._refuse(
                session.peer,
                request,
                "request",
                f"a batch of {request.count} sequences takes {nbytes:,} bytes, but {whose} allows "
                f"{allowed:,}; raise it or lower data.batch_size",
            )
            return
        self.share.push(session, Job(session, request, nbytes, time.monotonic()), nbytes)

    def _cancel(self, session: Session, ids: set[int]) -> None:
        session.asked -= len(self.share.drop(session, lambda job: job.request.id in ids))
        for job in [j for j in self._rendering if j.session is session and j.request.id in ids]:
            self._abandon(job)

    def _abandon(self, job: Job) -> None:
        if job.pending is not None:
            job.pending.cancel()
        self._rendering.remove(job)
        job.session.asked -= 1
        self.share.release(job.session, job.nbytes)

    def _forget(self, session: Session, why: str) -> None:
        if self.sessions.pop(session.peer, None) is None:
            return
        for job in [j for j in self._rendering if j.session is session]:
            self._abandon(job)
        self._layouts = deque(entry for entry in self._layouts if entry[0] is not session)
        self._close_shelf(session)
        self.share.forget(session)
        self._say("client", f"client={session.client!r} left: {why}", logging.INFO)

    def _refuse_waiting(self) -> None:
        for session in list(self.sessions.values()):
            waiting = [r for s, r in self._layouts if s is session]
            waiting += [job.request for job in self.share.drop(session)]
            session.asked -= len(waiting)
            for request in waiting:
                self._refuse(session.peer, request, "draining", "this daemon is stopping; ask another")
        self._layouts.clear()

    # --- answers ---------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        """Hands requests to the engines, as many as render at once, the fairest next."""
        while len(self._rendering) < self._depth and (found := self.share.pop()) is not None:
            session, job, _ = found
            r = job.request
            try:
                engine = self.plans[session.plan]
                submit = engine.submit_encoded if r.kind == "encoded" else engine.submit
                job.pending = submit(r.epoch, r.first, r.count)
            except NavitError as e:
                self._failed(job, e)
            else:
                self._rendering.append(job)

    def _finish(self) -> bool:
        """Sends what the engines have finished; whether that made room for more."""
        finished = [j for j in self._rendering if j.pending is not None and j.pending.ready]
        for job in finished:
            self._rendering.remove(job)
            assert job.pending is not None
            try:
                batch = job.pending.wait(0)
                if batch is None:  # pragma: no cover - `ready` was true
                    raise ServiceError("the batch was withdrawn")
            except NavitError as e:
                self._failed(job, e)
            else:
                self._deliver(job, batch)
        while self._done:
            session, reply, frames = self._done.popleft()
            self._layout_busy = False
            self._next_layout()
            if isinstance(reply, Sized):
                self._sized(session, reply)
            elif session.peer in self.sessions:
                session.asked -= 1
                self._send(session.peer, reply, frames)
        return bool(finished)

    def _sized(self, session: Session, sized: Sized) -> None:
        if self.sessions.get(session.peer) is not session:
            return
        if self._stopping:
            session.asked -= 1
            self._refuse(session.peer, sized.request, "draining", "this daemon is stopping; ask another")
            return
        self._queue(session, sized.request, sized.nbytes)

    def _failed(self, job: Job, error: NavitError) -> None:
        job.session.asked -= 1
        self.share.release(job.session, job.nbytes)
        self.counts["failed"] += 1
        self._say("failed", f"client={job.session.client!r} error={str(error)!r}", logging.WARNING)
        self._send(job.session.peer, protocol.error_reply(job.request.id, error))

    def _deliver(self, job: Job, batch: PackedBatch | EncodedBatch) -> None:
        session = job.session
        session.asked -= 1
        slots = batch.slots if isinstance(batch, EncodedBatch) else batch
        for name, n in (("images", slots.num_images), ("tokens", slots.num_tokens), ("batches", 1)):
            self.counts[name] += n
            session.counts[name] += n
        self.counts["slots"] += slots.segment_ids.size
        if session.shelf is not None and isinstance(batch, PackedBatch):
            info = self.infos[session.plan]
            slot = session.shelf.put(batch, slot_bytes(info, max(info.patch_sizes), job.request.count))
            if slot >= 0:
                self.counts["batches_shared"] += 1
                self.share.release(session, job.nbytes)
                reply = Reply("batch", job.request.id, patch_size=batch.patch_size, slot=slot)
                self._send(session.peer, reply)
                return
        frames: list[Any] = protocol.batch_frames(batch)
        # The largest array as a fresh view: when ZeroMQ has sent it and lets go, its finaliser gives the bytes back.
        large, at = (batch.data, -1) if isinstance(batch, EncodedBatch) else (batch.patches, 0)
        view = large[...]
        self._unsent += 1
        weakref.finalize(view, self._release, session, job.nbytes).atexit = False
        frames[at] = memoryview(view).cast("B") if view.size else b""
        self.counts["bytes_sent"] += sum(memoryview(f).nbytes for f in frames)
        del view, large
        self._send(session.peer, Reply(job.request.kind, job.request.id, patch_size=batch.patch_size), frames)

    def _release(self, session: Session, nbytes: int) -> None:
        # In ZeroMQ's own thread, or wherever the last view dies.
        self._freed.append((session, nbytes))
        self._wake()

    def _next_layout(self) -> None:
        if self._layouts and not self._layout_busy:
            self._layout_busy = True
            session, request = self._layouts.popleft()
            self._executor.submit(self._layout, session, request)

    def _layout(self, session: Session, request: Request) -> None:
        frames: list[Any] = []
        reply: Reply | Sized
        try:
            engine = self.plans[session.plan]
            if request.kind == "encoded":
                nbytes = engine.encoded_bytes(request.epoch, request.first, request.count)
                self._done.append((session, Sized(request, nbytes), []))
                self._wake()
                return
            layout = engine.layout(request.epoch)
            if request.first > layout.num_blocks:
                raise ServiceError(f"block {request.first} was asked for; there are {layout.num_blocks}")
            counts = layout.counts(request.first, min(request.first + request.count, layout.num_blocks))
            frames.append(memoryview(counts.astype("<u4").data).cast("B") if len(counts) else b"")
            reply = Reply("layout", request.id, run=layout.run, num_blocks=layout.num_blocks)
        except NavitError as e:
            reply = protocol.error_reply(request.id, e)
        except Exception as e:
            log.exception("layout failed")
            reply = Reply("error", request.id, error="request", message=f"the layout failed: {e}")
        self._done.append((session, reply, frames))
        self._wake()

    def _send(self, peer: bytes, reply: Reply, frames: list[Any] | None = None) -> None:
        message = [peer, protocol.encode_reply(reply), *(frames or [])]
        try:
            self._socket.send_multipart(message, zmq.NOBLOCK, copy=False)
        except zmq.Again:
            self.counts["overflow"] += 1
            if peer in self.sessions:
                self._lost[self.sessions[peer]] = "reads none of its answers"
        except zmq.ZMQError as e:
            if e.errno != zmq.EHOSTUNREACH:
                raise
            if peer in self.sessions:
                self._lost[self.sessions[peer]] = "disconnected"

    def _refuse(self, peer: bytes, request: Request, error: str, message: str) -> None:
        self.counts[f"refused_{error}"] += 1
        self._refusals[peer] += 1
        name = self.sessions[peer].client if peer in self.sessions else peer.hex()
        self._say(f"refused_{error}", f"client={name!r} refused={error} reason={message!r}", logging.WARNING)
        self._send(peer, Reply("error", request.id, error=error, message=message))

    # --- watching --------------------------------------------------------------------------------------------------

    def _look_after(self) -> None:
        """Once a second: clients that are gone, shared memory that does not come back, callers that say nothing."""
        now = time.monotonic()
        if now - self._probed < 1:
            return
        self._probed = now
        self._refusals.clear()
        for session in self.sessions.values():
            if session.shelf is not None:
                self.counts["slots_abandoned"] += session.shelf.abandon_old(now)
        for fd in self._door.hang_up_silent(now) if self._door is not None else ():
            self._ignore(fd)
        for session in [s for s in self.sessions.values() if now - s.heard > PROBE_S]:
            session.heard = now
            self._send(session.peer, Reply("beat"))

    def _attend(self, door: Door, ready: dict[Any, int]) -> None:
        """Lets clients of this host fetch shared memory, and notices when their processes end."""
        for fd in [fd for fd in self._callers if fd in ready]:
            owner = next((s for s in self.sessions.values() if s.shelf and s.shelf.connection.fileno() == fd), None)
            if owner is not None:  # it has nothing more to say: this is its end
                self._forget(owner, "its process ended")
                continue
            self._ignore(fd)
            if (said := door.listen(fd)) is None:
                continue
            caller, token = said
            session = next((s for s in self.sessions.values() if s.token and s.token == token), None)
            if session is None or session.shelf is not None:
                caller.close()
                continue
            session.shelf = Shelf(
                caller,
                lambda n, s=session: self.share.take(s, n),  # type: ignore[misc]
                lambda n, s=session: self.share.release(s, n),  # type: ignore[misc]
            )
            self._listen_to(fd)
        while door.fileno() in ready and (new := door.accept()) is not None:
            self._listen_to(new.fileno())

    def _listen_to(self, fd: int) -> None:
        self._callers.add(fd)
        self._poller.register(fd, zmq.POLLIN)

    def _ignore(self, fd: int) -> None:
        if fd in self._callers:
            self._callers.discard(fd)
            self._poller.unregister(fd)

    def _close_shelf(self, session: Session) -> None:
        if session.shelf is not None:
            self._ignore(session.shelf.connection.fileno())
            session.shelf.close()
            session.shelf = None

    def _watch_connections(self) -> None:
        for _ in range(_EVENTS_PER_TURN):
            try:
                event = recv_monitor_message(self._monitor, zmq.NOBLOCK)
            except zmq.Again:
                return
            if event["event"] == zmq.EVENT_ACCEPTED:
                self.counts["connections"] += 1
            elif event["event"] == zmq.EVENT_DISCONNECTED:
                self.counts["disconnections"] += 1
            else:
                self.counts["refused_handshake"] += 1
                self._say("refused_handshake", f"handshake refused={zmq.Event(event['event']).name}", logging.WARNING)

    def _say(self, topic: str, message: str, level: int) -> None:
        """Logs, but a refusal at most once a second: a peer must not fill the disk."""
        now = time.monotonic()
        if level >= logging.WARNING and now - self._said.get(topic, -10.0) < 1:
            self.counts["log_lines_withheld"] += 1
            return
        self._said[topic] = now
        log.log(level, message)


def _options(serve: ServeConfig) -> dict[int, int]:
    beat = int(serve.heartbeat_s * 1000)
    return {
        zmq.ROUTER_MANDATORY: 1,  # a client that is gone is an error here, not silence
        zmq.MAXMSGSIZE: protocol.MAX_REQUEST,
        # No limit on purpose. Where libzmq stops reading from a peer at its high-water mark and that peer then hangs up,
        # an assertion ends the whole process (libzmq issues 3937, 4364, 4767). See `MAX_REFUSALS`.
        zmq.RCVHWM: 0,
        zmq.SNDHWM: protocol.MAX_IN_FLIGHT + 64,  # answers; their bytes are bounded by FairShare
        zmq.LINGER: 500,
        zmq.BACKLOG: 1024,
        zmq.HANDSHAKE_IVL: 5000,
        zmq.HEARTBEAT_IVL: beat,
        zmq.HEARTBEAT_TIMEOUT: 3 * beat,
        zmq.TCP_MAXRT: 30_000,  # a peer that takes nothing for so long is cut, and its batches are freed
    }


def _bind(socket: zmq.Socket[bytes], address: str) -> str:
    if address.startswith("tcp://[") or address.startswith("tcp://::"):
        socket.setsockopt(zmq.IPV6, 1)
    try:
        socket.bind(
            address.removesuffix(":0") + ":*" if address.startswith("tcp://") and address.endswith(":0") else address
        )
    except zmq.ZMQError as e:
        hint = "choose another with --bind" if e.errno in (zmq.EADDRINUSE, zmq.EADDRNOTAVAIL) else "use tcp://HOST:PORT"
        raise ServiceError(f"cannot listen on '{address}': {e.strerror}; {hint}") from None
    return str(socket.getsockopt_string(zmq.LAST_ENDPOINT)).rstrip("\0")
