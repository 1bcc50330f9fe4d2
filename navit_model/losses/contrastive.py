"""Losses of image–text pairs over all ranks, block by block: the matrix of all pairs never exists.

In: each rank's image and text embeddings, one row a pair, and which pairs are real. Out: the sum over this rank's pairs and
their number, so that the trainer can divide by the global number. Apart from the other losses, since these alone look
across ranks.

The texts travel around the ring of ranks, so that each rank meets every text with its own images; what a text gathers on
the way (its normaliser, its gradient) comes home with it. The backward pass computes each block again. A rank holds N
pairs of its own, N visitors and one block of N × `BLOCK` logits: memory grows linearly with the local pairs and not at
all with the ranks. This is NaViT's chunked contrastive loss (arXiv 2307.06304, section 2.3), made exact for ranks with
unequal numbers of pairs.

Shapes: N pairs (slots) of a rank · D width of the embeddings · M ≤ `BLOCK` texts of a block.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from navit_loader.errors import ModelError

BLOCK = 1024
"""Texts that are compared with the local images at once."""

Group = dist.ProcessGroup | None


def softmax_contrastive(
    images: Tensor, texts: Tensor, valid: Tensor, scale: Tensor, *, group: Group = None
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each image over all texts and of each text over all images, averaged, summed over local pairs.

    With zᵢⱼ = s·⟨xᵢ, yⱼ⟩ over the pairs of all ranks, pair i costs ½(lseⱼ zᵢⱼ − zᵢᵢ) + ½(lseⱼ zⱼᵢ − zᵢᵢ) (CLIP, arXiv
    2103.00020, section 2.3). Every rank of the group must call this, and run the backward pass, together.

    Args:
        images: `[…, D]`, unit vectors; the same shape on every rank.
        texts: `[…, D]`, unit vectors; row i belongs to image i.
        valid: bool `[…]`, which pairs are real: any number of them on any rank. What stands elsewhere, NaN included,
            reaches neither value nor gradient.
        scale: s, a scalar: the inverse temperature.
        group: the ranks; None takes all of them, or this process alone where there is no process group.

    Returns:
        The sum over this rank's pairs, f32, and their number. Its gradient on this rank is that of the sum over *all*
        ranks with respect to this rank's rows, so averaging parameter gradients over the ranks, times their number, is
        exact, as DDP does. The gradient of `scale` is this rank's share.

    Raises:
        ModelError: shapes that do not belong together.
    """
    x_ND, y_ND, real_N = _pairs(images, texts, valid)
    with torch.autocast(x_ND.device.type, enabled=False):
        scale = scale.float()
        rows, columns = _Normalisers.apply(x_ND, y_ND, scale, real_N, group)
        each = (rows + columns) / 2 - scale * (x_ND * y_ND).sum(-1)
    return torch.where(real_N, each, 0.0).sum(), real_N.sum()


def sigmoid_contrastive(
    images: Tensor, texts: Tensor, valid: Tensor, scale: Tensor, bias: Tensor, *, group: Group = None
) -> tuple[Tensor, Tensor]:
    """One binary decision for every image with every text, summed over local images (SigLIP, arXiv 2303.15343, section 3.2).

    With zᵢⱼ = s·⟨xᵢ, yⱼ⟩ + b, image i costs softplus(−zᵢᵢ) + Σ softplus(zᵢⱼ) over the texts j ≠ i of all ranks.

    Args:
        images: as for `softmax_contrastive`.
        texts: likewise.
        valid: likewise.
        scale: s, a scalar.
        bias: b, a scalar.
        group: the ranks.

    Returns:
        As `softmax_contrastive`.

    Raises:
        ModelError: shapes that do not belong together.
    """
    x_ND, y_ND, real_N = _pairs(images, texts, valid)
    with torch.autocast(x_ND.device.type, enabled=False):
        scale, bias = scale.float(), bias.float()
        among = _Softplus.apply(x_ND, y_ND, scale, bias, real_N, group)
        # softplus(−z) = softplus(z) − z: the pair itself is among all pairs.
        each = among - (scale * (x_ND * y_ND).sum(-1) + bias)
    return torch.where(real_N, each, 0.0).sum(), real_N.sum()


