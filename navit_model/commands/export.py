"""`navit-model export MODEL -o FILE.onnx`: a classifier for those who serve it without this package."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from navit_loader.shown import say

from . import add_patch_size, check_output


def add(subparsers: Any) -> None:
    """Adds the subcommand."""
    parser = subparsers.add_parser(
        "export",
        help="write a classifier as ONNX",
        description="Writes the classifier as an ONNX file that takes any number of images of any size, and compares its "
        "answers with the model's over 50 grids before the file takes its name. Needs the extra 'onnx'.",
    )
    parser.add_argument(
        "model", type=Path, metavar="MODEL", help="a run's folder, one of its checkpoints, or a saved model"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.onnx", help="the file to write")
    parser.add_argument("--raw", action="store_true", help="the last weights in place of their moving average")
    add_patch_size(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Writes the file, and says how well it agrees.

    Raises:
        NavitError: the model cannot be used or exported, or the place cannot be written.
    """
    check_output("--output", args.output)
    from ..use.onnx import export_onnx
    from ..use.opened import open_model
    from ..world import World

    opened = open_model(args.model, World.alone("cpu").device, raw=args.raw)
    apart = export_onnx(opened, args.output, args.patch_size)
    size = args.output.stat().st_size
    say(f"{args.output}: {size / 1e6:,.1f} MB, {len(opened.classes)} classes; logits within {apart:.1e} of the model's")
    return 0
