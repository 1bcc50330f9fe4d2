"""What the daemon says and counts: log lines that a peer cannot make into a flood, and counters for the metrics. And what a
client says that waits.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable

log = logging.getLogger("navit_loader.serve")
_PATIENCE_S = (5.0, 300.0)


class ServiceLog:
    """Counters by name, and the log.

    Attributes:
        counts: what happened so far.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._said: dict[str, float] = {}

    def say(self, topic: str, message: str, level: int) -> None:
        """Logs, but a warning at most once a second and topic: a peer must not fill the disk."""
        now = time.monotonic()
        if level >= logging.WARNING and now - self._said.get(topic, -10.0) < 1:
            self.counts["log_lines_withheld"] += 1
            return
        self._said[topic] = now
        log.log(level, message)


class Patience:
    """Says what is waited for: after five seconds, and then at pauses that double, to five minutes.

    Args:
        what: is waited for, in words.
        limit_s: seconds after which waiting ends.
        log: the waiter's.
    """

    def __init__(self, what: str, limit_s: float, log: logging.Logger) -> None:
        self._what, self._limit, self._log = what, limit_s, log
        self._began = time.monotonic()
        self._pause = _PATIENCE_S[0]
        self._next = self._began + self._pause

    def look(self, state: Callable[[], str]) -> None:
        """To be called once a second or so.

        Args:
            state: says who is waited for, and why.
        """
        now = time.monotonic()
        if now >= self._next:
            waited, limit = now - self._began, self._limit
            self._log.warning("waiting for %s for %.0f s, until %g s: %s", self._what, waited, limit, state())
            self._next = now + self._pause
            self._pause = min(2 * self._pause, _PATIENCE_S[1])
