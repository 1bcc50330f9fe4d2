"""Every message that our code can end with, and where each has its place in the docs.

In: the sources, Python's by their syntax trees, Rust's by their string literals; and `messages.toml`, what people wrote about
some of them. Out: messages with error class, file and what to do, and the page of them that the site shows. Apart
from `troubleshooting.md`, which begins with what is seen, and by hand: a list by hand would soon lack what came since.
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path

ROOT = Path(__file__).parents[1]
HOLE = "…"

CLASSES = {
    "ConfigError": "A key or value of a configuration, an option or an argument that is not allowed. Nothing was begun.",
    "IndexFileError": "An index that cannot be made or used, or a source that cannot be read.",
    "PlanError": "Index and configuration do not go together, so that nothing can be planned.",
    "PackError": "Lengths or limits that cannot be packed.",
    "StateError": "A loader's state of another plan, another renderer, or out of range.",
    "RenderError": "A batch that could not be rendered. An image that is broken is none of these: it is masked, see below.",
    "ServiceError": "A daemon that cannot be reached, refused a request, or answered something else than was asked.",
    "ModelError": "A batch, checkpoint or option that the model, a run or a tool does not take.",
    "ExtraError": "A package that only some installations have.",
    "NavitError": "The base of all errors.",
    "an image": "Why an image has no pixels, or no row in the index. Nothing stops: it is masked, counted, and named with this "
    "text in the ledger or in `FILE.quarantine.jsonl`. Where a fault may pass, the same text stands in a `RenderError` after "
    "the last try.",
}
"""Sections of the page: the errors of `navit_loader.errors`, and what is said of single images."""

ROOMS = {
    "navit_loader/batch.py": "concepts/the-batch.md",
    "navit_loader/cli.py": "reference/commands.md",
    "navit_loader/commands/": "reference/commands.md",
    "navit_loader/config.py": "reference/configuration.md",
    "navit_loader/deliver/": "rooms/service.md",
    "navit_loader/errors.py": "how-to/install.md",
    "navit_loader/families.py": "rooms/processors.md",
    "navit_loader/fleet/": "rooms/fleet.md",
    "navit_loader/foreign.py": "rooms/render.md",
    "navit_loader/index/": "rooms/index.md",
    "navit_loader/lint.py": "rooms/index.md",
    "navit_loader/page.py": "reference/commands.md",
    "navit_loader/picture.py": "rooms/plan.md",
    "navit_loader/plan/": "rooms/plan.md",
    "navit_loader/render/": "rooms/render.md",
    "navit_loader/render/device/": "rooms/dali.md",
    "navit_loader/render/dali/": "rooms/dali.md",
    "navit_loader/render/nvjpeg/": "rooms/dali.md",
    "navit_loader/render/processor.py": "rooms/processors.md",
    "navit_loader/schema.py": "reference/configuration.md",
    "navit_loader/service/": "rooms/service.md",
    "navit_loader/service/protocol/": "rooms/protocol.md",
    "navit_loader/shards.py": "rooms/index.md",
    "navit_loader/shown.py": "reference/commands.md",
    "navit_loader/spread.py": "rooms/fleet.md",
    "navit_loader/suggest.py": "rooms/training.md",
    "navit_loader/summary.py": "rooms/plan.md",
    "navit_model/cli.py": "reference/commands.md",
    "navit_model/commands/": "rooms/training.md",
    "navit_model/config.py": "rooms/model.md",
    "navit_model/evaluate/": "rooms/training.md",
    "navit_model/hf/": "rooms/weights.md",
    "navit_model/losses/": "rooms/losses.md",
    "navit_model/model/": "rooms/model.md",
    "navit_model/train/": "rooms/training.md",
    "navit_model/train/tasks/": "rooms/losses.md",
    "navit_model/use/": "rooms/training.md",
    "navit_model/weights/": "rooms/weights.md",
    "navit_model/world.py": "how-to/torchrun.md",
    "packer_rs/src/columns.rs": "rooms/index.md",
    "packer_rs/src/failure.rs": "rooms/render.md",
    "packer_rs/src/fetch/": "rooms/render.md",
    "packer_rs/src/fetch/cache/": "rooms/index.md",
    "packer_rs/src/fetch/pages/": "rooms/index.md",
    "packer_rs/src/fetch/remote/": "rooms/index.md",
    "packer_rs/src/pixels/": "rooms/render.md",
    "packer_rs/src/plan/": "rooms/plan.md",
    "packer_rs/src/probe/": "rooms/index.md",
    "packer_rs/src/py/": "rooms/render.md",
    "packer_rs/src/render/": "rooms/render.md",
}
"""Which page tells of what a file does, by the longest beginning of its path."""

REMEDY = re.compile(
    r";|must be|must have|\b(allowed|give|given|needs?|install|set|rename|leave|put|choose|take|raise|repair|index it again)\b"
)
"""What a message has that says itself what to do."""


@dataclass(frozen=True, order=True)
class Message:
    """One message.

    Attributes:
        error: its section, a key of `CLASSES`.
        file: where it stands, from the root of the repository.
        text: what it says, with `…` for what is filled in.
    """

    error: str
    file: str
    text: str

    @property
    def page(self) -> str | None:
        """The page of its room, from the root of the docs; None where nobody has given that file a home."""
        found = [prefix for prefix in ROOMS if self.file.startswith(prefix)]
        return ROOMS[max(found, key=len)] if found else None

    @property
    def note(self) -> str:
        """What people wrote about it; empty where nobody did."""
        return read_notes()["messages"].get(self.text, "")

    @property
    def of_file(self) -> str:
        """What they wrote of the file it is from, where it says nothing itself and nobody did of it; else empty."""
        notes = read_notes()["files"]
        places = [] if self.note or REMEDY.search(self.text) else [p for p in notes if self.file.startswith(p)]
        return notes[max(places, key=len)] if places else ""


@cache
def read_notes() -> dict[str, dict[str, str]]:
    """`messages.toml`: notes by message, and by the beginning of a file's path."""
    return tomllib.loads((ROOT / "docs" / "messages.toml").read_text(encoding="utf-8"))


