"""What a value of a configuration may be, beside its type: said once, where the key stands.

In: `Annotated[int, Bound(1, 512, "pixels")]` on a dataclass's field. Out: whether a value holds, the words of the error
where it does not, and keywords of JSON Schema. Apart from `schema`, which checks by it, since `json_schema` describes by it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sized
from dataclasses import KW_ONLY, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Bound:
    """Numbers between two ends; of a text or list, how long it may be. On the type inside a list or table it is of each item.

    Attributes:
        least: the smallest allowed.
        most: the largest allowed.
        unit: what is counted, for the error.
        above: all allowed are larger.
        below: all allowed are smaller.
        finite: infinity is not allowed.
        also: a number beside the range that is allowed too.
        pattern: regular expression that is found in an allowed text.
        words: the error says that it must be this, in place of words made from the ends; `{key}` is another key's value.
        whole: the error shows the whole list, not the item.
        later: checked by the class itself, in words that depend on other keys.
    """

    least: float | None = None
    most: float | None = None
    unit: str = ""
    _: KW_ONLY
    above: float | None = None
    below: float | None = None
    finite: bool = False
    also: int | None = None
    pattern: str = ""
    words: str = ""
    whole: bool = False
    later: bool = False

    def holds(self, value: Any) -> bool:
        """Whether a value of the right type is allowed."""
        if self.pattern:
            return re.search(self.pattern, value) is not None
        size = len(value) if isinstance(value, Sized) else value
        inside = (
            (self.least is None or size >= self.least)
            and (self.most is None or size <= self.most)
            and (self.above is None or size > self.above)
            and (self.below is None or size < self.below)
            and (not self.finite or math.isfinite(size))
        )
        return inside or (self.also is not None and size == self.also)

    def allowed(self, values: Mapping[str, Any]) -> str:
        """What a value must be, for the error.

        Args:
            values: of all keys, for those that `words` names.
        """
        if self.words:
            return self.words.format_map(values)
        if self.least is not None and self.most is not None:
            ends = [f"between {self.least} and {self.most}"]
        else:
            named = {"at least": self.least, "above": self.above, "at most": self.most, "below": self.below}
            ends = [f"{word} {end}" for word, end in named.items() if end is not None]
        either = "" if self.also is None else f"{self.also}, or "
        return f"{either}{' and '.join(ends)} {self.unit}".rstrip()

    def keywords(self, kind: str) -> dict[str, Any]:
        """The same in JSON Schema.

        Args:
            kind: its type of the value.
        """
        names = {"string": ("minLength", "maxLength"), "array": ("minItems", "maxItems")}
        least, most = names.get(kind, ("minimum", "maximum"))
        ends = {least: self.least, most: self.most, "exclusiveMinimum": self.above, "exclusiveMaximum": self.below}
        found: dict[str, Any] = {name: end for name, end in ends.items() if end is not None}
        if self.pattern:
            found["pattern"] = self.pattern
        return found if self.also is None else {"anyOf": [{"const": self.also}, found]}


# What many keys are bounded by.
AT_LEAST_0 = Bound(0)
AT_LEAST_1 = Bound(1)
FINITE = Bound(0, finite=True, words="finite and at least 0")
RATE = Bound(0, below=1)
SHARE = Bound(0, 1)
PATCH = Bound(1, 512, "pixels")
