"""Colour operations on packed patches: against a plain reading of each operation, and what their draws depend on."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from navit_loader.batch import PackedBatch
from navit_loader.errors import ConfigError
from navit_model.config import NaViTConfig, TextConfig
from navit_model.model.navit import NaViT
from navit_model.model.text import TextTower, pack_captions
from navit_model.train.augment import GREY, OPERATIONS, AugmentConfig, augment, hashed, uniform
from navit_model.train.flops import batch_flops, frozen_flops, text_flops
from navit_model.train.settings import RunConfig

sys.path.insert(0, str(Path(__file__).parent))
from packed import packed


def some(seed: int = 0, **changes: object) -> PackedBatch:
    grids = [[(2, 3), (4, 4), (1, 5)], [(3, 3), (5, 2), (1, 1)]]
    batch = packed(grids, length=40, longest=20, images=6, patch=4, prefix=1, failed=[(1, 0)], seed=seed)
    return replace(batch, **changes).to("cpu")  # type: ignore[arg-type]


def reference(pixels: np.ndarray, kind: str, sign: int, strength: float) -> np.ndarray:
    """One operation on all kept pixels of one image, `[n, 3]`, in the operation's own words."""
    x = pixels.astype(np.float64)
    # Beyond 10 nothing becomes black, or of fewer levels.
    factor = 1 + 0.9 * (strength if sign > 0 else -min(strength, 1))
    grey = x @ np.array(GREY)
    match kind:
        case "brightness":
            x = factor * x
        case "contrast":
            x = grey.mean() + factor * (x - grey.mean())
        case "colour":
            x = grey[:, None] + factor * (x - grey[:, None])
        case "invert":
            x = 255 - x
        case "solarise":
            x = np.where(x >= 256 * (1 - strength), 255 - x, x)
        case "solarise_add":
            x = np.where(x < 128, x + 110 * strength, x)
        case "posterise":
            step = 2 ** min(round(4 * strength), 4)
            x = x // step * step
    return x.clip(0, 255)


@pytest.mark.parametrize("magnitude", [7.0, 10.0, 20.0, 30.0])
def test_each_operation_is_what_its_name_says(magnitude: float) -> None:
    met = set()
    config = AugmentConfig(layers=1, magnitude=magnitude)
    for seed in range(12):
        batch = some(seed)
        after = augment(batch, config, seed)
        key = hashed(torch.full_like(batch.image_ids, seed), batch.epoch)
        draw = hashed(hashed(hashed(key, batch.source_ids.long()), batch.image_ids), 0)
        kinds = (uniform(hashed(draw, 0)) * len(OPERATIONS)).long()
        signs = torch.where(uniform(hashed(draw, 1)) < 0.5, -1, 1)
        for b, e in np.argwhere(batch.status.numpy() == 1):
            slots = (batch.segment_ids[b] == int(e)) & (batch.positions[b, :, 0] >= 0)
            kind = OPERATIONS[kinds[b, e]]
            met.add(kind)
            before = batch.patches[b, slots].reshape(-1, 3).numpy()
            wanted = reference(before, kind, int(signs[b, e]), magnitude / 10)
            found = after.patches[b, slots].reshape(-1, 3).numpy()
            assert np.abs(found - wanted).max() <= 0.51, kind
        # Padding, prefix slots and failed images stay as they were.
        untouched = (batch.segment_ids < 0) | (batch.positions[..., 0] < 0)
        assert torch.equal(after.patches[untouched], batch.patches[untouched])
    assert met == set(OPERATIONS)


def test_an_image_is_coloured_alike_wherever_it_lies_and_otherwise_in_another_epoch() -> None:
    config = AugmentConfig(layers=2, magnitude=9.0)
    batch = some()
    swapped = replace(
        batch,
        **{
            name: getattr(batch, name).flip(0)
            for name in ("patches", "positions", "segment_ids", "grids", "status", "image_ids", "source_ids")
        },
    )
    first = augment(batch, config, 3).patches
    assert torch.equal(augment(swapped, config, 3).patches.flip(0), first)
    assert not torch.equal(augment(replace(batch, epoch=1), config, 3).patches, first)
    assert not torch.equal(augment(batch, config, 4).patches, first)
    assert augment(batch, AugmentConfig(), 3) is batch


