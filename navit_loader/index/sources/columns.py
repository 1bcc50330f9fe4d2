"""Which columns of a table hold images, labels, captions and weights, where they are not called so.

In: names that a person gives. Out: the column to read, or one error that lists those there are. Apart from the sources, since
manifests and containers with images are tables alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
        weight: what images count in a loss; no column is usual.
    """

    image: str = ""
    label: str = ""
    caption: str = ""
    target: str = ""
    weight: str = ""

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
        kinds = ("image", "label", "caption", "target", "weight")
        return [(f"--{kind}-column", name) for kind in kinds if (name := getattr(self, kind))]

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

    def annotations(self, path: str, there: Sequence[str]) -> tuple[str | None, str | None, list[str]]:
        """The columns of labels and of captions, where there are any, of a table that holds images; and what may surprise.

        Raises:
            IndexFileError: one that is named is not there.
        """
        self.check(path, there)
        captions = [self.caption] if self.caption else ["caption", "text"]
        label = self.labels if self.labels in there else None
        caption = next((name for name in captions if name in there), None)
        notes = []
        if label is None and len(there) > 1 + (caption is not None):
            notes.append(
                f"'{path}' has no column 'label'; its columns: {', '.join(there)}. Name the one with the labels by "
                "--label-column, if there is one"
            )
        return label, caption, notes


USUAL = Columns()
"""None is named."""
