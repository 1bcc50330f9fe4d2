"""`navit-loader preview INDEX CONFIG -o FILE.png`: real packed sequences, each image outlined in its own colour."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image

    from ..batch import PackedBatch

COLOURS = ("#e6553f", "#3b7dd8", "#37a35a", "#c98a1b", "#8a56c2", "#1d9e9e", "#d14d93", "#6b7280")
BACKGROUND, EMPTY = "#ffffff", "#e8e8e8"


def add(subparsers: Any) -> None:
    """Adds the subcommand."""
    parser = subparsers.add_parser(
        "preview",
        help="draw real packed sequences",
        description="Renders sequences of an epoch and draws them, as the model sees them, and beneath them each image put "
        "together again; dropped patches stay grey. A trainer that stops at a bad batch names its epoch and first sequence.",
    )
    parser.add_argument("index", metavar="INDEX")
    parser.add_argument("config", metavar="CONFIG", help="a TOML file")
    parser.add_argument("-o", "--output", required=True, metavar="FILE.png")
    parser.add_argument("--epoch", type=int, default=0, metavar="N")
    parser.add_argument("--first", type=int, default=0, metavar="N", help="the first sequence of the epoch to draw (0)")
    parser.add_argument("--sequences", type=int, default=4, metavar="N", help="how many (4)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Draws the picture."""
    from ..config import LoaderConfig
    from ..errors import ConfigError, RenderError
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
        draw(batch).save(args.output)
    except (OSError, ValueError) as e:
        raise RenderError(f"'{args.output}' cannot be written: {e}") from None
    print(f"wrote {args.output}: {batch.num_images} images in {args.sequences} sequences")
    return 0


def draw(batch: PackedBatch, width: int = 1200) -> Image.Image:
    """A picture of a batch.

    Args:
        batch: in numpy.
        width: of the picture, in pixels.
    """
    import numpy as np
    from PIL import Image, ImageDraw

    P, (B, L) = batch.patch_size, batch.segment_ids.shape
    cell = max(4, min(P, 16))
    columns = width // cell
    strips: list[Image.Image] = []
    for b in range(B):
        rows = -(-L // columns)
        strip = Image.new("RGB", (columns * cell, rows * cell), EMPTY)
        pen = ImageDraw.Draw(strip)
        for t in range(L):
            e = int(batch.segment_ids[b, t])
            if e < 0:
                continue
            at = (t % columns * cell, t // columns * cell)
            patch = Image.fromarray(np.ascontiguousarray(batch.patches[b, t].reshape(P, P, 3)))
            strip.paste(patch.resize((cell, cell)), at)
            pen.line([at[0], at[1] + cell - 1, at[0] + cell - 1, at[1] + cell - 1], COLOURS[e % len(COLOURS)], 2)
        strips += [strip, _images(batch, b, columns * cell)]
    total = Image.new("RGB", (columns * cell + 16, sum(s.height + 8 for s in strips) + 8), BACKGROUND)
    y = 8
    for n, strip in enumerate(strips):
        total.paste(strip, (8, y))
        y += strip.height + (4 if n % 2 == 0 else 12)
    return total


def _images(batch: PackedBatch, b: int, width: int) -> Image.Image:
    """The images of a sequence side by side, put together from their kept patches."""
    import numpy as np
    from PIL import Image, ImageDraw

    P = batch.patch_size
    pieces = []
    for e in range(batch.status.shape[1]):
        h, w = (int(v) for v in batch.grids[b, e])
        if h == 0:
            continue
        pixels = np.full((h, P, w, P, 3), 232, np.uint8)
        mine = np.flatnonzero((batch.segment_ids[b] == e) & (batch.positions[b, :, 0] >= 0))
        for t in mine:
            y, x = batch.positions[b, t]
            pixels[y, :, x] = batch.patches[b, t].reshape(P, P, 3)
        piece = Image.fromarray(pixels.reshape(h * P, w * P, 3))
        outline = ImageDraw.Draw(piece)
        outline.rectangle((0, 0, w * P - 1, h * P - 1), outline=COLOURS[e % len(COLOURS)], width=max(1, P // 8))
        pieces.append(piece)
    x, y, line, places = 0, 0, 0, []
    for piece in pieces:
        if x and x + piece.width > width:
            x, y, line = 0, y + line + 4, 0
        places.append((x, y))
        x, line = x + piece.width + 4, max(line, piece.height)
    sheet = Image.new("RGB", (width, max(1, y + line)), BACKGROUND)
    for piece, place in zip(pieces, places, strict=True):
        sheet.paste(piece, place)
    return sheet
