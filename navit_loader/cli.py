"""The command line `navit-loader`: one module of `navit_loader.commands` for each subcommand.

In: arguments. Out: an exit status; 2 with one line on stderr for every error that navit raises on purpose, and for a file or
disk that cannot be read or written. The subcommands load what they need when they run, so that `--help` is quick.
"""

from __future__ import annotations

from collections.abc import Sequence

from .shown import Arguments, command_line, escape_outputs, speak_as, status_of

COMMANDS = (
    "index",
    "info",
    "split",
    "lint",
    "pack_shards",
    "suggest",
    "plan",
    "preview",
    "report",
    "bench",
    "serve",
    "fleet",
    "keys",
    "top",
    "init",
    "schema",
    "doctor",
    "completion",
)
"""Modules of `navit_loader.commands`, in the order of the help. Each has `add(subparsers)` and `run(args) -> int`."""


def parser() -> Arguments:
    """All of its arguments."""
    return command_line(
        "navit-loader",
        "Whole images of any size, packed into fixed-length sequences by a plan made from headers alone.",
        f"{__package__}.commands",
        COMMANDS,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `navit-loader`.

    Args:
        argv: the arguments; None takes those of the process.

    Returns:
        See `shown.EXITS`.
    """
    escape_outputs()
    args = parser().parse_args(argv)
    speak_as(args)
    return status_of(lambda: args.run(args), "navit-loader: error")
