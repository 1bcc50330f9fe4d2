"""Scores by group: whom a model serves worst, and by how much.

In: the answers of a budget, and a group for each image, from a column of the index or a CSV file. Out: plain values for JSON:
each score per group with its interval, the worst group, and the gap between it and the best.
Apart from `details`, which scores all images at once and is asked here for each group.
"""

from __future__ import annotations

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
from navit_loader.index.sources.columns import USUAL, Columns
from navit_loader.index.sources.lines import column_names, read_lines

from .cascade import Answers
from .details import details
from .interval import of_gap

MOST = 64
"""Groups of one column; more are no groups."""

NUMBERS = 12
"""Different numbers that are groups each; of more, quarters of the images are."""

FEWEST = 10
"""Images of a group that may be named worst or best, while there are such groups."""

DRAWN = ("balanced_accuracy", "macro_f1", "roc_auc", "map")
"""Scores whose intervals see no further than the images at hand, so that groups of fewer than `FEWEST` have none."""

SCORES = ("top5", *DRAWN)


@dataclass(frozen=True, slots=True)
class Groups:
    """A group for each image of an index.

    Attributes:
        column: what tells them apart.
        names: of the groups.
        of: i64 `[rows]`, the group of each image, or `[rows, K]` where it may have several; −1 is none.
    """

    column: str
    names: list[str]
    of: npt.NDArray[np.int64]


def read_groups(asked: str, index: Index) -> Groups:
    """Groups of the images of an index.

    Args:
        asked: a column of the index (`format`, `label`, `width`, …; `aspect` is width / height), or `FILE.csv:COLUMN`: a table
            with a header, read as a manifest is, whose column `path` (`row` counts the index's rows; else the first column)
            names the image as in a manifest beside it, or as the index does. `FILE.csv` alone takes the only other column. Of
            numbers with more than 12 different values, quarters of the images are the groups.
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
        labels = index.labels()
        present = np.unique(labels[labels >= 0])
        _check_count(asked, asked, len(present))
        names = [index.classes[v] for v in present]
        return Groups(asked, names, np.where(labels >= 0, np.searchsorted(present, labels), -1))
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
    _check_count(asked, column, len(names))
    number = {name: n for n, name in enumerate(names)} | {"": -1}
    return Groups(column, names, np.array([number[value] for value in given], np.int64))


def _check_count(asked: str, column: str, names: int) -> None:
    if not 1 <= names <= MOST:
        said = f"{names:,} different values" if names else "no value"
        raise ModelError(f"--group-by = '{asked}': column '{column}' has {said}; groups are 1 to {MOST}")


def _from_csv(file: str, column: str, index: Index) -> tuple[str, npt.NDArray[Any]]:
    """The name and the values of a column, by row of the index; the table is read as a manifest is."""
    try:
        header = column_names(file)
        image = next((name for name in ("path", "row") if name in header), header[0] if header else "")
        others = [name for name in header if name != image]
        if not column and len(others) == 1:
            column = others[0]
        if column not in others:
            said = f"no column '{column}' beside '{image}'" if column else "several columns" if others else "no groups"
            raise ModelError(
                f"--group-by = '{file}' has {said}; give {file}:COLUMN of {', '.join(others) or 'a header'}"
            )
        rows = list(read_lines(file, USUAL, Columns(image), []))
    except OSError as e:
        raise ModelError(f"--group-by = '{file}' cannot be read: {reason(e)}") from None
    except UnicodeError as e:
        raise ModelError(f"--group-by = '{file}' is not UTF-8; save it as UTF-8 ({e})") from None
    except IndexFileError as e:
        raise ModelError(f"--group-by = '{file}': {e}") from None
    row_of = _Rows(index, os.path.dirname(os.path.abspath(file)), numbered=image == "row")
    values = np.full(index.num_rows, None, object)
    named = 0
    for line, row in rows:
        if (found := row_of(row[image])) is None:
            continue
        value = row[column].strip()
        if values[found] not in (None, value):
            raise ModelError(f"--group-by = '{file}' line {line}: '{row[image]}' stands twice, in different groups")
        values[found] = value
        named += 1
    if not named:
        first = f", such as '{rows[0][1][image]}'" if rows else ""
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
    of = groups.of.reshape(len(counted), -1)
    rows: list[dict[str, Any]] = []
    for number, name in enumerate(groups.names):
        mine = counted & (of == number).any(1)
        if not mine.any():
            continue
        scores = details(_some(answers, mine), classes, sigmoid=sigmoid)
        kept = {key: value for key, value in scores.items() if key.removesuffix("_95") in ("accuracy", *SCORES)}
        if mine.sum() < FEWEST:
            for score in DRAWN:
                kept.pop(f"{score}_95", None)
        rows.append({"group": name, "images": int(mine.sum())} | kept)
    if not rows:
        raise IndexFileError(f"no labelled image has a group of '{groups.column}'")
    named = [n for n, row in enumerate(rows) if row["images"] >= FEWEST] or list(range(len(rows)))
    worst, best = (choose(named, key=lambda n: float(rows[n]["accuracy"])) for choose in (min, max))
    return {
        "column": groups.column,
        "groups": rows,
        "without": int((counted & (of < 0).all(1)).sum()),
        "several": int((counted & ((of >= 0).sum(1) > 1)).sum()),
        "worst": rows[worst]["group"],
        "best": rows[best]["group"],
        "gap": rows[best]["accuracy"] - rows[worst]["accuracy"],
        "gap_95": of_gap(*(rows[n][key] for n in (best, worst) for key in ("accuracy", "accuracy_95"))),
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
    if found["several"]:
        lines.append(f"  {found['several']:,} images are in several groups, and count in each")
    return "\n".join(lines)
