"""The losses of segmentation, on the cells of a batch's `masks`.

In: what a model says of each token, and the batch. Out: `(sum, count)`, as all losses here. Cells that are void, unlabelled or
outside of an image count for nothing.

Shapes: B sequences · L tokens · S cells on a patch's side · C = L·S² cells of a sequence · E images of a sequence · K classes ·
N queries of an image · O boxes of a sequence.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from navit_loader.batch import CROWD, PackedBatch
from navit_loader.errors import ModelError

from ..model.dense import finer

if TYPE_CHECKING:
    from ..model.segmenter import Regions

KIND, MASK, DICE = 2.0, 5.0, 5.0
"""Weights of a segment's class, of its mask's cross-entropy and of its mask's dice (Mask2Former, arXiv 2112.01527)."""
NONE = 0.1
"""What a query that stands for no segment counts beside one that does (DETR, arXiv 2005.12872)."""


def side_of(batch: PackedBatch) -> int:
    """S.

    Raises:
        ModelError: the batch carries no masks.
    """
    if batch.masks is None or batch.masks.shape[-1] == 0:
        raise ModelError("the batch carries no masks; set plan.targets.masks to the cells on a patch's side, such as 1")
    return math.isqrt(batch.masks.shape[-1])


def segmentation_loss(logits_BLK: Tensor, batch: PackedBatch) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each cell's class, logits enlarged bilinearly; the sum, and the number of labelled cells."""
    cells = finer(logits_BLK.float(), batch, side_of(batch))
    assert batch.masks is not None
    truth = batch.masks.long()
    total = F.cross_entropy(cells.flatten(0, 2), truth.flatten(), ignore_index=-1, reduction="sum")
    return total, (truth >= 0).sum()


def region_loss(found: Regions, batch: PackedBatch) -> tuple[Tensor, Tensor]:
    """Queries and segments of each image matched one to one, by class and mask; crowds, and what the crop left out, are void.

    Cross-entropy of the queries' classes, where those without a segment count `NONE`, and of the matched ones cross-entropy and
    dice of their masks (MaskFormer, arXiv 2107.06278, section 3.2). The matching runs on the host.

    Returns:
        The sum over the segments, and their number.

    Raises:
        ModelError: the batch carries no masks of regions, or a segment has a class that there is not.
    """
    side = side_of(batch)
    labels_BO, flags_BO, places_BO, masks = batch.box_labels, batch.box_flags, batch.box_places, batch.masks
    if labels_BO is None or flags_BO is None or places_BO is None or batch.box_cu_seqlens is None:
        raise ModelError(
            "the batch carries no regions; set plan.targets.boxes = true and plan.targets.kind = 'regions'"
        )
    assert masks is not None
    device, classes = found.masks.device, found.kinds.shape[-1] - 1
    (B, E, N, _), most = found.kinds.shape, labels_BO.shape[1]
    # Which image each box is of; E where it is padding.
    start_BE, end_BE = batch.box_spans
    number_BO1 = torch.arange(B * most, device=device).view(B, most, 1)
    within_BOE = (number_BO1 >= start_BE[:, None]) & (number_BO1 < end_BE[:, None])
    wanted_BO = within_BOE.any(-1) & (labels_BO >= 0) & (flags_BO & CROWD == 0)
    image_BO = within_BOE.float().argmax(-1).where(wanted_BO, E)
    z_BCN = finer(found.masks, batch, side).flatten(1, 2)
    region_BC = masks.long().flatten(1)
    own_BC = batch.segment_ids.long().where(batch.segment_ids >= 0, -1).repeat_interleave(side * side, 1)
    t_BCO = (region_BC[..., None] == places_BO[:, None].long()) & (own_BC[..., None] == image_BO[:, None])
    t_BCO = (t_BCO & (region_BC >= 0)[..., None]).to(z_BCN.dtype)
    known_BC = t_BCO.sum(-1) > 0
    z_BCN = z_BCN.masked_fill(~known_BC[..., None], 0.0)
    member_BEC = ((own_BC[:, None] == torch.arange(E, device=device)[:, None]) & known_BC[:, None]).to(z_BCN.dtype)
    cells_BE, area_BO = member_BEC.sum(-1), t_BCO.sum(1)
    there_BO = (image_BO < E) & (area_BO > 0)
    at_BO = image_BO.clamp_max(E - 1)

    # Sums over an image's cells for each pair of query and segment: what matching and loss are both made of.
    def own(x_BEN: Tensor) -> Tensor:
        return x_BEN.gather(1, at_BO[..., None].expand(-1, -1, N))

    chance_BCN = z_BCN.sigmoid()
    entropy_BON = own(member_BEC @ F.softplus(z_BCN)) - t_BCO.transpose(1, 2) @ z_BCN
    mask_BON = entropy_BON / cells_BE.gather(1, at_BO).clamp_min(1)[..., None]
    both_BON = t_BCO.transpose(1, 2) @ chance_BCN
    dice_BON = 1 - (2 * both_BON + 1) / (own(member_BEC @ chance_BCN) + area_BO[..., None] + 1)
    pair_BON = MASK * mask_BON + DICE * dice_BON
    label_BO = labels_BO.long().clamp_min(0)
    with torch.no_grad():
        rows = torch.arange(B, device=device)[:, None]
        kind_BON = found.kinds.softmax(-1)[rows, at_BO].gather(
            -1, label_BO.clamp_max(classes)[..., None, None].expand(-1, -1, N, 1)
        )
        cost = (pair_BON - KIND * kind_BON[..., 0]).nan_to_num(1e9, 1e9, -1e9).cpu().numpy()
        image = image_BO.where(there_BO, -1).cpu().numpy()
        if int(labels_BO.max()) >= classes:
            raise ModelError(f"a segment has the class {int(labels_BO.max())}, but there are {classes}; mend the index")
    at: list[tuple[int, int, int, int]] = []
    for row in range(B):
        for slot in sorted({int(one) for one in image[row] if one >= 0}):
            wanted = (image[row] == slot).nonzero()[0]
            theirs, chosen = linear_sum_assignment(cost[row, wanted])
            at += [(row, slot, int(wanted[box]), int(query)) for box, query in zip(theirs, chosen, strict=True)]
    b, e, o, n = torch.tensor(at, dtype=torch.long).view(-1, 4).to(device).unbind(1)
    placed = pair_BON[b, o, n].sum()

    kind_BEN = torch.full((B, E, N), classes, device=device)
    kind_BEN[b, e, n] = label_BO[b, o]
    weight_BEN = torch.where(kind_BEN == classes, NONE, 1.0)
    each_BEN = F.cross_entropy(found.kinds.flatten(0, 2), kind_BEN.flatten(), reduction="none").view(B, E, N)
    # An image's mean counts once for each of its segments.
    count_BE = torch.zeros(B, E + 1, device=device).scatter_add_(1, image_BO.where(there_BO, E), there_BO.float())[
        :, :E
    ]
    named = ((each_BEN * weight_BEN).sum(-1) / weight_BEN.sum(-1)).where(count_BE > 0, 0.0)
    return KIND * (named * count_BE).sum() + placed, there_BO.sum()
