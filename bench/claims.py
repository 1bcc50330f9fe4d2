"""The papers' claims at small scale: the claim, the paper's figure, ours, and whether it holds here.

In: nothing (scikit-learn's digits at drawn sizes), or two indexes with the same classes. Out: for each claim whether it
holds, with means and standard deviations over the seeds. Runs are kept in the folder and used again, so an interrupted
table goes on. On two cores, one part on each, the whole takes about an hour with `OMP_NUM_THREADS=1`.

    python bench/claims.py [--out runs/claims] [--seeds 3] [--only packing drop …] [--train INDEX --test INDEX]
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from claims_kit import Kit
from claims_list import CLAIMS
from kit import Report, parse


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/claims"), help="folder of the runs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="factor of every number of steps, for a quick look")
    parser.add_argument("--only", nargs="+", choices=tuple(CLAIMS), help="some of the claims")
    parser.add_argument("--train", help="an index to learn from, in place of the digits")
    parser.add_argument("--test", help="the held-out index that goes with it")
    args = parse(parser)
    if bool(args.train) != bool(args.test):
        parser.error("--train and --test go together")
    if args.seeds < 1 or not args.scale > 0:
        parser.error("--seeds must be at least 1 and --scale above 0")
    report = Report("claims", __doc__, args)
    kit = Kit(args.out, args.seeds, args.scale, (args.train, args.test) if args.train else None)
    for name in args.only or CLAIMS:
        for line in CLAIMS[name](kit):
            goal = None if line.holds is None else 1
            report.row(
                line.claim, int(bool(line.holds)), "of 1 claim holds", goal=goal, paper=line.paper, here=line.ours
            )
    report.finish()


if __name__ == "__main__":
    main()
