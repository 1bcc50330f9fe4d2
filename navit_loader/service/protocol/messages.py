"""Headers: the words that daemon and client exchange, as bytes and back.

In: messages as dataclasses, one class for each kind. Out: one frame each (`NVT`, a version byte, a msgpack map). Whatever comes
from a peer is bounded before it is believed: a header has a largest size, a map only known keys, a number a range. Nothing is
ever unpickled.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, TypeVar, get_args

import msgpack

from ...errors import ServiceError

VERSION = 1
"""Version of the protocol; another one is refused."""

MAGIC = b"NVT"
MAX_REQUEST = 16 * 1024
"""Bytes of a request at most; the daemon's socket cuts a peer that declares more."""
MAX_REPLY = 16 * 1024 * 1024
"""Bytes of a reply's header at most (class names travel in it)."""
MAX_IN_FLIGHT = 1024
"""Requests that one client may have outstanding."""
MAX_TOGETHER = 64
"""Requests in one message at most."""
MAX_LAYOUT = 65536
"""Block counts in one answer at most."""
WIDE = 2**63 - 1
NUMBER = (0, WIDE)
"""What an integer may be where nothing narrower is said."""
_COUNT = (1, 65536)
_SIDE = (1, 512)


def _key(default: Any, rule: Any, name: str = "") -> Any:
    """A field that travels.

    Args:
        default: its value where a message does not name it.
        rule: what it may be, see `check`.
        name: its key in the map, where that is another word.
    """
    return field(default=default, metadata={"rule": rule, "name": name})


@dataclass(frozen=True, slots=True)
class Message:
    """What every message has: `id`, the client's number for a request, which the answer carries. Fields travel in order."""

    kind: ClassVar[str]
    id: int = _key(0, NUMBER)


# --- what a client asks ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Hello(Message):
    """Who asks, for which plan.

    Attributes:
        client: its name, for logs and metrics.
        plan: name of one of the daemon's plans; empty for its first.
        shared: whether it can take shared memory.
        plan_id, render_id: those that it has begun with, or empty.
    """

    kind = "hello"
    client: str = _key("", 200)
    plan: str = _key("", 200)
    shared: bool = _key(False, bool)
    plan_id: str = _key("", 128)
    render_id: str = _key("", 128)


@dataclass(frozen=True, slots=True)
class _OfEpoch(Message):
    """What is of a plan's epoch: `first` is a sequence of it, or a block."""

    plan_id: str = _key("", 128)
    epoch: int = _key(0, NUMBER)
    first: int = _key(0, NUMBER)


@dataclass(frozen=True, slots=True)
class _OfBatch(_OfEpoch):
    """What names a batch of either kind.

    Attributes:
        render_id: fingerprint of the renderer.
        count: sequences of the batch (B).
        block: the planning block that holds `first`, where the client knows it; −1 otherwise.
        before: sequences before that block.
        starved_us: microseconds that the trainer has waited for batches since its last request.
    """

    render_id: str = _key("", 128)
    count: int = _key(0, _COUNT)
    block: int = _key(-1, (-1, WIDE))
    before: int = _key(0, NUMBER)
    starved_us: int = _key(0, NUMBER)


@dataclass(frozen=True, slots=True)
class GetBatch(_OfBatch):
    """A batch with its pixels; `slots` are shared slots given back on the way."""

    kind = "batch"
    slots: tuple[int, ...] = _key((), [NUMBER], "ids")


@dataclass(frozen=True, slots=True)
class GetEncoded(_OfBatch):
    """A batch with its encoded files, of `limit` bytes at most."""

    kind = "encoded"
    limit: int = _key(0, (1, WIDE))


@dataclass(frozen=True, slots=True)
class GetLayout(_OfEpoch):
    """The sequences in each of `count` blocks from block `first` on."""

    kind = "layout"
    count: int = _key(0, (0, MAX_LAYOUT))


@dataclass(frozen=True, slots=True)
class Cancel(Message):
    """The requests with these numbers are no longer wanted."""

    kind = "cancel"
    requests: tuple[int, ...] = _key((), [NUMBER], "ids")


@dataclass(frozen=True, slots=True)
class Credit(Message):
    """These shared slots may be written again."""

    kind = "credit"
    slots: tuple[int, ...] = _key((), [NUMBER], "ids")


@dataclass(frozen=True, slots=True)
class Bye(Message):
    """The session ends."""

    kind = "bye"


# --- what the daemon answers -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Welcome(Message):
    """The plan (`PlanInfo.to_table`), and where shared memory is passed: an abstract Unix socket and a token, or nothing."""

    kind = "hello"
    info: dict[str, Any] = _key(None, dict)  # noqa: RUF009 - a field, as the others
    passage: tuple[str, ...] = _key((), [200], "door")


@dataclass(frozen=True, slots=True)
class BatchReply(Message):
    """P of a batch, and the shared slot that holds it, or −1 where its frames follow."""

    kind = "batch"
    patch_size: int = _key(0, _SIDE)
    slot: int = _key(-1, (-1, WIDE))


@dataclass(frozen=True, slots=True)
class EncodedReply(Message):
    """P of an encoded batch, whose frames follow."""

    kind = "encoded"
    patch_size: int = _key(0, _SIDE)