@cache
def collect() -> list[Message]:
    """All messages of the three packages, sorted, each once a file. What is nothing but a hole is another one's words."""
    python = (
        m for room in ("navit_loader", "navit_model") for p in sorted((ROOT / room).rglob("*.py")) for m in in_python(p)
    )
    rust = (m for p in sorted((ROOT / "packer_rs" / "src").rglob("*.rs")) for m in in_rust(p))
    return sorted({m for m in (*python, *rust) if re.search(r"\w\w.*\w\w.*\w\w", m.text)})


Function = ast.FunctionDef | ast.AsyncFunctionDef


def in_python(path: Path) -> Iterator[Message]:
    """The texts that are given to our errors and to `require` in one file, and those of functions that these are made with."""
    tree, file = parsed(path), path.relative_to(ROOT).as_posix()
    functions = [n for n in ast.walk(tree) if isinstance(n, Function)]
    for call in (n for n in ast.walk(tree) if isinstance(n, ast.Call)):
        name = call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")
        # What is wrong with a value of a row is said by a ValueError, for whoever knows the row.
        row = name == "ValueError" and "/index/sources/" in file
        if not call.args or not (row or name in CLASSES or name in ("require", "Refused", "cls")):
            continue
        around = [f for f in functions if f.lineno <= call.lineno <= (f.end_lineno or 0)]
        if name == "require" and len(call.args) == 4:
            for key, allowed in product(words(call.args[1], around), words(call.args[3], around)):
                yield Message("ConfigError", file, f"{key} = {HOLE} is not allowed; it must be {allowed}")
        elif row or name in CLASSES or name == "Refused" or (name == "cls" and file.endswith("errors.py")):
            error = name if name in CLASSES else "ExtraError" if name == "cls" else "an image"
            for text in words(call.args[-1] if name == "Refused" else call.args[0], around):
                yield Message(error, file, text)
            for text in parts(call.args[0], around):
                yield Message(error, file, text)


def words(node: ast.expr, around: list[Function], deep: int = 0) -> list[str]:
    """What an expression can say, with holes; a name says what its function sets it to."""
    if isinstance(node, ast.Constant):
        return [str(node.value)]
    if isinstance(node, ast.JoinedStr):
        return ["".join(str(part.value) if isinstance(part, ast.Constant) else HOLE for part in node.values)]
    if isinstance(node, ast.IfExp):
        return words(node.body, around, deep) + words(node.orelse, around, deep)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return [a + b for a, b in product(words(node.left, around, deep), words(node.right, around, deep))]
    if isinstance(node, ast.Name) and around and deep < 3:
        return [text for value in sets(node.id, around) for text in words(value, around, deep + 1)] or [HOLE]
    return [HOLE]


def sets(name: str, around: list[Function]) -> list[ast.expr]:
    """What a name is set to in the innermost function."""
    found = [n for n in ast.walk(around[-1]) if isinstance(n, ast.Assign)]
    return [n.value for n in found if any(isinstance(t, ast.Name) and t.id == name for t in n.targets)]


def parts(node: ast.expr, around: list[Function], deep: int = 0) -> Iterator[str]:
    """What functions of ours that an expression calls can return, where that is a sentence."""
    inner = [n for n in ast.walk(node) if isinstance(n, ast.Name | ast.Call)]
    for n in inner:
        if isinstance(n, ast.Name) and around and deep < 3:
            for value in sets(n.id, around):
                yield from (text for text in words(value, around, deep) if WORDY.search(text))
                yield from parts(value, around, deep + 1)
        elif isinstance(n, ast.Call) and isinstance(n.func, ast.Name) and deep < 3:
            for function in known().get(n.func.id, []):
                returns = [r.value for r in ast.walk(function) if isinstance(r, ast.Return) and r.value is not None]
                for value in returns:
                    yield from (text for text in words(value, [function]) if WORDY.search(text))
                    yield from parts(value, [function], deep + 1)


