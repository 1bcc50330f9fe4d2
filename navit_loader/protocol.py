"""The words that daemon and client exchange, as bytes and back. `docs/protocol.md` is this file in prose.

In: messages as dataclasses, batches as arrays. Out: one header frame (`NVT`, a version byte, a msgpack map) and one
raw frame per array. It stands apart from sockets so that it can be tested and fuzzed alone. Both sides bound every
length and count before they allocate: a header has a largest size, a map only known keys, a number a range, and the
shapes of a batch follow from the plan's limits, so a frame has exactly one right length. Nothing is ever unpickled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import lru_cache
from typing import Any, TypeVar

import msgpack
import numpy as np

from .batch import PackedBatch, View
from .config import RENDER_KEYS, RenderConfig
from .encoded import EncodedBatch
from .errors import ConfigError, NavitError, RenderError, ServiceError, StateError

VERSION = 1
"""Version of the protocol; another one is refused."""

MAGIC = b"NVT"
MAX_REQUEST = 16 * 1024
"""Bytes of a request at most; the daemon's socket cuts a peer that declares more."""
MAX_REPLY = 16 * 1024 * 1024
"""Bytes of a reply's header at most (class names travel in it)."""
MAX_IN_FLIGHT = 1024
"""Requests that one client may have outstanding."""
MAX_LAYOUT = 65536
"""Block counts in one answer at most."""
WIDE = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asks. Fields that a kind does not use keep their defaults and do not travel.

    Attributes:
        kind: `hello`, `batch`, `encoded`, `layout`, `cancel`, `credit` or `bye`.
        id: the client's number for the request; the answer carries it.
        client: who asks, for logs and metrics (`hello`).
        plan: name of one of the daemon's plans; empty for its first (`hello`).
        shared: whether the client can take shared memory (`hello`).
        plan_id: fingerprint of the plan (`batch`, `layout`).
        render_id: fingerprint of the renderer (`batch`, `encoded`).
        epoch: epoch (`batch`, `layout`).
        first: the batch's first sequence, or the first block.
        count: sequences of the batch (B), or blocks.
        starved_us: microseconds that the trainer has waited for batches since its last request (`batch`, `encoded`).
        limit: bytes that the answer may have at most (`encoded`).
        ids: requests no longer wanted (`cancel`), or shared slots given back (`credit`).
    """

    kind: str
    id: int = 0
    client: str = ""
    plan: str = ""
    shared: bool = False
    plan_id: str = ""
    render_id: str = ""
    epoch: int = 0
    first: int = 0
    count: int = 0
    starved_us: int = 0
    limit: int = 0
    ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Reply:
    """What the daemon answers.

    Attributes:
        kind: `hello`, `batch`, `encoded`, `layout`, `error` or `beat`.
        id: the request's number.
        info: the plan (`hello`), see `PlanInfo`.
        patch_size: P of the batch (`batch`, `encoded`).
        slot: the shared slot that holds the batch, or −1 where its frames follow (`batch`).
        run: sequences per patch-size run (`layout`).
        num_blocks: blocks of the epoch (`layout`).
        error: class of the error: `render`, `state`, `plan`, `request`, `hello` (say it first), `busy` or `draining`
            (ask another, or again later) (`error`).
        message: one line in words (`error`).
        door: abstract Unix socket and token by which shared memory is passed; empty without (`hello`).
    """

    kind: str
    id: int = 0
    info: dict[str, Any] | None = None
    patch_size: int = 0
    slot: int = -1
    run: int = 0
    num_blocks: int = 0
    error: str = ""
    message: str = ""
    door: tuple[str, ...] = ()


# What may stand in each message: the key, then (low, high) of an integer or the longest string; `id` is in all of them.
_INT = (0, WIDE)
_BATCH = {"plan_id": 128, "render_id": 128, "epoch": _INT, "first": _INT, "count": (1, 65536), "starved_us": _INT}
_REQUESTS: dict[str, dict[str, Any]] = {
    "hello": {"client": 200, "plan": 200, "shared": bool},
    "batch": _BATCH,
    "encoded": _BATCH | {"limit": (1, WIDE)},
    "layout": {"plan_id": 128, "epoch": _INT, "first": _INT, "count": (0, MAX_LAYOUT)},
    "cancel": {"ids": _INT},
    "credit": {"ids": _INT},
    "bye": {},
}
_REPLIES: dict[str, dict[str, Any]] = {
    "hello": {"info": dict, "door": 200},
    "batch": {"patch_size": (1, 512), "slot": (-1, WIDE)},
    "encoded": {"patch_size": (1, 512)},
    "layout": {"run": _INT, "num_blocks": _INT},
    "error": {"error": 32, "message": 4000},
    "beat": {},
}
_LISTS = ("ids", "door")

M = TypeVar("M", Request, Reply)


def _encode(message: Request | Reply, kinds: dict[str, dict[str, Any]]) -> bytes:
    keys = ("kind", "id", *kinds[message.kind])
    return MAGIC + bytes([VERSION]) + bytes(msgpack.packb({k: getattr(message, k) for k in keys}))


def encode_request(request: Request) -> bytes:
    """The header frame of a request."""
    return _encode(request, _REQUESTS)


def encode_reply(reply: Reply) -> bytes:
    """The header frame of a reply."""
    return _encode(reply, _REPLIES)


def decode_request(raw: bytes | memoryview) -> Request:
    """Reads a request.

    Raises:
        ServiceError: another version (both are named), a key that is unknown, missing or out of range, or no message.
    """
    return _decode(raw, Request, _REQUESTS, MAX_REQUEST, "client", "daemon")


def decode_reply(raw: bytes | memoryview) -> Reply:
    """Reads the header of a reply.

    Raises:
        ServiceError: as `decode_request`.
    """
    return _decode(raw, Reply, _REPLIES, MAX_REPLY, "daemon", "client")


def _decode(
    raw: bytes | memoryview, cls: type[M], kinds: dict[str, dict[str, Any]], limit: int, them: str, us: str
) -> M:
    if len(raw) > limit:
        raise ServiceError(f"a header of {len(raw)} bytes is not allowed; at most {limit}")
    if len(raw) < 4 or bytes(raw[:3]) != MAGIC:
        raise ServiceError("this is not a navit message: it does not start with 'NVT'")
    if raw[3] != VERSION:
        raise ServiceError(
            f"the {them} speaks protocol version {raw[3]}, this {us} version {VERSION}; install the same navit on both"
        )
    try:
        table = msgpack.unpackb(raw[4:], max_ext_len=0, max_bin_len=0, use_list=False)
    except (ValueError, msgpack.UnpackException) as e:
        raise ServiceError(f"a header that is not msgpack: {type(e).__name__}") from None
    if not isinstance(table, dict):
        raise ServiceError("a header must be a map")
    kind = table.pop("kind", None)
    if not isinstance(kind, str) or kind not in kinds:
        raise ServiceError(f"unknown kind {_short(kind)}; allowed: {', '.join(kinds)}")
    allowed = {"id": _INT, **kinds[kind]}
    if table.keys() != allowed.keys():
        odd = sorted(map(_short, table.keys() ^ allowed.keys()))
        raise ServiceError(f"'{kind}' has keys that are unknown or missing: {', '.join(odd[:8])}")
    for key, rule in allowed.items():
        _check(key, table[key], rule)
    return cls(kind=kind, **table)


def _check(key: str, value: Any, rule: Any) -> None:
    if key in _LISTS:
        if not isinstance(value, tuple) or len(value) > MAX_IN_FLIGHT:
            raise ServiceError(f"'{key}' = {_short(value)} must be a list of at most {MAX_IN_FLIGHT} values")
        for v in value:
            _check(f"{key}[]", v, rule)
    elif isinstance(rule, tuple):
        if type(value) is not int or not rule[0] <= value <= rule[1]:
            raise ServiceError(f"'{key}' = {_short(value)} must be an integer from {rule[0]} to {rule[1]}")
    elif isinstance(rule, int):
        if not isinstance(value, str) or len(value) > rule:
            raise ServiceError(f"'{key}' = {_short(value)} must be a string of at most {rule} characters")
    elif not isinstance(value, rule):
        raise ServiceError(f"'{key}' = {_short(value)} must be of type {rule.__name__}")


def _map(key: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(k, str) for k in value):
        raise ServiceError(f"'{key}' must be a map with strings for keys")
    return value


def _short(value: object) -> str:
    text = repr(value) if isinstance(value, str | int | float | bool | type(None)) else type(value).__name__
    return text if len(text) <= 60 else text[:57] + "..."


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
            "memory": _INT,
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
                _check(key, value[key], rule)
            return Limits(**value)

        if table.keys() != {f.name for f in fields(cls)}:
            raise ServiceError("the daemon's plan has unknown or missing keys")
        for key, rule in rules.items():
            _check(key, table[key], rule)
        for key, rule in (("classes", 4096), ("patch_sizes", (1, 512))):
            if not isinstance(table[key], tuple):
                raise ServiceError(f"'{key}' = {_short(table[key])} must be a list")
            for value in table[key]:
                _check(key, value, rule)
        render = _map("render", table["render"])
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
        return sum(f.nbytes for f in batch_fields(self, max(self.patch_sizes), count))

    def largest_frame(self, count: int) -> int:
        """Bytes of the largest frame of such a batch."""
        return max(f.nbytes for f in batch_fields(self, max(self.patch_sizes), count))


@dataclass(frozen=True, slots=True)
class Field:
    """One array of a batch: its name as in `PackedBatch.arrays()`, dtype and shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Length of its frame."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@lru_cache(maxsize=256)
