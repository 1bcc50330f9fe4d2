"""What a run says while it goes: a progress bar for people, JSON lines for programs.

In: plain values, once every `train.log_every` steps. Out: one live line on a terminal (one plain line every few seconds
elsewhere), `OUT/log.jsonl`, and other people's boards where asked for (`boards`). Apart from the loop, so that the loop
holds no formatting.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from navit_loader.errors import said
from navit_loader.shown import hush, hushed, shown

from .boards import Board

PLAIN_LINE_S = 10.0
"""Seconds between lines where the output is no terminal."""


def read_log(out: Path) -> Iterator[dict[str, Any]]:
    """The entries of a run's log; a last line cut off by a crash is left out."""
    try:
        lines = (out / "log.jsonl").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return
    for line in lines:
        try:
            yield json.loads(line)
        except ValueError:
            return


class _Console(Console):
    """One whose reader may go: rich would end the process."""

    def on_broken_pipe(self) -> None:
        """Speaks on to nobody."""
        hush(sys.stdout)


class RunLog:
    """The voice of one run; silent on every rank but the first.

    Args:
        out: the run's folder.
        steps: optimiser steps in all.
        start: steps already done; later entries of an earlier attempt are taken out of the log.
        speak: False on ranks other than 0.
        boards: take the scalars too.
    """

    def __init__(self, out: Path, steps: int, start: int, speak: bool = True, *, boards: Sequence[Board] = ()) -> None:
        self.steps, self.speak = steps, speak
        self._said = 0.0
        self._begun, self._start = time.monotonic(), start
        self._boards = list(boards)
        if not speak:
            return
        out.mkdir(parents=True, exist_ok=True)
        kept = [e for e in read_log(out) if e["step"] <= start] if start else []
        path = out / "log.jsonl"
        draft = path.with_suffix(".draft")
        draft.write_text("".join(json.dumps(e) + "\n" for e in kept), encoding="utf-8")
        draft.replace(path)
        # Without a buffer: an entry is in the file at once, and nothing is left to fail when the log is closed.
        self._log = path.open("ab", buffering=0)
        self.console = _Console()
        self._bar = Progress(
            TextColumn("[bold]train"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[line]}"),
            TimeRemainingColumn(compact=True),
            console=self.console,
            disable=not self.console.is_terminal or hushed("lines") or hushed("progress"),
        )
        self._task = self._bar.add_task("train", total=steps, completed=start, line="")
        self._bar.start()

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Adds one entry to the log."""
        if self.speak:
            self._log.write((json.dumps({"kind": kind, "step": step, **values}) + "\n").encode())
        budget = f"{values['tokens']}/" if kind == "eval" and "tokens" in values else ""
        scalars = {
            f"{kind}/{budget}{name}": float(value)
            for name, value in values.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        for board in list(self._boards if scalars else ()):
            try:
                board.add(step, scalars)
            except Exception as e:  # what a board raises ends no run
                self._boards.remove(board)
                self.say(f"{_name(board)} takes no more ({said(e)[0]}); the run goes on without it")

    def progress(self, step: int, **values: float) -> None:
        """Logs a training entry and shows it.

        Args:
            step: steps done.
            values: `loss`, `images_per_s`, `tokens_per_s`, `padding` and `starved` (shares), perhaps `mfu` (a share), and
                more for the log.
        """
        self.write("train", step, **values)
        if not self.speak:
            return
        line = (
            f"loss {values['loss']:.4f} · {values['images_per_s']:,.0f} images/s · {values['tokens_per_s']:,.0f} tokens/s"
            f" · padding {values['padding']:.2%} · starved {values['starved']:.1%}"
        )
        if "mfu" in values:
            line += f" · MFU {values['mfu']:.1%}"
        self._bar.update(self._task, completed=step, line=line)
        now = time.monotonic()
        if not self.console.is_terminal and (now - self._said >= PLAIN_LINE_S or step == self.steps):
            self._said = now
            left = (now - self._begun) / max(step - self._start, 1) * (self.steps - step)
            self.say(f"step {step}/{self.steps} · {line}" + (f" · {duration(left)} left" if step < self.steps else ""))

    def say(self, text: str) -> None:
        """Prints one line above the bar. A terminal that has hung up, or a full disk behind the output, ends no run: what
        counts is in `log.jsonl`."""
        if not self.speak or hushed("lines"):
            return
        lines = "\n".join(map(shown, text.split("\n")))
        try:
            self.console.print(lines, markup=False, highlight=False, soft_wrap=True)
            sys.stdout.flush()
        except OSError:
            hush(sys.stdout)

    def close(self) -> None:
        """Ends the bar and the log; harmless when called twice."""
        ended = sys.exc_info()[1]
        while self._boards:
            board = self._boards.pop()
            try:
                board.close(ended)
            except Exception as e:
                self.say(f"{_name(board)} could not be closed: {said(e)[0]}")
        if self.speak:
            try:
                self._bar.stop()
            except OSError:
                hush(sys.stdout)
            self._log.close()


def _name(board: Board) -> str:
    return type(board).__name__.strip("_")


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, as in 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
