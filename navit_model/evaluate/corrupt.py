"""Damage as cameras, transmission and light do it, in five strengths: what a model's robustness is measured by.

In: an image's pixels, a kind, a strength. Out: the same image, corrupted. A pure function of its arguments: noise is keyed by
its row, so it does not depend on batches, threads or ranks, and is the same field at each strength.

Kinds and constants follow ImageNet-C (Hendrycks & Dietterich 2019, arXiv 1903.12261, section 3), whose images have 224 × 224
pixels. So the blur is in shares of that side here: a picture of another size is blurred as it would be at that one.
"""

from __future__ import annotations

import io
import math

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

Pixels = npt.NDArray[np.uint8]

SIDE = 224
"""Pixels of the side that the constants are made for, as the square root of the area."""

KINDS: dict[str, tuple[float, ...]] = {
    "noise": (0.08, 0.12, 0.18, 0.26, 0.38),
    "blur": (1, 2, 3, 4, 6),
    "jpeg": (25, 18, 15, 10, 7),
    "brightness": (0.1, 0.2, 0.3, 0.4, 0.5),
    "contrast": (0.4, 0.3, 0.2, 0.1, 0.05),
}
"""By strength from 1 to 5: standard deviation of Gaussian noise, of 1; that of a Gaussian blur, in pixels; JPEG's quality; what
is added to the value of HSV; the share of the distance to the mean colour that is left."""

STRENGTHS = 5


def corrupt(pixels: Pixels, kind: str, strength: int, *, row: int) -> Pixels:
    """The image, corrupted.

    Args:
        pixels: u8 `[H, W, 3]`.
        kind: of `KINDS`.
        strength: 1 to 5; 0 leaves the image as it is.
        row: of the image in its index.
    """
    if strength == 0:
        return pixels
    amount = KINDS[kind][strength - 1]
    if kind == "blur":
        radius = amount * math.sqrt(pixels.shape[0] * pixels.shape[1]) / SIDE
        return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(radius)))
    if kind == "jpeg":
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=int(amount))
        return np.asarray(Image.open(file))
    values = pixels.astype(np.float32)
    if kind == "noise":
        key = np.random.Philox(key=np.array([0, row], np.uint64))
        values += np.random.Generator(key).standard_normal(pixels.shape, np.float32) * np.float32(255 * amount)
    elif kind == "contrast":
        mean = values.mean((0, 1))
        values = (values - mean) * np.float32(amount) + mean
    else:
        # Hue and saturation stay where all three are scaled alike; black has none, and turns grey.
        value = values.max(2, keepdims=True)
        raised = np.minimum(value + np.float32(255 * amount), 255)
        values = np.where(value > 0, values * (raised / np.maximum(value, 1)), raised)
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
