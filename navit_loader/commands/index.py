"""`navit-loader index SOURCE… -o FILE`: finds the images, reads their headers, writes the index."""

from __future__ import annotations

import argparse
from typing import Any

from . import ProgressLine


def add(subparsers: Any) -> None:
    """Adds the subcommand."""
    parser = subparsers.add_parser(
        "index",
        help="find images, read their headers, write an index",
        description="Indexes folders (one class per folder), manifests (.csv, .jsonl or .parquet with path, label, "
        "caption), plain WebDataset tars and Parquet files with images, on disk or at a URL (s3, gs, az, http, https). "
        "Reads headers only. Started again after a kill, it goes on where it was.",
    )
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="folder, manifest, tar, Parquet, or URL; 'shard-{000..127}.tar' expands",
    )
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="the index to write")
    parser.add_argument("--classes", metavar="FROM", help="take the class table of this index")
    parser.add_argument("--tokenizer", metavar="FILE", help="tokenizer.json for captions (default: their bytes)")
    parser.add_argument(
        "--refresh", action="store_true", help="read only what is new or changed since FILE was written"
    )
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="probing threads (default: one per core)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Builds the index and says what it holds."""
    from ..index import IndexProgress, build_index

    with ProgressLine("indexing") as line:

        def show(at: IndexProgress) -> None:
            line.update(at.share, f"{at.images:,} images, {at.broken:,} broken")

        done = build_index(
            args.sources,
            args.output,
            classes=args.classes,
            tokenizer=args.tokenizer,
            refresh=args.refresh,
            threads=max(0, args.threads),
            progress=show,
        )
    print(f"{done.path}: {done.rows:,} images, {len(done.classes):,} classes, {done.seconds:.1f} s")
    if done.unlabelled:
        print(f"  {done.unlabelled:,} images have no label")
    if args.refresh:
        print(f"  {done.reused:,} images were known and unchanged")
    if done.broken:
        print(f"  {done.broken:,} broken, left out; each with its reason in {done.quarantine}")
    return 0
