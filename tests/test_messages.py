"""Every message of the code has a place in the docs, and no note is of a message that is gone."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

import navit_loader.errors

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def docs() -> ModuleType:
    """`docs/messages.py`, which lies in no package."""
    spec = importlib.util.spec_from_file_location("docs_messages", ROOT / "docs" / "messages.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["docs_messages"] = module
    spec.loader.exec_module(module)
    return module


def test_each_message_has_a_page_and_says_what_to_do(docs: ModuleType) -> None:
    """A new file needs a line in ROOMS; a message that names no remedy needs a note in `docs/messages.toml`."""
    everything = docs.collect()
    assert not {m.file for m in everything if m.page is None}
    silent = [f"{m.file}: {m.text}" for m in everything if not docs.answered(m)]
    assert not silent, "name the remedy in the message, or write a note into docs/messages.toml:\n" + "\n".join(silent)


def test_no_note_is_of_what_is_gone(docs: ModuleType) -> None:
    everything = docs.collect()
    notes = docs.read_notes()
    texts = {m.text for m in everything}
    assert not set(notes["messages"]) - texts
    assert not [prefix for prefix in notes["files"] if not any(m.file.startswith(prefix) for m in everything)]
    assert not [prefix for prefix in docs.ROOMS if not any(ROOT.glob(f"{prefix.rstrip('/')}"))]


def test_every_class_of_error_has_its_section(docs: ModuleType) -> None:
    named = {n for n, c in vars(navit_loader.errors).items() if isinstance(c, type) and issubclass(c, Exception)}
    assert named <= set(docs.CLASSES)


def test_messages_are_found_however_they_are_built(
    docs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names, conditions, sums and functions in Python; continued lines and the kind of a closure in Rust; no tests."""
    monkeypatch.setattr(docs, "ROOT", tmp_path)
    python = tmp_path / "navit_loader" / "a.py"
    python.parent.mkdir()
    docs.known.cache_clear()
    python.write_text(
        "def f(x):\n"
        "    why = 'no room' if x else f'{x} is odd'\n"
        "    raise errors.PlanError(f'{why!r}: ' + why)\n"
        "def g(e):\n"
        "    require(e, 'rate', e, 'above 0')\n"
        "    raise ServiceError(str(e))\n"
        "def h(e) -> str:\n"
        "    return f'there is {e} left over; sweep it up'\n"
        "def i(e):\n"
        "    raise IndexFileError(h(e))\n"
    )
    assert [(m.error, m.text) for m in docs.in_python(python)] == [
        ("PlanError", "…: no room"),
        ("PlanError", "…: … is odd"),
        ("ConfigError", "rate = … is not allowed; it must be above 0"),
        ("ServiceError", "…"),
        ("IndexFileError", "…"),
        ("IndexFileError", "there is … left over; sweep it up"),
    ]
    docs.known.cache_clear()
    rust = tmp_path / "plan" / "a.rs"
    rust.parent.mkdir()
    rust.write_text(
        '/// "a comment of words"\n'
        "fn f() {\n    let bad = |m: String| Err(Error::new(Kind::State, m));\n"
        '    bad(format!("epoch {epoch:?} is \\\n        far away; come back"))\n}\n'
        '#[cfg(test)]\nmod tests { const A: &str = "not a message"; }\n'
    )
    assert [(m.error, m.text) for m in docs.in_rust(rust)] == [("StateError", "epoch … is far away; come back")]


def test_the_page_names_each_of_them(docs: ModuleType) -> None:
    page = docs.page()
    assert all(docs.code(m.text) in page for m in docs.collect())
