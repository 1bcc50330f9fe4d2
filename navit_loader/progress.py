"""How far long work is, on standard error: a bar where somebody watches, else plain lines.

In: what is done, counted. Out: share, rate and time left. Apart from the commands, since work that is asked for by several of
them is counted where it is done.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING

from .shown import hushed, tell

if TYPE_CHECKING:
    from .batch import PackedBatch

PLAIN_LINE_S = 10.0
"""Seconds between lines of progress where nobody watches a bar."""

_watched: list[str] = []


class ProgressLine:
    """Progress on stderr, with rate and time left: a bar where somebody watches, else a line every ten seconds.

    Args:
        what: what is being done, in a word.
        things: what is counted.
    """

    def __init__(self, what: str, things: str = "images") -> None:
        self._what, self._things = what, things
        self._started = self._shown = time.monotonic()
        self._first: tuple[float, int] | None = None
        self._bar = None
        if sys.stderr.isatty() and not hushed("progress"):
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TaskProgressColumn(),
                TextColumn("{task.fields[note]}"),
                console=Console(stderr=True),
                transient=True,
                # Where standard output goes elsewhere, what is printed stays there.
                redirect_stdout=sys.stdout.isatty(),
            )
            self._task = self._bar.add_task(what, total=1.0, note="")

    def update(self, share: float, count: int, note: str = "") -> None:
        """Shows how far it is.

        Args:
            share: done, 0 to 1.
            count: how many.
            note: more counts.
        """
        now = time.monotonic()
        if self._first is None:  # what an earlier start did is not this one's speed
            self._first, self._started = (share, count), now
        seconds = now - self._started
        done, counted = share - self._first[0], count - self._first[1]
        told = [f"{count:,} {self._things}", *([note] if note else [])]
        if seconds > 0 and done > 0:
            told += [f"{counted / seconds:,.0f}/s", f"{_clock(seconds / done * (1 - share))} left"]
        if self._bar is not None:
            self._bar.update(self._task, completed=share, note=", ".join(told))
        elif now - self._shown >= PLAIN_LINE_S and not hushed("progress"):
            self._shown = now
            tell(f"{self._what}: {share:.0%}, {', '.join(told)}")

    def __enter__(self) -> ProgressLine:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()


@contextmanager
def watching(what: str) -> Iterator[None]:
    """Passes over indexes within show how far they are, under this name. Elsewhere, as amid a training, they are silent."""
    _watched.append(what)
    try:
        yield
    finally:
        _watched.pop()


def watched(batches: Iterable[PackedBatch], images: int) -> Iterator[PackedBatch]:
    """The batches of one pass.

    Args:
        batches: of a loader.
        images: that it will give in all.
    """
    if not _watched:
        yield from batches
        return
    seen = 0
    with ProgressLine(_watched[-1]) as line:
        for batch in batches:
            yield batch
            seen += int((batch.status > 0).sum())
            line.update(min(1.0, seen / max(1, images)), seen)


def _clock(seconds: float) -> str:
    """Hours, minutes and seconds, as in 1:02:03."""
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
