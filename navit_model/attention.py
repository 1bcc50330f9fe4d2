"""Attention over segments: one function, several backends, all equal to the plain one.

In: queries, keys and values of all tokens of a batch, flattened, and where each segment starts. Out: each token
attended to
its own segment alone. What a backend needs besides (`Segments`) is made once per forward pass, never per layer.

Shapes: T = B·L tokens · H heads · K = D/H channels of a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from navit_loader.errors import ModelError

Backend = Literal["dense", "segments", "torch_varlen"]
BACKENDS: tuple[Backend, ...] = ("dense", "segments", "torch_varlen")


@dataclass(frozen=True, slots=True)
class Segments:
    """Where the segments of a batch lie.

    Attributes:
        cu_seqlens: i32 `[S + 1]`, offsets over T; ends at T.
        max_seqlen: an upper bound of every segment, from the plan: no device value is ever read for it.
        backend: which kernel.
        groups: for `segments`: (token numbers `[n·t]`, n, t) of the n segments of t tokens each.
        same: for `dense`: bool `[T, T]`, whether two tokens share a segment.
    """

    cu_seqlens: Tensor
    max_seqlen: int
    backend: Backend
    groups: tuple[tuple[Tensor, int, int], ...] = ()
    same: Tensor | None = None


def choose(name: str, device: torch.device) -> Backend:
    """The backend for a device; `auto` takes PyTorch's varlen kernel on CUDA and `segments` elsewhere.

    Raises:
        ModelError: a backend that is not there on this device.
    """
    if name == "auto":
        return "torch_varlen" if device.type == "cuda" else "segments"
    for backend in BACKENDS:
        if name == backend:
            if backend == "torch_varlen" and device.type != "cuda":
                raise ModelError(f"attention = 'torch_varlen' needs a CUDA device, not {device.type}; use 'auto'")
            return backend
    raise ModelError(f"attention = {name!r} is not known; choose 'auto' or one of {', '.join(BACKENDS)}")


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _groups(cu_seqlens: Tensor) -> tuple[tuple[Tensor, int, int], ...]:
    starts = cu_seqlens.to("cpu", torch.int64)
    lengths = starts.diff()
    found = []
    for length in torch.unique(lengths).tolist():
        if length > 0:
            first = starts[:-1][lengths == length]
            tokens = (first[:, None] + torch.arange(length)).flatten()
            found.append((tokens.to(cu_seqlens.device), len(first), length))
    return tuple(found)


def segments(cu_seqlens: Tensor, max_seqlen: int, tokens: int, backend: Backend) -> Segments:
    """What `backend` needs to know of a batch; `tokens` is T."""
    if backend == "segments":
        return Segments(cu_seqlens, max_seqlen, backend, groups=_groups(cu_seqlens))
    if backend == "dense":
        places = torch.arange(tokens, device=cu_seqlens.device, dtype=cu_seqlens.dtype)
        number = torch.searchsorted(cu_seqlens, places, right=True)
        return Segments(cu_seqlens, max_seqlen, backend, same=number[:, None] == number[None, :])
    return Segments(cu_seqlens, max_seqlen, backend)


def attention(q_THK: Tensor, k_THK: Tensor, v_THK: Tensor, where: Segments) -> Tensor:
    """Scaled dot-product attention within segments.

    Args:
        q_THK: queries; `k_THK` and `v_THK` alike.
        k_THK: keys.
        v_THK: values.
        where: the segments.

    Returns:
        `[T, H, K]`.
    """
    if where.backend == "torch_varlen":
        from torch.nn.attention.varlen import varlen_attn

        cu, longest = where.cu_seqlens, where.max_seqlen
        out: Tensor = varlen_attn(q_THK, k_THK, v_THK, cu, cu, longest, longest)  # type: ignore[assignment]
        return out
    if where.same is not None:
        q, k, v = (x.transpose(0, 1) for x in (q_THK, k_THK, v_THK))
        return F.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=where.same)[0].transpose(0, 1)
    parts = []
    for tokens, n, t in where.groups:
        q, k, v = (x[tokens].view(n, t, *x.shape[1:]).transpose(1, 2) for x in (q_THK, k_THK, v_THK))
        parts.append(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(0, 1))
    order = torch.cat([tokens for tokens, _, _ in where.groups])
    return torch.empty_like(q_THK).index_copy(0, order, torch.cat(parts))
