"""The papers' claims at small scale: the claim, the paper's figure, ours, and whether it holds here.

In: nothing (scikit-learn's digits at drawn sizes), or two indexes with the same classes. Out: a Markdown table, with means
and standard deviations over the seeds. Runs are kept in the folder and used again, so an interrupted table goes on. On two
cores, one part on each, the whole takes about an hour with `OMP_NUM_THREADS=1`.

    python bench/claims.py [--out runs/claims] [--seeds 3] [--only packing drop …] [--train INDEX --test INDEX] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from dataclasses import asdict
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from claims_kit import Kit
from claims_list import CLAIMS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/claims"), help="folder of the runs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="factor of every number of steps, for a quick look")
    parser.add_argument("--only", nargs="+", choices=tuple(CLAIMS), help="some of the claims")
    parser.add_argument("--train", help="an index to learn from, in place of the digits")
    parser.add_argument("--test", help="the held-out index that goes with it")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the lines as JSON too")
    args = parser.parse_args()
    if bool(args.train) != bool(args.test):
        parser.error("--train and --test go together")
    if args.seeds < 1 or not args.scale > 0:
        parser.error("--seeds must be at least 1 and --scale above 0")
    kit = Kit(args.out, args.seeds, args.scale, (args.train, args.test) if args.train else None)
    start, lines = time.monotonic(), []
    for name in args.only or CLAIMS:
        lines += CLAIMS[name](kit)
    print(
        f"\n{args.seeds} seeds, steps × {args.scale:g}, torch {torch.__version__}, {os.cpu_count()} cores "
        f"({platform.machine()}), load {os.getloadavg()[0]:.1f}, {(time.monotonic() - start) / 60:.0f} min\n"
    )
    print("| claim | paper | here | holds here |\n|---|---|---|---|")
    for line in lines:
        verdict = "–" if line.holds is None else "yes" if line.holds else "**no**"
        print(f"| {line.claim} | {line.paper} | {line.ours} | {verdict} |")
    if args.json:
        args.json.write_text(json.dumps([asdict(line) for line in lines], indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
