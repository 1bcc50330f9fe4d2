"""`navit-model schema`: JSON Schema of the TOML file of a run, the loader's sections and its own."""

from __future__ import annotations

from typing import Any

from navit_loader.commands import schema as of_loader


def add(subparsers: Any) -> None:
    """Adds the subcommand."""
    of_loader.add(subparsers, schema)


def schema() -> dict[str, Any]:
    """Of all sections of a run."""
    from typing import get_type_hints

    from navit_loader import config
    from navit_loader.json_schema import json_schema

    from ..train.settings import READ_BY, SECTIONS

    sections = get_type_hints(config.LoaderConfig) | SECTIONS
    return json_schema("Configuration of navit-model", sections, config.READ_BY | READ_BY)
