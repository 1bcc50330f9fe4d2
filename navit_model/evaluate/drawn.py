"""Pictures of what a model says stands where: boxes with their names, maps and segments in colours over the image.

In: an image and what was found in it. Out: the image with it drawn in. Apart from the passes that ask a model, since commands
and the report show the same.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import nn

from navit_loader.batch import OK, PackedBatch
from navit_loader.picture import pixels_of
from navit_loader.shown import shown

from ..world import halved
from .targets import held_out_targets

PICTURES = "pictures"
"""Folder of a run in which the report finds them."""

SIDE = 480
"""Pixels of a picture's longer side."""

Draw = Callable[[Image.Image], Image.Image]

Corners = tuple[float, float, float, float]


def colour_of(n: int) -> tuple[int, int, int]:
    """A colour for a class or a segment, far from those of its neighbours."""
    # Steps of the golden ratio leave no two near each other.
    red, green, blue = colorsys.hsv_to_rgb(n * 0.618034 % 1, 0.75, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def with_boxes(image: Image.Image, boxes: Sequence[tuple[str, int, float, Corners]]) -> Image.Image:
    """The image with boxes.

    Args:
        image: in RGB.
        boxes: name, number of the class, score and (left, top, right, bottom) in pixels of each, the surest first.
    """
    drawn = image.copy()
    pen = ImageDraw.Draw(drawn)
    thick = max(1, round(max(image.size) / 400))
    font = ImageFont.load_default(max(10, round(max(image.size) / 60)))
    for name, kind, score, (left, top, right, bottom) in reversed(boxes):
        pen.rectangle((left, top, max(right, left), max(bottom, top)), outline=colour_of(kind), width=thick)
        said = f"{shown(name)} {score:.2f}"
        place = pen.textbbox((left + thick, top + thick), said, font=font)
        pen.rectangle(place, fill=colour_of(kind))
        pen.text((left + thick, top + thick), said, fill="black", font=font)
    return drawn


def with_map(image: Image.Image, numbers: npt.NDArray[np.int64], void: int = -1) -> Image.Image:
    """The image half covered by the colours of a map.

    Args:
        image: in RGB.
        numbers: `[height, width]`, of classes or segments.
        void: the number that is left bare.
    """
    there, places = np.unique(numbers, return_inverse=True)
    table = np.array([colour_of(int(n)) for n in there], np.uint8)
    pixels = np.asarray(image)
    mixed = (pixels.astype(np.uint16) + table[places.reshape(numbers.shape)]) // 2
    return Image.fromarray(np.where((numbers == void)[..., None], pixels, mixed).astype(np.uint8))


@torch.inference_mode()
def write_pictures(
    module: nn.Module,
    folder: Path,
    tell: Callable[[Any, PackedBatch], Sequence[Draw]],
    asked: dict[str, Any],
    most: int = 8,
) -> None:
    """Writes the first images of an index with what is found in them, as small JPEG files, in the place of those before.

    Args:
        module: on any device, in evaluation mode.
        folder: is made.
        tell: from what the module says of a batch, for each image with status `OK` what draws it in, in pixels of the source.
        asked: of `held_out_targets`.
        most: of images.
    """
    device = next(module.parameters()).device
    with held_out_targets(**{**asked, "world": None}) as loader:
        batch = next(iter(loader))
        sent = batch.to(device)
        with halved(device):
            told = tell(module(sent), sent)
        sizes = batch.sizes[batch.status == OK].tolist()
        pixels = [image for _, _, image in pixels_of(batch)]
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.jpg"):
        old.unlink()
    for n, (image, (height, width), draw) in enumerate(list(zip(pixels, sizes, told, strict=True))[:most]):
        drawn = draw(Image.fromarray(image).resize((width, height)))
        drawn.thumbnail((SIDE, SIDE))
        drawn.save(folder / f"{n:02}.jpg", quality=85)
