"""`DeviceRenderer`: encoded batches in, packed batches out. In: `EncodedBatch`. Out: `PackedBatch`, on the device.

Each image goes one of two ways. A whole, plain JPEG goes to the decoder, on a thread of its own, so that the next batch is
decoded while the caller uses this one. Everything else goes to the CPU renderer: other formats (a GPU has no decoder for
them), other colour spaces, damaged structure, and whatever the decoder failed on. What the CPU renderer cannot decode is
masked and entered in the ledger. What came masked stays masked.
"""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Collection
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray

from ... import _packer
from ...batch import FAILED, OK, PackedBatch, View
from ...config import RenderConfig
from ...errors import ConfigError, RenderError
from ...foreign import helpers
from ..encoded import EncodedBatch
from .decoding import Decode, DecodingThread
from .others import render_others
from .runs import MAX_IMAGES, Runs
from .tokens import stored_sizes, tokens_of

Places = NDArray[np.int64]


class Rendering:
    """A batch on its way through a `DeviceRenderer`."""

    def __init__(
        self,
        owner: DeviceRenderer,
        batch: EncodedBatch,
        places: Places,
        decode: Decode,
        others: Future[list[tuple[int, int]]],
    ) -> None:
        self._owner, self._batch, self._places, self._decode, self._others = owner, batch, places, decode, others

    @property
    def ready(self) -> bool:
        """Whether `wait` would return at once, but for images that the decoder failed on."""
        return self._decode.done.done() and self._others.done()

    def wait(self) -> PackedBatch:
        """The batch.

        Raises:
            RenderError: too many images failed, the decoder could not work at all, the batch is damaged, or it was given up.
        """
        self._decode.done.result()
        try:
            failed = self._others.result()
        except CancelledError:
            raise RenderError("this rendering was cancelled, or its renderer closed; submit it again") from None
        bad = self._places[sorted(self._decode.bad)]
        if len(bad):
            failed = failed + self._owner.render_on_cpu(self._batch, bad, self._decode.out)
        return self._owner.finish(self._batch, self._decode, failed)

    def cancel(self) -> None:
        """Gives it up; what is not yet started is skipped."""
        self._decode.cancelled = True
        self._others.cancel()


