"""`navit-loader lint INDEX`: checks every row, decodes every image as training would, and reports the broken ones."""

from __future__ import annotations

import argparse
from typing import Any

from ..progress import ProgressLine
from ..shown import answer, say
from . import add_output, add_ray, listed, spread_of, threads_of


def add(subparsers: Any) -> None:
    """Adds the subcommand."""
    parser = subparsers.add_parser(
        "lint",
        examples=(
            "lint train.arrow",
            "lint train.arrow --json > broken.jsonl",
        ),
        help="decode every image and report the broken ones",
        description="Checks every row of an index, then decodes every image, as training does. Exit status 1 where any image "
        "is broken.",
    )
    parser.add_argument("index", metavar="INDEX")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="decoding threads (default: one per core)")
    add_ray(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object a line for each broken image")
    add_output(parser, prints=True, json=False)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Decodes all images, and prints the ledger.

    Raises:
        IndexFileError: no such index.
        RenderError: a fault that may pass, such as a refused permission, outlasted its retries.
    """
    from ..index import open_index
    from ..lint import decode_all

    index = open_index(args.index)
    index.check()
    threads = threads_of(args)
    with spread_of(args.ray, threads) as spread, ProgressLine("decoding") as line:
        found = decode_all(
            index,
            threads,
            lambda seen: line.update(seen / index.num_rows, seen),
            spread,
        )
    failures, profiles = found.failures, found.profiles
    for failure in failures:
        answer(failure)
        say(f"{failure['uri']}: {failure['reason']}: {failure['detail']}")
    if not args.json:
        say(
            f"{index.path}: {found.seen - len(failures):,} of {found.seen:,} images decode, {len(failures):,} are broken"
        )
        if found.dark:
            say(
                f"  {found.dark:,.0f} images of 16 bits a sample are nearly black, since they use few of them; give [render] "
                "depth: 'largest', or how many bits they use, such as '12'"
            )
        if profiles:
            count = sum(images for _, images, _ in profiles)
            say(
                f"  {count:,} have a colour profile other than sRGB, which is applied with [render] profiles: 'convert' alone: "
                f"{listed(profiles)}"
            )
    return 1 if failures else 0
