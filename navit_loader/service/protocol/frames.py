"""The raw frames behind a header: arrays as bytes and back, without a copy, and errors by their class.

In: batches and counts, or frames that a peer sent. Out: frames, or arrays that are views of them. A frame of any other
length than the plan gives it is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...batch import PackedBatch, View
from ...errors import NavitError, RenderError, ServiceError, StateError
from ...render.encoded import OWN_ARRAYS, EncodedBatch
from .messages import ErrorReply, GetBatch, GetEncoded, GetLayout
from .plan import Field, PlanInfo, batch_shape, encoded_fields


class Sending:
    """Lives as long as a frame of its batch."""


class _Sent(np.ndarray[Any, Any]):
    sending: Sending | None


def batch_frames(batch: PackedBatch | EncodedBatch, sending: Sending | None = None) -> list[memoryview]:
    """The raw frames of a batch: views of its arrays, not copies. Each with bytes keeps its array and `sending` alive."""
    frames = []
    for array in batch.arrays().values():
        view = array.view(_Sent)
        view.sending = sending
        frames.append(memoryview(view).cast("B") if view.size else memoryview(b""))
    return frames


def read_encoded(info: PlanInfo, request: GetEncoded, patch_size: int, frames: Sequence[Any]) -> EncodedBatch:
    """The encoded batch that answers `request`; as `read_batch`, with the files as the last frame.

    Raises:
        ServiceError: as `read_batch`, or more bytes than were asked for.
    """
    _check_patch_size(info, patch_size)
    wanted = encoded_fields(info, patch_size, request.count)
    if len(frames) != len(wanted) + 1:
        raise ServiceError(f"an encoded batch of {len(frames)} frames where {len(wanted) + 1} belong")
    if (total := sum(memoryview(f).nbytes for f in frames)) > request.limit:
        raise ServiceError(f"an encoded batch of {total:,} bytes where {request.limit:,} were allowed")
    *others, data = frames
    arrays = _arrays(wanted, others)
    arrays["data"] = np.frombuffer(data, np.uint8) if memoryview(data).nbytes else np.zeros(0, np.uint8)
    own = {name: arrays.pop(name) for name in OWN_ARRAYS}
    return EncodedBatch(
        slots=_batch(info, request, patch_size, arrays),
        **own,
        render=info.render,
    )


def read_batch(info: PlanInfo, request: GetBatch, patch_size: int, frames: Sequence[Any]) -> PackedBatch:
    """The batch that answers `request`: read-only numpy views of the frames, which stay alive as long as the views.

    Args:
        info: the plan's limits.
        request: what was asked.
        patch_size: P, from the reply's header.
        frames: objects with the buffer interface, one per field.

    Raises:
        ServiceError: a patch size that the plan does not have, a frame too many or too few, or of a wrong length.
    """
    _check_patch_size(info, patch_size)
    wanted = batch_shape(info, patch_size, request.count).fields
    if len(frames) != len(wanted):
        raise ServiceError(f"a batch of {len(frames)} frames where {len(wanted)} belong")
    return _batch(info, request, patch_size, _arrays(wanted, frames))


def read_slot(info: PlanInfo, request: GetBatch, patch_size: int, slot: np.ndarray[Any, Any]) -> PackedBatch:
    """The batch that answers `request` and lies in a shared slot: numpy views of it, each with the slot as its base.

    Args:
        info: the plan's limits.
        request: what was asked.
        patch_size: P, from the reply's header.
        slot: u8, all bytes of the slot.

    Raises:
        ServiceError: a patch size that the plan does not have, or a slot that is too small for its batch.
    """
    _check_patch_size(info, patch_size)
    shape = batch_shape(info, patch_size, request.count)
    if slot.size < shape.slot_bytes:
        raise ServiceError(f"a shared slot of {slot.size} bytes is too small for its batch of {shape.slot_bytes}")
    arrays = {
        field.name: np.ndarray(field.shape, field.dtype, slot, offset)
        for field, offset in zip(shape.fields, shape.offsets, strict=True)
    }
    return _batch(info, request, patch_size, arrays)


def _check_patch_size(info: PlanInfo, patch_size: int) -> None:
    if patch_size not in info.patch_sizes:
        raise ServiceError(f"a batch with patch size {patch_size}, but the plan has {info.patch_sizes}")


def _arrays(wanted: Sequence[Field], frames: Sequence[Any]) -> dict[str, Any]:
    arrays: dict[str, Any] = {}
    for one, frame in zip(wanted, frames, strict=True):
        view = memoryview(frame).toreadonly()  # as what comes through shared memory is
        if view.nbytes != one.nbytes:
            raise ServiceError(f"'{one.name}' has {view.nbytes} bytes where {one.nbytes} belong")
        array = np.frombuffer(view, one.dtype).reshape(one.shape)
        # ZeroMQ may hand over a small frame at an odd address; the large one is bytes and never needs this copy.
        if not array.flags.aligned:
            array = array.copy()
            array.flags.writeable = False
        arrays[one.name] = array
    return arrays


def _batch(info: PlanInfo, request: GetBatch | GetEncoded, patch_size: int, arrays: dict[str, Any]) -> PackedBatch:
    teacher = None
    if info.teacher is not None:
        t = info.teacher
        names = [f for f in arrays if f.startswith("teacher.")]
        teacher = View(
            **{name.removeprefix("teacher."): arrays.pop(name) for name in names},
            patch_size=t.patch_size,
            max_seqlen=t.max_tokens,
            prefix_tokens=t.prefix_tokens,
        )
    return PackedBatch(
        **arrays,
        patch_size=patch_size,
        max_seqlen=info.view.max_tokens,
        prefix_tokens=info.view.prefix_tokens,
        teacher=teacher,
        epoch=request.epoch,
        sequence=request.first,
    )


def read_counts(request: GetLayout, frames: Sequence[Any]) -> np.ndarray[Any, np.dtype[np.uint32]]:
    """The sequences in each block that answer a `layout` request, u32, at most `count` of them.

    Raises:
        ServiceError: another number of frames, or a wrong length.
    """
    if len(frames) != 1 or (n := memoryview(frames[0]).nbytes) % 4 or n > 4 * request.count:
        raise ServiceError(f"a layout of {request.count} blocks in {len(frames)} frames of another length")
    return np.frombuffer(memoryview(frames[0]), "<u4").astype(np.uint32)


_ERRORS: dict[str, type[NavitError]] = {"render": RenderError, "state": StateError}


def error_reply(id: int, error: Exception) -> ErrorReply:
    """The reply that carries an error of the engine."""
    name = next((n for n, cls in _ERRORS.items() if isinstance(error, cls)), "request")
    return ErrorReply(id, error=name, message=str(error)[:4000])


def error_of(reply: ErrorReply, endpoint: str) -> NavitError:
    """The exception that an `error` reply stands for."""
    return _ERRORS.get(reply.error, ServiceError)(f"{endpoint}: {reply.message}")
