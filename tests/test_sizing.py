"""`[plan.resolution] kind = "smart"`: every grid and every refusal is that of the family's own processor, in plans too."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from navit_loader import _packer
from navit_loader.config import Crop, Drop, PlanConfig, Resolution, Teacher
from navit_loader.errors import ConfigError, PlanError
from navit_loader.plan.sizing import grids, sizes

COUNT = int(os.environ.get("NAVIT_SIZES", 20_000))
"""Sizes per family; the goal is stated for 100,000."""

Own = Callable[[int, int, int, Resolution], tuple[int, int]]
"""(height, width, P, resolution) → target height and width in pixels."""


@cache
def of(module: str, name: str) -> Any:
    return getattr(pytest.importorskip(f"transformers.models.{module}"), name)


def qwen(h: int, w: int, p: int, r: Resolution) -> tuple[int, int]:
    smart = of("qwen2_vl.image_processing_qwen2_vl", "smart_resize")
    return smart(h, w, p * r.merge, r.min_pixels, r.max_pixels)  # type: ignore[no-any-return]


def glm(h: int, w: int, p: int, r: Resolution) -> tuple[int, int]:
    smart = of("glm4v.image_processing_glm4v", "smart_resize")
    return smart(2, h, w, 2, p * r.merge, 2 * r.min_pixels, 2 * r.max_pixels)  # type: ignore[no-any-return]


def paddleocr(h: int, w: int, p: int, r: Resolution) -> tuple[int, int]:
    smart = of("paddleocr_vl.image_processing_paddleocr_vl", "smart_resize")
    return smart(h, w, p * r.merge, r.min_pixels, r.max_pixels)  # type: ignore[no-any-return]


def lfm2(h: int, w: int, p: int, r: Resolution) -> tuple[int, int]:
    smart = of("lfm2_vl.image_processing_lfm2_vl", "Lfm2VlImageProcessor").smart_resize
    area = (p * r.merge) ** 2
    width, height = smart(None, h, w, r.merge, r.min_pixels // area, r.max_pixels // area, p)
    return height, width


def siglip2(h: int, w: int, p: int, r: Resolution) -> tuple[int, int]:
    smart = of("siglip2.image_processing_siglip2", "get_image_size_for_max_num_patches")
    return smart(h, w, p, r.max_pixels // p**2)  # type: ignore[no-any-return]


def naflex(h: int, w: int, p: int, r: Resolution) -> tuple[int, int]:
    smart = pytest.importorskip("timm.data.naflex_transforms").get_image_size_for_seq
    return smart((h, w), p, r.max_pixels // p**2)[1]  # type: ignore[no-any-return]


def pixtral(h: int, w: int, p: int, r: Resolution) -> tuple[int, int]:
    smart = of("pixtral.image_processing_pixtral", "get_resize_output_image_size")
    blank = np.broadcast_to(np.zeros((1, 1, 1), np.uint8), (h, w, 3))
    return smart(blank, (r.max_side, r.max_side), (p * r.merge,) * 2, "channels_last")  # type: ignore[no-any-return]


def kimi(h: int, w: int, p: int, r: Resolution) -> tuple[int, int]:
    smart = of("kimi_k25.image_processing_kimi_k25", "navit_resize")
    return smart(h, w, p, r.merge, r.max_pixels // p**2, r.max_side // p)[1]  # type: ignore[no-any-return]


def gemma4(h: int, w: int, p: int, r: Resolution) -> tuple[int, int]:
    smart = of("gemma4.image_processing_gemma4", "get_aspect_ratio_preserving_size")
    return smart(h, w, p, r.max_pixels // p**2, r.merge)  # type: ignore[no-any-return]


def smart(rule: Any, **keys: int) -> Resolution:
    return Resolution(kind="smart", rule=rule, **keys)


FAMILIES: dict[str, tuple[Own, int, Resolution]] = {
    "qwen2": (qwen, 14, smart("qwen", merge=2, min_pixels=56 * 56, max_pixels=28 * 28 * 1280)),
    "qwen3": (qwen, 16, smart("qwen", merge=2, min_pixels=65536, max_pixels=16777216)),
    "qwen, few": (qwen, 14, smart("qwen", merge=2, min_pixels=785, max_pixels=28 * 28 * 10 + 1)),
    "glm": (glm, 14, smart("glm", merge=2, min_pixels=56 * 112, max_pixels=28 * 28 * 7500)),
    "paddleocr": (paddleocr, 14, smart("paddleocr", merge=2, min_pixels=384 * 384, max_pixels=1536 * 1536)),
    "lfm2": (lfm2, 16, smart("lfm2", merge=2, min_pixels=64 * 1024, max_pixels=256 * 1024)),
    "siglip2": (siglip2, 16, smart("siglip2", max_pixels=256 * 256)),
    "siglip2, 1000 patches": (siglip2, 14, smart("siglip2", max_pixels=1000 * 196)),
    "naflex": (naflex, 16, smart("siglip2", max_pixels=576 * 256)),
    "pixtral": (pixtral, 16, smart("pixtral", max_side=1024)),
    "mistral3": (pixtral, 14, smart("pixtral", merge=2, max_side=1540)),
    "kimi": (kimi, 14, smart("kimi", merge=2, max_pixels=16384 * 196, max_side=512 * 14)),
    "gemma4": (gemma4, 16, smart("gemma4", merge=3, max_pixels=280 * 9 * 256)),
    "gemma4, few": (gemma4, 16, smart("gemma4", merge=3, max_pixels=70 * 9 * 256)),
}


def sides(n: int, seed: int) -> tuple[Any, Any]:
    """Of every order of magnitude, thin and tiny ones too, squares, and sides a pixel beside multiples of 14 and 16."""
    rng = np.random.default_rng(seed)
    orders = np.exp(rng.uniform(0, np.log(20_000), (2, n))).astype(np.int64)
    usual = rng.integers(64, 4097, (2, n))
    beside = rng.choice([14, 16, 28, 32, 48], (2, n)) * rng.integers(1, 120, (2, n)) // rng.integers(1, 3, (2, n))
    beside += rng.integers(-1, 2, (2, n))
    kind = rng.integers(0, 4, n)
    h, w = np.where(kind < 1, orders, np.where(kind < 3, usual, beside))
    return np.maximum(h, 1), np.maximum(np.where(rng.random(n) < 0.02, h, w), 1)


def family_grid(own: Own, h: int, w: int, p: int, r: Resolution) -> tuple[int, int]:
    """0 × 0 where the family refuses, by an error or a side of nothing."""
    try:
        height, width = own(h, w, p, r)
    except ValueError:
        return 0, 0
    return (height // p, width // p) if height and width else (0, 0)


@pytest.mark.parametrize("name", FAMILIES)
def test_grids_are_the_familys_own(name: str) -> None:
    own, p, r = FAMILIES[name]
    h, w = sides(COUNT, len(name))
    theirs = np.array([family_grid(own, a, b, p, r) for a, b in zip(h.tolist(), w.tolist(), strict=True)])
    ours = grids(r, p, h, w)
    different = np.flatnonzero((ours != theirs).any(1))
    assert not different.size, [(h[i], w[i], ours[i], theirs[i]) for i in different[:5]]
    assert (ours % r.merge == 0).all()


def test_kimi_resizes_to_less_than_its_grid() -> None:
    _, p, r = FAMILIES["kimi"]
    smart = of("kimi_k25.image_processing_kimi_k25", "navit_resize")
    h, w = sides(COUNT, 3)
    found = sizes(r, p, h, w)
    own = [
        smart(a, b, p, r.merge, r.max_pixels // p**2, r.max_side // p)
        for a, b in zip(h.tolist(), w.tolist(), strict=True)
    ]
    assert (found.pixels == [size for size, _ in own]).all()
    assert (found.grids * p == [padded for _, padded in own]).all()


def test_a_refused_image_is_named_with_its_reason() -> None:
    found = sizes(QWEN, 14, [300, 10, 300], [300, 2001, 300])
    assert found.refused == [(1, "one side is more than 200 times the other")]
    assert (found.grids[1] == 0).all() and (found.grids[[0, 2]] > 0).all()


@settings(max_examples=300, deadline=None)
@given(
    name=st.sampled_from(sorted(FAMILIES)),
    patch=st.sampled_from([7, 14, 16, 32]),
    merge=st.integers(1, 4),
    blocks=st.integers(1, 3000),
    least=st.floats(0.001, 1),
    side=st.integers(64, 5000),
    image=st.tuples(st.integers(1, 60_000), st.integers(1, 60_000)),
)
def test_so_they_are_with_other_bounds(
    name: str, patch: int, merge: int, blocks: int, least: float, side: int, image: tuple[int, int]
) -> None:
    own, _, r = FAMILIES[name]
    merge = merge if r.merge > 1 else 1
    area = (patch * merge) ** 2
    values = {
        "merge": merge,
        "max_pixels": blocks * area,
        "min_pixels": max(1, int(least * blocks)) * area,
        "max_side": side // patch * patch,
    }
    bounds = {k: v for k, v in values.items() if getattr(r, k) != getattr(Resolution(), k)}
    r = dataclasses.replace(r, **bounds)
    found = grids(r, patch, np.array([image[0]]), np.array([image[1]]))[0]
    assert tuple(found) == family_grid(own, *image, patch, r)


def plan_of(config: PlanConfig, h: Any, w: Any) -> _packer.Plan:
    columns = {"height": [np.asarray(h, np.int32)], "width": [np.asarray(w, np.int32)], "path": "an.index"}
    return _packer.Plan(config.to_json(), [columns], [(0, None, 1.0)])


@settings(max_examples=40, deadline=None)
@given(name=st.sampled_from(sorted(FAMILIES)), seed=st.integers(0, 99), crop=st.booleans())
def test_a_plan_has_these_grids_whole(name: str, seed: int, crop: bool) -> None:
    _, p, r = FAMILIES[name]
    h, w = np.random.default_rng(seed).integers(32, 900, (2, 50))
    config = PlanConfig(
        sequence_length=32_767,
        max_tokens=32_767,
        patch_sizes=(p,),
        resolution=r,
        crop=Crop(kind="random_resized" if crop else "none"),
        teacher=Teacher(patch_size=2 * p, sequence_length=32_767, max_tokens=32_767),
    )
    layout = plan_of(config, h, w).layout(0)
    layout.counts(0, layout.num_blocks)
    images = [image for s in layout.batch(0, layout.num_sequences).sequences for image in s]
    assert sorted(image["row"] for image in images) == list(range(50))
    crops = np.array([image["crop"][2:] for image in images])
    for key, patch in (("grid", p), ("teacher_grid", 2 * p)):
        planned = np.array([image[key] for image in images])
        assert (planned == grids(r, patch, crops[:, 0], crops[:, 1])).all()
    assert all(image["kept"] == image["grid"][0] * image["grid"][1] for image in images)


QWEN = smart("qwen", merge=2, min_pixels=56 * 56, max_pixels=28 * 28 * 1280)


@pytest.mark.parametrize(
    ("size", "said"),
    [
        ((10, 2001), "row 1 of 'an.index' is 2001 × 10 pixels, which plan.resolution.rule = 'qwen' refuses"),
        ((900, 900), r"row 1 of .* is 900 × 900 pixels, 64 × 64 patches, more than plan.max_tokens has room for: 1000"),
        ((40, 5600), r"2 × 400 patches, a side of more than plan.max_grid = 256"),
    ],
)
def test_what_cannot_be_planned_is_one_line_before_anything_is(size: tuple[int, int], said: str) -> None:
    config = PlanConfig(patch_sizes=(14,), max_tokens=1000, sequence_length=2000, resolution=QWEN)
    plan_of(config, [300], [300])
    with pytest.raises(PlanError, match=said) as e:
        plan_of(config, [300, size[0]], [300, size[1]])
    assert "plan.filter" in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"kind": "native", "merge": 2}, "merge = 2"),
        ({"kind": "smart"}, "min_pixels = 0"),
        ({"kind": "smart", "rule": "siglip2", "max_pixels": 65536, "merge": 2}, "merge = 2"),
        ({"kind": "smart", "rule": "pixtral"}, "max_side = 0"),
        ({"kind": "smart", "min_pixels": 5000, "max_pixels": 4000}, "min_pixels = 5000"),
    ],
)
def test_keys_that_a_rule_lacks_or_does_not_read_are_named(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Resolution(**keys)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"drop": Drop(kind="constant")}, "drop.kind = 'constant'"),
        ({"fit": "drop"}, "fit = 'drop'"),
        ({"fit": "resolution"}, "fit = 'resolution'"),
        ({"patch_sizes": (512,), "resolution": smart("siglip2", max_pixels=512 * 511)}, "resolution.max_pixels"),
        ({"resolution": smart("pixtral", max_side=15)}, "resolution.max_side"),
    ],
)
def test_blocks_of_patches_stay_whole(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        PlanConfig(**{"resolution": QWEN, **keys})


def test_a_plan_of_another_kind_keeps_its_name() -> None:
    assert "rule" not in PlanConfig().to_json()
    assert "merge" not in PlanConfig(resolution=Resolution(kind="native")).to_json()
    assert '"rule":"qwen"' in PlanConfig(resolution=QWEN).to_json()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((Resolution(), 16, [1], [1]), "kind"),
        ((QWEN, 0, [1], [1]), "patch_size = 0"),
        ((QWEN, 14, [1, 0], [1, 1]), "height = 0"),
        ((QWEN, 14, [1], [1, 1]), "width has 2"),
        ((QWEN, 14, [1.5], [1]), "height is float64"),
    ],
)
def test_grids_of_nothing_are_refused(arguments: Any, said: str) -> None:
    with pytest.raises(PlanError, match=said):
        grids(*arguments)
