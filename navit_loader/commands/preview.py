"""`navit-loader preview INDEX CONFIG -o FILE`: real packed sequences, each image outlined in its own colour."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..shown import answer, say
from . import add_output


def add(subparsers: Any) -> None:
    """Adds the subcommand."""
    parser = subparsers.add_parser(
        "preview",
        examples=("preview train.arrow config.toml -o packed.png",),
        help="draw real packed sequences",
        description="Renders sequences of an epoch and draws them, as the model sees them, and beneath them each image put "
        "together again; dropped patches stay grey. A trainer that stops at a bad batch names its epoch and first sequence.",
    )
    parser.add_argument("index", metavar="INDEX")
    parser.add_argument("config", metavar="CONFIG", help="a TOML file")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="by its suffix: .svg, .png, …")
    parser.add_argument("--epoch", type=int, default=0, metavar="N")
    parser.add_argument("--first", type=int, default=0, metavar="N", help="the first sequence of the epoch to draw (0)")
    parser.add_argument("--sequences", type=int, default=4, metavar="N", help="how many (4)")
    add_output(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Draws the picture."""
    from ..config import LoaderConfig
    from ..errors import ConfigError, RenderError
    from ..picture import packed_image, packed_svg
    from ..render.engine import Engine

    if args.epoch < 0 or args.first < 0 or not 1 <= args.sequences <= 64:
        raise ConfigError(
            f"--epoch {args.epoch} --first {args.first} --sequences {args.sequences}: "
            "at least 0, at least 0, and between 1 and 64"
        )
    with Engine(LoaderConfig.from_toml(args.config), args.index) as engine:
        layout = engine.layout(args.epoch)
        batch = engine.submit(args.epoch, args.first, args.sequences).wait()
        if args.first and layout.num_sequences is not None and args.first >= layout.num_sequences:
            raise ConfigError(f"--first {args.first}: epoch {args.epoch} has {layout.num_sequences} sequences")
    assert batch is not None, "without a timeout there is a batch or an error"
    try:
        if args.output.suffix.lower() == ".svg":
            args.output.write_text(packed_svg(batch, sequences=args.sequences), encoding="utf-8")
        else:
            packed_image(batch, args.sequences).save(args.output)
    except (OSError, ValueError) as e:
        raise RenderError(f"'{args.output}' cannot be written: {e}") from None
    answer({"output": str(args.output), "images": batch.num_images, "sequences": args.sequences})
    say(f"wrote {args.output}: {batch.num_images} images in {args.sequences} sequences")
    return 0