@cache
def parsed(path: Path) -> ast.Module:
    """A file's syntax tree."""
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def known() -> dict[str, list[Function]]:
    """Functions of the packages that give texts, by name, where no two files have one of the same name."""
    found: dict[str, list[Function]] = {}
    for room in ("navit_loader", "navit_model"):
        for path in (ROOT / room).rglob("*.py"):
            for f in parsed(path).body:
                if isinstance(f, Function) and f.returns is not None and "str" in ast.unparse(f.returns):
                    found.setdefault(f.name, []).append(f)
    return {name: functions for name, functions in found.items() if len(functions) == 1}


WORDY = re.compile(r"(\w\w.* ){3}.*\w\w")
"""A sentence, or most of one."""

LITERAL = re.compile(r'"((?:[^"\\]|\\.|\\\n)*)"', re.DOTALL)
KIND = re.compile(r"\bKind::(Pack|Plan|State|Index|Render)\b")
NO_MESSAGE = re.compile(
    r"documented|named as|^[A-Z]\w+ |^\w+ $|\\0|\\r|extraneous|JFIF|Invalid SOS"
    r"|^timed out$|non-2xx|[Rr]edirect$|^remature|^not supp"
)
"""Literals of Rust that are no messages: lints' attributes, names in files, words of other libraries that are looked for."""


def in_rust(path: Path) -> Iterator[Message]:
    """The literals of more than one word in one file, tests apart; the kind is the nearest one that the file names."""
    file = path.relative_to(ROOT).as_posix()
    if path.name == "tests.rs":
        return
    source = path.read_text(encoding="utf-8").partition("#[cfg(test)]\nmod ")[0]
    source = re.sub(r"^\s*//.*$|^\s*#!?\[[^\]]*\]$|'\"'", "", source, flags=re.MULTILINE)
    kinds = [(m.start(), m.group(1)) for m in KIND.finditer(source)]
    folder = next((name for part, name in OF_FOLDER if part in file), "RenderError")
    for literal in LITERAL.finditer(source):
        text = re.sub(r"\{[^{}]*\}", HOLE, re.sub(r"\\\n\s*", "", literal.group(1))).strip(" ,")
        if " " not in text or NO_MESSAGE.search(literal.group(1)) or not re.search(r"\w\w+ ", text):
            continue
        near = [(abs(at - literal.start()), kind) for at, kind in kinds if abs(at - literal.start()) < 400]
        yield Message(OF_KIND[min(near)[1]] if near and folder != "an image" else folder, file, text)


OF_KIND = {
    "Pack": "PackError",
    "Plan": "PlanError",
    "State": "StateError",
    "Index": "IndexFileError",
    "Render": "RenderError",
}
OF_FOLDER = [
    ("/fetch/", "an image"),
    ("/pixels/", "an image"),
    ("/probe/", "an image"),
    ("/pack/", "PackError"),
    ("/plan/", "PlanError"),
    ("/columns", "IndexFileError"),
]
"""The section of a literal by its folder, where no kind is near."""


def answered(message: Message) -> bool:
    """Whether a reader is told what to do, by the message or by a note."""
    return bool(message.note or message.of_file or REMEDY.search(message.text))


def page() -> str:
    """The page of all messages, `reference/messages.md`."""
    lines = [
        "# Every message",
        "",
        "What the code can say when it stops, by the class of the error (`navit_loader.errors`) and the room that it comes "
        "from; `…` is filled in. Most messages say what to do, behind the semicolon; where that is not enough, a "
        "second line does. Search for a few words of yours. [Troubleshooting](../troubleshooting.md) begins with what you see.",
    ]
    everything = collect()
    for error, meaning in CLASSES.items():
        here = [m for m in everything if m.error == error]
        if not here:
            continue
        title = f"`{error}`" if error.endswith("Error") else "Of single images and rows"
        lines += ["", f"## {title}", "", meaning]
        for home in sorted({m.page or "" for m in here}):
            name = Path(home).stem
            lines += ["", f"From [{name}](../{home}):" if home else "From elsewhere:", ""]
            texts = {m.text: m for m in here if m.page == home}
            # Those that say what to do, or of which a person did, first; then by what holds for all from their file.
            for said in sorted({m.of_file for m in texts.values()}):
                lines += ["", said, ""] if said else []
                for text, message in sorted(texts.items()):
                    if message.of_file == said:
                        lines.append(f"- {code(text)}" + (f"<br>{message.note}" if message.note else ""))
    return "\n".join(lines) + "\n"


def code(text: str) -> str:
    """A message as a span of code, in as many backticks as it needs."""
    ticks = "``" if "`" in text else "`"
    return f"{ticks}{text}{ticks}"
