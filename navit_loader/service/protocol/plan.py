"""What a client must know of a plan, and the shapes of its batches that follow from it.

In: an engine at the daemon, the map of a `hello` at the client. Out: `PlanInfo`, and for each patch size and batch size
the dtype and shape of every array, so that a frame has exactly one right length.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields, replace
from functools import lru_cache
from typing import Any

import numpy as np

from ...config import RENDER_KEYS, RenderConfig
from ...errors import ConfigError, ServiceError
from .messages import NUMBER, check, named, short

SLOT_ALIGN = 64
"""In shared memory every field starts at a multiple of this."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What fixes the shapes of one view: L, M, prefix tokens, and P of the teacher's view (0 in the batch's own)."""

    sequence_length: int
    max_tokens: int
    prefix_tokens: int
    patch_size: int = 0


@dataclass(frozen=True, slots=True)
class PlanInfo:
    """What a client without the index must know of a plan; the answer to `hello`.

    Attributes:
        name: the plan's name at this daemon.
        plan_id, render_id: fingerprints of plan and renderer.
        classes: class names by label.
        label_width: K.
        max_images: E.
        text_tokens: Lt.
        max_text_tokens: tokens of one caption at most.
        vocabulary: caption token ids are below this; 0 without captions.
        patch_sizes: every P that a batch may have.
        view, teacher: limits of both views.
        batch_size, remainder: the daemon's `[data]`, as the client's defaults.
        memory: bytes of batches that the daemon holds at most.
        render: the keys of `[render]` that decide pixels, for who decodes by itself.
    """

    name: str
    plan_id: str
    render_id: str
    classes: tuple[str, ...]
    label_width: int
    max_images: int
    text_tokens: int
    max_text_tokens: int
    vocabulary: int
    patch_sizes: tuple[int, ...]
    view: Limits
    teacher: Limits | None
    batch_size: int
    remainder: str
    memory: int
    render: dict[str, Any] = field(hash=False)

    @classmethod
    def of(cls, engine: Any, name: str, memory: int) -> PlanInfo:
        """From an `Engine` of this process."""
        plan, data = engine.config.plan, engine.config.data
        t = plan.teacher
        return cls(
            name=name,
            plan_id=engine.plan_id,
            render_id=engine.render_id,
            classes=tuple(engine.classes),
            label_width=engine.label_width,
            max_images=plan.max_images,
            text_tokens=plan.text_tokens,
            max_text_tokens=plan.caption_cap,
            vocabulary=engine.vocabulary,
            patch_sizes=tuple(plan.patch_sizes),
            view=Limits(plan.sequence_length, plan.max_tokens, plan.prefix_tokens),
            teacher=t and Limits(t.sequence_length, t.max_tokens, t.prefix_tokens, t.patch_size),
            batch_size=data.batch_size,
            remainder=data.remainder,
            memory=memory,
            render=engine.render,
        )

    def to_table(self) -> dict[str, Any]:
        """As a map of plain values."""
        return asdict(self)

    @classmethod
    def from_table(cls, table: dict[str, Any]) -> PlanInfo:
        """From the map of a `hello`, every value checked.

        Raises:
            ServiceError: a key that is unknown, missing or out of range.
        """
        rules: dict[str, Any] = {
            "name": 200,
            "plan_id": 128,
            "render_id": 128,
            "label_width": (0, 65536),
            "max_images": (1, 32767),
            "text_tokens": (0, 32767),
            "max_text_tokens": (0, 32767),
            "vocabulary": (0, 2**31 - 1),
            "batch_size": (1, 65536),
            "remainder": 16,
            "memory": NUMBER,
        }
        view_rules = {
            "sequence_length": (1, 32767),
            "max_tokens": (1, 32767),
            "prefix_tokens": (0, 32766),
            "patch_size": (0, 512),
        }

        def view(value: Any) -> Limits:
            if not isinstance(value, dict) or value.keys() != view_rules.keys():
                raise ServiceError("the daemon's limits of a view have unknown or missing keys")
            for key, rule in view_rules.items():
                check(key, value[key], rule)
            return Limits(**value)

        if table.keys() != {f.name for f in fields(cls)}:
            raise ServiceError("the daemon's plan has unknown or missing keys")
        for key, rule in rules.items():
            check(key, table[key], rule)
        for key, rule in (("classes", 4096), ("patch_sizes", (1, 512))):
            if not isinstance(table[key], tuple):
                raise ServiceError(f"'{key}' = {short(table[key])} must be a list")
            for value in table[key]:
                check(key, value, rule)
        render = named("render", table["render"])
        if render.keys() != set(RENDER_KEYS):
            raise ServiceError(f"the daemon's [render] must have the keys {', '.join(RENDER_KEYS)}")
        try:
            RenderConfig(**render)
        except ConfigError as e:
            raise ServiceError(f"the daemon's [render]: {e}") from None
        if not table["patch_sizes"]:
            raise ServiceError("the daemon's plan has no patch size")
        teacher = None if table["teacher"] is None else view(table["teacher"])
        return cls(**{**table, "view": view(table["view"]), "teacher": teacher, "render": render})

    def nbytes(self, count: int) -> int:
        """Bytes of the largest batch of `count` sequences."""
        return batch_shape(self, max(self.patch_sizes), count).nbytes


