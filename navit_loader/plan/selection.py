"""Which rows of each index are planned: `plan.filter` and `plan.class_weights`.

In: the plan's configuration and the opened indexes. Out: streams `(source, rows or None, weight)` for the planner. A
class-weighted index becomes one stream per class, each on its own epoch clock.
"""

from __future__ import annotations

import ast
import logging
import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError, PlanError
from .config import PlanConfig

if TYPE_CHECKING:
    from ..index import Index

log = logging.getLogger("navit_loader")

Stream = tuple[int, npt.NDArray[np.uint64] | None, float]

COLUMNS = ("width", "height", "length", "label", "caption_tokens", "orientation", "boxes")
"""Columns that a filter may name; `aspect` (width / height) and `row` besides."""

_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.USub: operator.neg,
    ast.Not: np.logical_not,
    ast.In: lambda a, b: np.isin(a, b),
    ast.NotIn: lambda a, b: ~np.isin(a, b),
}


def streams_of(plan: PlanConfig, indexes: list[Index], weights: list[float]) -> list[Stream]:
    """The streams that the planner deals out.

    Raises:
        ConfigError: a filter that is no expression over the columns, or a class that no index has.
        PlanError: no row passes.
    """
    streams: list[Stream] = []
    for source, (index, weight) in enumerate(zip(indexes, weights, strict=True)):
        rows = rows_where(plan.filter, index) if plan.filter else None
        if rows is not None and rows.size == 0:
            raise PlanError(f"plan.filter = {plan.filter!r} leaves no row of {index.path}; loosen it")
        if plan.targets is not None and plan.targets.boxes and index.boxed:
            rows = _with_room(plan.targets.capacity, index, rows)
        if not plan.class_weights:
            streams.append((source, rows, weight))
        else:
            streams += _by_class(plan, index, source, rows, weight)
    return streams


def beyond(capacity: int, index: Index) -> tuple[int, int, int]:
    """Images that have more boxes than a sequence has room for: how many, the first of them, and the most boxes of one."""
    counts = index.box_counts() if index.boxed else np.zeros(1, np.int32)
    over = counts > capacity
    return int(over.sum()), int(over.argmax()), int(counts.max())


def _with_room(capacity: int, index: Index, rows: npt.NDArray[np.uint64] | None) -> npt.NDArray[np.uint64] | None:
    """The rows without those that no sequence has room for, which is said."""
    count, first, most = beyond(capacity, index)
    if not count:
        return rows
    log.warning(
        "%d images have more boxes than plan.targets.capacity = %d, %d at most, and are not planned; for one, %s",
        count,
        capacity,
        most,
        index.uri(first),
    )
    fit = index.box_counts() <= capacity
    rows = np.flatnonzero(fit).astype(np.uint64) if rows is None else rows[fit[rows]]
    if not len(rows):
        raise PlanError(
            f"plan.targets.capacity = {capacity} leaves no row of {index.path}, one has {most} boxes; raise it"
        )
    return rows


def _by_class(
    plan: PlanConfig, index: Index, source: int, rows: npt.NDArray[np.uint64] | None, weight: float
) -> list[Stream]:
    unknown = [name for name in plan.class_weights if name not in index.classes]
    if unknown:
        raise ConfigError(f"plan.class_weights.{unknown[0]}: {index.path} has no class of that name")
    labels = _column(index, "label")
    labels = labels if rows is None else labels[rows]
    found = []
    for label in np.unique(labels):
        mine = np.flatnonzero(labels == label).astype(np.uint64)
        name = index.classes[label] if 0 <= label < len(index.classes) else ""
        share = plan.class_weights.get(name, 1.0)
        if share > 0:
            found.append((mine if rows is None else rows[mine], share))
    if not found:
        raise PlanError(f"plan.class_weights leave no row of {index.path}; give a class it holds a weight above 0")
    total = sum(share for _, share in found)
    return [(source, mine, weight * share / total) for mine, share in found]


def _column(index: Index, name: str) -> npt.NDArray[Any]:
    name = "box_count" if name == "boxes" else name
    table = index.table()
    if name not in table.column_names:
        raise ConfigError(f"plan.filter: {index.path} has no column '{name}'")
    return np.asarray(table.column(name).to_numpy())


