"""Lends shared memory to the clients of this host: who calls, and which slots each has been lent.

In: callers at the abstract Unix socket, batches for clients, credits. Out: slots in replies, requests. Apart from
the server, since this is another socket with its own ways of failing; where it fails, batches go over ZeroMQ.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import zmq

from ..errors import ServiceError
from .fair import FairShare
from .log import ServiceLog
from .session import Delivery, Session
from .shm import SUPPORTED, Listener, Loans

if TYPE_CHECKING:
    from .._packer import Buffer
    from ..batch import PackedBatch

_PACKETS_PER_TURN = 16


class Lender:
    """The listener, its callers, and the loans of the sessions.

    Args:
        poller: where descriptors are registered.
        share: whose bytes are lent.
        log: where is counted.
    """

    def __init__(self, poller: zmq.Poller, share: FairShare[Session, Delivery], log: ServiceLog) -> None:
        self._poller, self._share, self._log = poller, share, log
        self._tokens: dict[str, Session] = {}
        self._owners: dict[int, Session] = {}  # by the descriptor of the connection of their loans
        self._callers: set[int] = set()
        self._listener = Listener() if SUPPORTED else None
        if self._listener is not None:
            poller.register(self._listener.fileno(), zmq.POLLIN)

    def invite(self, session: Session) -> tuple[str, ...]:
        """The listener's name and a token for a client that can take shared memory; empty where there is none."""
        if self._listener is None:
            return ()
        session.token = self._listener.token()
        self._tokens[session.token] = session
        return (self._listener.name, session.token)

    def receive(
        self, ready: dict[Any, int], gone: Callable[[Session, str], None]
    ) -> Iterator[tuple[bytes, str, list[bytes]]]:
        """The requests of clients that have shared memory, a bounded number of each a turn, as `Router.receive` gives them.

        Lets callers in, and calls `gone` for clients whose process has ended.
        """
        if self._listener is None:
            return
        for fd, session in [(fd, session) for fd, session in self._owners.items() if fd in ready]:
            for _ in range(_PACKETS_PER_TURN):
                # What it says may end its session, here or by a hello of the same name.
                if self._owners.get(fd) is not session or session.loans is None:
                    break
                try:
                    requests = session.loans.hear()
                except ServiceError as e:
                    gone(session, str(e))
                    break
                if requests is None:
                    break
                yield session.peer, session.key, requests
        for fd in [fd for fd in self._callers if fd in ready]:
            self._callers.discard(fd)
            self._poller.unregister(fd)
            if (said := self._listener.listen(fd)) is not None:
                self._admit(*said)
        while self._listener.fileno() in ready and (new := self._listener.accept()) is not None:
            self._callers.add(new.fileno())
            self._poller.register(new.fileno(), zmq.POLLIN)

    def lend(self, session: Session, batch: PackedBatch, nbytes: int) -> int:
        """Lends a batch's memory to its client as it is; the slot's number, or −1 where that cannot be.

        Args:
            session: the client.
            batch: kept until the slot comes back.
            nbytes: bytes of the request that the batch answers.
        """
        loans = session.loans
        memory: Buffer = batch.patches.base  # the owner of the batch's memory
        if loans is None or not loans.can(memory) or not self._share.lend(session, nbytes):
            return -1
        slot = loans.lend(memory, batch, nbytes)
        if slot < 0:
            self._share.borrow_again(session, nbytes)
        return slot

    def take_back(self, session: Session, slots: Iterable[int]) -> None:
        """A client's credit: it has let go of slots."""
        if session.loans is not None:
            for nbytes in session.loans.take_back(slots):
                self._share.give_back(session, nbytes)

    def look_after(self, now: float) -> None:
        """Gives up slots that stay away and callers that say nothing."""
        for session in self._owners.values():
            if session.loans is not None:
                self._log.counts["slots_abandoned"] += session.loans.abandon_old(now)
        for fd in self._listener.hang_up_silent(now) if self._listener is not None else ():
            self._callers.discard(fd)
            self._poller.unregister(fd)

    def forget(self, session: Session) -> None:
        """Ends a client's loans; memory that it may still read is never used again."""
        self._tokens.pop(session.token, None)
        if session.loans is None:
            return
        fd = session.loans.connection.fileno()
        del self._owners[fd]
        self._poller.unregister(fd)
        for nbytes in session.loans.close():
            self._share.give_back(session, nbytes)
        session.loans = None

    def close(self) -> None:
        """Closes the listener; sessions are to be forgotten before."""
        if self._listener is not None:
            for fd in (self._listener.fileno(), *self._callers):
                self._poller.unregister(fd)
            self._callers.clear()
            self._listener.close()
            self._listener = None

    def _admit(self, caller: socket.socket, token: str) -> None:
        session = self._tokens.pop(token, None)
        if session is None:
            caller.close()
            return
        session.loans = Loans(caller)
        self._owners[caller.fileno()] = session
        self._poller.register(caller.fileno(), zmq.POLLIN)
