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
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
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


_hushed = {"lines": False, "progress": False}
_answers = [False]


def speak(*, json: bool = False, quiet: bool = False, prints: bool = False) -> None:
    """How this process speaks from now on; both command lines say it when they know their arguments.

    Args:
        json: results are JSON on standard output, where nothing else is printed: `answer` speaks, `say` does not.
        quiet: no progress, and of a command that makes something no word on it.
        prints: the command's lines are what it is called for, and so `quiet` leaves them.
    """
    _answers[0] = json
    _hushed["lines"] = json or (quiet and not prints)
    _hushed["progress"] = quiet


def speak_as(args: argparse.Namespace) -> None:
    """The same, as the arguments of a command say."""
    given = getattr(args, "json", False)
    # eval and probe may write it into a file, and then the table is printed.
    speak(
        json=given is True or given == "-", quiet=getattr(args, "quiet", False), prints=getattr(args, "prints", False)
    )


def hushed(what: str) -> bool:
    """Whether there is no word on standard output (`lines`), or no progress (`progress`)."""
    return _hushed[what]


def answer(result: object) -> None:
    """Prints a command's result as one line of JSON, where that is wanted."""
    if _answers[0]:
        _print(json.dumps(result, default=str))


def say(line: object = "", to: TextIO | None = None) -> None:
    """Prints one line, `shown`, on standard output or `to`, at once."""
    if to is not None or not _hushed["lines"]:
        _print(line, to)


def _print(line: object, to: TextIO | None = None) -> None:
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
    """Log records of a process that serves go to stderr, each on one line; of `--quiet` warnings alone.

    Args:
        anew: take them from whoever had them before.
    """
    to_stderr = logging.StreamHandler(sys.stderr)
    to_stderr.setFormatter(Lines("time=%(asctime)s level=%(levelname)s room=%(name)s %(message)s"))
    logging.basicConfig(level=logging.WARNING if hushed("progress") else logging.INFO, handlers=[to_stderr], force=anew)


EXITS = """exit status:
  0    done, or the reader of the output has gone, as head does
  1    done, but some of the input is bad: a broken image, a part of this machine that does not work
  2    not done: one line on standard error names the file or key, the value and the remedy
  130  interrupted by Ctrl-C (SIGINT); 143 by SIGTERM, 129 by SIGHUP: 128 + the signal's number"""
"""What both command lines end with; the help of each names this place."""


class Version(argparse.Action):
    """`--version`: that of the engine, which the wheel's is."""

    def __init__(self, option_strings: Any, dest: str, **given: Any) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, help="print the version")

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        """Prints it and ends."""
        try:
            from ._packer import __version__ as version
        except ImportError:
            version = "of unknown version: the engine is not built"
        say(f"{parser.prog} {version}")
        parser.exit()


class _Help(argparse.HelpFormatter):
    """Help whose examples and statuses stay as they are written."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if text.startswith(("examples:", "exit status:")):
            return text
        return super()._fill_text(text, width, indent)


class Arguments(argparse.ArgumentParser):
    """A parser whose errors are one line, with what was perhaps meant.

    Args:
        examples: of command lines, without the program's name.
        given: what `ArgumentParser` takes.
    """

    def __init__(self, *, examples: tuple[str, ...] = (), **given: Any) -> None:
        given.setdefault("formatter_class", _Help)
        super().__init__(**given)
        program = self.prog.partition(" ")[0]
        self.examples = tuple(f"{program} {example}".replace("PROGRAM", program) for example in examples)
        if examples:
            lines = "\n".join(f"  {example}" for example in self.examples)
            self.epilog = f"examples:\n{lines}\n\nexit status: {program} --help tells each"

    def commands(self) -> dict[str, Arguments]:
        """Its subcommands by name."""
        return {k: v for action in self._actions if isinstance(action.choices, dict) for k, v in action.choices.items()}

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


def command_line(prog: str, description: str, package: str, commands: Sequence[str]) -> Arguments:
    """A whole command line.

    Args:
        prog: its name.
        description: of it.
        package: that holds the subcommands.
        commands: its modules, in the order of the help; each has `add(subparsers)`.
    """
    top = Arguments(prog=prog, description=description, epilog=EXITS)
    top.set_defaults(parser=top)  # for those who look at all of it
    top.add_argument("--version", action=Version)
    subparsers = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in commands:
        import_module(f".{name}", package).add(subparsers)
    return top


def _meant(given: str, allowed: list[str]) -> str:
    near = difflib.get_close_matches(given, allowed, 1)
    return f" (did you mean '{near[0]}'?)" if near else ""


def escape_outputs() -> None:
    """An output that takes ASCII alone, as without a locale, gets the rest escaped."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def status_of(run: Callable[[], int], name: str) -> int:
    """Runs a command, and says its errors; behind it this process speaks again, whatever `speak_as` was told.

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
    finally:
        speak()
