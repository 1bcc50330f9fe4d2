"""`navit-model embed MODEL INDEX -o FILE`: one vector for each image of an index."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from navit_loader.commands import add_output, add_ray
from navit_loader.shown import answer, say

from . import add_budget, add_model, check_output


def add(subparsers: Any) -> None:
    """Adds the subcommand."""
    parser = subparsers.add_parser(
        "embed",
        examples=("embed runs/photos train.arrow -o vectors.npy",),
        help="one vector for each image of an index",
        description="Writes .npy (float32, in the order of the index, NaN where an image cannot be read) or .arrow (with "
        "shard, name and label). Started again after an interruption, it goes on where it was.",
    )
    add_model(parser)
    parser.add_argument("index", metavar="INDEX")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="a .npy or .arrow file")
    add_budget(parser)
    add_ray(parser)
    add_output(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Embeds the images that are left to do; status 1 where some could not be read.

    Raises:
        NavitError: model, index or output cannot be used.
    """
    from navit_loader.commands import spread_of
    from navit_loader.progress import ProgressLine

    from ..use.opened import open_model
    from ..use.vectors import check_ending, export
    from ..world import World

    check_ending(args.output)
    check_output("--output", args.output)
    device = World.alone(args.device if args.ray is None else "cpu").device
    opened = open_model(args.model, device, raw=args.raw, last=args.last)
    with spread_of(args.ray, 1) as spread, ProgressLine("embedding") as line:
        if spread is not None:
            spread.gpus = int(args.device == "cuda" or (args.device == "auto" and spread.has_gpus))
        failed = export(
            opened,
            args.index,
            args.output,
            tokens=args.tokens,
            patch_size=args.patch_size,
            progress=lambda done, total: line.update(done / total, done),
            spread=spread,
            device=args.device,
        )
    answer({"output": str(args.output), "failed": failed})
    say(f"{args.output}: embeddings of '{args.index}'" + (f"; {failed:,} images could not be read" if failed else ""))
    return 1 if failed else 0
