"""`navit-model completion SHELL`: a script by which a shell completes this command's words."""

from __future__ import annotations

from typing import Any

from navit_loader.commands import completion as of_loader
from navit_loader.shown import Arguments


def add(subparsers: Any) -> None:
    """Adds the subcommand."""
    of_loader.add(subparsers, _own)


def _own() -> Arguments:
    from ..cli import parser

    return parser()
