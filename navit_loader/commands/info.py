"""`navit-loader info INDEX`: what an index holds, on one screen."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..shown import answer, say
from . import add_output, listed

if TYPE_CHECKING:
    from ..index import Index

BAR = 32
"""Characters of the longest bar."""
SHOWN = 12
"""Classes and reasons listed at most."""
LOOKED_AT = 256
"""Files that are opened to find colour profiles; they lie evenly over the index."""


_MASKS = {
    "classes": "files of classes",
    "regions": "a region for each box",
    "panoptic": "files of segments, a box each",
}


def add(subparsers: Any) -> None:
    """Adds the subcommand."""
    parser = subparsers.add_parser(
        "info",
        examples=("info train.arrow",),
        help="show what an index holds",
        description="Counts, formats, sizes, aspect ratios, classes, quarantine.",
    )
    parser.add_argument("index", metavar="INDEX")
    add_output(parser, prints=True)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints the summary."""
    import numpy as np

    from ..facts import facts_of
    from ..index import open_index

    index = open_index(args.index)
    index.check()
    facts = facts_of(index)
    width, height = (np.concatenate(sides) for sides in zip(*index.sides(), strict=True))
    say(f"{index.path}: {index.num_rows:,} images, {facts.nbytes / 1e6:,.1f} MB, {len(index.shards):,} shards")
    say(f"  data beneath {index.root}")
    say("  formats: " + ", ".join(f"{name} {n:,}" for name, n in facts.formats))
    say(f"  turned by EXIF: {facts.turned:,}")
    say(f"  colour profiles other than sRGB: {_profiles(index)}")
    if len(facts.captions):
        mean = facts.captions @ np.arange(len(facts.captions)) / index.num_rows
        most = len(facts.captions) - 1
        say(f"  captions: {int(facts.captions[1:].sum()):,}, {mean:.1f} tokens in the mean, {most:,} at most")
    if index.boxed:
        boxes = index.box_counts()
        say(f"  boxes: {boxes.sum():,}, {boxes.mean():.1f} an image in the mean, {boxes.max():,} at most")
    if index.masks:
        say(f"  masks: {_MASKS[index.masks]}")
    if (weights := index.weights) is not None:
        mean = weights.mean(dtype=np.float64)
        say(f"  weights in a loss: from {weights.min():g} to {weights.max():g}, {mean:.4g} in the mean")
    side = np.sqrt(width.astype(np.float64) * height)
    edges = [0.0, *(2.0**k for k in range(4, 14)), np.inf]
    _histogram("side (square root of the area, pixels)", edges, np.histogram(side, edges)[0])
    aspect = [0.0, 1 / 4, 1 / 2, 2 / 3, 4 / 5, 5 / 4, 3 / 2, 2.0, 4.0, np.inf]
    _histogram("aspect ratio (width / height)", aspect, np.histogram(width / height, aspect)[0])
    given, unlabelled = facts.given, facts.unlabelled
    none = f", known to be of no class: {facts.negatives:,}" if facts.negatives else ""
    several = f", up to {index.label_width} labels an image" if index.label_width > 1 else ""
    if index.targets is not None and given.any():
        numbers = index.targets.repeat(given)
        counts, bins = np.histogram(numbers, 8)
        _histogram("number to be predicted", bins.tolist(), counts)
        say(
            f"  {numbers.mean():g} in the mean, standard deviation {numbers.std():g}; images without one: {unlabelled:,}"
        )
    else:
        say()
        if index.boxed:
            say(f"classes: {len(index.classes):,}, with so many boxes; images without one: {unlabelled:,}")
        elif index.masks:
            say(f"classes: {len(index.classes):,}, in masks")
        else:
            say(f"classes: {len(index.classes):,}; unlabelled images: {unlabelled:,}{none}{several}")
        for label in () if index.masks and not index.boxed else np.argsort(-given, kind="stable")[:SHOWN]:
            say(f"  {given[label]:>12,}  {index.classes[label]}")
        if len(given) > SHOWN:
            say(f"  {int(np.sort(given)[:-SHOWN].sum()):>12,}  in {len(given) - SHOWN:,} more classes")
    answer(
        {
            "index": str(index.path),
            "images": index.num_rows,
            "bytes": facts.nbytes,
            "shards": len(index.shards),
            "root": str(index.root),
            "formats": dict(facts.formats),
            "turned": facts.turned,
            "side": {f"p{q}": float(np.percentile(side, q)) for q in (5, 50, 95)},
            "aspect": {f"p{q}": float(np.percentile(width / height, q)) for q in (5, 50, 95)},
            "classes": {name: int(n) for name, n in zip(index.classes, facts.given, strict=True)},
            "unlabelled": facts.unlabelled,
            "negatives": facts.negatives,
            **({"boxes": int(facts.given.sum())} if index.boxed else {}),
            **({"masks": index.masks} if index.masks else {}),
            "quarantine": index.broken,
        }
    )
    say()
    say(f"quarantine: {index.broken:,}")
    for line in index.quarantine(SHOWN):
        say(f"  {line['uri']}: {line['reason']}")
    if index.broken > SHOWN:
        say(f"  and {index.broken - SHOWN:,} more in {index.path}.quarantine.jsonl")
    return 0


def _profiles(index: Index) -> str:
    """What colour profiles some files of the index embed; nothing is decoded."""
    from ..errors import RenderError
    from ..look import evenly, file_of, opened

    few = index.sample(evenly(index.num_rows, LOOKED_AT))
    with opened(few, retries=0) as engine:
        try:
            for row in range(few.num_rows):
                file_of(engine, few, row)
        except RenderError as e:
            return f"unknown, since the files cannot be read ({e})"
        found, seen = engine.profiles(), int(engine.stats()["images"])
    return f"{listed(found) or 'none'}; in {seen:,} files that were opened, and `lint` opens all"


def _histogram(title: str, edges: Sequence[float], counts: Any) -> None:
    """Prints a bar for each bin between the first and the last that hold anything."""
    filled = [i for i, count in enumerate(counts) if count]
    say()
    say(title)
    for i in range(filled[0], filled[-1] + 1):
        low, high = edges[i], edges[i + 1]
        span = f"{low:g} and above" if high == float("inf") else f"{low:.4g} to {high:.4g}"
        say(f"  {span:>18} {counts[i]:>12,}  {'#' * -(-int(counts[i]) * BAR // int(max(counts)))}")
