"""What the daemon says and counts: log lines that a peer cannot make into a flood, and counters for the metrics."""

from __future__ import annotations

import logging
import time
from collections import Counter

log = logging.getLogger("navit_loader.serve")


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
