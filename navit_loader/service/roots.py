"""Whether a daemon has its images at all: one whose disk is not mounted must not answer that they are gone.

In: the indexes that are served. Out: why they cannot be served now, or nothing. On a thread of its own, since a dead mount
holds whoever looks at it, and the daemon's loop must not be held.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence

from ..index import Index
from ..index.sources.remote import is_remote

_EVERY_S = 2.0
_SILENT_S = 10.0
_LOOKED_AT = 8


class Roots:
    """Looks now and again whether images are where their indexes say.

    Args:
        indexes: gives those that are served.
        wake: called on the thread when the answer is another one.
    """

    def __init__(self, indexes: Callable[[], Sequence[Index]], wake: Callable[[], None]) -> None:
        self._indexes, self._wake = indexes, wake
        self._why = ""
        self._begun = time.monotonic()
        self._looked, self._closing = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="navit-roots", daemon=True)
        self._thread.start()
        self._looked.wait(_EVERY_S)

    @property
    def why(self) -> str:
        """Why the images are out of reach; empty where they are not."""
        silent = time.monotonic() - self._begun
        return self._why or (f"its storage has not answered for {silent:.0f} s" if silent > _SILENT_S else "")

    def close(self) -> None:
        """Looks no more. Does not wait for a look that hangs."""
        self._closing.set()
        self._thread.join(0.1)

    def _run(self) -> None:
        while not self._closing.is_set():
            self._begun = time.monotonic()
            why = next(filter(None, map(absent, self._indexes())), "")
            self._begun = float("inf")
            changed, self._why = why != self._why, why
            self._looked.set()
            if changed:
                self._wake()
            self._closing.wait(_EVERY_S)


def absent(index: Index) -> str:
    """Why none of an index's images on this host can be had, by a look at a few of them; empty where one can."""
    rows = range(0, index.num_rows, max(1, index.num_rows // _LOOKED_AT))
    files = [file for file in map(index.file, rows) if not is_remote(file)]
    if not files or not all(map(_gone, files)):
        return ""
    return f"there is no '{files[0]}', nor any other image of '{index.path}' that was looked for: is its disk mounted?"


def _gone(file: str) -> bool:
    try:
        os.stat(file)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:  # that may pass
        return False
    return False
