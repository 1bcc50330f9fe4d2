"""`navit-model report RUN`: the run's page, made again from its log."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from navit_loader.shown import say


def add(subparsers: Any) -> None:
    """Adds the subcommand."""
    parser = subparsers.add_parser("report", help="write report.html of a run")
    parser.add_argument("out", type=Path, metavar="RUN", help="a run's folder")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Writes the page.

    Raises:
        ModelError: the folder holds no log of a run.
    """
    from ..train import report

    say(f"report: {report.write(args.out)}")
    return 0
