"""`navit-loader schema`: JSON Schema of the TOML files that it reads, for editors; `navit-model` has the same of its own."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from typing import Any

from ..shown import say

Schema = Callable[[], dict[str, Any]]


def add(subparsers: Any, of: Schema | None = None) -> None:
    """Adds the subcommand.

    Args:
        subparsers: of either command line.
        of: gives its schema.
    """
    parser = subparsers.add_parser(
        "schema",
        examples=("schema > navit.schema.json",),
        help="print the JSON Schema of the configuration, for editors",
        description="Prints the JSON Schema (draft 2020-12) of the TOML files that this command reads: what each key is, its "
        "type, default and bounds, and who reads it. An editor that knows taplo or Even Better TOML completes and checks a "
        "file whose first line is '#:schema ./navit.schema.json'.",
    )
    parser.set_defaults(run=partial(run, of or schema))


def schema() -> dict[str, Any]:
    """Of the loader's sections. Those of `navit_model` may stand beside them, and are not looked at."""
    from typing import get_type_hints

    from ..config import OTHER_SECTIONS, READ_BY, LoaderConfig
    from ..json_schema import json_schema

    found = json_schema("Configuration of navit-loader", get_type_hints(LoaderConfig), READ_BY)
    others = {name: {"type": "object", "description": "Read by navit-model alone."} for name in OTHER_SECTIONS}
    return {**found, "properties": {**found["properties"], **others}}


def run(of: Schema, args: argparse.Namespace) -> int:
    """Prints it."""
    for line in json.dumps(of(), indent=2, ensure_ascii=False).split("\n"):
        say(line)
    return 0
