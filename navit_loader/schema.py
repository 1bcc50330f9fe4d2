"""Tables → dataclasses: every key and type checked where it is read.

In: a TOML file or a mapping, and a dataclass whose annotations say what is allowed. Out: the dataclass, or one error with
the key's full name, its value and what is allowed. Apart from `config`, which says which keys there are; `navit_model`
reads its own sections with it.
"""

from __future__ import annotations

import difflib
import json
import tomllib
import types
import typing
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from .bounds import Bound
from .errors import ConfigError

T = TypeVar("T")


def parse(cls: type[T], table: Mapping[str, Any], where: str) -> T:
    """Builds the dataclass `cls` from a table, refusing unknown keys and wrong types.

    Args:
        cls: a dataclass whose fields are annotated with plain types, `Literal`, tuples, mappings, or other dataclasses.
        table: keys and values, as TOML gives them.
        where: the dotted name of the table, for messages.

    Raises:
        ConfigError: names the key, its value, and what is allowed.
    """
    values = {key: convert(hint, table[key], f"{where}.{key}") for key, hint in _hints(cls, table, where).items()}
    try:
        return cls(**values)
    except TypeError as e:
        raise ConfigError(f"[{where}]: {e}") from None
    except ConfigError as e:
        raise ConfigError(f"{where}.{e}") from None


def check_part(cls: type[Any], table: Mapping[str, Any], where: str) -> None:
    """Refuses unknown keys and wrong types in some keys of a table; whether values go together is for the whole one to say.

    Raises:
        ConfigError: see `parse`.
    """
    for key, hint in _hints(cls, table, where).items():
        inner = next((kind for kind in (hint, *get_args(hint)) if isinstance(kind, type) and is_dataclass(kind)), None)
        if inner is not None and isinstance(table[key], Mapping):
            check_part(inner, table[key], f"{where}.{key}")
        else:
            convert(hint, table[key], f"{where}.{key}")


