"""The daemon's socket: frames in, frames out, and what ZeroMQ tells of connections.

In: an address, keys, messages for peers. Out: messages of peers, and a word why one could not be sent. Apart from the
server, which decides; this file knows ZeroMQ's options and its snags.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from typing import Any

import zmq
from zmq.utils.monitor import recv_monitor_message

from ..config import ServeConfig
from ..errors import ServiceError
from . import protocol
from .log import ServiceLog
from .security import ServerKeys, allow_list, check_bind

_EVENTS_PER_TURN = 256
_NOBLOCK, _MORE = int(zmq.NOBLOCK), int(zmq.NOBLOCK | zmq.SNDMORE)
_COPY_BELOW = 1 << 16  # to hand over a frame without a copy costs more than to copy one of this size


class Router:
    """A bound ROUTER socket.

    Args:
        serve: address and heartbeat.
        keys: key pair and allow-list; needed beyond loopback.
        log: where connections and refused handshakes are counted.

    Attributes:
        endpoint: where it listens, with the real port.

    Raises:
        ServiceError: the address is taken, not possible, or open to others without keys.
    """

    def __init__(self, serve: ServeConfig, keys: ServerKeys | None, log: ServiceLog) -> None:
        check_bind(serve.bind, keys)
        self._log = log
        self._context = zmq.Context()
        self._auth = None
        self._socket = self._context.socket(zmq.ROUTER)
        self._monitor: zmq.Socket[bytes] | None = None
        self._silent: set[int] = set()  # descriptors of connections that have said nothing yet
        try:
            for option, value in _options(serve).items():
                self._socket.setsockopt(option, value)
            if keys is not None:
                self._auth = allow_list(self._context, keys, log)
                keys.apply(self._socket)
            # Never EVENT_HANDSHAKE_FAILED_PROTOCOL: where libzmq 4.3.5 cannot decrypt a frame, telling the monitor overwrites
            # errno. It then stops reading instead of closing, and when the peer hangs up an assertion ends the process.
            self._monitor = self._socket.get_monitor_socket(zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED)
            self.endpoint = _bind(self._socket, serve.bind)
        except BaseException:
            self.close()
            raise

    def register(self, poller: zmq.Poller) -> None:
        """Adds what is to be polled."""
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._monitor, zmq.POLLIN)

    def receive(self, ready: dict[Any, int]) -> Iterator[tuple[bytes, str, list[bytes]]]:
        """The messages that have come, a bounded number a turn: peer, its key (empty without keys), and frames."""
        for _ in range(_EVENTS_PER_TURN if self._socket in ready else 0):
            try:
                frame = self._socket.recv(_NOBLOCK, copy=False)
            except zmq.Again:
                return
            peer, key, frames = frame.bytes, "", []
            while frame.more:
                frame = self._socket.recv(_NOBLOCK, copy=False)
                frames.append(frame.bytes)
            if self._auth is not None:
                key = str(frame.get("User-Id"))
            if self._silent:
                with contextlib.suppress(zmq.ZMQError):
                    self._silent.discard(int(frame.get(zmq.SRCFD)))
            yield peer, key, frames

    def send(self, peer: bytes, frames: list[Any]) -> str:
        """Hands a message to ZeroMQ, large frames without a copy, and never waits; why not, if it could not be, else empty."""
        try:
            self._socket.send(peer, _MORE)
            for frame in frames[:-1]:
                self._socket.send(frame, _MORE, copy=len(frame) < _COPY_BELOW)
            self._socket.send(frames[-1], _NOBLOCK, copy=len(frames[-1]) < _COPY_BELOW)
        except zmq.Again:
            self._log.counts["overflow"] += 1
            return "reads none of its answers"
        except zmq.ZMQError as e:
            if e.errno != zmq.EHOSTUNREACH:
                raise
            return "disconnected"
        return ""

    def watch(self, ready: dict[Any, int]) -> None:
        """Counts connections that came, went, or ended before they said anything: a handshake that was refused.

        To be called behind `receive`, so that what they said is known.
        """
        counts, monitor = self._log.counts, self._monitor
        if monitor is None or monitor not in ready:
            return
        for _ in range(_EVENTS_PER_TURN):
            try:
                event = recv_monitor_message(monitor, zmq.NOBLOCK)
            except zmq.Again:
                return
            fd = event["value"]
            if event["event"] == zmq.EVENT_ACCEPTED:
                counts["connections"] += 1
                self._silent.add(fd)
                continue
            counts["disconnections"] += 1
            if fd in self._silent:
                self._silent.remove(fd)
                counts["refused_handshake"] += 1
                words = "refused=handshake a connection ended before it said anything: without keys, with others, or no client"
                self._log.say("refused_handshake", words, logging.WARNING)

    def unlink(self) -> None:
        """Removes the file of an `ipc://` socket, where the process is about to end without closing."""
        if self.endpoint.startswith("ipc://"):
            with contextlib.suppress(OSError):
                os.unlink(self.endpoint.removeprefix("ipc://"))

    def close(self) -> None:
        """Closes the socket, handing over for half a second what was sent."""
        if self._auth is not None:
            self._auth.stop()
            self._auth = None
        if not self._context.closed:
            for socket in (self._monitor, self._socket):
                if socket is not None:
                    socket.close(linger=500)
            self._context.term()


def _options(serve: ServeConfig) -> dict[int, int]:
    beat = int(serve.heartbeat_s * 1000)
    return {
        zmq.ROUTER_MANDATORY: 1,  # a client that is gone is an error here, not silence
        zmq.MAXMSGSIZE: protocol.MAX_REQUEST,
        # No limit on purpose. Where libzmq stops reading from a peer at its high-water mark and that peer then hangs up,
        # an assertion ends the whole process (libzmq issues 3937, 4364, 4767). See `server.MAX_REFUSALS`.
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
