"""Boxes and masks as they are found, whatever they were written in; and the columns that an index has of them.

In: what a format says of an image. Out: one `Found` for it. Apart from the formats, so that all of them mean the same.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from ....batch import CROWD, DIFFICULT, TRUNCATED

__all__ = [
    "BOX_LISTS",
    "CROWD",
    "DIFFICULT",
    "TARGETS",
    "TARGET_GROUPS",
    "TRUNCATED",
    "Annotations",
    "Box",
    "Found",
    "id_of",
]

TARGETS: dict[str, Any] = {
    "box_count": pa.int32(),
    "boxes": pa.large_list(pa.list_(pa.float32(), 4)),
    "box_labels": pa.large_list(pa.int32()),
    "box_flags": pa.large_list(pa.uint8()),
    "box_ids": pa.large_list(pa.int64()),
    "box_areas": pa.large_list(pa.float32()),
    "regions": pa.large_list(pa.large_binary()),
    "mask_shard": pa.dictionary(pa.int32(), pa.utf8()),
    "mask_name": pa.large_utf8(),
    "mask_offset": pa.int64(),
    "mask_length": pa.int64(),
    "image_number": pa.int64(),
}
"""Columns of an index with boxes or masks, behind those of any.

`boxes`: x0, y0, x1, y1 of each object in pixels of the oriented image, as annotated, so that they may reach beyond it; beside
each its class, its flags, its number where it was annotated, its area. `regions`: its pixels, as COCO's compressed runs in the
oriented image, empty where it has none. `mask_…`: where the image's mask lies, as the image itself; of 0 bytes where it
has none. `image_number`: its id in the COCO JSON that its boxes are of, −1 where that does not list it.
"""

BOX_LISTS = ("boxes", "box_labels", "box_flags", "box_ids", "box_areas", "regions")
"""Those with a value for each box."""

TARGET_GROUPS = (
    ("box_count", *BOX_LISTS[:5]),
    ("mask_shard", "mask_name", "mask_offset", "mask_length"),
)
"""Columns that are there together."""

_IDS = range(-(2**63), 2**63)


@dataclass(slots=True)
class Box:
    """One object.

    Attributes:
        corners: x0, y0, x1, y1, in pixels of the image as it was annotated, or in shares of its sides.
        label: its class.
        flags: see `navit_loader.batch.CROWD` and those beside it.
        id: what it is called there; None numbers them.
        area: in pixels; None takes that of the box.
        region: its pixels, as COCO writes them: polygons, runs, or a text of runs; None where only the box is known.
    """

    corners: tuple[float, float, float, float]
    label: int
    flags: int = 0
    id: int | None = None
    area: float | None = None
    region: Any = None


@dataclass(slots=True)
class Found:
    """What is said of one image.

    Attributes:
        place: where it is said, for messages.
        boxes: its objects.
        size: (width, height) of the image as it was annotated; None where that is not said.
        shares: whether corners are shares of its sides.
        mask: the file of its mask; empty where it has none.
        number: its id in a COCO JSON; None elsewhere, and where that is no such number.
    """

    place: str
    boxes: list[Box] = field(default_factory=list)
    size: tuple[int, int] | None = None
    shares: bool = False
    mask: str = ""
    number: int | None = None


@dataclass(slots=True)
class Annotations:
    """All that one source of annotations says.

    Attributes:
        path: the source.
        images: by the names of the images' files.
        stems: whether those names have no end such as `.jpg`.
        classes: class names, in the order of the boxes' labels; None where they are bare numbers.
        category_ids: what each class is called where it was annotated.
        boxed: whether it has boxes.
        masks: what its masks are, see `Index.masks`; empty without any.
        notes: what may surprise.
        left_out: annotations that cannot be, by reason: how many, and one of them.
    """

    path: str
    images: dict[str, Found]
    stems: bool = False
    classes: list[str] | None = None
    category_ids: list[int] | None = None
    boxed: bool = True
    masks: str = ""
    notes: list[str] = field(default_factory=list)
    left_out: dict[str, tuple[int, str]] = field(default_factory=dict)

    def leave_out(self, reason: str, example: str) -> None:
        """Counts an annotation that is not taken. The reason goes after a number."""
        count, first = self.left_out.get(reason, (0, example))
        self.left_out[reason] = (count + 1, first)


def id_of(value: Any) -> int | None:
    """What a box is called where it was annotated; None where it has no number.

    Raises:
        ValueError: it is no number that an index can hold.
    """
    if value is None:
        return None
    try:
        number = int(value)
    except (ValueError, TypeError, OverflowError):
        number = _IDS.stop
    if number not in _IDS:
        raise ValueError(f"id {value!r} is no whole number of 64 bits; give it another one, or none")
    return number
