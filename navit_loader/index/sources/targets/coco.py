"""A COCO JSON: boxes, and the regions of its objects.

In: one file with `images`, `annotations` and `categories`. Out: what it says of each image. A box is `[x, y, width, height]` in
pixels; classes are the categories in the order of their ids.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ....errors import IndexFileError
from ..rows import need_utf8, read_json
from .found import CROWD, Annotations, Box, Found, id_of


def read(path: str, *, regions: bool) -> Annotations:
    """The annotations of a COCO JSON, with the regions of objects where they are wanted.

    Raises:
        IndexFileError: it is no COCO JSON, or contradicts itself.
    """
    said = read_json(path, "give a COCO JSON")
    if not isinstance(said, dict) or not {"images", "annotations", "categories"} <= said.keys():
        raise IndexFileError(f"'{path}' is no COCO file: it lacks 'images', 'annotations' or 'categories'")
    try:
        return _read(path, said, regions)
    except (KeyError, TypeError, AttributeError, OverflowError) as e:
        raise IndexFileError(f"'{path}' is no COCO file as they are written: {e!r}") from None
    except ValueError as e:
        raise IndexFileError(f"'{path}': {e}") from None


def classes_of(categories: list[Mapping[str, Any]]) -> tuple[list[str], dict[int, int]]:
    """Class names in the order of their ids, and the class of each id.

    Raises:
        ValueError: two categories of one id or one name.
    """
    names = {int(each["id"]): str(each["name"]) for each in categories}
    if len(names) != len(categories) or len(set(names.values())) != len(names):
        raise ValueError("two categories have the same id or the same name; each needs its own")
    for name in names.values():
        need_utf8(name, "category")
    ids = sorted(names)
    return [names[one] for one in ids], {one: n for n, one in enumerate(ids)}


def number_of_image(id: Any) -> int | None:
    """An image's id where it is a whole number that an index can keep."""
    return id if type(id) is int and 0 <= id < 2**63 else None


def corners_of(bbox: Any) -> tuple[float, float, float, float]:
    """x0, y0, x1, y1 of a box as COCO writes it."""
    x, y, width, height = map(float, bbox)
    return x, y, x + width, y + height


def size_of(image: Mapping[str, Any]) -> tuple[int, int] | None:
    """Width and height of an image as COCO says them; None where it does not.

    Raises:
        ValueError: they are no numbers.
    """
    width, height = image.get("width"), image.get("height")
    try:
        return (int(width), int(height)) if width and height else None
    except (ValueError, TypeError, OverflowError):
        raise ValueError(
            f"image {image['id']}: width {width!r} and height {height!r} are no numbers of pixels"
        ) from None


def _read(path: str, said: dict[str, Any], regions: bool) -> Annotations:
    classes, class_of = classes_of(said["categories"])
    by_id: dict[Any, Found] = {}
    images: dict[str, Found] = {}
    for image in said["images"]:
        name = str(image["file_name"])
        found = Found(f"'{path}' image {image['id']}", size=size_of(image), number=number_of_image(image["id"]))
        if image["id"] in by_id:
            raise ValueError(f"two images have the id {image['id']!r}; files that were put together need other ids")
        if name in images:
            raise ValueError(f"two images have the file name '{name}'; each needs its own")
        by_id[image["id"]] = images[name] = found
    masks = "regions" if regions else ""
    annotations = Annotations(path, images, classes=classes, category_ids=sorted(class_of), masks=masks)
    for n, each in enumerate(said["annotations"]):
        called = f"annotation {each.get('id', n)} of image {each['image_id']}"
        if each["image_id"] not in by_id:
            raise ValueError(f"{called}: it lists no such image")
        if each["category_id"] not in class_of:
            raise ValueError(f"{called} has category {each['category_id']!r}, which is not listed")
        if "bbox" not in each:
            annotations.leave_out("annotations without a bbox", f"'{path}' {called}")
            continue
        try:
            box = Box(
                corners_of(each["bbox"]),
                class_of[each["category_id"]],
                CROWD if each.get("iscrowd") else 0,
                id_of(each.get("id")),
                None if each.get("area") is None else float(each["area"]),
                each.get("segmentation") if regions else None,
            )
        except (ValueError, TypeError, OverflowError) as e:
            raise ValueError(f"{called}: {e}") from None
        by_id[each["image_id"]].boxes.append(box)
    return annotations
