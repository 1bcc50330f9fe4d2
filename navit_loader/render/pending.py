"""A batch on its way out of the renderer: pixels or encoded files, waited for in the same way.

In: the extension's handle. Out: the batch, once its last image is there. Apart, since `engine` and `encoded` both have one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Generic, TypeVar

from .. import _packer
from ..batch import PackedBatch, View

B = TypeVar("B")

_TURN_S = 0.2  # between two turns of a wait Python sees to its signals, also where storage never answers


class Awaited(ABC, Generic[B]):
    """A batch of some kind on its way."""

    def __init__(self, inner: _packer.Pending) -> None:
        self._inner = inner

    @property
    def ready(self) -> bool:
        """Whether `wait` would return at once."""
        return self._inner.ready

    def wait(self, timeout: float | None = None) -> B | None:
        """The batch; None where `timeout` seconds pass first.

        Raises:
            RenderError: a file stayed out of reach after its retries, or too many images failed.
        """
        found = self._inner.wait(_TURN_S if timeout is None else timeout)
        while found is None and timeout is None:
            found = self._inner.wait(_TURN_S)
        return None if found is None else self._batch(found)

    def cancel(self) -> None:
        """Gives the batch up; its buffers go back as soon as no thread writes to them."""
        self._inner.cancel()

    @abstractmethod
    def _batch(self, found: dict[str, Any]) -> B:
        """The batch of the extension's fields."""


class Pending(Awaited[PackedBatch]):
    """A batch of pixels on its way."""

    def _batch(self, found: dict[str, Any]) -> PackedBatch:
        return packed(found)


def packed(found: dict[str, Any]) -> PackedBatch:
    """A `PackedBatch` of the extension's fields."""
    teacher = found.pop("teacher")
    return PackedBatch(**found, teacher=None if teacher is None else View(**teacher))
