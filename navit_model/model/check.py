"""What a model refuses, said before the first kernel runs.

In: a configuration and a batch. Out: nothing, or one `ModelError` that names key, value and remedy. Host values (patch
size, prefix tokens) are checked on every call; the contents of a batch where they lie on the host: call `check_batch` on
the numpy batch before it goes to a GPU, since reading them there would stop the device.
"""

from __future__ import annotations

import numpy as np
import torch

from navit_loader.batch import PackedBatch, View
from navit_loader.errors import ModelError

from ..config import NaViTConfig

TABLES = (
    "factorised",
    "factorised_stacked",
    "factorised_multiplied",
    "learned_1d",
    "learned_2d",
    "sinusoidal",
    "sinusoidal_xy",
    "resized_grid",
    "resized_axes",
)
"""Positions that are looked up in tables, which end somewhere."""


def check_unwarped(batch: PackedBatch, what: str) -> None:
    """Refuses a batch of warped images where places in the source are meant.

    Args:
        batch: of which.
        what: what is meant, for the message.

    Raises:
        ModelError: its plan has `[plan.warp]`.
    """
    if batch.warps is not None:
        raise ModelError(f"{what} are not known of warped images; leave [plan.warp] out")


def check_batch(config: NaViTConfig, batch: PackedBatch | View) -> None:
    """Refuses a batch that a model of this configuration does not take.

    Args:
        config: the model's shape.
        batch: with numpy arrays or tensors. The contents of device tensors are not read, nor anything while tracing.

    Raises:
        ModelError: another patch size or number of prefix tokens; grids beyond the position tables; a segment longer
            than the plan says; offsets that do not end at the last token.
    """
    sizes = config.patch_sizes or (config.patch_size,)
    if batch.patch_size not in sizes:
        takes = ", ".join(map(str, sizes))
        raise ModelError(
            f"the batch has patches of {batch.patch_size} pixels, the model takes {takes}; "
            "set plan.patch_sizes and model.patch_size or model.patch_sizes alike"
        )
    if batch.prefix_tokens != config.prefix_tokens:
        raise ModelError(
            f"the batch has {batch.prefix_tokens} prefix tokens an image, the model {config.prefix_tokens}; "
            f"set plan.prefix_tokens = {config.prefix_tokens}"
        )
    if torch.compiler.is_compiling() or not _on_host(batch.grids):
        return
    grids = np.asarray(batch.grids)
    if config.positions in TABLES and grids.size:
        # A raster index only has to stay within its table; the others are looked up by axis.
        raster = config.positions == "learned_1d"
        most = int(grids.astype(np.int64).prod(-1).max() if raster else grids.max())
        if most > (config.max_grid**2 if raster else config.max_grid):
            raise ModelError(
                f"an image has {most} patches {'in all' if raster else 'on a side'}, the position tables end at "
                f"model.max_grid = {config.max_grid}{' squared' if raster else ''}; raise it, or lower plan.max_grid"
            )
    if config.window and _some_dropped(batch):
        raise ModelError(
            "tokens of an image were dropped, but the model's blocks attend in windows; set plan.drop to 'none'"
        )
    offsets = np.asarray(batch.cu_seqlens)
    tokens = int(np.prod(tuple(batch.segment_ids.shape)))
    if int(offsets[-1]) != tokens:
        raise ModelError(
            f"cu_seqlens ends at {int(offsets[-1])}, not at the batch's {tokens} tokens; padding is a segment"
        )
    if (longest := int(np.diff(offsets).max())) > batch.max_seqlen:
        raise ModelError(
            f"a segment has {longest} tokens, but max_seqlen = {batch.max_seqlen}; plan.max_tokens bounds every image"
        )


def check_blocks(config: NaViTConfig, batch: PackedBatch | View) -> None:
    """Refuses images that do not fall into whole blocks of `merge` × `merge` patches; contents of device tensors are not read.

    Raises:
        ModelError: names the grid, or says that tokens were dropped.
    """
    if torch.compiler.is_compiling() or not _on_host(batch.grids):
        return
    side, grids = config.merge, np.asarray(batch.grids)
    if (odd := grids[(grids % side).any(-1)]).size:
        raise ModelError(
            f"an image has {odd[0][0]} x {odd[0][1]} patches, the model merges {side} x {side} of them (model.merge); "
            f"give sides that are multiples of {side} patches"
        )
    if _some_dropped(batch):
        raise ModelError(
            "tokens of an image were dropped, but the model merges blocks of them; set plan.drop to 'none'"
        )


def _some_dropped(batch: PackedBatch | View) -> bool:
    """Whether an image of a batch on the host has fewer tokens than patches."""
    slots = np.where(np.asarray(batch.positions)[..., 0] >= 0, np.asarray(batch.segment_ids), -1)
    sizes = np.asarray(batch.grids).astype(np.int64).prod(-1)
    counts = np.stack([np.bincount(ids[ids >= 0], minlength=sizes.shape[1]) for ids in slots])
    return bool(((counts > 0) & (counts < sizes)).any())


def check_place(batch: PackedBatch | View, device: torch.device) -> None:
    """Refuses what is no batch with tensors, or lies elsewhere than the model, on `device`.

    Raises:
        ModelError: says what it is, or where it lies.
    """
    patches = getattr(batch, "patches", None)
    if not isinstance(patches, torch.Tensor):
        name = type(batch).__name__
        found = f"a {name}" if patches is None else f"one with {type(patches).__name__}s"
        raise ModelError(
            f"a model takes a PackedBatch with tensors, not {found}; batch.to(device) moves one there, "
            "pack_images() makes one of images, and classify() takes images themselves"
        )
    if patches.device != device:
        raise ModelError(f"the batch lies on {patches.device}, the model on {device}; move one of them with .to()")


def _on_host(array: object) -> bool:
    return not isinstance(array, torch.Tensor) or array.device.type == "cpu"
