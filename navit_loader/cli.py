"""The command line `navit-loader`: one module of `navit_loader.commands` for each subcommand.

In: arguments. Out: an exit status; 2 with one line on stderr for every error that navit raises on purpose, and for a file or
disk that cannot be read or written. The subcommands load what they need when they run, so that `--help` is quick.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from .shown import Arguments, escape_outputs, status_of

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
)
"""Modules of `navit_loader.commands`, in the order of the help. Each has `add(subparsers)` and `run(args) -> int`."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `navit-loader`.

    Args:
        argv: the arguments; None takes those of the process.

    Returns:
        0; 1 where a command found what it looks for to be wrong; 2 after an error; 130 after Ctrl-C.
    """
    escape_outputs()
    parser = Arguments(
        prog="navit-loader",
        description="Whole images of any size, packed into fixed-length sequences by a plan made from headers alone.",
    )
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for name in COMMANDS:
        import_module(f".commands.{name}", __package__).add(subparsers)
    args = parser.parse_args(argv)
    return status_of(lambda: args.run(args), "navit-loader: error")
