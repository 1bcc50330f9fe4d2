"""One daemon's address, and the connection to it as long as there is one.

In: requests, and what ZeroMQ tells of the connection. Out: replies, and when the connection ends the wants that are to
be asked for again. Which want goes to which endpoint is decided in `connection`.
"""

from __future__ import annotations

import contextlib
import logging
import math
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import zmq
from zmq.utils.monitor import recv_monitor_message

from ..errors import NavitError, ServiceError
from . import protocol
from .protocol import Credit, GetBatch, GetEncoded, GetLayout, Hello, Reply, Request
from .security import ClientKeys
from .shm import Borrowed

log = logging.getLogger("navit_loader.client")

# Never EVENT_HANDSHAKE_FAILED_PROTOCOL: see `Router`.
_EVENTS = zmq.EVENT_CONNECTED | zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_DISCONNECTED
_BACKOFF_S = (0.05, 0.5)
# A handshake takes milliseconds, or seconds over a long way: one damaged bit in it is silence until it is given up. The first
# is given 1 s, later ones ten times what the last one took; each that is given up doubles that.
_SHAKE_S = (0.25, 1.0)
# Where `Terms.silence_s` has passed without a word, an answer to "are you there?" may take half as long again. Each time that
# it does not come doubles that, to ten times `silence_s`; the words that come take it back.
_PATIENCE = (0.5, 10.0)
_TRICKLE = 4096  # bytes in that time, and less: heartbeats, and no large frame on its way
_TCP_INFO, _RECEIVED = 136, 128  # linux/tcp.h: bytes of it, and where `tcpi_bytes_received` stands
_NOBLOCK = int(zmq.NOBLOCK)


@dataclass(eq=False, slots=True)
class Want:
    """A batch or a piece of layout that is wanted, and where it has been asked for."""

    request: GetBatch | GetEncoded | GetLayout
    asked: dict[int, Endpoint] = field(default_factory=dict)  # by request id
    failed: set[Endpoint] = field(default_factory=set)
    since: float = 0.0  # when it was last asked for
    doubt: tuple[Endpoint, Any] | None = None  # an answer, while another endpoint is asked about what it masks
    doubted: float = 0.0  # since when
    answer: Any = None  # a PackedBatch, or a layout
    error: NavitError | None = None

    @property
    def settled(self) -> bool:
        """Whether its answer is here, good or bad."""
        return self.answer is not None or self.error is not None


@dataclass(frozen=True, slots=True)
class Terms:
    """How a client connects, the same at every endpoint.

    Attributes:
        context: ZeroMQ's.
        poller: where sockets are registered while they are open.
        client: its name, for the daemons' logs.
        plan: name of the plan at the daemons; empty for their first.
        keys: CURVE keys, where the daemons demand them.
        memory: bytes of one frame at most.
        handshake_s: seconds that connecting, and then the handshake, may take; the first tries of a handshake get fewer
            (`Endpoint.look_after`).
        heartbeat_s: seconds between heartbeats.
        silence_s: after so many without a word, while something is asked for, an endpoint is asked whether it is there.
        shared: whether it can take shared memory.
    """

    context: zmq.Context[zmq.Socket[bytes]]
    poller: zmq.Poller
    client: str
    plan: str
    keys: ClientKeys | None
    memory: int
    handshake_s: float
    heartbeat_s: float
    silence_s: float
    shared: bool