def _pairs(images: Tensor, texts: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows `[N, D]`, `[N, D]`, `[N]`, in float32; 0 where a pair is not real."""
    if images.shape != texts.shape or valid.shape != images.shape[:-1]:
        raise ModelError(
            f"images {tuple(images.shape)}, texts {tuple(texts.shape)} and valid {tuple(valid.shape)} are no pairs; "
            "give […, D], […, D] and […]"
        )
    real_N = valid.flatten()
    gone = ~real_N[:, None]
    x_ND, y_ND = (rows.reshape(-1, rows.shape[-1]).float().masked_fill(gone, 0.0) for rows in (images, texts))
    return x_ND, y_ND, real_N


class _Normalisers(torch.autograd.Function):
    """log Σⱼ exp(zᵢⱼ) of each local image over all texts, and of each local text over all images."""

    @staticmethod
    def forward(
        ctx: Any, x_ND: Tensor, y_ND: Tensor, scale: Tensor, real_N: Tensor, group: Group
    ) -> tuple[Tensor, Tensor]:
        D = x_ND.shape[1]
        rows = torch.full_like(x_ND[:, 0], -torch.inf)
        visitor = torch.cat([y_ND, real_N[:, None].float(), torch.full_like(x_ND[:, :1], -torch.inf)], 1)
        for part in _tour(visitor, group):
            z_NM = (x_ND @ part[:, :D].T).mul_(scale).masked_fill_(_unreal(real_N, part[:, D]), -torch.inf)
            rows = torch.logaddexp(rows, z_NM.logsumexp(1))
            part[:, D + 1] = torch.logaddexp(part[:, D + 1], z_NM.logsumexp(0))
        columns = visitor[:, D + 1].clone()
        ctx.group = group
        ctx.save_for_backward(x_ND, y_ND, scale, real_N, rows, columns)
        return rows, columns

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_rows: Tensor, of_columns: Tensor) -> tuple[Tensor | None, ...]:
        x_ND, y_ND, scale, real_N, rows, columns = ctx.saved_tensors
        D = x_ND.shape[1]
        # exp(z − ∞) = 0: a pair that is not real has no share in anything.
        rows, columns = (v.masked_fill(v == -torch.inf, torch.inf) for v in (rows, columns))
        of_x = torch.zeros_like(x_ND)
        with_state = [y_ND, real_N[:, None].float(), columns[:, None], of_columns[:, None], torch.zeros_like(y_ND)]
        visitor = torch.cat(with_state, 1)
        for part in _tour(visitor, ctx.group):
            y_MD, its_columns, of_its_columns = part[:, :D], part[:, D + 1], part[:, D + 2]
            z_NM = (x_ND @ y_MD.T).mul_(scale).masked_fill_(_unreal(real_N, part[:, D]), -torch.inf)
            of_z_NM = (z_NM - rows[:, None]).exp_().mul_(of_rows[:, None])
            of_z_NM += z_NM.sub_(its_columns).exp_().mul_(of_its_columns)
            of_x.addmm_(of_z_NM, y_MD)
            part[:, D + 3 :].addmm_(of_z_NM.T, x_ND)
        # Σᵢⱼ ∂zᵢⱼ⟨xᵢ, yⱼ⟩, in the order that is already there.
        of_scale = (of_x * x_ND).sum()
        return of_x * scale, visitor[:, D + 3 :] * scale, of_scale, None, None


class _Softplus(torch.autograd.Function):
    """Σⱼ softplus(zᵢⱼ) of each local image over the texts of all ranks."""

    @staticmethod
    def forward(
        ctx: Any, x_ND: Tensor, y_ND: Tensor, scale: Tensor, bias: Tensor, real_N: Tensor, group: Group
    ) -> Tensor:
        D = x_ND.shape[1]
        rows = torch.zeros_like(x_ND[:, 0])
        for part in _tour(torch.cat([y_ND, real_N[:, None].float()], 1), group):
            z_NM = (x_ND @ part[:, :D].T).mul_(scale).add_(bias)
            rows += F.softplus(z_NM).masked_fill_(_unreal(real_N, part[:, D]), 0.0).sum(1)
        ctx.group = group
        ctx.save_for_backward(x_ND, y_ND, scale, bias, real_N)
        return rows

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_rows: Tensor) -> tuple[Tensor | None, ...]:
        x_ND, y_ND, scale, bias, real_N = ctx.saved_tensors
        D = x_ND.shape[1]
        of_x, of_bias = torch.zeros_like(x_ND), torch.zeros_like(bias)
        visitor = torch.cat([y_ND, real_N[:, None].float(), torch.zeros_like(y_ND)], 1)
        for part in _tour(visitor, ctx.group):
            y_MD = part[:, :D]
            of_z_NM = (x_ND @ y_MD.T).mul_(scale).add_(bias).sigmoid_()
            of_z_NM.masked_fill_(_unreal(real_N, part[:, D]), 0.0).mul_(of_rows[:, None])
            of_x.addmm_(of_z_NM, y_MD)
            part[:, D + 1 :].addmm_(of_z_NM.T, x_ND)
            of_bias += of_z_NM.sum()
        return of_x * scale, visitor[:, D + 1 :] * scale, (of_x * x_ND).sum(), of_bias, None, None


def _unreal(real_N: Tensor, real_M: Tensor) -> Tensor:
    """bool `[N, M]`: whether image or text is not real."""
    return ~(real_N[:, None] & (real_M > 0))


def _tour(visitor: Tensor, group: Group) -> Iterator[Tensor]:
    """Takes the rows once around the ring: yields each rank's, block by block, as views to write to.

    Args:
        visitor: this rank's rows `[N, …]`; at the end they hold what was written to them on every rank.
        group: the ranks.
    """
    ranks = dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1
    rows = visitor
    for _ in range(ranks):
        yield from torch.split(rows, BLOCK)
        if ranks > 1:
            rows = _hand_on(rows, group, ranks)
    if rows is not visitor:
        visitor.copy_(rows)


def _hand_on(rows: Tensor, group: Group, ranks: int) -> Tensor:
    """Sends rows to the next rank and returns those of the one before; the host waits for neither on a GPU."""
    rank = dist.get_rank(group)
    arrived = torch.empty_like(rows)
    sending = dist.P2POp(dist.isend, rows, group=group, group_peer=(rank + 1) % ranks)
    receiving = dist.P2POp(dist.irecv, arrived, group=group, group_peer=(rank - 1) % ranks)
    for work in dist.batch_isend_irecv([sending, receiving]):
        work.wait()
    return arrived
