"""`navit-loader report INDEX -o FILE.html`: an index on one page."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..shown import answer, say
from . import add_output


def add(subparsers: Any) -> None:
    """Adds the subcommand."""
    parser = subparsers.add_parser(
        "report",
        examples=("report train.arrow -o train.html",),
        help="write a page about an index",
        description="Sizes, aspect ratios, formats, classes, captions; a sample of the images, those that are broken or there "
        "twice, and the sizes that suggest proposes: on one HTML page that needs nothing beside it.",
    )
    parser.add_argument("index", metavar="INDEX")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.html")
    parser.add_argument(
        "--images", type=int, default=1024, metavar="N", help="images that are decoded, evenly over the index (1024)"
    )
    add_output(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Writes the page.

    Raises:
        IndexFileError: no such index, or a damaged one.
        ConfigError: the page cannot be written.
    """
    from ..errors import ConfigError
    from ..index import open_index
    from ..page import write
    from ..progress import ProgressLine
    from ..report import report

    if not 1 <= args.images <= 16384:
        raise ConfigError(f"--images = {args.images} is not allowed; it must be between 1 and 16384")
    with ProgressLine("decoding") as line:
        page = report(open_index(args.index), args.images, lambda done, of: line.update(done / of, done))
    write(args.output, page)
    answer({"written": str(args.output)})
    say(f"wrote {args.output}")
    return 0
