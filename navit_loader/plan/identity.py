"""What a plan and its pixels are called: `plan_id` and `render_id`.

In: what decides where things go, and what decides the pixels. Out: two names, each of parts, so that of two names that
differ it can be said in what. They travel in every request and every saved state; apart, since trainers need them
without an engine.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

PLAN_VERSION = 2
"""Raised whenever the same configuration and index would give another plan."""

RENDER_VERSION = 1
"""Raised whenever the same files and settings would give other pixels."""

PLAN_PARTS = ("the plan's version", "the index (rows, sizes, labels, caption lengths or classes)", "[plan]", "mixture")
RENDER_PARTS = ("the renderer's version", "the decoder", "the index (files or places)", "[render]")


def digest(*parts: object) -> str:
    """A short name for what the parts say: 12 hexadecimal digits of SHA-256 over their canonical JSON."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def plan_id(fingerprints: Sequence[str], plan: dict[str, Any], weights: Sequence[float]) -> str:
    """Covers the columns that planning reads, `[plan]` and the mixture's weights; never batch size, ranks or paths."""
    return ".".join((str(PLAN_VERSION), digest(*fingerprints), digest(plan), digest(*weights)))


def render_id(fingerprints: Sequence[str], decoder: str, settings: dict[str, Any]) -> str:
    """Covers the other columns, the decoder and the settings that change pixels."""
    return ".".join((str(RENDER_VERSION), decoder, digest(*fingerprints), digest(settings)))


def decoder_of(render_id: str) -> str:
    """The decoder that a `render_id` names; empty where it is none."""
    parts = render_id.split(".")
    return parts[1] if len(parts) == len(RENDER_PARTS) else ""


def with_decoder(render_id: str, decoder: str) -> str:
    """The same files and settings with another decoder before the one named so far, which keeps what the first leaves."""
    version, own, *rest = render_id.split(".")
    return ".".join((version, f"{decoder}+{own}", *rest))


def same_but_for_index(theirs: str, ours: str) -> bool:
    """Whether two `plan_id`s differ in their indexes at most."""
    a, b = theirs.split("."), ours.split(".")
    return len(a) == len(b) == len(PLAN_PARTS) and a[0] == b[0] and a[2:] == b[2:]


def difference(theirs: str, ours: str, parts: Sequence[str]) -> str:
    """In which parts two names differ, in words; `PLAN_PARTS` or `RENDER_PARTS` are the parts' names."""
    pairs = list(zip_longest(theirs.split("."), ours.split(".")))
    if len(pairs) != len(parts):
        return "they are not names of one kind"
    return "other: " + "; ".join(part for part, (a, b) in zip(parts, pairs, strict=True) if a != b)
