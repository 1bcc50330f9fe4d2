"""From the loader's memory to the device, while the step before is still running.

In: any loader of this package. Out: the same batches as torch tensors on a device, and the same state. One thread
takes batches and starts their copy to the device on a stream of its own; the trainer's stream waits for that copy, its
thread does not. A batch that was rendered in this process lies in one block of memory, which the engine uses again and
again: such blocks are pinned when they are first seen, and go to the device as they are. Anything else goes through pinned
buffers. On the CPU the same path runs with plain memory.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields, replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from .. import _packer
from ..batch import PackedBatch, View
from ..errors import ConfigError, RenderError, StateError, needed

if TYPE_CHECKING:
    import torch
else:
    torch = needed("torch")


class Loader(Protocol):
    """What `PackedLoader` and `RemoteLoader` have in common."""

    def __iter__(self) -> Iterator[PackedBatch]: ...
    def __len__(self) -> int: ...
    def state_dict(self) -> dict[str, Any]: ...  # noqa: D102
    def load_state_dict(self, state: dict[str, Any]) -> None: ...  # noqa: D102
    def set_epoch(self, epoch: int) -> None: ...  # noqa: D102


PINNED_BYTES = 1 << 20
"""A block of fewer bytes goes through a buffer: pinning takes whole pages, which small blocks share with others."""

PORTABLE = 1
"""cudaHostRegisterPortable: pinned for all devices of the process."""


@cache
def _kind(dtype: np.dtype[Any]) -> torch.dtype:
    """torch's name of a dtype."""
    return torch.from_numpy(np.empty(0, dtype)).dtype


class _Slot:
    """What one copy reads: buffers, or the batch itself; and the event after which they may be written again."""

    def __init__(self, pin: bool) -> None:
        self._pin = pin
        self._buffers: dict[tuple[str, tuple[int, ...]], torch.Tensor] = {}
        self.copied: torch.cuda.Event | None = None
        self.held: _packer.Buffer | None = None

    def free(self) -> None:
        """Waits until the copy is over; then buffers and batch may be written again."""
        if self.copied is not None:
            self.copied.synchronize()
        self.held = None

    def stage(self, name: str, array: np.ndarray[Any, Any]) -> torch.Tensor:
        key = (name, array.shape)
        if key not in self._buffers:
            self._buffers[key] = torch.empty(array.shape, dtype=_kind(array.dtype), pin_memory=self._pin)
        np.copyto(self._buffers[key].numpy(), array)
        return self._buffers[key]


def _block(arrays: Iterable[Any]) -> _packer.Buffer | None:
    """The one block of the engine that all arrays lie in, if there is one."""
    found: set[int] = set()
    owner: Any = None
    for array in arrays:
        owner = array
        while isinstance(owner, np.ndarray):
            owner = owner.base
        found.add(id(owner))
    return owner if len(found) == 1 and isinstance(owner, _packer.Buffer) else None


def _pinned(block: _packer.Buffer) -> bool:
    """Whether a block is pinned, now at the latest; False where it is small.

    Raises:
        RenderError: the system allows no more pinned memory.
    """
    if block.bound:
        return True
    if block.nbytes < PINNED_BYTES:
        return False
    runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    address = block.bytes().ctypes.data
    if status := int(runtime.cudaHostRegister(address, block.nbytes, PORTABLE)):
        raise RenderError(
            f"a batch of {block.nbytes:,} bytes cannot be pinned (CUDA error {status}); lower render.memory_mb, "
            "render.prefetch or data.batch_size"
        )
    return block.bind(partial(_unpin, runtime, address, torch.cuda.current_device(), os.getpid()))


def _unpin(runtime: Any, address: int, device: int, process: int) -> None:
    # A forked child has no share in it. Threads of the engine have no device yet: the first GPU would be made theirs.
    if os.getpid() == process:
        with torch.cuda.device(device):
            runtime.cudaHostUnregister(address)


