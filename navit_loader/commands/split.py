"""`navit-loader split INDEX --fraction F -o REST DRAWN`: two indexes over the same images, stratified by class."""

from __future__ import annotations

import argparse
import os
from typing import Any

from ..shown import answer, say
from . import add_output


def add(subparsers: Any) -> None:
    """Adds the subcommand."""
    parser = subparsers.add_parser(
        "split",
        examples=("split all.arrow --fraction 0.1 -o train.arrow heldout.arrow",),
        help="split an index into two, stratified by class",
        description="Draws a share of every class, by seed, and writes two indexes: the rest and the drawn. No image "
        "is copied or read.",
    )
    parser.add_argument("index", metavar="INDEX")
    parser.add_argument("--fraction", type=float, required=True, help="share to draw, above 0 and below 1")
    parser.add_argument("--seed", type=int, default=0, help="of the draw (default: 0)")
    parser.add_argument(
        "-o", "--output", nargs=2, required=True, metavar=("REST", "DRAWN"), help="the indexes to write"
    )
    add_output(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Writes both indexes and says how many images each has."""
    from ..errors import IndexFileError
    from ..index import open_index
    from ..index.subset import split_rows, write_subset

    paths = [os.path.abspath(path) for path in (args.index, *args.output)]
    if len(set(paths)) < 3:
        raise IndexFileError(f"'{args.index}', '{args.output[0]}' and '{args.output[1]}' must be three different files")
    index = open_index(args.index)
    drawn = split_rows(index, args.fraction, args.seed)
    found = {}
    for keep, path in zip((~drawn, drawn), args.output, strict=True):
        write_subset(index, keep, path)
        found[path] = int(keep.sum())
        say(f"{path}: {found[path]:,} images")
    answer(found)
    return 0
