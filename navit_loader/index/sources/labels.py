"""What a label means: one rule for every source, whatever format it was written in.

In: values of CSV, JSON, Parquet and `.cls` as people write them. Out: lists of label numbers, or one reason why a value cannot
be told. Apart from the sources, so that none has a rule of its own.

A whole number is a class number. A text is a name, unless every text of its file is a whole number as people write them, such
as `7` or `7.0`: then they are numbers; `007` is no such number. White space around a text is no part of it. A blank is no
label, an empty list says that the image is of no class, and a list that may be a one-hot vector is refused.

Numbers to be predicted (`--target-column`) are labels whose names they are: an image has the class `3.25`, and whoever learns
numbers reads the name. So an index, a batch and the wire hold them as they hold classes.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from ...batch import NO_CLASS

MOST_UNNAMED = 1_000_000
"""More classes than this, where labels are bare numbers, is taken for a mistake."""

_NUMBER = re.compile(r"(0|-?[1-9][0-9]*)(\.0+)?")
_DEEPEST = 64  # of JSON; a label is a list at most
_LARGEST = (2 - 2.0**-23) * 2.0**127  # of float32


def number_of(value: Any) -> int | None:
    """The whole number that a value is, or that a text says; None for anything else."""
    if isinstance(value, str):
        found = _NUMBER.fullmatch(value.strip())
        return int(found[1]) if found else None
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return int(value)
    return None


def target_name(value: Any) -> str | None:
    """The name of the class that stands for a number to be predicted: the shortest text of this float64. None for a blank, and
    for NaN, which tables have for one.

    Raises:
        ValueError: it is no number, or not finite.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        if isinstance(value, bool) or not isinstance(value, int | float | Decimal | str) or "_" in str(value):
            raise ValueError
        number = float(value)
    except (ValueError, OverflowError):
        raise ValueError(f"target {_shown(value)} is no number such as 3.25{_comma(value)}") from None
    if math.isinf(number):
        raise ValueError(f"target {_shown(value)} is not finite")
    return None if math.isnan(number) else repr(number + 0.0)  # and −0 is 0


def target_names(values: Iterable[Any]) -> Iterator[str | ValueError | None]:
    """`target_name` of each, or what it raises: a row is left out for it, not its file."""
    for value in values:
        try:
            yield target_name(value)
        except ValueError as e:
            yield e


def weight_of(value: Any) -> float:
    """What an image counts in a loss, of a column of weights: 0 or more. A blank one is none, and not 1 in silence.

    Raises:
        ValueError: it is no such number.
    """
    try:
        if isinstance(value, bool) or not isinstance(value, int | float | Decimal | str) or "_" in str(value):
            raise ValueError
        weight = float(value)
    except (ValueError, OverflowError):
        weight = math.nan
    if not 0 <= weight <= _LARGEST:
        raise ValueError(
            f"weight {_shown(value)} is not allowed; give a number of 0 or more, such as 1 or 0.25{_comma(value)}"
        )
    return weight + 0.0  # and −0 is 0


def _comma(value: Any) -> str:
    """What is wrong with a comma in a number."""
    wrong = (
        "; its comma is read as a decimal one only in a CSV separated by semicolons whose numbers are all written so"
    )
    return wrong if isinstance(value, str) and re.fullmatch(r"\s*[+-]?[\d.]*,\d[\d.,]*\s*", value) else ""


def is_target(name: str) -> bool:
    """Whether a class name is one that `target_name` gives."""
    try:
        return target_name(name) == name
    except ValueError:
        return False


def resolve_label(value: Any, classes: Mapping[str, int] | None) -> list[int]:
    """A label (number, numeral, class name, or a list of these) as numbers: none for no label, `NO_CLASS` for an empty list.

    Raises:
        ValueError: says what is wrong with the value.
    """
    if isinstance(value, list | tuple):
        if not value:
            return [NO_CLASS]
        if _may_be_one_hot(value):
            raise ValueError(
                f"label {_shown(value)} may be a one-hot vector as well as a list of class numbers; give the numbers, each "
                "once, such as [2]"
            )
        return sorted({label for each in value for label in resolve_label(each, classes)})
    if value is None or (isinstance(value, str) and not value.strip()):
        return []
    if isinstance(value, str):
        if any(ord(letter) < 32 or ord(letter) == 127 for letter in value.strip()):
            raise ValueError(f"label {_shown(value)} holds a control character, such as NUL or a line end")
        name = value if value in (classes or {}) else value.strip()
        if classes is not None and name in classes:
            return [classes[name]]
    number = number_of(value)
    if number is None and isinstance(value, float):
        raise ValueError(
            f"label {value} is not a number of a class, which is whole; to predict numbers, name their column: --target-column"
        )
    if number is None:
        hint = (
            "is in no class table"
            if classes
            else "is not a number, and there is no class table; give one with --classes, an index or a text with a name a "
            "line"
        )
        raise ValueError(f"label {_shown(value)} {hint}")
    if number == -1:
        return []
    most = 2**31 if classes is None else len(classes)
    if not 0 <= number < most:
        raise ValueError(f"label {number} is out of range; allowed: 0 to {most - 1}, or -1 for none")
    return [number]


