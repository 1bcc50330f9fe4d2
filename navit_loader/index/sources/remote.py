"""Sources in buckets and on web servers: objects beneath a prefix, and what tars and Parquet files need to be read there.

In: URLs. Out: rows, and files that pyarrow can read. All requests are the engine's, so credentials, retries and limits are
the same while indexing and while rendering.
"""

from __future__ import annotations

import copy
import io
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from ... import _packer
from ...errors import IndexFileError
from ...foreign import helpers
from .folder import CHUNK
from .rows import IMAGE_SUFFIXES, Job, KnownFiles, in_parts, kind_of, make_rows, single_labels, text_names

SCHEMES = ("s3", "gs", "az", "http", "https")
"""What a URL may start with."""

ODD = "whose keys have an empty part, '.', '..' or a control character, so that nothing can be asked for by them"
"""The reason for which objects that cannot be asked for are left out."""


def is_remote(spec: str) -> bool:
    """Whether a source is a URL."""
    return "://" in spec


def refuse_secrets(spec: str) -> None:
    """Refuses a URL with what may be a secret, which an index would keep.

    Raises:
        IndexFileError: user and password, or a query such as a signature.
    """
    if not is_remote(spec):
        return
    address = _packer.without_secrets(spec)
    authority, _, rest = spec.partition("://")[2].partition("/")
    if "@" in authority:
        raise IndexFileError(
            f"'{address}' has user and password in it, which an index would keep: leave them away, and put 'machine HOST login "
            "USER password PASSWORD' into ~/.netrc, or the file that NETRC names"
        )
    if "?" in authority + rest:
        raise IndexFileError(
            f"'{address}' has a query, such as a signature, which an index would keep and which expires: leave it away, and "
            "put the whole address into a line of the file that NAVIT_SIGNED names; other credentials come from the "
            "environment (AWS_…, GOOGLE_…, AZURE_…; for web servers from ~/.netrc)"
        )


def stamp(shard: str) -> tuple[int, int]:
    """Bytes of a container, and its modification time in nanoseconds since 1970; −1 where there is no such file here.

    Raises:
        IndexFileError: a remote one that is missing, or refused.
    """
    if is_remote(shard):
        return _packer.remote_meta(shard)
    try:
        found = os.stat(shard)
    except OSError:
        return -1, -1
    return found.st_size, found.st_mtime_ns


class RemoteFile(io.RawIOBase):
    """An object as a file to read, for pyarrow.

    Args:
        url: the object.

    Raises:
        IndexFileError: it is missing, or refused.
    """

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url, self._at = url, 0
        self._length = _packer.remote_meta(url)[0]

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """The position."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Moves; see `io.IOBase.seek`."""
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._length}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Reads from the position on; one request."""
        n = min(len(buffer), max(0, self._length - self._at))
        if n:
            buffer[:n] = _packer.remote_read(self._url, self._at, n)
            self._at += n
        return n


class BucketSource:
    """The image objects beneath one prefix, a class per folder at its top; see `FolderSource`.

    Args:
        url: the prefix, ending in `/`.
    """

    table = False

    def __init__(self, url: str) -> None:
        self.shard = url
        self._objects: list[tuple[str, int, int]] = []
        self._others: list[str] = []
        self._odd: list[str] = []

    def prepare(self, given: bool) -> list[str] | None:
        """Lists the objects. Returns the names of the top folders that hold images.

        Raises:
            IndexFileError: the bucket refuses, or the server has no listing.
        """
        found, self._odd = _packer.remote_list(self.shard)
        self._objects = sorted(
            (each for each in found if _end(each[0]) in IMAGE_SUFFIXES), key=lambda each: each[0].encode()
        )
        self._others = [key for key, *_ in found if _end(key) not in IMAGE_SUFFIXES and not key.endswith("/")]
        return sorted({key.split("/", 1)[0] for key, *_ in self._objects if "/" in key}, key=str.encode)

    def parts(self, known: pa.Table | None) -> Iterator[tuple[BucketSource, pa.Table | None]]:
        """The same rows as those of several sources one after the other, each with what is known of it; prepared."""
        for number, (objects, own) in enumerate(in_parts(self._objects, lambda each: each[0].encode(), known)):
            # The first says what there is to say of the whole.
            part = BucketSource(self.shard) if number else copy.copy(self)
            part._objects = list(objects)
            yield part, own

    def scan(self, job: Job) -> Iterator[tuple[float, pa.RecordBatch]]:
        """Probes the objects; see `Source.scan`.

        Raises:
            IndexFileError: a folder that the class table lacks.
        """
        for key in self._others:
            job.leave_out(kind_of(_end(key).encode()), self.shard + key)
        for key in self._odd:
            job.leave_out(ODD, self.shard + key)
        names = [key.encode() for key, *_ in self._objects]
        known = KnownFiles.look_up(job.known.get(self.shard), names)
        for start in range(0, len(names), CHUNK):
            part = slice(start, min(start + CHUNK, len(names)))
            objects = self._objects[part]
            length, mtime_ns = (np.array([each[i] for each in objects], np.int64) for i in (1, 2))
            stamps = known.stamps(part)
            same = np.zeros(len(objects), bool)
            if stamps is not None:
                same = (stamps[0] == length) & (stamps[1] == mtime_ns)
            probed: dict[str, Any] = {
                "width": np.zeros(len(objects), np.int32),
                "height": np.zeros(len(objects), np.int32),
                "orientation": np.ones(len(objects), np.uint8),
                "format": np.full(len(objects), _packer.FORMAT_UNCHANGED, np.uint8),
            }
            new = np.flatnonzero(~same)
            found = _packer.probe_objects(self.shard, [(objects[i][0], objects[i][1]) for i in new], helpers())
            for name, column in probed.items():
                column[new] = found[name]  # type: ignore[literal-required]
            if same.any():
                known.fill(part, np.flatnonzero(same), probed)
                job.reused += int(same.sum())
            labels = np.array([self._label(key, job) for key, *_ in objects], np.int64)
            columns = probed | {"length": length, "mtime_ns": mtime_ns, "labels": single_labels(labels)}
            reasons = {int(new[i]): reason for i, reason in found["errors"]}
            yield part.stop / len(names), make_rows(self.shard, text_names(names[part])[0], columns, reasons)

    def _label(self, key: str, job: Job) -> int:
        top, slash, _ = key.partition("/")
        if not slash:
            return -1
        if job.classes is None or top not in job.classes:
            raise IndexFileError(f"folder '{self.shard}{top}' is no class of the class table given")
        return job.classes[top]


def _end(key: str) -> str:
    """The lower-case end of a key's name; `.` where any part of it is hidden."""
    _, dot, end = key.rpartition("/")[2].rpartition(".")
    return "." if any(part.startswith(".") for part in key.split("/")) else end.lower() if dot else ""
