"""A WebDataset tar: images with `.cls`, `.txt` or `.json` beside them, grouped by key, read in place.

In: a plain tar. Out: rows whose offset and length point into it. The key is all of a member's name before the first
dot of its base name. `.cls` holds a label, `.txt` a caption, `.json` an object with `label` (or `cls`) and `caption`
(or `text`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from ... import _packer
from ...errors import IndexFileError
from ...foreign import helpers
from ..tokens import checked_caption
from .remote import stamp
from .rows import IMAGE_SUFFIXES, Job, known_container, label_lists, make_rows, resolve_label, text_names

_TEXTS = ["cls", "txt", "json"]
_Sides = dict[bytes, tuple[bytes | None, str | None]]


class TarSource:
    """The images in one plain tar.

    Args:
        path: the tar, absolute.

    Raises:
        IndexFileError: its path is not UTF-8, so no index can hold it.
    """

    def __init__(self, path: str) -> None:
        try:
            path.encode()
        except UnicodeEncodeError:
            raise IndexFileError(f"the path {path!r} is not UTF-8; rename it") from None
        self.shard = path

    def prepare(self) -> list[str] | None:
        """None: tars name no classes."""
        return None

    def scan(self, job: Job) -> Iterator[tuple[float, pa.RecordBatch]]:
        """Reads the headers of the tar; see `Source.scan`. A tar that an earlier build knows unchanged is not read."""
        length, mtime_ns = stamp(self.shard)
        if (known := known_container(job, self.shard, (length, mtime_ns))) is not None:
            yield 1.0, known
            return
        found = _packer.probe_tar(os.fsencode(self.shard), sorted(IMAGE_SUFFIXES), _TEXTS, helpers())
        job.ignored += found["others"]
        raw: list[bytes] = found["names"]
        n = len(raw)
        reasons = dict(found["errors"])
        sides, repeated = _side_files(found["texts"])
        labels: list[list[int]] = []
        captions: list[str | None] = []
        seen: set[bytes] = set()
        for i, name in enumerate(raw):
            key = _key(name)
            if key in seen:
                reasons.setdefault(i, "its key stands twice in this tar; the first image is used")
            seen.add(key)
            label: list[int] = []
            caption = None
            try:
                if key in repeated:
                    raise ValueError(f"'{repeated[key]}' stands twice in this tar")
                label, caption = _annotations(key, sides, job)
            except ValueError as e:
                reasons.setdefault(i, str(e))
            labels.append(label)
            captions.append(caption)
        if found["fault"]:
            # One more row stands for the tar as a whole.
            reasons[n] = found["fault"]
        extra = 1 if found["fault"] else 0
        order = np.array(sorted(range(n), key=raw.__getitem__) + [n] * extra, np.int64)
        names, unreadable = text_names([*raw, *([b""] * extra)])
        columns: dict[str, Any] = {
            name: np.concatenate([found[name], np.zeros(extra, found[name].dtype)])[order]
            for name in ("offset", "length", "check", "width", "height", "orientation", "format")
        }
        captions = [*captions, *([None] * extra)]
        tokens = job.tokenize(captions)
        columns |= {
            "labels": label_lists([*labels, *([[]] * extra)]).take(pa.array(order)),
            "caption": pa.array(captions, pa.large_utf8()).take(pa.array(order)),
            "caption_tokens": tokens["caption_tokens"][order],
            "caption_ids": tokens["caption_ids"].take(pa.array(order)),
            "container_length": np.full(n + extra, found["container_length"], np.int64),
            "mtime_ns": np.full(n + extra, mtime_ns, np.int64),
        }
        reasons |= unreadable
        yield (
            1.0,
            make_rows(
                self.shard,
                names.take(pa.array(order)),
                columns,
                {at: reasons[i] for at, i in enumerate(order) if i in reasons},
            ),
        )


def _key(name: bytes) -> bytes:
    folder, slash, base = name.rpartition(b"/")
    return folder + slash + base.partition(b".")[0]


def _side_files(texts: list[tuple[bytes, bytes | None, str | None]]) -> tuple[_Sides, dict[bytes, str]]:
    """Label and caption files by lower-case name, and the keys that have two of one kind, with its name."""
    sides: _Sides = {}
    repeated: dict[bytes, str] = {}
    for name, content, reason in texts:
        key = _key(name)
        own = key + name[len(key) :].lower()
        if own in sides:
            repeated[key] = name.decode(errors="backslashreplace")
        sides[own] = (content, reason)
    return sides, repeated


def _annotations(key: bytes, sides: _Sides, job: Job) -> tuple[list[int], str | None]:
    """Labels and caption of one key.

    Raises:
        ValueError: names the label or caption file and says what is wrong with it.
    """
    label: Any = None
    caption: Any = None
    for suffix in _TEXTS:
        side = sides.get(key + b"." + suffix.encode())
        if side is None:
            continue
        content, reason = side
        try:
            if content is None:
                raise ValueError(reason)
            text = content.decode().strip()
            if suffix == "cls":
                label = text
            elif suffix == "txt":
                caption = text
            else:
                label, caption = _from_json(text, label, caption)
            caption = checked_caption(caption)
            if suffix != "txt":
                resolve_label(label, job.classes)
        except (ValueError, RecursionError) as e:
            shown = key.decode(errors="backslashreplace")
            raise ValueError(f"'{shown}.{suffix}': {e}") from None
    return resolve_label(label, job.classes), caption


def _from_json(text: str, label: Any, caption: Any) -> tuple[Any, Any]:
    entry = json.loads(text)
    if not isinstance(entry, dict):
        raise ValueError("not a JSON object")
    # A file of its own counts before the same field of the object.
    label = entry.get("label", entry.get("cls")) if label is None else label
    caption = entry.get("caption", entry.get("text")) if caption is None else caption
    return label, caption
