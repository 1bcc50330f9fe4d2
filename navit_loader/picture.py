"""A picture of packed sequences: what the model is really fed.

In: a `PackedBatch` in numpy. Out: each sequence as its row of patches, each image outlined in a colour of its own, and under
it the same images put together again, with the dropped patches left blank: as SVG, where hovering names the image, or as
pixels. Apart from the report and from `navit-loader preview`, which write it, since a notebook can show it too.

`_pieces` says what is drawn and where; `packed_svg` and `packed_image` only write it down.
"""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from .batch import OK, PackedBatch
from .page import COLOURS, card, paragraph
from .shown import shown

WIDTH, GAP, MARGIN, FONT = 1120, 14, 2, 12
EMPTY = 232
"""Grey of padding and of dropped patches."""
SCALE = 2
"""Pixels for each unit, where there are pixels."""


class Box(NamedTuple):
    """A rectangle in the units of the picture."""

    x: float
    y: float
    width: float
    height: float


class Pixels(NamedTuple):
    """An RGB picture stretched over a box."""

    box: Box
    rgb: npt.NDArray[np.uint8]


class Outline(NamedTuple):
    """The edge of an image or of a row of its patches."""

    box: Box
    colour: str
    title: str


class Words(NamedTuple):
    """A line of text; `y` is its baseline."""

    y: float
    text: str


Piece = Pixels | Outline | Words


def packed_svg(batch: PackedBatch, classes: Sequence[str] = (), sequences: int = 2) -> str:
    """An SVG of the first `sequences` sequences of a batch.

    Args:
        batch: as the loader gives it (numpy).
        classes: names for the labels, shown on hover.
        sequences: how many to draw.
    """
    pieces, height = _pieces(batch, classes, sequences)
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="packed sequences" '
        f'viewBox="-{MARGIN} 0 {WIDTH + 2 * MARGIN} {height:.0f}" '
        f'font-family="system-ui, sans-serif" font-size="{FONT}">{"".join(map(_svg, pieces))}</svg>'
    )


def packed_card(svg: str, title: str = "Packed sequences") -> str:
    """The section of a page that shows such an SVG, and says what it is."""
    said = (
        "Every row of patches is one sequence, as the model gets it; each image has its outline. Below it the same images put "
        "together again: grey patches were dropped and cost nothing."
    )
    return card(title, f'{paragraph(said)}<div class="scroll" tabindex="0"><div class="wide">{svg}</div></div>')


def packed_image(batch: PackedBatch, sequences: int = 2) -> Image.Image:
    """The same in pixels, `SCALE` of them for each unit."""
    pieces, high = _pieces(batch, (), sequences)
    sheet = Image.new("RGB", (SCALE * (WIDTH + 2 * MARGIN), math.ceil(SCALE * high)), "white")
    pen = ImageDraw.Draw(sheet)
    for piece in pieces:
        if isinstance(piece, Words):
            pen.text((SCALE * MARGIN, SCALE * piece.y), piece.text, "black", anchor="ls", font_size=SCALE * FONT)
            continue
        x, y, width, height = piece.box
        edges = (MARGIN + x, y, MARGIN + x + width, y + height)
        left, top, right, bottom = (round(SCALE * edge) for edge in edges)
        if isinstance(piece, Pixels):
            size = (max(right - left, 1), max(bottom - top, 1))
            sheet.paste(Image.fromarray(piece.rgb).resize(size, Image.Resampling.BOX), (left, top))
        else:
            pen.rectangle((left, top, right - 1, bottom - 1), outline=piece.colour, width=2 * SCALE)
    return sheet


def pixels_of(batch: PackedBatch) -> Iterator[tuple[int, npt.NDArray[np.int64], npt.NDArray[np.uint8]]]:
    """Row, labels `[K]` and pixels u8 `[H, W, 3]` of each image that was decoded; patches that were dropped are black."""
    side = batch.patch_size
    for b, e in np.argwhere(batch.status == OK):
        mine = (batch.segment_ids[b] == e) & (batch.positions[b, :, 0] >= 0)
        height, width = (int(v) for v in batch.grids[b, e])
        canvas = np.zeros((height, width, side, side, 3), np.uint8)
        y, x = batch.positions[b][mine].T
        canvas[y, x] = batch.patches[b][mine].reshape(-1, side, side, 3)
        found: Any = canvas.swapaxes(1, 2).reshape(height * side, width * side, 3)
        yield int(batch.image_ids[b, e]), batch.labels[b, e], found


