"""`navit-loader init`: a commented configuration, made from the schema; `navit-model` has the same of its own."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from ..shown import answer, say
from . import add_output
from .schema import Schema, schema

HEAD = """Each key stands here with what it is and its default. Take the mark off a line and change it; what is not set changes
nothing. {name} schema > navit.schema.json, and an editor that knows taplo or Even Better TOML completes and checks a
file whose first line is '#:schema ./navit.schema.json'."""


def add(subparsers: Any, of: Schema = schema, name: str = "navit-loader") -> None:
    """Adds the subcommand.

    Args:
        subparsers: of either command line.
        of: gives its schema.
        name: of the command line.
    """
    parser = subparsers.add_parser(
        "init",
        examples=("init -o config.toml",),
        help="write a commented configuration",
        description="Writes a configuration in which each key stands with what it is and its default, as comments: read as it "
        "is, it changes nothing.",
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="a new TOML file")
    add_output(parser)
    parser.set_defaults(run=partial(run, of, name))


def run(of: Schema, name: str, args: argparse.Namespace) -> int:
    """Writes the file.

    Raises:
        ConfigError: there is one of that name.
    """
    from ..errors import ConfigError
    from ..json_schema import commented

    text = commented(of(), HEAD.format(name=name))
    try:
        with open(args.output, "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ConfigError(f"'{args.output}' is there already; give the name of a new file") from None
    answer({"output": str(args.output)})
    say(f"wrote {args.output}")
    return 0
