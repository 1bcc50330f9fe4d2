"""Packed batches made in plain numpy, field by field from their contract, without the engine: any layout, however odd.

In: the grids of the images of each sequence. Out: a `PackedBatch` that honours every field of `navit_loader.batch`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from navit_loader.batch import ABSENT, FAILED, OK, PackedBatch

Grid = tuple[int, int]


def packed(
    sequences: Sequence[Sequence[Grid]],
    *,
    length: int,
    longest: int,
    images: int,
    patch: int = 4,
    prefix: int = 0,
    drop: float = 0.0,
    failed: Sequence[tuple[int, int]] = (),
    classes: int = 5,
    floats: bool = False,
    seed: int = 0,
) -> PackedBatch:
    """One batch of random pixels.

    Args:
        sequences: for each sequence the grids (h, w) of its images; may be empty.
        length: L.
        longest: M.
        images: E.
        patch: P.
        prefix: prefix tokens of each image.
        drop: share of the patches dropped.
        failed: (sequence, image) that failed at render.
        classes: labels are drawn from them.
        floats: patches as normalised f32, with NaN in every masked slot.
        seed: seed of pixels, labels and drop.
    """
    rng = np.random.default_rng(seed)
    B, L, E = len(sequences), length, images
    segment_ids = np.full((B, L), -1, np.int16)
    positions = np.full((B, L, 2), -1, np.int16)
    patches = np.zeros((B, L, patch * patch * 3), np.float32 if floats else np.uint8)
    grids = np.zeros((B, E, 2), np.int16)
    status = np.full((B, E), ABSENT, np.uint8)
    labels = np.full((B, E, 1), -1, np.int64)
    ids = np.full((B, E), -1, np.int64)
    offsets = [0]
    if floats:
        patches[:] = np.nan
    for b, sequence in enumerate(sequences):
        at = 0
        for e, (h, w) in enumerate(sequence):
            kept = np.sort(rng.permutation(h * w)[: max(1, round(h * w * (1 - drop)))])
            end = at + prefix + len(kept)
            assert end <= L and end - at <= longest and e < E
            bad = (b, e) in failed
            grids[b, e], status[b, e], labels[b, e, 0] = (h, w), FAILED if bad else OK, rng.integers(classes)
            ids[b, e] = b * E + e
            positions[b, at : at + prefix, 1] = range(prefix)
            positions[b, at + prefix : end] = np.stack([kept // w, kept % w], 1)
            if not bad:
                segment_ids[b, at:end] = e
                shape = (len(kept), patches.shape[2])
                pixels = rng.standard_normal(shape) if floats else rng.integers(0, 256, shape)
                patches[b, at + prefix : end] = pixels
            at = end
            offsets.append(b * L + at)
        while at < L:
            at = min(at + longest, L)
            offsets.append(b * L + at)
    total = B * (E + math.ceil(L / longest)) + 1
    assert len(offsets) <= total
    offsets += [B * L] * (total - len(offsets))
    return PackedBatch(
        patches=patches,
        positions=positions,
        segment_ids=segment_ids,
        cu_seqlens=np.array(offsets, np.int32),
        grids=grids,
        patch_size=patch,
        max_seqlen=longest,
        prefix_tokens=prefix,
        status=status,
        labels=labels,
        image_ids=ids,
        source_ids=np.where(ids >= 0, 0, -1).astype(np.int16),
        sizes=grids.astype(np.int32) * patch,
        crops=np.concatenate([np.zeros((B, E, 2), np.int32), grids.astype(np.int32) * patch], -1),
        flips=np.zeros((B, E), np.uint8),
        text=np.zeros(0, np.int32),
        text_cu_seqlens=np.zeros(0, np.int32),
        teacher=None,
        epoch=0,
        sequence=0,
    )
