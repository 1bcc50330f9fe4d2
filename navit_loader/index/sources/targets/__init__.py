"""What people say of the objects in their images: boxes and masks, in the forms in which they are written. Each is a file here.

In: what is named by `--boxes` and `--masks`, and the rows of any source. Out: the same rows with the columns of `TARGETS`
behind them. Apart from the sources, since annotations are joined by the names of files: the images may lie in a folder, a tar
or a table, whatever says what is in them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from ....errors import IndexFileError
from ..columns import Columns
from . import coco, column, masks, panoptic, voc, yolo
from .found import BOX_LISTS, TARGET_GROUPS, TARGETS, Annotations
from .join import Joined

__all__ = ["BOX_LISTS", "TARGETS", "TARGET_GROUPS", "Joined", "open_targets"]

_REGIONS, _PANOPTIC, _COLUMN = "coco:", "panoptic:", "column:"


def open_targets(
    boxes: str, mask: str, sources: Sequence[str], classes: Sequence[str] | None, columns: Columns
) -> Joined | None:
    """Reads the annotations that are named; None where none are.

    Args:
        boxes: of `--boxes`: a COCO JSON, a folder of VOC's XML or YOLO's text, or `column:NAME`.
        mask: of `--masks`: a folder of PNG files, `coco:` and a COCO JSON, or `panoptic:` with its JSON and its folder.
        sources: paths of what is indexed, of which `column:` is a column.
        classes: the class table, where one is given.
        columns: what the columns of tables are called.

    Raises:
        IndexFileError: they cannot be read, contradict themselves, or are named in a way that is not known.
    """
    if not boxes and not mask:
        return None
    found: list[Annotations] = []
    if mask.startswith(_PANOPTIC):
        if boxes:
            raise IndexFileError(f"--boxes {boxes}: boxes come from {mask}; leave --boxes out")
        found.append(panoptic.read(mask.removeprefix(_PANOPTIC)))
    elif mask.startswith(_REGIONS):
        path = _there(mask.removeprefix(_REGIONS), "--masks")
        if boxes and os.path.abspath(boxes) != path:
            raise IndexFileError(
                f"--masks {mask}: regions belong to boxes; give --boxes the same file, or leave it out"
            )
        found.append(coco.read(path, regions=True))
    else:
        if boxes:
            found.append(_boxes(boxes, sources, classes, columns))
        if mask:
            found.append(masks.read(_there(mask, "--masks")))
    return Joined(found, classes)


def _there(path: str, option: str) -> str:
    if not os.path.exists(path):
        raise IndexFileError(f"{option}: no such file or folder: '{path}'")
    return os.path.abspath(path)


def _boxes(spec: str, sources: Sequence[str], classes: Sequence[str] | None, columns: Columns) -> Annotations:
    if spec.startswith(_COLUMN):
        return column.read(spec.removeprefix(_COLUMN), sources, classes, columns)
    path = _there(spec, "--boxes")
    if os.path.isfile(path):
        return coco.read(path, regions=False)
    kinds = {name.lower().rpartition(".")[2] for _, _, names in os.walk(path) for name in names}
    if "xml" in kinds:
        return voc.read(path)
    if "txt" in kinds:
        return yolo.read(path, classes)
    raise IndexFileError(f"--boxes '{spec}' holds neither .xml (Pascal VOC) nor .txt (YOLO); a COCO JSON is a file")
