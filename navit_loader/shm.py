"""Batches between two processes of one host without a socket in between: sealed memory, passed by descriptor.

In: batches at the daemon. Out: the same arrays at the client, mapped read-only. The daemon listens on an abstract Unix
socket, which has no file; a client that can reach it and shows the token of its hello is on the same host. Each slot
is one memfd without a name, sealed against shrinking, growing and other writers, so nothing is left behind when either
process is killed. A slot is written again only after the client gave it back; one that stays away too long is
abandoned for ever. Where no slot is free the batch travels over ZeroMQ instead.
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
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .batch import PackedBatch
from .errors import ServiceError
from .protocol import PlanInfo, batch_fields

SUPPORTED = hasattr(os, "memfd_create") and hasattr(socket, "SCM_RIGHTS")
"""Whether this system has what shared memory needs (Linux)."""

MAX_SLOTS = 64
ABANDON_S = 120.0
_ALIGN = 64
_ANNOUNCE = struct.Struct("<QQ")  # slot number, bytes
_TOKEN_BYTES = 32
_F_SEAL_FUTURE_WRITE = 0x10
_SEALS = 0x1 | 0x2 | 0x4 | _F_SEAL_FUTURE_WRITE  # no further seals, no shrinking, no growing, no other writer


def slot_bytes(info: PlanInfo, patch_size: int, count: int) -> int:
    """Bytes of a batch in a slot; every field starts at a multiple of 64."""
    return sum(-(-f.nbytes // _ALIGN) * _ALIGN for f in batch_fields(info, patch_size, count))


@dataclass(eq=False, slots=True)
class _Slot:
    number: int
    memory: mmap.mmap
    size: int
    lent: float = 0.0  # since when, 0 while it is free

    def close(self) -> None:
        self.memory.close()


class Shelf:
    """The slots of one client, at the daemon.

    Args:
        connection: the Unix socket to the client.
        take: asks for bytes of the daemon's bound; False where they are not to be had.
        give: gives them back.
    """

    def __init__(self, connection: socket.socket, take: Callable[[int], bool], give: Callable[[int], None]) -> None:
        self.connection = connection
        self._take, self._give = take, give
        self._slots: dict[int, _Slot] = {}
        self._next = 0

    def put(self, batch: PackedBatch, size: int) -> int:
        """Copies a batch into a free slot.

        Args:
            batch: the arrays.
            size: bytes of the largest batch of this client's batch size.

        Returns:
            The slot's number, or −1 where none is free.
        """
        slot = next((s for s in self._slots.values() if not s.lent and s.size >= size), None) or self._make(size)
        if slot is None:
            return -1
        at = 0
        for array in batch.arrays().values():
            if array.size:
                np.copyto(np.frombuffer(slot.memory, array.dtype, array.size, at).reshape(array.shape), array)
            at += -(-array.nbytes // _ALIGN) * _ALIGN
        slot.lent = time.monotonic()
        return slot.number

    def _make(self, size: int) -> _Slot | None:
        if len(self._slots) >= MAX_SLOTS or not self._take(size):
            return None
        fd = os.memfd_create("navit", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, size)
            memory = mmap.mmap(fd, size)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
            socket.send_fds(self.connection, [_ANNOUNCE.pack(self._next, size)], [fd])
        except OSError:  # no memory, or a client that does not read: ZeroMQ will do
            self._give(size)
            return None
        finally:
            os.close(fd)
        slot = self._slots[self._next] = _Slot(self._next, memory, size)
        self._next += 1
        return slot

    def give_back(self, numbers: Iterable[int]) -> None:
        """The client has let go of slots. Numbers of abandoned slots are ignored."""
        for number in numbers:
            if number in self._slots:
                self._slots[number].lent = 0.0

    def abandon_old(self, now: float) -> int:
        """Gives up slots that stayed away too long: their memory is the client's, and is never written again."""
        old = [s for s in self._slots.values() if s.lent and now - s.lent > ABANDON_S]
        for slot in old:
            del self._slots[slot.number]
            slot.close()
            self._give(slot.size)
        return len(old)

    def close(self) -> None:
        """Lets go of every slot."""
        for slot in self._slots.values():
            slot.close()
            self._give(slot.size)
        self._slots.clear()
        self.connection.close()


