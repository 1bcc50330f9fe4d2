"""Runs the benchmarks one after another; `make bench` and `make bench-quick` are this.

In: the files beside it. Out: bench/results/NAME.json of each, from which `page.py` then makes README.md. A result of this
commit, engine and machine is not measured again, so that a run that was cut short goes on; each has a limit. What fails or
hangs is named at the end, and keeps its older result. The claims (two hours), `fit` beside timm (two hours) and a GPU's day
are not here: they are started by hand, with `--results bench/results`.

    python bench/run.py [--list] [--only NAME …] [--again] [--quick]

`--quick`: all rows at small sizes in three minutes, two benchmarks at once, into runs/bench-quick. It says whether
everything runs; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import page
from kit import RESULTS, ROOT, commit, engine, installed, machine, read

QUICK_S = 240
"""Limit of one quick benchmark; on a quiet machine the longest takes some twenty seconds."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A result: the command that makes it, its limit in minutes on two cores, and a module that it cannot do without."""

    name: str
    command: tuple[str, ...]
    minutes: int
    needs: str = ""


ENTRIES = (
    Entry("packing", ("packing.py",), 4),
    Entry("growth", ("growth.py",), 20),
    Entry("decode", ("decode.py",), 6),
    Entry("decode-formats", ("decode_formats.py",), 9),
    Entry("decode-formats-dali", ("decode_formats.py", "--dali"), 3, "nvidia.dali"),
    Entry("decode-gpu", ("decode_gpu.py",), 3, "nvidia.dali"),
    Entry("resize", ("resize.py",), 3),
    Entry("targets", ("targets.py",), 2, "pycocotools"),
    Entry("loader", ("loader.py", "--repeat", "7"), 6),
    Entry("loader-mixed", ("loader.py", "--mixed"), 6),
    Entry("memory", ("memory.py",), 4),
    Entry("sources", ("sources.py",), 9),
    Entry("cache", ("cache.py",), 6),
    Entry("service", ("service.py",), 7),
    Entry("training", ("training.py",), 4),
    Entry("processors", ("processors.py",), 4, "transformers"),
    Entry("model", ("model.py",), 11),
    Entry("attention", ("attention.py",), 5),
    Entry("losses", ("losses.py",), 5),
    Entry("weights", ("weights.py",), 8),
    Entry("fleet-growth", ("fleet_growth.py",), 5),
    Entry("fleet", ("fleet.py",), 8, "ray"),
    Entry("fleet-real", ("fleet_sim.py", "--validate"), 5, "simpy"),
    Entry("fleet-sim", ("fleet_sim.py",), 10, "simpy"),
    Entry("towers", ("towers.py",), 27, "transformers"),
)
"""In this order: what most people ask first, the longest last."""


def fresh(folder: Path, quick: bool) -> set[str]:
    """Names of the results that were measured here, at this commit, with this engine."""
    here, now, built = machine(), commit(), engine()
    if now.endswith("+"):  # what is not committed may be anything
        return set()
    return {
        name
        for name, result in read(folder).items()
        if result["commit"] == now
        and result["engine"] == built
        and result.get("quick", False) == quick
        and not result.get("transcribed")
        and all(result["machine"][key] == here[key] for key in ("cpu", "cores", "memory_gib", "kernel"))
    }


def run(entry: Entry, folder: Path, quick: bool) -> str:
    """Runs one; what went wrong, or nothing."""
    if entry.needs and not installed(entry.needs):
        return f"{entry.needs} is not installed"
    command = [sys.executable, str(ROOT / "bench" / entry.command[0]), *entry.command[1:], "--results", str(folder)]
    log, limit, start = (
        ROOT / "runs" / "bench-logs" / f"{entry.name}.log",
        QUICK_S if quick else 60 * entry.minutes,
        time.monotonic(),
    )
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*command, *["--quick"] * quick], stdout=out, stderr=subprocess.STDOUT, start_new_session=True, cwd=ROOT
        )
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if process.returncode is None:  # at its limit, or interrupted: it and what it started
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    took = time.monotonic() - start
    if code == 0:
        print(f"{entry.name}: {took:.0f} s", flush=True)
        return ""
    said = f"not done within {limit} s" if code is None else f"ended with {code}"
    print(f"{entry.name}: {said}; the end of {log}:\n{log.read_text(errors='replace')[-2000:]}", flush=True)
    return said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="names, limits, and which have a result")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=[e.name for e in ENTRIES], help="some of them")
    parser.add_argument("--again", action="store_true", help="also what has a result of this commit and machine")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see whether every row runs")
    args = parser.parse_args()
    folder = ROOT / "runs" / "bench-quick" if args.quick else RESULTS
    known = fresh(folder, args.quick)
    wanted = [entry for entry in ENTRIES if not args.only or entry.name in args.only]
    if args.list:
        for entry in wanted:
            print(f"{entry.name:20} {entry.minutes:3} min at most   {'has a result' if entry.name in known else ''}")
        print(f"{'in all':20} {sum(entry.minutes for entry in wanted):3} min at most")
        return
    if not args.again:
        for name in sorted(known & {entry.name for entry in wanted}):
            print(f"{name}: has a result of this commit and machine")
        wanted = [entry for entry in wanted if entry.name not in known]
    to = RESULTS.parent / "README.md" if folder == RESULTS else folder / "README.md"
    failed: dict[str, str] = {}
    if args.quick:
        with ThreadPoolExecutor(2) as pool:
            failed = dict(zip([e.name for e in wanted], pool.map(lambda e: run(e, folder, True), wanted), strict=True))
        page.write(folder, to)
    else:
        for entry in wanted:
            failed[entry.name] = run(entry, folder, False)
            page.write(folder, to)  # each time: what comes next may be stopped
    if words := [f"{name} ({why})" for name, why in failed.items() if why]:
        sys.exit(f"no result of: {'; '.join(words)}")


if __name__ == "__main__":
    main()
