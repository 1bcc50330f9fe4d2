"""Tokens → images: one vector for each image slot of a batch, `[B, E, D]`.

In: encoded tokens and which image each belongs to, −1 for those that are not to be read. Out: attention pooling, the
mean, or a prefix token.
Absent and failed images get finite vectors that no token reaches. Sums over an image are one matrix product with the 0/1
matrix of membership: no loop, no atomics, and float32 accumulation on every device.

Shapes: B sequences · L tokens · D width · H heads · K = D/H · E images per sequence · N = B·E image slots.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .encoder import MLP, Shape, initialise, norm


def members(segment_ids: Tensor, images: int, dtype: torch.dtype) -> Tensor:
    """0/1 `[B, E, L]`: whether token l is of image e. Padding and failed images belong to none."""
    numbers = torch.arange(images, device=segment_ids.device)
    return (segment_ids[:, None, :] == numbers[:, None]).to(dtype)


class AttentionPooling(nn.Module):
    """One learned query per head attends to the tokens of each image (MAP: arXiv 2106.04560, section 3.2)."""

    def __init__(self, config: Shape) -> None:
        super().__init__()
        width = config.width
        self.heads = config.pool_heads or config.heads
        self.query = nn.Parameter(torch.empty(self.heads, width // self.heads))
        self.kv = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.norm = norm(config, width) if config.pool_mlp else nn.Identity()
        self.mlp = MLP(config, config.pool_mlp_ratio or config.mlp_ratio) if config.pool_mlp else None
        nn.init.trunc_normal_(self.query, std=0.02)
        for linear in (self.kv, self.out):
            initialise(linear)

    def forward(self, x_BLD: Tensor, segment_ids: Tensor, images: int) -> Tensor:
        """`[B, L, D]` and i16 `[B, L]` → `[B, E, D]`: a softmax over the tokens of each image."""
        D = x_BLD.shape[-1]
        # What stands in masked slots may be anything, NaN included.
        x_BLD = x_BLD.masked_fill((segment_ids < 0)[..., None], 0.0)
        v: Tensor = F.linear(x_BLD, self.kv.weight[D:], self.kv.bias[D:])
        v = v.view(*v.shape[:2], self.heads, -1)
        score_BLH = self._scores(x_BLD)
        weight_BLH = (score_BLH - self._largest(score_BLH.detach(), segment_ids, images)).exp()
        member_BEL = members(segment_ids, images, v.dtype)
        total_BEH = members(segment_ids, images, torch.float32) @ weight_BLH
        sum_BED = member_BEL @ (v * weight_BLH[..., None].to(v.dtype)).flatten(2)
        # An absent image has neither tokens nor weight: 0/1.
        share = total_BEH.where(total_BEH > 0, 1.0).reciprocal().to(v.dtype)
        y = self.out((sum_BED.view(*share.shape, -1) * share[..., None]).flatten(2))
        return y if self.mlp is None else y + self.mlp(self.norm(y))  # type: ignore[no-any-return]

    def _scores(self, x_BLD: Tensor) -> Tensor:
        """What the queries make of each token, f32 `[B, L, H]`.

        Queries are weights, as the keys' projection is: their product is one vector a head, so no key is ever made. The
        keys' biases add the same to every token of an image, which a softmax does not see.
        """
        D = x_BLD.shape[-1]
        key_HKD = self.kv.weight[:D].float().view(self.heads, -1, D)
        with torch.autocast(x_BLD.device.type, enabled=False):
            vector_HD = torch.einsum("hk,hkd->hd", self.query.float(), key_HKD) * (D // self.heads) ** -0.5
            scores: Tensor = x_BLD.float() @ vector_HD.T
            return scores

    def _largest(self, score_BLH: Tensor, segment_ids: Tensor, images: int) -> Tensor:
        """For each token the largest score of its image, so that no exponential overflows."""
        slot_BL = torch.where(segment_ids >= 0, segment_ids.long(), images)
        slot_BLH = slot_BL[..., None].expand_as(score_BLH)
        top = score_BLH.new_full((score_BLH.shape[0], images + 1, self.heads), -torch.inf)
        return top.scatter_reduce(1, slot_BLH, score_BLH, "amax").gather(1, slot_BLH)


def pool_mean(x_BLD: Tensor, segment_ids: Tensor, images: int) -> Tensor:
    """Mean over the tokens of each image, `[B, L, D]` and i16 `[B, L]` → `[B, E, D]`; 0 for absent images."""
    member = members(segment_ids, images, x_BLD.dtype)
    counts = member.float().sum(-1, keepdim=True).clamp_min(1).to(x_BLD.dtype)
    return member @ x_BLD.masked_fill((segment_ids < 0)[..., None], 0.0) / counts


def pick_prefix(x_BLD: Tensor, segment_ids: Tensor, positions: Tensor, images: int, number: int) -> Tensor:
    """Prefix token `number` of each image, `[B, E, D]`; 0 for absent images."""
    there = (segment_ids >= 0) & (positions[..., 0] < 0) & (positions[..., 1] == number)
    member = members(segment_ids.where(there, -1), images, x_BLD.dtype)
    return member @ x_BLD.masked_fill(~there[..., None], 0.0)
