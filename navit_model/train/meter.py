"""What happened in the steps since the last line of the log.

In: one call a step, with values that may still be on their way on the device. Out: averages over all ranks. Apart from the
loop, so that one place decides when the host waits for the device: in `read`, never within a step.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from navit_loader.batch import PackedBatch

from ..world import World


class Meter:
    """What happened since the last line of the log. Device values are read once, in `read`: no step waits for them."""

    def __init__(self, device: torch.device) -> None:
        self.start = time.perf_counter()
        self.waited, self.slots, self.seen = 0.0, 0, 0
        # sums over this rank: loss, images, their weights, tokens, operations
        self.sums = torch.zeros(5, dtype=torch.float64, device=device)
        self.norm = torch.zeros((), device=device)
        self.losses: list[tuple[int, Tensor]] = []
        self.identities: dict[int, list[tuple[int, int]]] = {}
        self.bad_step: int | None = None
        self.rate = 0.0

    def add(
        self,
        step: int,
        rate: float,
        total: Tensor,
        count: Tensor,
        norm: Tensor,
        images: Tensor,
        worth: Tensor,
        flops: Tensor,
        group: Sequence[PackedBatch],
    ) -> None:
        """Takes in one optimiser step.

        Args:
            step: its number, from 0.
            rate: its learning rate.
            total: sum of this rank's losses.
            count: what the images with a loss count together, of all ranks.
            norm: norm of the gradient.
            images: images with a loss, of this rank.
            worth: what they count: their number, or the sum of their weights.
            flops: operations that this rank's images took.
            group: its batches, on the device.
        """
        self.seen += 1
        self.rate, self.norm = rate, norm
        self.losses.append((step, total / count))
        tokens = torch.stack([(batch.segment_ids >= 0).sum() for batch in group]).sum()
        self.sums += torch.stack([value.double() for value in (total, images, worth, tokens, flops)])
        self.identities[step] = [(batch.epoch, batch.sequence) for batch in group]
        self.slots += sum(batch.segment_ids.shape[0] * batch.segment_ids.shape[1] for batch in group)

    def read(self, world: World) -> dict[str, Any]:
        """The averages over all ranks, and `bad_step` where a loss was not finite.

        `tflops` is 10¹² operations a second of one rank, padding not counted.
        """
        seconds = time.perf_counter() - self.start
        total, images, worth, tokens, flops = world.sum(self.sums).tolist()
        steps, values = zip(*self.losses, strict=True)
        finite = torch.isfinite(world.sum(torch.stack(values))).tolist()
        self.bad_step = next((s for s, ok in zip(steps, finite, strict=True) if not ok), None)
        host = torch.tensor([self.slots, self.waited], dtype=torch.float64)
        slots, waited = world.sum(host.to(world.device)).tolist()
        return {
            "images": int(images),
            "tokens": int(tokens),
            "flops": flops,
            "loss": total / (worth or 1),
            "learning_rate": self.rate,
            "grad_norm": float(self.norm),
            "images_per_s": images / seconds,
            "tokens_per_s": tokens / seconds,
            "tflops": flops / seconds / world.size / 1e12,
            "padding": 1 - tokens / slots,
            "starved": waited / world.size / seconds,
        }

    def alone(self, ranks: int) -> dict[str, Any]:
        """The counts as this rank can tell them by itself: its own times the number of ranks; `bad_step` of its own losses."""
        self.bad_step = next((s for s, loss in self.losses if not bool(torch.isfinite(loss))), self.bad_step)
        _, images, _, tokens, flops = (self.sums * ranks).tolist()
        return {"images": int(images), "tokens": int(tokens), "flops": flops}