def from_json(text: str) -> Any:
    """A value of JSON that an index can hold.

    Raises:
        ValueError: it is no JSON, nested more than any label is, or holds half a surrogate pair, which no UTF-8 can say.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    level = [value] if text.count("[") + text.count("{") > _DEEPEST else []
    for _ in range(_DEEPEST):
        inner = (each.values() if isinstance(each, dict) else each for each in level if isinstance(each, dict | list))
        level = list(itertools.chain.from_iterable(inner))
    if level:
        raise ValueError("nested too deeply")
    if "\\u" in text:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as e:
            raise ValueError(f"{e.object[e.start]!r} cannot be written as UTF-8") from None
    return value


def as_text(value: Any) -> Any:
    """A value of Parquet, whose names may be bytes, with texts in their place.

    Raises:
        ValueError: bytes that are no UTF-8.
    """
    if isinstance(value, list):
        return [as_text(each) for each in value]
    return value.decode() if isinstance(value, bytes) else value


@dataclass
class Labels:
    """What the labels of one file, or of several, are. A place is where a label stands, such as `'m.csv' line 3`.

    Attributes:
        names: class names in use.
        name: the place of the first name, and the name.
        number: the same of the first number.
        doubt: why they cannot be told; empty where they can.
        notes: what is told but may surprise.
    """

    names: set[str] = field(default_factory=set)
    name: tuple[str, str] | None = None
    number: tuple[str, str] | None = None
    doubt: str = ""
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, labels: Iterable[tuple[str, Any]], *, targets: bool = False) -> Labels:
        """Looks at all labels of one file, each with its place; `targets`: names of numbers, from `target_name`."""
        found, numeral, numerals = cls(), None, set[str]()
        if targets:
            named = [(place, label) for place, label in labels if label is not None]
            return cls({label for _, label in named}, named[0] if named else None)
        pairs, reversed_pair = True, ""
        for place, label in labels:
            if isinstance(label, list | tuple) and label:
                pairs &= len(label) == 2 and {number_of(each) for each in label} == {0, 1}
                if pairs and number_of(label[0]) == 1:
                    reversed_pair = reversed_pair or f"{place}: label {_shown(label)}"
            elif label not in (None, ""):
                pairs = False
            for value in _flat(label):
                text = value.strip() if isinstance(value, str) else value
                if text in (None, ""):
                    continue
                number = number_of(text)
                if number is not None and not isinstance(text, str):
                    if number != -1:
                        found.number = found.number or (place, _shown(value))
                elif number is not None:
                    if number != -1:
                        numerals.add(text)
                        numeral = numeral or (place, _shown(text))
                elif isinstance(text, str):
                    found.names.add(text)
                    found.name = found.name or (place, _shown(text))
        if found.name is not None and _fractions(found.names):
            found.notes.append(
                f"{found.name[0]}: label {found.name[1]} is one of numbers that are not all whole, each taken for the name of "
                "a class; to predict numbers, name their column: --target-column"
            )
        if found.names and numeral:
            found.names |= numerals
            found.notes.append(
                f"{numeral[0]}: label {numeral[1]} stands among names, so numerals are taken for names as well"
            )
        elif numeral:
            found.number = found.number or numeral
        if pairs and reversed_pair:
            found.doubt = (
                f"{reversed_pair} may be a one-hot vector as well as a list of class numbers, since all lists of this file "
                "hold one 0 and one 1; give the numbers, such as [0]"
            )
        return found

    def with_those_of(self, other: Labels) -> Labels:
        """Of two files together."""
        return Labels(
            self.names | other.names,
            self.name or other.name,
            self.number or other.number,
            self.doubt or other.doubt,
            self.notes + other.notes,
        )

    @property
    def mixed(self) -> str:
        """Why names and numbers together cannot be told without a class table; empty where they can."""
        if self.name is None or self.number is None:
            return ""
        (at, name), (where, number) = self.name, self.number
        return (
            f"{at}: label {name} is a name, but {where} has the number {number}, and nothing says which class that is; write "
            "names alone or numbers alone, or give the class table with --classes"
        )


def _fractions(names: set[str]) -> bool:
    """Whether all names are numbers, and not all whole."""
    try:
        return not all(float(name).is_integer() for name in names)
    except ValueError:
        return False


def _flat(label: Any) -> Iterator[Any]:
    if isinstance(label, list | tuple):
        for each in label:
            yield from _flat(each)
    else:
        yield label


def _may_be_one_hot(value: Sequence[Any]) -> bool:
    """Zeros and ones alone, one of them twice: as class numbers that makes no sense, as a vector it does."""
    numbers = [number_of(each) for each in value]
    return len(numbers) > 1 and set(numbers) <= {0, 1} and len(set(numbers)) < len(numbers)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"
