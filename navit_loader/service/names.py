"""Daemons by the names of their hosts: `Followed` by the system's resolver's word.

In: addresses, some of which name a host. Out: rosters of all addresses that the names stand for. A name may stand for many
daemons that come and go, as that of a Kubernetes headless service does; ZeroMQ would take the first alone. Apart from the
connection, since a thread has to ask: an answer may take seconds.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import threading
import time
from collections.abc import Sequence

from .roster import Roster
from .security import ClientKeys, check_address

_EVERY_S = 5.0  # for which a cluster's resolver keeps an answer
_AGAIN_S = 0.5
_KEPT_S = 30.0
"""How long an address stays that a name gives no more: some resolvers give a few of many, others each time. A daemon that ends
says so itself."""


def named(addresses: Sequence[str]) -> bool:
    """Whether one of these names a host."""
    return any(map(_host, addresses))


class Names:
    """Follows what names stand for: IPv4 addresses, or IPv6 where a name has no others.

    Args:
        addresses: `tcp://HOST:PORT` with names or addresses, or `ipc://PATH`.
        keys: what the daemons demand.

    Raises:
        ServiceError: what is no address.
    """

    def __init__(self, addresses: Sequence[str], keys: ClientKeys | None) -> None:
        for address in addresses:
            check_address(address)
        self._given, self._keys = tuple(dict.fromkeys(addresses)), keys
        self._seen: dict[str, dict[str, float]] = {address: {} for address in self._given}
        self._unknown: dict[str, str] = {}  # names without an answer, and why
        self._found: tuple[str, ...] = ()
        self._fresh = False
        self._lock, self._closing = threading.Lock(), threading.Event()
        self._fd, self._end = os.pipe()
        for fd in (self._fd, self._end):
            os.set_blocking(fd, False)
        threading.Thread(target=self._run, name="navit-names", daemon=True).start()

    def news(self) -> Roster | None:
        """As `Followed`."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._fd, 4096)
        with self._lock:
            fresh, self._fresh = self._fresh, False
            return Roster(" ".join(self._found), self._found, self._keys) if fresh else None

    def fileno(self) -> int:
        """As `Followed`."""
        return self._fd

    @property
    def state(self) -> str:
        """As `Followed`."""
        with self._lock:
            unknown = [
                f"'{name}' has no address: {why}; is the host's name right, and is it up?"
                for name, why in self._unknown.items()
            ]
            return "; ".join(unknown) or f"{', '.join(self._given)} stand for {len(self._found)} addresses"

    def close(self) -> None:
        """As `Followed`. Does not wait for the resolver."""
        with self._lock:
            if not self._closing.is_set():
                self._closing.set()
                os.close(self._fd)
                os.close(self._end)

    def _run(self) -> None:
        while not self._closing.is_set():
            answers = [(address, *_looked_up(address)) for address in self._given]
            with self._lock:
                if self._closing.is_set():
                    return
                self._take(answers)
            self._closing.wait(_AGAIN_S if self._unknown else _EVERY_S)

    def _take(self, answers: list[tuple[str, list[str], str]]) -> None:
        now = time.monotonic()
        self._unknown = {address: why for address, _, why in answers if why}
        for address, found, why in answers:
            seen = self._seen[address]
            seen.update(dict.fromkeys(seen if why else found, now))
            for gone in [one for one, last in seen.items() if now - last > _KEPT_S]:
                del seen[gone]
        every = tuple(dict.fromkeys(one for seen in self._seen.values() for one in sorted(seen)))
        if every != self._found:
            self._found, self._fresh = every, True
            os.write(self._end, b"x")


def _host(address: str) -> str:
    """The host that an address names; empty where it names none."""
    host = address.removeprefix("tcp://").rpartition(":")[0]
    if not address.startswith("tcp://") or not host.replace("-", "").replace(".", "").replace("_", "").isalnum():
        return ""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host
    return ""


def _looked_up(address: str) -> tuple[list[str], str]:
    """The addresses that one with a name stands for, or why there are none."""
    if not (host := _host(address)):
        return [address], ""
    port, why = address.rpartition(":")[2], ""
    for family, form in ((socket.AF_INET, "tcp://{}:{}"), (socket.AF_INET6, "tcp://[{}]:{}")):
        try:
            found = socket.getaddrinfo(host, int(port), family, socket.SOCK_STREAM)
        except (OSError, UnicodeError) as e:
            why = why or (getattr(e, "strerror", None) or str(e))
        else:
            return [form.format(place[0], port) for *_, place in found], ""
    return [], why
