"""Boxes in a column of a table: JSON lines, or Parquet.

In: the name of a column, and the tables that are indexed. Out: what it says of each row's image. A value is a list of boxes
`[x0, y0, x1, y1]` or `{"box": …, "label": …}`, or Hugging Face's object of lists: `bbox` (as COCO's: x, y, width, height) with
`category` or `label`, and where they are there `area`, `id`, `iscrowd`, `difficult`, `truncated`. All in pixels.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow.parquet as pq

from ....errors import IndexFileError
from ..columns import Columns
from ..labels import MOST_UNNAMED, from_json, number_of
from ..lines import USUAL_NAMES, read_lines
from ..parquet import image_column
from ..remote import is_remote
from ..spans import row_names
from .coco import corners_of
from .found import CROWD, DIFFICULT, TRUNCATED, Annotations, Box, Found, id_of

_FLAGS = {"iscrowd": CROWD, "crowd": CROWD, "difficult": DIFFICULT, "truncated": TRUNCATED}


def read(name: str, sources: Sequence[str], classes: Sequence[str] | None, columns: Columns) -> Annotations:
    """The boxes of a column of manifests (`.jsonl`, `.parquet` that name files).

    Args:
        name: of the column.
        sources: paths of what is indexed.
        classes: the class table, where one is given.
        columns: what the other columns are called.

    Raises:
        IndexFileError: no source is such a table, a table has no such column, or a value is none of the forms.
    """
    tables = [path for path in sources if path.lower().endswith((".jsonl", ".parquet"))]
    if not tables:
        raise IndexFileError(f"--boxes column:{name}: no source is a table; give .jsonl or .parquet")
    images: dict[str, Found] = {}
    labels: list[tuple[Box, Any, str]] = []
    for path in tables:
        for image, place, value in _rows(path, name, columns):
            found = Found(place)
            try:
                for box, label in _boxes(value):
                    found.boxes.append(box)
                    labels.append((box, _class(label), place))
            except (ValueError, TypeError, KeyError, IndexError, OverflowError) as e:
                why = str(e) if isinstance(e, ValueError) else repr(e)
                raise IndexFileError(f"{place}: '{name}' is no list of boxes such as [[0, 0, 9, 9]]: {why}") from None
            images[image] = found
    return Annotations(", ".join(tables), images, classes=_name(labels, classes))


def _rows(path: str, name: str, columns: Columns) -> Iterator[tuple[str, str, Any]]:
    """The image of each row of a table, where it stands, and what the column says.

    Raises:
        IndexFileError: there is no such column.
    """
    called = columns.image or USUAL_NAMES.image
    missing = f"--boxes column:{name}: '{path}' has no such column; its columns: "
    if path.lower().endswith(".jsonl"):
        for line, row in read_lines(path, columns, USUAL_NAMES, []):
            if name not in row:
                raise IndexFileError(f"{missing}{', '.join(map(str, row))} (line {line})")
            yield _beside(path, row.get(called)), f"'{path}' line {line}", row[name]
        return
    with pq.ParquetFile(path) as file:
        schema = file.schema_arrow
        if name not in schema.names:
            raise IndexFileError(f"{missing}{', '.join(schema.names)}")
        leaf = image_column(schema, columns.image)
        names = iter(row_names(leaf, file.metadata.num_rows) if leaf is not None else ())
        wanted = [name] if leaf is not None else [called, name]
        number = 0
        for batch in file.iter_batches(columns=wanted):
            for entry in batch.to_pylist():
                number += 1
                image = _beside(path, entry.get(called)) if leaf is None else os.path.join(path, next(names))
                yield image, f"'{path}' line {number}", entry[name]


def _beside(path: str, name: Any) -> str:
    """Where the image of a row is; a URL stays as it is."""
    return str(name) if is_remote(str(name)) else os.path.normpath(os.path.join(os.path.dirname(path), str(name)))


def _name(labels: list[tuple[Box, Any, str]], classes: Sequence[str] | None) -> list[str]:
    """Gives each box the number of its class. Returns the class names.

    Raises:
        IndexFileError: one is not in the table, or too high to have no name.
    """
    numbers = [number_of(label) for _, label, _ in labels]
    named = any(number is None for number in numbers)
    if named:
        table = list(classes) if classes is not None else sorted({str(label) for _, label, _ in labels}, key=str.encode)
        number_by_name = {each: n for n, each in enumerate(table)}
        numbers = [number_by_name.get(str(label)) for _, label, _ in labels]
    else:
        highest = max((number for number in numbers if number is not None), default=-1)
        if classes is None and highest >= MOST_UNNAMED:
            place = labels[numbers.index(highest)][2]
            raise IndexFileError(f"{place}: class {highest} is too high to have no name; give the names with --classes")
        table = list(classes) if classes is not None else [str(n) for n in range(1 + highest)]
    for (box, label, place), number in zip(labels, numbers, strict=True):
        if number is None or not 0 <= number < len(table):
            raise IndexFileError(f"{place}: a box is of class {label!r}, which is in no class table")
        box.label = number
    return table


def _class(label: Any) -> Any:
    """A label as it stands.

    Raises:
        ValueError: it is neither the name of a class nor its number.
    """
    if number_of(label) is None and not (isinstance(label, str) and label.strip()):
        raise ValueError(f"label {label!r} is neither the name of a class nor its number; leave out what has none")
    return label


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _boxes(value: Any) -> Iterator[tuple[Box, Any]]:
    """The boxes of one row, with their labels as they stand.

    Raises:
        ValueError: it has none of the forms.
    """
    if isinstance(value, str):
        value = from_json(value)
    if value is None:
        return
    if isinstance(value, Mapping):
        corners = value["bbox"] if "bbox" in value else value["boxes"]
        kind = next((key for key in ("category", "label", "labels", "category_id") if key in value), None)
        for i, each in enumerate(corners):
            flags = sum(flag for key, flag in _FLAGS.items() if key in value and value[key][i])
            area, id = (value[key][i] if key in value else None for key in ("area", "id"))
            box = corners_of(each) if "bbox" in value else _four(each)
            yield Box(box, 0, flags, id_of(id), _number(area)), value[kind][i] if kind else 0
        return
    for each in value:
        if isinstance(each, Mapping):
            flags = sum(flag for key, flag in _FLAGS.items() if each.get(key))
            corners = corners_of(each["bbox"]) if "bbox" in each else _four(each["box"])
            found = Box(corners, 0, flags, id_of(each.get("id")), _number(each.get("area")))
            yield found, each.get("label", each.get("category", 0))
        else:
            yield Box(_four(each[:4]), 0), each[4] if len(each) > 4 else 0


def _four(values: Any) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = map(float, values)
    return x0, y0, x1, y1
