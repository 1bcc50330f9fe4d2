"""`navit-loader pack-shards INDEX -o DIR`: rewrites a data set as tars of smaller JPEGs."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from ..progress import ProgressLine
from ..shown import answer, say
from . import add_output, add_ray, spread_of, threads_of


def add(subparsers: Any) -> None:
    """Adds the subcommand."""
    parser = subparsers.add_parser(
        "pack-shards",
        examples=("pack-shards train.arrow -o shards --max-side 512",),
        help="rewrite a data set as tars of smaller JPEGs",
        description="Decodes every image of an index once and writes WebDataset tars of JPEGs whose longer side is at "
        "most --max-side. Started again, it goes on with the tar it was at.",
    )
    parser.add_argument("index", metavar="INDEX")
    parser.add_argument("-o", "--output", required=True, metavar="DIR", help="folder for the tars")
    parser.add_argument("--max-side", type=int, default=512, metavar="PIXELS", help="default: 512")
    parser.add_argument("--quality", type=int, default=90, help="of the JPEGs, 1 to 95 (default: 90)")
    parser.add_argument("--shard-images", type=int, default=4096, metavar="N", help="images per tar (default: 4096)")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="encoding threads (default: one per core)")
    add_ray(parser)
    add_output(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Packs, and says what to do next.

    Raises:
        IndexFileError: no such index, or a folder that cannot be used.
        RenderError: a file that stays out of reach.
    """
    from ..index import open_index
    from ..shards import pack_shards

    index = open_index(args.index)
    threads = threads_of(args)
    with spread_of(args.ray, threads) as spread, ProgressLine("packing") as line:
        done = pack_shards(
            index,
            args.output,
            max_side=args.max_side,
            quality=args.quality,
            shard_images=args.shard_images,
            threads=threads,
            progress=lambda n, total: line.update(n / total, n),
            spread=spread,
        )
    answer({"output": args.output, **asdict(done)})
    before, after = done.bytes_before / 1e6, done.bytes_after / 1e6
    say(
        f"{args.output}: {done.shards:,} tars, {done.images:,} images written, {before:,.1f} MB are {after:,.1f} MB now"
    )
    if done.broken:
        say(f"  {done.broken:,} broken, left out; each with its reason in {args.output}/broken.jsonl")
    if index.weighted:
        say("  weights of images are not in the tars, which have no columns: a manifest keeps them")
    pattern = f"{args.output.rstrip('/')}/shard-{{000000..{done.shards - 1:06d}}}.tar"
    say(f"  next: navit-loader index '{pattern}' --classes {args.index} -o NEW.arrow")
    return 0
