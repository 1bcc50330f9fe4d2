"""The losses of cells and segments, against the same written out; and segments merged into one map."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from navit_loader import PackedBatch
from navit_loader.errors import ModelError
from navit_model import NaViT, NaViTConfig
from navit_model.losses.detection import Objects, with_objects
from navit_model.losses.segmentation import DICE, KIND, MASK, NONE, region_loss, segmentation_loss
from navit_model.model.dense import likeliest, pixels
from navit_model.model.regions import segments_of
from navit_model.model.segmenter import LinearSegmenter, Regions, RegionSegmenter, Segmenter

from .packed import Grid, packed

SMALL = NaViTConfig(width=24, depth=1, heads=2, patch_size=4, max_grid=12)
LAYOUT: list[list[Grid]] = [[(2, 2), (1, 5)], [(2, 3)]]
IMAGES = [(0, 0), (0, 1), (1, 0)]


def batch_of(sequences: list[list[Grid]], **changes: Any) -> PackedBatch:
    return packed(sequences, **{"length": 24, "longest": 20, "images": 3, **changes}).to("cpu")


def with_masks(batch: PackedBatch, side: int, values: int, seed: int) -> PackedBatch:
    """Random cells, some void; none where there is no patch."""
    generator = torch.Generator().manual_seed(seed)
    shape = (*batch.segment_ids.shape, side * side)
    masks = torch.randint(-1, values, shape, generator=generator).short()
    patch = (batch.segment_ids >= 0) & (batch.positions[..., 0] >= 0)
    return replace(batch, masks=masks.masked_fill(~patch[..., None], -1))


@settings(max_examples=20, deadline=None)
@given(side=st.integers(1, 3), prefix=st.integers(0, 1), seed=st.integers(0, 99))
def test_the_loss_of_cells_is_that_of_the_enlarged_maps(side: int, prefix: int, seed: int) -> None:
    batch = with_masks(batch_of(LAYOUT, prefix=prefix), side, 3, seed)
    logits = torch.randn(2, 24, 3, generator=torch.Generator().manual_seed(seed))
    patch = (batch.segment_ids >= 0) & (batch.positions[..., 0] >= 0)
    logits = logits.masked_fill(~patch[..., None], torch.nan).requires_grad_()
    total, count = segmentation_loss(logits, batch)
    expected, cells = 0.0, 0
    for b, e in IMAGES:
        h, w = LAYOUT[b][e]
        own = patch[b] & (batch.segment_ids[b] == e)
        grid = logits[b, own].detach().view(h, w, 3).permute(2, 0, 1)[None]
        large = F.interpolate(grid, (h * side, w * side), mode="bilinear", align_corners=False)
        assert batch.masks is not None
        truth = batch.masks[b, own].view(h, w, side, side).permute(0, 2, 1, 3).reshape(1, h * side, w * side).long()
        if (truth >= 0).any():
            expected += float(F.cross_entropy(large, truth, ignore_index=-1, reduction="sum"))
        cells += int((truth >= 0).sum())
    assert int(count) == cells and total.item() == pytest.approx(expected, rel=1e-4)
    total.backward()
    assert logits.grad is not None and logits.grad.isfinite().all() and not logits.grad[~patch].any()


def regions(batch: PackedBatch, queries: int, classes: int, seed: int) -> Regions:
    generator = torch.Generator().manual_seed(seed)
    masks = torch.randn(*batch.segment_ids.shape, queries, generator=generator)
    masks = masks.masked_fill((batch.segment_ids < 0)[..., None], torch.nan).requires_grad_()
    kinds = torch.randn(*batch.status.shape, queries, classes + 1, generator=generator).requires_grad_()
    return Regions(masks, kinds)


@settings(max_examples=25, deadline=None)
@given(numbers=st.lists(st.integers(0, 3), min_size=3, max_size=3), crowd=st.booleans(), seed=st.integers(0, 99))
def test_the_loss_of_segments_is_that_of_the_best_matching(numbers: list[int], crowd: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    objects = [
        Objects(torch.tensor([[0.0, 0, 4, 4]] * n).view(-1, 4), torch.from_numpy(rng.integers(0, 2, n)))
        for n in numbers
    ]
    batch = with_masks(with_objects(batch_of(LAYOUT), objects), 1, 3, seed)
    assert batch.box_flags is not None and batch.box_labels is not None and batch.masks is not None
    if crowd and numbers[1]:
        batch.box_flags[0, numbers[0]] = 1
    found = regions(batch, 4, 2, seed)
    total, count = region_loss(found, batch)
    expected, segments = 0.0, 0
    for i, (b, e) in enumerate(IMAGES):
        own = batch.segment_ids[b] == e
        cells = batch.masks[b, own, 0]
        first = int(crowd and i == 1)
        wanted = [n for n in range(first, numbers[i]) if (cells == n).any()]
        known = torch.isin(cells, torch.tensor(wanted).short())
        z, kinds = found.masks[b, own][known].detach(), found.kinds[b, e].detach().log_softmax(-1)
        best = None
        for chosen in itertools.permutations(range(4), len(wanted)):
            # What the matching weighs is not all that the loss has: the class counts by its probability there.
            cost = pairs = 0.0
            for query, place in zip(chosen, wanted, strict=True):
                t = (cells[known] == place).float()
                entropy = F.binary_cross_entropy_with_logits(z[:, query], t)
                chance = z[:, query].sigmoid()
                dice = 1 - (2 * (chance * t).sum() + 1) / (chance.sum() + t.sum() + 1)
                pairs += float(MASK * entropy + DICE * dice)
                cost -= KIND * float(kinds[query, objects[i].queries[place]].exp())
            if best is None or cost + pairs < best[0]:
                named = {q: int(objects[i].queries[p]) for q, p in zip(chosen, wanted, strict=True)}
                weights = [1.0 if q in named else NONE for q in range(4)]
                each = [-float(kinds[q, named.get(q, 2)]) for q in range(4)]
                best = cost + pairs, pairs + KIND * len(wanted) * float(np.average(each, weights=weights))
        assert best is not None
        expected += best[1] if wanted else 0.0
        segments += len(wanted)
    assert int(count) == segments and total.item() == pytest.approx(expected, rel=1e-3, abs=1e-4)
    total.backward()
    for x in (found.masks, found.kinds):
        assert x.grad is not None and x.grad.isfinite().all()


def test_what_a_batch_lacks_is_named() -> None:
    batch = batch_of(LAYOUT)
    with pytest.raises(ModelError, match=r"the batch carries no masks; set plan\.targets\.masks"):
        segmentation_loss(torch.zeros(2, 24, 3), batch)
    with pytest.raises(ModelError, match=r"no regions; set plan\.targets\.boxes = true and plan\.targets\.kind"):
        region_loss(regions(batch, 2, 2, 0), with_masks(batch, 1, 2, 0))


@pytest.mark.parametrize("kind", ["mask", "linear", "regions"])
def test_segmenters_keep_images_apart(kind: str) -> None:
    torch.manual_seed(0)
    tower = NaViT(SMALL)
    heads = {"mask": lambda: Segmenter(tower, 3), "linear": lambda: LinearSegmenter(tower, 3)}
    net = RegionSegmenter(tower, 2, 5).eval() if kind == "regions" else heads[kind]().eval()
    batch = batch_of(LAYOUT, floats=True)
    with torch.no_grad():
        together = net(batch)
        for b, e in IMAGES:
            h, w = LAYOUT[b][e]
            own = batch.segment_ids[b] == e
            alone = batch_of([[(h, w)]], floats=True)
            alone.patches[0, : h * w] = batch.patches[b, own]
            single = net(alone)
            if isinstance(together, Regions):
                assert (single.kinds[0, 0] - together.kinds[b, e]).abs().max() < 1e-4
                single, own_masks = single.masks, together.masks[b, own]
            else:
                own_masks = together[b, own]
            assert (single[0, : h * w] - own_masks).abs().max() < 1e-4


def test_the_likeliest_class_is_that_of_all_enlarged_maps() -> None:
    batch = batch_of(LAYOUT)
    flips = batch.flips.clone()
    flips[0, 1] = 1
    batch = replace(batch, flips=flips)
    logits = torch.randn(2, 24, 40)
    for kind, maps in zip(likeliest(logits, batch), pixels(logits, batch, source=True), strict=True):
        assert torch.equal(kind, maps.argmax(0))


def test_segments_are_merged_things_first_and_each_pixel_once() -> None:
    """Of a 1 × 5 image: a sure thing on the left, one mostly behind it, one beside it, and sky in two pieces beneath all."""
    batch = batch_of([[(1, 5)]], patch=1)
    masks = torch.full((1, 24, 5), -9.0)
    for query, cells in enumerate(([0, 1], [0, 1, 2], [3], [0, 1, 2, 3, 4], [2, 4])):
        masks[0, cells, query] = 9.0
    kinds = torch.full((1, 3, 5, 4), -9.0)
    for query, (kind, logit) in enumerate(((0, 5.0), (0, 4.0), (1, 3.0), (2, 2.0), (2, 8.0))):
        kinds[0, 0, query, kind] = logit
    (found,) = segments_of(Regions(masks, kinds), batch, [True, True, False])
    assert found.map.tolist() == [[1, 1, 3, 2, 3]]
    assert found.classes == [0, 1, 2] and all(0.5 <= s <= 1 for s in found.scores)
    (strict,) = segments_of(Regions(masks, kinds), batch, [True, True, False], least_share=0.2, least_stuff=0.3)
    # Now a third of it is enough, and what is left of the sky is too little.
    assert strict.map.tolist() == [[1, 1, 2, 3, 0]] and strict.classes == [0, 0, 1]
    (none,) = segments_of(Regions(masks, kinds * 0), batch, [True, True, False])
    assert not none.map.any() and none.classes == []