class Endpoint:
    """A daemon's address and the state of the connection to it.

    Attributes:
        address: where it is.
        ready: true from the daemon's hello on, until it says that it is `draining`.
        draining: it is asked for nothing new, and what it still sends is taken.
        leaving: the same, and it will not be called again.
        retry: when to connect again.
        lost: when it was ready last, or before a silence; in the beginning, when it was made.
        why: the state of the connection in words.
        before: why the connection before this one ended, until this one has given something.
        borrowed: its shared memory, where it is on this host.
        in_flight: what has been asked for there, by request id.
    """

    def __init__(self, address: str, terms: Terms) -> None:
        self.address = address
        self.ready = self.draining = self.leaving = self._shook = False
        self.retry, self.lost = 0.0, time.monotonic()
        self.why, self.before = "no answer yet; does a daemon listen there?", ""
        self.borrowed: Borrowed | None = None
        self.in_flight: dict[int, Want] = {}
        self._terms = terms
        self._backoff, self._shake_s = _BACKOFF_S[0], _SHAKE_S[1]
        # When it was seen to be connected, when its events were looked at last, and when before it connected.
        self._met = self._looked = self._before = 0.0
        # When it said something last or had something to say from, when it was asked whether it is there (0: it was not),
        # what had come till then, and how long that may take.
        self._heard = self._probed = 0.0
        self._came: int | None = 0
        self._patience_s = _PATIENCE[0] * terms.silence_s
        self._descriptor = -1
        self._plan_id = ""  # of the plan that it is asked for
        self._outbox: list[bytes] = []
        self._socket: zmq.Socket[bytes] | None = None
        self._monitor: zmq.Socket[bytes] | None = None

    @property
    def connected(self) -> bool:
        """Whether there is a socket; between a failure and the next attempt at `retry` there is none."""
        return self._socket is not None

    def call(self, plan_id: str = "", render_id: str = "") -> None:
        """Opens a fresh socket, so that nothing of an earlier connection can come through it, and says hello.

        Args:
            plan_id: what the client has begun with, or empty.
            render_id: the same of the renderer.

        Raises:
            ServiceError: an address that cannot be.
        """
        terms = self._terms
        dealer = terms.context.socket(zmq.DEALER)
        options = {
            zmq.MAXMSGSIZE: terms.memory,
            zmq.LINGER: 0,
            zmq.RCVHWM: 0,  # bounded by what was asked for
            zmq.SNDHWM: protocol.MAX_IN_FLIGHT + 64,
            zmq.CONNECT_TIMEOUT: int(terms.handshake_s * 1000),
            zmq.HANDSHAKE_IVL: int(terms.handshake_s * 1000),
            zmq.RECONNECT_IVL: 50,
            zmq.RECONNECT_IVL_MAX: 1000,
            zmq.HEARTBEAT_IVL: int(terms.heartbeat_s * 1000),
            # Behind the beat that it does not answer: silent for three in all.
            zmq.HEARTBEAT_TIMEOUT: int(2 * terms.heartbeat_s * 1000),
        }
        for option, value in options.items():
            dealer.setsockopt(option, value)
        if self.address.startswith("tcp://["):
            dealer.setsockopt(zmq.IPV6, 1)
        if terms.keys is not None:
            terms.keys.apply(dealer)
        self._met, self._looked = 0.0, time.monotonic()
        self._probed, self._descriptor = 0.0, -1
        self._plan_id = plan_id
        self._monitor = dealer.get_monitor_socket(_EVENTS)
        self._socket = dealer
        terms.poller.register(dealer, zmq.POLLIN)
        terms.poller.register(self._monitor, zmq.POLLIN)
        try:
            dealer.connect(self.address)
        except zmq.ZMQError as e:
            self.hang_up(f"cannot connect: {e.strerror}")
            raise ServiceError(f"endpoint '{self.address}' is not allowed: {e.strerror}") from None
        hello = Hello(client=terms.client, plan=terms.plan, shared=terms.shared, plan_id=plan_id, render_id=render_id)
        self.send(hello)
        self.flush()

    def welcome(self, passage: tuple[str, ...], plan_id: str) -> None:
        """The daemon has said hello: it can be asked about `plan_id`, through its `passage` to shared memory if that opens."""
        self._plan_id = plan_id
        if len(passage) == 2:
            # Being on the same host means that this succeeds.
            with contextlib.suppress(OSError):
                self.borrowed = Borrowed(*passage, self._terms.memory)
                self._terms.poller.register(self.borrowed.fileno(), zmq.POLLIN)
        self.ready, self.why, self._backoff = True, "connected, but it answers no request", _BACKOFF_S[0]

    def leave(self) -> None:
        """It is asked for nothing new any more, nor called again once what it was asked for is here."""
        self.leaving = True
        self.lost = time.monotonic() if self.ready else self.lost
        self.ready, self.draining, self.why = False, True, "it leaves the fleet"

    def ask(self, id: int, want: Want, **now: Any) -> None:
        """Asks for a want, with the values of `now` as the request's own."""
        if not self.in_flight:
            self._heard = time.monotonic()
        self.in_flight[id] = want
        self.send(want.request, id=id, **now)

    def send(self, request: Request, **now: Any) -> None:
        """Puts a request where `flush` takes it, with the values of `now` as its own."""
        if self._socket is None:
            return
        self._outbox.append(protocol.encode(request, **now))
        if len(self._outbox) >= protocol.MAX_TOGETHER:
            self.flush()

    def flush(self) -> None:
        """Sends what waits, in one message, where there is a connection; one that takes no more ends."""
        if not self._outbox or self._socket is None:
            return
        requests, self._outbox = self._outbox, []
        if self.borrowed is not None and self.borrowed.say(requests):
            return
        try:
            self._socket.send_multipart(requests, _NOBLOCK)
        except zmq.Again:
            self.hang_up("it takes no more requests")

    def freed(self) -> tuple[int, ...]:
        """The shared slots that the user has let go of since the last call; the daemon is to hear of them."""
        if self.borrowed is None or not self.borrowed.returned:
            return ()
        slots: list[int] = []
        while self.borrowed.returned and len(slots) < protocol.MAX_IN_FLIGHT:
            slots.append(self.borrowed.returned.popleft())
        return tuple(slots)

    def give_back(self) -> None:
        """Sends credits for the shared slots that the user has let go of, where no request takes them along."""
        if slots := self.freed():
            self.send(Credit(slots=slots))

    def receive(self, ready: dict[Any, int]) -> Iterator[tuple[Reply, list[Any]]]:
        """The replies that have come, with their frames; a daemon that breaks the protocol is hung up on.

        Raises:
            ServiceError: the daemon speaks another version of the protocol.
        """
        if self._socket in ready:
            while self._socket is not None:
                try:
                    frame = self._socket.recv(_NOBLOCK, copy=False)
                except zmq.Again:
                    break
                raw, frames = frame.bytes, []
                while frame.more:
                    frame = self._socket.recv(_NOBLOCK, copy=False)
                    frames.append(frame)
                if (reply := self._decode(raw)) is None:
                    return
                self._hear()
                yield reply, frames
        if self.borrowed is not None and self.borrowed.fileno() in ready:
            yield from self._through_borrowed()
        # What the daemon sent before it went is taken first.
        if self._monitor is not None and self._monitor in ready:
            self._watch()
        self._looked = time.monotonic()

    def _through_borrowed(self) -> Iterator[tuple[Reply, list[Any]]]:
        while self.borrowed is not None:
            try:
                raw = self.borrowed.hear()
            except ServiceError as e:
                self.hang_up(str(e))
                return
            if raw is None or (reply := self._decode(raw)) is None:
                return
            self._hear()
            yield reply, []

    def _hear(self) -> None:
        """It has said something."""
        self._heard = now = time.monotonic()
        silence_s = self._terms.silence_s
        took = now - self._probed
        if not self._probed:
            self._patience_s = max(0.9 * self._patience_s, _PATIENCE[0] * silence_s)
        elif took < self._patience_s:  # else nobody looked meanwhile
            self._patience_s = min(max(4 * took, self._patience_s), _PATIENCE[1] * silence_s)
        self._probed = 0.0

    def _decode(self, raw: bytes) -> Reply | None:
        try:
            return protocol.decode_reply(raw)
        except ServiceError as e:
            if len(raw) > 3 and raw[:3] == protocol.MAGIC and raw[3] != protocol.VERSION:
                raise ServiceError(f"{self.address}: {e}") from None
            self.hang_up(f"it broke the protocol: {e}")
            return None

    def hang_up(self, why: str, linger: int = 0) -> None:
        """Drops the connection; what was asked there is to be asked again."""
        if self._socket is None:
            return
        if self.ready:
            self.lost = time.monotonic()
            log.info("endpoint=%s lost: %s", self.address, why)
        self._socket.disable_monitor()
        self._outbox.clear()
        for old in (self._socket, self._monitor):
            if old is not None:
                self._terms.poller.unregister(old)
                old.close(linger=linger)
        self._socket = self._monitor = None
        if self.borrowed is not None:
            self._terms.poller.unregister(self.borrowed.fileno())
            self.borrowed.close()
            self.borrowed = None
        self.ready = self.draining = self._shook = False
        self.why = why
        self.before = why
        self.retry = time.monotonic() + self._backoff
        self._backoff = min(2 * self._backoff, _BACKOFF_S[1])
        for id, want in self.in_flight.items():
            want.asked.pop(id, None)
        self.in_flight.clear()

    @property
    def due(self) -> float:
        """When it is to be looked after, if it says nothing before; infinity where nothing is waited for."""
        if self._socket is None:
            return self.retry
        if not self._shook:
            return self._met + min(self._shake_s, self._terms.handshake_s) if self._met else math.inf
        if self._probed:
            return self._probed + self._patience_s
        # Before the first hello of all there is no plan to ask about.
        waits = self.in_flight or not (self.ready or self.draining or not self._plan_id)
        return self._heard + self._terms.silence_s if waits else math.inf

    def look_after(self) -> None:
        """Ends what has taken too long, once all that has come is looked at: a handshake, or a silence. ZeroMQ's own heartbeats
        see less and later: where one damaged bit is a length, all that follows is swallowed."""
        now = time.monotonic()
        if self._socket is None or now < self.due:
            return
        if not self._shook:
            self._shake_s = min(2 * self._shake_s, self._terms.handshake_s)
            self._came_to_nothing()
            return
        came = self._received()
        if not self._probed or came is None or self._came is None or came > self._came + _TRICKLE:
            if not self._probed:
                epoch = next((want.request.epoch for want in self.in_flight.values()), 0)
                self.send(GetLayout(plan_id=self._plan_id, epoch=epoch))
                self.flush()
            self._probed, self._came = now, came
            return
        self._patience_s = min(2 * self._patience_s, _PATIENCE[1] * self._terms.silence_s)
        was_ready, heard = self.ready, self._heard
        self.hang_up("it says nothing")
        if was_ready:
            self.lost = heard

    def _received(self) -> int | None:
        """Bytes that have come through the connection; None where the system does not tell."""
        if self.address.startswith("ipc:"):
            return 0  # whole messages within one host: none is long on its way
        try:
            there = socket.socket(fileno=self._descriptor)
        except (OSError, ValueError):
            return None  # it is closed, of which an event tells
        try:
            info = there.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO)
            return int(struct.unpack_from("=Q", info, _RECEIVED)[0])
        except (AttributeError, OSError, struct.error):
            return None
        finally:
            there.detach()  # ZeroMQ's

    def _came_to_nothing(self) -> None:
        keys = "does it serve with other keys, or with none?"
        if self._terms.keys is None:
            keys = "if it demands keys, give keys=FOLDER (data.remote.keys)"
        self.hang_up(f"the handshake came to nothing; {keys}")

    def _watch(self) -> None:
        while self._monitor is not None:
            try:
                told = recv_monitor_message(self._monitor, zmq.NOBLOCK)
            except zmq.Again:
                return
            event = told["event"]
            if event == zmq.EVENT_CONNECTED:
                self.why, self._met = "connected, but it says nothing", time.monotonic()
                self._descriptor = told["value"]
                self._before = self._looked  # it connected after that
            elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._shook, self._heard = True, time.monotonic()
                self._shake_s = max(_SHAKE_S[0], 10 * (self._heard - self._before))
            elif event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                self.hang_up("it refused this client's key; is the key on its allow-list?")
            elif self._shook:
                self.hang_up("the connection broke" if self.ready else "it hung up before its hello")
            else:
                self._came_to_nothing()
