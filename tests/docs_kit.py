"""Pages whose code runs: what is in a page's fences, and a process that runs them in order.

In: a Markdown file, and an empty folder to run it in. Out: its blocks; or, as a program, nothing, or the traceback or output of
the first block that fails. A process of its own since blocks change the folder, start daemons and load torch. Rules:

- `sh` runs by `bash -e`, `python` in one namespace for the page; `toml`, `csv`, `json`, `yaml` and `python` with `title="NAME"`
  are written to that file; other languages say something to readers alone.
- `<!-- needs: gpu -->` straight before a fence: parsed, not run.
- `<!-- sh` … `-->`, and so for the others, on lines of their own: run like a fence, and not shown.
- What a page leaves running is killed when it ends. Its ports on this host are replaced by free ones.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import Any

FENCE = re.compile(
    r"^(?:[ ]*<!--[ ]needs:[ ](?P<needs>[\w, ]+)[ ]-->\n)?"
    r"(?:(?P<in>[ ]*)(?P<ticks>```+)[ ]*(?P<language>[\w-]*)(?P<more>[^\n`]*)\n(?P<shown>.*?)^(?P=in)(?P=ticks)[ ]*$"
    r"|<!--[ ](?P<hidden>sh|python|toml|csv|json|yaml)\b(?P<named>[^\n]*)\n(?P<unseen>.*?)^-->$)",
    re.MULTILINE | re.DOTALL | re.VERBOSE,
)
NEEDS = {"gpu", "kubernetes", "cluster", "bucket", "network", "minutes"}
LANGUAGES = {"sh", "python", "toml", "csv", "json", "yaml", "text", "console"}
LIMIT = 270
"""Seconds of a page, on a machine that is busy with other things."""
PORT = re.compile(r"(?<=127\.0\.0\.1:|//0\.0\.0\.0:)\d{4,5}")


@dataclass(frozen=True)
class Block:
    """One fence: its first line's number, language, `title`, what it needs beyond a bare machine, whether none sees it, and its
    text."""

    line: int
    language: str
    title: str
    needs: str
    hidden: bool
    text: str

    @property
    def runs(self) -> bool:
        """Whether it does anything."""
        return not self.needs and (self.language in ("sh", "python") or self.title != "")

    def parse(self) -> None:
        """Raises where the text is not of its language."""
        if self.language == "sh":
            subprocess.run(["bash", "-n"], input=self.text, text=True, check=True)
        elif self.language == "python":
            compile(self.text, "page", "exec")
        elif self.language == "toml":
            tomllib.loads(self.text)
        elif self.language == "json":
            json.loads(self.text)


def blocks(page: str) -> list[Block]:
    """What stands in a page's fences, in order."""
    found = []
    for fence in FENCE.finditer(page):
        language, more = fence["language"] or fence["hidden"] or "", fence["more"] or fence["named"] or ""
        title = re.search(r'title="([^"]+)"', more)
        text = dedent(fence["shown"] if fence["unseen"] is None else fence["unseen"])
        line = page.count("\n", 0, fence.start("shown" if fence["unseen"] is None else "unseen")) + 1
        found.append(
            Block(line, language, title[1] if title else "", fence["needs"] or "", fence["hidden"] is not None, text)
        )
    return found


def free_ports(texts: list[str]) -> dict[str, str]:
    """For each port that a page names one that nobody has."""
    named = sorted({port for text in texts for port in PORT.findall(text)})
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(socket.socket()) for _ in named]
        for one in held:
            one.bind(("127.0.0.1", 0))
        return {port: str(one.getsockname()[1]) for port, one in zip(named, held, strict=True)}


@contextlib.contextmanager
def left_running() -> Iterator[list[int]]:
    """Takes the numbers of process groups, and ends them."""
    groups: list[int] = []
    try:
        yield groups
    finally:
        for group in groups:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)


def run(path: Path) -> None:
    """Runs a page's blocks in this folder and process."""
    found = [block for block in blocks(path.read_text(encoding="utf-8")) if block.runs]
    ports = free_ports([block.text for block in found])
    namespace: dict[str, Any] = {"__name__": "__main__"}
    with left_running() as groups:
        for block in found:
            text = PORT.sub(lambda port: ports[port[0]], block.text)
            if block.title:
                Path(block.title).parent.mkdir(parents=True, exist_ok=True)
                Path(block.title).write_text(text, encoding="utf-8")
            elif block.language == "python":
                exec(compile("\n" * (block.line - 1) + text, str(path), "exec"), namespace)
            else:
                shell = subprocess.Popen(["bash", "-e", "-c", text], stdin=subprocess.DEVNULL, start_new_session=True)
                groups.append(shell.pid)
                if status := shell.wait():
                    sys.exit(f"{path}:{block.line}: status {status} of\n{text}")


if __name__ == "__main__":
    sys.path[0] = ""
    signal.signal(signal.SIGALRM, lambda *_: sys.exit(f"{sys.argv[1]} took more than {LIMIT} s"))
    signal.alarm(LIMIT)
    run(Path(sys.argv[1]))
