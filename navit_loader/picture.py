"""A picture of packed sequences: what the model is really fed.

In: a `PackedBatch` in numpy. Out: an SVG text: each sequence as its row of patches, each image outlined in a colour of its
own, and under it the same images put together again, with the dropped patches left blank. Hovering names the image.
Apart from the report, since a notebook or a bug report can use it too.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from navit_loader.batch import OK, PackedBatch

COLOURS = ("#2563eb", "#d97706", "#059669", "#db2777", "#7c3aed", "#dc2626", "#0891b2", "#65a30d")
WIDTH, GAP = 1120, 14


def packed_svg(batch: PackedBatch, classes: Sequence[str] = (), sequences: int = 2) -> str:
    """An SVG of the first `sequences` sequences of a batch.

    Args:
        batch: as the loader gives it (numpy).
        classes: names for the labels, shown on hover.
        sequences: how many to draw.
    """
    parts: list[str] = []
    top = 0.0
    for b in range(min(sequences, batch.segment_ids.shape[0])):
        drawn, height = _sequence(batch, b, classes)
        parts.append(f'<g transform="translate(0 {top:.1f})">{drawn}</g>')
        top += height + 2 * GAP
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-2 0 {WIDTH + 4} {max(top - GAP, 1):.0f}" '
        f'font-family="system-ui, sans-serif" font-size="12">{"".join(parts)}</svg>'
    )


def _sequence(batch: PackedBatch, b: int, classes: Sequence[str]) -> tuple[str, float]:
    length, patch = batch.segment_ids.shape[1], batch.patch_size
    columns = min(length, 64)
    rows = -(-length // columns)
    cell = WIDTH / columns
    tokens = np.full((rows * columns, patch, patch, 3), 255, np.uint8)
    tokens[:length] = batch.patches[b].reshape(length, patch, patch, 3)
    ids = np.full(rows * columns, -1, np.int64)
    ids[:length] = batch.segment_ids[b]
    tokens[ids < 0] = 232
    strip = tokens.reshape(rows, columns, patch, patch, 3).swapaxes(1, 2).reshape(rows * patch, columns * patch, 3)
    filled = int((ids >= 0).sum())
    images = int((batch.status[b] == OK).sum())
    svg = [
        f'<text y="12" fill="currentColor">sequence {batch.sequence + b}: {images} images, {filled} of {length} slots</text>',
        f'<g transform="translate(0 20)">{_image(strip, 0, 0, WIDTH, rows * cell)}',
    ]
    for e in range(batch.status.shape[1]):
        slots = np.flatnonzero(ids == e)
        for r in np.unique(slots // columns):
            line = slots[slots // columns == r] % columns
            x, w = line[0] * cell, len(line) * cell
            svg.append(
                f'<rect x="{x + 1:.1f}" y="{r * cell + 1:.1f}" width="{w - 2:.1f}" height="{cell - 2:.1f}" fill="none" '
                f'stroke="{COLOURS[e % len(COLOURS)]}" stroke-width="2"><title>{_title(batch, b, e, classes)}</title></rect>'
            )
    svg.append("</g>")
    images_svg, height = _restored(batch, b, ids[:length], classes)
    offset = 20 + rows * cell + GAP
    svg.append(f'<g transform="translate(0 {offset:.1f})">{images_svg}</g>')
    return "".join(svg), offset + height


def _restored(batch: PackedBatch, b: int, ids: np.ndarray, classes: Sequence[str]) -> tuple[str, float]:
    """The images of one sequence, put together from their kept patches."""
    patch = batch.patch_size
    present = [e for e in range(batch.status.shape[1]) if batch.status[b, e] == OK]
    if not present:
        return "", 0.0
    sides = np.array([batch.grids[b, e] for e in present], np.float64) * patch
    # One scale for all, so that sizes compare; two or three rows of pictures at most.
    scale = min(120 / sides[:, 0].max(), 2.4 * WIDTH / (sides[:, 1].sum() + 1), 6.0)
    svg: list[str] = []
    x = y = tallest = 0.0
    for e in present:
        h, w = (int(v) for v in batch.grids[b, e])
        canvas = np.full((h, w, patch, patch, 3), 232, np.uint8)
        slots = np.flatnonzero((ids == e) & (batch.positions[b, :, 0] >= 0))
        rows, columns = batch.positions[b, slots].T
        canvas[rows, columns] = batch.patches[b, slots].reshape(-1, patch, patch, 3)
        pixels = canvas.swapaxes(1, 2).reshape(h * patch, w * patch, 3)
        width, height = w * patch * scale, h * patch * scale
        if x and x + width > WIDTH:
            x, y, tallest = 0.0, y + tallest + 8, 0.0
        svg.append(
            f'{_image(pixels, x, y, width, height)}<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" '
            f'fill="transparent" stroke="{COLOURS[e % len(COLOURS)]}" stroke-width="2">'
            f"<title>{_title(batch, b, e, classes)}</title></rect>"
        )
        x, tallest = x + width + 8, max(tallest, height)
    return "".join(svg), y + tallest


def _title(batch: PackedBatch, b: int, e: int, classes: Sequence[str]) -> str:
    h, w = (int(v) for v in batch.grids[b, e])
    kept = int(((batch.segment_ids[b] == e) & (batch.positions[b, :, 0] >= 0)).sum())
    height, width = (int(v) for v in batch.sizes[b, e])
    label = int(batch.labels[b, e, 0])
    name = f", class {_escape(classes[label])}" if 0 <= label < len(classes) else ""
    return f"image {int(batch.image_ids[b, e])}{name}: {height} × {width} px, grid {h} × {w}, {kept} of {h * w} tokens"


def _image(pixels: np.ndarray, x: float, y: float, width: float, height: float) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", optimize=True)
    data = base64.b64encode(file.getvalue()).decode()
    return (
        f'<image x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" preserveAspectRatio="none" '
        f'style="image-rendering:pixelated" href="data:image/png;base64,{data}"/>'
    )


def _escape(text: str) -> str:
    return str(text).replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
