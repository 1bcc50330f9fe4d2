"""Batches between two processes of one host without a socket in between: sealed memory, passed by descriptor.

In: batches at the daemon. Out: the same arrays at the client, mapped read-only: the memory into which the renderer
wrote, not a copy. The daemon listens on an abstract Unix socket, which has no file; a client that can reach it and
shows the token of its hello is on the same host. Each slot is one memfd without a name, sealed against shrinking,
growing and other writers, so nothing is left behind when either process is killed. A slot is written again only after
the client gave it back; one that stays away too long is abandoned for ever. Where a client has been lent as much as it
may, its batches travel over ZeroMQ instead.

Requests and the replies that name slots go through the same socket, as packets: through ZeroMQ every word wakes a thread
on either side, which costs as much as the copy of a megabyte. What it does not take goes over ZeroMQ.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import secrets
import socket
import struct
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..batch import PackedBatch
from ..errors import ServiceError

if TYPE_CHECKING:
    from .._packer import Buffer

SUPPORTED = hasattr(os, "memfd_create") and hasattr(socket, "SCM_RIGHTS")
"""Whether this system has what shared memory needs (Linux)."""

MAX_SLOTS = 64
ABANDON_S = 120.0
_PATIENCE_S = 2.0
_ANNOUNCE = struct.Struct("<QQ")  # slot number, bytes; 0 bytes: it is withdrawn
_TOKEN_BYTES = 32
_CONTROL_BYTES = 64  # beside a packet: a few descriptors
_PACKET_BYTES = 4096  # of one packet to the client at most: a slot, or a reply that names one
_TOGETHER_BYTES = 1 << 16  # of one packet to the daemon at most: requests, each behind its length
_LENGTH = struct.Struct("<I")
_F_SEAL_FUTURE_WRITE = 0x10
_SEALS = 0x1 | 0x2 | 0x4 | _F_SEAL_FUTURE_WRITE  # no further seals, no shrinking, no growing, no other writer


@dataclass(eq=False, slots=True)
class _Loan:
    memory: Buffer
    batch: PackedBatch | None  # kept, since its memory is used again when its last array is gone
    nbytes: int
    since: float


class Loans:
    """What one client has been lent, at the daemon.

    Args:
        connection: the Unix socket to the client.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self._announced: OrderedDict[int, None] = OrderedDict()  # the latest lent last
        self._lent: dict[int, _Loan] = {}

    def can(self, memory: Buffer) -> bool:
        """Whether this memory can be lent now."""
        return memory.shared is not None and memory.shared[0] not in self._lent and len(self._lent) < MAX_SLOTS

    def lend(self, memory: Buffer, batch: PackedBatch, nbytes: int) -> int:
        """Lends memory, announcing it first where the client has not mapped it yet.

        Returns:
            The slot's number, or −1 where the client takes no announcement.
        """
        assert memory.shared is not None, "asked by `can`"
        number, fd = memory.shared
        try:
            if number not in self._announced:
                if len(self._announced) >= MAX_SLOTS:
                    old = next(n for n in self._announced if n not in self._lent)
                    self.connection.send(_ANNOUNCE.pack(old, 0))
                    del self._announced[old]
                socket.send_fds(self.connection, [_ANNOUNCE.pack(number, memory.nbytes)], [fd])
        except OSError:  # a client that does not read, or no descriptor left: ZeroMQ will do
            return -1
        self._announced[number] = None
        self._announced.move_to_end(number)
        self._lent[number] = _Loan(memory, batch, nbytes, time.monotonic())
        return number

    def say(self, reply: bytes) -> bool:
        """Sends a reply that names a slot; False where the client takes nothing."""
        try:
            self.connection.send(reply)
        except OSError:
            return False
        return True

    def hear(self) -> list[bytes] | None:
        """The requests of the client's next packet; None if there is none.

        Raises:
            ServiceError: the client is gone, or sent something else.
        """
        try:
            packet = self.connection.recv(_TOGETHER_BYTES)
        except BlockingIOError:
            return None
        except OSError:
            packet = b""
        if not packet:
            raise ServiceError("its process ended")
        requests, at = [], 0
        while at < len(packet):
            end = at + _LENGTH.size
            if end > len(packet) or (length := _LENGTH.unpack_from(packet, at)[0]) > len(packet) - end:
                raise ServiceError("it broke the protocol beside shared memory")
            requests.append(packet[end : end + length])
            at = end + length
        return requests

    def take_back(self, numbers: Iterable[int]) -> Iterator[int]:
        """The client has let go of slots: the bytes of each. Numbers that are not lent are ignored."""
        for number in numbers:
            if (loan := self._lent.pop(number, None)) is not None:
                yield loan.nbytes

    def abandon_old(self, now: float) -> int:
        """Slots that stayed away too long are never used again, whether they come back or not; how many.

        They count as lent until they do, or until their client is gone: so long their memory is really there.
        """
        old = [loan for loan in self._lent.values() if loan.batch is not None and now - loan.since > ABANDON_S]
        for loan in old:
            loan.memory.abandon()
            loan.batch = None
        return len(old)

    def close(self) -> list[int]:
        """Ends all loans, and gives up their memory: the client may go on reading it. The bytes of each."""
        for loan in self._lent.values():
            loan.memory.abandon()
        sizes = [loan.nbytes for loan in self._lent.values()]
        self._lent.clear()
        self.connection.close()
        return sizes


