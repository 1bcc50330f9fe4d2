"""The subcommands of `navit-model`, one module each, and the arguments that several of them share."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from navit_loader.errors import ConfigError


def add_model(parser: argparse.ArgumentParser) -> None:
    """`MODEL`, `--last`, `--raw` and `--device`."""
    add_weights(parser)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")


def add_weights(parser: argparse.ArgumentParser) -> None:
    """`MODEL`, `--last` and `--raw`."""
    parser.add_argument(
        "model",
        type=Path,
        metavar="MODEL",
        help="a run's folder (its best checkpoint where train.best keeps one, else the newest), a checkpoint, or a saved model",
    )
    parser.add_argument("--last", action="store_true", help="the newest checkpoint, though the best is kept")
    parser.add_argument("--raw", action="store_true", help="the weights in place of their moving average")


def add_budget(parser: argparse.ArgumentParser) -> None:
    """One `--tokens` and one `--patch-size`."""
    parser.add_argument("--tokens", type=_positive, metavar="N", help="tokens of one image at most (the training cap)")
    add_patch_size(parser)


def add_patch_size(parser: argparse.ArgumentParser) -> None:
    """One `--patch-size`."""
    parser.add_argument("--patch-size", type=_positive, metavar="P", help="patch side (the first of plan.patch_sizes)")


def add_scores(parser: argparse.ArgumentParser) -> None:
    """`--json [FILE]`."""
    parser.add_argument(
        "--json",
        nargs="?",
        const="-",
        metavar="FILE",
        help="print the scores as JSON, and nothing else; with FILE write them there, for `navit-model report`",
    )


def scores_file(given: Path | str | None) -> Path | None:
    """The file of `--json FILE`."""
    return None if given in (None, "-") else Path(str(given))


def check_output(option: str, path: Path | None) -> None:
    """Refuses, before any work, a file that could not be written after it.

    Raises:
        ConfigError: names option and place.
    """
    if path is None:
        return
    folder = path.parent
    if path.is_dir():
        raise ConfigError(f"{option} = '{path}' is a folder; give the name of a file")
    if not folder.is_dir():
        raise ConfigError(f"{option} = '{path}' cannot be written, since there is no folder '{folder}'; make it first")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise ConfigError(f"{option} = '{path}' cannot be written; choose a place where you may write")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value
