"""Attention over segments: one function, several backends, all equal to the plain one.

In: queries, keys and values of all tokens of a batch, flattened, and where each segment starts. Out: each token attended
to its own segment alone. What a backend needs besides (`Segments`) is made once per forward pass, never per layer.

| backend | where | how |
|---|---|---|
| `dense` | anywhere | one masked softmax over all T tokens: the oracle, and what can be traced on a CPU |
| `segments` | anywhere; `auto` takes it on CPUs and GPUs before Ampere | one call per length, which the host reads |
| `torch_varlen` | CUDA from Ampere on, half precision, heads of 8, 16, … 256 channels | PyTorch's own kernel |
| `flash_attn` | the same | flash-attn 3 on Hopper where it is installed, else 2 |
| `triton` | Hopper, half precision, heads of 16, 32, 64 or 128 channels | our own (`short`) where no image has more than 256
tokens by the plan and nothing is causal, elsewhere PyTorch's |

Shapes: T = B·L tokens · S segments · H heads · K = D/H channels of a head.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from navit_loader.errors import ModelError

from ..world import AMPERE

Backend = Literal["dense", "segments", "torch_varlen", "flash_attn", "triton"]
BACKENDS: tuple[Backend, ...] = ("dense", "segments", "torch_varlen", "flash_attn", "triton")
FUSED: tuple[Backend, ...] = ("torch_varlen", "flash_attn", "triton")
"""Those that are one kernel for all segments, on GPUs."""
HOPPER = (9, 0)
HALF = (torch.float16, torch.bfloat16)
STEP, WIDEST = 8, 256
"""Channels of a head that the varlen kernels take: multiples of the one, up to the other."""


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
        causal: a token sees those before it alone.
    """

    cu_seqlens: Tensor
    max_seqlen: int
    backend: Backend
    groups: tuple[tuple[int, int], ...] = ()
    order: Tensor | None = None
    same: Tensor | None = None
    causal: bool = False


def choose(
    name: str, device: torch.device, dtype: torch.dtype = torch.bfloat16, channels: int | None = None
) -> Backend:
    """The backend for a device; `auto` takes the fastest that is there.

    Args:
        name: `auto` or one of `BACKENDS`.
        device: where the batch lies.
        dtype: of queries, keys and values.
        channels: K of a head; None where it is not known yet.

    Raises:
        ModelError: a backend that is not there on this device, or does not take this dtype or heads of this width.
    """
    if device.type == "cpu" and dtype == torch.float16:
        raise ModelError("float16 is not supported on a CPU; use float32 or bfloat16 there")
    if name == "auto":
        capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
        hopper = capability == HOPPER
        name = automatic(
            capability,
            flash=hopper and importlib.util.find_spec("flash_attn_interface") is not None,
            own=hopper and _takes(channels),
        )
        if name == "segments":
            return name
    if name not in BACKENDS:
        raise ModelError(f"attention = {name!r} is not known; choose 'auto' or one of {', '.join(BACKENDS)}")
    if name in FUSED:
        if device.type != "cuda":
            raise ModelError(f"attention = '{name}' needs a CUDA device, not {device.type}; use 'auto'")
        if dtype not in HALF:
            raise ModelError(f"attention = '{name}' takes bfloat16 or float16, not {dtype}; use autocast, or 'dense'")
        if channels is not None and (channels % STEP or channels > WIDEST):
            raise ModelError(
                f"attention = '{name}' takes heads of a multiple of {STEP} channels, {WIDEST} at most; width / heads is "
                f"{channels}: change heads, or take attention = 'dense'"
            )
        if name == "triton":
            _check_own(device, channels)
        for causal in (False, True):
            _kernel(name, causal)
    return name


_ours: Any = None


def _short() -> Any:
    """The module of our own kernels. It is loaded where they may run, since it brings PyTorch's compiler along, two seconds of
    imports; and before a trace begins."""
    global _ours
    if _ours is None:
        from . import short

        _ours = short
    return _ours


def _takes(channels: int | None) -> bool:
    """Whether our own kernels are there for heads of so many channels."""
    short = _short()
    return short.attend is not None and (channels is None or channels in short.CHANNELS)


def _check_own(device: torch.device, channels: int | None) -> None:
    if torch.cuda.get_device_capability(device) != HOPPER:
        raise ModelError("attention = 'triton' was measured on Hopper alone, and this is another GPU; use 'auto'")
    short = _short()
    if short.attend is None:
        raise ModelError("attention = 'triton' needs Triton, which is not installed; use 'torch_varlen'")
    if not _takes(channels):
        raise ModelError(
            f"attention = 'triton' takes heads of {', '.join(map(str, short.CHANNELS))} channels, not {channels}; use 'auto'"
        )


def automatic(capability: tuple[int, int] | None, flash: bool, own: bool = False) -> Backend:
    """The backend of `auto`.

    Args:
        capability: compute capability of the GPU; None on a CPU. Kernels of packed attention begin with Ampere.
        flash: whether flash-attn 3 is installed and runs there: on Hopper alone.
        own: whether our own kernels do: on Hopper alone, with Triton.
    """
    if capability is None or capability < AMPERE:
        return "segments"
    if flash:
        return "flash_attn"
    return "triton" if own else "torch_varlen"


def check_traceable(name: str, device: torch.device) -> None:
    """Refuses what `torch.compile` cannot trace.

    Raises:
        ModelError: the backend that `name` means on this device reads lengths on the host.
    """
    if choose(name, device) == "segments":
        raise ModelError("attention = 'segments' cannot be traced; set attention = 'dense' to compile on a CPU")


