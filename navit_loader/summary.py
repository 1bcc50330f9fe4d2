"""What one planned epoch amounts to, in figures. In: an opened `Engine`. Out: a dictionary of plain values. Apart from the
command that prints it, since sizes are suggested by it too.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .plan.config import passes_for
from .plan.selection import beyond


def summarise(engine: Any, epoch: int, world_size: int = 1) -> dict[str, Any]:
    """The figures of one planned epoch.

    Args:
        engine: an opened `Engine`.
        epoch: which epoch.
        world_size: ranks that share it.
    """
    layout = engine.layout(epoch)
    report = layout.report(0, layout.num_blocks)
    data, plan = engine.config.data, engine.config.plan
    batch = data.batch_size * world_size
    slots, tokens = report["slots"], report["tokens"]
    patches = tokens - report["images"] * plan.prefix_tokens
    longest = plan.caption_cap
    steps = layout.steps(0, data.batch_size, world_size, data.remainder == "drop")
    # What fills up batches, of all ranks alike, is padding too; the remainder that is dropped is not delivered at all.
    masked = max(0, steps * batch - report["sequences"])
    delivered = slots + masked * plan.sequence_length
    return {
        "plan_id": engine.plan_id,
        "render_id": engine.render_id,
        "epoch": epoch,
        "images": report["images"],
        "blocks": layout.num_blocks,
        "sequences": report["sequences"],
        "padding": 1 - tokens / delivered,
        "padding_inside": (slots - tokens - report["tail"]) / slots,
        "padding_masked": masked * plan.sequence_length / delivered,
        "masked_sequences": masked,
        "passes": plan.passes,
        # Where `virtual_epoch` says how long an epoch is, it is that key which can grow.
        "passes_advised": 0 if plan.virtual_epoch else passes_for(report["sequences"] / plan.passes, batch),
        "closed_by_max_images": report["closed"],
        "max_images": plan.max_images,
        "below_low": _below_low(engine),
        "images_per_sequence": report["images"] / report["sequences"],
        "captions_cut": sum(index.captions_beyond(longest) for index in engine.indexes) if longest else 0,
        **_boxes(engine),
        "lateness": report["lateness"],
        "tokens_kept": patches,
        "tokens_dropped": report["dropped"],
        "drop_rate": report["dropped"] / max(1, patches + report["dropped"]),
        "moved_by_fit": report["moved"],
        "moved_tokens_mean": report["moved_tokens"] / max(1, report["moved"]),
        "slowest_rank": slowest_rank(layout, data.batch_size, world_size) if world_size > 1 else 1.0,
        "balance": plan.balance,
        "steps_per_rank": steps,
        "world_size": world_size,
        "batch_size": data.batch_size,
    }


def _boxes(engine: Any) -> dict[str, int]:
    """Images with more boxes than a sequence has room for, which are not planned, and the most boxes of one; nothing of a plan
    without boxes."""
    targets = engine.config.plan.targets
    if targets is None or not targets.boxes:
        return {}
    each = [beyond(targets.capacity, index) for index in engine.indexes]
    return {"boxes_beyond": sum(count for count, _, _ in each), "boxes_most": max(most for _, _, most in each)}


def slowest_rank(layout: Any, batch_size: int, world_size: int, most: int = 2**16) -> float:
    """What attention costs the rank for which a step waits, by the mean of its ranks; the mean of the whole steps.

    Args:
        layout: of an epoch that is planned here.
        batch_size: B.
        world_size: W.
        most: sequences that are looked at, to the end of their block.
    """
    ends = np.cumsum(layout.counts(0, layout.num_blocks), dtype=np.int64)
    squares = layout.squares(0, int(np.searchsorted(ends, most)) + 1)
    starts = [0]
    while starts[-1] < len(squares):
        starts.append(layout.next(starts[-1], batch_size))
    batches = np.add.reduceat(squares, starts[:-1])
    ranks = batches[: len(batches) // world_size * world_size].reshape(-1, world_size)
    return float((ranks.max(1) / ranks.mean(1)).mean()) if len(ranks) else 1.0


def _below_low(engine: Any) -> int:
    """Images of the indexes that are smaller than the smallest size that is drawn, and stay as they are."""
    resolution = engine.config.plan.resolution
    if resolution.upscale or resolution.kind not in ("truncated_normal", "uniform"):
        return 0
    sides = (pair for index in engine.indexes for pair in index.sides())
    return sum(int((width.astype("int64") * height < resolution.low**2).sum()) for width, height in sides)
