"""The protocol of daemon and client, apart from sockets so that it can be tested and fuzzed alone. In three rooms:
`messages` (headers), `plan` (what fixes a batch's shapes), `frames` (arrays). `docs/protocol.md` says the same in prose.
"""

from .frames import batch_frames, error_of, error_reply, read_batch, read_counts, read_encoded, read_slot
from .messages import (
    MAGIC,
    MAX_IN_FLIGHT,
    MAX_LAYOUT,
    MAX_REPLY,
    MAX_REQUEST,
    MAX_TOGETHER,
    VERSION,
    WIDE,
    Reply,
    Request,
    decode_reply,
    decode_request,
    encode_reply,
    encode_request,
)
from .plan import BatchShape, Field, Limits, PlanInfo, batch_shape, encoded_fields

__all__ = [
    "MAGIC",
    "MAX_IN_FLIGHT",
    "MAX_LAYOUT",
    "MAX_REPLY",
    "MAX_REQUEST",
    "MAX_TOGETHER",
    "VERSION",
    "WIDE",
    "BatchShape",
    "Field",
    "Limits",
    "PlanInfo",
    "Reply",
    "Request",
    "batch_frames",
    "batch_shape",
    "decode_reply",
    "decode_request",
    "encode_reply",
    "encode_request",
    "encoded_fields",
    "error_of",
    "error_reply",
    "read_batch",
    "read_counts",
    "read_encoded",
    "read_slot",
]
