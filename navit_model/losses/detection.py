"""The loss of a detector: proposals and objects are matched one to one, image by image, whatever their numbers.

In: the `Proposals` of a packed batch and the objects of each image, in pixels of its source. Out: `(sum, count)`, as all losses
here. The matching is DETR's (arXiv 2005.12872, section 3.1), with focal classification (arXiv 1708.02002) in place of a
softmax, since queries do not exclude each other (OWL-ViT, arXiv 2205.06230). Apart from the head, since the matching runs on
the host: it is the one loss that waits for the device.

Shapes: B sequences · L tokens · E images of a sequence · Q queries · O objects of an image at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from navit_loader.batch import OK, PackedBatch
from navit_loader.errors import ModelError

from ..model.check import check_unwarped

if TYPE_CHECKING:
    from ..model.owl import Proposals

ALPHA, GAMMA = 0.25, 2.0
"""Of the focal loss: the share of what is there, and how much less counts what is known already."""


@dataclass(frozen=True, slots=True)
class Objects:
    """What is to be found in one image.

    Attributes:
        boxes: f32 `[n, 4]`, (left, top, right, bottom) in pixels of the oriented source.
        queries: i64 `[n]`, the query that each is an instance of.
    """

    boxes: Tensor
    queries: Tensor


def detection_loss(
    found: Proposals,
    batch: PackedBatch,
    objects: Sequence[Objects | None],
    *,
    box: float = 5.0,
    overlap: float = 2.0,
    classes: float = 2.0,
) -> tuple[Tensor, Tensor]:
    """Focal loss of all queries of all proposals, and of the matched ones distance and overlap of the boxes, summed.

    Objects are cut at the crop; those outside it do not count. Objects beyond the number of an image's patches stay
    unmatched.

    Args:
        found: from `OwlHead`.
        batch: the same batch.
        objects: for each image with status `OK`, in the order of the slots, as `detections` gives them; None where an
            image's objects are not known: it counts for nothing. `batch.image_ids` says which rows of the index they are.
        box: weight of the L1 distance of boxes, as shares of the image, in matching and loss.
        overlap: weight of 1 − GIoU (arXiv 1902.09630).
        classes: weight of the focal loss.

    Returns:
        The sum, and the number of objects in view; both scalars on the device.

    Raises:
        ModelError: another number of images, a query that there is not, or a box without extent.
    """
    check_unwarped(batch, "boxes of objects")
    slots = (batch.status == OK).nonzero().tolist()
    if len(objects) != len(slots):
        raise ModelError(f"objects of {len(objects)} images, but {len(slots)} have status OK; give one entry for each")
    queries = found.logits.shape[-1]
    in_view = [
        None if each is None else _in_view(each, batch.crops[b, e], bool(batch.flips[b, e]), queries, n)
        for n, (each, (b, e)) in enumerate(zip(objects, slots, strict=True))
    ]
    # Per slot one row of objects, so that all costs are one tensor and reach the host at once.
    B, E = batch.status.shape
    most = max((len(each.queries) for each in in_view if each is not None), default=0)
    boxes_BEO4, query_BEO = torch.full((B, E, most, 4), 0.5), torch.zeros(B, E, most, dtype=torch.long)
    known_BE = torch.zeros(B, E, dtype=torch.bool)
    for each, (b, e) in zip(in_view, slots, strict=True):
        if each is not None:
            known_BE[b, e] = True
            boxes_BEO4[b, e, : len(each.queries)], query_BEO[b, e, : len(each.queries)] = each.boxes, each.queries
    device = found.boxes.device
    boxes_BEO4, query_BEO, known_BE = boxes_BEO4.to(device), query_BEO.to(device), known_BE.to(device)
    image_BL = batch.segment_ids.long().clamp_min(0)
    counts_BL = found.there & known_BE.gather(1, image_BL)
    # What stands in padding may be anything.
    logits_BLQ = found.logits.masked_fill(~counts_BL[..., None], 0.0)
    boxes_BL4 = torch.where(counts_BL[..., None], found.boxes, 0.5)

    rows, columns = torch.arange(B, device=device)[:, None], image_BL
    with torch.no_grad():
        own_BLO4, own_BLO = boxes_BEO4[rows, columns], query_BEO[rows, columns]
        each_BLO4 = boxes_BL4[:, :, None].expand_as(own_BLO4)
        hit_BLQ, miss_BLQ = _focal(logits_BLQ)
        cost_BLO = classes * (hit_BLQ - miss_BLQ).gather(2, own_BLO)
        cost_BLO = cost_BLO + box * (each_BLO4 - own_BLO4).abs().sum(-1) + overlap * (1 - giou(each_BLO4, own_BLO4))
        # A model that has gone astray is the trainer's affair; here it only must not stop the matching.
        cost, place = cost_BLO.nan_to_num(1e9, 1e9, -1e9).cpu().numpy(), image_BL.where(counts_BL, -1).cpu().numpy()
    at: list[tuple[int, int, int, int]] = []
    for each, (b, e) in zip(in_view, slots, strict=True):
        if each is not None:
            tokens = (place[b] == e).nonzero()[0]
            chosen, theirs = linear_sum_assignment(cost[b, tokens, : len(each.queries)])
            at += [(b, int(tokens[t]), e, int(o)) for t, o in zip(chosen, theirs, strict=True)]
    b, t, e, o = torch.tensor(at, dtype=torch.long, device=device).view(-1, 4).unbind(1)

    hit_BLQ, miss_BLQ = _focal(logits_BLQ)
    is_hit_BLQ = torch.zeros_like(logits_BLQ, dtype=torch.bool)
    is_hit_BLQ[b, t, query_BEO[b, e, o]] = True
    named = torch.where(is_hit_BLQ, hit_BLQ, miss_BLQ).masked_fill(~counts_BL[..., None], 0.0).sum()
    ours, wanted = boxes_BL4[b, t], boxes_BEO4[b, e, o]
    placed = box * (ours - wanted).abs().sum() + overlap * (1 - giou(ours, wanted)).sum()
    count = sum(len(each.queries) for each in in_view if each is not None)
    return classes * named + placed, torch.tensor(count, device=device)


def giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised intersection over union (arXiv 1902.09630) of boxes (centre x, centre y, width, height), `[…, 4]` → `[…]`."""
    a0, a1 = a[..., :2] - a[..., 2:] / 2, a[..., :2] + a[..., 2:] / 2
    b0, b1 = b[..., :2] - b[..., 2:] / 2, b[..., :2] + b[..., 2:] / 2
    both = (torch.minimum(a1, b1) - torch.maximum(a0, b0)).clamp_min(0).prod(-1)
    either = a[..., 2:].prod(-1) + b[..., 2:].prod(-1) - both
    around = (torch.maximum(a1, b1) - torch.minimum(a0, b0)).prod(-1)
    return both / either - (around - either) / around


