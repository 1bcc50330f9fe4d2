"""Segmentation: what each patch belongs to, by the mask transformer of Segmenter (arXiv 2105.05633), or by one linear layer.

In: a NaViT and a packed batch. Out: logits of each token, `[B, L, K]`, of classes, or of the segments that queries stand for
with the class of each. `dense.finer` and `dense.pixels` enlarge them. Each image's segment is lengthened by K learned tokens,
so that a few more blocks let patches and queries look at each other; images stay apart, shapes stay static, and any backend of
the attention will do.

Shapes: B sequences · L tokens · T = B·L · S segments · E images of a sequence · K classes or queries · D width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from navit_loader.batch import PackedBatch, View

from .attention import choose_for, number_of, segments
from .encoder import Context, blocks, norm
from .navit import NaViT


class MaskTransformer(nn.Module):
    """A NaViT, and a few blocks in which its patches meet learned tokens."""

    def __init__(self, model: NaViT, classes: int, depth: int = 2) -> None:
        """Makes it with fresh weights; its blocks have the model's shape.

        Args:
            model: its classifier and pooling are left unused.
            classes: K.
            depth: blocks behind the model's.
        """
        super().__init__()
        self.model = model
        config = replace(model.config, depth=depth, drop_path=0.0)
        self.input = nn.Linear(config.width, config.width)
        self.classes = nn.Parameter(torch.empty(classes, config.width))
        self.blocks = blocks(config)
        self.norm = norm(config, config.width)
        self.to_patch = nn.Linear(config.width, config.width, bias=False)
        self.to_class = nn.Linear(config.width, config.width, bias=False)
        nn.init.trunc_normal_(self.classes, std=0.02)
        for linear in (self.to_patch, self.to_class):
            nn.init.normal_(linear.weight, std=config.width**-0.5)

    def decode(self, batch: PackedBatch | View) -> tuple[Tensor, Tensor]:
        """Likeness of each token to each learned token of its image, f32 `[B, L, K]`, and these tokens, `[B, E, K, D]`; of
        absent images they mean nothing."""
        x_TD = self.input(self.model.forward_features(batch)).flatten(0, 1)
        # What stands in padding would be harmless but for NaN.
        x_TD = x_TD.masked_fill((batch.segment_ids < 0).flatten()[:, None], 0.0)
        B, L = batch.segment_ids.shape
        config = self.model.config
        K, S, cu_seqlens = len(self.classes), len(batch.cu_seqlens) - 1, batch.cu_seqlens
        number_T = number_of(cu_seqlens, B * L)
        # Segment s is K tokens longer: patches move back by s·K, and its classes stand at its end.
        steps = torch.arange(S + 1, device=x_TD.device)
        patch_T = torch.arange(B * L, device=x_TD.device) + number_T * K
        class_SK = (cu_seqlens[1:] + steps[:-1] * K)[:, None] + torch.arange(K, device=x_TD.device)
        all_TD = x_TD.new_empty(B * L + S * K, x_TD.shape[1])
        all_TD = all_TD.index_copy(0, patch_T, x_TD)
        all_TD = all_TD.index_copy(0, class_SK.flatten(), self.classes.to(x_TD.dtype).repeat(S, 1))
        longer = (cu_seqlens + steps * K).to(cu_seqlens.dtype)
        backend = choose_for(config.attention, all_TD, config.width // config.heads)
        where = segments(longer, batch.max_seqlen + K, len(all_TD), backend)
        order = where.order
        if order is not None:
            all_TD, where = all_TD[order], replace(where, order=None)
        context = Context(where, segment=None, segments=S)
        for block in self.blocks:
            all_TD = block(all_TD, context)
        if order is not None:
            all_TD = all_TD[torch.argsort(order)]
        all_TD = self.norm(all_TD)

        patch_BLD = F.normalize(self.to_patch(all_TD[patch_T]).float(), dim=-1).view(B, L, -1)
        learned_SKD = all_TD[class_SK]
        class_SKD = F.normalize(self.to_class(learned_SKD).float(), dim=-1)
        # The images of a sequence are the first of its segments; absent ones borrow another's classes and are not read.
        E = batch.grids.shape[1]
        first_B = number_T.view(B, L)[:, 0]
        image_BE = (first_B[:, None] + torch.arange(E, device=first_B.device)).clamp_max(S - 1)
        masks_BLEK = torch.einsum("bld,bekd->blek", patch_BLD, class_SKD[image_BE])
        own_BL = batch.segment_ids.long().clamp_min(0)
        masks_BLK = masks_BLEK.gather(2, own_BL[..., None, None].expand(-1, -1, 1, K))[:, :, 0]
        return masks_BLK, learned_SKD[image_BE]


class Segmenter(MaskTransformer):
    """A NaViT with a mask transformer for a head."""

    def __init__(self, model: NaViT, classes: int, depth: int = 2) -> None:
        """Makes it with fresh weights; see `MaskTransformer`."""
        super().__init__(model, classes, depth)
        self.mask_norm = nn.LayerNorm(classes)

    def forward(self, batch: PackedBatch | View) -> Tensor:
        """Logits of each token, f32 `[B, L, K]`; only those of patches mean anything."""
        masks_BLK, _ = self.decode(batch)
        return self.mask_norm(masks_BLK.to(self.mask_norm.weight.dtype)).float()  # type: ignore[no-any-return]


class LinearSegmenter(nn.Module):
    """A NaViT with one linear layer for a head (Segmenter, section 3.2)."""

    def __init__(self, model: NaViT, classes: int) -> None:
        """Makes the head with fresh weights; the model's classifier and pooling are left unused."""
        super().__init__()
        self.model = model
        self.to_class = nn.Linear(model.config.width, classes)
        nn.init.trunc_normal_(self.to_class.weight, std=0.02)
        nn.init.zeros_(self.to_class.bias)

    def forward(self, batch: PackedBatch | View) -> Tensor:
        """As `Segmenter`."""
        x_BLD = self.model.forward_features(batch)
        # What stands in padding would be harmless but for NaN.
        x_BLD = x_BLD.masked_fill((batch.segment_ids < 0)[..., None], 0.0)
        return self.to_class(x_BLD).float()  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class Regions:
    """What the queries of each image stand for.

    Attributes:
        masks: f32 `[B, L, K]`, logits of each token's lying in the segment of each query of its image.
        kinds: f32 `[B, E, K, classes + 1]`, logits of each query's class; the last is that of no segment.
    """

    masks: Tensor
    kinds: Tensor


class RegionSegmenter(MaskTransformer):
    """A NaViT whose learned tokens each stand for a segment, of a thing or of stuff, or for none (arXiv 2107.06278)."""

    def __init__(self, model: NaViT, classes: int, queries: int, depth: int = 2) -> None:
        """Makes it with fresh weights.

        Args:
            model: see `MaskTransformer`.
            classes: of things and stuff.
            queries: K, segments of an image at most.
            depth: see `MaskTransformer`.
        """
        super().__init__(model, queries, depth)
        self.to_kind = nn.Linear(model.config.width, classes + 1)
        # Likeness lies between −1 and 1: by these it may say yes and no, and at first it says no.
        self.scale = nn.Parameter(torch.tensor(10.0))
        self.shift = nn.Parameter(torch.tensor(-2.0))
        nn.init.trunc_normal_(self.to_kind.weight, std=0.02)
        nn.init.zeros_(self.to_kind.bias)

    def forward(self, batch: PackedBatch | View) -> Regions:
        """The segments of each image."""
        masks_BLK, learned_BEKD = self.decode(batch)
        return Regions(masks_BLK * self.scale + self.shift, self.to_kind(learned_BEKD).float())
