"""The reference, from the code itself: one Markdown text a page.

In: docstrings' owners, the two configurations' schemas, the parsers of both commands, the classes of errors. Out: `PAGES`, from
a page's path to what makes its text. Apart from `hooks`, which knows MkDocs.
"""

from __future__ import annotations

import argparse
import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import Any

import messages

import navit_loader
import navit_model
from navit_loader import errors
from navit_loader.cli import parser as loader_parser
from navit_loader.shown import EXITS
from navit_model.cli import parser as model_parser
from navit_model.commands.schema import schema

ROOMS = {
    "loader": {
        "index": (
            "The index",
            ["build_index", "open_index", "index.Index", "index.IndexProgress", "index.IndexSummary"],
        ),
        "plan": ("The plan", ["LoaderConfig", "pack", "sizing"]),
        "render": ("Rendering", ["pack_images", "ImageProcessor", "EncodedBatch"]),
        "deliver": ("Loaders", ["PackedLoader", "RemoteLoader", "DevicePrefetcher"]),
        "batch": ("The batch", ["PackedBatch", "View"]),
        "fleet": ("A fleet on Ray", ["fleet.launch", "fleet.Fleet"]),
    },
    "model": {
        "navit": ("NaViT", ["NaViT"]),
        "config": ("NaViTConfig", ["NaViTConfig"]),
        "use": ("A trained model", ["open_model", "OpenedModel"]),
        "hf": ("Others' models", ["hf.replace_vision_tower", "hf.restore_vision_tower"]),
    },
}
"""Pages of public names, by package and room."""


def api(package: str, room: str) -> str:
    """One room's page; `mkdocstrings` fills it."""
    title, names = ROOMS[package][room]
    text = f"# {title}\n"
    for name in names:
        text += f"\n::: navit_{package}.{name}\n"
    return text


def names(package: str, of: Any) -> str:
    """Every public name in one line, with where it is described.

    Raises:
        ValueError: a public name has no page.
    """
    text = f"# navit_{package}\n\n{_first(of)}\n\n| name | is |\n|---|---|\n"
    missing = set(of.__all__)
    for room, (_, listed) in ROOMS[package].items():
        for name in listed:
            missing -= {name}
            home, _, last = f"navit_{package}.{name}".rpartition(".")
            said = _first(getattr(import_module(home), last))
            text += f"| [`{name}`]({package}/{room}.md#{home}.{last}) | {said} |\n"
    if missing:
        raise ValueError(f"docs/generated.py: no page of ROOMS describes {', '.join(sorted(missing))}")
    return text


def _first(of: Any) -> str:
    """A docstring's first paragraph, as one line of a table."""
    return " ".join((inspect.getdoc(of) or "").split("\n\n")[0].split()).replace("|", "\\|")


# --- the configuration ---------------------------------------------------------------------------------------------


def configuration() -> str:
    """Every key of a run's TOML, from its schema, which holds the loader's sections too."""
    text = (
        "# Configuration\n\nOne TOML file holds all: `navit-loader` reads `[data]`, `[plan]`, `[render]` and `[serve]`, "
        "`navit-model` these and the others. A wrong key or value ends a command with one line that says what is allowed. "
        "The same for editors: `navit-model schema > navit.schema.json`; as a file with comments: `navit-model init`.\n"
    )
    for name, table in schema()["properties"].items():
        text += "".join(_table(table, name))
    return text


def _table(table: Mapping[str, Any], where: str, listed: bool = False) -> Iterator[str]:
    """A table's heading, its keys, and the tables in it."""
    name = f"[[{where}]]" if listed else f"[{where}]"
    yield f"\n{'#' * (2 + where.count('.'))} {name} {{ #{where} }}\n\n{table['description']}\n"
    below = []
    for key, found in table["properties"].items():
        items = found.get("items", {})
        if "properties" in found:
            below.append((found, f"{where}.{key}", False))
        elif "properties" in items:
            below.append(({**items, "description": found["description"]}, f"{where}.{key}", True))
        else:
            yield _key(key, found, f"{where}.{key}", key in table.get("required", ()))
    for found, inner, listed in below:
        yield from _table(found, inner, listed)


