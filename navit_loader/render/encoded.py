"""`EncodedBatch`: the slots of a batch, and the encoded files that belong into them, in place of pixels.

In: blocks of the Rust engine, or frames of a daemon. Out: all that a `PackedBatch` says except `patches`, and for each
image its bytes. Whoever takes it makes the pixels: `navit_loader.render.dali.DaliRenderer` does.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from .. import _packer
from ..batch import PackedBatch
from .pending import Awaited, packed


@dataclass(frozen=True, slots=True)
class EncodedBatch:
    """B sequences of planned images with their encoded files; arrays are numpy.

    Every image's slot follows from the fields of `slots`: its target grid (`grids`), crop and flip, its first slot
    (`cu_seqlens`), and its kept tokens (`positions`).

    Attributes:
        slots: the batch without pixels: `patches` is u8 `[B, L, 0]`, also in the teacher's view; every other field is
            as it would be with pixels. An image whose file could not be had is masked already (`status` 2).
        keys: i64 `[B, E]`, key of the permutation whose prefix is the kept tokens; 0 where absent.
        orientations: u8 `[B, E]`, EXIF orientation of the file, 1 to 8; 0 where absent.
        spans: i64 `[B, E, 2]`, (first byte, bytes) of each file in `data`; 0 bytes where absent or failed.
        uri_spans: i64 `[B, E, 2]`, (first byte, bytes) of each file's name in `data`, UTF-8.
        file_offsets: i64 `[B, E]`, first byte of each file in its container, for messages.
        data: u8 `[bytes]`, the files, one after another, then their names.
        render: the keys of `[render]` that decide pixels (`filter`, `dct_scaling`, `background`, `max_pixels`,
            and `depth`, `profiles`, `damaged` where they are set).
    """

    slots: PackedBatch
    keys: Any
    orientations: Any
    spans: Any
    uri_spans: Any
    file_offsets: Any
    data: Any
    render: dict[str, Any]

    @property
    def epoch(self) -> int:
        """Epoch of the plan."""
        return self.slots.epoch

    @property
    def sequence(self) -> int:
        """Number of the batch's first sequence in its epoch."""
        return self.slots.sequence

    @property
    def patch_size(self) -> int:
        """P."""
        return self.slots.patch_size

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays: what travels."""
        return sum(int(a.nbytes) for a in self.arrays().values())

    def file(self, sequence: int, image: int) -> Any:
        """The encoded file of an image: u8, a view of `data`; empty where it is absent or failed."""
        start, length = (int(v) for v in self.spans[sequence, image])
        return self.data[start : start + length]

    def uri(self, sequence: int, image: int) -> str:
        """Where the file of an image comes from, for people."""
        start, length = (int(v) for v in self.uri_spans[sequence, image])
        return bytes(self.data[start : start + length]).decode("utf-8", "replace")

    def arrays(self) -> dict[str, Any]:
        """All array fields by name: those of `slots`, then its own, `data` last; the order of the wire."""
        return self.slots.arrays() | {name: getattr(self, name) for name in OWN_ARRAYS}


OWN_ARRAYS = tuple(f.name for f in fields(EncodedBatch) if f.name not in ("slots", "render"))
"""The arrays that an encoded batch has besides those of `slots`."""


class PendingEncoded(Awaited[EncodedBatch]):
    """An encoded batch on its way."""

    def __init__(self, inner: _packer.Pending, render: dict[str, Any]) -> None:
        super().__init__(inner)
        self._render = render

    def _batch(self, found: dict[str, Any]) -> EncodedBatch:
        own = {name: found.pop(name) for name in OWN_ARRAYS}
        return EncodedBatch(slots=packed(found), render=self._render, **own)
