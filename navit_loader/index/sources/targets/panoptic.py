"""COCO's panoptic form: a JSON with the segments of each image, and a folder of PNG files whose colours are their ids.

In: the two, as `JSON,FOLDER`. Out: what they say of each image: a box for each segment, and the file of its mask.
"""

from __future__ import annotations

import os
from typing import Any

from ....errors import IndexFileError
from ..rows import read_json
from .coco import classes_of, corners_of, number_of_image, size_of
from .found import CROWD, Annotations, Box, Found, id_of


def read(spec: str) -> Annotations:
    """The annotations of `JSON,FOLDER`.

    Raises:
        IndexFileError: one is missing, or the JSON is none of this form or contradicts itself.
    """
    path, comma, folder = spec.rpartition(",")
    if not comma or not os.path.isfile(path) or not os.path.isdir(folder):
        raise IndexFileError(f"--masks panoptic:{spec}: give the JSON and the folder of its PNG files, as JSON,FOLDER")
    path, folder = os.path.abspath(path), os.path.abspath(folder)
    said = read_json(path, "give a panoptic JSON")
    try:
        return _read(path, folder, said)
    except (KeyError, TypeError, AttributeError, OverflowError) as e:
        raise IndexFileError(f"'{path}' is no panoptic JSON as COCO writes them: {e!r}") from None
    except ValueError as e:
        raise IndexFileError(f"'{path}': {e}") from None


def _read(path: str, folder: str, said: dict[str, Any]) -> Annotations:
    classes, class_of = classes_of(said["categories"])
    names = {image["id"]: image for image in said["images"]}
    images: dict[str, Found] = {}
    for each in said["annotations"]:
        if each["image_id"] not in names:
            raise ValueError(f"an annotation is of image {each['image_id']}, which it does not list")
        image = names[each["image_id"]]
        found = Found(
            f"'{path}' image {each['image_id']}",
            size=size_of(image),
            mask=os.path.join(folder, each["file_name"]),
            number=number_of_image(each["image_id"]),
        )
        for segment in each["segments_info"]:
            if segment["category_id"] not in class_of:
                raise ValueError(
                    f"segment {segment['id']} of image {each['image_id']} has category {segment['category_id']!r}, which is "
                    "not listed"
                )
            label, flags = class_of[segment["category_id"]], CROWD if segment.get("iscrowd") else 0
            try:
                area = None if segment.get("area") is None else float(segment["area"])
                found.boxes.append(Box(corners_of(segment["bbox"]), label, flags, id_of(segment["id"]), area))
            except (ValueError, TypeError, OverflowError) as e:
                raise ValueError(f"segment {segment['id']} of image {each['image_id']}: {e}") from None
        images[str(image["file_name"])] = found
    return Annotations(path, images, classes=classes, category_ids=sorted(class_of), masks="panoptic")
