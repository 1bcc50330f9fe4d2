"""The images that the decoder does not get: through the CPU renderer of the extension, back into the slots of their batch.

In: an encoded batch, and which of its images. Out: their patches with the slots they belong into, and which failed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ... import _packer
from ...batch import FAILED
from ...errors import RenderError
from ..encoded import EncodedBatch
from .tokens import tokens_of

Patches = tuple[NDArray[np.int64], NDArray[np.uint8]]
"""Slots i64 `[T]` of the flattened B·L, and their pixels u8 `[T, P·P·3]`."""


def render_others(
    cpu: _packer.SlotRenderer, batch: EncodedBatch, places: NDArray[np.int64]
) -> tuple[list[Patches], list[tuple[int, int]]]:
    """Renders images with the CPU renderer, each in a sequence of its own.

    Args:
        cpu: the renderer; it enters failures in its ledger.
        batch: the images' batch.
        places: i64 `[n, 2]`, (sequence, image), rising.

    Returns:
        The patches of each view, zeros for a failed image; the (sequence, image) of those that failed.

    Raises:
        RenderError: too many images failed, no memory, or keys that do not give the batch's kept tokens.
    """
    slots = batch.slots
    at = (places[:, 0], places[:, 1])
    views: list[Any] = [slots] if slots.teacher is None else [slots, slots.teacher]
    unturned = np.zeros(len(places), np.uint8)
    tokens = [tokens_of(view, places, unturned) for view in views]
    kept = [np.bincount(wanted.images, minlength=len(places)) for wanted in tokens]
    limits: list[dict[str, Any]] = [
        {"sequence_length": v.max_seqlen, "max_tokens": v.max_seqlen, "prefix_tokens": 0, "patch_size": v.patch_size}
        for v in views
    ]
    planned = [_planned(batch, n, s, e, int(kept[0][n])) for n, (s, e) in enumerate(places.tolist())]
    spans, sizes, orientations = (np.ascontiguousarray(a[at]) for a in (batch.spans, slots.sizes, batch.orientations))
    found = cpu.render(
        batch.data,
        spans,
        sizes,
        orientations,
        [
            (int(slots.source_ids[s, e]), int(slots.image_ids[s, e]), int(batch.file_offsets[s, e]), batch.uri(s, e))
            for s, e in places.tolist()
        ],
        _packer.PlannedBatch(slots.epoch, slots.sequence, slots.patch_size, len(planned), [[one] for one in planned]),
        {
            **limits[0],
            "max_images": 1,
            "label_width": 0,
            "text_tokens": 0,
            "max_text_tokens": 0,
            "teacher": None if slots.teacher is None else limits[1],
        },
    )
    patches = []
    for view, wanted, count in zip((found, found["teacher"]), tokens, kept, strict=False):
        took = np.arange(view["positions"].shape[1])[None] < count[:, None]
        if (view["positions"][took] != wanted.blocks).any():
            raise RenderError("an encoded batch has keys that do not give its kept tokens; it is damaged")
        patches.append((wanted.slots, view["patches"][took]))
    failed = places[found["status"][:, 0] == FAILED]
    return patches, [(int(s), int(e)) for s, e in failed]


def _planned(batch: EncodedBatch, row: int, s: int, e: int, kept: int) -> dict[str, Any]:
    slots, teacher = batch.slots, batch.slots.teacher
    return {
        "row": row,
        "key": int(batch.keys[s, e]) & (2**64 - 1),
        "crop": tuple(slots.crops[s, e].tolist()),
        "offset": 0,
        "kept": kept,
        "teacher_offset": 0,
        "text_offset": 0,
        "grid": tuple(slots.grids[s, e].tolist()),
        "teacher_grid": (0, 0) if teacher is None else tuple(teacher.grids[s, e].tolist()),
        "source": 0,
        "flip": bool(slots.flips[s, e]),
    }
