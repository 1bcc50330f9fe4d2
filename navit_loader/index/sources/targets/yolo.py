"""YOLO's text: a file for each image, a line for each object.

In: a folder of them. Out: what each says of its image, the file of the same name: class number, middle and sides of the box in
shares of the image's; with more numbers, the corners of a polygon in the same shares, of which the hull is taken. Class names
stand in `classes.txt`, or in `names` of a `data.yaml`, in the folder or above it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from ....errors import IndexFileError
from ..labels import MOST_UNNAMED
from ..rows import checked_classes
from .found import Annotations, Box, Found
from .names import files_beneath

_NAMES = ("classes.txt", "obj.names", "data.yaml", "dataset.yaml")


def read(folder: str, classes: Sequence[str] | None) -> Annotations:
    """The annotations of a folder.

    Args:
        folder: with a text for each image.
        classes: the class table, where one is given.

    Raises:
        IndexFileError: a line is none of YOLO's, or of a class that is not named.
    """
    names = list(classes) if classes is not None else _names(folder)
    images = {}
    highest = -1
    for stem, path in files_beneath(folder, ".txt"):
        if os.path.basename(path) in _NAMES:
            continue
        found = Found(f"'{path}'", shares=True)
        with open(path, encoding="utf-8", errors="replace") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    box = _box(line.split())
                    if names is not None and box.label >= len(names):
                        raise ValueError(f"it is of class {box.label}, and {len(names)} classes are named")
                    if names is None and box.label >= MOST_UNNAMED:
                        raise ValueError(
                            f"class {box.label} is too high to have no name; name the classes in classes.txt"
                        )
                except ValueError as e:
                    raise IndexFileError(f"'{path}' line {number}: {e}") from None
                highest = max(highest, box.label)
                found.boxes.append(box)
        images[stem] = found
    if names is None:
        names = [str(n) for n in range(highest + 1)]
    return Annotations(folder, images, stems=True, classes=names)


def _box(words: list[str]) -> Box:
    """One line.

    Raises:
        ValueError: it is not of YOLO's form.
    """
    try:
        label, numbers = int(words[0]), [float(word) for word in words[1:]]
    except ValueError:
        label, numbers = -1, []
    if label < 0 or (len(numbers) != 4 and (len(numbers) < 6 or len(numbers) % 2)):
        raise ValueError("it is no class number and four shares, or a polygon; such as: 0 0.5 0.5 0.2 0.1")
    if len(numbers) == 4:
        x, y, width, height = numbers
        return Box((x - width / 2, y - height / 2, x + width / 2, y + height / 2), label)
    across, down = numbers[::2], numbers[1::2]
    return Box((min(across), min(down), max(across), max(down)), label)


def _names(folder: str) -> list[str] | None:
    """The class names beside the labels or above them; None where there are none."""
    at = folder
    for _ in range(3):
        for name in _NAMES:
            path = os.path.join(at, name)
            if not os.path.isfile(path):
                continue
            with open(path, encoding="utf-8-sig") as file:
                lines = file.read().splitlines()
            found = _of_yaml(lines) if name.endswith(".yaml") else [line.strip() for line in lines if line.strip()]
            if found:
                return checked_classes(found, f"'{path}'")
        at = os.path.dirname(at)
    return None


def _of_yaml(lines: list[str]) -> list[str]:
    """The list or the numbered names of the key `names`, in the two or three forms that YOLO's own files have."""
    found: list[str] = []
    inside = False
    for line in lines:
        if start := re.match(r"names\s*:\s*(.*?)\s*$", line):
            if start[1].startswith("["):
                return [name.strip().strip("'\"") for name in start[1].strip("[]").split(",") if name.strip()]
            inside = True
        elif inside and (item := re.match(r"\s*(?:-|\d+\s*:)\s*(.+?)\s*(?:#.*)?$", line)):
            found.append(item[1].strip("'\""))
        elif inside and line.strip() and not line.startswith((" ", "#")):
            break
    return found
