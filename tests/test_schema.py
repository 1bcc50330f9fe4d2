"""The configuration's schema says what the loader and the run take, no more and no less, as far as a schema can say."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from navit_loader.cli import main as loader_main
from navit_loader.commands.schema import schema as of_loader
from navit_loader.config import LoaderConfig
from navit_loader.errors import ConfigError
from navit_loader.schema import convert
from navit_model.cli import main as model_main
from navit_model.commands.schema import schema as of_run
from navit_model.train.settings import SECTIONS as OWN_SECTIONS
from navit_model.train.settings import RunConfig

ROOT = Path(__file__).parent.parent
RUN = of_run()
CHECK = Draft202012Validator(RUN)


def keys(table: dict[str, Any], where: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Every key by its path, with what the schema says of it."""
    for name, found in table["properties"].items():
        if "properties" in found:
            yield from keys(found, (*where, name))
        else:
            yield (*where, name), found


KEYS = dict(keys(RUN))
SECTIONS = get_type_hints(LoaderConfig) | OWN_SECTIONS

# What is allowed here depends on other keys, which a schema does not say: it refuses less than the reader.
DEPENDS = {
    "plan": "sequence_length max_tokens prefix_tokens max_text_tokens class_weights patch_weights fit passes virtual_epoch",
    "plan.order": "block window",
    "plan.resolution": "kind low high rule merge min_pixels max_pixels max_side",
    "plan.drop": "min_rate max_rate kind",
    "plan.drop.schedule": "kind",
    "plan.crop": "scale ratio",
    "plan.warp": "kind rotation shear translation perspective probability layers magnitude",
    "plan.targets": "boxes capacity clip masks kind",
    "plan.teacher": "sequence_length max_tokens prefix_tokens",
    "render": "cache_dir cache_gb",
    "model": "width depth heads rope rope_speeds window window_free merge merge_kind merge_taps pool pool_heads positions",
    "text": "width heads",
    "contrastive": "locked",
    "train": "best patience task loss class_weights",
}
DEPENDENT = {f"{table}.{key}" for table, names in DEPENDS.items() for key in names.split()}


def nested(values: dict[str, Any]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for key, value in values.items():
        *path, last = key.split(".")
        inner = table
        for part in path:
            inner = inner.setdefault(part, {})
        inner[last] = value
    return table


def refused(table: dict[str, Any]) -> str:
    """The error of the one section that a table holds."""
    ((name, section),) = table.items()
    try:
        convert(SECTIONS[name], section, name)
    except ConfigError as e:
        return str(e)
    return ""


def near(found: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values at and about the ends that the schema names, other choices, and other types."""
    kinds = found.get("anyOf", [found])
    options: list[st.SearchStrategy[Any]] = [
        st.sampled_from(["", "x", "tcp://a", True, False, {}, [], {"a": "b"}, ["a"]])
    ]
    for kind in kinds:
        ends = [
            kind[end] for end in ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum", "const") if end in kind
        ]
        numbers = [v for end in ends for v in (end, end - 1, end + 1)] or [-1, 0, 1, 100]
        whole = st.sampled_from([int(v) for v in numbers]) | st.integers(-(2**33), 2**33)
        # 2.0 is an integer to JSON, and none to TOML.
        parts = st.floats(-3, 3).filter(lambda v: v != int(v))
        options += [whole, parts]
        if "enum" in kind:
            options.append(st.sampled_from(kind["enum"]))
        if kind.get("type") == "array":
            options.append(st.lists(near(kind["items"]), min_size=0, max_size=4))
            options.append(st.tuples(*[near(kind["items"])] * kind.get("minItems", 1)).map(list))
        if kind.get("type") == "object":
            named = kind["additionalProperties"]
            options.append(
                st.dictionaries(st.sampled_from(["a", "b"]), near(named) if named else st.none(), max_size=2)
            )
    return st.one_of(options)


@pytest.mark.parametrize("path", KEYS, ids=".".join)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_schema_and_reader_agree_on_every_key(path: tuple[str, ...], data: st.DataObject) -> None:
    name = ".".join(path)
    value = data.draw(near(KEYS[path]))
    table = nested({name: value})
    error = refused(table)
    if CHECK.is_valid(table):
        assert not error or name in DEPENDENT, (table, error)
    else:
        assert error, table


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.toml")), ids=lambda path: path.name)
def test_examples_hold(path: Path) -> None:
    table = tomllib.loads(path.read_text())
    CHECK.validate(table)
    Draft202012Validator(of_loader()).validate(table)


def test_the_schema_is_one_and_each_key_is_told() -> None:
    for schema in (RUN, of_loader()):
        Draft202012Validator.check_schema(schema)
    for path, found in KEYS.items():
        assert {"description", "default", "x-since", "x-read-by"} <= found.keys() and (
            "type" in found or "anyOf" in found
        ), path
        assert found["description"].strip(), path
        assert find_spec(found["x-read-by"]), path
        default = found["default"]
        # A key that must be given has no default; one that is left out has no value of TOML.
        if default is not None and path != ("data", "mixture", "index"):
            assert CHECK.is_valid(nested({".".join(path): default})), path


@pytest.mark.parametrize("main", [loader_main, model_main])
def test_init_writes_the_defaults_of_every_key(main: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "c.toml"
    assert main(["init", "-o", str(path)]) == 0
    kind: Any = LoaderConfig if main is loader_main else RunConfig
    assert kind.from_toml(path) == kind()
    # With the marks taken off, but for tables and keys that are left out, it is the same.
    lines = path.read_text().splitlines()
    bare, skipped = [], False
    for line in lines:
        skipped = line.startswith("#[") or (skipped and not line.startswith("["))
        key = line.startswith("#") and not line.startswith(("# ", "#[")) and not skipped
        bare.append(line[1:] if key and not line.rstrip().endswith("=") and "=   #" not in line else line)
    path.write_text("\n".join(bare))
    assert kind.from_toml(path) == kind()
    assert main(["init", "-o", str(path)]) == 2
    assert "is there already" in capsys.readouterr().err


def test_both_commands_print_it(tmp_path: Path) -> None:
    for package, schema in (("navit_loader", of_loader()), ("navit_model", RUN)):
        done = subprocess.run([sys.executable, "-m", package, "schema"], capture_output=True, text=True, check=True)
        assert json.loads(done.stdout) == json.loads(json.dumps(schema)) and not done.stderr
