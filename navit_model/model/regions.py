"""From what the queries of a `RegionSegmenter` say to one map of segments: each pixel is of one segment at most.

In: masks of each token and the class of each query. Out: for each image a map of numbers, and class and score of each. Merged
as in the paper of the panoptic quality (arXiv 1801.00868, section 6): things by falling score, each on what is still free and
not at all where little is left of it; then stuff on the rest, of each class in one piece. Apart from the model, which does not
know what is a thing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from navit_loader.batch import OK, PackedBatch

from .check import check_unwarped
from .dense import grids
from .segmenter import Regions

THRESHOLD = 0.5
"""Probability from which on a pixel is in a mask."""


@dataclass(frozen=True, slots=True)
class Segmented:
    """One image's segments.

    Attributes:
        map: i64 `[height, width]`, numbers of segments, from 1 on; 0 where there is none.
        classes: of segments 1, 2, ….
        scores: how sure the model is of each.
    """

    map: Tensor
    classes: list[int]
    scores: list[float]


@torch.no_grad()
def segments_of(
    found: Regions,
    batch: PackedBatch,
    things: Sequence[bool],
    *,
    least_share: float = 0.5,
    least_stuff: float = 0.01,
    threshold: float = 0.5,
) -> list[Segmented]:
    """The segments of each image with status `OK`, in the order of the slots, in pixels of its crop in the source; host work.

    Args:
        found: from `RegionSegmenter`.
        batch: the same batch.
        things: of each class, whether its segments are counted.
        least_share: of a thing's pixels that must still be free.
        least_stuff: of the image, that stuff must have.
        threshold: least probability of a query's class.
    """
    check_unwarped(batch, "segments at the source's size")
    ok = batch.status.cpu() == OK
    crops, flips = batch.crops.cpu()[ok].tolist(), batch.flips.cpu()[ok].tolist()
    chances, kinds = found.kinds.softmax(-1)[..., :-1].max(-1)
    none = found.kinds.argmax(-1) == found.kinds.shape[-1] - 1
    result = []
    for slot, grid, (_, _, height, width), flip in zip(
        ok.nonzero().tolist(), grids(found.masks, batch), crops, flips, strict=True
    ):
        b, e = slot
        score, kind = chances[b, e].masked_fill(none[b, e], 0.0), kinds[b, e].tolist()
        order = [n for n in score.argsort(descending=True).tolist() if score[n] >= threshold]
        image = torch.zeros(height, width, dtype=torch.long, device=grid.device)
        numbers: dict[int, int] = {}
        classes: list[int] = []
        scores: list[float] = []
        for n in sorted(order, key=lambda n: not things[kind[n]]):
            mask = F.interpolate(grid[None, None, :, :, n].float(), (height, width), mode="bilinear")[0, 0]
            mask = (mask.flip(-1) if flip else mask).sigmoid() >= THRESHOLD
            free = mask & (image == 0)
            area = int(free.sum())
            if things[kind[n]] and (area == 0 or area < least_share * int(mask.sum())):
                continue
            if not things[kind[n]] and (area == 0 or area < least_stuff * image.numel()):
                continue
            number = numbers.get(kind[n], len(classes) + 1)
            if number > len(classes):
                classes.append(kind[n])
                scores.append(float(score[n]))
            if not things[kind[n]]:
                numbers[kind[n]] = number
            image[free] = number
        result.append(Segmented(image, classes, scores))
    return result
