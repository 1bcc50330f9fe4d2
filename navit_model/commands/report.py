"""`navit-model report RUN`: the run's page, made again from its log, with evaluations if they are given."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from navit_loader.commands import add_output
from navit_loader.shown import answer, say


def add(subparsers: Any) -> None:
    """Adds the subcommand."""
    parser = subparsers.add_parser(
        "report", examples=("report runs/photos scores.json",), help="write report.html of a run"
    )
    parser.add_argument("out", type=Path, metavar="RUN", help="a run's folder")
    parser.add_argument(
        "scores",
        type=Path,
        nargs="*",
        metavar="SCORES.json",
        help="of eval --json, to be drawn too: confusion, calibration, groups, corruptions, mistakes; several side by side",
    )
    add_output(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Writes the page.

    Raises:
        ModelError: the folder holds no log of a run, or a file no scores.
    """
    from ..train import report

    page = report.write(args.out, evaluated=args.scores)
    answer({"report": str(page)})
    say(f"report: {page}")
    return 0