def choose_for(name: str, x: Tensor, channels: int) -> Backend:
    """As `choose`, for tokens `x` as they will reach the kernel: autocast changes their dtype; `channels` is K."""
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    return choose(name, x.device, dtype, channels)


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


def number_of(cu_seqlens: Tensor, tokens: int) -> Tensor:
    """The segment of each token, i64 `[T]`; no host value is read."""
    # How many segments end there or before; counted this way it can be exported anywhere.
    ends = cu_seqlens[1:].long()
    return ends.new_zeros(tokens + 1).scatter_add(0, ends, torch.ones_like(ends))[:-1].cumsum(0)


def segments(cu_seqlens: Tensor, max_seqlen: int, tokens: int, backend: Backend, *, causal: bool = False) -> Segments:
    """What `backend` needs to know of a batch; `tokens` is T. With `causal` a token sees those before it alone.

    Raises:
        ModelError: `segments` is asked for while PyTorch traces, which it cannot follow.
    """
    if backend == "segments":
        if torch.compiler.is_compiling():
            raise ModelError("attention = 'segments' cannot be traced; set attention = 'dense' to compile on a CPU")
        groups, order = _by_length(cu_seqlens)
        return Segments(cu_seqlens, max_seqlen, backend, groups=groups, order=order, causal=causal)
    if backend == "dense":
        number = number_of(cu_seqlens, tokens)
        same = number[:, None] == number[None, :]
        return Segments(cu_seqlens, max_seqlen, backend, same=same.tril() if causal else same, causal=causal)
    return Segments(cu_seqlens, max_seqlen, backend, causal=causal)


def attention(q_THK: Tensor, k_THK: Tensor, v_THK: Tensor, where: Segments) -> Tensor:
    """Scaled dot-product attention within segments.

    Args:
        q_THK: queries.
        k_THK: keys.
        v_THK: values.
        where: the segments.

    Returns:
        `[T, H, K]`.
    """
    if where.backend in FUSED:
        cu, longest = where.cu_seqlens, where.max_seqlen
        return _kernel(where.backend, where.causal)(q_THK, k_THK, v_THK, cu, cu, longest, longest)
    if where.same is not None:
        q, k, v = (x.transpose(0, 1) for x in (q_THK, k_THK, v_THK))
        return F.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=where.same)[0].transpose(0, 1)
    if where.order is not None:
        q, k, v = (x[where.order] for x in (q_THK, k_THK, v_THK))
        return attention(q, k, v, replace(where, order=None))[torch.argsort(where.order)]
    sizes = [n * t for n, t in where.groups]
    parts = []
    for (n, t), q, k, v in zip(where.groups, *(torch.split(x, sizes) for x in (q_THK, k_THK, v_THK)), strict=True):
        q_nHtK, k_nHtK, v_nHtK = (x.unflatten(0, (n, t)).transpose(1, 2) for x in (q, k, v))
        parts.append(
            F.scaled_dot_product_attention(q_nHtK, k_nHtK, v_nHtK, is_causal=where.causal).transpose(1, 2).flatten(0, 1)
        )
    return torch.cat(parts)


Kernel = Callable[..., Tensor]
_kernels: dict[tuple[Backend, bool], Kernel] = {}


def _kernel(backend: Backend, causal: bool) -> Kernel:
    """The varlen kernel of a backend, `(q, k, v, cu_q, cu_k, max_q, max_k)`, found once, by `choose` before a trace."""
    found = _kernels.get((backend, causal))
    if found is None:
        found = {"torch_varlen": _varlen, "flash_attn": _flash, "triton": _own}[backend](causal)
        _kernels[backend, causal] = found
    return found


def _varlen(causal: bool) -> Kernel:
    """PyTorch's. Without `causal`, neither `is_causal` nor `window_size` is passed: the signature changed there between 2.10
    and 2.12, so with it, the signature says which one there is.
    """
    from torch.nn.attention.varlen import varlen_attn

    if not causal:
        return cast(Kernel, varlen_attn)
    old = "is_causal" in inspect.signature(varlen_attn).parameters
    how: dict[str, Any] = {"is_causal": True} if old else {"window_size": (-1, 0)}
    return partial(cast(Kernel, varlen_attn), **how)


def _own(causal: bool) -> Kernel:
    """Ours where segments are short by the plan, PyTorch's elsewhere: a bound is known before any segment is."""
    short, other = _short(), _varlen(causal)
    attend = short.attend
    if causal or attend is None:
        return other
    longest: int = short.LONGEST

    def own(q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int) -> Tensor:
        if max_q > longest:
            return other(q, k, v, cu_q, cu_k, max_q, max_k)
        return cast(Tensor, attend(q, k, v, cu_q, max_q))

    return own


def _flash(causal: bool) -> Kernel:
    """That of the newest flash-attn that is installed; version 3 runs on Hopper alone."""
    hopper = torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)
    names = ("flash_attn_interface", "flash_attn") if hopper else ("flash_attn",)
    name = next((name for name in names if importlib.util.find_spec(name)), None)
    if name is None:
        raise ModelError("attention = 'flash_attn': no flash-attn is installed; install it or use 'torch_varlen'")
    function: Any = importlib.import_module(name).flash_attn_varlen_func

    def flash(q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int) -> Tensor:
        # flash-attn 2 fails at a bound of 1 beside empty segments; any larger bound is as good.
        found = function(q, k, v, cu_q, cu_k, max(max_q, 2), max(max_k, 2), causal=causal)
        return cast(Tensor, found[0] if isinstance(found, tuple) else found)

    return flash
