"""How well a model maps classes or finds segments, at one or several token budgets.

In: a model, an index with masks, the run's configuration. Out: a `TargetScore` for each budget: mean overlap and pixel
accuracy, or panoptic quality. Compared is each pixel of the source, whatever size an image was seen at. Each image is seen
once over all ranks; of one that could not be read nothing is told.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from navit_loader.batch import FAILED, OK, PackedBatch
from navit_loader.config import LoaderConfig

from ..config import PanopticConfig
from ..model.dense import likeliest
from ..model.regions import Segmented, segments_of
from ..world import World
from .overlap import Overlap
from .panoptic_quality import PanopticQuality
from .targets import TargetScore, Truth, answers, held_out_targets, target_score


@torch.inference_mode()
def judge_maps(
    model: nn.Module,
    index: str,
    config: LoaderConfig,
    *,
    classes: Sequence[str],
    tokens: int | None = None,
    patch_size: int | None = None,
    world: World | None = None,
) -> TargetScore:
    """Scores a segmenter; arguments as of `held_out_targets`, and `model`: batch → logits `[B, L, K]`, in evaluation mode.

    Raises:
        ModelError: the index has no masks, or other classes.
    """
    device = next(model.parameters()).device
    world = world or World(0, 1, device)
    asked: dict[str, Any] = {"classes": classes, "tokens": tokens, "patch_size": patch_size, "world": world}
    with held_out_targets(index, config, "masks", **asked) as loader:
        overlap, truth, failed = Overlap(len(classes)), Truth(loader.engine.indexes[0]), 0
        start = time.perf_counter()
        for batch, sent, found in answers(model, loader, device):
            for row, told in zip(batch.image_ids[batch.status == OK].tolist(), likeliest(found, sent), strict=True):
                overlap.add(torch.from_numpy(truth.classes(row)), told.cpu())
            for row in batch.image_ids[batch.status == FAILED].tolist():
                wanted = torch.from_numpy(truth.classes(row))
                overlap.add(wanted, torch.full_like(wanted, -1))
                failed += 1
        seconds = time.perf_counter() - start
        world.meet()
        overlap.counts = world.sum(overlap.counts.to(device)).cpu()
        lost = world.sum(torch.tensor(failed, device=device))
        figures = {"miou": overlap.miou, "pixel_accuracy": overlap.pixel_accuracy}
        return target_score(config, loader, tokens, figures, int(lost), seconds)


@torch.inference_mode()
def judge_segments(
    model: nn.Module,
    index: str,
    config: LoaderConfig,
    panoptic: PanopticConfig,
    *,
    classes: Sequence[str],
    tokens: int | None = None,
    patch_size: int | None = None,
    world: World | None = None,
) -> TargetScore:
    """Scores a model of things and stuff; as `judge_maps`, of a `model`: batch → `Regions`.

    Raises:
        ModelError: the index has no masks that tell segments, or other classes.
    """
    device = next(model.parameters()).device
    world = world or World(0, 1, device)
    asked: dict[str, Any] = {"classes": classes, "tokens": tokens, "patch_size": patch_size, "world": world}
    things = [name not in panoptic.stuff for name in classes]
    with held_out_targets(index, config, "regions", **asked) as loader:
        quality, truth, failed = PanopticQuality(len(classes)), Truth(loader.engine.indexes[0]), 0
        start = time.perf_counter()
        for batch, sent, found in answers(model, loader, device):
            told = segmented(found, sent, things, panoptic)
            rows = batch.image_ids[batch.status == OK].tolist()
            for row, each in zip(rows, told, strict=True):
                ids, wanted, crowds = truth.segments(row)
                kinds = {n + 1: kind for n, kind in enumerate(each.classes)}
                quality.add(ids, wanted, each.map.cpu().numpy(), kinds, crowds)
            for row in batch.image_ids[batch.status == FAILED].tolist():
                ids, wanted, crowds = truth.segments(row)
                quality.add(ids, wanted, np.zeros_like(ids), {}, crowds)
                failed += 1
        seconds = time.perf_counter() - start
        world.meet()
        quality.sums = world.sum(torch.from_numpy(quality.sums).to(device)).cpu().numpy()
        lost = world.sum(torch.tensor(failed, device=device))
        return target_score(config, loader, tokens, quality.figures(things), int(lost), seconds)


def segmented(found: Any, batch: PackedBatch, things: Sequence[bool], config: PanopticConfig) -> list[Segmented]:
    """`segments_of` by the run's settings."""
    return segments_of(found, batch, things, least_share=config.least_share, least_stuff=config.least_stuff)
