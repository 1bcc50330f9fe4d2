"""A small world of pictures that can be put into words: shapes of a colour, at sizes and aspect ratios of all kinds.

In: a folder and a number. Out: image files and a manifest with labels and captions, held apart by number: nothing is drawn
twice.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

COLOURS = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (50, 80, 230), "yellow": (230, 210, 40)}
SHAPES = ("disc", "box", "cross")


def drawn(shape: str, colour: str, rng: np.random.Generator) -> Image.Image:
    """A shape of a colour on dark noise, 12 to 31 pixels a side."""
    w, h = (int(v) for v in rng.integers(12, 32, 2))
    image = Image.fromarray(rng.integers(0, 60, (h, w, 3), np.uint8))
    draw, fill = ImageDraw.Draw(image), COLOURS[colour]
    left, top = rng.uniform(0, 0.2, 2) * (w, h)
    right, bottom = (w, h) - rng.uniform(0.02, 0.2, 2) * (w, h)
    if shape == "disc":
        draw.ellipse((left, top, right, bottom), fill=fill)
    elif shape == "box":
        draw.rectangle((left, top, right, bottom), outline=fill, width=max(2, min(w, h) // 6))
    else:
        thick = max(2, min(w, h) // 6)
        draw.line((left, top, right, bottom), fill=fill, width=thick)
        draw.line((left, bottom, right, top), fill=fill, width=thick)
    return image


def write_pairs(folder: Path, count: int, seed: int = 0, captions: bool = True) -> Path:
    """`count` pictures and `manifest.jsonl`: labels are colours, captions say colour and shape. Returns the manifest."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    lines = []
    for i in range(count):
        shape, colour = SHAPES[i % len(SHAPES)], list(COLOURS)[i // len(SHAPES) % len(COLOURS)]
        drawn(shape, colour, rng).save(folder / f"{i:04d}.png")
        entry = {"path": f"{i:04d}.png", "label": colour}
        lines.append(entry | ({"caption": f"a {colour} {shape}"} if captions else {}))
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder / "manifest.jsonl"
