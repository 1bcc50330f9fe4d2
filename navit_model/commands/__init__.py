"""The subcommands of `navit-model`, one module each, and the arguments that several of them share."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_model(parser: argparse.ArgumentParser) -> None:
    """`MODEL`, `--device` and `--raw`."""
    parser.add_argument(
        "model", type=Path, metavar="MODEL", help="a run's folder, one of its checkpoints, or a saved model"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--raw", action="store_true", help="the last weights in place of their moving average")


def add_budget(parser: argparse.ArgumentParser) -> None:
    """One `--tokens` and one `--patch-size`."""
    parser.add_argument("--tokens", type=_positive, metavar="N", help="tokens of one image at most (the training cap)")
    parser.add_argument("--patch-size", type=_positive, metavar="P", help="patch side (the first of plan.patch_sizes)")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value
