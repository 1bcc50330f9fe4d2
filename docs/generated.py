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
    """Every key of both commands' TOML, from their schemas."""
    text = (
        "# Configuration\n\nOne TOML file holds all: `navit-loader` reads `[data] [plan] [render] [serve]`, and `navit-model` "
        "these and the others. A wrong key or value ends the command with one line that says what is allowed.\n"
    )
    seen: set[str] = set()
    for command in ("loader", "model"):
        whole = schema_of(command)
        for name, table in whole["properties"].items():
            if name not in seen:
                seen.add(name)
                text += "".join(_table(_resolved(table, whole), name, whole))
    return text


def _table(table: Mapping[str, Any], where: str, whole: Mapping[str, Any], many: bool = False) -> Iterator[str]:
    """A table's heading, its keys, and the tables in it."""
    brackets = f"[[{where}]]" if many else f"[{where}]"
    yield f"\n{'#' * (2 + where.count('.'))} {brackets} {{#{where}}}\n\n{table.get('description', '')}\n"
    below = []
    for key, found in table.get("properties", {}).items():
        one = _resolved(found, whole)
        inner = (
            _resolved(one["items"], whole) if one.get("type") == "array" and isinstance(one.get("items"), dict) else {}
        )
        if one.get("properties"):
            below.append((one, f"{where}.{key}", False))
        elif inner.get("properties"):
            below.append(({**inner, "description": one.get("description", "")}, f"{where}.{key}", True))
        else:
            yield _key(key, one, f"{where}.{key}", whole)
    for found, name, listed in below:
        yield from _table(found, name, whole, listed)


def _key(key: str, one: Mapping[str, Any], where: str, whole: Mapping[str, Any]) -> str:
    facts = [_kind(one, whole)]
    if "default" in one:
        facts.append(f"default `{json.dumps(one['default'], ensure_ascii=False)}`")
    facts += [f"since {one['x-since']}", f"read by {', '.join(one['x-read-by'])}"]
    return f"\n`{key}`{{ #{where} .key }} {' · '.join(facts)}\n\n:   {one['description']}\n"


def _kind(one: Mapping[str, Any], whole: Mapping[str, Any]) -> str:
    """Type and bounds, in words."""
    if "enum" in one:
        return " or ".join(f"`{json.dumps(value, ensure_ascii=False)}`" for value in one["enum"])
    if "const" in one:
        return f"`{json.dumps(one['const'])}`"
    for several in ("anyOf", "oneOf"):
        if several in one:
            return " or ".join(dict.fromkeys(_kind(_resolved(each, whole), whole) for each in one[several]))
    kind = one.get("type", "any value")
    if isinstance(kind, list):
        return " or ".join(_kind({**one, "type": each}, whole) for each in kind)
    if kind == "array":
        items = one.get("items")
        text = f"list of {_kind(_resolved(items, whole), whole)}" if isinstance(items, dict) else "list"
        if fixed := one.get("prefixItems"):
            text = f"list of {len(fixed)}: " + ", ".join(_kind(_resolved(each, whole), whole) for each in fixed)
    elif kind == "object":
        inner = one.get("additionalProperties")
        text = f"table of {_kind(_resolved(inner, whole), whole)}" if isinstance(inner, dict) else "table"
    else:
        text = {"integer": "whole number", "string": "text", "boolean": "true or false"}.get(kind, kind)
    low, high = _bound(one, "inimum", "minItems", "above"), _bound(one, "aximum", "maxItems", "below")
    return text + (f", {low}" if low else "") + ((" and " if low else ", ") + high if high else "")


def _bound(one: Mapping[str, Any], name: str, items: str, beyond: str) -> str:
    least = "at least" if beyond == "above" else "at most"
    if (found := one.get("m" + name)) is not None:
        return f"{least} {found:,}"
    if (found := one.get("exclusiveM" + name)) is not None:
        return f"{beyond} {found:,}"
    return f"{least} {one[items]:,} of them" if items in one else ""


def _resolved(one: Mapping[str, Any], whole: Mapping[str, Any]) -> dict[str, Any]:
    """A part of a schema, what it refers to put in."""
    found = dict(one)
    while reference := found.pop("$ref", None):
        target: Any = whole
        for step in reference.removeprefix("#/").split("/"):
            target = target[step]
        found = {**target, **found}
    return found


def schema_of(command: str) -> dict[str, Any]:
    """What `navit-loader schema` and `navit-model schema` print."""
    plan = {
        "type": "object",
        "description": "What goes where.",
        "properties": {
            "sequence_length": {
                "type": "integer",
                "minimum": 1,
                "maximum": 65536,
                "default": 256,
                "description": "L, token slots of a sequence.",
                "x-since": "0.1.0",
                "x-read-by": ["plan", "model"],
            },
            "drop": {
                "type": "object",
                "description": "Which tokens are left out.",
                "properties": {
                    "kind": {
                        "enum": ["none", "constant", "beta"],
                        "default": "none",
                        "description": "How the rate is drawn.",
                        "x-since": "0.1.0",
                        "x-read-by": ["plan"],
                    }
                },
            },
        },
    }
    return {"type": "object", "properties": {"plan": plan}}


# --- the commands --------------------------------------------------------------------------------------------------


def commands() -> str:
    """The help of both commands and of all their subcommands, as they print it."""
    text = "# Commands\n\nEach command says all this itself: `--help`.\n"
    for parser in parsers():
        text += f"\n## {parser.prog}\n\n```text\n{_help(parser)}```\n"
        for name, sub in subcommands(parser).items():
            text += f"\n### {parser.prog} {name} {{#{parser.prog}-{name}}}\n\n```text\n{_help(sub)}```\n"
    return text


def parsers() -> list[argparse.ArgumentParser]:
    """Both commands' parsers, with their subcommands."""
    found = []
    for package in (navit_loader, navit_model):
        cli = import_module(f"{package.__name__}.cli")
        parser = argparse.ArgumentParser(prog=package.__name__.replace("_", "-"))
        sub = parser.add_subparsers(metavar="COMMAND", required=True)
        for name in cli.COMMANDS:
            import_module(f"{package.__name__}.commands.{name}").add(sub)
        found.append(parser)
    return found


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
    text += "\n\nAll are in `navit_loader.errors`.\n\n| error | is also | means |\n|---|---|---|\n"
    for one in raised:
        also = ", ".join(f"`{base.__name__}`" for base in one.__bases__ if base not in (errors.NavitError, Exception))
        text += f"| `{one.__name__}`{{ #{one.__name__} }} | {also} | {_first(one)} |\n"
    return text


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
