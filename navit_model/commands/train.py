"""`navit-model train CONFIG.toml [key=value …]`: alone, or on each rank under torchrun."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from navit_loader.commands import add_output
from navit_loader.shown import answer


def add(subparsers: Any) -> None:
    """Adds the subcommand."""
    parser = subparsers.add_parser(
        "train",
        examples=(
            "train config.toml",
            "train config.toml --resume train.steps=20000",
        ),
        help="train from a TOML file",
    )
    parser.add_argument("config", type=Path, metavar="CONFIG.toml")
    parser.add_argument("changes", nargs="*", metavar="section.key=value", help="changes, such as train.steps=500")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint of train.out, if any")
    add_output(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Trains to the end, or to a signal."""
    from ..train.settings import RunConfig

    # Before torch is loaded, which takes seconds: a wrong key is told at once.
    config = RunConfig.from_toml(args.config, args.changes)
    from ..train.run import train

    scores = train(config, resume=args.resume)
    if int(os.environ.get("RANK", "0")) == 0:
        answer({"run": config.train.out, "scores": [row.to_dict() for row in scores]})
    return 0
