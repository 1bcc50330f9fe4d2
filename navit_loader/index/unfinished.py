"""What a build has done so far, on disk, so that a killed one goes on where it was.

In: batches of rows as sources yield them. Out: the same batches, now or after a restart, from the folder
`INDEX.building` beside the index, which is locked while a build runs and gone after it. Each run writes a file of its
own; a torn end is left out.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from types import TracebackType

import pyarrow as pa

from ..errors import IndexFileError, reason
from .sources.rows import ROWS


class Journal:
    """The journal of one build.

    Args:
        output: path of the index to be built.
        parameters: all that labels and captions in containers depend on besides the containers.

    Raises:
        IndexFileError: the place cannot be written, or another process builds the same index.
    """

    def __init__(self, output: str, parameters: str) -> None:
        self.folder = f"{output}.building"
        try:
            with suppress(FileExistsError):
                os.mkdir(self.folder)
            self._lock = os.open(self.folder, os.O_RDONLY)
        except OSError as e:
            raise IndexFileError(
                f"'{self.folder}' cannot be made: {e.strerror}; choose another place for the index"
            ) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise IndexFileError(f"another process is building '{output}' (it holds '{self.folder}')") from None
        self._adopted: list[str] = []
        self._schema = ROWS.with_metadata({"parameters": parameters})
        numbers = sorted(int(n) for name in os.listdir(self.folder) if (n := name.removesuffix(".arrows")).isdigit())
        self._old = [os.path.join(self.folder, f"{n}.arrows") for n in numbers]
        self.path = os.path.join(self.folder, f"{max(numbers, default=-1) + 1}.arrows")
        try:
            with self._written():
                self._sink = pa.OSFile(self.path, "wb")
                self._writer = pa.ipc.new_stream(self._sink, self._schema)
        except IndexFileError:
            os.close(self._lock)
            raise

    def known(self) -> list[tuple[bool, list[pa.RecordBatch]]]:
        """For each earlier run that was killed, newest last: whether it had the same parameters, and its batches."""
        found = []
        for path in self._old:
            batches: list[pa.RecordBatch] = []
            # The run was killed while it wrote a batch: what came before that is whole.
            with suppress(pa.ArrowInvalid, OSError):
                batches.extend(self._read(path))
            same = bool(batches) and batches[0].schema.metadata == self._schema.metadata
            found.append((same, batches))
        return found

    def append(self, batch: pa.RecordBatch) -> None:
        """Adds one batch; it outlives this process from here on.

        Raises:
            IndexFileError: it cannot be written.
        """
        with self._written():
            self._writer.write_batch(batch)

    def adopt(self, path: str) -> None:
        """Adds the batches of a file that another process wrote, behind those that were added before."""
        self._adopted.append(path)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """All batches of this run, in order, memory-mapped; nothing can be appended after it.

        Raises:
            IndexFileError: what is left cannot be written.
        """
        self._close()
        for path in (self.path, *self._adopted):
            yield from self._read(path)

    def _read(self, path: str) -> Iterator[pa.RecordBatch]:
        with pa.memory_map(path) as source:
            reader = pa.ipc.open_stream(source)
            if reader.schema.equals(self._schema):
                yield from reader

    def _close(self) -> None:
        if not self._sink.closed:
            with self._written():
                self._writer.close()
                self._sink.close()

    @contextmanager
    def _written(self) -> Iterator[None]:
        """What the system says of writing there, on one line."""
        try:
            yield
        except OSError as e:
            raise IndexFileError(
                f"'{self.folder}' cannot be written: {reason(e)}; make space or give permission and start again, which goes "
                "on from there, or choose another place for the index"
            ) from None

    def remove(self) -> None:
        """The index is written; nothing of the journal is needed."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A full disk has been said already.
        with suppress(IndexFileError) if value is not None else nullcontext():
            self._close()
        os.close(self._lock)