def _key(key: str, found: Mapping[str, Any], where: str, required: bool) -> str:
    default = f"default {_value(found['default'])}" if "default" in found else "unset by default"
    facts = [_kind(found), "must be given" if required else default]
    facts += [f"since {found['x-since']}", f"read by `{found['x-read-by']}`"]
    return f"\n`{key}`{{ #{where} .key }} {' · '.join(facts)}\n\n:   {found['description']}\n"


def _kind(found: Mapping[str, Any]) -> str:
    """Type and bounds, in words."""
    if "enum" in found:
        return " or ".join(_value(value) for value in found["enum"])
    if "const" in found:
        return _value(found["const"])
    if "anyOf" in found:
        plain = {key: value for key, value in found.items() if key != "anyOf"}
        return " or ".join(_kind({**plain, **each}) for each in found["anyOf"])
    if found["type"] == "array":
        fixed, least = found.get("minItems") == found.get("maxItems"), found.get("minItems")
        many = f" of {least}, each" if fixed and least else " of one or more, each" if least else " of"
        return f"list{many} {_kind(found['items'])}"
    if found["type"] == "object":
        return f"table of {_kind(found['additionalProperties'])}"
    kind = {"integer": "whole number", "string": "text", "boolean": "`true` or `false`"}.get(
        found["type"], found["type"]
    )
    return ", ".join([kind, *_bounds(found)])


def _bounds(found: Mapping[str, Any]) -> Iterator[str]:
    if {"minimum", "maximum"} <= found.keys():
        yield f"{found['minimum']:,} to {found['maximum']:,}"
    else:
        for key, words in (
            ("minimum", "at least"),
            ("exclusiveMinimum", "above"),
            ("maximum", "at most"),
            ("exclusiveMaximum", "below"),
        ):
            if key in found:
                yield f"{words} {found[key]:,}"
    if found.get("minLength"):
        yield "not empty"


def _value(value: Any) -> str:
    return f"`{json.dumps(value, ensure_ascii=False)}`"


# --- the commands --------------------------------------------------------------------------------------------------


def commands() -> str:
    """The help of both commands and of all their subcommands, as they print it."""
    text = "# Commands\n\nEach command says all this itself: `--help`.\n"
    for parser in (loader_parser(), model_parser()):
        text += f"\n## {parser.prog}\n\n```text\n{_help(parser)}```\n"
        for name, sub in subcommands(parser).items():
            text += f"\n### {parser.prog} {name} {{#{parser.prog}-{name}}}\n\n```text\n{_help(sub)}```\n"
    return text


def subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """By name."""
    actions = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    return {name: sub for action in actions for name, sub in action.choices.items()}


def _help(parser: argparse.ArgumentParser) -> str:
    kind = parser.formatter_class
    parser.formatter_class = lambda prog: kind(prog, width=84)  # type: ignore[assignment]
    try:
        return parser.format_help()
    finally:
        parser.formatter_class = kind


# --- errors --------------------------------------------------------------------------------------------------------


def errors_page() -> str:
    """Every class of error, and every exit status."""
    raised = [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, errors.NavitError)]
    text = "# Errors and exit codes\n\n" + inspect.cleandoc(errors.__doc__ or "")
    text += "\n\nAll are in `navit_loader.errors`; what to do about a message is in [troubleshooting](../troubleshooting.md)."
    text += "\n\n| error | is also | means |\n|---|---|---|\n"
    for one in raised:
        also = ", ".join(f"`{base.__name__}`" for base in one.__bases__ if base not in (errors.NavitError, Exception))
        text += f"| `{one.__name__}`{{ #{one.__name__} }} | {also} | {_first(one)} |\n"
    return f"{text}\n## Exit codes\n\nOf `navit-loader` and `navit-model` alike:\n\n```text\n{EXITS}\n```\n"


PAGES: dict[str, Callable[[], str]] = {
    "reference/configuration.md": configuration,
    "reference/commands.md": commands,
    "reference/errors.md": errors_page,
    "reference/messages.md": messages.page,
    "reference/loader.md": lambda: names("loader", navit_loader),
    "reference/model.md": lambda: names("model", navit_model),
    **{
        f"reference/{package}/{room}.md": lambda package=package, room=room: api(package, room)
        for package, rooms in ROOMS.items()
        for room in rooms
    },
}
