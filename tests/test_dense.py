"""Outputs of single tokens: back on their grids, as segmentation, as boxes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from navit_loader import LoaderConfig, PackedBatch, pack_images
from navit_loader.batch import OK
from navit_loader.config import PlanConfig, Resolution
from navit_loader.errors import ModelError
from navit_model import NaViT, NaViTConfig
from navit_model.losses.detection import Objects, detection_loss, with_objects
from navit_model.model.dense import finer, grids, pixels, rasters
from navit_model.model.owl import OwlHead, Proposals, detections, in_source
from navit_model.model.segmenter import Segmenter

from .packed import Grid, packed

SMALL = NaViTConfig(width=24, depth=2, heads=2, patch_size=4, max_grid=12)
grid = st.tuples(st.integers(1, 4), st.integers(1, 4))
layouts = st.lists(st.lists(grid, max_size=4), min_size=1, max_size=3)


def batch_of(sequences: list[list[Grid]], **changes: Any) -> PackedBatch:
    return packed(sequences, **{"length": 80, "longest": 20, "images": 5, **changes}).to("cpu")


@settings(max_examples=40, deadline=None)
@given(sequences=layouts, prefix=st.integers(0, 2), drop=st.sampled_from([0.0, 0.5]), fail=st.booleans())
def test_every_token_returns_to_its_place(sequences: list[list[Grid]], prefix: int, drop: float, fail: bool) -> None:
    failed = [(0, 0)] if fail and sequences[0] else []
    batch = batch_of(sequences, prefix=prefix, drop=drop, failed=failed)
    # A token says where it stood, and on which image.
    says = torch.cat([batch.segment_ids[..., None], batch.positions], -1).float() + 1
    says = says.masked_fill((batch.segment_ids < 0)[..., None], torch.nan).requires_grad_()
    found, there = rasters(says, batch, 16)
    assert found.shape == (len(sequences), 5, 16, 3)
    seen = 0
    for b, sequence in enumerate(sequences):
        for e, (h, w) in enumerate(sequence):
            for cell in range(16):
                if there[b, e, cell]:
                    assert cell < h * w
                    assert found[b, e, cell].tolist() == [e + 1, cell // w + 1, cell % w + 1]
                    seen += 1
                else:
                    assert not found[b, e, cell].any()
    patches = (batch.segment_ids >= 0) & (batch.positions[..., 0] >= 0)
    assert seen == int(patches.sum()) == int(there.sum())
    found.sum().backward()
    assert torch.equal(says.grad, patches[..., None].float().expand_as(says))
    maps = grids(says.detach(), batch)
    wanted = [sequences[b][e] for b, e in (batch.status == OK).nonzero().tolist()]
    assert [tuple(m.shape[:2]) for m in maps] == wanted
    with pytest.raises(ModelError, match="give its h · w at least"):
        rasters(says, batch_of([[(4, 4)]]), 15)


def test_pixels_are_the_enlarged_grid_of_the_unmirrored_crop() -> None:
    batch = batch_of([[(2, 3), (3, 1)]])
    batch = replace(
        batch,
        crops=torch.tensor([[[1, 2, 11, 13], [0, 0, 9, 5], *[[0] * 4] * 3]], dtype=torch.int32),
        flips=torch.tensor([[1, 0, 0, 0, 0]], dtype=torch.uint8),
    )
    x = torch.randn(1, 80, 2)
    planned, source = pixels(x, batch), pixels(x, batch, source=True)
    assert [tuple(p.shape) for p in planned] == [(2, 8, 12), (2, 12, 4)]
    assert [tuple(p.shape) for p in source] == [(2, 11, 13), (2, 9, 5)]
    first = x[0, :6].view(2, 3, 2).permute(2, 0, 1)
    plain = F.interpolate(first[None], (11, 13), mode="bilinear")[0]
    assert torch.allclose(source[0], plain.flip(-1))


@settings(max_examples=30, deadline=None)
@given(sequences=layouts, side=st.integers(1, 4), prefix=st.integers(0, 2))
def test_finer_cells_are_the_enlarged_grid(sequences: list[list[Grid]], side: int, prefix: int) -> None:
    batch = batch_of(sequences, prefix=prefix)
    x = torch.randn(len(sequences), 80, 2, generator=torch.Generator().manual_seed(0))
    x = x.masked_fill((batch.segment_ids < 0)[..., None], torch.nan)
    found = finer(x, batch, side)
    assert found.shape == (len(sequences), 80, side * side, 2) and found.isfinite().all()
    for b, sequence in enumerate(sequences):
        for e, (h, w) in enumerate(sequence):
            own = (batch.segment_ids[b] == e) & (batch.positions[b, :, 0] >= 0)
            grid = x[b, own].view(h, w, 2).permute(2, 0, 1)[None]
            wanted = F.interpolate(grid, (h * side, w * side), mode="bilinear", align_corners=False)[0]
            cells = found[b, own].view(h, w, side, side, 2).permute(4, 0, 2, 1, 3).reshape(2, h * side, w * side)
            assert torch.allclose(cells, wanted, atol=1e-5)


def test_finer_cells_leave_dropped_patches_out() -> None:
    batch = batch_of([[(4, 4)]], drop=0.5)
    ones = torch.ones(1, 80, 1)
    kept = (batch.segment_ids >= 0)[..., None, None]
    assert torch.allclose(finer(ones, batch, 3), kept.float().expand(-1, -1, 9, -1))


def segmenter(classes: int = 3, **changes: Any) -> Segmenter:
    torch.manual_seed(0)
    return Segmenter(NaViT(replace(SMALL, **changes)), classes).eval()


@settings(max_examples=15, deadline=None)
@given(sequences=layouts, seed=st.integers(0, 99), backend=st.sampled_from(["dense", "segments"]))
def test_segmentation_keeps_images_apart(sequences: list[list[Grid]], seed: int, backend: str) -> None:
    """Each image packed has the logits that it has alone, whatever stands in masked memory."""
    net = segmenter(attention=backend)
    batch = batch_of(sequences, floats=True, seed=seed)
    with torch.no_grad():
        together = net(batch)
        assert together.shape == (len(sequences), 80, 3)
        for b, sequence in enumerate(sequences):
            for e, (h, w) in enumerate(sequence):
                own = batch.segment_ids[b] == e
                alone = batch_of([[(h, w)]], floats=True)
                alone.patches[0, : h * w] = batch.patches[b, own]
                assert (net(alone)[0, : h * w] - together[b, own]).abs().max() < 1e-4


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Models this small are slower on many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pictures(count: int) -> tuple[list[np.ndarray], list[tuple[int, int, int, int]], list[int]]:
    """A bright box on noise: images, boxes (left, top, right, bottom) in pixels, and whether each is red or green."""
    rng = np.random.default_rng(0)
    images, boxes, kinds = [], [], []
    for i in range(count):
        h, w = (int(v) * 4 for v in rng.integers(4, 7, 2))
        image = rng.integers(0, 70, (h, w, 3), np.uint8)
        bh, bw = (int(v) for v in rng.integers(7, 13, 2))
        top, left = int(rng.integers(0, h - bh)), int(rng.integers(0, w - bw))
        image[top : top + bh, left : left + bw, i % 2] = 230
        images.append(image)
        boxes.append((left, top, left + bw, top + bh))
        kinds.append(i % 2)
    return images, boxes, kinds


LOADER = LoaderConfig(
    plan=PlanConfig(
        sequence_length=128, max_tokens=36, max_images=8, patch_sizes=(4,), resolution=Resolution(kind="native")
    )
)


def test_a_segmenter_learns_to_tell_box_from_ground() -> None:
    images, boxes, kinds = pictures(16)
    batch = pack_images(images, LOADER).to("cpu")
    label = torch.full(batch.segment_ids.shape, -1)
    for b, t in ((batch.segment_ids >= 0).nonzero()).tolist():
        row = int(batch.image_ids[b, batch.segment_ids[b, t]])
        y, x = (batch.positions[b, t].float() * 4 + 2).tolist()
        left, top, right, bottom = boxes[row]
        label[b, t] = 1 + kinds[row] if left <= x < right and top <= y < bottom else 0
    net = segmenter().train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    for _ in range(60):
        loss = F.cross_entropy(net(batch).flatten(0, 1), label.flatten(), ignore_index=-1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    known = label >= 0
    with torch.no_grad():
        logits = net.eval()(batch)
    overlaps = []
    for kind in range(3):
        said, true = (logits.argmax(-1) == kind) & known, label == kind
        overlaps.append(float((said & true).sum() / (said | true).sum()))
    assert np.mean(overlaps) > 0.8, overlaps
    # Put back onto the source, the middle of each box is of its kind.
    rows = batch.image_ids[batch.status == OK].tolist()
    for row, found in zip(rows, pixels(logits, batch, source=True), strict=True):
        left, top, right, bottom = boxes[row]
        assert found.shape[1:] == images[row].shape[:2]
        assert int(found[:, (top + bottom) // 2, (left + right) // 2].argmax()) == 1 + kinds[row]


def test_a_box_starts_as_its_patch() -> None:
    batch = batch_of([[(2, 4)]], prefix=1)
    found = OwlHead(24, 8)(torch.randn(1, 80, 24), batch, torch.randn(3, 8))
    assert found.logits.shape == (1, 80, 3)
    assert found.there[0].nonzero().flatten().tolist() == list(range(1, 9))
    wanted = torch.tensor([[(x + 0.5) / 4, (y + 0.5) / 2, 1 / 4, 1 / 2] for y in range(2) for x in range(4)])
    assert torch.allclose(found.boxes[0, 1:9], wanted, atol=1e-3)


def test_boxes_return_to_the_source() -> None:
    """A box drawn in the source, seen through a mirrored crop, and back."""
    left, top, right, bottom = 30.0, 12.0, 44.0, 30.0
    crop = torch.tensor([10, 20, 40, 60], dtype=torch.int32)
    x0, x1 = 1 - (right - 20) / 60, 1 - (left - 20) / 60
    y0, y1 = (top - 10) / 40, (bottom - 10) / 40
    seen = torch.tensor([[(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0]])
    assert torch.allclose(in_source(seen, crop, True), torch.tensor([[left, top, right, bottom]]), atol=1e-4)


def test_a_detector_learns_boxes_and_their_names() -> None:
    images, boxes, kinds = pictures(16)
    batch = pack_images(images, LOADER).to("cpu")
    rows = batch.image_ids[batch.status == OK].tolist()
    objects = [Objects(torch.tensor([boxes[row]]), torch.tensor([kinds[row]])) for row in rows]
    batch = with_objects(batch, objects)
    torch.manual_seed(0)
    net, head, queries = NaViT(SMALL), OwlHead(24, 8), torch.eye(2, 8)
    optimizer = torch.optim.AdamW([*net.parameters(), *head.parameters()], lr=3e-3)
    for _ in range(150):
        total, count = detection_loss(head(net.forward_features(batch), batch, queries), batch, classes=2.0)
        assert int(count) == 16
        optimizer.zero_grad()
        (total / count).backward()
        optimizer.step()
    with torch.no_grad():
        result = detections(head(net.forward_features(batch), batch, queries), batch, 0.1)
    overlaps = []
    for row, each in zip(rows, result, strict=True):
        assert int(each["queries"][0]) == kinds[row]
        a, b = each["boxes"][0].tolist(), boxes[row]
        w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
        cut = max(w, 0) * max(h, 0)
        overlaps.append(cut / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - cut))
        assert each["scores"].diff().le(0).all()
    assert np.mean(overlaps) > 0.6, overlaps


def proposals(batch: PackedBatch, seed: int = 0) -> Proposals:
    """Random ones, with NaN wherever there is no patch."""
    there = (batch.segment_ids >= 0) & (batch.positions[..., 0] >= 0)
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.rand(*there.shape, 4, generator=generator) * 0.5 + 0.2
    logits = torch.randn(*there.shape, 3, generator=generator)
    boxes, logits = (x.masked_fill(~there[..., None], torch.nan).requires_grad_() for x in (boxes, logits))
    return Proposals(boxes, logits, there)


def written_out(boxes: torch.Tensor, logits: torch.Tensor, wanted: torch.Tensor, names: list[int]) -> float:
    """The loss of one image over the best of all matchings, in the plainest form; boxes as shares."""

    def corners(box: torch.Tensor) -> tuple[float, float, float, float]:
        x, y, w, h = box.tolist()
        return x - w / 2, y - h / 2, x + w / 2, y + h / 2

    def pair(ours: torch.Tensor, theirs: torch.Tensor) -> float:
        (a0, a1, a2, a3), (b0, b1, b2, b3) = corners(ours), corners(theirs)
        both = max(min(a2, b2) - max(a0, b0), 0) * max(min(a3, b3) - max(a1, b1), 0)
        either = (a2 - a0) * (a3 - a1) + (b2 - b0) * (b3 - b1) - both
        around = (max(a2, b2) - min(a0, b0)) * (max(a3, b3) - min(a1, b1))
        return float((ours - theirs).abs().sum()) + 1 - both / either + (around - either) / around

    chance = logits.sigmoid()
    yes, no = -0.3 * (1 - chance) ** 2 * chance.log(), -0.7 * chance**2 * (1 - chance).log()
    best = float("inf")
    for chosen in itertools.permutations(range(len(boxes)), len(names)):
        total = float(no.sum())
        for t, name, target in zip(chosen, names, wanted, strict=True):
            total += float(yes[t, name] - no[t, name]) + pair(boxes[t], target)
        best = min(best, total)
    return best


@settings(max_examples=20, deadline=None)
@given(numbers=st.lists(st.integers(0, 3), min_size=3, max_size=3), crowd=st.booleans(), seed=st.integers(0, 99))
def test_the_detection_loss_is_that_of_the_best_matching(numbers: list[int], crowd: bool, seed: int) -> None:
    """Unequal numbers of objects, none among them; crowds, which are not asked for; NaN where there is no patch."""
    layout: list[list[Grid]] = [[(2, 2), (1, 5)], [(2, 3)]]
    batch = batch_of(layout, prefix=1)
    # Crops of 100 × 100 pixels: shares are hundredths.
    batch = replace(batch, crops=torch.tensor([0, 0, 100, 100], dtype=torch.int32).expand(2, 5, 4))
    rng = np.random.default_rng(seed)
    wanted = [torch.from_numpy(rng.integers([10, 10, 60, 60], [50, 50, 100, 100], (n, 4))).float() for n in numbers]
    names = [rng.integers(0, 3, n) for n in numbers]
    objects = [Objects(b, torch.from_numpy(n)) for b, n in zip(wanted, names, strict=True)]
    found = proposals(batch, seed)
    batch = with_objects(batch, objects)
    if crowd and numbers[1]:
        # The first of the second image.
        batch.box_flags[0, numbers[0]] = 1
    total, count = detection_loss(found, batch)
    expected, images = 0.0, [(0, 0), (0, 1), (1, 0)]
    for i, (b, e) in enumerate(images):
        own = found.there[b] & (batch.segment_ids[b] == e)
        low, high = wanted[i][:, :2], wanted[i][:, 2:]
        shares, first = torch.cat([(low + high) / 2, high - low], 1) / 100, int(crowd and i == 1)
        expected += written_out(
            found.boxes[b][own].detach(), found.logits[b][own].detach(), shares[first:], names[i].tolist()[first:]
        )
    assert abs(total.item() - expected) < 1e-4 * max(expected, 1)
    assert int(count) == sum(numbers) - (crowd and numbers[1] > 0)
    total.backward()
    for x in (found.boxes, found.logits):
        assert x.grad is not None and torch.isfinite(x.grad).all() and not x.grad[~found.there].any()


def test_objects_are_seen_through_crop_and_mirror_and_bad_ones_are_named() -> None:
    batch = batch_of([[(2, 3)]])
    crops = torch.tensor([10, 20, 40, 60], dtype=torch.int32).expand(1, 5, 4)
    batch = replace(batch, crops=crops, flips=torch.ones(1, 5, dtype=torch.uint8))
    boxes = torch.tensor([[30.0, 12.0, 44.0, 30.0], [0.0, 0.0, 19.0, 9.0], [10.0, 20.0, 50.0, 100.0]])
    found = proposals(batch)
    # The second lies outside; the third is cut at left and bottom.
    visible = torch.tensor([[30.0, 12.0, 44.0, 30.0], [20.0, 20.0, 50.0, 50.0]])
    x = 1 - (visible[:, [2, 0]] - 20) / 60
    y = (visible[:, [1, 3]] - 10) / 40
    exact = torch.stack([x.mean(1), y.mean(1), x[:, 1] - x[:, 0], y[:, 1] - y[:, 0]], 1)
    with torch.no_grad():
        found.boxes[0, :2] = exact
        found.logits[0, :6] = -20.0
        found.logits[0, 0, 2] = found.logits[0, 1, 1] = 20.0
    total, count = detection_loss(found, with_objects(batch, [Objects(boxes, torch.tensor([2, 0, 1]))]))
    assert int(count) == 2 and total.item() < 1e-4
    bad: list[tuple[str, list[Objects]]] = [
        ("objects of 0 images, but 1 have status OK", []),
        ("a box has the class 3, but there are 3 queries", [Objects(boxes[:1], torch.tensor([3]))]),
        ("a box without extent", [Objects(boxes[:1, [2, 1, 0, 3]], torch.tensor([0]))]),
        ("boxes of shape \\[3, 4\\] for 1 queries", [Objects(boxes, torch.tensor([0]))]),
    ]
    for words, objects in bad:
        with pytest.raises(ModelError, match=words):
            detection_loss(found, with_objects(batch, objects))
    with pytest.raises(ModelError, match=r"the batch carries no boxes; set plan\.targets\.boxes = true"):
        detection_loss(found, batch)
