"""Tables → dataclasses: every key and type checked where it is read.

In: a TOML file or a mapping, and a dataclass whose annotations say what is allowed. Out: the dataclass, or one error with
the key's full name, its value and what is allowed. Apart from `config`, which says which keys there are; `navit_model`
reads its own sections with it.
"""

from __future__ import annotations

import difflib
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

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


def _hints(cls: type[Any], table: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The annotation of each key of a table; raises `ConfigError` for one that `cls` has not."""
    hints = typing.get_type_hints(cls)
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
        raise ConfigError(f"{key} = {value!r} is not allowed; it must be {allowed}")


def check_types(config: Any) -> None:
    """Checks a dataclass built from Python as `parse` checks one built from TOML; part of each `__post_init__`."""
    hints = typing.get_type_hints(type(config))
    for f in fields(config):
        object.__setattr__(config, f.name, convert(hints[f.name], getattr(config, f.name), f.name))


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