def _focal(logits: Tensor) -> tuple[Tensor, Tensor]:
    """What each decision costs if it should be yes, and if it should be no (arXiv 1708.02002, section 3.2)."""
    chance = logits.sigmoid()
    return (
        ALPHA * (1 - chance) ** GAMMA * F.softplus(-logits),
        (1 - ALPHA) * chance**GAMMA * F.softplus(logits),
    )


def _in_view(objects: Objects, crop: Tensor, flip: bool, queries: int, number: int) -> Objects:
    """The objects as shares of the crop, (centre x, centre y, width, height), on the host; those outside it left out."""
    boxes, names = objects.boxes.cpu().float(), objects.queries.cpu().long()
    if boxes.shape != (len(names), 4):
        raise ModelError(
            f"objects[{number}] has boxes of shape {list(boxes.shape)} for {len(names)} queries; give [n, 4]"
        )
    if len(names) and not (int(names.min()) >= 0 and int(names.max()) < queries):
        raise ModelError(f"objects[{number}] has the query {int(names.max())} or below 0, but there are {queries}")
    if not bool((torch.isfinite(boxes).all(1) & (boxes[:, 2:] > boxes[:, :2]).all(1)).all()):
        raise ModelError(f"objects[{number}] has a box without extent; give (left, top, right, bottom) in pixels")
    top, left, height, width = crop.cpu().float().unbind()
    corner, size = torch.stack([left, top]), torch.stack([width, height])
    low = ((boxes[:, :2] - corner) / size).clamp(0, 1)
    high = ((boxes[:, 2:] - corner) / size).clamp(0, 1)
    seen = torch.cat([(low + high) / 2, high - low], 1)
    if flip:
        seen[:, 0] = 1 - seen[:, 0]
    there = (seen[:, 2:] > 0).all(1)
    return Objects(seen[there], names[there])
