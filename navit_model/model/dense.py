"""Outputs of single tokens, put back to where their patches stood.

In: one vector a token, `[B, L, D]`, and the batch. Out: the same vectors on each image's own (h, w) grid, or as pixels of the
crop that the image was taken from. Apart from the heads, since any output of a token can be put there: features, masks,
attention.

Shapes: B sequences · L tokens · E images of a sequence · D width · P patch side.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from navit_loader.batch import OK, PackedBatch, View
from navit_loader.errors import ModelError

from .check import check_unwarped

TOGETHER = 16
"""Classes that `likeliest` enlarges together."""


def rasters(x_BLD: Tensor, batch: PackedBatch | View, cells: int) -> tuple[Tensor, Tensor]:
    """The tokens of each image in raster order; shapes are static and no host value is read.

    Args:
        x_BLD: one vector a token.
        batch: whose tokens they are, on the same device.
        cells: of one image at most. Where nothing is dropped, an image has no more of them than tokens.

    Returns:
        `[B, E, cells, D]`: at y·w + x the patch that stood there, 0 where it was dropped or there is none; and which are
        there, bool `[B, E, cells]`.

    Raises:
        ModelError: an image has more cells, where the batch lies on the host.
    """
    B, E = batch.grids.shape[:2]
    grids = batch.grids.long()
    on_host = not torch.compiler.is_compiling() and grids.device.type == "cpu"
    if on_host and grids.numel() and (most := int(grids.prod(-1).max())) > cells:
        raise ModelError(f"an image has {most} patches on its grid, but cells = {cells}; give its h · w at least")
    image_BL = batch.segment_ids.long().clamp_min(0)
    y_BL, x_at_BL = batch.positions.long().unbind(-1)
    width_BL = grids[..., 1].gather(1, image_BL)
    row_BL = torch.arange(B, device=grids.device)[:, None] * E + image_BL
    place_BL = y_BL * width_BL + x_at_BL
    there_BL = (batch.segment_ids >= 0) & (y_BL >= 0) & (place_BL < cells)
    # What is no patch goes to one slot behind all others.
    place_T = torch.where(there_BL, row_BL * cells + place_BL, B * E * cells).flatten()
    D = x_BLD.shape[-1]
    # Masked memory may hold anything.
    x_TD = x_BLD.masked_fill(~there_BL[..., None], 0.0).flatten(0, 1)
    found = x_TD.new_zeros(B * E * cells + 1, D).index_copy(0, place_T, x_TD)
    there = torch.zeros(B * E * cells + 1, dtype=torch.bool, device=grids.device).index_copy(
        0, place_T, there_BL.flatten()
    )
    return found[:-1].view(B, E, cells, D), there[:-1].view(B, E, cells)


def finer(x_BLD: Tensor, batch: PackedBatch | View, side: int) -> Tensor:
    """`side` × `side` cells for each patch, bilinear between it and its neighbours; shapes are static, no host value is read.

    What `torch.nn.functional.interpolate` (bilinear, corners not aligned) makes of an image's grid; a neighbour that was
    dropped is left out of the mean.

    Args:
        x_BLD: one vector a token.
        batch: whose tokens they are, on the same device.
        side: cells on a side, S.

    Returns:
        `[B, L, S², D]`, cells row by row; 0 where there is no patch.
    """
    B, L, D = x_BLD.shape
    y_BL, x_at_BL = batch.positions.long().unbind(-1)
    there_BL = (batch.segment_ids >= 0) & (y_BL >= 0)
    if side == 1:
        return x_BLD.masked_fill(~there_BL[..., None], 0.0)[:, :, None]
    # A patch is found by its number among all that there could be: sorted, since a grid may have any size.
    width = 1 << 15
    row_BL = torch.arange(B, device=x_BLD.device)[:, None] * width + batch.segment_ids.long()
    key_BL = ((row_BL * width + y_BL) * width + x_at_BL).masked_fill(~there_BL, torch.iinfo(torch.long).max)
    sorted_T, order_T = key_BL.flatten().sort()
    x_TD = x_BLD.masked_fill(~there_BL[..., None], 0.0).flatten(0, 1)
    # A cell's centre in patches off its own patch's, and so what it takes of the patches before, at and behind.
    off = (torch.arange(side, device=x_BLD.device) + 0.5) / side - 0.5
    share_S3 = torch.stack([(-off).clamp_min(0), 1 - off.abs(), off.clamp_min(0)], 1).to(x_BLD.dtype)
    found = x_BLD.new_zeros(B, L, side * side, D)
    total = x_BLD.new_zeros(B, L, side * side)
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            wanted_BL = key_BL + dy * width + dx
            inside_BL = there_BL & (y_BL + dy >= 0) & (x_at_BL + dx >= 0)
            place_BL = torch.searchsorted(sorted_T, wanted_BL.flatten()).clamp_max(B * L - 1).view(B, L)
            inside_BL = inside_BL & (sorted_T[place_BL] == wanted_BL)
            weight_S = torch.outer(share_S3[:, dy + 1], share_S3[:, dx + 1]).flatten()
            weight_BLS = weight_S * inside_BL[..., None].to(x_BLD.dtype)
            found = found + weight_BLS[..., None] * x_TD[order_T[place_BL]][:, :, None]
            total = total + weight_BLS
    return found / total.where(total > 0, 1.0)[..., None]


def grids(x_BLD: Tensor, batch: PackedBatch) -> list[Tensor]:
    """One `[h, w, D]` for each image with status `OK`, in the order of the slots; dropped patches are 0. Reads the host."""
    sizes = batch.grids.long().cpu()
    ok = batch.status.cpu() == OK
    if not ok.any():
        return []
    found, _ = rasters(x_BLD, batch, int(sizes.prod(-1).max()))
    return [found[b, e, : h * w].view(h, w, -1) for b, e, h, w in _slots(ok, sizes)]


def pixels(x_BLD: Tensor, batch: PackedBatch, *, source: bool = False) -> list[Tensor]:
    """One map `[D, height, width]` for each image with status `OK`, in the order of the slots, enlarged bilinearly.

    Args:
        x_BLD: one vector a token, such as the logits of classes.
        batch: whose tokens they are.
        source: at the size of the crop in pixels of the source, mirrored back where it was mirrored; else at h·P × w·P.
    """
    if source:
        check_unwarped(batch, "maps at the source's size")
    ok = batch.status.cpu() == OK
    crops, flips = batch.crops.cpu()[ok].tolist(), batch.flips.cpu()[ok].tolist()
    found = []
    for grid, (_, _, height, width), flip in zip(grids(x_BLD, batch), crops, flips, strict=True):
        h, w, _ = grid.shape
        size = (height, width) if source else (h * batch.patch_size, w * batch.patch_size)
        image = F.interpolate(grid.permute(2, 0, 1)[None].float(), size, mode="bilinear", align_corners=False)[0]
        found.append(image.flip(-1) if source and flip else image)
    return found


def likeliest(x_BLK: Tensor, batch: PackedBatch) -> list[Tensor]:
    """The likeliest class of each pixel, i64 `[height, width]`, for each image with status `OK`, as `pixels` of the source: its
    classes are enlarged a few at a time, since all of a large image take gigabytes.

    Args:
        x_BLK: logits of each token.
        batch: whose tokens they are.
    """
    check_unwarped(batch, "maps at the source's size")
    ok = batch.status.cpu() == OK
    crops, flips = batch.crops.cpu()[ok].tolist(), batch.flips.cpu()[ok].tolist()
    found = []
    for grid, (_, _, height, width), flip in zip(grids(x_BLK, batch), crops, flips, strict=True):
        best = torch.full((height, width), -torch.inf, device=grid.device)
        kind = torch.zeros(height, width, dtype=torch.long, device=grid.device)
        for first, part in enumerate(torch.split(grid.permute(2, 0, 1).float(), TOGETHER)):
            image = F.interpolate(part[None], (height, width), mode="bilinear", align_corners=False)[0]
            value, which = image.max(0)
            kind = torch.where(value > best, which + first * TOGETHER, kind)
            best = torch.maximum(value, best)
        found.append(kind.flip(-1) if flip else kind)
    return found


def _slots(ok: Tensor, sizes: Tensor) -> list[tuple[int, int, int, int]]:
    """(sequence, image, h, w) of the images that were read."""
    places = ok.nonzero().tolist()
    return [(b, e, *sizes[b, e].tolist()) for b, e in places]
