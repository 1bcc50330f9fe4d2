"""Pascal VOC: an XML file for each image.

In: a folder of them. Out: what each says of its image, the file of the same name. A box is two corners in pixels counted from
1, both of them inside, so the first pixel of a row is (0, 1) here.
"""

from __future__ import annotations

import os
from xml.etree import ElementTree

from ....errors import IndexFileError
from .found import DIFFICULT, TRUNCATED, Annotations, Box, Found
from .names import files_beneath


def read(folder: str) -> Annotations:
    """The annotations of a folder; class names in the order of their bytes.

    Raises:
        IndexFileError: a file is no XML as VOC's is.
    """
    said: dict[str, tuple[Found, list[tuple[str, Box]]]] = {}
    for stem, path in files_beneath(folder, ".xml"):
        try:
            said[stem] = _read(path)
        except (OSError, ElementTree.ParseError) as e:
            raise IndexFileError(f"'{path}' cannot be read as XML: {e}") from None
        except ValueError as e:
            raise IndexFileError(f"'{path}' is no annotation as Pascal VOC writes them: {e}") from None
    classes = sorted({name for _, boxes in said.values() for name, _ in boxes}, key=str.encode)
    number = {name: n for n, name in enumerate(classes)}
    for found, boxes in said.values():
        for name, box in boxes:
            box.label = number[name]
            found.boxes.append(box)
    return Annotations(folder, {stem: found for stem, (found, _) in said.items()}, stems=True, classes=classes)


def _read(path: str) -> tuple[Found, list[tuple[str, Box]]]:
    """What one file says, and the class of each of its boxes by name.

    Raises:
        ValueError: something is missing or no number.
    """
    root = ElementTree.parse(path).getroot()
    width, height = (root.findtext(f"size/{side}") for side in ("width", "height"))
    size = (int(width), int(height)) if width and height and int(width) and int(height) else None
    boxes = []
    for n, each in enumerate(root.iter("object")):
        name = (each.findtext("name") or "").strip()
        sides = [each.findtext(f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")]
        if not name or None in sides:
            raise ValueError(f"object {n} lacks its name or its bndbox")
        x0, y0, x1, y1 = (float(side or "") for side in sides)
        flags = sum(
            flag
            for key, flag in (("difficult", DIFFICULT), ("truncated", TRUNCATED))
            if (each.findtext(key) or "0").strip() not in ("0", "")
        )
        boxes.append((name, Box((x0 - 1, y0 - 1, x1, y1), 0, flags)))
    return Found(f"'{os.path.basename(path)}'", size=size), boxes
