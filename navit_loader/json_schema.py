"""The configuration as JSON Schema and as a commented TOML file, made from the dataclasses that read it.

In: sections, each a dataclass whose docstring says what its keys are and whose annotations say what they may be. Out: a schema
(draft 2020-12) that editors check and complete TOML by, and a file in which every key stands with its default. Apart from
`schema`, which reads configurations: nothing here is needed to run one.
"""

from __future__ import annotations

import inspect
import re
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Annotated, Any, Literal, get_args, get_origin

from .schema import bounds_in, toml_value

SINCE = "0.1.0"
"""The version in which all keys came."""

_KINDS = {str: "string", bool: "boolean", int: "integer", float: "number"}


def json_schema(title: str, sections: Mapping[str, type[Any]], read_by: Mapping[str, str]) -> dict[str, Any]:
    """The schema of a whole file.

    Args:
        title: what is configured.
        sections: dataclasses by the names of their tables. What a key is, an earlier section says where its own docstring
            does not.
        read_by: the room that reads a section or a key, by its dotted name; a key's own counts before its section's.
    """
    tables, known = {}, dict[str, str]()
    for name, cls in sections.items():
        known |= _documented(cls)
        tables[name] = _table(cls, name, read_by, known)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": title,
        "type": "object",
        "properties": tables,
        "additionalProperties": False,
    }


def commented(schema: Mapping[str, Any], head: str) -> str:
    """A TOML file in which every key stands with its default, as comments: loading it gives the defaults.

    Args:
        schema: of the file.
        head: the comment that it begins with.
    """
    lines = [f"# {line}".rstrip() for line in head.splitlines()]
    for name, table in schema["properties"].items():
        if "properties" in table:
            lines += _lines(f"[{name}]", name, table)
    return "\n".join(lines) + "\n"


def _table(cls: Any, where: str, read_by: Mapping[str, str], known: Mapping[str, str]) -> dict[str, Any]:
    hints = typing.get_type_hints(cls, include_extras=True)
    known = {**known, **_documented(cls)}
    properties, required = {}, []
    for f in fields(cls):
        key, default = f"{where}.{f.name}", _default(f)
        found = _value(hints[f.name], key, read_by)
        found.setdefault("description", known[f.name])
        if not is_dataclass(default):
            found["default"] = default
        prefixes = (key.rsplit(".", n)[0] for n in range(key.count(".") + 1))
        found |= {"x-since": SINCE, "x-read-by": next(read_by[prefix] for prefix in prefixes if prefix in read_by)}
        bound, _ = bounds_in(hints[f.name])
        if bound is not None and default is not None and not bound.holds(default):
            required.append(f.name)
        properties[f.name] = found
    said = inspect.cleandoc(cls.__doc__).split("\n\n")[0]
    table = {
        "type": "object",
        "description": _upper(" ".join(re.sub(r"^`\[+[\w.]+\]+`: ", "", said).split())),
        "properties": properties,
        "additionalProperties": False,
    }
    return table | ({"required": required} if required else {})


def _default(f: Field[Any]) -> Any:
    default = f.default if f.default_factory is MISSING else f.default_factory()
    return list(default) if isinstance(default, tuple) else default


def _value(hint: Any, where: str, read_by: Mapping[str, str]) -> dict[str, Any]:
    """What `schema.convert` takes for an annotation, and `check_types` for its bounds."""
    bound, _ = bounds_in(hint)
    if get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    origin, args = get_origin(hint), get_args(hint)
    if origin in (typing.Union, types.UnionType):
        some = [_value(each, where, read_by) for each in args if each is not type(None)]
        return some[0] if len(some) == 1 else {"anyOf": some}
    found: dict[str, Any]
    if origin is Literal:
        found = {"type": "string", "enum": list(args)}
    elif is_dataclass(hint):
        found = _table(hint, where, read_by, {})
    elif origin is tuple:
        found = {"type": "array", "items": _value(args[0], where, read_by)}
        if args[-1] is not Ellipsis:
            found |= {"minItems": len(args), "maxItems": len(args)}
    elif origin is dict:
        found = {"type": "object", "additionalProperties": _value(args[1], where, read_by)}
    else:
        found = {"type": _KINDS[hint]}
    return found if bound is None else found | bound.keywords(found["type"])


def _documented(cls: Any) -> dict[str, str]:
    """What the docstring says of each key, beneath `Attributes:`."""
    _, _, attributes = inspect.cleandoc(cls.__doc__).partition("Attributes:\n")
    found: dict[str, str] = {}
    # A key begins a line; what goes on is further in.
    for part in re.split(r"\n(?=\w)", inspect.cleandoc(attributes)):
        names, _, said = part.partition(": ")
        found |= dict.fromkeys(names.split(", "), _upper(" ".join(said.split())))
    return found


def _upper(said: str) -> str:
    return said[:1].upper() + said[1:]


def _lines(head: str, where: str, table: Mapping[str, Any], mark: str = "") -> Iterator[str]:
    """A table: values first, then the tables in it; one that is left out by default begins with a mark too."""
    yield ""
    yield from _prose(table)
    yield f"{mark}{head}"
    inner = []
    for key, found in table["properties"].items():
        rows = found.get("items", found)
        if "properties" in rows:
            inner.append((key, rows, "default" in found))
            continue
        yield from _prose(found)
        default = "" if found["default"] is None else toml_value(found["default"])
        allowed = f"  # {_allowed(found)}" if _allowed(found) else ""
        yield f"#{key} = {default}{allowed}"
    for key, rows, left_out in inner:
        listed = table["properties"][key].get("type") == "array"
        name = f"[[{where}.{key}]]" if listed else f"[{where}.{key}]"
        yield from _lines(name, f"{where}.{key}", rows, "#" if left_out else mark)


def _prose(found: Mapping[str, Any]) -> list[str]:
    return textwrap.wrap(found["description"], 118, initial_indent="# ", subsequent_indent="# ")


def _allowed(found: Mapping[str, Any]) -> str:
    """Choices or ends of a value in a few words."""
    for each in (found, found.get("items", {}), *found.get("anyOf", ())):
        if "enum" in each:
            return ", ".join(each["enum"])
        ends = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
        said = [f"{word} {each[end]:,}".removesuffix(".0") for end, word in ends.items() if end in each]
        if said:
            return ", ".join(said)
    return ""
