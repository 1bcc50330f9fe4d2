"""NaViT: a vision transformer over packed images of any size (arXiv 2307.06304).

In: a `PackedBatch` on the model's device. Out: logits of each image, `[B, E, classes]`. Every shape is static, and
nothing of
the batch is read on the host.

Shapes: B sequences · L tokens · T = B·L · D width · H heads · K = D/H · E images per sequence · N = B·E image slots.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from navit_loader.batch import PackedBatch
from navit_loader.errors import ModelError

from .attention import Segments, attention, choose, segments
from .config import NaViTConfig


class NaViT(nn.Module):
    """Patch embedding, factorised positions, an encoder over segments, attention pooling, a classifier."""

    def __init__(self, config: NaViTConfig) -> None:
        """Makes a model with fresh weights.

        Args:
            config: its shape; `classes` must be known.
        """
        super().__init__()
        if config.classes < 1:
            raise ModelError(f"model.classes = {config.classes} is not allowed; it must be at least 1")
        self.config = config
        self.embed = PatchEmbedding(config)
        self.positions = FactorisedPositions(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=1e-6, bias=config.norm_bias)
        self.pool = AttentionPooling(config)
        self.head = nn.Linear(config.width, config.classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, batch: PackedBatch) -> Tensor:
        """Logits of each image slot, `[B, E, classes]`; only those with status `OK` mean anything.

        Raises:
            ModelError: a batch of another patch size or with larger grids than the model takes.
        """
        return self.forward_head(self.forward_features(batch), batch)

    def forward_features(self, batch: PackedBatch) -> Tensor:
        """Encoded tokens, `[B, L, D]`; zero influence from padding on images, and none between images."""
        self._check(batch)
        B, L = batch.segment_ids.shape
        x_TD = self.embed(batch.patches.flatten(0, 1)) + self.positions(batch.positions.flatten(0, 1))
        backend = choose(self.config.attention, x_TD.device)
        where = segments(batch.cu_seqlens, batch.max_seqlen, B * L, backend)
        order = where.order
        if order is not None:
            # Sorted once for all layers, since nothing but attention looks at neighbours.
            x_TD, where = x_TD[order], replace(where, order=None)
        for block in self.blocks:
            x_TD = block(x_TD, where)
        if order is not None:
            x_TD = x_TD[torch.argsort(order)]
        features: Tensor = self.norm(x_TD).unflatten(0, (B, L))
        return features

    def forward_head(self, x_BLD: Tensor, batch: PackedBatch, pre_logits: bool = False) -> Tensor:
        """Pooled images `[B, E, D]` with `pre_logits`, else their logits `[B, E, classes]` in float32."""
        pooled: Tensor = self.pool(x_BLD, batch.segment_ids, batch.grids.shape[1])
        return pooled if pre_logits else self.head(pooled).float()

    def _check(self, batch: PackedBatch) -> None:
        """Host values alone: nothing is read from a GPU. There the trainer holds `plan.max_grid` to the tables."""
        if batch.patch_size != self.config.patch_size:
            raise ModelError(
                f"the batch has patches of {batch.patch_size} pixels, the model takes {self.config.patch_size}; "
                "set plan.patch_sizes and model.patch_size alike"
            )
        if batch.grids.device.type == "cpu" and (largest := int(batch.grids.max())) > self.config.max_grid:
            raise ModelError(
                f"an image has {largest} patches on a side, the position tables end at model.max_grid = "
                f"{self.config.max_grid}; raise it, or lower plan.max_grid"
            )


class PatchEmbedding(nn.Module):
    """u8 patches → tokens: normalised on the device, then one linear map."""

    def __init__(self, config: NaViTConfig) -> None:
        super().__init__()
        area = config.patch_size**2
        self.proj = nn.Linear(area * 3, config.width)
        self.scale: Tensor
        self.shift: Tensor
        self.register_buffer("scale", (1 / (255 * torch.tensor(config.std))).repeat(area), persistent=False)
        self.register_buffer(
            "shift", (-torch.tensor(config.mean) / torch.tensor(config.std)).repeat(area), persistent=False
        )
        nn.init.trunc_normal_(self.proj.weight, std=(area * 3) ** -0.5)
        nn.init.zeros_(self.proj.bias)

    def forward(self, patches: Tensor) -> Tensor:
        """u8 `[T, P·P·3]` → `[T, D]`."""
        x = patches.to(self.proj.weight.dtype) * self.scale + self.shift
        return self.proj(x)  # type: ignore[no-any-return]


class FactorisedPositions(nn.Module):
    """φ_y(y) + φ_x(x), learned and absolute (NaViT, section 2.2, the best row of Table 3)."""

    def __init__(self, config: NaViTConfig) -> None:
        super().__init__()
        self.y = nn.Parameter(torch.empty(config.max_grid, config.width))
        self.x = nn.Parameter(torch.empty(config.max_grid, config.width))
        nn.init.trunc_normal_(self.y, std=0.02)
        nn.init.trunc_normal_(self.x, std=0.02)

    def forward(self, positions: Tensor) -> Tensor:
        """i16 `[T, 2]` → `[T, D]`; padding stands at −1 and reads the first row, which changes no image."""
        at = positions.long().clamp_(0, self.y.shape[0] - 1)
        return F.embedding(at[:, 0], self.y) + F.embedding(at[:, 1], self.x)


class Block(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, config: NaViTConfig) -> None:
        super().__init__()
        width, hidden = config.width, round(config.width * config.mlp_ratio)
        self.heads = config.heads
        self.norm1 = nn.LayerNorm(width, eps=1e-6, bias=config.norm_bias)
        self.qkv = nn.Linear(width, 3 * width, bias=config.qkv_bias)
        head = width // config.heads
        self.q_norm = nn.LayerNorm(head, eps=1e-6, bias=False) if config.qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(head, eps=1e-6, bias=False) if config.qk_norm else nn.Identity()
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6, bias=config.norm_bias)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)
        for linear in (self.qkv, self.out, self.up, self.down):
            nn.init.xavier_uniform_(linear.weight)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)

    def forward(self, x_TD: Tensor, where: Segments) -> Tensor:
        """`[T, D]` → `[T, D]`."""
        q, k, v = self.qkv(self.norm1(x_TD)).unflatten(1, (3, self.heads, -1)).unbind(1)
        a_THK = attention(self.q_norm(q), self.k_norm(k), v, where)
        x_TD = x_TD + self.out(a_THK.flatten(1))
        return x_TD + self.down(F.gelu(self.up(self.norm2(x_TD))))  # type: ignore[no-any-return]


class AttentionPooling(nn.Module):
    """One learned query per head attends to the tokens of each image (MAP: Zhai et al., arXiv 2106.04560, section
    3.2)."""

    def __init__(self, config: NaViTConfig) -> None:
        super().__init__()
        width, hidden = config.width, round(config.width * config.mlp_ratio)
        self.heads = config.heads
        self.query = nn.Parameter(torch.empty(config.heads, width // config.heads))
        self.kv = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=1e-6, bias=config.norm_bias)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)
        nn.init.trunc_normal_(self.query, std=0.02)
        for linear in (self.kv, self.out, self.up, self.down):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, x_BLD: Tensor, segment_ids: Tensor, images: int) -> Tensor:
        """`[B, L, D]` and i16 `[B, L]` → `[B, E, D]`: a softmax over each image's tokens, by scattering, no loop."""
        B, _L, D = x_BLD.shape
        real = (segment_ids >= 0).flatten()
        row = torch.arange(B, device=x_BLD.device)[:, None] * images
        # Tokens of no image go to a slot of their own, behind the others, which is cut off.
        slot_T = torch.where(real, (row + segment_ids).flatten(), B * images)
        x_TD = x_BLD.flatten(0, 1).masked_fill(~real[:, None], 0.0)
        k_THK, v_THK = self.kv(x_TD).unflatten(1, (2, self.heads, -1)).unbind(1)
        score_TH = (k_THK * self.query).sum(-1).float() * (D // self.heads) ** -0.5
        top = score_TH.new_full((B * images + 1, self.heads), -torch.inf)
        top = top.scatter_reduce(0, slot_T[:, None].expand_as(score_TH), score_TH.detach(), "amax")
        weight_TH = (score_TH - top.index_select(0, slot_T)).exp()
        total = torch.zeros_like(top).index_add(0, slot_T, weight_TH).clamp_min(torch.finfo(torch.float32).tiny)
        share_TH = (weight_TH / total.index_select(0, slot_T)).to(v_THK.dtype)
        pooled = v_THK.new_zeros(B * images + 1, D).index_add(0, slot_T, (v_THK * share_TH[..., None]).flatten(1))
        y = self.out(pooled[:-1].unflatten(0, (B, images)))
        return y + self.down(F.gelu(self.up(self.norm(y))))  # type: ignore[no-any-return]
