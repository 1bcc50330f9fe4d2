"""The loss of a detector: proposals and objects are matched one to one, image by image, whatever their numbers.

In: the `Proposals` of a packed batch and the boxes that it carries. Out: `(sum, count)`, as all losses here. The matching is
DETR's (arXiv 2005.12872, section 3.1), with focal classification (arXiv 1708.02002) in place of a softmax, since queries do not
exclude each other; weights, α and γ are those of OWL-ViT (arXiv 2205.06230, and its code). Apart from the head, since the
matching runs on the host: with that of segments it is what waits for the device.

Shapes: B sequences · L tokens · E images of a sequence · Q queries · O boxes of a sequence · M boxes of an image at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from navit_loader.batch import ABSENT, CROWD, OK, PackedBatch
from navit_loader.errors import ModelError

from ..model.check import check_unwarped

if TYPE_CHECKING:
    from ..model.owl import Proposals

ALPHA, GAMMA = 0.3, 2.0
"""Of the focal loss: the share of what is there, and how much less counts what is known already."""


@dataclass(frozen=True, slots=True)
class Objects:
    """What is to be found in one image, for batches that carry no boxes of their own.

    Attributes:
        boxes: f32 `[n, 4]`, (left, top, right, bottom) in pixels of the oriented source.
        queries: i64 `[n]`, the query that each is an instance of.
    """

    boxes: Tensor
    queries: Tensor


def detection_loss(
    found: Proposals, batch: PackedBatch, *, box: float = 1.0, overlap: float = 1.0, classes: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Focal loss of all queries of all proposals, and of the matched ones distance and overlap of the boxes, summed.

    Crowds do not count. Objects beyond the number of an image's patches stay unmatched.

    Args:
        found: from `OwlHead`.
        batch: the same batch, with boxes.
        box: weight of the L1 distance of boxes, as shares of the image, in matching and loss.
        overlap: weight of 1 − GIoU (arXiv 1902.09630).
        classes: weight of the focal loss.

    Returns:
        The sum, and the number of objects; both scalars on the device.

    Raises:
        ModelError: the batch carries no boxes, or one of a query that there is not.
    """
    flat_N4, label_N, flag_N = _carried(batch)
    B, E = batch.status.shape
    L, device = found.there.shape[1], found.boxes.device
    image_BL = batch.segment_ids.long().clamp_min(0)
    start_BE, end_BE = (bound.long() for bound in batch.box_spans)
    size_BE = (end_BE - start_BE) * (batch.status == OK)
    # What the host has to know before there is any cost, in one copy.
    known = (image_BL.where(found.there, -1), start_BE, size_BE, label_N, flag_N)
    host = torch.cat([part.flatten().int() for part in known]).cpu()
    place, starts, sizes, labels, flags = (
        part.numpy() for part in torch.split(host, [B * L, B * E, B * E, len(label_N), len(flag_N)])
    )
    queries, most = found.logits.shape[-1], max(int(sizes.max(initial=0)), 1)
    if labels.max(initial=-1) >= queries:
        raise ModelError(f"a box has the class {labels.max()}, but there are {queries} queries; mend the index")
    own_BEM = (start_BE[..., None] + torch.arange(most, device=device)).clamp_max(len(label_N) - 1)
    boxes_BEM4, query_BEM = _middles(flat_N4)[own_BEM], label_N[own_BEM].long().clamp_min(0)

    # What stands in padding may be anything.
    logits_BLQ = found.logits.masked_fill(~found.there[..., None], 0.0)
    boxes_BL4 = torch.where(found.there[..., None], found.boxes, 0.5)
    rows = torch.arange(B, device=device)[:, None]
    with torch.no_grad():
        own_BLM4, own_BLM = boxes_BEM4[rows, image_BL], query_BEM[rows, image_BL]
        each_BLM4 = boxes_BL4[:, :, None].expand_as(own_BLM4)
        hit_BLQ, miss_BLQ = _focal(logits_BLQ)
        cost_BLM = classes * (hit_BLQ - miss_BLQ).gather(2, own_BLM)
        cost_BLM = cost_BLM + box * (each_BLM4 - own_BLM4).abs().sum(-1) + overlap * (1 - giou(each_BLM4, own_BLM4))
        # A model that has gone astray is the trainer's affair; here it only must not stop the matching. Few rows and many
        # columns are what the matching is quickest with.
        cost = cost_BLM.nan_to_num(1e9, 1e9, -1e9).transpose(1, 2).contiguous().cpu().numpy()
    at: list[tuple[int, int, int]] = []
    for slot in sizes.nonzero()[0]:
        b, e = divmod(int(slot), E)
        tokens = (place[b * L : (b + 1) * L] == e).nonzero()[0]
        wanted = (flags[starts[slot] : starts[slot] + sizes[slot]] & CROWD == 0).nonzero()[0]
        if len(tokens) and len(wanted):
            theirs, chosen = linear_sum_assignment(cost[b, : sizes[slot], tokens[0] : tokens[-1] + 1][wanted])
            at += [(b, int(tokens[0] + t), int(starts[slot] + wanted[o])) for o, t in zip(theirs, chosen, strict=True)]
    b, t, o = torch.tensor(at, dtype=torch.long).view(-1, 3).to(device).unbind(1)

    hit_BLQ, miss_BLQ = _focal(logits_BLQ)
    is_hit_BLQ = torch.zeros_like(logits_BLQ, dtype=torch.bool)
    is_hit_BLQ[b, t, label_N[o].long()] = True
    named = torch.where(is_hit_BLQ, hit_BLQ, miss_BLQ).masked_fill(~found.there[..., None], 0.0).sum()
    ours, wanted_K4 = boxes_BL4[b, t], _middles(flat_N4[o])
    placed = box * (ours - wanted_K4).abs().sum() + overlap * (1 - giou(ours, wanted_K4)).sum()
    return classes * named + placed, objects_of(batch)


