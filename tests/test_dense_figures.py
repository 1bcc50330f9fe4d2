"""Figures of boxes, maps and segments, against their definitions and their peers on random predictions."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from navit_model.evaluate.average_precision import average_precision
from navit_model.evaluate.overlap import Overlap
from navit_model.evaluate.panoptic_quality import PanopticQuality

torchmetrics = pytest.importorskip("torchmetrics")


def scene(seed: int, images: int = 6, kinds: int = 3) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Boxes of random classes, and results that are near some of them."""
    rng = np.random.default_rng(seed)
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image in range(images):
        for _ in range(int(rng.integers(0, 5))):
            box = [*rng.uniform(0, 200, 2), *rng.uniform(8, 150, 2)]
            kind = int(rng.integers(kinds))
            annotations.append(
                {"id": len(annotations) + 1, "image_id": image, "category_id": kind, "bbox": box, "iscrowd": 0}
            )
            annotations[-1]["area"] = box[2] * box[3]
            for _ in range(int(rng.integers(0, 3))):
                near = [float(v) for v in np.array(box) + rng.normal(0, 8, 4)]
                near[2:] = [max(v, 1.0) for v in near[2:]]
                said = kind if rng.random() < 0.8 else int(rng.integers(kinds))
                results.append({"image_id": image, "category_id": said, "bbox": near, "score": float(rng.random())})
    truth = {
        "images": [{"id": n} for n in range(images)],
        "annotations": annotations,
        "categories": [{"id": n, "name": str(n)} for n in range(kinds)],
    }
    return truth, results


def plainly(truth: dict[str, Any], results: list[dict[str, Any]], least: float) -> float | None:
    """AP at one overlap, in the plainest form: 101 points of the curve's envelope, the mean over the classes."""

    def overlap(a: list[float], b: list[float]) -> float:
        w = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
        h = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
        both = max(w, 0) * max(h, 0)
        return both / (a[2] * a[3] + b[2] * b[3] - both)

    found = []
    for kind in {a["category_id"] for a in truth["annotations"]}:
        own = [a for a in truth["annotations"] if a["category_id"] == kind]
        taken: set[int] = set()
        hits = []
        for each in sorted((r for r in results if r["category_id"] == kind), key=lambda r: -r["score"]):
            rivals = [
                (overlap(each["bbox"], a["bbox"]), a["id"])
                for a in own
                if a["image_id"] == each["image_id"] and a["id"] not in taken
            ]
            share, best = max(rivals, default=(0.0, 0))
            hits.append(share >= least)
            if hits[-1]:
                taken.add(best)
        right = np.cumsum(hits)
        recall, precision = right / len(own), right / np.arange(1, len(hits) + 1)
        points = [max(precision[recall >= r - 1e-12], default=0.0) for r in np.linspace(0, 1, 101)]
        found.append(float(np.mean(points)))
    return float(np.mean(found)) if found else None


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 9999))
def test_average_precision_is_the_area_under_its_curve(seed: int) -> None:
    truth, results = scene(seed)
    figures = average_precision(truth, results)
    assert figures["ap50"] == pytest.approx(plainly(truth, results, 0.5), abs=1e-6)
    levels = [plainly(truth, results, 0.5 + 0.05 * n) for n in range(10)]
    assert figures["ap"] == pytest.approx(None if None in levels else np.mean([v for v in levels if v is not None]))


