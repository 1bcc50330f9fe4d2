"""`navit-loader completion SHELL`: a script by which a shell completes this command's words; `navit-model` has the same."""

from __future__ import annotations

import argparse
from typing import Any

from ..shown import say

FILES = (
    "CONFIG",
    "CONFIG.toml",
    "FILE",
    "FILE.onnx",
    "FOLDER",
    "IMAGE",
    "INDEX",
    "MODEL",
    "RUN",
    "SCORES.json",
    "SOURCE",
)
"""Names of arguments that are files."""


def add(subparsers: Any) -> None:
    """Adds the subcommand."""
    parser = subparsers.add_parser(
        "completion",
        examples=(
            "completion bash > ~/.local/share/bash-completion/completions/PROGRAM",
            "completion zsh > ~/.zfunc/_PROGRAM",
        ),
        help="print a script for the completion of bash, zsh or tcsh",
        description="Prints a script that the shell reads, once written where it looks; a new version wants it written anew. "
        "Needs the extra 'completion' (shtab).",
    )
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"))
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints it.

    Raises:
        ExtraError: shtab is not installed.
    """
    from ..errors import needed

    shtab, parser = needed("shtab"), args.parser
    for command in parser.commands().values():
        for action in command._actions:
            if action.metavar in FILES or (isinstance(action.metavar, tuple) and not action.choices):
                setattr(action, "complete", shtab.FILE)  # noqa: B010
    for line in shtab.complete(parser, args.shell).split("\n"):
        say(line.replace("\t", "    "))
    return 0
