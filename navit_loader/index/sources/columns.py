"""Which columns of a table hold images, labels and captions, where they are not called so.

In: names that a person gives. Out: the column to read, or one error that lists those there are. Apart from the sources, since
manifests and Parquet with images are tables alike.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ...errors import IndexFileError


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of columns; an empty one is the usual.

    Attributes:
        image: the images, or paths of them.
        label: their labels.
        caption: their captions.
        target: numbers to be predicted, in the place of labels.
    """

    image: str = ""
    label: str = ""
    caption: str = ""
    target: str = ""

    @property
    def labels(self) -> str:
        """The column that says what an image is."""
        return self.target or self.label or "label"

    def __bool__(self) -> bool:
        """Whether any is named."""
        return bool(self.given)

    @property
    def given(self) -> list[tuple[str, str]]:
        """Option and name of each that is named."""
        pairs = (("image", self.image), ("label", self.label), ("caption", self.caption), ("target", self.target))
        return [(f"--{kind}-column", name) for kind, name in pairs if name]

    def check(self, path: str, there: Iterable[str]) -> None:
        """Refuses a name that a table has not.

        Raises:
            IndexFileError: names the option and the columns there are.
        """
        there = list(there)
        for option, name in self.given:
            if name not in there:
                raise IndexFileError(
                    f"{option} = '{name}': '{path}' has no such column; its columns: {', '.join(there) or 'none'}"
                )


USUAL = Columns()
"""None is named."""
