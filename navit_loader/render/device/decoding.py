"""The thread that keeps a decoder busy. In: parts of batches. Out: their patches in their slots, and which images it failed on.

One run is decoded while the one before it is cut into patches. After a failure every part that was under way runs again,
alone, so that it is certain whose fault it is.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...errors import NavitError, RenderError
from .runs import DEPTH, Broken, Chunk, Runs
from .tokens import Tokens

log = logging.getLogger("navit_loader.decode")

_TRIES = 3  # runs over the same images before all of them go to the CPU renderer


@dataclass(eq=False)
class Decode:
    """The images of one batch that the decoder gets; n of them.

    Attributes:
        files: n u8 arrays.
        crops: f32 `[n, 4]`, see `Chunk`.
        sizes: for each view f32 `[n, 2]`, see `Chunk`.
        tokens: for each view the kept tokens.
        out: for each view u8 `[B·L, P·P·3]`, where the patches go.
        nbytes: i64 `[n]`, bytes of each image when it is decoded.
        bad: images that it could not decode.
        done: resolved when all others have their patches; on a GPU, when their kernels are queued before `event`.
        event: what a stream has to wait for on a GPU.
        cancelled: nobody wants them any more.
    """

    files: list[NDArray[np.uint8]]
    crops: NDArray[np.float32]
    sizes: list[NDArray[np.float32]]
    tokens: list[Tokens]
    out: list[torch.Tensor]
    nbytes: NDArray[np.int64]
    bad: list[int] = field(default_factory=list)
    done: Future[None] = field(default_factory=Future)
    event: torch.cuda.Event | None = None
    cancelled: bool = False
    left: int = 0


@dataclass(eq=False, slots=True)
class _Part:
    """Images of one `Decode` for one run, by number."""

    decode: Decode
    images: list[int]
    tries: int = 0

    def chunk(self) -> Chunk:
        decode = self.decode
        sizes = [np.ascontiguousarray(size[self.images]) for size in decode.sizes]
        return Chunk([decode.files[n] for n in self.images], decode.crops[self.images], sizes)


class DecodingThread:
    """Runs a decoder until it is closed. `put` may be called from any thread.

    Args:
        name: the decoder's, for messages.
        runs: its runs; this thread's alone from now on.
        most: images of one run at most.
        nbytes: bytes of the decoded images of one run at most; a single image may have more.
        stream: CUDA stream on which patches are cut, or None.
    """

    def __init__(self, name: str, runs: Runs, most: int, nbytes: int, stream: torch.cuda.Stream | None) -> None:
        self._name, self._runs, self._most, self._nbytes, self._stream = name, runs, most, nbytes, stream
        self._queue: queue.Queue[_Part | None] = queue.Queue()
        self._again: deque[_Part] = deque()
        self._flying: deque[_Part] = deque()
        self._used: deque[tuple[torch.cuda.Event, Any]] = deque()
        self._closed = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._work, name=f"navit-{name}", daemon=True)
        self._thread.start()

    @property
    def built(self) -> int:
        """How often the decoder was made."""
        return self._runs.built

    def put(self, decode: Decode) -> None:
        """Queues the images of a batch, divided into runs; they fail at once where the thread is closed."""
        parts: list[_Part] = []
        held = 0
        for n, size in enumerate(decode.nbytes.tolist()):
            if not parts or held + size > self._nbytes or len(parts[-1].images) == self._most:
                parts.append(_Part(decode, []))
                held = 0
            parts[-1].images.append(n)
            held += size
        decode.left = len(parts)
        if not parts:
            decode.done.set_result(None)
        with self._lock:
            for part in parts:
                if self._closed:
                    self._end(part, _closed())
                else:
                    self._queue.put(part)

    def close(self) -> None:
        """Ends the thread after the run in hand; what was queued fails."""
        with self._lock:
            self._closed = True
            self._queue.put(None)
        self._thread.join()

    def _next(self) -> _Part | None:
        """What to start now; None where a run under way is to be taken first."""
        if self._closed:
            raise EOFError
        if self._again:
            return None if self._flying else self._again.popleft()
        try:
            part = self._queue.get(block=not self._flying)
        except queue.Empty:
            return None
        if part is None:
            self._queue.put(None)
            raise EOFError
        return part

    def _work(self) -> None:
        with nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
            try:
                while True:
                    self._step(self._next())
            except EOFError:
                pass
        # Nothing is queued behind the end that `close` put there.
        while (part := self._queue.get()) is not None:
            self._again.append(part)
        for part in (*self._flying, *self._again):
            self._end(part, _closed())
        self._runs.close()

    def _step(self, part: _Part | None) -> None:
        try:
            if part is not None and part.decode.cancelled:
                self._end(part)
            elif part is not None:
                self._flying.append(part)
                self._runs.start(part.chunk())
            if self._flying and (part is None or self._again or len(self._flying) == DEPTH):
                self._cut()
        except Broken as e:
            lost = list(self._flying)
            self._flying.clear()
            if len(lost) == 1:
                self._blame(lost[0], e)
            self._again.extend(p for p in lost if p.images)
        except Exception as e:
            error = e if isinstance(e, NavitError) else RenderError(f"decoding with {self._name} failed: {e!r}")
            error.__cause__ = e if error is not e else e.__cause__
            lost = list(self._flying)
            self._flying.clear()
            self._runs.close()
            for one in lost:
                self._end(one, error)

    def _cut(self) -> None:
        """Takes the oldest run and writes its patches."""
        part = self._flying[0]
        decode = part.decode
        images = self._runs.take(self._stream)
        self._flying.popleft()
        for view, tokens, out in zip(images, decode.tokens, decode.out, strict=True):
            mine = tokens if len(part.images) == len(decode.files) else tokens.of(part.images)
            self._runs.cut(view, mine, int(np.sqrt(out.shape[1] // 3)), out)
        if self._stream is not None:
            decode.event = self._stream.record_event()
            # The decoder may write to its buffers again only when the patches have been read from them.
            self._used.append((decode.event, images))
            while self._used and self._used[0][0].query():  # type: ignore[no-untyped-call]
                self._used.popleft()
        self._end(part)

    def _blame(self, part: _Part, broken: Broken) -> None:
        """Takes the images that cannot be decoded out of a part that failed alone."""
        part.tries += 1
        guilty = [part.images[n] for n in broken.samples if n < len(part.images)]
        if not guilty or part.tries == _TRIES:
            guilty = list(part.images)
        log.warning(
            "%s could not decode %d of %d images; the CPU renderer does", self._name, len(guilty), len(part.images)
        )
        part.decode.bad.extend(guilty)
        part.images = [n for n in part.images if n not in set(guilty)]
        if not part.images:
            self._end(part)

    def _end(self, part: _Part, error: Exception | None = None) -> None:
        decode = part.decode
        decode.left -= 1
        if decode.done.done():
            return
        if error is not None:
            decode.done.set_exception(error)
        elif decode.left == 0:
            decode.done.set_result(None)


def _closed() -> RenderError:
    return RenderError("this renderer is closed; make another")