def test_what_nothing_was_found_of_scores_nothing_and_crowds_are_not_asked_for() -> None:
    truth, _ = scene(1)
    assert average_precision(truth, [])["ap"] == 0.0
    exact = [{**a, "score": 1.0} for a in truth["annotations"]]
    assert average_precision(truth, exact)["ap"] == pytest.approx(1.0)
    kind = truth["annotations"][0]["category_id"]
    crowd = {**truth["annotations"][0], "id": 99, "bbox": [300.0, 300.0, 50.0, 50.0], "area": 2500.0, "iscrowd": 1}
    truth["annotations"].append(crowd)
    within = [{"image_id": crowd["image_id"], "category_id": kind, "bbox": [310.0, 310.0, 9.0, 9.0], "score": 2.0}]
    assert average_precision(truth, exact + within)["ap"] == pytest.approx(1.0)
    empty = {**truth, "annotations": []}
    assert average_precision(empty, exact)["ap"] is None


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 9999), kinds=st.integers(2, 5))
def test_overlap_is_that_of_torchmetrics(seed: int, kinds: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randint(-1, kinds, (3, 7, 9), generator=generator)
    told = torch.randint(0, kinds, (3, 7, 9), generator=generator)
    truth[truth == kinds - 1] = -1 if seed % 3 == 0 else kinds - 1
    found = Overlap(kinds)
    for one, other in zip(truth, told, strict=True):
        found.add(one, other)
    options: dict[str, Any] = {"num_classes": kinds, "ignore_index": -1}
    iou = torchmetrics.JaccardIndex(task="multiclass", average="none", **options)(told, truth)
    accuracy = torchmetrics.Accuracy(task="multiclass", average="micro", **options)(told, truth)
    assert torch.allclose(found.by_class.nan_to_num(0).float(), iou, atol=1e-6)
    assert found.pixel_accuracy == pytest.approx(float(accuracy))
    known = ~found.by_class.isnan()
    assert found.miou == pytest.approx(float(iou[known].mean()), abs=1e-6)
    # Of what nothing was told, nothing is right.
    found.add(truth, torch.full_like(truth, -1))
    assert found.pixel_accuracy == pytest.approx(float(accuracy) / 2)


def segments(seed: int, kinds: int, void: bool) -> tuple[np.ndarray, dict[int, int]]:
    """A map of random rectangles over each other, and their classes."""
    rng = np.random.default_rng(seed)
    ids = np.full((16, 20), 0)
    named = {0: 0} if not void else {}
    for n in range(1, int(rng.integers(2, 8))):
        top, left = int(rng.integers(0, 12)), int(rng.integers(0, 14))
        ids[top : top + int(rng.integers(2, 9)), left : left + int(rng.integers(2, 9))] = n * 7
        named[n * 7] = int(rng.integers(kinds))
    return ids, {n: k for n, k in named.items() if (ids == n).any()}


def moved(ids: np.ndarray, named: dict[int, int], seed: int, kinds: int) -> tuple[np.ndarray, dict[int, int]]:
    """A prediction that is near."""
    rng = np.random.default_rng(seed + 1)
    told = np.roll(ids, int(rng.integers(0, 2)), int(rng.integers(0, 2))) + 1000
    found = {n + 1000: k if rng.random() < 0.8 else int(rng.integers(kinds)) for n, k in named.items()}
    return told, found


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 9999))
def test_panoptic_quality_is_that_of_torchmetrics(seed: int) -> None:
    from torchmetrics.detection import PanopticQuality as Peer

    kinds = 3
    ids, named = segments(seed, kinds, void=True)
    told, found = moved(ids, named, seed, kinds)
    # Theirs forgives to miss what nothing was told of, which the paper does not: something is told everywhere.
    found |= {1000: 0}
    ours = PanopticQuality(kinds)
    ours.add(ids, named, told, found)
    peer = Peer(things=set(range(kinds)), stuffs={kinds}, allow_unknown_preds_category=True, return_sq_and_rq=True)

    def pairs(map_: np.ndarray, names: dict[int, int]) -> torch.Tensor:
        # A class beyond all others is their void.
        kind = np.vectorize(lambda n: names.get(n, kinds + 1))(map_)
        return torch.from_numpy(np.stack([kind, np.where(kind > kinds, 0, map_)], -1))[None]

    wanted = peer(pairs(told, found), pairs(ids, named))
    figures = ours.figures([True] * kinds)
    if figures["pq"] is None:
        assert not named and not found
    else:
        assert wanted.tolist() == pytest.approx([figures[n] for n in ("pq", "sq", "rq")], abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 9999))
def test_panoptic_quality_with_crowds_is_as_defined(seed: int) -> None:
    """Pair by pair and pixel by pixel, as panopticapi writes it down."""
    kinds = 2
    ids, named = segments(seed, kinds, void=True)
    told, found = moved(ids, named, seed, kinds)
    crowds = sorted({k: n for n, k in named.items() if n % 3 == 0}.values())
    ours = PanopticQuality(kinds)
    ours.add(ids, named, told, found, crowds)
    sums: dict[int, list[float]] = defaultdict(lambda: [0.0, 0, 0, 0])
    area = {n: int((told == n).sum()) for n in found if (told == n).any()}
    void = ~np.isin(ids, list(named))
    hit_theirs, hit_ours = set(), set()
    for n in area:
        for m in named:
            both = int(((told == n) & (ids == m)).sum())
            union = area[n] + int((ids == m).sum()) - both - int(((told == n) & void).sum())
            if m not in crowds and found[n] == named[m] and both and both / union > 0.5:
                sums[named[m]][0] += both / union
                sums[named[m]][1] += 1
                hit_theirs.add(m)
                hit_ours.add(n)
    for m, kind in named.items():
        sums[kind][3] += m not in hit_theirs and m not in crowds
    for n in area:
        if n not in hit_ours:
            free = void | np.isin(ids, [m for m in crowds if named[m] == found[n]])
            sums[found[n]][2] += ((told == n) & free).sum() / area[n] <= 0.5
    for kind in range(kinds):
        assert ours.sums[:, kind].tolist() == pytest.approx(sums[kind])
