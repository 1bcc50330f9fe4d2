"""`navit-loader index SOURCE… -o FILE`: finds the images, reads their headers, writes the index."""

from __future__ import annotations

import argparse
import json
import re
from typing import TYPE_CHECKING, Any

from ..progress import ProgressLine
from ..shown import answer, counted, say
from . import add_columns, add_output, add_ray, spread_of, threads_of

if TYPE_CHECKING:
    from ..index import IndexSummary

SHOWN = 12
"""Classes, notes and reasons listed at most."""


def add(subparsers: Any) -> None:
    """Adds the subcommand."""
    parser = subparsers.add_parser(
        "index",
        examples=(
            "index photos/train -o train.arrow",
            "index 'pairs-{000..127}.tar' -o pairs.arrow --tokenizer tokenizer.json",
        ),
        help="find images, read their headers, write an index",
        description="Indexes folders (one class per folder, or metadata.csv beside the images), manifests (.csv, .jsonl or "
        ".parquet with path, label, caption), COCO JSON, plain WebDataset tars, zips that are not compressed, Parquet with "
        "images, and what save_to_disk, MDS and LitData write; tars, Parquet and folders at URLs (s3, gs, az, http, https). "
        "Reads headers only. Started again after a kill, it goes on where it was.",
    )
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="folder, manifest, COCO JSON, tar, zip, Parquet, or URL; 'shard-{000..127}.tar' expands",
    )
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="the index to write")
    parser.add_argument(
        "--classes", metavar="FROM", help="take the class table of this index, or of a text with a name a line"
    )
    parser.add_argument("--tokenizer", metavar="FILE", help="tokenizer.json for captions (default: their bytes)")
    add_columns(parser)
    parser.add_argument(
        "--boxes",
        default="",
        metavar="FROM",
        help="boxes of objects: a COCO JSON, a folder of Pascal VOC's .xml or YOLO's .txt, or column:NAME of a manifest",
    )
    parser.add_argument(
        "--masks",
        default="",
        metavar="FROM",
        help="masks: a folder of PNG files named as their images, coco:ANNOTATIONS.json, or panoptic:JSON,FOLDER",
    )
    parser.add_argument(
        "--refresh", action="store_true", help="read only what is new or changed since FILE was written"
    )
    parser.add_argument(
        "--strict", action="store_true", help="write nothing where anything but hidden files is broken or left out"
    )
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="probing threads (default: one per core)")
    add_ray(parser)
    add_output(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Builds the index and says what it holds."""
    from ..index import IndexProgress, build_index, open_index

    threads = threads_of(args)
    with spread_of(args.ray, threads) as spread, ProgressLine("indexing") as line:

        def show(at: IndexProgress) -> None:
            line.update(at.share, at.images, f"{at.broken:,} broken")

        done = build_index(
            args.sources,
            args.output,
            classes=args.classes,
            tokenizer=args.tokenizer,
            image_column=args.image_column,
            label_column=args.label_column,
            caption_column=args.caption_column,
            target_column=args.target_column,
            weight_column=args.weight_column,
            boxes=args.boxes,
            masks=args.masks,
            refresh=args.refresh,
            strict=args.strict,
            threads=threads,
            progress=show,
            spread=spread,
        )
    answer(
        {
            "index": str(done.path),
            "images": done.rows,
            "classes": dict(zip(done.classes, map(int, done.counts), strict=False)),
            "unlabelled": done.unlabelled,
            "negatives": done.negatives,
            "reused": done.reused,
            "broken": done.broken,
            "quarantine": str(done.quarantine),
            "left_out": {reason: count for reason, (count, _) in done.left_out.items()},
            "notes": list(done.notes),
            "seconds": done.seconds,
        }
    )
    found, targeted = len(done.classes), bool(args.boxes or args.masks)  # then the classes are those of objects
    what = counted(found, "different number") if args.target_column else counted(found, "class", "classes")
    say(f"{done.path}: {counted(done.rows, 'image')}, {what}, {done.seconds:.1f} s")
    if args.target_column and done.classes:
        numbers = sorted(map(float, done.classes))
        say(f"  numbers from {numbers[0]:g} to {numbers[-1]:g}")
    else:
        _classes(done, labelled=not targeted)
    if targeted and (made := open_index(done.path)).boxed:
        boxes = made.box_counts()
        say(f"  {counted(int(boxes.sum()), 'box', 'boxes')} in {counted(int((boxes > 0).sum()), 'image')}")
    if done.unlabelled and not targeted:
        say(f"  {done.unlabelled:,} images have no label")
    if done.negatives:
        say(f"  {done.negatives:,} images are known to be of no class")
    for note in done.notes[:SHOWN]:
        say(f"  {note}")
    if len(done.notes) > SHOWN:
        say(f"  and {len(done.notes) - SHOWN:,} more notes of that kind")
    if args.refresh:
        say(f"  {done.reused:,} images were known and unchanged")
    if done.broken:
        say(f"  {done.broken:,} broken, left out; each with its reason in {done.quarantine}")
        _by_reason(_broken(done.quarantine))
    if done.ignored:
        say(f"  {done.ignored:,} files left out that are no images to the index:")
        _by_reason(done.left_out)
    return 0


def _classes(done: IndexSummary, labelled: bool) -> None:
    """The class table, and, where images are what is labelled, the classes that no image is of."""
    if not done.classes:
        return
    named = done.classes != [str(label) for label in range(len(done.classes))]
    shown = [f"{label} = {_short(name)}" for label, name in enumerate(done.classes[:SHOWN])]
    more = f", and {len(done.classes) - SHOWN:,} more" if len(done.classes) > SHOWN else ""
    say(f"  classes: {', '.join(shown)}{more}" if named else f"  classes: the numbers 0 to {len(done.classes) - 1}")
    empty = [label for label, count in enumerate(done.counts) if labelled and not count]
    if empty:
        listed = ", ".join(_short(done.classes[label]) for label in empty[:SHOWN])
        more = f" and {len(empty) - SHOWN:,} more" if len(empty) > SHOWN else ""
        hint = "; class numbers are counted from 0" if not named and empty[0] == 0 else ""
        say(f"  no image of class {listed}{more}{hint}")


def _short(name: str) -> str:
    return name if len(name) <= 40 else name[:39] + "…"


def _broken(path: str) -> dict[str, tuple[int, str]]:
    """What is in quarantine by reason, whatever names and numbers the reasons hold: how many, and the first of them."""
    found: dict[str, tuple[int, str]] = {}
    kinds: dict[str, str] = {}
    with open(path, encoding="utf-8") as file:
        for line in map(json.loads, file):
            kind = re.sub(r"'.*'|\d+", "", line["reason"])
            reason = kinds.setdefault(kind, line["reason"])
            count, first = found.get(reason, (0, line["uri"]))
            found[reason] = (count + 1, first)
    return found


def _by_reason(found: dict[str, tuple[int, str]]) -> None:
    """A line for each reason, the commonest first."""
    ordered = sorted(found.items(), key=lambda item: -item[1][0])
    for reason, (count, example) in ordered[:SHOWN]:
        say(f"    {count:,} {reason}; such as {example}")
    if len(ordered) > SHOWN:
        say(f"    {sum(count for _, (count, _) in ordered[SHOWN:]):,} for {len(ordered) - SHOWN:,} more reasons")
