"""Attention over segments: one function, several backends, all equal to the plain one.

In: queries, keys and values of all tokens of a batch, flattened, and where each segment starts. Out: each token
attended to
its own segment alone. What a backend needs besides (`Segments`) is made once per forward pass, never per layer.

Shapes: T = B·L tokens · H heads · K = D/H channels of a head.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
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
        groups: for `segments`: (n, t) for the n segments of t tokens each, by rising t.
        order: for `segments`: the tokens by their segment's length, so that each group lies together; None where the
            tokens already do.
        same: for `dense`: bool `[T, T]`, whether two tokens share a segment.
    """

    cu_seqlens: Tensor
    max_seqlen: int
    backend: Backend
    groups: tuple[tuple[int, int], ...] = ()
    order: Tensor | None = None
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
def _by_length(cu_seqlens: Tensor) -> tuple[tuple[tuple[int, int], ...], Tensor]:
    """The groups of `Segments` and the order that brings them together; reads the offsets on the host."""
    starts = cu_seqlens.to("cpu", torch.int64)
    lengths = starts.diff()
    rank = torch.argsort(lengths, stable=True)
    sorted_lengths = lengths[rank]
    values, counts = torch.unique_consecutive(sorted_lengths, return_counts=True)
    # Token j of the k-th segment by length: that segment's start plus j.
    first = torch.repeat_interleave(starts[:-1][rank] - (sorted_lengths.cumsum(0) - sorted_lengths), sorted_lengths)
    order = (first + torch.arange(len(first))).to(cu_seqlens.device)
    groups = tuple((int(n), int(t)) for t, n in zip(values.tolist(), counts.tolist(), strict=True) if t > 0)
    return groups, order


def segments(cu_seqlens: Tensor, max_seqlen: int, tokens: int, backend: Backend) -> Segments:
    """What `backend` needs to know of a batch; `tokens` is T."""
    if backend == "segments":
        groups, order = _by_length(cu_seqlens)
        return Segments(cu_seqlens, max_seqlen, backend, groups=groups, order=order)
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
    if where.order is not None:
        q, k, v = (x[where.order] for x in (q_THK, k_THK, v_THK))
        return attention(q, k, v, replace(where, order=None))[torch.argsort(where.order)]
    sizes = [n * t for n, t in where.groups]
    parts = []
    for (n, t), q, k, v in zip(where.groups, *(torch.split(x, sizes) for x in (q_THK, k_THK, v_THK)), strict=True):
        q_nHtK, k_nHtK, v_nHtK = (x.view(n, t, *x.shape[1:]).transpose(1, 2) for x in (q, k, v))
        parts.append(
            F.scaled_dot_product_attention(q_nHtK, k_nHtK, v_nHtK).transpose(1, 2).reshape(n * t, *q.shape[1:])
        )
    return torch.cat(parts)
