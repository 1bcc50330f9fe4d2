"""Headers: the words that daemon and client exchange, as bytes and back.

In: messages as dataclasses. Out: one frame each (`NVT`, a version byte, a msgpack map). Whatever comes from a peer is
bounded before it is believed: a header has a largest size, a map only known keys, a number a range. Nothing is ever
unpickled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

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


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asks. Fields that a kind does not use keep their defaults and do not travel.

    Attributes:
        kind: `hello`, `batch`, `encoded`, `layout`, `cancel`, `credit` or `bye`.
        id: the client's number for the request; the answer carries it.
        client: who asks, for logs and metrics (`hello`).
        plan: name of one of the daemon's plans; empty for its first (`hello`).
        shared: whether the client can take shared memory (`hello`).
        plan_id: fingerprint of the plan (`batch`, `layout`); the one that the client has begun with, or empty (`hello`).
        render_id: fingerprint of the renderer (`batch`, `encoded`); as `plan_id` (`hello`).
        epoch: epoch (`batch`, `layout`).
        first: the batch's first sequence, or the first block.
        count: sequences of the batch (B), or blocks.
        block: the planning block that holds `first`, where the client knows it; −1 otherwise (`batch`, `encoded`).
        before: sequences before that block (`batch`, `encoded`).
        starved_us: microseconds that the trainer has waited for batches since its last request (`batch`, `encoded`).
        limit: bytes that the answer may have at most (`encoded`).
        ids: requests no longer wanted (`cancel`), or shared slots given back (`credit`, `batch`).
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
    block: int = -1
    before: int = 0
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


# What may stand in each message: the key, then (low, high) of an integer or the longest string.
_ID = {"id": NUMBER}
_IDS = _ID | {"ids": NUMBER}
_NAME = _ID | {"plan_id": 128, "epoch": NUMBER, "first": NUMBER}
_BATCH = _NAME | {"render_id": 128, "count": (1, 65536), "block": (-1, WIDE), "before": NUMBER, "starved_us": NUMBER}
_REQUESTS: dict[str, dict[str, Any]] = {
    "hello": _ID | {"client": 200, "plan": 200, "shared": bool, "plan_id": 128, "render_id": 128},
    "batch": _BATCH | {"ids": NUMBER},
    "encoded": _BATCH | {"limit": (1, WIDE)},
    "layout": _NAME | {"count": (0, MAX_LAYOUT)},
    "cancel": _IDS,
    "credit": _IDS,
    "bye": _ID,
}
_REPLIES: dict[str, dict[str, Any]] = {
    "hello": _ID | {"info": dict, "door": 200},
    "batch": _ID | {"patch_size": (1, 512), "slot": (-1, WIDE)},
    "encoded": _ID | {"patch_size": (1, 512)},
    "layout": _ID | {"run": NUMBER, "num_blocks": NUMBER},
    "error": _ID | {"error": 32, "message": 4000},
    "beat": _ID,
}
_LISTS = ("ids", "door")

_START = MAGIC + bytes([VERSION])

M = TypeVar("M", Request, Reply)


def _encode(message: Request | Reply, kinds: dict[str, dict[str, Any]], now: dict[str, Any]) -> bytes:
    table = {"kind": message.kind}
    for key in kinds[message.kind]:
        table[key] = now[key] if key in now else getattr(message, key)
    return _START + bytes(msgpack.packb(table))


def encode_request(request: Request, **now: Any) -> bytes:
    """The header frame of a request.

    Args:
        request: what is asked.
        now: values of fields that are settled when it is sent, in place of the request's own.
    """
    return _encode(request, _REQUESTS, now)


def encode_reply(reply: Reply) -> bytes:
    """The header frame of a reply."""
    return _encode(reply, _REPLIES, {})


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
        raise ServiceError(f"unknown kind {short(kind)}; allowed: {', '.join(kinds)}")
    allowed = kinds[kind]
    if table.keys() != allowed.keys():
        odd = sorted(map(short, table.keys() ^ allowed.keys()))
        raise ServiceError(f"'{kind}' has keys that are unknown or missing: {', '.join(odd[:8])}")
    for key, rule in allowed.items():
        value = table[key]
        # Most values are integers in their range, and most time would go into asking `check` about them.
        if type(rule) is not tuple or type(value) is not int or not rule[0] <= value <= rule[1] or key in _LISTS:
            check(key, value, rule)
    return cls(kind=kind, **table)


def check(key: str, value: Any, rule: Any) -> None:
    """Refuses a value that its rule does not allow: (low, high) of an integer, the longest string, or a type.

    Raises:
        ServiceError: key, value and rule.
    """
    if key in _LISTS:
        if not isinstance(value, tuple) or len(value) > MAX_IN_FLIGHT:
            raise ServiceError(f"'{key}' = {short(value)} must be a list of at most {MAX_IN_FLIGHT} values")
        for v in value:
            check(f"{key}[]", v, rule)
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
