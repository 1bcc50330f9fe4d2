"""Who is served next, and how many bytes each client may hold: the daemon's scheduler, without sockets or threads.

In: requests with their size in bytes, and the news that bytes came back. Out: the next request to start. Two rules:

- *Order*: start-time fair queueing. Each client has a virtual time, the bytes it was served; the smallest goes next. A
  client that was idle begins at the time of the request that started last, so that it neither catches up nor falls
  behind.
- *Memory*: dynamic thresholds (Choudhury and Hahne, 1998). A client may start a request while its bytes stay within
  what is still free for all. One client alone gets half of the bound, n clients 1/(n + 1) each, and a client that
  reads nothing can never take the rest. A client that holds nothing may always start one request that fits.
  What a client has been lent (shared memory, until it gives it back) is counted beside that, and is at most half of
  what is then free: so that a trainer that keeps batches is still served, by other ways.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

C = TypeVar("C", bound=Hashable)
T = TypeVar("T")


@dataclass(slots=True)
class _Account(Generic[T]):
    queue: deque[tuple[T, int]] = field(default_factory=deque)
    time: int = 0
    held: int = 0
    lent: int = 0


class FairShare(Generic[C, T]):
    """Queues and byte accounts by client.

    Args:
        bound: bytes that all clients together may hold.
    """

    def __init__(self, bound: int) -> None:
        self.bound = bound
        self.used = 0
        self._now = 0  # virtual time of the request that started last
        self._accounts: dict[C, _Account[T]] = {}

    @property
    def waiting(self) -> int:
        """Requests that have not been started."""
        return sum(len(a.queue) for a in self._accounts.values())

    def held(self, client: C) -> int:
        """Bytes of a client's requests that were started and have not come back, and of what it was lent."""
        account = self._accounts.get(client)
        return account.held + account.lent if account is not None else 0

    def push(self, client: C, item: T, nbytes: int) -> None:
        """Adds a request at the end of its client's queue."""
        account = self._accounts.setdefault(client, _Account())
        if not account.queue:
            account.time = max(account.time, self._now)
        account.queue.append((item, nbytes))

    def pop(self, ready: Callable[[T], bool] = lambda _: True) -> tuple[C, T, int] | None:
        """Starts the next request; None if none waits or none may start yet. Its bytes are held until `release`.

        Args:
            ready: whether a request can be started; a client whose oldest cannot is passed over, and loses nothing.
        """
        best: tuple[int, C] | None = None
        for client, account in self._accounts.items():
            if not account.queue or (best is not None and account.time >= best[0]):
                continue
            free = self.bound - self.used
            nbytes = account.queue[0][1]
            if nbytes > free or (account.held and account.held + nbytes > free):
                continue
            if ready(account.queue[0][0]):
                best = (account.time, client)
        if best is None:
            return None
        account = self._accounts[best[1]]
        item, nbytes = account.queue.popleft()
        self._now = account.time
        account.time += nbytes
        account.held += nbytes
        self.used += nbytes
        return best[1], item, nbytes

    def lend(self, client: C, nbytes: int) -> bool:
        """Turns bytes of a started request into a loan, until `give_back`; False, and nothing changes, where a client has
        been lent enough."""
        account = self._accounts.get(client)
        if account is None or account.lent + nbytes > (self.bound - self.used + nbytes) // 2:
            return False
        account.held -= nbytes
        account.lent += nbytes
        return True

    def borrow_again(self, client: C, nbytes: int) -> None:
        """Takes back a loan that could not be handed over: the bytes are those of a started request again."""
        self._accounts[client].lent -= nbytes
        self._accounts[client].held += nbytes

    def give_back(self, client: C, nbytes: int) -> None:
        """Ends a loan; its client may be gone by now."""
        self.used -= nbytes
        account = self._accounts.get(client)
        if account is not None:
            account.lent -= nbytes

    def release(self, client: C, nbytes: int) -> None:
        """Gives back bytes of a started request; its client may be gone by now."""
        self.used -= nbytes
        account = self._accounts.get(client)
        if account is not None:
            account.held -= nbytes

    def drop(self, client: C, unwanted: Callable[[T], bool] = lambda _: True) -> list[T]:
        """Takes the waiting requests that are no longer wanted out of a client's queue, and returns them."""
        account = self._accounts.get(client)
        if account is None:
            return []
        gone = [item for item, _ in account.queue if unwanted(item)]
        account.queue = deque(entry for entry in account.queue if not unwanted(entry[0]))
        return gone

    def forget(self, client: C) -> None:
        """Forgets a client. What it still holds counts until it is released."""
        self._accounts.pop(client, None)