class Listener:
    """Where clients of this host fetch their descriptors: an abstract Unix socket, at the daemon."""

    def __init__(self) -> None:
        self.name = f"navit-{os.getpid()}-{secrets.token_hex(8)}"
        kind = socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        self._socket = socket.socket(socket.AF_UNIX, kind)
        self._socket.bind("\0" + self.name)
        self._socket.listen(64)
        self._callers: dict[int, tuple[socket.socket, float]] = {}

    def fileno(self) -> int:
        """Readable when somebody calls."""
        return self._socket.fileno()

    @staticmethod
    def token() -> str:
        """A secret by which a caller shows which client it is."""
        return secrets.token_hex(_TOKEN_BYTES // 2)

    def accept(self) -> socket.socket | None:
        """A caller of the same user, still without a token; None where none is left or too many wait."""
        try:
            caller, _ = self._socket.accept()
        except OSError:
            return None
        caller.setblocking(False)
        _, uid, _ = struct.unpack("3i", caller.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if uid not in (os.getuid(), 0) or len(self._callers) >= 64:
            caller.close()
            return None
        self._callers[caller.fileno()] = (caller, time.monotonic())
        return caller

    def listen(self, fd: int) -> tuple[socket.socket, str] | None:
        """What a caller says: its socket and token; None if it is no longer there."""
        caller, _ = self._callers.pop(fd)
        try:
            token = caller.recv(_TOKEN_BYTES + 1).decode("ascii", "replace")
        except OSError:
            token = ""
        if len(token) != _TOKEN_BYTES:
            caller.close()
            return None
        return caller, token

    def hang_up_silent(self, now: float) -> list[int]:
        """Sends away callers that said nothing for five seconds; their descriptors."""
        gone = [fd for fd, (_, since) in self._callers.items() if now - since > 5]
        for fd in gone:
            self._callers.pop(fd)[0].close()
        return gone

    def close(self) -> None:
        """Closes and sends all callers away."""
        for caller, _ in self._callers.values():
            caller.close()
        self._callers.clear()
        self._socket.close()


class Borrowed:
    """The daemon's slots as a client sees them: mapped, read-only.

    Args:
        name: the listener's name.
        token: this client's token.
        limit: bytes of one slot at most.

    Raises:
        OSError: the daemon is on another host, or of another user.
    """

    def __init__(self, name: str, token: str, limit: int) -> None:
        self._limit = limit
        self._maps: dict[int, mmap.mmap] = {}
        self._lent: dict[int, weakref.ref[np.ndarray[Any, Any]]] = {}  # whose death says that the slot is free
        self.returned: deque[int] = deque()
        """Slots that the user has let go of, to be given back to the daemon."""
        self._replies: deque[bytes] = deque()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        try:
            self._socket.settimeout(_PATIENCE_S)
            self._socket.connect("\0" + name)
            self._socket.send(token.encode())
            self._socket.setblocking(False)
        except OSError:
            self._socket.close()
            raise

    def fileno(self) -> int:
        """Readable when the daemon has said something, or is gone."""
        return self._socket.fileno()

    def say(self, requests: Iterable[bytes]) -> bool:
        """Sends requests in one packet; False where the daemon does not take it."""
        packet = b"".join(_LENGTH.pack(len(one)) + one for one in requests)
        try:
            return len(packet) <= _TOGETHER_BYTES and self._socket.send(packet) > 0
        except OSError:
            return False

    def hear(self) -> bytes | None:
        """The next reply; None if there is none.

        Raises:
            ServiceError: the daemon is gone, or a slot is not as it has to be.
        """
        while not self._replies:
            if not self._receive():
                return None
        return self._replies.popleft()

    def open(self, number: int) -> np.ndarray[Any, Any]:
        """All bytes of a slot, u8. When the last view of them dies, the slot is given back.

        Raises:
            ServiceError: a slot that was never announced, of a wrong size, or not sealed.
        """
        until = time.monotonic() + _PATIENCE_S
        while number not in self._maps:
            # Its announcement was sent before the reply that names it; that one may have overtaken it over ZeroMQ.
            if not self._receive():
                if time.monotonic() > until:
                    raise ServiceError(f"shared slot {number} did not arrive within {_PATIENCE_S:g} s")
                time.sleep(0.001)
        whole = np.frombuffer(self._maps[number], np.uint8)
        returned = self.returned
        self._lent[number] = weakref.ref(whole, lambda _: returned.append(number))
        return whole

    def _receive(self) -> bool:
        """Takes one packet; False where there is none."""
        try:
            data, extra, flags, _ = self._socket.recvmsg(_PACKET_BYTES, _CONTROL_BYTES, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return False
        except OSError as e:
            raise ServiceError(f"shared memory did not arrive: {e}") from None
        fds = [fd for _, _, raw in extra for (fd,) in struct.iter_unpack("i", raw)]
        try:
            if not data:
                raise ServiceError("the daemon closed its shared memory")
            if flags & socket.MSG_TRUNC or (fds and len(data) != _ANNOUNCE.size):
                raise ServiceError(
                    f"a packet of {len(data)} bytes and {len(fds)} descriptors, which is no shared memory"
                )
            if len(data) != _ANNOUNCE.size:
                self._replies.append(data)
                return True
            number, size = _ANNOUNCE.unpack(data)
            if size == 0:
                self._maps.pop(number, None)
                # Where a reply came by ZeroMQ this word may be older than the loan, whose end must still be told.
                if (lent := self._lent.get(number)) is not None and lent() is None:
                    del self._lent[number]
                return True
            if len(fds) != 1 or len(self._maps) >= MAX_SLOTS:
                raise ServiceError(f"shared slot {number} came with {len(fds)} descriptors beside {len(self._maps)}")
            if not 0 < size <= self._limit or os.fstat(fds[0]).st_size != size:
                raise ServiceError(f"shared slot {number} of {size} bytes is not allowed; at most {self._limit}")
            # Without the seal a daemon that shrinks the file would end this process with SIGBUS.
            if fcntl.fcntl(fds[0], fcntl.F_GET_SEALS) & _SEALS != _SEALS:
                raise ServiceError(f"shared slot {number} is not sealed")
            flags = mmap.MAP_SHARED | mmap.MAP_POPULATE  # all pages at once, not one fault each
            self._maps[number] = mmap.mmap(fds[0], size, flags, mmap.PROT_READ)
            return True
        finally:
            for fd in fds:
                with contextlib.suppress(OSError):
                    os.close(fd)

    def close(self) -> None:
        """Takes no more slots. What the user holds stays mapped until it is let go."""
        self._lent.clear()
        self._maps.clear()
        self._socket.close()
