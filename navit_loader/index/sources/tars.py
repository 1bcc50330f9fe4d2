"""A WebDataset tar: images with `.cls`, `.txt` or `.json` beside them, grouped by key, read in place.

In: a plain tar. Out: rows whose offset and length point into it. Which members belong together is for `keys` to say.
`.cls` holds a label, `.txt` a caption, `.json` an object with `label` (or `cls`) and `caption` (or `text`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from ... import _packer
from ...errors import IndexFileError
from ...foreign import helpers
from ..tokens import checked_caption
from .keys import AGAIN, TEXTS, group
from .labels import Labels, from_json, resolve_label
from .remote import stamp
from .rows import IMAGE_SUFFIXES, Job, kind_of, known_container, label_lists, make_rows, text_names

_Sides = dict[bytes, tuple[bytes | None, str | None]]


class TarSource:
    """The images in one plain tar.

    Args:
        path: the tar, absolute.

    Raises:
        IndexFileError: its path is not UTF-8, so no index can hold it.
    """

    table = False

    def __init__(self, path: str) -> None:
        try:
            path.encode()
        except UnicodeEncodeError:
            raise IndexFileError(f"the path {path!r} is not UTF-8; rename it") from None
        self.shard = path

    def prepare(self, given: bool) -> list[str] | None:
        """None: tars name no classes."""
        return None

    def scan(self, job: Job) -> Iterator[tuple[float, pa.RecordBatch]]:
        """Reads the headers of the tar; see `Source.scan`. A tar that an earlier build knows unchanged is not read."""
        length, mtime_ns = stamp(self.shard)
        if (known := known_container(job, self.shard, (length, mtime_ns))) is not None:
            yield 1.0, known
            return
        found = _packer.probe_tar(os.fsencode(self.shard), sorted(IMAGE_SUFFIXES), list(TEXTS), helpers())
        for end, count, name in found["others"]:
            job.leave_out(kind_of(end), self._uri(name), count)
        sides, repeated, older = _side_files(found["texts"])
        grouped = group(found["names"], sides)
        grouped.left_out[AGAIN] += older
        for reason, members in grouped.left_out.items():
            if members:
                job.leave_out(reason, self._uri(members[0]), len(members))
        raw = [found["names"][i] for i in grouped.rows]
        n = len(raw)
        broken = dict(found["errors"])
        reasons: dict[int, str] = {}
        for at, i in enumerate(grouped.rows):
            if why := broken.get(i) or grouped.reasons.get(i):
                reasons[at] = why
        labels: list[list[int]] = []
        captions: list[str | None] = []
        said: list[tuple[str, Any]] = []
        for at, stem in enumerate(grouped.stems):
            label: list[int] = []
            caption = None
            try:
                if at not in reasons:
                    if stem in repeated:
                        raise ValueError(f"'{repeated[stem]}' stands twice in this tar, in small and capital letters")
                    label, caption, value = _annotations(stem, sides, job)
                    said.append((self._uri(raw[at]), value))
            except ValueError as e:
                reasons[at] = str(e)
            labels.append(label)
            captions.append(caption)
        if doubt := Labels.of(said).doubt:
            raise IndexFileError(doubt)
        if found["fault"]:
            # One more row stands for the tar as a whole.
            reasons[n] = found["fault"]
        extra = 1 if found["fault"] else 0
        order = np.array(sorted(range(n), key=raw.__getitem__) + [n] * extra, np.int64)
        names, unreadable = text_names([*raw, *([b""] * extra)])
        columns: dict[str, Any] = {
            name: np.concatenate([found[name][grouped.rows], np.zeros(extra, found[name].dtype)])[order]
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

    def _uri(self, name: bytes) -> str:
        return f"{self.shard}#{name.decode(errors='backslashreplace')}"


def _side_files(
    texts: list[tuple[bytes, bytes | None, str | None]],
) -> tuple[_Sides, dict[bytes, str], list[bytes]]:
    """Label and caption files by name with its end in lower case, the last of each name; the stems that have two of one kind,
    with the name of one; and the names that stood there before."""
    sides: _Sides = {}
    written: dict[bytes, bytes] = {}
    repeated: dict[bytes, str] = {}
    older: list[bytes] = []
    for name, content, reason in texts:
        stem, _, end = name.rpartition(b".")
        own = stem + b"." + end.lower()
        if written.setdefault(own, name) != name:
            repeated[stem] = name.decode(errors="backslashreplace")
        elif own in sides:
            older.append(name)
        sides[own] = (content, reason)
    return sides, repeated, older


def _annotations(stem: bytes, sides: _Sides, job: Job) -> tuple[list[int], str | None, Any]:
    """Labels and caption of one image, and its label as it is written.

    Raises:
        ValueError: names the label or caption file and says what is wrong with it.
    """
    label: Any = None
    caption: Any = None
    for suffix in TEXTS:
        side = sides.get(stem + b"." + suffix.encode())
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
        except ValueError as e:
            shown = stem.decode(errors="backslashreplace")
            raise ValueError(f"'{shown}.{suffix}': {e}") from None
    return resolve_label(label, job.classes), caption, label


def _from_json(text: str, label: Any, caption: Any) -> tuple[Any, Any]:
    entry = from_json(text)
    if not isinstance(entry, dict):
        raise ValueError("not a JSON object")
    # A file of its own counts before the same field of the object.
    label = entry.get("label", entry.get("cls")) if label is None else label
    caption = entry.get("caption", entry.get("text")) if caption is None else caption
    return label, caption