class DevicePrefetcher:
    """Iterates over a loader's batches on a device, with up to `depth` of them there in advance.

    It has the loader's interface. Its state is that of the last batch handed to the user, not of those in advance.
    While an iteration runs, the loader belongs to it; closing or exhausting the iterator gives it back.

    Args:
        loader: where the batches come from.
        device: where they go.
        depth: batches on the device in advance.

    Raises:
        ConfigError: a depth below 1.
    """

    def __init__(self, loader: Loader, device: torch.device | str, *, depth: int = 2) -> None:
        if depth < 1:
            raise ConfigError(f"depth = {depth} is not allowed; it must be at least 1")
        self.loader = loader
        self.device = torch.device(device)
        self._cuda = self.device.type == "cuda"
        self._depth = depth
        self._stream = torch.cuda.Stream(self.device) if self._cuda else None  # type: ignore[no-untyped-call]
        self._slots = [_Slot(self._cuda) for _ in range(2)]
        self._turn = 0
        self._state: dict[str, Any] | None = None
        self._running = False

    def __len__(self) -> int:
        """Steps of this rank in the epoch that is set."""
        return len(self.loader)

    def state_dict(self) -> dict[str, Any]:
        """The loader's state after the last batch that was handed out."""
        return self.loader.state_dict() if self._state is None else self._state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a state. Raises StateError while an iteration runs."""
        self._check_idle("load_state_dict")
        self._state = None
        self.loader.load_state_dict(state)

    def set_epoch(self, epoch: int) -> None:
        """Goes to the start of an epoch. Raises StateError while an iteration runs."""
        self._check_idle("set_epoch")
        self._state = None
        self.loader.set_epoch(epoch)

    def _check_idle(self, what: str) -> None:
        if self._running:
            raise StateError(f"{what} was called while an iteration runs; close the iterator first")

    def __iter__(self) -> Iterator[PackedBatch]:
        """The batches from the present state to the end of the epoch.

        Raises:
            NavitError: whatever the loader raises, in the user's thread.
            StateError: another iteration runs.
        """
        self._check_idle("iter")
        self._running = True
        if self._state is not None:
            # An earlier iteration was left early; the loader is ahead of what the user has seen.
            self.loader.load_state_dict(self._state)
            self._state = None
        self._state = self.loader.state_dict()
        ready: queue.Queue[Any] = queue.Queue(self._depth)
        stop = threading.Event()
        thread = threading.Thread(target=self._fill, args=(ready, stop), name="navit-device", daemon=True)
        thread.start()
        ended = False
        try:
            while True:
                item = ready.get()
                if item is None or isinstance(item, BaseException):
                    if item is not None:
                        raise item
                    ended = True
                    return
                batch, state, event = item
                if event is not None:
                    current = torch.cuda.current_stream(self.device)
                    current.wait_event(event)
                    for value in batch.arrays().values():
                        value.record_stream(current)
                self._state = state
                yield batch
        finally:
            stop.set()
            while thread.is_alive():
                try:
                    ready.get(timeout=0.05)
                except queue.Empty:
                    continue
            thread.join()
            if ended:
                self._state = None
            self._running = False
            # The loader is the user's again, and so is the memory of its batches.
            for slot in self._slots:
                slot.free()

    def _fill(self, ready: queue.Queue[Any], stop: threading.Event) -> None:
        end: BaseException | None = None
        batches = iter(self.loader)
        # Whatever a loader does on the device itself must not hold up the trainer's stream either.
        own: AbstractContextManager[Any] = torch.cuda.stream(self._stream) if self._cuda else nullcontext()
        try:
            with own:
                for batch in batches:
                    item = (*self._move(batch), self.loader.state_dict())
                    ready.put((item[0], item[2], item[1]))
                    if stop.is_set():
                        break
        except BaseException as e:
            end = e
        finally:
            if hasattr(batches, "close"):
                batches.close()
        ready.put(end)

    def _move(self, batch: PackedBatch) -> tuple[PackedBatch, torch.cuda.Event | None]:
        slot = self._slots[self._turn % len(self._slots)]
        self._turn += 1
        slot.free()
        context: AbstractContextManager[Any] = torch.cuda.stream(self._stream) if self._cuda else nullcontext()
        arrays = batch.arrays()
        block = _block(arrays.values()) if self._cuda else None
        with context:
            moved = {}
            if block is not None and _pinned(block):
                slot.held = block
                moved, arrays = _as_it_lies(block, arrays, self.device), {}
            for name, array in arrays.items():
                if isinstance(array, torch.Tensor):  # a loader that decodes on the device
                    moved[name] = array.to(self.device, non_blocking=True)
                    continue
                staged = slot.stage(name, array)
                # A fresh tensor on purpose: on the CPU too, the staging buffer is written again two batches on.
                moved[name] = torch.empty_like(staged, device=self.device).copy_(staged, non_blocking=True)
            if self._stream is not None:
                slot.copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
                slot.copied.record(self._stream)
        return _rebuild(batch, moved), slot.copied


def _as_it_lies(block: _packer.Buffer, arrays: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """A block's arrays on a device, all by one copy that has only begun."""
    bytes = block.bytes()
    there = torch.from_numpy(bytes).to(device, non_blocking=True)
    moved = {}
    for name, array in arrays.items():
        at = array.ctypes.data - bytes.ctypes.data if array.size else 0
        moved[name] = there[at : at + array.nbytes].view(_kind(array.dtype)).view(array.shape)
    return moved


def _rebuild(batch: PackedBatch, arrays: dict[str, Any]) -> PackedBatch:
    teacher = batch.teacher
    if teacher is not None:
        names = [f.name for f in fields(View) if f"teacher.{f.name}" in arrays]
        teacher = replace(teacher, **{n: arrays[f"teacher.{n}"] for n in names})
    return replace(batch, teacher=teacher, **{n: a for n, a in arrays.items() if "." not in n})
