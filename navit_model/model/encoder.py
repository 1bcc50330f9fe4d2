"""The encoder's blocks: attention and MLP over flattened tokens.

In: tokens `[T, D]` and what is the same for all layers (`Context`), made once per forward pass. Out: tokens `[T, D]`.
Apart from the model, since the text tower is made of the same blocks.

Shapes: T = B·L tokens · D width · H heads · K = D/H · S segments.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import Segments, attention
from .positions import rotate, turned

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "quick_gelu": lambda x: F.silu(1.702 * x).div_(1.702),  # x·σ(1.702 x), with an array less
    "silu": F.silu,
}


class Shape(Protocol):
    """What a block reads of a configuration; `NaViTConfig` and `TextConfig` have it."""

    @property
    def width(self) -> int: ...  # noqa: D102
    @property
    def depth(self) -> int: ...  # noqa: D102
    @property
    def heads(self) -> int: ...  # noqa: D102
    @property
    def mlp_ratio(self) -> float: ...  # noqa: D102
    @property
    def qk_norm(self) -> bool: ...  # noqa: D102
    @property
    def qkv_bias(self) -> bool: ...  # noqa: D102
    @property
    def norm_bias(self) -> bool: ...  # noqa: D102
    @property
    def out_bias(self) -> bool: ...  # noqa: D102
    @property
    def mlp_bias(self) -> bool: ...  # noqa: D102
    @property
    def norm(self) -> str: ...  # noqa: D102
    @property
    def norm_place(self) -> str: ...  # noqa: D102
    @property
    def parallel(self) -> bool: ...  # noqa: D102
    @property
    def attn_norm(self) -> bool: ...  # noqa: D102
    @property
    def mlp_gate(self) -> bool: ...  # noqa: D102
    @property
    def mlp_norm(self) -> bool: ...  # noqa: D102
    @property
    def rope_speeds(self) -> str: ...  # noqa: D102
    @property
    def pool_heads(self) -> int: ...  # noqa: D102
    @property
    def v_norm(self) -> bool: ...  # noqa: D102
    @property
    def differential(self) -> bool: ...  # noqa: D102
    @property
    def pool_mlp(self) -> bool: ...  # noqa: D102
    @property
    def pool_mlp_ratio(self) -> float: ...  # noqa: D102
    @property
    def norm_eps(self) -> float: ...  # noqa: D102
    @property
    def activation(self) -> str: ...  # noqa: D102
    @property
    def layer_scale(self) -> float: ...  # noqa: D102
    @property
    def drop_path(self) -> float: ...  # noqa: D102
    @property
    def dropout(self) -> float: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Context:
    """What every block sees of a batch.

    Attributes:
        where: the segments.
        rotation: cosine and sine of each token's rotation, or None.
        places: f32 `[T, 2]`, what tokens turn by, where each block knows its own speeds; else None.
        segment: i64 `[T]`, the segment of each token, or None where nothing is drawn per image.
        segments: S, the number of segments, a host value.
    """

    where: Segments
    rotation: tuple[Tensor, Tensor] | None = None
    places: Tensor | None = None
    segment: Tensor | None = None
    segments: int = 0


class Block(nn.Module):
    """Attention and MLP, each a branch beside the residual stream, with its norm before it, after it, or both."""

    def __init__(self, config: Shape, drop_path: float = 0.0, number: int = 0) -> None:
        super().__init__()
        width, channels = config.width, config.width // config.heads // (2 if config.differential else 1)
        before, after = config.norm_place != "after", config.norm_place != "before"
        self.heads, self.draws = config.heads, drop_path > 0
        # The rate and the share that stays. A tensor: as numbers they would be a trace of their own for each block.
        self.rates: Tensor
        self.register_buffer("rates", torch.tensor([drop_path, 1 - drop_path]), persistent=False)
        self.norm1 = norm(config, width) if before else nn.Identity()
        self.qkv = nn.Linear(width, 3 * width, bias=config.qkv_bias)
        self.q_norm = norm(config, channels) if config.qk_norm else nn.Identity()
        self.k_norm = norm(config, channels) if config.qk_norm else nn.Identity()
        self.v_norm = norm(config, channels) if config.v_norm else nn.Identity()
        self.difference = Difference(channels, number) if config.differential else None
        self.speeds = None
        if config.rope_speeds == "learned":
            # In radians a patch: at first a turn takes some twenty patches, in directions of all kinds.
            self.speeds = nn.Parameter(0.3 * torch.randn(2, config.heads, width // config.heads // 2))
        self.attn_norm = norm(config, width) if config.attn_norm else nn.Identity()
        self.out = nn.Linear(width, width, bias=config.out_bias)
        self.after1 = norm(config, width) if after else nn.Identity()
        self.norm2 = norm(config, width) if before and not config.parallel else nn.Identity()
        self.mlp = mlp(config)
        self.after2 = norm(config, width) if after else nn.Identity()
        self.dropout = nn.Dropout(config.dropout) if config.dropout else nn.Identity()
        scaled = config.layer_scale > 0
        self.scale1 = nn.Parameter(torch.full((width,), config.layer_scale)) if scaled else None
        self.scale2 = nn.Parameter(torch.full((width,), config.layer_scale)) if scaled and not config.parallel else None
        for linear in (self.qkv, self.out):
            initialise(linear)

    def forward(self, x_TD: Tensor, context: Context) -> Tensor:
        """`[T, D]` → `[T, D]`."""
        x_TD = x_TD + self._branch(self.after1(self._attend(self.norm1(x_TD), context)), self.scale1, context)
        return x_TD + self._branch(self.after2(self.mlp(self.norm2(x_TD))), self.scale2, context)

    def _attend(self, x_TD: Tensor, context: Context) -> Tensor:
        q, k, v = self.qkv(x_TD).unflatten(1, (3, self.heads, -1)).unbind(1)
        if self.difference is not None:
            q, k = (self.q_norm(q.unflatten(2, (2, -1))).to(v.dtype), self.k_norm(k.unflatten(2, (2, -1))).to(v.dtype))
            return self.out(self.attn_norm(self.difference(q, k, v, context).flatten(1)))  # type: ignore[no-any-return]
        # Under autocast the norms answer in float32; the kernels want one dtype.
        q, k, v = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype), self.v_norm(v).to(v.dtype)
        rotation = context.rotation
        if self.speeds is not None and context.places is not None:
            rotation = turned(context.places, self.speeds)
        if rotation is not None:
            q, k = rotate(q, *rotation), rotate(k, *rotation)
        return self.out(self.attn_norm(attention(q, k, v, context.where).flatten(1)))  # type: ignore[no-any-return]

    def _branch(self, y_TD: Tensor, scale: Tensor | None, context: Context) -> Tensor:
        y_TD = self.dropout(y_TD)
        if scale is not None:
            y_TD = y_TD * scale
        if self.training and self.draws and context.segment is not None:
            # Stochastic depth (arXiv 1603.09382): an image skips the branch as a whole.
            dropped, left = self.rates.float().unbind()
            kept = torch.rand(context.segments, device=y_TD.device) >= dropped
            share = (kept.float() / left).to(y_TD.dtype)
            y_TD = y_TD * share.index_select(0, context.segment)[:, None]
        return y_TD


class ParallelBlock(Block):
    """Attention and MLP beside each other, on the same norm (arXiv 2302.05442, section 2)."""

    def forward(self, x_TD: Tensor, context: Context) -> Tensor:
        """`[T, D]` → `[T, D]`."""
        y_TD = self.norm1(x_TD)
        return x_TD + self._branch(self._attend(y_TD, context) + self.mlp(y_TD), self.scale1, context)


class Difference(nn.Module):
    """One attention less a learned share of another (Differential Transformer, arXiv 2410.05258, section 2.1).

    All four products, of each half of a head's queries and keys with each half of its values, are one call of the kernel.
    """

    def __init__(self, channels: int, number: int) -> None:
        super().__init__()
        # λ = exp(q₁·k₁) − exp(q₂·k₂) + a start that rises with the block's number; a tensor, for one trace of all blocks.
        self.pairs = nn.Parameter(0.1 * torch.randn(2, 2, channels))
        self.start: Tensor
        start = 0.8 - 0.6 * math.exp(-0.3 * number)
        self.register_buffer("start", torch.tensor(start), persistent=False)
        self.norm = nn.RMSNorm(2 * channels, eps=1e-5)
        nn.init.constant_(self.norm.weight, 1 - start)

    def forward(self, q_TH2K: Tensor, k_TH2K: Tensor, v_THV: Tensor, context: Context) -> Tensor:
        """Queries and keys `[T, H, 2, K]`, values `[T, H, 2K]` → `[T, H, 2K]`."""
        T, H, _, K = q_TH2K.shape
        q, k = (x[:, :, :, None].expand(-1, -1, -1, 2, -1).reshape(T, H * 4, K) for x in (q_TH2K, k_TH2K))
        v = v_THV.view(T, H, 1, 2, K).expand(-1, -1, 2, -1, -1).reshape(T, H * 4, K)
        one, other = attention(q, k, v, context.where).view(T, H, 2, 2 * K).unbind(2)
        first, second = self.pairs.float().prod(1).sum(1).exp().unbind()
        share = (first - second + self.start).to(one.dtype)
        return self.norm(one - share * other)  # type: ignore[no-any-return]


class MLP(nn.Module):
    """Linear, activation, a norm where there is one, linear."""

    def __init__(self, config: Shape, ratio: float, up: int = 1, *, normed: bool = False) -> None:
        super().__init__()
        hidden = round(config.width * ratio)
        self.activation = config.activation
        self.up = nn.Linear(config.width, up * hidden, bias=config.mlp_bias)
        self.norm = norm(config, hidden) if normed else nn.Identity()
        self.down = nn.Linear(hidden, config.width, bias=config.mlp_bias)
        for linear in (self.up, self.down):
            initialise(linear)

    def forward(self, x: Tensor) -> Tensor:
        """`[…, D]` → `[…, D]`."""
        return self.down(self.norm(self._hidden(self.up(x))))  # type: ignore[no-any-return]

    def _hidden(self, y: Tensor) -> Tensor:
        return ACTIVATIONS[self.activation](y)


class GatedMLP(MLP):
    """The same with a first layer twice as wide: the activation of its first half times its second (arXiv 2002.05202)."""

    def __init__(self, config: Shape, ratio: float, *, normed: bool = False) -> None:
        super().__init__(config, ratio, up=2, normed=normed)

    def _hidden(self, y: Tensor) -> Tensor:
        gate, y = y.chunk(2, -1)
        return ACTIVATIONS[self.activation](gate) * y


def mlp(config: Shape) -> MLP:
    """The MLP of a block, as the configuration wants it."""
    return (GatedMLP if config.mlp_gate else MLP)(config, config.mlp_ratio, normed=config.mlp_norm)


def blocks(config: Shape) -> nn.ModuleList:
    """The encoder: `depth` blocks, their stochastic depth rising linearly from 0 to `drop_path`."""
    last = max(config.depth - 1, 1)
    kind = ParallelBlock if config.parallel else Block
    return nn.ModuleList(kind(config, config.drop_path * n / last, n) for n in range(config.depth))


def norm(config: Shape, width: int) -> nn.Module:
    """A norm as the configuration wants it."""
    if config.norm == "rms":
        return nn.RMSNorm(width, eps=config.norm_eps)
    return nn.LayerNorm(width, eps=config.norm_eps, bias=config.norm_bias)


def initialise(linear: nn.Linear) -> None:
    """Xavier-uniform weights, as big_vision's; biases of 0."""
    nn.init.xavier_uniform_(linear.weight)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