@dataclass(frozen=True, slots=True)
class LayoutReply(Message):
    """Sequences per patch-size run, and blocks of the epoch; one frame of counts follows."""

    kind = "layout"
    run: int = _key(0, NUMBER)
    num_blocks: int = _key(0, NUMBER)


@dataclass(frozen=True, slots=True)
class ErrorReply(Message):
    """Why there is no answer, in one line.

    Attributes:
        error: `render`, `state`, `plan`, `request`, `hello` (say it first), `busy` or `draining` (ask another, or again later).
        message: in words.
    """

    kind = "error"
    error: str = _key("", 32)
    message: str = _key("", 4000)


@dataclass(frozen=True, slots=True)
class Beat(Message):
    """To a client that has been silent for long; it needs no answer."""

    kind = "beat"


Request = Hello | GetBatch | GetEncoded | GetLayout | Cancel | Credit | Bye
Reply = Welcome | BatchReply | EncodedReply | LayoutReply | ErrorReply | Beat

_START = MAGIC + bytes([VERSION])

_Keys = dict[str, tuple[str, Any]]
"""Of a kind: for each key of its map the field and what it may be."""


def _keys(cls: type[Message]) -> _Keys:
    return {f.metadata["name"] or f.name: (f.name, f.metadata["rule"]) for f in fields(cls)}


_KEYS: dict[type[Message], _Keys] = {cls: _keys(cls) for cls in (*get_args(Request), *get_args(Reply))}
_REQUESTS: dict[str, type[Request]] = {cls.kind: cls for cls in get_args(Request)}
_REPLIES: dict[str, type[Reply]] = {cls.kind: cls for cls in get_args(Reply)}

M = TypeVar("M", Request, Reply)


def encode(message: Request | Reply, **now: Any) -> bytes:
    """The header frame of a message.

    Args:
        message: what is said.
        now: values of fields that are settled when it is sent, in place of the message's own.
    """
    table = {"kind": message.kind}
    for key, (name, _) in _KEYS[type(message)].items():
        table[key] = now[name] if name in now else getattr(message, name)
    return _START + bytes(msgpack.packb(table))


def decode_request(raw: bytes | memoryview) -> Request:
    """Reads a request.

    Raises:
        ServiceError: another version (both are named), a key that is unknown, missing or out of range, or no message.
    """
    return _decode(raw, _REQUESTS, MAX_REQUEST, "client", "daemon")


def decode_reply(raw: bytes | memoryview) -> Reply:
    """Reads the header of a reply.

    Raises:
        ServiceError: as `decode_request`.
    """
    return _decode(raw, _REPLIES, MAX_REPLY, "daemon", "client")


def _decode(raw: bytes | memoryview, kinds: dict[str, type[M]], limit: int, them: str, us: str) -> M:
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
        raise ServiceError(f"unknown kind {short(kind)}; allowed: {', '.join(kinds)}")
    keys = _KEYS[kinds[kind]]
    if table.keys() != keys.keys():
        odd = sorted(map(short, table.keys() ^ keys.keys()))
        raise ServiceError(f"'{kind}' has keys that are unknown or missing: {', '.join(odd[:8])}")
    found = {}
    for key, (name, rule) in keys.items():
        value = found[name] = table[key]
        # Most values are integers in their range, and most time would go into asking `check` about them.
        if type(rule) is not tuple or type(value) is not int or not rule[0] <= value <= rule[1]:
            check(key, value, rule)
    return kinds[kind](**found)


def check(key: str, value: Any, rule: Any) -> None:
    """Refuses a value that its rule does not allow: (low, high) of an integer, the longest string, a type, or a list with the
    rule of each of its values.

    Raises:
        ServiceError: key, value and rule.
    """
    if isinstance(rule, list):
        if not isinstance(value, tuple) or len(value) > MAX_IN_FLIGHT:
            raise ServiceError(f"'{key}' = {short(value)} must be a list of at most {MAX_IN_FLIGHT} values")
        for v in value:
            check(f"{key}[]", v, rule[0])
    elif isinstance(rule, tuple):
        if type(value) is not int or not rule[0] <= value <= rule[1]:
            raise ServiceError(f"'{key}' = {short(value)} must be an integer from {rule[0]} to {rule[1]}")
    elif isinstance(rule, int):
        if not isinstance(value, str) or len(value) > rule:
            raise ServiceError(f"'{key}' = {short(value)} must be a string of at most {rule} characters")
    elif not isinstance(value, rule):
        raise ServiceError(f"'{key}' = {short(value)} must be of type {rule.__name__}")


def named(key: str, value: Any) -> dict[str, Any]:
    """A map with strings for keys, or a refusal."""
    if not isinstance(value, dict) or not all(isinstance(k, str) for k in value):
        raise ServiceError(f"'{key}' must be a map with strings for keys")
    return value


def short(value: object) -> str:
    """A value in a few characters, for messages."""
    text = repr(value) if isinstance(value, str | int | float | bool | type(None)) else type(value).__name__
    return text if len(text) <= 60 else text[:57] + "..."