def batch_fields(info: PlanInfo, patch_size: int, count: int) -> tuple[Field, ...]:
    """The arrays of a batch of `count` sequences, in the order of the wire (that of `PackedBatch.arrays()`)."""
    e, t = info.max_images, info.text_tokens

    def view(limits: Limits, p: int, prefix: str) -> list[Field]:
        length = limits.sequence_length
        cuts = count * (e + -(-length // limits.max_tokens)) + 1
        return [
            Field(prefix + "patches", "u1", (count, length, p * p * 3)),
            Field(prefix + "positions", "<i2", (count, length, 2)),
            Field(prefix + "segment_ids", "<i2", (count, length)),
            Field(prefix + "cu_seqlens", "<i4", (cuts,)),
            Field(prefix + "grids", "<i2", (count, e, 2)),
        ]

    found = view(info.view, patch_size, "")
    found += [
        Field("status", "u1", (count, e)),
        Field("labels", "<i8", (count, e, info.label_width)),
        Field("image_ids", "<i8", (count, e)),
        Field("source_ids", "<i2", (count, e)),
        Field("sizes", "<i4", (count, e, 2)),
        Field("crops", "<i4", (count, e, 4)),
        Field("flips", "u1", (count, e)),
        Field("text", "<i4", (count, t) if t else (0,)),
        Field("text_cu_seqlens", "<i4", (count * (e + 1) + 1 if t else 0,)),
    ]
    if info.teacher is not None:
        found += view(info.teacher, info.teacher.patch_size, "teacher.")
    return tuple(found)


def batch_frames(batch: PackedBatch | EncodedBatch) -> list[memoryview]:
    """The raw frames of a batch: views of its arrays, not copies. Each keeps its array alive."""
    return [memoryview(a).cast("B") if a.size else memoryview(b"") for a in batch.arrays().values()]


def encoded_fields(info: PlanInfo, patch_size: int, count: int) -> tuple[Field, ...]:
    """The arrays of an encoded batch but its `data`, which has no fixed length and comes last."""
    e = info.max_images
    slots = (
        replace(f, shape=(*f.shape[:2], 0)) if f.name.endswith("patches") else f
        for f in batch_fields(info, patch_size, count)
    )
    return (
        *slots,
        Field("keys", "<i8", (count, e)),
        Field("orientations", "u1", (count, e)),
        Field("spans", "<i8", (count, e, 2)),
        Field("uri_spans", "<i8", (count, e, 2)),
        Field("file_offsets", "<i8", (count, e)),
    )


def read_encoded(info: PlanInfo, request: Request, patch_size: int, frames: Sequence[Any]) -> EncodedBatch:
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
    own = _arrays(wanted[-5:], frames[-6:-1])
    data = memoryview(frames[-1])
    return EncodedBatch(
        slots=_batch(info, request, patch_size, _arrays(wanted[:-5], frames[:-6])),
        **own,
        data=np.frombuffer(data, np.uint8) if data.nbytes else np.zeros(0, np.uint8),
        render=info.render,
    )


def read_batch(info: PlanInfo, request: Request, patch_size: int, frames: Sequence[Any]) -> PackedBatch:
    """The batch that answers `request`: numpy views of the frames, which stay alive as long as the views.

    Args:
        info: the plan's limits.
        request: what was asked.
        patch_size: P, from the reply's header.
        frames: objects with the buffer interface, one per field.

    Raises:
        ServiceError: a patch size that the plan does not have, a frame too many or too few, or of a wrong length.
    """
    _check_patch_size(info, patch_size)
    wanted = batch_fields(info, patch_size, request.count)
    if len(frames) != len(wanted):
        raise ServiceError(f"a batch of {len(frames)} frames where {len(wanted)} belong")
    return _batch(info, request, patch_size, _arrays(wanted, frames))


def _check_patch_size(info: PlanInfo, patch_size: int) -> None:
    if patch_size not in info.patch_sizes:
        raise ServiceError(f"a batch with patch size {patch_size}, but the plan has {info.patch_sizes}")


def _arrays(wanted: Sequence[Field], frames: Sequence[Any]) -> dict[str, Any]:
    arrays: dict[str, Any] = {}
    for one, frame in zip(wanted, frames, strict=True):
        view = memoryview(frame)
        if view.nbytes != one.nbytes:
            raise ServiceError(f"'{one.name}' has {view.nbytes} bytes where {one.nbytes} belong")
        array = np.frombuffer(view, one.dtype).reshape(one.shape)
        # ZeroMQ may hand over a small frame at an odd address; the large one is bytes and never needs this copy.
        arrays[one.name] = array if array.flags.aligned else array.copy()
    return arrays


def _batch(info: PlanInfo, request: Request, patch_size: int, arrays: dict[str, Any]) -> PackedBatch:
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


def read_counts(request: Request, frames: Sequence[Any]) -> np.ndarray[Any, np.dtype[np.uint32]]:
    """The sequences in each block that answer a `layout` request, u32, at most `count` of them.

    Raises:
        ServiceError: another number of frames, or a wrong length.
    """
    if len(frames) != 1 or (n := memoryview(frames[0]).nbytes) % 4 or n > 4 * request.count:
        raise ServiceError(f"a layout of {request.count} blocks in {len(frames)} frames of another length")
    return np.frombuffer(memoryview(frames[0]), "<u4").astype(np.uint32)


_ERRORS: dict[str, type[NavitError]] = {"render": RenderError, "state": StateError}


def error_reply(id: int, error: Exception) -> Reply:
    """The reply that carries an error of the engine."""
    name = next((n for n, cls in _ERRORS.items() if isinstance(error, cls)), "request")
    return Reply("error", id, error=name, message=str(error)[:4000])


def error_of(reply: Reply, endpoint: str) -> NavitError:
    """The exception that an `error` reply stands for."""
    return _ERRORS.get(reply.error, ServiceError)(f"{endpoint}: {reply.message}")
