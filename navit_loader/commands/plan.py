"""`navit-loader plan INDEX CONFIG`: what a plan does with an index, before any pixel is decoded."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..shown import answer, say
from . import add_output


def add(subparsers: Any) -> None:
    """Adds the subcommand."""
    parser = subparsers.add_parser(
        "plan",
        examples=(
            "plan train.arrow config.toml",
            "plan train.arrow config.toml --world-size 8 --html plan.html",
        ),
        help="show what a plan does with an index",
        description="Plans one epoch from headers alone: sequences, padding, images a sequence, lateness, tokens kept "
        "and dropped, steps a rank.",
    )
    parser.add_argument("index", metavar="INDEX")
    parser.add_argument(
        "config", metavar="CONFIG", help="a TOML file, as navit-loader init or suggest --toml writes it"
    )
    parser.add_argument("--epoch", type=int, default=0, metavar="N")
    parser.add_argument("--world-size", type=int, default=1, metavar="W", help="ranks that share the epoch")
    parser.add_argument("--json", action="store_true", help="print JSON in place of the table")
    parser.add_argument("--html", metavar="FILE", help="write a page with the distributions too")
    add_output(parser, prints=True, json=False)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints the summary."""
    from ..config import LoaderConfig
    from ..errors import ConfigError
    from ..render.engine import Engine
    from ..summary import summarise

    if args.epoch < 0 or args.world_size < 1:
        raise ConfigError(f"--epoch {args.epoch} --world-size {args.world_size}: at least 0 and at least 1")
    config = LoaderConfig.from_toml(args.config)
    with Engine(config, args.index) as engine:
        summary = summarise(engine, args.epoch, args.world_size)
        answer(summary)
        _table(summary)
        if args.html:
            from ..page import write

            write(Path(args.html), _page(summary, distributions(engine, args.epoch)))
            say(f"  wrote {args.html}")
    return 0


def _remedies(s: dict[str, Any]) -> list[tuple[str, str]]:
    """What pads, or is seen smaller than asked for, and the key that changes it; nothing where nothing is."""
    from ..plan.config import MASKED

    found = []
    if s["masked_sequences"]:
        said = f"{s['masked_sequences']:,} fill up batches, {s['padding_masked']:.2%} of all slots"
        if s["passes_advised"] > s["passes"] and s["padding_masked"] > MASKED:
            said += f"; plan.passes = {s['passes_advised']} leaves at most {MASKED:.1%}"
        found.append(("masked sequences", said))
    if s["closed_by_max_images"]:
        said = f"{s['closed_by_max_images']:,} sequences that had room, by plan.max_images = {s['max_images']}"
        found.append(("closed early", said))
    if s["below_low"]:
        found.append(("below low", f"{s['below_low']:,} images of the index are smaller than plan.resolution.low"))
    return found


def _ranks(s: dict[str, Any]) -> list[tuple[str, str]]:
    if s["world_size"] == 1:
        return []
    said = f"{s['slowest_rank']:.3f} of a step's mean in attention (squared lengths)"
    return [("slowest rank", said if s["balance"] else f"{said}; plan.balance evens it")]


def _lines(s: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        ("plan_id / render_id", f"{s['plan_id']} / {s['render_id']}"),
        ("images", f"{s['images']:,} in {s['blocks']:,} block(s)"),
        ("sequences", f"{s['sequences']:,} of {s['images_per_sequence']:.2f} images"),
        (
            "padding",
            f"{s['padding']:.4%}, {s['padding_inside']:.6%} inside the blocks, the rest in tails and masked sequences",
        ),
        *_remedies(s),
        ("lateness", f"{s['lateness']:,} images at most"),
        *(
            [("captions cut", f"{s['captions_cut']:,} of the index (plan.max_text_tokens)")]
            if s["captions_cut"]
            else []
        ),
        *(
            [
                (
                    "too many boxes",
                    f"{s['boxes_beyond']:,} images are not planned, up to {s['boxes_most']:,} boxes (plan.targets.capacity)",
                )
            ]
            if s.get("boxes_beyond")
            else []
        ),
        ("tokens kept", f"{s['tokens_kept']:,}"),
        ("tokens dropped", f"{s['tokens_dropped']:,} ({s['drop_rate']:.1%})"),
        ("moved by fit", f"{s['moved_by_fit']:,} images by {s['moved_tokens_mean']:.1f} tokens"),
        *_ranks(s),
        ("steps", f"{s['steps_per_rank']:,} on each of {s['world_size']} rank(s), {s['batch_size']} sequences a batch"),
    ]


def _table(summary: dict[str, Any]) -> None:
    say(f"epoch {summary['epoch']}")
    for name, value in _lines(summary):
        say(f"  {name:<20} {value}")


def distributions(engine: Any, epoch: int, most: int = 4096) -> dict[str, list[float]]:
    """Tokens and side of each image, and fill of each sequence, of the first `most` sequences."""
    layout = engine.layout(epoch)
    found: dict[str, list[float]] = {"tokens of an image": [], "side of an image, pixels": [], "fill of a sequence": []}
    length = engine.config.plan.sequence_length
    prefix = engine.config.plan.prefix_tokens
    first, total = 0, layout.counts(0, layout.num_blocks).sum()
    while first < min(total, most):
        batch = layout.batch(first, 256)
        for images in batch.sequences:
            for image in images:
                h, w = image["grid"]
                found["tokens of an image"].append(image["kept"])
                found["side of an image, pixels"].append((h * w) ** 0.5 * batch.patch_size)
            found["fill of a sequence"].append(sum(i["kept"] + prefix for i in images) / length)
        first = layout.next(first, 256)
    return found


def _page(summary: dict[str, Any], found: dict[str, list[float]]) -> str:
    import numpy as np

    from .. import page

    tiles = [
        ("images", f"{summary['images']:,}"),
        ("sequences", f"{summary['sequences']:,}"),
        ("images a sequence", f"{summary['images_per_sequence']:.2f}"),
        ("padding", f"{summary['padding']:.2%}"),
        ("steps of a rank", f"{summary['steps_per_rank']:,}"),
    ]
    units = {"fill of a sequence": "sequences"}
    drawn = ""
    for what, values in found.items():
        counts, edges = page.binned(np.array(values))
        drawn += page.card(what, page.histogram(what, counts, edges, units.get(what, "images")))
    body = page.tiles(tiles) + page.card("In figures", page.table(["", ""], _lines(summary), left=True))
    lead = f"plan {summary['plan_id']}; before any pixel is decoded"
    return page.page(f"Plan of epoch {summary['epoch']}", lead, f'{body}<div class="two">{drawn}</div>')
