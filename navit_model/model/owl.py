"""Open-vocabulary detection: a box and a class for each patch (OWL-ViT, arXiv 2205.06230, section 3.1).

In: encoded tokens `[B, L, D]`, their batch, and one embedding a query, such as those of class names by a text tower. Out: for
each token a box and a logit for each query. Nothing is pooled: every patch proposes one object, at first one of its own size
at its own place. What it learns from is in `navit_model.losses.detection`.

Shapes: B sequences · L tokens · Q queries · D width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from navit_loader.batch import OK, PackedBatch, View

from .check import check_unwarped
from .navit import NaViT
from .pool import pick_prefix

EDGE = 1e-4
"""Centres and sides start this far from 0 and 1, where the sigmoid has no finite argument."""


@dataclass(frozen=True, slots=True)
class Proposals:
    """What each token proposes.

    Attributes:
        boxes: f32 `[B, L, 4]`, (centre x, centre y, width, height) as shares of the image as it was planned.
        logits: f32 `[B, L, Q]`, one binary decision per query.
        there: bool `[B, L]`, which tokens are patches; the others mean nothing.
    """

    boxes: Tensor
    logits: Tensor
    there: Tensor


class OwlHead(nn.Module):
    """Boxes by a small MLP, classes by likeness to the queries."""

    def __init__(self, width: int, query_width: int) -> None:
        """Makes the head with fresh weights.

        Args:
            width: D of the tokens.
            query_width: of the queries' embeddings.
        """
        super().__init__()
        self.box = _mlp(width, 4)
        self.embed = nn.Linear(width, query_width)
        self.shift = nn.Linear(width, 1)
        self.scale = nn.Linear(width, 1)
        last = self.box[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, x_BLD: Tensor, batch: PackedBatch | View, queries: Tensor) -> Proposals:
        """What the tokens propose; no host value is read.

        Args:
            x_BLD: encoded tokens, as `NaViT.forward_features` gives them.
            batch: whose tokens they are.
            queries: `[Q, query_width]`, of any length: only their direction counts.
        """
        there_BL = (batch.segment_ids >= 0) & (batch.positions[..., 0] >= 0)
        x_BLD = self._features(x_BLD, batch).masked_fill(~there_BL[..., None], 0.0)
        boxes = (self.box(x_BLD).float() + self._start(batch)).sigmoid()
        likeness = F.normalize(self.embed(x_BLD).float(), dim=-1) @ F.normalize(queries.float(), dim=-1).T
        logits = (likeness + self.shift(x_BLD).float()) * (F.elu(self.scale(x_BLD).float()) + 1)
        return Proposals(boxes, logits, there_BL)

    def _features(self, x_BLD: Tensor, batch: PackedBatch | View) -> Tensor:
        """What boxes and classes are read from."""
        return x_BLD

    def _start(self, batch: PackedBatch | View) -> Tensor:
        """The patch's own box before the sigmoid, f32 `[B, L, 4]`: a start at its own place learns faster."""
        return torch.logit(_own_boxes(batch, 0.5), eps=EDGE)


class ClassOwlHead(OwlHead):
    """The head of the published OWL-ViT: patches are multiplied by their image's class token, then normed.

    Its boxes start with their centre on the patch's lower right corner, as its code has it.
    """

    def __init__(self, width: int, query_width: int, norm_eps: float = 1e-5, objectness: bool = False) -> None:
        """Makes the head with fresh weights.

        Args:
            width, query_width: as for `OwlHead`.
            norm_eps: its norm's ε.
            objectness: it tells of each box too how likely it is an object of any kind (OWLv2, arXiv 2306.09683).
        """
        super().__init__(width, query_width)
        self.objectness = _mlp(width, 1) if objectness else None
        self.norm = nn.LayerNorm(width, eps=norm_eps)

    @torch.no_grad()
    def query_of(self, x_LD: Tensor, batch: PackedBatch) -> Tensor:
        """The query that a picture of an object is, `[query_width]`: the embedding of the patch whose box is that object.

        With objectness it is the likeliest object (OWLv2). Else, of the boxes that nearly fill the picture, the one that is
        least like its patches in the mean, which are mostly of ground (OWL-ViT).

        Args:
            x_LD: encoded tokens of the picture, which is the first of `batch`.
            batch: of one sequence.
        """
        mine = (batch.segment_ids[0] == 0) & (batch.positions[0, :, 0] >= 0)
        features_ND = self._features(x_LD[None], batch)[0, mine]
        embeddings_NQ = self.embed(features_ND)
        if self.objectness is not None:
            best: Tensor = embeddings_NQ[self.objectness(features_ND)[:, 0].argmax()]
            return best
        boxes_N4 = (self.box(features_ND).float() + self._start(batch)[0, mine]).sigmoid()
        low, high = boxes_N4[:, :2] - boxes_N4[:, 2:] / 2, boxes_N4[:, :2] + boxes_N4[:, 2:] / 2
        both_N = (high.clamp(max=1) - low.clamp(min=0)).clamp(min=0).prod(-1)
        share_N = both_N / (1 + boxes_N4[:, 2:].prod(-1) - both_N)
        near = (share_N >= 0.8 * share_N.max()).nonzero()[:, 0]
        found: Tensor = embeddings_NQ[near[(embeddings_NQ[near] @ embeddings_NQ.mean(0)).argmin()]]
        return found

    def _features(self, x_BLD: Tensor, batch: PackedBatch | View) -> Tensor:
        images = batch.grids.shape[1]
        class_BED = pick_prefix(x_BLD, batch.segment_ids, batch.positions, images, 0)
        index = batch.segment_ids.long().clamp_min(0)[..., None].expand_as(x_BLD)
        return self.norm(x_BLD * class_BED.gather(1, index))  # type: ignore[no-any-return]

    def _start(self, batch: PackedBatch | View) -> Tensor:
        box = _own_boxes(batch, 1.0)
        return torch.log(box + EDGE) - torch.log1p(EDGE - box)


