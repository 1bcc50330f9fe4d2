"""A COCO JSON: its categories as labels, or its captions.

In: one file with `images` and `annotations`. Out: rows for the image files it names. An image is of each category that it has
an annotation of, and known to be of none where it has no annotation; of several captions the first is taken. Boxes and masks
are `--boxes`' and `--masks`' (`targets/coco.py`), which a note says.
"""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

from ...errors import IndexFileError
from ..tokens import checked_caption
from .columns import Columns
from .labels import Labels
from .manifest import Entry, ManifestSource, add
from .rows import Source, need_utf8, read_json

IN_FOLDER = "_annotations.coco.json"
"""What Roboflow calls the file, beside its images."""

_LOOKED_FOR = 64


def open_folder(path: str, columns: Columns) -> list[Source] | None:
    """The images of a folder that has its COCO JSON beside them; None for any other folder."""
    file = os.path.join(path, IN_FOLDER)
    return open_file(file, columns) if os.path.isfile(file) else None


def open_file(path: str, columns: Columns) -> list[Source]:
    """The images of a COCO JSON at an absolute path.

    Raises:
        IndexFileError: it is no COCO JSON, contradicts itself, or its images are not found.
    """
    said = read_json(path, "lines of JSON are a manifest, .jsonl")
    if not isinstance(said, dict) or not isinstance(said.get("images"), list):
        lines = (
            f"; of a list of objects make a manifest: jq -c '.[]' '{path}' > x.jsonl" if isinstance(said, list) else ""
        )
        raise IndexFileError(f"'{path}' is no COCO file: it has no list 'images'{lines}")
    try:
        return [_source(path, said)]
    except (KeyError, TypeError, AttributeError) as e:
        raise IndexFileError(f"'{path}' is no COCO file as they are written: {e!r}") from None
    except ValueError as e:
        raise IndexFileError(f"'{path}': {e}") from None


def _source(path: str, said: dict[str, Any]) -> ManifestSource:
    categories = {each["id"]: str(each["name"]) for each in said.get("categories") or ()}
    for name in categories.values():
        need_utf8(name, "category")
    named: dict[Any, set[str]] = {}
    captions: dict[Any, str] = {}
    several = boxes = 0
    for annotation in said.get("annotations") or ():
        image = annotation["image_id"]
        if "category_id" in annotation:
            if annotation["category_id"] not in categories:
                raise ValueError(
                    f"an annotation of image {image} has category {annotation['category_id']!r}, which is not listed"
                )
            named.setdefault(image, set()).add(categories[annotation["category_id"]])
            boxes += "bbox" in annotation or "segmentation" in annotation
        if "caption" in annotation:
            several += image in captions
            captions.setdefault(image, annotation["caption"])
    base = _base(path, [str(image["file_name"]) for image in said["images"]])
    labelled = bool(categories) and isinstance(said.get("annotations"), list)
    entries: dict[str, Entry] = {}
    ids = [image["id"] for image in said["images"]]
    if twice := [one for one, count in Counter(ids).items() if count > 1]:
        raise ValueError(f"two images have the id {twice[0]!r}; files that were put together need other ids")
    for image in said["images"]:
        place = f"'{path}' image {image['id']}"
        if "\0" in image["file_name"]:
            raise ValueError(f"image {image['id']} has the file name {image['file_name']!r}")
        label = sorted(named.pop(image["id"], ())) if labelled else None
        entry = Entry(place, label, checked_caption(captions.pop(image["id"], None)))
        add(entries, os.path.normpath(os.path.join(base, image["file_name"])), entry)
    for unknown in (*named, *captions):
        raise ValueError(f"an annotation is of image {unknown}, which it does not list")
    names = set(categories.values())
    labels = Labels(names, (f"'{path}'", repr(min(names))) if names else None)
    labels.notes.append(f"'{path}': files are taken from '{base}'")
    if boxes:
        labels.notes.append(
            f"'{path}': labels are the categories an image has; boxes are taken by --boxes, masks by --masks coco:"
        )
    if several:
        labels.notes.append(f"'{path}': of several captions of an image the first is taken; {several:,} are left out")
    source = ManifestSource.beneath(base, entries, labels)
    source.table = False
    return source


def _base(path: str, names: list[str]) -> str:
    """The folder with the images: of those where people put them the one that has most of the first ones.

    Raises:
        ValueError: none has any.
    """
    if not names:
        raise ValueError("it lists no image")
    here = os.path.dirname(path)
    above = os.path.dirname(here)
    split = os.path.splitext(os.path.basename(path))[0].rpartition("_")[2]
    folders = [
        here,
        above,
        *(os.path.join(at, *more) for at in (here, above) for more in (("images",), (split,), ("images", split))),
    ]
    found = [sum(os.path.isfile(os.path.join(folder, name)) for name in names[:_LOOKED_FOR]) for folder in folders]
    if not max(found):
        raise ValueError(f"its images, such as '{names[0]}', are in none of {', '.join(folders)}; move it beside them")
    return folders[found.index(max(found))]
