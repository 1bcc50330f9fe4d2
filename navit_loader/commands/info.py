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

    from ..batch import NO_CLASS
    from ..index import open_index

    index = open_index(args.index)
    index.check()
    columns = index.columns()
    width, height, length = (np.concatenate(columns[name]) for name in ("width", "height", "length"))
    say(f"{index.path}: {index.num_rows:,} images, {int(length.sum()) / 1e6:,.1f} MB, {len(index.shards):,} shards")
    say(f"  data beneath {index.root}")
    formats = np.concatenate([batch["format"].indices.to_numpy() for batch in index.table().to_batches()])
    names = index.table()["format"].chunk(0).dictionary.to_pylist()
    kinds = dict(zip(names, np.bincount(formats, minlength=len(names)).tolist(), strict=True))
    say("  formats: " + ", ".join(f"{name} {n:,}" for name, n in kinds.items() if n))
    turned = int((np.concatenate(columns["orientation"]) > 1).sum())
    say(f"  turned by EXIF: {turned:,}")
    say(f"  colour profiles other than sRGB: {_profiles(index)}")
    if columns["caption_tokens"]:
        tokens = np.concatenate(columns["caption_tokens"])
        say(
            f"  captions: {int((tokens > 0).sum()):,}, {tokens.mean():.1f} tokens in the mean, {tokens.max():,} at most"
        )
    if (weights := index.weights) is not None:
        mean = weights.mean(dtype=np.float64)
        say(f"  weights in a loss: from {weights.min():g} to {weights.max():g}, {mean:.4g} in the mean")
    side = np.sqrt(width.astype(np.float64) * height)
    edges = [0.0, *(2.0**k for k in range(4, 14)), np.inf]
    _histogram("side (square root of the area, pixels)", edges, np.histogram(side, edges)[0])
    aspect = [0.0, 1 / 4, 1 / 2, 2 / 3, 4 / 5, 5 / 4, 3 / 2, 2.0, 4.0, np.inf]
    _histogram("aspect ratio (width / height)", aspect, np.histogram(width / height, aspect)[0])
    labels = np.concatenate(columns["labels"])
    given = np.bincount(labels[labels >= 0], minlength=len(index.classes))
    unlabelled = int((labels.reshape(-1, index.label_width) == -1).all(axis=1).sum())
    negatives = int((labels == NO_CLASS).sum())
    none = f", known to be of no class: {negatives:,}" if negatives else ""
    several = f", up to {index.label_width} labels an image" if index.label_width > 1 else ""
    if index.targets is not None and given.any():
        numbers = index.targets[labels[labels >= 0]]
        counts, bins = np.histogram(numbers, 8)
        _histogram("number to be predicted", bins.tolist(), counts)
        say(
            f"  {numbers.mean():g} in the mean, standard deviation {numbers.std():g}; images without one: {unlabelled:,}"
        )
    else:
        say()
        say(f"classes: {len(index.classes):,}; unlabelled images: {unlabelled:,}{none}{several}")
        for label in np.argsort(-given, kind="stable")[:SHOWN]:
            say(f"  {given[label]:>12,}  {index.classes[label]}")
        if len(given) > SHOWN:
            say(f"  {int(np.sort(given)[:-SHOWN].sum()):>12,}  in {len(given) - SHOWN:,} more classes")
    quarantine = index.quarantine()
    answer(
        {
            "index": str(index.path),
            "images": index.num_rows,
            "bytes": int(length.sum()),
            "shards": len(index.shards),
            "root": str(index.root),
            "formats": kinds,
            "turned": turned,
            "side": {f"p{q}": float(np.percentile(side, q)) for q in (5, 50, 95)},
            "aspect": {f"p{q}": float(np.percentile(width / height, q)) for q in (5, 50, 95)},
            "classes": {name: int(n) for name, n in zip(index.classes, given, strict=True)},
            "unlabelled": unlabelled,
            "negatives": negatives,
            "quarantine": len(quarantine),
        }
    )
    say()
    say(f"quarantine: {len(quarantine):,}")
    for line in quarantine[:SHOWN]:
        say(f"  {line['uri']}: {line['reason']}")
    if len(quarantine) > SHOWN:
        say(f"  and {len(quarantine) - SHOWN:,} more in {index.path}.quarantine.jsonl")
    return 0


def _profiles(index: Index) -> str:
    """What colour profiles some files of the index embed; nothing is decoded."""
    import numpy as np

    from .. import _packer
    from ..config import LoaderConfig, PlanConfig, RenderConfig, Resolution
    from ..errors import RenderError
    from ..render.engine import Engine

    columns = index.columns()
    height, width = (np.concatenate(columns[name]) for name in ("height", "width"))
    rows = np.unique(np.linspace(0, index.num_rows - 1, LOOKED_AT).astype(np.int64))
    blank = {"key": 0, "offset": 0, "kept": 1, "grid": (1, 1), "teacher_offset": 0, "teacher_grid": (0, 0)}
    blank |= {"text_offset": 0, "source": 0, "flip": False}
    render = RenderConfig(threads=1, retries=0, failure_limit=1.0)
    plan = PlanConfig(prefix_tokens=0, resolution=Resolution(upscale=True))  # which takes images of any size
    engine = Engine(LoaderConfig(plan=plan, render=render), index)
    try:
        for row in rows.tolist():
            image = blank | {"row": row, "crop": (0, 0, int(height[row]), int(width[row]))}
            planned = _packer.PlannedBatch(0, 0, engine.config.plan.patch_sizes[0], 1, [[image]])
            engine.submit_planned(planned, encoded=True).wait()
    except RenderError as e:
        return f"unknown, since the files cannot be read ({e})"
    finally:
        found, seen = engine.profiles(), int(engine.stats()["images"])
        engine.close()
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
