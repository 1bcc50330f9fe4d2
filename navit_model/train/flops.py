"""How much arithmetic a model's step takes, and how much a device could do.

In: a configuration and counts of a batch. Out: floating-point operations, a multiply-add counted as two. Padding is not
counted, so MFU tells what the images got out of the device. Apart from the meter, since benchmarks compare by it too.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

from navit_loader.batch import PackedBatch, View

from ..config import NaViTConfig, TextConfig
from ..model.text import Captions

N = TypeVar("N", float, Tensor)

PEAK_TFLOPS = {"B200": 2250, "H200": 989, "GH200": 989, "H100": 989, "A100": 312, "L40S": 362, "L4": 121, "A10": 125}
"""Dense bfloat16 peaks of GPUs by a part of their names, from their data sheets, in 10¹² operations a second."""


def _encoder(config: NaViTConfig | TextConfig, tokens: N, pairs: N, pooled: N) -> N:
    """Operations of the blocks, and of attention pooling to `pooled` vectors where there is one."""
    width, each_token, each_pooled = config.width, 0, 0
    if config.pool == "map":
        # Values of all tokens; of keys their product with the query alone, a vector a head (`AttentionPooling`).
        each_token = 2 * width**2 + 2 * width * (config.pool_heads or config.heads) + 2 * width
        hidden = round(width * (config.pool_mlp_ratio or config.mlp_ratio)) if config.pool_mlp else 0
        each_pooled = 2 * width**2 + 4 * width * hidden
    return _blocks(config, config.depth, tokens, pairs) + tokens * each_token + pooled * each_pooled


def _blocks(config: NaViTConfig | TextConfig, count: int, tokens: N, pairs: N) -> N:
    width, layers = config.width, 3 if config.mlp_gate else 2
    each_token = 8 * width**2 + 2 * layers * width * round(width * config.mlp_ratio)
    return tokens * (count * each_token) + pairs * (count * 4 * width)


def _embedded(config: NaViTConfig, tokens: N, patch_size: int) -> N:
    return tokens * (2 * 3 * patch_size**2 * config.width)


def forward_flops(config: NaViTConfig, tokens: N, pairs: N, images: N, patch_size: int) -> N:
    """Operations of one forward pass; a training step takes three times as many.

    Args:
        config: the model's shape.
        tokens: tokens of all images, prefix tokens included.
        pairs: the sum over the images of the square of their tokens; with windows, of those of a block in the mean.
        images: how many.
        patch_size: P.
    """
    classified = images * (2 * config.width * config.classes)
    return _embedded(config, tokens, patch_size) + _encoder(config, tokens, pairs, images) + classified


def batch_flops(config: NaViTConfig, batch: PackedBatch | View) -> Tensor:
    """Operations of one forward pass over the images of a batch; a scalar on its device, read by nobody here."""
    return forward_flops(config, *_work(config, batch), batch.patch_size)


def frozen_flops(config: NaViTConfig, batch: PackedBatch | View, layers: int) -> Tensor:
    """The part of `batch_flops` in the first `layers` layers, of which the embedding is one."""
    tokens, pairs, _ = _work(config, batch)
    found = _embedded(config, tokens, batch.patch_size) + _blocks(config, layers - 1, tokens, pairs)
    return found if layers else torch.zeros_like(tokens)


def _work(config: NaViTConfig, batch: PackedBatch | View) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, pairs and images of a batch, as `forward_flops` takes them."""
    counts = _counts(batch.segment_ids, batch.grids.shape[1])
    pairs = counts.square().sum()
    if config.window:
        # Windows begin at the image's corner, so that of each side only the last is smaller.
        whole, rest = batch.grids.long() // config.window, batch.grids.long() % config.window
        windowed = (whole * config.window**2 + rest**2).prod(-1).sum().double()
        pairs = windowed + (pairs - windowed) * (len(config.window_free) / config.depth)
    return counts.sum(), pairs, (counts > 0).sum().double()


def text_flops(config: TextConfig, captions: Captions) -> Tensor:
    """Operations of one forward pass over captions; a scalar on their device. Masked pairs of causal attention count."""
    counts = _counts(captions.numbers, captions.slots)
    return _encoder(config, counts.sum(), counts.square().sum(), (counts > 0).sum().double())


def _counts(slots: Tensor, most: int) -> Tensor:
    """Tokens of each image or caption, f64 `[B, most]`; in whole numbers, so that sums do not depend on their order."""
    slots = slots.long()
    # Padding goes to one more place, which is cut off.
    places = torch.zeros(slots.shape[0], most + 1, dtype=torch.long, device=slots.device)
    places.scatter_add_(1, slots.where(slots >= 0, most), torch.ones_like(slots))
    return places[:, :-1].double()


def peak_tflops(device: torch.device) -> float:
    """The known peak of a GPU in bfloat16; 0 for what is not in the table, and for CPUs."""
    if device.type != "cuda":
        return 0.0
    name = torch.cuda.get_device_name(device)
    return float(next((peak for part, peak in PEAK_TFLOPS.items() if part in name), 0))
