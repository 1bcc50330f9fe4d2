"""Layouts by epoch: how the sequences of an epoch fall into batches, remembered and kept on disk.

In: a planner and an epoch. Out: its layout, with the counts of its blocks where they were computed before. Counts are
4 bytes a block and a checksum, in one file per (plan_id, epoch); a damaged one is as good as none. Files and threads are
bounded, whatever epochs are asked for.
"""

from __future__ import annotations

import contextlib
import io
import os
import threading
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np

from .. import _packer
from ..errors import NavitError

KEEP_FILES = 256
"""Files of counts kept, those of all plans together."""
_KEEP_LAYOUTS = 4  # of the epochs that were asked for last
_STALE_S = 3600.0  # a half-written file of this age has no writer any more


L = TypeVar("L")


def recent(known: OrderedDict[int, L], epoch: int, make: Callable[[], L]) -> L:
    """The layout of an epoch: the same object while it is one of the last four that were asked for, else a new one.

    Args:
        known: layouts by epoch, that asked for last at the end.
        epoch: whose is wanted.
        make: makes a new one.
    """
    if epoch not in known:
        known[epoch] = make()
    known.move_to_end(epoch)
    if len(known) > _KEEP_LAYOUTS:
        known.popitem(last=False)
    return known[epoch]


class Layouts:
    """The layouts of one plan.

    Args:
        plan: the planner.
        plan_id: its fingerprint, which names the files.
    """

    def __init__(self, plan: _packer.Plan, plan_id: str) -> None:
        self._plan, self._plan_id = plan, plan_id
        self._known: OrderedDict[int, _packer.Layout] = OrderedDict()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closing = False
        self._next: tuple[int, _packer.Layout] | None = None

    def open(self, epoch: int) -> _packer.Layout:
        """A layout of its own, with the counts that are on disk.

        Raises:
            StateError: an epoch out of range.
        """
        layout = self._plan.layout(epoch)
        counts = _load(self._plan_id, epoch, layout.num_blocks) if layout.num_blocks > 1 else None
        if counts is not None:
            layout.extend(counts)
        return layout

    def near(self, epoch: int, block: int, before: int) -> _packer.Layout:
        """A layout that begins at a block, which `before` sequences precede, and knows nothing of what lies before.

        Raises:
            StateError: an epoch or block out of range.
        """
        return self._plan.layout(epoch, block, before)

    def get(self, epoch: int) -> _packer.Layout:
        """The layout of an epoch, the same object for whoever asks, while it is one of the last four.

        Its blocks are counted in the background, so that `len` is there when it is wanted; those of the epoch that was asked
        for last.
        """

        def make() -> _packer.Layout:
            layout = self.open(epoch)
            if layout.num_sequences is None:
                self._next = (epoch, layout)
                if self._thread is None:
                    self._thread = threading.Thread(target=self._count, name="navit-count", daemon=True)
                    self._thread.start()
            return layout

        with self._lock:
            return recent(self._known, epoch, make)

    def keep(self, epoch: int, layout: _packer.Layout) -> None:
        """Writes the counts of a whole epoch to disk; without a writable cache nothing happens."""
        if layout.num_blocks < 2 or layout.num_sequences is None:
            return
        with contextlib.suppress(OSError):
            _save(_file(self._plan_id, epoch), layout.counts(0, layout.num_blocks))

    def close(self) -> None:
        """Counts no further. Safe to call twice."""
        self._closing = True
        if (thread := self._thread) is not None:
            thread.join()

    def _count(self) -> None:
        while True:
            with self._lock:
                if self._next is None or self._closing:
                    self._thread = None
                    return
                (epoch, layout), self._next = self._next, None
            with contextlib.suppress(NavitError):
                while self._next is None and not self._closing and not layout.count_on(layout.num_blocks):
                    pass
                self.keep(epoch, layout)


def _file(plan_id: str, epoch: int) -> Path:
    """Raises OSError where the user has no home, as in many containers."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if base.startswith("~"):
        raise FileNotFoundError("no HOME, and no entry in /etc/passwd")
    return Path(base) / "navit" / f"{plan_id}-{epoch}.npy"


Counts = np.ndarray[tuple[int], np.dtype[np.uint32]]


def _content(file: Path, counts: Counts) -> bytes:
    """A file of counts: an array as numpy saves it, of them and a CRC-32 over them and what they are counts of."""
    check = zlib.crc32(counts.tobytes(), zlib.crc32(file.name.encode()))
    out = io.BytesIO()
    np.save(out, np.append(counts, np.uint32(check)), allow_pickle=False)
    return out.getvalue()


def _load(plan_id: str, epoch: int, num_blocks: int) -> Counts | None:
    try:
        file = _file(plan_id, epoch)
        content = file.read_bytes()
    except OSError:
        return None
    stored = content[-4 * (num_blocks + 1) : -4]
    if len(stored) != 4 * num_blocks:
        return None
    counts = np.frombuffer(stored, np.uint32)
    return counts if content == _content(file, counts) else None


def _save(file: Path, counts: Counts) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(f".{os.getpid()}.part")
    part.write_bytes(_content(file, counts))
    part.replace(file)
    ages: list[tuple[float, str]] = []
    now = time.time()
    with os.scandir(file.parent) as entries:
        for entry in entries:
            # Another process may tidy up too.
            with contextlib.suppress(OSError):
                written = entry.stat().st_mtime
                if entry.name.endswith(".npy"):
                    ages.append((written, entry.path))
                elif entry.name.endswith(".part") and now - written > _STALE_S:
                    os.unlink(entry.path)
    for _, path in sorted(ages)[:-KEEP_FILES]:
        with contextlib.suppress(OSError):
            os.unlink(path)
