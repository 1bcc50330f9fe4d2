"""Random erasing of packed patches: against a slow reading pixel by pixel, how rectangles are drawn, what they depend on."""

from __future__ import annotations

import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from navit_loader.batch import OK, PackedBatch, View
from navit_loader.errors import ConfigError
from navit_model.config import AugmentConfig
from navit_model.train.augment import LAYERS, hashed, keys_of
from navit_model.train.erase import AREA, RATIO, boxes, erase

sys.path.insert(0, str(Path(__file__).parent))
from packed import packed

GRIDS = [[(2, 3), (4, 4), (1, 5)], [(3, 3), (5, 2), (1, 1)], [(6, 6)]]


def some(seed: int = 0, drop: float = 0.0, patch: int = 4) -> PackedBatch:
    return packed(
        GRIDS, length=40, longest=40, images=4, patch=patch, prefix=1, drop=drop, failed=[(1, 0)], seed=seed
    ).to("cpu")


def pictures(view: PackedBatch | View, like: PackedBatch) -> dict[tuple[int, int], Tensor]:
    """Images put together again, f32 `[height, width, 3]`; NaN where a patch was dropped."""
    found, side = {}, view.patch_size
    for b, e in np.argwhere(like.status.numpy() == OK):
        h, w = view.grids[b, e].tolist()
        picture = torch.full((h * side, w * side, 3), torch.nan)
        for slot in torch.nonzero((view.segment_ids[b] == e) & (view.positions[b, :, 0] >= 0)).flatten():
            y, x = (side * view.positions[b, slot].long()).tolist()
            picture[y : y + side, x : x + side] = view.patches[b, slot].view(side, side, 3)
        found[int(b), int(e)] = picture
    return found


@pytest.mark.parametrize("drop", [0.0, 0.6])
def test_the_drawn_rectangle_is_noise_and_all_else_is_as_it_was(drop: float) -> None:
    erased = 0
    for seed in range(20):
        batch = some(seed, drop)
        after = erase(batch, 0.7, seed)
        box = boxes(batch.grids.long() * 4, hashed(keys_of(batch, seed), LAYERS), 0.7)
        for (b, e), now in pictures(after, batch).items():
            before = pictures(batch, batch)[b, e]
            top, left, bottom, right = box[b, e].tolist()
            inside = torch.zeros(before.shape[:2], dtype=torch.bool)
            inside[top:bottom, left:right] = True
            torch.testing.assert_close(now[~inside], before[~inside], rtol=0, atol=0, equal_nan=True)
            there = inside & before[..., 0].isfinite()
            # Of uniform noise every 256th value is what stood there.
            assert (now[there] == before[there]).float().mean() < 0.2 or there.sum() < 20
            erased += int(there.any())
        untouched = (batch.segment_ids < 0) | (batch.positions[..., 0] < 0)
        assert torch.equal(after.patches[untouched], batch.patches[untouched])
    assert erased > 40


def test_rectangles_are_drawn_as_the_paper_says() -> None:
    size = torch.tensor([[[240, 320], [97, 41]]]).expand(4000, 2, 2)
    keys = hashed(torch.arange(8000).view(4000, 2), 1)
    box = boxes(size, keys, 0.4)
    top, left, bottom, right = box.unbind(-1)
    some = bottom > top
    assert float(some.float().mean()) == pytest.approx(0.4, abs=0.02)
    assert ((box >= 0) & (box <= size.repeat(1, 1, 2))).all()
    tall, wide = (bottom - top)[some].double(), (right - left)[some].double()
    share = tall * wide / size.prod(-1)[some]
    ratio = (tall / wide).log()
    low, high = np.log(RATIO)
    assert AREA[0] * 0.9 < share.min() and share.max() < AREA[1] * 1.05
    assert low - 0.2 < ratio.min() and ratio.max() < high + 0.2
    wide_images = some[:, 0]
    middle = (top + bottom)[:, 0][wide_images] / 480
    # Of the paper's draws, uniform where they fit: the mean area, ratio and place.
    assert float(share.mean()) == pytest.approx(sum(AREA) / 2, abs=0.02)
    assert float(ratio.mean()) == pytest.approx(0, abs=0.1)
    assert float(middle.mean()) == pytest.approx(0.5, abs=0.01)
    assert not boxes(size, keys, 0.0).any()


