"""What a client must know of a plan, and the shapes of its batches that follow from it.

In: an engine at the daemon, the map of a `hello` at the client. Out: `PlanInfo`, and for each patch size and batch size
the dtype and shape of every array as the engine defines them, so that a frame has exactly one right length.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from functools import lru_cache
from typing import Any

import numpy as np

from ... import _packer
from ...config import LATER_RENDER_KEYS, RENDER_KEYS, RenderConfig
from ...errors import ConfigError, ServiceError
from ...plan.config import MAX_LENGTH
from .messages import NUMBER, check, named, short

_WHERE_TRUE = {"weighted", "warps"}
"""Keys that are on the wire only where they are true, so that a plan without them is what it was."""

_WHERE_SET = {"boxes": (1, 32767), "masks": (1, 64)}
"""The same for numbers, with what they may be: only where they are not 0."""


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
        weighted: images count differently in a loss, which batches do not tell; not on the wire where it is not so.
        warps: batches say how their images are warped; not on the wire where they do not.
        boxes: O; not on the wire where it is 0.
        masks: S; likewise.
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
    weighted: bool = False
    warps: bool = False
    boxes: int = 0
    masks: int = 0

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
            weighted=any(index.weighted for index in engine.indexes),
            warps=plan.warp is not None,
            boxes=plan.targets.capacity if plan.targets else 0,
            masks=plan.targets.masks if plan.targets else 0,
        )

    def to_table(self) -> dict[str, Any]:
        """As a map of plain values."""
        return {key: value for key, value in asdict(self).items() if key not in {*_WHERE_TRUE, *_WHERE_SET} or value}

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
            "sequence_length": (1, MAX_LENGTH),
            "max_tokens": (1, MAX_LENGTH),
            "prefix_tokens": (0, 32767),
            "patch_size": (0, 512),
        }

        def view(value: Any) -> Limits:
            if not isinstance(value, dict) or value.keys() != view_rules.keys():
                raise ServiceError("the daemon's limits of a view have unknown or missing keys")
            for key, rule in view_rules.items():
                check(key, value[key], rule)
            return Limits(**value)

        if table.keys() | _WHERE_TRUE | _WHERE_SET.keys() != {f.name for f in fields(cls)}:
            raise ServiceError("the daemon's plan has unknown or missing keys")
        for key in _WHERE_TRUE & table.keys():
            if table[key] is not True:
                raise ServiceError(f"the daemon's plan has {key} = {table[key]!r}; it must be true or left out")
        rules |= {key: rule for key, rule in _WHERE_SET.items() if key in table}
        for key, rule in rules.items():
            check(key, table[key], rule)
        for key, rule in (("classes", 4096), ("patch_sizes", (1, 512))):
            if not isinstance(table[key], tuple):
                raise ServiceError(f"'{key}' = {short(table[key])} must be a list")
            for value in table[key]:
                check(key, value, rule)
        render = named("render", table["render"])
        if not set(RENDER_KEYS) <= render.keys() <= {*RENDER_KEYS, *LATER_RENDER_KEYS}:
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


def batch_shape(info: PlanInfo, patch_size: int, count: int, encoded: bool = False) -> BatchShape:
    """The shape of a batch of `count` sequences. Asked of the engine once: it is wanted with every batch."""
    sides = tuple(getattr(info, side) for side in _SIDES)
    return _shape(sides, info.view, info.teacher, patch_size, count, encoded)


_SIDES = ("max_images", "label_width", "text_tokens", "warps", "boxes", "masks")
"""What fixes the shapes of a batch, beside its views."""


@lru_cache(maxsize=256)
def _shape(
    sides: tuple[int, ...], own: Limits, teacher: Limits | None, patch_size: int, count: int, encoded: bool
) -> BatchShape:
    limits = asdict(own) | dict(zip(_SIDES, sides, strict=True))
    limits |= {"max_text_tokens": 0, "teacher": teacher and asdict(teacher)}
    described, slot_bytes = _packer.batch_fields(limits, patch_size, count, encoded)
    found, offsets = [], []
    for name, dtype, shape, offset in described:
        kind = np.dtype(dtype)
        found.append(Field(name, kind, tuple(shape), math.prod(shape) * kind.itemsize))
        offsets.append(offset)
    return BatchShape(tuple(found), tuple(offsets), sum(f.nbytes for f in found), slot_bytes)


def encoded_fields(info: PlanInfo, patch_size: int, count: int) -> tuple[Field, ...]:
    """The arrays of an encoded batch but its `data`, which has no fixed length and comes last."""
    return batch_shape(info, patch_size, count, encoded=True).fields[:-1]