def objects_of(batch: PackedBatch) -> Tensor:
    """How many boxes of a batch are to be found; a scalar on its device."""
    _, labels, flags = _carried(batch)
    return ((labels >= 0) & (flags & CROWD == 0)).sum()


def with_objects(batch: PackedBatch, objects: Sequence[Objects]) -> PackedBatch:
    """The batch with boxes of one's own, seen through each image's crop and mirror; what lies outside is left out.

    Args:
        batch: with tensors, of images that were not warped.
        objects: for each image with status `OK`, in the order of the slots, as `detections` gives them;
            `batch.image_ids` says which rows of the index they are.

    Raises:
        ModelError: another number of images, or a box without extent.
    """
    check_unwarped(batch, "boxes of objects")
    slots = (batch.status == OK).nonzero().tolist()
    if len(objects) != len(slots):
        raise ModelError(f"objects of {len(objects)} images, but {len(slots)} have status OK; give one entry for each")
    B, E = batch.status.shape
    in_view = {
        (b, e): _in_view(each, batch.crops[b, e], bool(batch.flips[b, e]), n)
        for n, (each, (b, e)) in enumerate(zip(objects, slots, strict=True))
    }
    counts = torch.tensor(
        [[len(in_view[b, e].queries) if (b, e) in in_view else 0 for e in range(E)] for b in range(B)]
    )
    most = max(1, int(counts.sum(1).max()))
    boxes, labels = torch.zeros(B, most, 4), torch.full((B, most), -1, dtype=torch.int32)
    for b in range(B):
        own = [in_view[b, e] for e in range(E) if (b, e) in in_view]
        if n := int(counts[b].sum()):
            boxes[b, :n] = torch.cat([each.boxes for each in own])
            labels[b, :n] = torch.cat([each.queries for each in own])
    # Those of the images that there are, then the rest of the sequence; what is left over repeats the end.
    there = torch.cat([batch.status.cpu() > ABSENT, torch.ones(B, 1, dtype=torch.bool)], 1)
    sizes = torch.cat([counts, most - counts.sum(1, keepdim=True)], 1)[there]
    cu_seqlens = F.pad(sizes.cumsum(0), (1, B * (E + 1) - len(sizes)), value=B * most).int()
    cu_seqlens[0] = 0
    places = torch.cat([torch.arange(n) for n in sizes.tolist()]).view(B, most).short()
    made: dict[str, Any] = {"boxes": boxes, "box_labels": labels, "box_flags": torch.zeros(B, most, dtype=torch.uint8)}
    made |= {"box_cu_seqlens": cu_seqlens, "box_places": places}
    device = batch.segment_ids.device
    return replace(batch, **{name: value.to(device) for name, value in made.items()})


def giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised intersection over union (arXiv 1902.09630) of boxes (centre x, centre y, width, height), `[…, 4]` → `[…]`."""
    a0, a1 = a[..., :2] - a[..., 2:] / 2, a[..., :2] + a[..., 2:] / 2
    b0, b1 = b[..., :2] - b[..., 2:] / 2, b[..., :2] + b[..., 2:] / 2
    both = (torch.minimum(a1, b1) - torch.maximum(a0, b0)).clamp_min(0).prod(-1)
    either = a[..., 2:].prod(-1) + b[..., 2:].prod(-1) - both
    around = (torch.maximum(a1, b1) - torch.minimum(a0, b0)).prod(-1)
    return both / either - (around - either) / around


def _carried(batch: PackedBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes, labels and flags of all sequences one after the other."""
    if batch.boxes is None or batch.box_labels is None or batch.box_flags is None or batch.box_cu_seqlens is None:
        raise ModelError("the batch carries no boxes; set plan.targets.boxes = true, or see with_objects")
    return batch.boxes.flatten(0, 1), batch.box_labels.flatten(), batch.box_flags.flatten()


def _middles(corners: Tensor) -> Tensor:
    """(x0, y0, x1, y1) → (centre x, centre y, width, height)."""
    low, high = corners[..., :2], corners[..., 2:]
    return torch.cat([(low + high) / 2, high - low], -1)


def _focal(logits: Tensor) -> tuple[Tensor, Tensor]:
    """What each decision costs if it should be yes, and if it should be no (arXiv 1708.02002, section 3.2)."""
    chance = logits.sigmoid()
    return (
        ALPHA * (1 - chance) ** GAMMA * F.softplus(-logits),
        (1 - ALPHA) * chance**GAMMA * F.softplus(logits),
    )


def _in_view(objects: Objects, crop: Tensor, flip: bool, number: int) -> Objects:
    """The objects as shares of the crop, (x0, y0, x1, y1), on the host; those outside it left out."""
    boxes, names = objects.boxes.cpu().float(), objects.queries.cpu().long()
    if boxes.shape != (len(names), 4):
        raise ModelError(
            f"objects[{number}] has boxes of shape {list(boxes.shape)} for {len(names)} queries; give [n, 4]"
        )
    if not bool((torch.isfinite(boxes).all(1) & (boxes[:, 2:] > boxes[:, :2]).all(1)).all()):
        raise ModelError(f"objects[{number}] has a box without extent; give (left, top, right, bottom) in pixels")
    top, left, height, width = crop.cpu().float().unbind()
    seen = ((boxes - torch.stack([left, top]).repeat(2)) / torch.stack([width, height]).repeat(2)).clamp(0, 1)
    if flip:
        seen = torch.stack([1 - seen[:, 2], seen[:, 1], 1 - seen[:, 0], seen[:, 3]], 1)
    there = (seen[:, 2:] > seen[:, :2]).all(1)
    return Objects(seen[there], names[there])
