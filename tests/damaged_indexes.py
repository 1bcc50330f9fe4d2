"""Indexes with damaged bytes, and what becomes of each: one clear error, or the true stream; never a panic, a signal or a wait.

In: how many, and a seed. Out: a line for each that came to another end. A child process opens, lints, plans, splits and renders
from one index after the other, since only a process of its own shows a signal. By hand: `python -m tests.damaged_indexes 1200`.
"""

from __future__ import annotations

import faulthandler
import hashlib
import json
import random
import select
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from navit_loader import LoaderConfig, PackedLoader, build_index, open_index
from navit_loader.errors import NavitError
from navit_loader.index import reader, write
from navit_loader.index.subset import split_rows, write_subset

from .source_kit import encode, write_tar, write_tree

LONGEST_S = 60.0
"""No index of these takes longer, on a machine that is busy too."""

_PLAN = {
    "sequence_length": 64,
    "max_tokens": 8,
    "patch_sizes": [4],
    "text_tokens": 64,
    "max_text_tokens": 16,
    "block_images": 50,
    "resolution": {"low": 4, "high": 20},
}
_PLANS = [
    _PLAN | {"crop": {"kind": "random_resized", "flip": 0.5}},
    _PLAN
    | {"filter": "width * height > 0 and label < 5", "order": {"kind": "sequential"}, "resolution": {"kind": "native"}},
]


def sources(place: Path) -> Path:
    """An index over a folder and a tar, with captions and several record batches."""
    write_tree(place / "a", {f"{i % 3}/{i}.png": encode("PNG", 5 + i % 9, 4 + i % 7) for i in range(90)})
    members: dict[str, bytes] = {}
    for i in range(60):
        members |= {
            f"{i}.png": encode("PNG", 6 + i % 5, 6),
            f"{i}.txt": f"größe {i}".encode(),
            f"{i}.cls": b"%d" % (i % 3),
        }
    write_tar(place / "b.tar", members)
    before, write.BATCH_ROWS = write.BATCH_ROWS, 64
    try:
        build_index([place / "a", place / "b.tar"], place / "good.arrow", classes=["0", "1", "2"])
    finally:
        write.BATCH_ROWS = before
    return place / "good.arrow"


def damage(good: bytes, chance: random.Random) -> bytes:
    """One kind of damage in one region: its schema, its footer, its record batches, or anywhere."""
    content = bytearray(good)
    size = len(content)
    low, high = chance.choice([(0, 3000), (size - 4000, size), (3000, size - 4000), (0, size)])
    at = chance.randrange(low, high)
    match chance.randrange(6):
        case 0 | 1:
            for _ in range(chance.choice([1, 1, 1, 3, 20])):
                content[chance.randrange(low, high)] ^= 1 << chance.randrange(8)
        case 2:
            del content[at:]
        case 3:
            end = min(size, at + chance.choice([1, 4, 8, 64, 512]))
            content[at:end] = bytes(end - at)
        case 4:
            end = min(size, at + chance.choice([4, 8]))
            content[at:end] = b"\xff" * (end - at)
        case 5:
            del content[at : at + chance.choice([1, 8, 64])]
    return bytes(content)


def stream(path: str, scratch: Path) -> str:
    """All that an index gives: names, both parts of a split, and every batch of two plans."""
    found = hashlib.blake2b()
    index = open_index(path)
    for row in (0, index.num_rows // 2, index.num_rows - 1):
        found.update(index.uri(row).encode())
    found.update(json.dumps([index.num_rows, index.classes]).encode())
    for config in _PLANS:
        with PackedLoader(
            index, LoaderConfig.from_dict({"data": {"batch_size": 4}, "plan": config, "render": {"threads": 1}})
        ) as loader:
            for batch in loader:
                for values in (
                    batch.patches,
                    batch.labels,
                    batch.status,
                    batch.image_ids,
                    batch.text,
                    batch.segment_ids,
                ):
                    found.update(np.ascontiguousarray(values))
    drawn = split_rows(index, 0.3, 1)
    write_subset(index, drawn, scratch / "drawn.arrow")
    found.update((scratch / "drawn.arrow").read_bytes())
    return found.hexdigest()


def child(small: int) -> None:
    """Answers each path on standard input with one line."""
    reader.SMALL = small
    with tempfile.TemporaryDirectory() as scratch:
        for line in sys.stdin:
            answer: dict[str, Any]
            faulthandler.dump_traceback_later(0.8 * LONGEST_S)
            try:
                answer = {"stream": stream(line.strip(), Path(scratch))}
            except NavitError as e:
                answer = {"error": f"{type(e).__name__}: {e}"}
            except BaseException:
                answer = {"raw": traceback.format_exc()}
            print(json.dumps(answer), flush=True)


class Child:
    """The process that opens what is damaged; started anew when it dies."""

    def __init__(self, small: int) -> None:
        self._command = [sys.executable, "-m", "tests.damaged_indexes", "child", str(small)]
        self._process: subprocess.Popen[str] | None = None

    def ask(self, path: Path) -> dict[str, Any]:
        if self._process is None:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{path}\n")
        self._process.stdin.flush()
        ready, _, _ = select.select([self._process.stdout], [], [], LONGEST_S)
        line = self._process.stdout.readline() if ready else ""
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        if not ready:
            self._process.kill()
        _, said = self._process.communicate()
        status, self._process = self._process.returncode, None
        return {"ended" if ready else "hung": f"status {status}: {said[-2000:]}"}

    def close(self) -> None:
        if self._process is not None:
            self._process.communicate()


def run(count: int, seed: int, small: int, place: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """What became of each of `count` damaged indexes.

    Args:
        count: how many.
        seed: of the damage.
        small: files up to this size are read whole and checked; a larger one is mapped.
        place: an empty folder.

    Yields:
        The number, and `stream` (its digest), `error` (of `navit_loader.errors`), `raw`, `ended` or `hung`; number −1 is the
        undamaged one.
    """
    good = sources(place)
    content, chance, process = good.read_bytes(), random.Random(seed), Child(small)
    try:
        yield -1, process.ask(good)
        for number in range(count):
            bad = place / "bad.arrow"
            bad.write_bytes(damage(content, chance))
            yield number, process.ask(bad)
            bad.unlink()
    finally:
        process.close()


def main(count: int, seed: int) -> int:
    """Runs both kinds, small and mapped, and prints what went wrong and how many came to which end."""
    wrong = 0
    for small in (reader.SMALL, 0):
        ends: Counter[str] = Counter()
        true = ""
        with tempfile.TemporaryDirectory() as place:
            for number, answer in run(count, seed, small, Path(place)):
                (end, what), *_ = answer.items()
                if number < 0:
                    true = what
                elif end == "stream" and what != true:
                    end = "other stream"
                ends[end] += 1
                # Of a mapped file only its shape is known, so a plausible value may be taken.
                if end not in ("stream", "error") and not (small == 0 and end == "other stream"):
                    wrong += 1
                    print(f"{number}: {end}: {what}", flush=True)
        print(f"{'small' if small else 'mapped'}: {dict(ends)}", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    if sys.argv[1] == "child":
        child(int(sys.argv[2]))
    else:
        sys.exit(main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0))
