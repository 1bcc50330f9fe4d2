"""`navit-model export MODEL -o FILE.onnx`: a classifier for those who serve it without this package."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from navit_loader.commands import add_output
from navit_loader.shown import answer, say

from . import add_patch_size, add_weights, check_output


def add(subparsers: Any) -> None:
    """Adds the subcommand."""
    parser = subparsers.add_parser(
        "export",
        examples=("export runs/photos -o model.onnx",),
        help="write a classifier as ONNX",
        description="Writes the classifier as an ONNX file that takes any number of images of any size, and compares its "
        "answers with the model's over 50 grids before the file takes its name. Needs the extra 'onnx'.",
    )
    add_weights(parser)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.onnx", help="the file to write")
    add_patch_size(parser)
    add_output(parser)
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

    opened = open_model(args.model, World.alone("cpu").device, raw=args.raw, last=args.last)
    apart = export_onnx(opened, args.output, args.patch_size)
    size = args.output.stat().st_size
    what = "one number" if opened.regresses else f"{len(opened.classes)} classes"
    answer({"output": str(args.output), "bytes": size, "apart": float(apart)})
    say(f"{args.output}: {size / 1e6:,.1f} MB, {what}; logits within {apart:.1e} of the model's")
    return 0
