"""Scores by group: whom a model serves worst, and by how much.

In: the answers of a budget, and a group for each image, from a column of the index or a CSV file. Out: plain values for JSON:
each score per group with its interval, the worst group, and the gap between it and the best.
Apart from `details`, which scores all images at once and is asked here for each group.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from navit_loader.errors import IndexFileError, ModelError, reason
from navit_loader.index import Index

from .cascade import Answers
from .details import details
from .interval import between, means

MOST = 64
"""Groups of one column; more are no groups."""

NUMBERS = 12
"""Different numbers that are groups each; of more, quarters of the images are."""

FEWEST = 10
"""Images of a group that may be named worst or best, while there are such groups."""

SCORES = ("top5", "balanced_accuracy", "macro_f1", "roc_auc", "map")


@dataclass(frozen=True, slots=True)
class Groups:
    """A group for each image of an index.

    Attributes:
        column: what tells them apart.
        names: of the groups.
        of: i64 `[rows]`, the group of each image; −1 where it has none.
    """

    column: str
    names: list[str]
    of: npt.NDArray[np.int64]


def read_groups(asked: str, index: Index) -> Groups:
    """Groups of the images of an index.

    Args:
        asked: a column of the index (`format`, `label`, `width`, …; `aspect` is width / height), or `FILE.csv:COLUMN`: a table
            with a header, whose column `path` (`row` counts the index's rows; else the first column) names the image as in a
            manifest beside it, or as the index does. `FILE.csv` alone takes the only other column. Of numbers with more than
            12 different values, quarters of the images are the groups.
        index: of the images.

    Raises:
        ModelError: there is no such column, file or group, or too many of them.
    """
    file, column = asked, ""
    if not asked.lower().endswith(".csv"):
        file, _, column = asked.rpartition(":")
    if file.lower().endswith(".csv"):
        return _grouped(asked, *_from_csv(file, column, index))
    table = index.table()
    names = [name for name in table.column_names if name != "caption_ids"]
    if asked == "aspect":
        return _grouped(asked, asked, table["width"].to_numpy() / table["height"].to_numpy())
    if asked not in names:
        raise ModelError(
            f"--group-by = '{asked}': '{index.path}' has no such column; it has {', '.join(names)}, and aspect; or give "
            "FILE.csv:COLUMN"
        )
    if asked == "label":
        labels = np.concatenate(index.columns()["labels"]).reshape(-1, index.label_width)[:, 0]
        return _grouped(asked, asked, np.array([index.classes[v] if v >= 0 else "" for v in labels], object))
    values = np.array(table[asked].to_pylist(), object)
    numeric = all(isinstance(v, int) for v in values[:1])
    return _grouped(asked, asked, values.astype(np.float64) if numeric else values)


def _grouped(asked: str, column: str, values: npt.NDArray[Any]) -> Groups:
    """Values that are empty, or no number among numbers, are of no group."""
    if values.dtype != object:
        there = np.isfinite(values)
        known = np.unique(values[there])
        if len(known) > NUMBERS:
            edges = np.unique(np.quantile(values[there], (0, 0.25, 0.5, 0.75, 1)))
            ends = [f"{low:.4g} to {high:.4g}" for low, high in pairwise(edges)]
            of = np.clip(np.searchsorted(edges, values, "right") - 1, 0, len(ends) - 1)
            return Groups(column, ends, np.where(there, of, -1))
        names = [f"{value:.6g}" for value in known]
        return Groups(column, names, np.where(there, np.searchsorted(known, values), -1))
    given = ["" if value is None else str(value) for value in values]
    names = sorted({value for value in given if value})
    if not names or len(names) > MOST:
        said = "no value" if not names else f"{len(names):,} different values"
        raise ModelError(f"--group-by = '{asked}': column '{column}' has {said}; groups are 1 to {MOST}")
    number = {name: n for n, name in enumerate(names)} | {"": -1}
    return Groups(column, names, np.array([number[value] for value in given], np.int64))


def _from_csv(file: str, column: str, index: Index) -> tuple[str, npt.NDArray[Any]]:
    """The name and the values of a column, by row of the index."""
    try:
        with open(file, encoding="utf-8-sig", newline="") as opened:
            lines = csv.reader(opened, strict=True)
            header = [name.strip() for name in next(lines, [])]
            rows = [(lines.line_num, row) for row in lines if row]
    except OSError as e:
        raise ModelError(f"--group-by = '{file}' cannot be read: {reason(e)}") from None
    except (UnicodeDecodeError, csv.Error) as e:
        raise ModelError(f"--group-by = '{file}' is no CSV in UTF-8: {e}") from None
    image = next((name for name in ("path", "row") if name in header), header[0] if header else "")
    others = [name for name in header if name != image]
    if not column and len(others) == 1:
        column = others[0]
    if column not in others:
        said = f"no column '{column}'" if column else "several columns"
        raise ModelError(f"--group-by = '{file}' has {said}; give {file}:COLUMN of {', '.join(others) or 'a header'}")
    at, mine = header.index(image), header.index(column)
    row_of = _Rows(index, os.path.dirname(os.path.abspath(file)), numbered=image == "row")
    values = np.full(index.num_rows, None, object)
    named = 0
    for line, row in rows:
        if len(row) != len(header):
            raise ModelError(f"--group-by = '{file}' line {line}: not as many fields as the header has")
        if (found := row_of(row[at])) is None:
            continue
        if values[found] not in (None, row[mine].strip()):
            raise ModelError(f"--group-by = '{file}' line {line}: '{row[at]}' stands twice, in different groups")
        values[found] = row[mine].strip()
        named += 1
    if not named:
        first = f", such as '{rows[0][1][at]}'" if rows else ""
        raise ModelError(
            f"--group-by = '{file}': its column '{image}' names no image of '{index.path}'{first}; the first one there is "
            f"'{index.uri(0)}'"
        )
    try:
        return column, np.array([float(v) if v else np.nan for v in values])
    except ValueError:
        return column, values


class _Rows:
    """Finds the row of an image by what a file beside it calls it."""

    def __init__(self, index: Index, folder: str, numbered: bool) -> None:
        self._rows, self._folder, self._numbered = index.num_rows, folder, numbered
        self._by_uri = {} if numbered else {index.uri(row): row for row in range(index.num_rows)}
        names = [] if numbered else index.table()["name"].to_pylist()
        self._by_name = {name: row for row, name in enumerate(names)}
        for name in {name for n, name in enumerate(names) if self._by_name[name] != n}:  # in several shards
            del self._by_name[name]

    def __call__(self, image: str) -> int | None:
        if self._numbered:
            return int(image) if image.strip().isdecimal() and int(image) < self._rows else None
        for uri in (image, os.path.normpath(os.path.join(self._folder, image))):
            if uri in self._by_uri:
                return self._by_uri[uri]
        return self._by_name.get(image)


def by_group(answers: Answers, groups: Groups, classes: Sequence[str], *, sigmoid: bool) -> dict[str, Any]:
    """Scores of each group at one budget.

    The gap is between the two groups that are named, the interval of both together; groups of fewer than `FEWEST` images are
    named only where there is no other.

    Args:
        answers: of `judge(..., keep=len(classes))`.
        groups: of the same index.
        classes, sigmoid: see `details`.

    Raises:
        IndexFileError: no labelled image has a group.
    """
    counted = answers.counted.numpy() > 0
    rows: list[dict[str, Any]] = []
    drawn = []
    for number, name in enumerate(groups.names):
        mine = counted & (groups.of == number)
        if not mine.any():
            continue
        some = _some(answers, mine)
        scores = details(some, classes, sigmoid=sigmoid)
        kept = {key: value for key, value in scores.items() if key.removesuffix("_95") in ("accuracy", *SCORES)}
        rows.append({"group": name, "images": int(mine.sum())} | kept)
        drawn.append(means(some.right.numpy(), seed=number))
    if not rows:
        raise IndexFileError(f"no labelled image has a group of '{groups.column}'")
    named = [n for n, row in enumerate(rows) if row["images"] >= FEWEST] or list(range(len(rows)))
    worst, best = (choose(named, key=lambda n: float(rows[n]["accuracy"])) for choose in (min, max))
    return {
        "column": groups.column,
        "groups": rows,
        "without": int((counted & (groups.of < 0)).sum()),
        "worst": rows[worst]["group"],
        "best": rows[best]["group"],
        "gap": rows[best]["accuracy"] - rows[worst]["accuracy"],
        "gap_95": between(drawn[best] - drawn[worst]),
    }


def _some(answers: Answers, mine: npt.NDArray[np.bool_]) -> Answers:
    keep = torch.from_numpy(mine)
    values = (getattr(answers, field.name) for field in fields(Answers))
    return Answers(*(None if value is None else value[keep] for value in values))  # type: ignore[arg-type]


def groups_text(tokens: int, found: dict[str, Any]) -> str:
    """The groups as lines of text, the worst first."""
    width = max(len(row["group"]) for row in found["groups"])
    lines = [f"at {tokens} tokens, by {found['column']}:"]
    for row in sorted(found["groups"], key=lambda row: float(row["accuracy"])):
        low, high = row["accuracy_95"]
        lines.append(
            f"  {row['group']:>{width}}  {row['accuracy']:>7.2%} in [{low:.2%}, {high:.2%}] of {row['images']:,} images"
        )
    low, high = found["gap_95"]
    lines.append(
        f"  worst is {found['worst']}, {100 * found['gap']:.2f} points below {found['best']} "
        f"(95 %: {100 * low:.2f} to {100 * high:.2f})"
    )
    if found["without"]:
        lines.append(f"  {found['without']:,} labelled images have no group")
    return "\n".join(lines)
