"""What became slower or faster between two commits, beyond noise?

In: two sides, each a commit, a folder with a checkout (`.` is this one, with what is not committed), or a folder of
results. Out: rows whose ratio B to A leaves 1 by more than noise; it exits with 1 where one is slower, and with 0 where
none is.

Commits are checked out into a scratch folder. Where `packer_rs/`, `jpeg_rs/` and the lock file are the same as here, both
take the engine that is built here; else each is built (some minutes, kept by commit in runs/compare). The benchmarks of
*this* checkout then measure both, at small sizes: A and B in turns, round by round, in the order AB, BA. For each row the
ratios within a round make a bootstrapped interval of their median. A row is suspected where its interval (95 %) leaves 1
and the median by `--least`; what is suspected is measured once more, with as many rounds again, and counts where the new
rounds alone say the same: of hundreds of rows some leave 1 by chance, hardly one does so twice. Two folders of results have
rounds of their own; they are compared once, by medians drawn from each, and must be of one machine.

    python bench/compare.py HEAD~1 HEAD
    python bench/compare.py HEAD . --only decode packing --rounds 9
    python bench/compare.py runs/before runs/after
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from kit import DRAWS, ROOT, Row, interval, read, said
from run import ENTRIES

Key = tuple[str, str, str, str]
"""A row: benchmark, table, what, unit."""
BUILT_FROM = ("packer_rs", "jpeg_rs", "Cargo.toml", "Cargo.lock")
ENGINE = Path("navit_loader", "_packer.abi3.so")
USUAL = ("packing", "resize", "decode", "loader", "sources", "training")
"""What is compared unless `--only` says otherwise: a round of both sides takes some three minutes on two quiet cores."""


@dataclass(frozen=True)
class Found:
    """A row whose ratio B to A is beyond noise; below 1 B is worse."""

    key: Key
    ratio: float
    low: float
    high: float

    @property
    def words(self) -> str:
        """One line."""
        name, table, what, unit = self.key
        kind = "WORSE " if self.ratio < 1 else "better"
        where = f"{name}: {table}: {what}" if table else f"{name}: {what}"
        return f"{kind} {self.ratio:.3f} × ({self.low:.3f} to {self.high:.3f})  {where}, {unit}"


def rows(results: dict[str, dict[str, Any]]) -> Iterator[tuple[Key, Row]]:
    for name, result in results.items():
        for row in result["rows"]:
            yield (name, row["table"], row["what"], row["unit"]), row


def gain(a: float, b: float, better: str) -> float:
    """How many times as good `b` is."""
    if a == b or not a or not b:
        return 1.0 if a == b else 0.0 if (b > a) == (better == "lower") else float("inf")
    return b / a if better == "higher" else a / b


def paired(rounds: list[tuple[dict[str, Any], dict[str, Any]]], least: float, only: set[Key] | None) -> list[Found]:
    """Rows that differ beyond noise, by the ratios within each round."""
    ratios: dict[Key, list[float]] = {}
    for a, b in rounds:
        others = dict(rows(b))
        for key, row in rows(a):
            if key in others and (only is None or key in only):
                ratios.setdefault(key, []).append(gain(row["ours"], others[key]["ours"], row["better"]))
    return judged(((key, float(np.median(of)), *interval(of)) for key, of in ratios.items()), least)


def apart(a: dict[str, Any], b: dict[str, Any], least: float) -> list[Found]:
    """The same for two results that share no rounds: medians are drawn from each by itself."""
    rng, others, found = np.random.default_rng(0), dict(rows(b)), []
    for key, row in rows(a):
        if key in others and row.get("samples") and others[key].get("samples"):
            drawn = [
                np.median(np.asarray(of)[rng.integers(0, len(of), (DRAWS, len(of)))], axis=1)
                for of in (row["samples"], others[key]["samples"])
            ]
            low, high = np.quantile([gain(x, y, row["better"]) for x, y in zip(*drawn, strict=True)], [0.025, 0.975])
            found.append((key, gain(row["ours"], others[key]["ours"], row["better"]), float(low), float(high)))
    return judged(found, least)


def judged(found: Iterable[tuple[Key, float, float, float]], least: float) -> list[Found]:
    """Of rows, ratios and intervals, those that differ."""
    return [
        Found(key, ratio, low, high)
        for key, ratio, low, high in found
        if (high < 1 and ratio <= 1 / (1 + least)) or (low > 1 and ratio >= 1 + least)
    ]


def same(first: list[Found], second: list[Found]) -> list[Found]:
    """What both times differed in the same way."""
    said_first = {found.key: found.ratio < 1 for found in first}
    return [found for found in second if said_first.get(found.key) == (found.ratio < 1)]


def git(*command: str, cwd: Path = ROOT) -> str:
    done = subprocess.run(["git", *command], cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"bench/compare.py: git {' '.join(command)}: {done.stderr.strip()}")
    return done.stdout.strip()


@contextmanager
def side(name: str) -> Iterator[Path]:
    """A checkout with an engine."""
    if Path(name, "navit_loader").is_dir():
        yield Path(name).resolve()
        return
    commit = git("rev-parse", "--verify", f"{name}^{{commit}}")
    with tempfile.TemporaryDirectory() as scratch:
        tree = Path(scratch, "tree")
        git("worktree", "add", "--detach", str(tree), commit)
        try:
            if not git("diff", "--stat", commit, "--", *BUILT_FROM):
                shutil.copy(ROOT / ENGINE, tree / ENGINE)
            else:
                shutil.copy(build(tree, commit), tree / ENGINE)
            yield tree
        finally:
            git("worktree", "remove", "--force", str(tree))


def build(tree: Path, commit: str) -> Path:
    """The engine of a commit, built once; what it is made of lies in one folder for all."""
    kept = ROOT / "runs" / "compare" / f"{commit}.so"
    if not kept.exists():
        print(f"building the engine of {commit[:10]} ...", flush=True)
        target = ROOT / "runs" / "compare" / "target"
        command = ["cargo", "build", "--release", "--locked", "--features", "python", "-p", "navit-packer"]
        subprocess.run(command, cwd=tree, env=os.environ | {"CARGO_TARGET_DIR": str(target)}, check=True)
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(target / "release" / "libnavit_packer.so", kept)
    return kept


def measure(tree: Path, names: Iterable[str], quick: bool, out: Path) -> dict[str, Any]:
    """One round of one side."""
    for entry in (entry for entry in ENTRIES if entry.name in set(names)):
        command = [sys.executable, str(ROOT / "bench" / entry.command[0]), *entry.command[1:], "--results", str(out)]
        env = os.environ | {"PYTHONPATH": str(tree)}
        done = subprocess.run(
            [*command, *["--quick"] * quick],
            env=env,
            cwd=tree,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode:
            raise SystemExit(
                f"bench/compare.py: {' '.join(command)} in {tree} ended with {done.returncode}:\n{done.stdout[-2000:]}"
            )
    return read(out)


def interleaved(trees: tuple[Path, Path], names: list[str], count: int, quick: bool, scratch: Path) -> list[Any]:
    """Rounds of both sides."""
    rounds = []
    for number in range(count):
        order = (0, 1) if number % 2 == 0 else (1, 0)
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            found = {which: measure(trees[which], names, quick, Path(folder, str(which))) for which in order}
        rounds.append((found[0], found[1]))
        print(f"round {number + 1} of {count}", flush=True)
    return rounds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("a", help="a commit, a checkout, or a folder of results: what was")
    parser.add_argument("b", help="the same: what is")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=[e.name for e in ENTRIES], default=list(USUAL))
    parser.add_argument("--rounds", type=int, default=7, help="and as many again for what is suspected")
    parser.add_argument("--least", type=float, default=0.03, help="a difference that is worth a word (0.03)")
    parser.add_argument("--full", action="store_true", help="the table's own sizes, not small ones")
    args = parser.parse_args()
    if args.rounds < 3:
        parser.error("--rounds must be at least 3: fewer say nothing about noise")
    folders = [Path(name) for name in (args.a, args.b)]
    if all(folder.is_dir() and any(folder.glob("*.json")) for folder in folders):
        a, b = map(read, folders)
        machines = [{(r["machine"]["cpu"], r["machine"]["cores"]) for r in results.values()} for results in (a, b)]
        if machines[0] != machines[1] or len(machines[0]) != 1:
            raise SystemExit(f"bench/compare.py: results of several machines say nothing about a change: {machines}")
        found, looked = apart(a, b, args.least), sum(1 for _ in rows(a))
    else:
        with ExitStack() as stack:
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            trees = (stack.enter_context(side(args.a)), stack.enter_context(side(args.b)))
            rounds = interleaved(trees, args.only, args.rounds, not args.full, scratch)
            looked = sum(1 for _ in rows(rounds[0][0]))
            found = paired(rounds, args.least, None)
            if found:
                print(f"{len(found)} of {looked} rows are suspected and measured again", flush=True)
                again = sorted({each.key[0] for each in found})
                rounds = interleaved(trees, again, args.rounds, not args.full, scratch)
                found = same(found, paired(rounds, args.least, {each.key for each in found}))
    for each in sorted(found, key=lambda each: each.ratio):
        print(each.words)
    worse = sum(each.ratio < 1 for each in found)
    print(f"{said(looked)} rows: {worse} worse, {len(found) - worse} better, the others the same within noise")
    sys.exit(worse > 0)


if __name__ == "__main__":
    main()
