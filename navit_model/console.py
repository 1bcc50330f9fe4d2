"""What is printed never ends work: streams that cannot say a letter, and streams that nobody reads any more.

In: text for a person. Out: the text, with an escape in place of what the stream has no letter for; nothing where the terminal
has hung up or the disk behind the stream is full. Apart, since the command line and a run's log both speak.
"""

from __future__ import annotations

import io
import os
import sys
from typing import TextIO


def prepare() -> None:
    """Lets both streams say any text, be it in ASCII alone."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def hush(stream: TextIO) -> None:
    """Nobody reads the stream any more: what is left in it, and all that comes, goes nowhere."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    except OSError:  # no file stands behind it
        return


def tell(text: str) -> None:
    """One line on stderr."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        hush(sys.stderr)
