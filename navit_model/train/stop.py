"""How a run is stopped: SIGINT, SIGTERM and SIGHUP let the step end and be saved, and a rank ends with its torchrun.

In: signals. Out: the number of the first, which the loop looks at; `Stopped` at once where only something is waited for. Apart
from the loop, since handlers belong to the process, not to a step.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

REPEAT_S = 2.0
"""A signal that follows the first sooner is the same wish: a terminal and torchrun both pass it on."""

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Stopped(KeyboardInterrupt):
    """A run was stopped by a signal.

    Args:
        number: which; the process ends with the status 128 + number.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


class Signals:
    """Notes the first signal while the `with` block runs; does nothing outside the main thread.

    Attributes:
        number: the first signal, 0 so far.
        insisted: whether another one came later, after which nothing is saved any more.
    """

    def __init__(self) -> None:
        self.number = 0
        self.insisted = False
        self._first = 0.0
        self._at_once = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> None:
        """Takes the signals over; SIGHUP not where it is ignored, as `nohup` wants."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._note)

    def __exit__(self, *_: object) -> None:
        """Gives them back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """A wait that the first signal ends, by `Stopped`, also where it came before."""
        self._at_once = True
        try:
            if self.number:
                raise Stopped(self.number)
            yield
        finally:
            self._at_once = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.number:
            self.number, self._first = number, now
            if self._at_once:
                raise Stopped(number)
        elif now - self._first > REPEAT_S:
            self.insisted = True
            raise Stopped(number)


def end_with_parent() -> None:
    """Of a rank that torchrun started: SIGTERM comes when torchrun is gone, however it went (Linux)."""
    if "TORCHELASTIC_RUN_ID" in os.environ and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