@dataclass(frozen=True, slots=True)
class Field:
    """One array of a batch: its name as in `PackedBatch.arrays()`, dtype and shape; `nbytes` is the length of its frame."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    nbytes: int

    @classmethod
    def of(cls, name: str, dtype: str, *shape: int) -> Field:
        """A field of the given shape."""
        kind = np.dtype(dtype)
        return cls(name, kind, shape, math.prod(shape) * kind.itemsize)


@dataclass(frozen=True, slots=True)
class BatchShape:
    """What one batch looks like.

    Attributes:
        fields: its arrays, in the order of the wire (that of `PackedBatch.arrays()`).
        offsets: where each starts in a shared slot.
        nbytes: bytes of all frames.
        slot_bytes: bytes of a slot.
    """

    fields: tuple[Field, ...]
    offsets: tuple[int, ...]
    nbytes: int
    slot_bytes: int


def batch_shape(info: PlanInfo, patch_size: int, count: int) -> BatchShape:
    """The shape of a batch of `count` sequences. Worked out once: it is asked for with every batch."""
    return _shape(info.max_images, info.label_width, info.text_tokens, info.view, info.teacher, patch_size, count)


@lru_cache(maxsize=256)
def _shape(e: int, k: int, t: int, own: Limits, teacher: Limits | None, patch_size: int, count: int) -> BatchShape:
    def view(limits: Limits, p: int, prefix: str) -> list[Field]:
        length = limits.sequence_length
        cuts = count * (e + -(-length // limits.max_tokens)) + 1
        return [
            Field.of(prefix + "patches", "u1", count, length, p * p * 3),
            Field.of(prefix + "positions", "<i2", count, length, 2),
            Field.of(prefix + "segment_ids", "<i2", count, length),
            Field.of(prefix + "cu_seqlens", "<i4", cuts),
            Field.of(prefix + "grids", "<i2", count, e, 2),
        ]

    found = view(own, patch_size, "")
    found += [
        Field.of("status", "u1", count, e),
        Field.of("labels", "<i8", count, e, k),
        Field.of("image_ids", "<i8", count, e),
        Field.of("source_ids", "<i2", count, e),
        Field.of("sizes", "<i4", count, e, 2),
        Field.of("crops", "<i4", count, e, 4),
        Field.of("flips", "u1", count, e),
        Field.of("text", "<i4", count, t) if t else Field.of("text", "<i4", 0),
        Field.of("text_cu_seqlens", "<i4", count * (e + 1) + 1 if t else 0),
    ]
    if teacher is not None:
        found += view(teacher, teacher.patch_size, "teacher.")
    offsets, end = [], 0
    for one in found:
        offsets.append(end)
        end += -(-one.nbytes // SLOT_ALIGN) * SLOT_ALIGN
    return BatchShape(tuple(found), tuple(offsets), sum(f.nbytes for f in found), end)


def encoded_fields(info: PlanInfo, patch_size: int, count: int) -> tuple[Field, ...]:
    """The arrays of an encoded batch but its `data`, which has no fixed length and comes last."""
    e = info.max_images
    slots = (
        replace(f, shape=(*f.shape[:2], 0), nbytes=0) if f.name.endswith("patches") else f
        for f in batch_shape(info, patch_size, count).fields
    )
    return (
        *slots,
        Field.of("keys", "<i8", count, e),
        Field.of("orientations", "u1", count, e),
        Field.of("spans", "<i8", count, e, 2),
        Field.of("uri_spans", "<i8", count, e, 2),
        Field.of("file_offsets", "<i8", count, e),
    )