def test_layers_that_the_plan_has_done_are_not_done_again() -> None:
    config = AugmentConfig(layers=2, magnitude=9.0)
    batch = some()
    none = torch.zeros_like(batch.status)
    first, second = (augment(replace(batch, warp_layers=none + n), config, 3).patches for n in (0, 1))
    assert torch.equal(first, augment(batch, config, 3).patches)
    assert not torch.equal(second, first)
    assert not torch.equal(second, batch.patches)
    assert torch.equal(augment(replace(batch, warp_layers=none + 2), config, 3).patches, batch.patches)
    # Each image for itself: where half of them are done, theirs alone stay as they were.
    half = (torch.arange(none.numel()).view_as(none) % 2 * 2).to(torch.uint8)
    mixed = augment(replace(batch, warp_layers=half), config, 3).patches
    done = half.bool().gather(1, batch.segment_ids.long().clamp_min(0)) | (batch.segment_ids < 0)
    assert torch.equal(mixed, torch.where(done[..., None], batch.patches, first))


def test_one_randaugment_has_as_many_layers_in_both_places() -> None:
    table = {
        "plan": {"warp": {"kind": "randaugment", "layers": 3, "magnitude": 15}},
        "train": {"augment": {"layers": 3, "magnitude": 15}},
    }
    assert RunConfig.from_dict(table).train.augment.layers == 3
    table["train"]["augment"]["magnitude"] = 10
    with pytest.raises(ConfigError, match=r"train.augment.magnitude = 10.0 .*it must be 15.0, plan.warp.magnitude"):
        RunConfig.from_dict(table)
    table["train"] = {}
    with pytest.raises(ConfigError, match=r"train.augment.layers = 0 is not allowed; it must be 3, plan.warp.layers"):
        RunConfig.from_dict(table)
    with pytest.raises(
        ConfigError, match=r"train.augment.magnitude = 31.0 is not allowed; it must be between 0 and 30"
    ):
        RunConfig.from_dict({"train": {"augment": {"magnitude": 31}}})


def test_draws_are_uniform_and_independent() -> None:
    keys = hashed(torch.arange(200_000), 5)
    draws = uniform(keys)
    assert draws.min() >= 0
    assert draws.max() < 1
    counts = torch.histc(draws, 20, 0, 1)
    assert (counts / 10_000 - 1).abs().max() < 0.05
    other = uniform(hashed(torch.arange(200_000), 6))
    assert abs(float(torch.corrcoef(torch.stack([draws, other]))[0, 1])) < 0.01


@pytest.mark.parametrize("parts", [{}, {"mlp_gate": True, "pool_mlp_ratio": 2.0}, {"pool_mlp": False}])
@pytest.mark.parametrize("pool", ["map", "mean"])
def test_counted_operations_are_those_that_torch_counts(pool: str, parts: dict[str, Any]) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    config = NaViTConfig(width=32, depth=2, heads=2, patch_size=4, classes=7, pool=pool, **parts)  # type: ignore[arg-type]
    # One image that fills its sequence, so that nothing but the images is computed.
    batch = packed([[(6, 6)]], length=36, longest=36, images=1, patch=4).to("cpu")
    model = NaViT(config).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(batch)
    # Torch leaves out what is no matrix product by name; segment sums are products in our code, but no arithmetic of ViT.
    assert float(batch_flops(config, batch)) == pytest.approx(counter.get_total_flops(), rel=0.03)


def test_what_is_frozen_is_counted_once() -> None:
    """The embedding and one of three blocks: what a model of one block takes, its classifier left out."""
    config = NaViTConfig(width=32, depth=3, heads=2, patch_size=4, pool="mean", classes=7)
    batch = packed([[(6, 6)], [(2, 5)]], length=36, longest=36, images=1, patch=4).to("cpu")
    one = batch_flops(replace(config, depth=1, classes=0), batch)
    assert float(frozen_flops(config, batch, 2)) == float(one)
    assert float(frozen_flops(config, batch, 0)) == 0


def test_windows_are_counted_as_such() -> None:
    """6 × 6 patches in windows of 4: 16, 8, 8 and 4 of them."""
    config = NaViTConfig(width=32, depth=3, heads=2, patch_size=4, window=4, window_free=(1,))
    batch = packed([[(6, 6)]], length=36, longest=36, images=1, patch=4).to("cpu")
    saved = batch_flops(replace(config, window=0, window_free=()), batch) - batch_flops(config, batch)
    assert float(saved) == 2 * 4 * 32 * (36**2 - (16**2 + 2 * 8**2 + 4**2))


@pytest.mark.parametrize("pool", ["map", "last"])
def test_the_text_tower_s_operations_are_those_that_torch_counts(pool: str) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    config = TextConfig(width=64, depth=4, heads=2, vocabulary=50, max_tokens=40, pool=pool)  # type: ignore[arg-type]
    captions = pack_captions([list(range(40))])
    tower = TextTower(config).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        tower(captions)
    assert float(text_flops(config, captions)) == pytest.approx(counter.get_total_flops(), rel=0.03)
