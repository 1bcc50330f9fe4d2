"""The ranks that train together.

In: what `torchrun` or Ray Train puts into the environment, or nothing for a run alone. Out: `World`, with the few collective
operations that training needs. Apart from the loop, so that a single process never touches `torch.distributed`.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn

from navit_loader.errors import ConfigError, ModelError, said

TIMEOUT = timedelta(seconds=60)
"""A rank that waits longer than this for another within a step stops with an error."""

PATIENCE = timedelta(hours=1)
"""The same where one rank may work alone for long: a checkpoint on a slow disk, the last images of an evaluation."""


AMPERE = (8, 0)
"""The first compute capability with bfloat16, and with kernels of packed attention."""

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""By the words of `train.precision`; the other, `fp32`, is without autocast."""


def half_of(capability: tuple[int, int]) -> str:
    """The half precision that a GPU of this compute capability is quick in: `bf16`, or `fp16` before Ampere."""
    return "bf16" if capability >= AMPERE else "fp16"


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """What a model is trained in; `train.precision`."""
    return torch.autocast(device.type, DTYPES.get(precision, torch.bfloat16), enabled=precision in DTYPES)


def halved(device: torch.device) -> AbstractContextManager[Any]:
    """Half precision for a model that is used, not trained, on a GPU, whose packed attention kernels take nothing else."""
    if device.type != "cuda":
        return nullcontext()
    return autocast(device, half_of(torch.cuda.get_device_capability(device)))


@dataclass(frozen=True, slots=True)
class World:
    """This process among its peers.

    Attributes:
        rank: number of this process.
        size: W, how many there are.
        device: where this process computes.
        hosts: the group of `meet`; None for a run alone.
    """

    rank: int
    size: int
    device: torch.device
    hosts: Any = None

    @classmethod
    def join(cls, device: str = "auto") -> World:
        """Joins the processes that `torchrun` or Ray Train started, or stands alone.

        Args:
            device: `auto`, `cpu` or `cuda`.

        Raises:
            ConfigError: CUDA was asked for and there is none.
            ModelError: the other processes do not come, or leave at once.
        """
        if device == "cuda" and not torch.cuda.is_available():
            raise ConfigError("train.device = 'cuda' is not possible: torch sees no CUDA device; use 'cpu' or 'auto'")
        kind = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        size = int(os.environ.get("WORLD_SIZE", "1"))
        place = torch.device(kind, int(os.environ.get("LOCAL_RANK", "0"))) if kind == "cuda" else torch.device(kind)
        if kind == "cuda":
            torch.cuda.set_device(place)
        if size == 1:
            return cls(0, 1, place)
        try:
            # Ray Train has done so before it calls us.
            if not torch.distributed.is_initialized():
                torch.distributed.init_process_group("nccl" if kind == "cuda" else "gloo", timeout=TIMEOUT)
            # Making the patient group waits as long as its patience: first see that all are still there.
            torch.distributed.barrier()
            # On the hosts' own sockets, which break at once when a process dies, so its patience costs nothing.
            hosts = torch.distributed.new_group(backend="gloo", timeout=PATIENCE)
        except RuntimeError as e:
            _leave()
            reason = said(e)[0][:200]
            rank = os.environ.get("RANK", "?")
            raise ModelError(f"rank {rank} of {size} did not find all others ({reason}); start them all anew") from None
        return cls(torch.distributed.get_rank(), size, place, hosts)

    @classmethod
    def alone(cls, device: str = "auto") -> World:
        """For what one process does by itself.

        Raises:
            ConfigError: there are several, or CUDA was asked for and there is none.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ConfigError("this command runs in one process; start it without torchrun")
        return cls.join(device)

    def sum(self, value: Tensor) -> Tensor:
        """The sum of `value` over all ranks, in place; a no-op for a run alone."""
        if self.size > 1:
            torch.distributed.all_reduce(value)
        return value

    def gather(self, value: Tensor) -> Tensor:
        """`value` of every rank, one after the other along the first axis; all of one shape."""
        if self.size == 1:
            return value
        parts = [torch.empty_like(value) for _ in range(self.size)]
        torch.distributed.all_gather(parts, value.contiguous())
        return torch.cat(parts)

    def comparer(self) -> Callable[[str], list[str]]:
        """A function that gives every rank the texts of all ranks, in their order. It has a group of its own, so that a loader
        may call it on whatever thread it runs."""
        if self.size == 1:
            return lambda text: [text]
        group: Any = torch.distributed.new_group(backend="gloo", timeout=PATIENCE)

        def compare(text: str) -> list[str]:
            said: list[Any] = [None] * self.size
            torch.distributed.all_gather_object(said, text, group)
            return said

        return compare

    def most(self, value: int, patience: timedelta) -> int:
        """The largest value of all ranks, on their hosts' sockets: no device waits, and no step has begun.

        Args:
            value: this rank's, at least 0.
            patience: how long to wait for the others.
        """
        if self.size == 1:
            return value
        held = torch.tensor([value])
        work = torch.distributed.all_reduce(held, torch.distributed.ReduceOp.MAX, self.hosts, async_op=True)
        assert work is not None
        work.wait(patience)
        return int(held)

    def meet(self) -> None:
        """Waits for all ranks, however long one of them works by itself."""
        if self.size > 1:
            torch.distributed.barrier(self.hosts)

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model with its gradients averaged over the ranks (DDP); the model itself for a run alone."""
        if self.size == 1:
            return model
        ids = [self.device.index] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(model, device_ids=ids)

    def lost(self, error: RuntimeError) -> bool:
        """Whether an error says that another rank is gone, or stayed away for longer than `TIMEOUT`."""
        signs = ("gloo", "NCCL", "Connection closed", "Connection reset", "Broken pipe", "Timed out", "timed out")
        return self.size > 1 and (
            isinstance(error, torch.distributed.DistError) or any(sign in str(error) for sign in signs)
        )

    def leave(self) -> None:
        """Leaves the group; harmless for a run alone."""
        if self.size > 1:
            _leave()


def _leave() -> None:
    """Ends the group, however far it came: its threads must not outlive Python, which would abort."""
    if torch.distributed.is_initialized():
        # What wraps a model holds the group in reference cycles.
        gc.collect()
        torch.distributed.destroy_process_group()
