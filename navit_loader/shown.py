"""Words that others wrote, as a terminal may show them: names of files, classes and clients can hold anything.

In: lines to print, to log or to put into a picture. Out: the same with every character that steers a terminal, turns the
direction of reading, breaks a line or is no character at all written as `\\u001b`, which JSON reads as well. Apart from who
prints, since these are the doors of both command lines: `say` and `tell`, `Arguments`, `log_to_stderr`, and `status_of` for
errors.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import io
import logging
import os
import re
import sys
from collections.abc import Callable
from typing import Any, NoReturn, TextIO

from .errors import ExtraError, NavitError, reason

_STEERING = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
"""C0, DEL and C1; marks, embeddings, overrides and isolates of direction; breaks of lines; halves of pairs; no characters."""


def shown(text: object) -> str:
    """One line in which nothing steers a terminal; all of it can be encoded, and stands in XML."""
    return _STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", str(text))


def counted(number: int, what: str, many: str = "") -> str:
    """`1 image`, `2 images`; `many` where that is another word than with an s."""
    return f"{number:,} {what if number == 1 else many or what + 's'}"


def say(line: object = "", to: TextIO | None = None) -> None:
    """Prints one line, `shown`, on standard output or `to`, at once."""
    try:
        print(shown(line), file=sys.stdout if to is None else to, flush=True)
    except OSError as e:
        if to is None:
            hush(sys.stdout)
            e.filename = "standard output"
        raise


def tell(line: object) -> None:
    """The same on standard error, where it ends no work that nobody can read it."""
    try:
        say(line, sys.stderr)
    except OSError:
        hush(sys.stderr)


def hush(stream: TextIO | None) -> None:
    """Nobody reads the stream any more, or its disk is full: what is left to flush goes nowhere, and all that comes."""
    if stream is not None:
        with contextlib.suppress(OSError):  # no file stands behind it
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class Lines(logging.Formatter):
    """Log records, each on one line but for a traceback."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: D102
        return shown(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: D102
        return "\n".join(map(shown, super().formatException(ei).split("\n")))


def log_to_stderr(*, anew: bool = False) -> None:
    """Log records of a process that serves go to stderr, each on one line; `anew` takes them from whoever had them before."""
    to_stderr = logging.StreamHandler(sys.stderr)
    to_stderr.setFormatter(Lines("time=%(asctime)s level=%(levelname)s room=%(name)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[to_stderr], force=anew)


class Arguments(argparse.ArgumentParser):
    """A parser whose errors are one line, with what was perhaps meant."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:  # noqa: D102
        found, rest = super().parse_known_args(args, namespace)
        for given in rest:
            if given.startswith("-"):
                options = [option for action in self._actions for option in action.option_strings]
                self.error(f"unknown option {given}{_meant(given.partition('=')[0], options)}")
        return found, rest

    def error(self, message: str) -> NoReturn:
        """Ends with status 2."""
        if found := re.search(r"invalid choice: '(.*)' \(choose from (.*)\)$", message):
            message += _meant(found[1], re.findall(r"[\w-]+", found[2]))
        self.exit(2, shown(f"{self.prog}: error: {message}; see {self.prog} --help") + "\n")


def _meant(given: str, allowed: list[str]) -> str:
    near = difflib.get_close_matches(given, allowed, 1)
    return f" (did you mean '{near[0]}'?)" if near else ""


def escape_outputs() -> None:
    """An output that takes ASCII alone, as without a locale, gets the rest escaped."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def status_of(run: Callable[[], int], name: str) -> int:
    """Runs a command, and says its errors.

    Args:
        run: gives the exit status.
        name: of the command, which the lines begin with.

    Returns:
        What `run` gives; 2 with one line on stderr for an error that navit raises on purpose, or a file that cannot be read
        or written; 0 where the reader of the output has gone, as `head` does; 130 after Ctrl-C.
    """
    try:
        status = run()
        if sys.stdout is not None:
            sys.stdout.flush()
        return status
    except NavitError as e:
        tell(f"{name}: {' '.join(str(e).split())}")
        return 2
    except ModuleNotFoundError as e:
        if (error := ExtraError.of(e)) is None:
            raise
        tell(f"{name}: {error}")
        return 2
    except BrokenPipeError:
        hush(sys.stdout)
        return 0
    except OSError as e:
        if e.filename is None and e.errno is None:
            raise
        # A file that the caller named, or a disk: without a name where a file was open already.
        place = f"'{os.fsdecode(e.filename)}': " if isinstance(e.filename, str | bytes | os.PathLike) else ""
        tell(f"{name}: {place}{reason(e)}")
        if e.filename is None:
            hush(sys.stdout)
        return 2
    except KeyboardInterrupt:
        tell(f"{name.partition(':')[0]}: interrupted")
        return 130
