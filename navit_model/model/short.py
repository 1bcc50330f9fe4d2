"""Attention within short segments: Triton kernels that waste little where images have some hundred tokens.

In: queries, keys and values of all tokens, and where each segment starts. Out: what any backend of `attention` gives, forward
and backward. Apart, since kernels for long sequences work on tiles of 128 × 128 tokens, of which an image of 148 fills a third;
these tiles are of 64 × 32. The backward pass makes each sum within one program, so its results are the same each time.
`attend` is None without Triton.

Shapes: T tokens · S segments · H heads · K channels of a head.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.library import triton_op, wrap_triton

try:
    import triton
    import triton.language as tl
except ImportError:  # pragma: no cover - torch for GPUs brings it
    triton = None

LONGEST = 256
"""Tokens of a segment, by the plan, up to which it was measured to be quicker than the kernels for long ones."""

CHANNELS = (16, 32, 64, 128)
"""K that the kernels take: tiles are powers of two."""

attend: Callable[[Tensor, Tensor, Tensor, Tensor, int], Tensor] | None = None

if triton is not None:
    M, N = 64, 32
    HOW = {"M": M, "N": N, "num_warps": 4, "num_stages": 3}
    """Tiles of M × N tokens; the quickest of ten on an H200, each way."""

    # Without annotations but `constexpr`: some versions of Triton look others up as globals, and refuse them. A program has
    # M tokens of one segment and head; those of one segment follow one another, so what they share is still at hand. Scores
    # are in powers of two. Numbers arrive as float64 from compiled code, hence the casts.
    # fmt: off
    @triton.jit  # type: ignore[untyped-decorator,unused-ignore]
    def _forward(  # type: ignore[no-untyped-def]
        q, k, v, out, lse, cu, tiles, heads, qt, qh, kt, kh, vt, vh, ot, oh, tokens, scale,
        K: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    ):
        """`out` and `lse`, the logarithm of each row's sum, of M queries."""
        n = tl.program_id(0)
        tile, head, segment = n % tiles, (n // tiles % heads).to(tl.int64), n // (tiles * heads)
        start = tl.load(cu + segment).to(tl.int64)
        length = (tl.load(cu + segment + 1) - start).to(tl.int32)
        if tile * M >= length:
            return
        rows, c = tile * M + tl.arange(0, M), tl.arange(0, K)
        there, scale = rows < length, tl.cast(scale, tl.float32)
        x = tl.load(q + (start + rows)[:, None] * qt + head * qh + c[None], mask=there[:, None], other=0.0)
        top, total = tl.full([M], float("-inf"), tl.float32), tl.zeros([M], tl.float32)
        sums = tl.zeros([M, K], tl.float32)
        for first in range(0, length, N):
            at = first + tl.arange(0, N)
            inside = at < length
            y = tl.load(k + (start + at)[:, None] * kt + head * kh + c[None], mask=inside[:, None], other=0.0)
            z = tl.load(v + (start + at)[:, None] * vt + head * vh + c[None], mask=inside[:, None], other=0.0)
            s = tl.where(inside[None], tl.dot(x, tl.trans(y)) * scale, float("-inf"))
            new = tl.maximum(top, tl.max(s, 1))
            p, fade = tl.exp2(s - new[:, None]), tl.exp2(top - new)
            total = total * fade + tl.sum(p, 1)
            sums = sums * fade[:, None] + tl.dot(p.to(z.dtype), z)
            top = new
        place = out + (start + rows)[:, None] * ot + head * oh + c[None]
        tl.store(place, (sums / total[:, None]).to(out.dtype.element_ty), mask=there[:, None])
        tl.store(lse + head * tokens + start + rows, top + tl.log2(total), mask=there)

    @triton.jit  # type: ignore[untyped-decorator,unused-ignore]
    def _backward_q(  # type: ignore[no-untyped-def]
        q, k, v, out, grad, lse, delta, dq, cu, tiles, heads, qt, qh, kt, kh, vt, vh, gt, gh, dt, dh, tokens, scale, plain,
        K: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    ):
        """`dq` of M queries, and `delta`, the product of each with its gradient, which `_backward_kv` needs."""
        n = tl.program_id(0)
        tile, head, segment = n % tiles, (n // tiles % heads).to(tl.int64), n // (tiles * heads)
        start = tl.load(cu + segment).to(tl.int64)
        length = (tl.load(cu + segment + 1) - start).to(tl.int32)
        if tile * M >= length:
            return
        rows, c = tile * M + tl.arange(0, M), tl.arange(0, K)
        there, scale = rows < length, tl.cast(scale, tl.float32)
        x = tl.load(q + (start + rows)[:, None] * qt + head * qh + c[None], mask=there[:, None], other=0.0)
        g = tl.load(grad + (start + rows)[:, None] * gt + head * gh + c[None], mask=there[:, None], other=0.0)
        o = tl.load(out + (start + rows)[:, None] * dt + head * dh + c[None], mask=there[:, None], other=0.0)
        level = tl.load(lse + head * tokens + start + rows, mask=there, other=float("inf"))
        d = tl.sum(o.to(tl.float32) * g.to(tl.float32), 1)
        tl.store(delta + head * tokens + start + rows, d, mask=there)
        sums = tl.zeros([M, K], tl.float32)
        for first in range(0, length, N):
            at = first + tl.arange(0, N)
            inside = at < length
            y = tl.load(k + (start + at)[:, None] * kt + head * kh + c[None], mask=inside[:, None], other=0.0)
            z = tl.load(v + (start + at)[:, None] * vt + head * vh + c[None], mask=inside[:, None], other=0.0)
            # Beyond the segment keys are zero, but where all scores are far below that, the power would be infinite, and 0 · ∞
            # no number.
            p = tl.where(inside[None], tl.exp2(tl.dot(x, tl.trans(y)) * scale - level[:, None]), 0.0)
            sums += tl.dot((p * (tl.dot(g, tl.trans(z)) - d[:, None])).to(y.dtype), y)
        place = dq + (start + rows)[:, None] * dt + head * dh + c[None]
        tl.store(place, (sums * tl.cast(plain, tl.float32)).to(dq.dtype.element_ty), mask=there[:, None])

    @triton.jit  # type: ignore[untyped-decorator,unused-ignore]
    def _backward_kv(  # type: ignore[no-untyped-def]
        q, k, v, grad, lse, delta, dk, dv, cu, tiles, heads, qt, qh, kt, kh, vt, vh, gt, gh, dt, dh, tokens, scale, plain,
        K: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    ):
        """`dk` and `dv` of M keys."""
        n = tl.program_id(0)
        tile, head, segment = n % tiles, (n // tiles % heads).to(tl.int64), n // (tiles * heads)
        start = tl.load(cu + segment).to(tl.int64)
        length = (tl.load(cu + segment + 1) - start).to(tl.int32)
        if tile * M >= length:
            return
        rows, c = tile * M + tl.arange(0, M), tl.arange(0, K)
        there, scale = rows < length, tl.cast(scale, tl.float32)
        y = tl.load(k + (start + rows)[:, None] * kt + head * kh + c[None], mask=there[:, None], other=0.0)
        z = tl.load(v + (start + rows)[:, None] * vt + head * vh + c[None], mask=there[:, None], other=0.0)
        sum_k, sum_v = tl.zeros([M, K], tl.float32), tl.zeros([M, K], tl.float32)
        for first in range(0, length, N):
            at = first + tl.arange(0, N)
            inside = at < length
            x = tl.load(q + (start + at)[:, None] * qt + head * qh + c[None], mask=inside[:, None], other=0.0)
            g = tl.load(grad + (start + at)[:, None] * gt + head * gh + c[None], mask=inside[:, None], other=0.0)
            level = tl.load(lse + head * tokens + start + at, mask=inside, other=float("inf"))
            d = tl.load(delta + head * tokens + start + at, mask=inside, other=0.0)
            p = tl.exp2(tl.dot(y, tl.trans(x)) * scale - level[None])
            sum_v += tl.dot(p.to(g.dtype), g)
            sum_k += tl.dot((p * (tl.dot(z, tl.trans(g)) - d[None])).to(x.dtype), x)
        place = (start + rows)[:, None] * dt + head * dh + c[None]
        tl.store(dk + place, (sum_k * tl.cast(plain, tl.float32)).to(dk.dtype.element_ty), mask=there[:, None])
        tl.store(dv + place, sum_v.to(dv.dtype.element_ty), mask=there[:, None])
    # fmt: on

    def _places(*arrays: Tensor) -> list[int]:
        return [step for array in arrays for step in array.stride()[:2]]

    @triton_op("navit::attend_short", mutates_args={})
    def _attend(q: Tensor, k: Tensor, v: Tensor, cu: Tensor, longest: int) -> tuple[Tensor, Tensor]:
        tokens, heads, channels = q.shape
        out = torch.empty((tokens, heads, channels), dtype=q.dtype, device=q.device)
        lse = torch.empty((heads, tokens), dtype=torch.float32, device=q.device)
        tiles = -(-longest // M)
        wrap_triton(_forward)[((cu.shape[0] - 1) * heads * tiles,)](
            q, k, v, out, lse, cu, tiles, heads, *_places(q, k, v, out), tokens, math.log2(math.e) / math.sqrt(channels),
            K=channels, **HOW,
        )  # fmt: skip
        return out, lse

    @triton_op("navit::attend_short_backward", mutates_args={})
    def _back(
        grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, cu: Tensor, longest: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        tokens, heads, channels = q.shape
        dq, dk, dv = (torch.empty((tokens, heads, channels), dtype=q.dtype, device=q.device) for _ in range(3))
        delta = torch.empty((heads, tokens), dtype=torch.float32, device=q.device)
        plain, tiles = 1 / math.sqrt(channels), -(-longest // M)
        rest = (cu, tiles, heads, *_places(q, k, v, grad, dq), tokens, plain * math.log2(math.e), plain)
        grid = ((cu.shape[0] - 1) * heads * tiles,)
        wrap_triton(_backward_q)[grid](q, k, v, out, grad, lse, delta, dq, *rest, K=channels, **HOW)
        wrap_triton(_backward_kv)[grid](q, k, v, grad, lse, delta, dk, dv, *rest, K=channels, **HOW)
        return dq, dk, dv

    def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        *arrays, ctx.longest = inputs
        ctx.save_for_backward(*arrays, *output)

    def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, cu, out, lse = ctx.saved_tensors
        return (*_back(_rows(grad), q, k, v, out, lse, cu, ctx.longest), None, None)

    _attend.register_autograd(_backward, setup_context=_keep)

    def _rows(x: Tensor) -> Tensor:
        """With the channels of a head side by side, as the kernels read them."""
        return x if x.stride(-1) == 1 else x.contiguous()

    def _attention(q: Tensor, k: Tensor, v: Tensor, cu: Tensor, longest: int) -> Tensor:
        """`[T, H, K]` of as many, with `cu` i32 `[S + 1]`, which ends at T, and no segment of more than `longest` tokens."""
        out: Tensor = _attend(_rows(q), _rows(k), _rows(v), cu, longest)[0]
        return out

    attend = _attention