@cache
def _types_of(cls: Hashable) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _hints(cls: Any, table: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The annotation of each key of a table; raises `ConfigError` for one that `cls` has not."""
    hints = _types_of(cls)
    names = [f.name for f in fields(cls)]
    for key in table:
        if key not in names:
            near = difflib.get_close_matches(key, names, 1)
            guess = f" (did you mean '{near[0]}'?)" if near else ""
            raise ConfigError(f"unknown key '{where}.{key}'{guess}; allowed: {', '.join(names)}")
    return {key: hints[key] for key in table}


def convert(hint: Any, value: Any, where: str) -> Any:
    """`value` as the annotation `hint` wants it; raises `ConfigError` where it is something else."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        some = [a for a in args if a is not type(None)]
        # A table where one may stand.
        table = isinstance(value, Mapping)
        return convert(next((a for a in some if (get_origin(a) in (dict, Mapping)) == table), some[0]), value, where)
    if origin is Literal:
        if value not in args:
            raise ConfigError(f"{where} = {value!r} is not allowed; choose one of {', '.join(map(repr, args))}")
        return value
    if isinstance(hint, type) and is_dataclass(hint):
        if isinstance(value, hint):
            return value
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where} = {value!r} must be a table of keys")
        return parse(hint, value, where)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where} = {value!r} must be a list")
        if args[-1] is not Ellipsis and len(value) != len(args):
            raise ConfigError(f"{where} = {value!r} must have {len(args)} values")
        kinds = [args[0]] * len(value) if args[-1] is Ellipsis else args
        return tuple(convert(k, v, f"{where}[{i}]") for i, (k, v) in enumerate(zip(kinds, value, strict=True)))
    if origin in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where} = {value!r} must be a table")
        return {str(k): convert(args[1], v, f"{where}.{k}") for k, v in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, Path) and hint is str:
        return str(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(f"{where} = {value!r} must be of type {hint.__name__}, not {type(value).__name__}")
    return value


def require(ok: bool, key: str, value: object, allowed: str) -> None:
    """Raises `ConfigError` in the words that all configuration errors share."""
    if not ok:
        if key.startswith("--") and value is True:
            raise ConfigError(f"{key} is not allowed; it must be {allowed}")
        value = str(value) if isinstance(value, Path) else value
        raise ConfigError(f"{key} = {value!r} is not allowed; it must be {allowed}")


def check_types(config: Any) -> None:
    """Checks a dataclass built from Python as `parse` checks one built from TOML, and then the bounds of its keys; part of each
    `__post_init__`."""
    cls: Any = type(config)
    hints = _types_of(cls)
    for f in fields(config):
        object.__setattr__(config, f.name, convert(hints[f.name], getattr(config, f.name), f.name))
    for key, bounds in _bounds(cls):
        value = getattr(config, key)
        for bound, item, name in _bounded(bounds, value, key):
            if not bound.later and not bound.holds(item):
                values = {f.name: getattr(config, f.name) for f in fields(config)}
                require(False, name, value if bound.whole else item, bound.allowed(values))


def bound_of(cls: Any, key: str) -> Bound:
    """The bound of a key's value, or of its items."""
    own, inner = dict(_bounds(cls))[key]
    found = own or inner
    assert found is not None, f"{cls.__name__}.{key} is annotated with a Bound"
    return found


@cache
def _bounds(cls: Hashable) -> tuple[tuple[str, tuple[Bound | None, Bound | None]], ...]:
    """Keys that have a bound: of the value, and of its items."""
    found = ((key, bounds_in(hint)) for key, hint in typing.get_type_hints(cls, include_extras=True).items())
    return tuple((key, bounds) for key, bounds in found if any(bounds))


def bounds_in(hint: Any) -> tuple[Bound | None, Bound | None]:
    """What `Annotated` says of a value, and of the items of a list or the values of a table."""
    own = None
    if get_origin(hint) is Annotated:
        own = next((extra for extra in hint.__metadata__ if isinstance(extra, Bound)), None)
        hint = get_args(hint)[0]
    if get_origin(hint) in (typing.Union, types.UnionType):
        inner = [bounds_in(some) for some in get_args(hint)]
        return own or next((a for a, _ in inner if a), None), next((b for _, b in inner if b), None)
    if get_origin(hint) in (tuple, dict, Mapping):
        return own, next((bounds_in(some)[0] for some in get_args(hint) if get_origin(some) is Annotated), None)
    return own, None


def _bounded(bounds: tuple[Bound | None, Bound | None], value: Any, key: str) -> Iterator[tuple[Bound, Any, str]]:
    """Each bound with what it is of, and the name of that."""
    own, inner = bounds
    if own is not None and value is not None:
        yield own, value, key
    if inner is not None and isinstance(value, Mapping):
        yield from ((inner, item, f"{key}.{name}") for name, item in value.items())
    elif inner is not None and isinstance(value, tuple):
        yield from ((inner, item, key) for item in value)


def read_toml(path: str | Path) -> dict[str, Any]:
    """Reads a TOML file.

    Raises:
        ConfigError: the file is missing or is not TOML.
    """
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"no configuration at '{path}'; give the path of a TOML file") from None
    except RecursionError:
        raise ConfigError(f"'{path}' cannot be read as TOML: it is nested too deeply") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as e:
        raise ConfigError(f"'{path}' cannot be read as TOML: {e}") from None


def toml_value(given: Any) -> str:
    """A value as TOML writes it."""
    if isinstance(given, bool):
        return str(given).lower()
    if isinstance(given, str):
        return json.dumps(given, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(given, list | tuple):
        return f"[{', '.join(map(toml_value, given))}]"
    if isinstance(given, dict):
        return "{" + ", ".join(f"{toml_key(key)} = {toml_value(inner)}" for key, inner in given.items()) + "}"
    return repr(given)


def toml_key(name: str) -> str:
    """A key as TOML writes it."""
    return (
        name
        if name.replace("_", "").replace("-", "").isascii() and name.replace("_", "").isalnum()
        else toml_value(name)
    )
