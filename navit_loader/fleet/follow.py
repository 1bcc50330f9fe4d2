"""A client's eye on a fleet: `Followed` by the registry's word.

In: a fleet's name. Out: rosters, each as soon as it is there. A thread waits for the registry, so that a connection never does;
where the registry is away the last roster stands, and it is looked for by name again: Ray may have restarted it, or another
fleet may have taken the name.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from typing import Any

from ..errors import ServiceError, said
from ..service.roster import Roster
from .cluster import SCHEME, checked, connected, registry

_AGAIN_S = 0.5
_CLOSE_S = 2.0  # for which an end waits for the thread, which Ray holds up where its cluster is away
_LOST_S = 30.0  # a registry that is there answers sooner, if only that nothing is new


class Follower:
    """Follows a fleet.

    Args:
        address: `ray://NAME`.
        connect_timeout_s: how long to wait for a fleet of that name.

    Raises:
        ServiceError: no cluster, or no such fleet on it.
        ConfigError: no such name.
    """

    def __init__(self, address: str, connect_timeout_s: float) -> None:
        self._name = checked(address.removeprefix(SCHEME))
        self._ray = connected()
        until = time.monotonic() + connect_timeout_s
        while (found := self._find()) is None:
            if time.monotonic() > until:
                raise ServiceError(self._why)
            time.sleep(_AGAIN_S)
        self._roster: Roster | None = None
        self._token = ""
        self._lock, self._turn = threading.Lock(), threading.Event()
        self._closing = self._closed = False
        self._fd, self._end = os.pipe()
        for fd in (self._fd, self._end):
            os.set_blocking(fd, False)
        self._thread = threading.Thread(target=self._run, args=(found,), name="navit-follow", daemon=True)
        self._thread.start()

    def news(self) -> Roster | None:
        """As `Followed`."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._fd, 4096)
        with self._lock:
            roster, self._roster = self._roster, None
        return roster

    def fileno(self) -> int:
        """As `Followed`."""
        return self._fd

    @property
    def state(self) -> str:
        """As `Followed`."""
        return self._why or f"the fleet '{self._name}' has these daemons, or none"

    def close(self) -> None:
        """As `Followed`."""
        if self._closing:
            return
        self._closing = True
        self._turn.set()
        self._thread.join(_CLOSE_S)
        with self._lock:  # it may be at it still
            self._closed = True
            os.close(self._fd)
            os.close(self._end)

    def _find(self) -> Any:
        """The registry, or None and why there is none."""
        try:
            found = registry(self._ray, self._name)
        except (ServiceError, self._ray.exceptions.RayError) as e:
            self._why = said(e)[0]
            return None
        self._why = ""
        return found

    # --- the thread ------------------------------------------------------------------------------------------------

    def _run(self, found: Any) -> None:
        # Once a driver has left its cluster, any call would start another cluster.
        while not self._closing and self._ray.is_initialized():
            try:
                if (roster := self._next(found)) is not None and roster.token != self._token:
                    self._token, self._why = roster.token, ""
                    with self._lock:
                        self._roster = roster
                        if not self._closed:
                            os.write(self._end, b"x")
            except Exception as e:  # of whatever kind: Ray's own, or those of the connection to it
                self._why = f"the registry of fleet '{self._name}' is away ({type(e).__name__})"
                self._turn.wait(_AGAIN_S)
                with contextlib.suppress(Exception):
                    found = self._find() or found

    def _next(self, found: Any) -> Roster | None:
        """Waits for the next roster; None where the end came first."""
        future = found.watch.remote(self._token).future()
        future.add_done_callback(lambda _: self._turn.set())
        self._turn.wait(_LOST_S)
        if self._closing:
            return None
        self._turn.clear()
        roster: Roster = future.result(0)
        return roster
