"""The ranks that train together.

In: what `torchrun` puts into the environment, or nothing for a run alone. Out: `World`, with the few collective
operations that training needs. Apart from the loop, so that a single process never touches `torch.distributed`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, nn

from navit_loader.errors import ConfigError

TIMEOUT = timedelta(seconds=60)
"""A rank that waits longer than this for another stops with an error."""


@dataclass(frozen=True, slots=True)
class World:
    """This process among its peers.

    Attributes:
        rank: number of this process.
        size: W, how many there are.
        device: where this process computes.
    """

    rank: int
    size: int
    device: torch.device

    @classmethod
    def join(cls, device: str = "auto") -> World:
        """Joins the processes that `torchrun` started, or stands alone.

        Args:
            device: `auto`, `cpu` or `cuda`.

        Raises:
            ConfigError: CUDA was asked for and there is none.
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
        torch.distributed.init_process_group("nccl" if kind == "cuda" else "gloo", timeout=TIMEOUT)
        return cls(torch.distributed.get_rank(), size, place)

    def sum(self, value: Tensor) -> Tensor:
        """The sum of `value` over all ranks, in place; a no-op for a run alone."""
        if self.size > 1:
            torch.distributed.all_reduce(value)
        return value

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model with its gradients averaged over the ranks (DDP); the model itself for a run alone."""
        if self.size == 1:
            return model
        ids = [self.device.index] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(model, device_ids=ids)

    def leave(self) -> None:
        """Leaves the group; harmless for a run alone."""
        if self.size > 1 and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
