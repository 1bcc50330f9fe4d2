"""`navit-model init`: a commented configuration of a run, made from the schema."""

from __future__ import annotations

from typing import Any

from navit_loader.commands import init as of_loader

from .schema import schema


def add(subparsers: Any) -> None:
    """Adds the subcommand."""
    of_loader.add(subparsers, schema, "navit-model")