def test_noise_is_uniform_in_each_channel_by_itself() -> None:
    batch = packed([[(8, 8)]] * 40, length=64, longest=64, images=1, patch=16, seed=3)
    batch = replace(batch, patches=np.zeros_like(batch.patches)).to("cpu")
    after = erase(batch, 1.0, 5)
    noise = torch.cat([picture.flatten(0, 1) for picture in pictures(after, batch).values()])
    noise = noise[noise.sum(-1) > 0]
    assert len(noise) > 50_000
    for channel in noise.T:
        counts = torch.histc(channel, 16, 0, 255.999)
        assert (counts / len(noise) * 16 - 1).abs().max() < 0.1
    assert (torch.corrcoef(noise.T) - torch.eye(3)).abs().max() < 0.02


def test_what_is_erased_does_not_depend_on_where_an_image_lies_nor_on_its_patches() -> None:
    batch = some()
    whole = pictures(erase(batch, 0.8, 3), batch)
    names = ("patches", "positions", "segment_ids", "grids", "status", "image_ids", "source_ids")
    swapped = replace(batch, **{name: getattr(batch, name).flip(0) for name in names})
    again = pictures(erase(swapped, 0.8, 3), swapped)
    assert all(torch.equal(picture, again[2 - b, e]) for (b, e), picture in whole.items())
    # The same pixels in patches of half the size, some of them dropped.
    finer = packed(
        [[(2 * h, 2 * w) for h, w in row] for row in GRIDS], length=160, longest=160, images=4, patch=2, drop=0.5,
        failed=[(1, 0)],
    ).to("cpu")  # fmt: skip
    for b in range(len(GRIDS)):
        for slot in torch.nonzero(finer.segment_ids[b] >= 0).flatten():
            y, x = (2 * finer.positions[b, slot].long()).tolist()
            source = pictures(batch, batch)[b, int(finer.segment_ids[b, slot])]
            finer.patches[b, slot] = source[y : y + 2, x : x + 2].flatten().to(torch.uint8)
    for at, picture in pictures(erase(finer, 0.8, 3), finer).items():
        kept = picture.isfinite()
        assert torch.equal(picture[kept], whole[at][kept])
    assert any(not torch.equal(picture, pictures(batch, batch)[at]) for at, picture in whole.items())
    for other in (erase(replace(batch, epoch=1), 0.8, 3), erase(batch, 0.8, 4)):
        assert any(not torch.equal(picture, whole[at]) for at, picture in pictures(other, batch).items())
    assert erase(batch, 0.0, 3) is batch


def test_a_teacher_loses_the_same_part_of_the_image() -> None:
    batch = some()
    size = [[(3 * h, 3 * w) for h, w in row] for row in GRIDS]
    larger = packed(size, length=400, longest=400, images=4, patch=8, failed=[(1, 0)]).to("cpu")
    names = [field.name for field in fields(View)]
    after = erase(replace(batch, teacher=View(**{name: getattr(larger, name) for name in names})), 1.0, 2)
    alone = erase(batch, 1.0, 2)
    assert torch.equal(after.patches, alone.patches)
    assert after.teacher is not None
    before = pictures(larger, batch)
    box = boxes(batch.grids.long() * 4, hashed(keys_of(batch, 2), LAYERS), 1.0)
    for (b, e), picture in pictures(after.teacher, batch).items():
        changed = (picture != before[b, e]).any(-1)
        top, left, bottom, right = (6 * box[b, e]).tolist()
        assert not changed[:top].any() and not changed[bottom:].any()
        assert not changed[:, :left].any() and not changed[:, right:].any()
        assert bottom == 0 or changed[top:bottom, left:right].float().mean() > 0.95
    # A view that is no other than the student's gets the very same pixels.
    same = View(**{name: getattr(batch, name) for name in names})
    twice = erase(replace(batch, teacher=same), 1.0, 2)
    assert twice.teacher is not None and torch.equal(twice.teacher.patches, twice.patches)


def test_a_share_beyond_one_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"erase = 1\.5 is not allowed; it must be between 0 and 1"):
        AugmentConfig(erase=1.5)
