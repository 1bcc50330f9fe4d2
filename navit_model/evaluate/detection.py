"""How well a detector finds boxes, at one or several token budgets: COCO's AP, and its answers in COCO's JSON.

In: a model, an index with boxes, the run's configuration. Out: a `TargetScore` for each budget, and the results. Boxes are
compared in pixels of the source, whatever size an image was seen at. Each image is seen once over all ranks; in one that could
not be read nothing is found.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import nn

from navit_loader import open_index
from navit_loader.batch import FAILED, OK
from navit_loader.config import LoaderConfig
from navit_loader.errors import ModelError
from navit_loader.index import Index

from ..model.owl import best_of
from ..world import World
from .average_precision import average_precision, check_pycocotools
from .targets import TargetScore, Truth, answers, gathered, held_out_targets, target_score

SHOWN = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar100")

Results = list[dict[str, Any]]
"""`image_id` (the row), `category_id` (the class), `bbox` as (left, top, width, height) and `score` of each box told."""


def coco_results(results: Results, index: str) -> Results:
    """The results as COCO's own programs take them: categories and images by the numbers that they were annotated with.

    Of images that the annotations do not list nothing is said. Where these gave no numbers, images go by the number that their
    file is named by, as COCO names its files; by rows where one is no number, or two are the same.
    """
    opened = open_index(index)
    known = opened.image_numbers
    images = _guessed(opened) if known is None else known.tolist()
    kinds = opened.category_ids
    return [
        {**each, "image_id": images[each["image_id"]], "category_id": kinds[each["category_id"]]}
        for each in results
        if images[each["image_id"]] >= 0
    ]


def _guessed(index: Index) -> list[int]:
    """Numbers of images, by the names of their files."""
    table = index.table()
    names = zip(table["name"].to_pylist(), table["shard"].to_pylist(), strict=True)
    stems = [PurePosixPath(name or shard).stem for name, shard in names]
    numbers = [int(stem) for stem in stems if stem.isdecimal()]
    return numbers if len(set(numbers)) == len(stems) else list(range(len(stems)))


@torch.inference_mode()
def judge_boxes(
    model: nn.Module,
    index: str,
    config: LoaderConfig,
    *,
    classes: Sequence[str],
    tokens: int | None = None,
    patch_size: int | None = None,
    world: World | None = None,
) -> tuple[TargetScore, Results]:
    """Scores a detector; arguments as of `held_out_targets`, and `model`: batch → `Proposals`, in evaluation mode.

    Raises:
        ModelError: the index has no boxes or other classes, pycocotools is missing, or an answer is NaN.
    """
    check_pycocotools()
    device = next(model.parameters()).device
    world = world or World(0, 1, device)
    asked: dict[str, Any] = {"classes": classes, "tokens": tokens, "patch_size": patch_size, "world": world}
    with held_out_targets(index, config, "boxes", **asked) as loader:
        rows: list[np.ndarray[Any, Any]] = []
        failed = torch.zeros(1, dtype=torch.long, device=device)
        start = time.perf_counter()
        for batch, sent, found in answers(model, loader, device):
            failed += int((batch.status == FAILED).sum())
            for row, each in zip(batch.image_ids[batch.status == OK].tolist(), best_of(found, sent), strict=True):
                boxes = each["boxes"].double()
                told = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1)
                column = torch.full_like(told[:, :1], row)
                parts = (column, each["queries"][:, None], told, each["scores"][:, None])
                rows.append(torch.cat([part.double() for part in parts], 1).cpu().numpy())
        seconds = time.perf_counter() - start
        world.meet()
        all_rows = gathered(world, np.concatenate(rows) if rows else np.zeros((0, 7)))
        if np.isnan(all_rows).any():
            raise ModelError(
                "the model has no answer (NaN); its weights ran away or are damaged: take an earlier checkpoint"
            )
        results = [
            {"image_id": int(row), "category_id": int(kind), "bbox": box, "score": score}
            for row, kind, *box, score in all_rows.tolist()
        ]
        figures = average_precision(Truth(loader.engine.indexes[0]).coco(), results)
        shown = {name: figures[name] for name in SHOWN}
        return target_score(config, loader, tokens, shown, int(world.sum(failed)), seconds), results
