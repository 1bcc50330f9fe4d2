"""What every part of a GPU's day shares: its command line, its rows, and its clock.

In: `--out FILE --seconds N` from `gpu.py`. Out: one JSON object a line in FILE, written the moment it is known, so that a part
that is ended at its limit keeps what it had. A row that fails is a row with `failed`; the rows behind it go on.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # corpus, model: the benches beside this folder


class Rows:
    """The rows of one part, and how much of its time is left."""

    def __init__(self, out: Path, seconds: float) -> None:
        self._file = out.open("a", encoding="utf-8")
        self._end = time.monotonic() + seconds

    @classmethod
    def begin(cls, doc: str | None) -> Rows:
        parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
        parser.add_argument("--out", type=Path, required=True)
        parser.add_argument("--seconds", type=float, default=300.0)
        arguments = parser.parse_args()
        return cls(arguments.out, arguments.seconds)

    @property
    def left(self) -> float:
        return self._end - time.monotonic()

    def add(self, name: str, **values: Any) -> None:
        row = {"row": name, **values}
        print(json.dumps(row), file=self._file, flush=True)
        shown = ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items())
        print(f"{name}: {shown}", flush=True)

    def attempt(self, name: str, work: Callable[[], Any], needs: float = 0.0) -> Any:
        """What `work` gives; where it fails or the part's time is over, a row that says so, and None."""
        if self.left < needs:
            self.add(name, failed=f"not begun: {self.left:.0f} s were left of this part's time, it needs {needs:.0f}")
            return None
        try:
            return work()
        except Exception as e:
            self.add(name, failed=f"{type(e).__name__}: {' '.join(str(e).split())[:400]}")
            traceback.print_exc()
            return None


def need_gpu(rows: Rows, *names: str) -> None:
    """Ends a part whose rows only a GPU can give, with a row for each that says it is unmeasured."""
    if not torch.cuda.is_available():
        for name in names:
            rows.add(name, unmeasured="no CUDA device here")
        raise SystemExit(0)


def seconds_of(work: Callable[[], Any], steps: int) -> float:
    """Mean seconds of a call on the device, over `steps` calls in a row."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(steps):
        work()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1000 / steps


def interleaved(works: dict[str, Callable[[], Any]], steps: int, repeat: int) -> dict[str, list[float]]:
    """Seconds of each, taken in turns, so that a device that warms up or slows down does so for all."""
    found: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeat):
        for name, work in works.items():
            found[name].append(seconds_of(work, steps))
    return found


def ratio(mine: list[float], theirs: list[float]) -> float:
    """How many times as fast as `theirs`: the median over the repetitions, each within itself."""
    return statistics.median(t / m for m, t in zip(mine, theirs, strict=True))


def copy_gbs() -> float:
    """Bytes read and written by a plain copy on the device, in 10⁹ a second: the memory's ceiling as measured."""
    source = torch.randint(0, 256, (1 << 30,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    target.copy_(source)
    return 2 * source.numel() / statistics.median(seconds_of(lambda: target.copy_(source), 10) for _ in range(3)) / 1e9


def matmul_tflops() -> float:
    """bf16 products of 8,192³ on random data, in 10¹² operations a second: arithmetic's ceiling as measured."""
    a, b = (torch.randn(8192, 8192, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    a @ b
    return 2 * 8192**3 / statistics.median(seconds_of(lambda: a @ b, 10) for _ in range(3)) / 1e12