def rows_where(expression: str, index: Index) -> npt.NDArray[np.uint64]:
    """The rising row numbers for which `expression` holds.

    Args:
        expression: comparisons and arithmetic over the columns, joined by `and`, `or`, `not`, `in`; such as
            `width >= 64 and aspect < 3 and label not in (3, 7)`.
        index: an opened index.

    Raises:
        ConfigError: names what is not allowed, or what leaves the 64 bits that whole numbers are computed in.
    """
    try:
        tree = ast.parse(expression, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as e:
        raise ConfigError(f"plan.filter = {_short(expression)} is no expression: {e}") from None
    cache: dict[str, npt.NDArray[Any]] = {}

    def name_of(name: str) -> npt.NDArray[Any]:
        if name not in cache:
            if name == "row":
                cache[name] = np.arange(index.num_rows)
            elif name == "aspect":
                cache[name] = _column(index, "width") / _column(index, "height")
            elif name in COLUMNS:
                cache[name] = _column(index, name)
            else:
                allowed = ", ".join((*COLUMNS, "aspect", "row"))
                raise ConfigError(f"plan.filter names '{name}'; allowed: {allowed}")
        return cache[name]

    def value(node: ast.AST) -> Any:
        match node:
            case ast.Constant(value=int() | float() as constant):
                return constant
            case ast.Tuple(elts=elts) | ast.List(elts=elts):
                return [value(e) for e in elts]
            case ast.Name(id=name):
                return name_of(name)
            case ast.BoolOp(op=op, values=values):
                join = np.logical_and if isinstance(op, ast.And) else np.logical_or
                result = value(values[0])
                for other in values[1:]:
                    result = join(result, value(other))
                return result
            case ast.UnaryOp(op=op, operand=operand) if type(op) in _OPERATORS:
                return _computed(op, value(operand))
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
                return _computed(op, value(left), value(right))
            case ast.Compare(left=left, ops=ops, comparators=comparators):
                sides = [value(left), *map(value, comparators)]
                pairs = zip(ops, sides, sides[1:], strict=False)
                return np.logical_and.reduce([_OPERATORS[type(op)](a, b) for op, a, b in pairs])
            case _:
                raise ConfigError(
                    f"plan.filter: '{ast.unparse(node)}' is not allowed; use columns, numbers and operators"
                )

    try:
        found = np.asarray(value(tree))
    except _TooLarge:
        raise ConfigError(
            f"plan.filter = {_short(expression)} leaves the 64 bits that whole numbers are computed in; multiply by 1.0 first"
        ) from None
    except (TypeError, ValueError, RecursionError, ZeroDivisionError) as e:
        raise ConfigError(f"plan.filter = {_short(expression)} cannot be computed: {e}") from None
    if found.dtype != np.bool_ or found.shape != (index.num_rows,):
        raise ConfigError(f"plan.filter = {_short(expression)} must be true or false for each row")
    return np.flatnonzero(found).astype(np.uint64)


class _TooLarge(Exception):
    """A whole number beyond 64 bits."""


def _computed(op: ast.AST, *operands: Any) -> Any:
    """What an operator makes of columns and numbers; whole ones in 64 bits, whatever their columns have."""
    compute = _OPERATORS[type(op)]
    if isinstance(op, ast.Not):
        return compute(*operands)
    wide = [
        each.astype(np.int64) if isinstance(each, np.ndarray) and each.dtype.kind in "biu" else each
        for each in operands
    ]
    try:
        found = compute(*wide)
    except OverflowError:
        raise _TooLarge from None
    whole = isinstance(op, ast.Add | ast.Sub | ast.Mult) and np.asarray(found).dtype.kind != "f"
    # Numpy wraps around in silence. The nearest float is beyond the bounds wherever the whole number is.
    if whole and (np.abs(compute(*(np.asarray(each, np.float64) for each in wide))) >= 2.0**63).any():
        raise _TooLarge
    return found


def _short(expression: str) -> str:
    return repr(expression if len(expression) <= 200 else expression[:200] + "…")