class Detector(nn.Module):
    """A NaViT with an `OwlHead` whose queries are learnt, one for each class."""

    def __init__(self, model: NaViT, classes: int, prior: float = 0.01) -> None:
        """Makes the head with fresh weights.

        Args:
            model: its classifier and pooling are left unused.
            classes: Q.
            prior: chance of each class at each patch at first (arXiv 1708.02002, section 3.3).
        """
        super().__init__()
        self.model = model
        self.owl = OwlHead(model.config.width, model.config.width)
        self.queries = nn.Parameter(torch.randn(classes, model.config.width))
        nn.init.constant_(self.owl.shift.bias, math.log(prior / (1 - prior)))

    def forward(self, batch: PackedBatch | View) -> Proposals:
        """What each token proposes."""
        return self.owl(self.model.forward_features(batch), batch, self.queries)  # type: ignore[no-any-return]


def _mlp(width: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(width, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, outputs)
    )


def _own_boxes(batch: PackedBatch | View, within: float) -> Tensor:
    """Each patch's (x, y) and size as shares of its image, f32 `[B, L, 4]`; `within`: where in the patch (x, y) is."""
    index = batch.segment_ids.long().clamp_min(0)[..., None].expand(-1, -1, 2)
    h_w = batch.grids.long().gather(1, index).clamp_min(1).float()
    at = (batch.positions.clamp_min(0).float() + within) / h_w
    return torch.cat([at.flip(-1), (1 / h_w).flip(-1)], -1)


def detections(found: Proposals, batch: PackedBatch, threshold: float = 0.1) -> list[dict[str, Tensor]]:
    """The proposals above a threshold, for each image with status `OK`, in the order of the slots. Reads the host.

    Args:
        found: from `OwlHead`.
        batch: the same batch.
        threshold: least probability of the likeliest query.

    Returns:
        For each image `boxes`, f32 `[n, 4]`, (left, top, right, bottom) in pixels of the source, mirrored back where the
        image was mirrored; `scores`, f32 `[n]`, falling; `queries`, i64 `[n]`.
    """
    check_unwarped(batch, "boxes in the source")
    scores_BL, queries_BL = found.logits.sigmoid().max(-1)
    result = []
    for b, e in (batch.status == OK).nonzero().tolist():
        own = found.there[b] & (batch.segment_ids[b] == e) & (scores_BL[b] >= threshold)
        order = scores_BL[b][own].argsort(descending=True)
        boxes = in_source(found.boxes[b][own][order], batch.crops[b, e], bool(batch.flips[b, e]))
        result.append({"boxes": boxes, "scores": scores_BL[b][own][order], "queries": queries_BL[b][own][order]})
    return result


def best_of(found: Proposals, batch: PackedBatch, most: int = 300) -> list[dict[str, Tensor]]:
    """The likeliest pairs of box and query, for each image with status `OK`, as `detections` gives them: a box may have several
    names. Boxes end where the crop ends. Reads the host.

    Args:
        found: from `OwlHead`.
        batch: the same batch.
        most: pairs of each image (OWL-ViT: 300).
    """
    check_unwarped(batch, "boxes in the source")
    result = []
    for b, e in (batch.status == OK).nonzero().tolist():
        own = found.there[b] & (batch.segment_ids[b] == e)
        logits_NQ = found.logits[b][own]
        queries = logits_NQ.shape[1]
        values, places = logits_NQ.flatten().topk(min(most, logits_NQ.numel()))
        boxes = found.boxes[b][own][places // queries]
        low, high = (boxes[:, :2] - boxes[:, 2:] / 2).clamp(0, 1), (boxes[:, :2] + boxes[:, 2:] / 2).clamp(0, 1)
        boxes = in_source(torch.cat([(low + high) / 2, high - low], 1), batch.crops[b, e], bool(batch.flips[b, e]))
        result.append({"boxes": boxes, "scores": values.sigmoid(), "queries": places % queries})
    return result


def in_source(boxes: Tensor, crop: Tensor, flip: bool) -> Tensor:
    """(centre x, centre y, width, height) as shares of a crop → (left, top, right, bottom) in pixels of the source.

    Args:
        boxes: f32 `[n, 4]`.
        crop: i32 `[4]`, (top, left, height, width) in oriented source pixels.
        flip: the crop was mirrored left to right.
    """
    x, y, w, h = boxes.unbind(-1)
    if flip:
        x = 1 - x
    top, left, height, width = crop.to(boxes.dtype).unbind()
    corners = (
        left + (x - w / 2) * width,
        top + (y - h / 2) * height,
        left + (x + w / 2) * width,
        top + (y + h / 2) * height,
    )
    return torch.stack(corners, -1)