def _svg(piece: Piece) -> str:
    if isinstance(piece, Words):
        return f'<text y="{piece.y:.1f}" fill="currentColor">{piece.text}</text>'
    place = " ".join(f'{name}="{value:.1f}"' for name, value in piece.box._asdict().items())
    if isinstance(piece, Outline):
        return (
            f'<rect {place} fill="transparent" stroke="{piece.colour}" stroke-width="2">'
            f"<title>{piece.title}</title></rect>"
        )
    file = io.BytesIO()
    Image.fromarray(piece.rgb).save(file, "PNG", optimize=True)
    data = base64.b64encode(file.getvalue()).decode()
    return (
        f'<image {place} preserveAspectRatio="none" style="image-rendering:pixelated" '
        f'href="data:image/png;base64,{data}"/>'
    )


def _pieces(batch: PackedBatch, classes: Sequence[str], sequences: int) -> tuple[list[Piece], float]:
    """What is drawn, from back to front, and the height of it all."""
    pieces: list[Piece] = []
    top = 0.0
    for b in range(min(sequences, batch.segment_ids.shape[0])):
        top = _restored(batch, b, classes, pieces, _sequence(batch, b, classes, pieces, top) + GAP) + 2 * GAP
    return pieces, max(top - GAP, 1)


def _sequence(batch: PackedBatch, b: int, classes: Sequence[str], pieces: list[Piece], top: float) -> float:
    """Draws a sequence below `top`, and gives its lower edge."""
    length, patch = batch.segment_ids.shape[1], batch.patch_size
    columns = min(length, 64)
    rows = -(-length // columns)
    cell = WIDTH / columns
    tokens = np.full((rows * columns, patch, patch, 3), 255, np.uint8)
    tokens[:length] = batch.patches[b].reshape(length, patch, patch, 3)
    ids = np.full(rows * columns, -1, np.int64)
    ids[:length] = batch.segment_ids[b]
    tokens[ids < 0] = EMPTY
    strip = tokens.reshape(rows, columns, patch, patch, 3).swapaxes(1, 2).reshape(rows * patch, columns * patch, 3)
    filled, images = int((ids >= 0).sum()), int((batch.status[b] == OK).sum())
    pieces.append(Words(top + 12, f"sequence {batch.sequence + b}: {images} images, {filled} of {length} slots"))
    top += 20
    pieces.append(Pixels(Box(0, top, WIDTH, rows * cell), strip))
    for e in range(batch.status.shape[1]):
        slots = np.flatnonzero(ids == e)
        for r in np.unique(slots // columns):
            line = slots[slots // columns == r] % columns
            box = Box(line[0] * cell + 1, top + r * cell + 1, len(line) * cell - 2, cell - 2)
            pieces.append(Outline(box, COLOURS[e % len(COLOURS)], _title(batch, b, e, classes)))
    return top + float(rows * cell)


def _restored(batch: PackedBatch, b: int, classes: Sequence[str], pieces: list[Piece], top: float) -> float:
    """Draws the images of a sequence below `top`, put together from their kept patches, and gives the lower edge."""
    patch = batch.patch_size
    present = [e for e in range(batch.status.shape[1]) if batch.status[b, e] == OK]
    if not present:
        return top
    sides = np.array([batch.grids[b, e] for e in present], np.float64) * patch
    # One scale for all, so that sizes compare; two or three rows of pictures at most, none wider than the sheet.
    scale = min(120 / sides[:, 0].max(), 2.4 * WIDTH / (sides[:, 1].sum() + 1), WIDTH / sides[:, 1].max(), 6.0)
    x = tallest = 0.0
    for e in present:
        h, w = (int(v) for v in batch.grids[b, e])
        canvas = np.full((h, w, patch, patch, 3), EMPTY, np.uint8)
        slots = np.flatnonzero((batch.segment_ids[b] == e) & (batch.positions[b, :, 0] >= 0))
        rows, columns = batch.positions[b, slots].T
        canvas[rows, columns] = batch.patches[b, slots].reshape(-1, patch, patch, 3)
        pixels = canvas.swapaxes(1, 2).reshape(h * patch, w * patch, 3)
        width, height = w * patch * scale, h * patch * scale
        if x and x + width > WIDTH:
            x, top, tallest = 0.0, top + tallest + 8, 0.0
        box = Box(x, top, width, height)
        pieces += [Pixels(box, pixels), Outline(box, COLOURS[e % len(COLOURS)], _title(batch, b, e, classes))]
        x, tallest = x + width + 8, max(tallest, height)
    return top + tallest


def _title(batch: PackedBatch, b: int, e: int, classes: Sequence[str]) -> str:
    h, w = (int(v) for v in batch.grids[b, e])
    kept = int(((batch.segment_ids[b] == e) & (batch.positions[b, :, 0] >= 0)).sum())
    height, width = (int(v) for v in batch.sizes[b, e])
    label = int(batch.labels[b, e, 0])
    name = f", class {html.escape(shown(classes[label]))}" if 0 <= label < len(classes) else ""
    return f"image {int(batch.image_ids[b, e])}{name}: {height} × {width} px, grid {h} × {w}, {kept} of {h * w} tokens"
