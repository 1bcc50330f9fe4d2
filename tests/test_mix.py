"""Mixup and cutmix on packed patches: against a slow reading image by image, what their draws depend on, and the loss."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from navit_loader.batch import OK, PackedBatch
from navit_loader.errors import ConfigError
from navit_model.config import MixConfig
from navit_model.losses.classification import classification_loss, learnt
from navit_model.train.mix import Mixing, _beta, mix, mixing
from navit_model.train.settings import RunConfig

sys.path.insert(0, str(Path(__file__).parent))
from packed import packed

GRIDS = [[(2, 3), (4, 4), (1, 5)], [(3, 3), (5, 2), (1, 1), (2, 2)], [(6, 6)], []]


def some(seed: int = 0, drop: float = 0.0, failed: bool = True) -> PackedBatch:
    lost = [(1, 0)] if failed else []
    batch = packed(GRIDS, length=50, longest=40, images=5, prefix=1, drop=drop, failed=lost, seed=seed)
    return replace(batch, sequence=12).to("cpu")


def mixed_of(batch: PackedBatch, config: MixConfig, seed: int) -> Mixing:
    return mixing(batch, learnt(batch, "softmax"), config, seed)


def patches_of(batch: PackedBatch, b: int, e: int) -> dict[tuple[int, int], torch.Tensor]:
    """The kept patches of one image by their place."""
    slots = (batch.segment_ids[b] == e) & (batch.positions[b, :, 0] >= 0)
    places = [(int(y), int(x)) for y, x in batch.positions[b, slots]]
    return dict(zip(places, batch.patches[b, slots], strict=True))


@given(
    seed=st.integers(0, 10_000),
    drop=st.sampled_from([0.0, 0.5, 0.9]),
    kinds=st.sampled_from([(0.8, 0.0), (0.0, 1.0), (0.3, 0.7)]),
    probability=st.sampled_from([1.0, 0.5]),
)
@settings(deadline=None, max_examples=60)
def test_each_patch_is_what_a_slow_reading_makes_of_it(
    seed: int, drop: float, kinds: tuple[float, float], probability: float
) -> None:
    batch = some(seed, drop)
    mixed = mixed_of(batch, MixConfig(*kinds, probability), seed)
    after = mix(batch, mixed)
    counted = learnt(batch, "softmax")
    for b, e in np.argwhere(batch.status.numpy() == OK):
        own, f = patches_of(batch, b, e), int(mixed.partner[b, e])
        theirs, (h, w), (h2, w2) = patches_of(batch, b, f), batch.grids[b, e].tolist(), batch.grids[b, f].tolist()
        assert counted[b, f]
        assert (f == e) == (int(counted[b].sum()) == 1)
        share, box = float(mixed.share[b, e]), mixed.box[b, e].tolist()
        cut = box != [0, 0, 0, 0]
        within = {
            (y, x) for y, x in own if cut and box[0] <= (y + 0.5) / h < box[2] and box[1] <= (x + 0.5) / w < box[3]
        }
        if cut:
            assert share == pytest.approx(1 - len(within) / len(own), abs=1e-6)
        for (y, x), patch in patches_of(after, b, e).items():
            wanted = ((2 * y + 1) * h2 // (2 * h)) * w2 + (2 * x + 1) * w2 // (2 * w)
            near = min(theirs, key=lambda at: (abs(at[0] * w2 + at[1] - wanted), -at[0] * w2 - at[1]))
            keeps = float((y, x) not in within) if cut else share
            expected = keeps * own[y, x].double() + (1 - keeps) * theirs[near].double()
            assert (patch.double() - expected).abs().max() <= 0.51
    is_patch = (batch.segment_ids >= 0) & (batch.positions[..., 0] >= 0)
    assert torch.equal(after.patches[~is_patch], batch.patches[~is_patch])
    assert torch.equal(mixed.share[~counted], torch.ones_like(mixed.share[~counted]))


def test_a_sequence_is_mixed_alike_in_any_batch_and_otherwise_in_another_epoch() -> None:
    config = MixConfig(mixup=0.8, cutmix=1.0)
    batch = some()
    whole = mix(batch, mixed_of(batch, config, 3)).patches
    names = ("patches", "positions", "segment_ids", "grids", "status", "labels", "image_ids", "source_ids")
    for b in range(len(GRIDS)):
        one = replace(batch, sequence=12 + b, **{name: getattr(batch, name)[b : b + 1] for name in names})
        assert torch.equal(mix(one, mixed_of(one, config, 3)).patches[0], whole[b])
    for other, seed in ((replace(batch, epoch=1), 3), (batch, 4), (replace(batch, sequence=16), 3)):
        assert not torch.equal(mix(other, mixed_of(other, config, seed)).patches, whole)


def test_every_image_of_a_sequence_meets_every_other() -> None:
    batch = some(failed=False)
    met = {(e, int(mixed_of(batch, MixConfig(mixup=1.0), seed).partner[1, e])) for seed in range(200) for e in range(4)}
    assert met == {(a, b) for a in range(4) for b in range(4) if a != b}


@pytest.mark.parametrize("alpha", [0.1, 0.2, 0.8, 1.0, 4.0, 50.0])
def test_shares_are_of_beta(alpha: float) -> None:
    found = _beta(alpha, (torch.arange(100_000) + 0.5) / 100_000).double().sort().values.numpy()
    wanted = np.sort(np.random.default_rng(0).beta(alpha, alpha, 100_000))
    # Kolmogorov and Smirnov's distance; 0.0061 is passed by one pair of samples in a thousand.
    grid = np.linspace(0, 1, 1001)
    apart = np.searchsorted(found, grid, "right") - np.searchsorted(wanted, grid, "right")
    assert np.abs(apart).max() / 100_000 < 0.0061


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_the_loss_is_that_of_labels_in_shares(kind: str) -> None:
    batch = some(5)
    mixed = mixed_of(batch, MixConfig(mixup=1.0), 5)
    logits = torch.randn(*batch.status.shape, 5, generator=torch.Generator().manual_seed(0))
    found, count = classification_loss(
        logits,
        batch,
        kind=kind,  # type: ignore[arg-type]
        label_smoothing=0.1,
        mixed=(mixed.partner, mixed.share),
    )
    hot = F.one_hot(batch.labels[..., 0].clamp(min=0), 5).float()
    soft = mixed.share[..., None] * hot + (1 - mixed.share[..., None]) * torch.stack(
        [hot[b, mixed.partner[b]] for b in range(len(hot))]
    )
    counts = learnt(batch, "softmax")
    soft = (soft * 0.9 + 0.1 / 5)[counts]
    wanted = (
        F.cross_entropy(logits[counts], soft, reduction="sum")
        if kind == "softmax"
        else F.binary_cross_entropy_with_logits(logits[counts], soft, reduction="sum")
    )
    assert int(count) == int(counts.sum())
    assert float(found) == pytest.approx(float(wanted), rel=1e-5)


def test_other_tasks_refuse_it() -> None:
    for task in ("contrastive", "distillation"):
        with pytest.raises(ConfigError, match=rf"train\.mix = .*{task} mixes no images"):
            RunConfig.from_dict({"train": {"task": task, "mix": {"mixup": 0.2}}})