class DeviceRenderer(ABC):
    """Renders encoded batches with a decoder other than the engine's. Batches may be submitted from any thread.

    A decoder is a subclass of four names, and its `Runs`.

    Args:
        device: where the batches go; `cpu` gives numpy arrays, a CUDA device torch tensors there.
        threads: the decoder's threads where it has any, and as many of the CPU renderer; 0 means one per core, four at most.
        memory_mb: decoded images of the runs under way, in MiB; a single image may take more.
        ledger: path of the quarantine ledger (JSON lines) of what cannot be decoded; empty keeps it in memory alone.
        failure_limit: share of failed images in a window of 10,000 above which rendering stops with an error.

    Raises:
        ConfigError: a value that is not allowed.
    """

    name: ClassVar[str]
    """`decode = NAME`."""
    version: ClassVar[str]
    """Of the decoder's library: another may give other pixels."""
    revision: ClassVar[int]
    """Raised whenever the same files, settings and library would give other pixels."""
    filters: ClassVar[Collection[str]]
    """What it knows of `[render] filter`."""

    @classmethod
    def decoder_name(cls, device: torch.device | str) -> str:
        """What `render_id` calls this decoder: CPU and GPU give other pixels."""
        return f"{cls.name}{cls.revision}-{cls.version.replace('.', '_')}-{torch.device(device).type}"

    @abstractmethod
    def _runs(self, filter: str, views: int, threads: int) -> Runs:
        """The decoder, for one thread: images resized by `filter` to the sizes of so many views."""

    def __init__(
        self,
        device: torch.device | str = "cpu",
        *,
        threads: int = 0,
        memory_mb: int = 1024,
        ledger: str = "",
        failure_limit: float = 0.2,
    ) -> None:
        if str(device).partition(":")[0] not in ("cpu", "cuda"):
            raise ConfigError(f"device = '{device}' is not allowed; decode = '{self.name}' renders on 'cpu' or 'cuda'")
        self.device = torch.device(device)
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise ConfigError(f"device = '{device}', but torch sees no CUDA device here; take 'cpu'")
        if str(self.device) == "cuda":
            self.device = torch.device("cuda", torch.cuda.current_device())
        self._threads = threads or min(4, len(os.sched_getaffinity(0)))
        self._settings = RenderConfig(
            threads=self._threads, memory_mb=memory_mb, ledger=ledger, failure_limit=failure_limit
        )
        on_gpu = self.device.type == "cuda"
        # Patches are cut on one stream and those of the CPU renderer arrive on another, both beside the caller's.
        self._streams = [torch.cuda.Stream(self.device) for _ in range(2)] if on_gpu else [None, None]  # type: ignore[no-untyped-call]
        self._began: tuple[dict[str, Any], int] | None = None
        self._cpu: _packer.SlotRenderer | None = None
        self._thread: DecodingThread | None = None
        self._pool = ThreadPoolExecutor(1, f"navit-{self.name}-cpu")
        self._lock = threading.Lock()
        self._counts = {"images": 0, "by_cpu": 0, "failed": 0}
        self._closed = False

    def __call__(self, batch: EncodedBatch) -> PackedBatch:
        """Renders one batch and waits for it; see `submit` and `Rendering.wait`."""
        return self.submit(batch).wait()

    def submit(self, batch: EncodedBatch) -> Rendering:
        """Starts rendering a batch and returns at once.

        Raises:
            ConfigError: its filter is one that DALI does not have, or it is of another configuration than the first.
            RenderError: the batch is damaged, or this renderer is closed.
        """
        slots = batch.slots
        views: list[PackedBatch | View] = [slots] if slots.teacher is None else [slots, slots.teacher]
        cpu, thread = self._begin(batch.render, len(views))
        places = np.argwhere(slots.status == OK)
        at = (places[:, 0], places[:, 1])
        fields = (batch.spans, slots.sizes, batch.orientations, slots.crops, slots.flips)
        plain, crops, frames = cpu.prepare(batch.data, *(np.ascontiguousarray(a[at]) for a in fields))
        mine, frame = places[plain != 0], frames[plain != 0]
        top, left, height, width = crops.reshape(-1, 4)[plain != 0].T
        decode = Decode(
            files=[batch.file(s, e) for s, e in mine.tolist()],
            crops=np.stack([top, left, top + height, left + width], 1).astype(np.float32),
            sizes=[stored_sizes(view, mine, frame).astype(np.float32) for view in views],
            tokens=[tokens_of(view, mine, frame) for view in views],
            out=[self._blank(view) for view in views],
            nbytes=slots.sizes[mine[:, 0], mine[:, 1]].astype(np.int64).prod(1) * 3,
        )
        others = self._pool.submit(self.render_on_cpu, batch, places[plain == 0], decode.out)
        thread.put(decode)
        return Rendering(self, batch, mine, decode, others)

    def _begin(self, render: dict[str, Any], views: int) -> tuple[_packer.SlotRenderer, DecodingThread]:
        with self._lock:
            if self._closed:
                raise RenderError(f"this {self.name} renderer is closed; make another")
            if self._cpu is None or self._thread is None:
                if render["filter"] not in self.filters:
                    raise ConfigError(
                        f"render.filter = '{render['filter']}' is not one that decode = '{self.name}' has; choose one of "
                        f"{', '.join(self.filters)}, or decode = 'cpu'"
                    )
                self._began = (render, views)
                self._cpu = _packer.SlotRenderer(replace(self._settings, **render).to_json(), helpers())
                runs = self._runs(render["filter"], views, self._threads)
                # Two runs are under way at once, and an image is there decoded and resized.
                budget = self._settings.memory_mb * 2**20 // 4
                self._thread = DecodingThread(self.name, runs, MAX_IMAGES, budget, self._streams[0])
            if self._began != (render, views):
                raise ConfigError(
                    f"this renderer began with {self._began}, and this batch has {(render, views)} ([render], views); "
                    "make one for each configuration"
                )
            return self._cpu, self._thread

    def _blank(self, view: PackedBatch | View) -> torch.Tensor:
        shape = (view.segment_ids.size, view.patch_size**2 * 3)
        with torch.cuda.stream(self._streams[0]):  # nothing happens where it is None
            return torch.zeros(shape, dtype=torch.uint8, device=self.device)

    def render_on_cpu(self, batch: EncodedBatch, places: Places, out: list[torch.Tensor]) -> list[tuple[int, int]]:
        """Renders images on the CPU into their slots of `out`; used by `Rendering`.

        Args:
            batch: theirs.
            places: i64 `[n, 2]`, (sequence, image).
            out: patches of each view, u8 `[B·L, P·P·3]`, on the device.

        Returns:
            The (sequence, image) of those that failed.
        """
        if not len(places):
            return []
        assert self._cpu is not None
        patches, failed = render_others(self._cpu, batch, places)
        main, side = self._streams
        if side is not None and main is not None:
            side.wait_stream(main)  # the slots were cleared there
        with torch.cuda.stream(side):
            for to, (slots, pixels) in zip(out, patches, strict=True):
                to[torch.from_numpy(slots).to(self.device)] = torch.from_numpy(pixels).to(self.device)
        if side is not None:
            side.synchronize()
        with self._lock:
            self._counts["by_cpu"] += len(places)
        return failed

    def finish(self, batch: EncodedBatch, decode: Decode, failed: list[tuple[int, int]]) -> PackedBatch:
        """The packed batch, with what failed masked; used by `Rendering`."""
        assert self._cpu is not None
        slots = batch.slots
        self._cpu.passed(len(decode.files) - len(decode.bad))
        with self._lock:
            self._counts["images"] += int((slots.status == OK).sum()) - len(failed)
            self._counts["failed"] += len(failed) + int((slots.status == FAILED).sum())
        status = slots.status
        if failed:
            status = status.copy()
            status[tuple(np.array(failed).T)] = FAILED

        def filled(view: Any, patches: torch.Tensor) -> dict[str, Any]:
            segments = view.segment_ids
            if failed:
                segments = segments.copy()
                for s, e in failed:
                    segments[s][segments[s] == e] = -1
            patches = patches.view(*segments.shape, -1)
            return {"patches": patches if patches.is_cuda else patches.numpy(), "segment_ids": segments}

        teacher = slots.teacher and replace(slots.teacher, **filled(slots.teacher, decode.out[1]))
        boxes = _without_boxes(slots, failed) if failed and slots.boxes is not None else {}
        packed = replace(slots, **filled(slots, decode.out[0]), **boxes, status=status, teacher=teacher)
        if self.device.type == "cpu":
            return packed
        current = torch.cuda.current_stream(self.device)
        if decode.event is not None:
            current.wait_event(decode.event)
        elif self._streams[0] is not None:
            current.wait_stream(self._streams[0])
        for patches in decode.out:
            patches.record_stream(current)
        return packed.to(self.device, non_blocking=True)

    def settle(self) -> None:
        """Waits until the device has done all that it was told; at once on the CPU."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def stats(self) -> dict[str, Any]:
        """Counts since the start: images rendered, those among them by the CPU renderer, failed, pipelines built."""
        with self._lock:
            return {**self._counts, "pipelines": 0 if self._thread is None else self._thread.built}

    def failures(self) -> list[dict[str, Any]]:
        """The quarantine ledger of what could not be decoded: one entry per (epoch, image)."""
        return [] if self._cpu is None else self._cpu.failures()

    def close(self) -> None:
        """Stops the threads; what is under way fails. Safe to call twice."""
        with self._lock:
            self._closed, thread, self._thread = True, self._thread, None
        if thread is not None:
            thread.close()
        self._pool.shutdown(cancel_futures=True)

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes."""
        self.close()


def _without_boxes(slots: PackedBatch, failed: list[tuple[int, int]]) -> dict[str, Any]:
    """The fields of boxes without those of images that failed, as the engine masks them."""
    first, end = slots.box_spans
    found = {}
    for name, none in (("boxes", 0), ("box_labels", -1), ("box_flags", 0), ("box_places", -1)):
        values = getattr(slots, name).copy()
        flat = values.reshape(-1, *values.shape[2:])
        for s, e in failed:
            flat[first[s, e] : end[s, e]] = none
        found[name] = values
    return found