class Door:
    """Where clients of this host fetch their descriptors: an abstract Unix socket, at the daemon."""

    def __init__(self) -> None:
        self.name = f"navit-{os.getpid()}-{secrets.token_hex(8)}"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        self._socket.bind("\0" + self.name)
        self._socket.listen(64)
        self._callers: dict[int, tuple[socket.socket, float]] = {}

    def fileno(self) -> int:
        """Readable when somebody is at the door."""
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
            token = caller.recv(_TOKEN_BYTES).decode("ascii", "replace")
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
        """Closes the door and sends all callers away."""
        for caller, _ in self._callers.values():
            caller.close()
        self._callers.clear()
        self._socket.close()


class Window:
    """The daemon's slots as a client sees them: mapped, read-only.

    Args:
        name: the door's name.
        token: this client's token.
        limit: bytes of one slot at most.

    Raises:
        OSError: the daemon is on another host, or of another user.
    """

    def __init__(self, name: str, token: str, limit: int) -> None:
        self._limit = limit
        self._maps: dict[int, tuple[mmap.mmap, int]] = {}
        self.returned: deque[int] = deque()
        """Slots that the user has let go of, to be given back to the daemon."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self._socket.settimeout(2)
            self._socket.connect("\0" + name)
            self._socket.sendall(token.encode())
        except OSError:
            self._socket.close()
            raise

    def open(self, number: int, info: PlanInfo, patch_size: int, count: int) -> list[np.ndarray[Any, Any]]:
        """The frames of the batch in a slot. When the last view of them dies, the slot is given back.

        Raises:
            ServiceError: a slot that was never announced, of a wrong size, or not sealed.
        """
        while number not in self._maps:
            self._receive()
        memory, size = self._maps[number]
        if patch_size not in info.patch_sizes or size < slot_bytes(info, patch_size, count):
            raise ServiceError(f"shared slot {number} of {size} bytes is too small for its batch")
        whole = np.frombuffer(memory, np.uint8)
        weakref.finalize(whole, self.returned.append, number).atexit = False
        frames, at = [], 0
        for field in batch_fields(info, patch_size, count):
            frames.append(whole[at : at + field.nbytes])
            at += -(-field.nbytes // _ALIGN) * _ALIGN
        return frames

    def _receive(self) -> None:
        try:
            data, fds, _, _ = socket.recv_fds(self._socket, _ANNOUNCE.size, 4, socket.MSG_WAITALL)
        except OSError as e:
            raise ServiceError(f"shared memory did not arrive: {e}") from None
        try:
            if len(data) != _ANNOUNCE.size or len(fds) != 1:
                raise ServiceError("the daemon closed its shared memory")
            number, size = _ANNOUNCE.unpack(data)
            if not 0 < size <= self._limit or os.fstat(fds[0]).st_size != size:
                raise ServiceError(f"shared slot {number} of {size} bytes is not allowed; at most {self._limit}")
            # Without the seal a daemon that shrinks the file would end this process with SIGBUS.
            if fcntl.fcntl(fds[0], fcntl.F_GET_SEALS) & _SEALS != _SEALS:
                raise ServiceError(f"shared slot {number} is not sealed")
            self._maps[number] = (mmap.mmap(fds[0], size, mmap.MAP_SHARED, mmap.PROT_READ), size)
        finally:
            for fd in fds:
                with contextlib.suppress(OSError):
                    os.close(fd)

    def close(self) -> None:
        """Takes no more slots. What the user holds stays mapped until it is let go."""
        self._maps.clear()
        self._socket.close()
