"""How a run is stopped: SIGINT and SIGTERM let the step end and be saved; a second one stops at once.

In: signals. Out: an event that the loop looks at. Apart from the loop, since handlers belong to the process, not to a step.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class Signals:
    """Turns SIGINT and SIGTERM into `event` while the `with` block runs; does nothing outside the main thread."""

    def __init__(self, event: threading.Event) -> None:
        self.event = event
        self.before: dict[int, Any] = {}

    def __enter__(self) -> None:
        """Takes the signals over."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.before[number] = signal.signal(number, self._note)

    def __exit__(self, *_: object) -> None:
        """Gives them back."""
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.event.is_set():
            raise KeyboardInterrupt
        self.event.set()
