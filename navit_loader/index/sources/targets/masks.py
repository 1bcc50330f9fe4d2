"""Masks beside the images: a PNG for each, of the same name, whose pixels are classes.

In: a folder. Out: for each file the image that it belongs to. Nothing is decoded here: the renderer reads the classes, and
takes 255 (65535 of 16 bits) for "not known".
"""

from __future__ import annotations

from ....errors import IndexFileError
from .found import Annotations, Found
from .names import files_beneath


def read(folder: str) -> Annotations:
    """The masks of a folder.

    Raises:
        IndexFileError: it holds none.
    """
    images = {stem: Found(f"'{path}'", mask=path) for stem, path in files_beneath(folder, ".png")}
    if not images:
        raise IndexFileError(f"--masks '{folder}' holds no .png; masks are PNG files named as their images")
    return Annotations(folder, images, stems=True, boxed=False, masks="classes")
