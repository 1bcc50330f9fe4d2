"""The plan's invariants: every image exactly once, no limit passed, the same plan whoever asks, whatever the ranks."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from navit_loader import _packer, build_index
from navit_loader.cli import main
from navit_loader.config import Crop, Drop, LoaderConfig, Order, PlanConfig, Resolution, Schedule, Teacher
from navit_loader.errors import ConfigError, PlanError, StateError
from navit_loader.plan.config import MASKED, passes_for


def columns(n: int, seed: int = 0, low: int = 8, high: int = 400, captions: bool = False) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    found = {k: [rng.integers(low, high, n).astype(np.int32)] for k in ("width", "height")}
    found["caption_tokens"] = [rng.integers(0, 40, n).astype(np.int32)] if captions else []
    return found


def make(config: PlanConfig, *sources: dict[str, Any], weights: list[float] | None = None) -> _packer.Plan:
    weights = weights or [1.0] * len(sources)
    return _packer.Plan(config.to_json(), list(sources), [(i, None, w) for i, w in enumerate(weights)])


def sequences(layout: _packer.Layout, batch: int = 7) -> list[tuple[int, list[dict[str, Any]]]]:
    """(patch size, images) of every sequence, read batch by batch."""
    layout.counts(0, layout.num_blocks)
    found, first = [], 0
    while first < layout.num_sequences:
        planned = layout.batch(first, batch)
        found += [(planned.patch_size, s) for s in planned.sequences]
        first = layout.next(first, batch)
    assert len(found) == layout.num_sequences
    return found


resolutions = st.one_of(
    st.builds(
        Resolution,
        kind=st.sampled_from(["truncated_normal", "uniform", "fixed", "native"]),
        unit=st.sampled_from(["side", "area"]),
        low=st.integers(8, 64),
        high=st.integers(64, 200),
        upscale=st.booleans(),
    ),
    st.just(Resolution(kind="budget", upscale=True)),
)
schedules = st.builds(
    Schedule, kind=st.sampled_from(["constant", "linear", "sigmoid"]), start=st.just(0.7), images=st.just(500)
)
drops = st.builds(
    Drop,
    kind=st.sampled_from(["none", "constant", "beta", "resolution_dependent"]),
    keep_whole=st.sampled_from([0.0, 0.3]),
    schedule=schedules,
)


@st.composite
def configs(draw: st.DrawFn) -> PlanConfig:
    length = draw(st.integers(16, 300))
    prefix = draw(st.integers(0, 3))
    teacher = None
    if draw(st.booleans()):
        teacher = Teacher(patch_size=12, sequence_length=draw(st.integers(40, 200)), max_tokens=40, prefix_tokens=1)
    packing = draw(st.sampled_from(["auto", "exact", "first_fit", "best_fit", "best_fit_decreasing"]))
    return PlanConfig(
        seed=draw(st.integers(0, 2**64 - 1)),
        sequence_length=length,
        max_tokens=draw(st.integers(prefix + 4, min(length, 120) + 0)) if length >= prefix + 4 else length,
        max_images=draw(st.integers(1, 20)),
        prefix_tokens=prefix,
        patch_sizes=draw(st.sampled_from([(16,), (8,), (8, 16), (8, 12, 16)])),
        patch_run=draw(st.integers(1, 9)),
        packing=packing,
        lookahead=draw(st.integers(1, 40)),
        fit=draw(st.sampled_from(["none", "drop", "resolution"])) if packing in ("auto", "exact") else "none",
        block_images=draw(st.integers(20, 150)),
        text_tokens=draw(st.sampled_from([0, 50])),
        order=Order(kind=draw(st.sampled_from(["permutation", "blocks", "sequential"])), block=8, window=3),
        resolution=draw(resolutions),
        drop=draw(drops),
        crop=Crop(kind=draw(st.sampled_from(["none", "random_resized"])), flip=0.5),
        teacher=teacher,
    )


@settings(max_examples=150, deadline=None)
@given(config=configs(), n=st.integers(1, 320), epoch=st.integers(0, 3), seed=st.integers(0, 9))
def test_every_image_once_and_no_limit_passed(config: PlanConfig, n: int, epoch: int, seed: int) -> None:
    source = columns(n, seed, low=16, captions=config.text_tokens > 0)
    rows = []
    for patch, images in sequences(make(config, source).layout(epoch)):
        assert patch in config.patch_sizes
        assert 1 <= len(images) <= config.max_images
        offset = teacher_offset = text_offset = 0
        for image in images:
            row = image["row"]
            rows.append(row)
            (h, w), (top, left, height, width) = image["grid"], image["crop"]
            # Offsets tile without overlap: no image is split, none lies over another.
            assert image["offset"] == offset
            assert 1 <= image["kept"] <= h * w <= config.max_tokens - config.prefix_tokens
            offset += config.prefix_tokens + image["kept"]
            assert top >= 0
            assert top + height <= source["height"][0][row]
            assert height >= 1
            assert left >= 0
            assert left + width <= source["width"][0][row]
            assert width >= 1
            if not config.resolution.upscale:
                assert h * patch <= max(height, patch)
                assert w * patch <= max(width, patch)
            if config.drop.kind == "none" and config.fit == "none":
                assert image["kept"] == h * w
            if config.teacher:
                th, tw = image["teacher_grid"]
                assert 1 <= th * tw <= config.teacher.max_tokens - config.teacher.prefix_tokens
                assert image["teacher_offset"] == teacher_offset
                teacher_offset += th * tw + config.teacher.prefix_tokens
            if config.text_tokens:
                assert image["text_offset"] == text_offset
                text_offset += min(int(source["caption_tokens"][0][row]), config.text_tokens)
        assert offset <= config.sequence_length
        assert text_offset <= config.text_tokens
        assert teacher_offset <= (config.teacher.sequence_length if config.teacher else 0)
    assert sorted(rows) == list(range(n))


MIXED = PlanConfig(
    seed=7,
    sequence_length=128,
    max_tokens=60,
    patch_sizes=(8, 16),
    patch_run=5,
    block_images=90,
    resolution=Resolution(kind="uniform", low=32, high=128),
    drop=Drop(kind="beta"),
    crop=Crop(kind="random_resized", flip=0.5),
    virtual_epoch=400,
)


def mixed(config: PlanConfig = MIXED) -> _packer.Plan:
    return make(config, columns(150, 1, low=40), columns(90, 2, low=40), weights=[3.0, 1.0])


def flat(planned: _packer.PlannedBatch) -> list[Any]:
    return [planned.patch_size, planned.sequences]


@settings(max_examples=40, deadline=None)
@given(order=st.permutations(range(12)), batch=st.integers(1, 9), epoch=st.integers(0, 2))
def test_any_batch_without_its_predecessors(order: list[int], batch: int, epoch: int) -> None:
    layout = mixed().layout(epoch)
    starts, first = [], 0
    layout.counts(0, layout.num_blocks)
    while first < layout.num_sequences:
        starts.append(first)
        first = layout.next(first, batch)
    forwards = [flat(layout.batch(s, batch)) for s in starts]
    again = mixed().layout(epoch)
    for i in order:
        s = starts[i * len(starts) // 12]
        assert flat(again.batch(s, batch)) == forwards[starts.index(s)]


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 9),
    world=st.integers(1, 5),
    drop=st.booleans(),
    single=st.booleans(),
    stop=st.integers(0, 40),
    batch2=st.integers(1, 9),
    world2=st.integers(1, 5),
)
def test_ranks_cover_the_epoch_and_resume_onto_any_layout(
    batch: int, world: int, drop: bool, single: bool, stop: int, batch2: int, world2: int
) -> None:
    config = dataclasses.replace(MIXED, patch_sizes=(8,)) if single else MIXED
    plan = mixed(config)
    whole = [images for _, images in sequences(plan.layout(1), 1)]

    def run(start: int, batch: int, world: int, limit: int | None, drop: bool) -> tuple[list[list[Any]], int, int]:
        """The sequences that `world` ranks read from `start`, where they then stand, and their steps."""
        layout = plan.layout(1)
        steps = layout.steps(start, batch, world, drop)
        taken, position = [], start
        for _ in range(steps if limit is None else min(limit, steps)):
            for _ in range(world):
                taken += layout.batch(position, batch).sequences
                position = layout.next(position, batch)
        return taken, position, steps

    if drop:
        taken, position, steps = run(0, batch, world, None, True)
        assert taken == whole[: len(taken)]
        left = len(whole) - position
        most = (batch * world) if single else (batch * world + batch)
        assert left < most or (not single and steps == run(0, batch, world, None, False)[2] - 1)
    else:
        first, position, _ = run(0, batch, world, stop, False)
        second, end, _ = run(position, batch2, world2, None, False)
        assert first + second == whole
        assert end == len(whole)


def test_threads_and_block_order_change_nothing() -> None:
    plan = make(PlanConfig(block_images=200, sequence_length=256, max_tokens=64), columns(5000, 3, low=40))
    parallel = plan.layout(0)
    counts = parallel.counts(0, parallel.num_blocks)
    serial = plan.layout(0)
    one_by_one = np.concatenate([serial.counts(b, b + 1) for b in range(serial.num_blocks)])
    assert np.array_equal(counts, one_by_one)
    restored = plan.layout(0)
    restored.extend([int(c) for c in counts])
    last = parallel.num_sequences - 3
    assert flat(restored.batch(last, 8)) == flat(parallel.batch(last, 8))
    remote = _packer.Layout.remote(parallel.run, parallel.num_blocks)
    assert remote.next(0, 8) is None
    remote.extend([int(c) for c in counts])
    for first in (0, 17, last, parallel.num_sequences):
        assert remote.next(first, 8) == parallel.next(first, 8)
        assert remote.steps(first, 8, 3, False) == parallel.steps(first, 8, 3, False)


def test_draws_are_independent_of_batch_order_and_block_size() -> None:
    """A draw belongs to (seed, source, source epoch, row): cutting blocks elsewhere moves images, never changes
    them."""

    def by_row(block: int) -> dict[int, Any]:
        config = dataclasses.replace(MIXED, block_images=block, patch_sizes=(8,), virtual_epoch=0)
        found = {}
        for _, images in sequences(make(config, columns(300, 5, low=40)).layout(2)):
            for image in images:
                found[image["row"]] = (image["grid"], image["kept"], image["crop"], image["flip"], image["key"])
        return found

    assert by_row(50) == by_row(300)


def drawn(images: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """What was drawn for each image, wherever it went."""
    return sorted(tuple(image[n] for n in ("row", "key", "grid", "kept", "crop", "flip")) for image in images)


def test_an_epoch_of_passes_has_the_images_of_so_many_epochs() -> None:
    """With blocks of one pass each, block for block; with larger ones sequences hold two passes, and images are the same."""
    single = PlanConfig(seed=3, sequence_length=512, max_tokens=60, block_images=200, drop=Drop(kind="beta"))
    plain, several = (make(dataclasses.replace(single, passes=k), columns(200, 1, low=40)) for k in (1, 4))
    joined = make(dataclasses.replace(single, passes=4, block_images=65536), columns(200, 1, low=40))
    for epoch in (0, 1):
        each = [images for n in range(4) for _, images in sequences(plain.layout(4 * epoch + n))]
        assert [images for _, images in sequences(several.layout(epoch))] == each
        seen = [image for _, images in sequences(joined.layout(epoch)) for image in images]
        assert np.array_equal(np.bincount([image["row"] for image in seen]), np.full(200, 4))
        assert drawn(seen) == drawn([image for images in each for image in images])
        assert len(sequences(joined.layout(epoch))) < len(each), "one end in place of four"


def test_passes_keep_a_small_set_from_being_padded() -> None:
    """1,437 images, L = 256, B = 16, some 180 sequences a pass: thirty epochs of one pass would pad 8 % each."""
    sides = Resolution(kind="uniform", low=12, high=32)
    config = PlanConfig(sequence_length=256, max_tokens=64, patch_sizes=(4,), resolution=sides)
    padding = {}
    for passes in (1, 30):
        layout = make(dataclasses.replace(config, passes=passes), columns(1437, 1, low=20, high=60)).layout(0)
        report, steps = layout.report(0, layout.num_blocks), layout.steps(0, 16, 1, False)
        assert report["images"] == 1437 * passes
        padding[passes] = 1 - report["tokens"] / (256 * 16 * steps)
        advised = passes_for(report["sequences"] / passes, 16)
        assert (
            (advised - 1) * report["sequences"] / passes * MASKED
            < 16
            <= advised * report["sequences"] / passes * MASKED
        )
    assert padding[30] <= 0.003 and padding[1] > 0.04


def test_passes_change_no_name_where_they_are_not_set() -> None:
    assert "passes" not in PlanConfig().to_json()
    assert '"passes":2' in PlanConfig(passes=2).to_json()
    with pytest.raises(ConfigError, match="passes = 2 is not allowed; it must be 1 beside virtual_epoch = 9"):
        PlanConfig(passes=2, virtual_epoch=9)
    assert LoaderConfig(plan=PlanConfig(passes=9)).for_evaluation().plan.passes == 1


def test_the_command_names_what_pads_and_the_remedy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "images").mkdir()
    for n in range(40):
        Image.new("RGB", (40 + 2 * n, 64)).save(tmp_path / "images" / f"{n:02d}.png")
    build_index(tmp_path / "images", tmp_path / "i.arrow")
    table = "[data]\nbatch_size = 16\n[plan]\nsequence_length = 64\nmax_tokens = 16\nmax_images = {}\npasses = {}\n"
    table += "[plan.resolution]\nkind = 'uniform'\nlow = 60\nhigh = 64\n"

    def planned(max_images: int, passes: int, *more: str) -> str:
        (tmp_path / "c.toml").write_text(table.format(max_images, passes))
        assert main(["plan", str(tmp_path / "i.arrow"), str(tmp_path / "c.toml"), *more]) == 0
        return capsys.readouterr().out

    one, text = json.loads(planned(64, 1, "--json")), planned(64, 1)
    assert one["masked_sequences"] == 16 * one["steps_per_rank"] - one["sequences"] > 0
    slots = 64 * 16 * one["steps_per_rank"]
    assert one["padding"] == pytest.approx(1 - one["tokens_kept"] / slots)
    assert one["below_low"] == sum((40 + 2 * n) * 64 < 3600 for n in range(40)) > 0
    assert one["closed_by_max_images"] == 0 and "closed early" not in text
    assert f"plan.passes = {one['passes_advised']} leaves at most 0.3%" in text
    many = json.loads(planned(64, one["passes_advised"], "--json"))
    assert many["padding_masked"] <= 0.003 and many["images"] == 40 * one["passes_advised"]
    assert many["plan_id"] != one["plan_id"]
    assert json.loads(planned(2, 1, "--json"))["closed_by_max_images"] >= 19


def test_epochs_differ_and_seeds_differ() -> None:
    plans = [make(PlanConfig(seed=s), columns(200, low=40)) for s in (0, 1)]
    seen = [str(sequences(plan.layout(e))) for plan in plans for e in (0, 1)]
    assert len(set(seen)) == 4


def test_evaluation_draws_nothing() -> None:

    config = LoaderConfig(plan=MIXED).for_evaluation(max_tokens=50).plan
    plan = make(config, columns(300, 4, low=40))
    first, second = (sequences(plan.layout(e)) for e in (0, 5))
    strip = [[(i["row"], i["grid"], i["kept"], i["crop"], i["flip"]) for i in images] for _, images in first]
    again = [[(i["row"], i["grid"], i["kept"], i["crop"], i["flip"]) for i in images] for _, images in second]
    assert strip == again
    for _, images in first:
        for image in images:
            assert image["kept"] == math.prod(image["grid"]) <= 50
            assert not image["flip"]


def test_budget_takes_the_most_patches_that_fit() -> None:
    """Pix2Struct, section 2.2: aspect ratio kept, as many patches as the budget holds."""
    config = PlanConfig(resolution=Resolution(kind="budget", upscale=True), max_tokens=256)
    sizes = {"width": [np.array([640, 300, 4000, 8], np.int32)], "height": [np.array([640, 900, 16, 8], np.int32)]}
    grids = {}
    for _, images in sequences(make(config, sizes | {"caption_tokens": []}).layout(0)):
        grids |= {i["row"]: i["grid"] for i in images}
    assert grids == {0: (16, 16), 1: (27, 9), 2: (1, 252), 3: (16, 16)} or grids[2] == (1, 256)


def quantiles(draws: np.ndarray) -> np.ndarray:
    return np.quantile(draws, [0.1, 0.25, 0.5, 0.75, 0.9])


def draws_of(config: PlanConfig, n: int = 40_000, side: int = 2000) -> list[dict[str, Any]]:
    sizes = {k: [np.full(n, side, np.int32)] for k in ("width", "height")} | {"caption_tokens": []}
    return [i for _, images in sequences(make(config, sizes).layout(0), 500) for i in images]


def kolmogorov(sample: np.ndarray, cdf: Any) -> float:
    """Largest distance between the sample's distribution and `cdf`, times √n."""
    x = np.sort(sample)
    n = len(x)
    steps = np.arange(1, n + 1) / n
    return float(max(np.abs(cdf(x) - steps).max(), np.abs(cdf(x) - steps + 1 / n).max()) * np.sqrt(n))


ALARM = 2.7
"""Kolmogorov's bound: a right sampler passes it less than once in a million runs (2·exp(−2·2.7²) ≈ 9e-7)."""


@pytest.mark.parametrize("unit", ["side", "area"])
@pytest.mark.parametrize("kind", ["uniform", "truncated_normal"])
def test_resolution_follows_its_distribution(kind: str, unit: str) -> None:
    """NaViT, section 3.2. One-pixel patches make the grid the drawn side itself."""
    config = PlanConfig(
        patch_sizes=(1,),
        max_grid=32767,
        max_tokens=32767,
        sequence_length=32767,
        resolution=Resolution(kind=kind, unit=unit, low=30, high=180, mean=-0.5, std=1.0),  # type: ignore[arg-type]
        order=Order(kind="sequential"),
        packing="best_fit",
    )
    side = np.array([i["grid"][0] for i in draws_of(config, 30_000)], float)
    low, high = (30, 180) if unit == "side" else (30**2, 180**2)

    def phi(x: np.ndarray) -> np.ndarray:
        return np.array([0.5 * math.erfc(-v / math.sqrt(2)) for v in x])

    def cdf(u: np.ndarray) -> np.ndarray:
        u = np.clip(u, 0, 1)
        if kind == "uniform":
            return u
        cut = phi(np.array([-0.5, 1.5]))
        return (phi(2 * u - 1 + 0.5) - cut[0]) / (cut[1] - cut[0])

    # Rounding to whole pixels is undone by spreading each value over its pixel.
    spread = side + np.random.default_rng(0).uniform(-0.5, 0.5, len(side))
    value = spread if unit == "side" else spread**2
    assert kolmogorov((value - low) / (high - low), cdf) < ALARM + 0.5


def test_beta_drop_has_the_papers_moments() -> None:
    """Appendix B.3: mean m·max, variance 0.3·m·(1 − m)·max². Bounds of six standard errors."""
    config = PlanConfig(
        patch_sizes=(10,), resolution=Resolution(kind="fixed", high=150), drop=Drop(kind="beta", rate=0.5, max_rate=0.8)
    )
    rate = np.array([1 - i["kept"] / math.prod(i["grid"]) for i in draws_of(config)])
    m = 0.5 / 0.8
    assert abs(rate.mean() - 0.5) < 6 * math.sqrt(0.3 * m * (1 - m)) * 0.8 / math.sqrt(len(rate))
    assert abs(rate.var() - 0.3 * m * (1 - m) * 0.64) < 0.003
    assert rate.max() <= 0.8 + 1 / 225


def test_resolution_dependent_drop_is_linear_in_tokens() -> None:
    """Appendix B.3: the mean goes from min_rate at the smallest to max_rate at the largest configured size."""
    config = PlanConfig(
        patch_sizes=(4,),
        max_tokens=4096,
        sequence_length=4096,
        resolution=Resolution(kind="uniform", low=64, high=256),
        drop=Drop(kind="resolution_dependent", min_rate=0.2, max_rate=0.8, std=0.02),
    )
    images = draws_of(config, 5000)
    tokens = np.array([math.prod(i["grid"]) for i in images], float)
    rate = 1 - np.array([i["kept"] for i in images]) / tokens
    expected = 0.2 + 0.6 * (tokens - 256) / (4096 - 256)
    assert np.abs(rate - expected).max() < 0.04 + 0.002
    assert abs((rate - expected).mean()) < 0.002


@pytest.mark.parametrize(
    ("schedule", "at"),
    [
        (Schedule(kind="linear", start=0.8, end=0.2, images=8000), lambda n: 0.8 - 0.6 * min(n / 8000, 1)),
        (
            Schedule(kind="sigmoid", start=0.8, end=0.2, midpoint=4000, width=1000),
            lambda n: 0.8 - 0.6 / (1 + math.exp(-(n - 4000) / 1000)),
        ),
    ],
)
def test_schedule_sets_the_rate_at_an_absolute_count(schedule: Schedule, at: Any) -> None:
    """Appendix B.4: ρ is the mean rate itself, a function of the images planned since the first step over all
    epochs."""
    config = PlanConfig(
        patch_sizes=(4,),
        max_tokens=1024,
        resolution=Resolution(kind="fixed", high=128),
        drop=Drop(kind="constant", schedule=schedule),
        order=Order(kind="sequential"),
        packing="exact",
        lookahead=1,
    )
    plan = make(config, {k: [np.full(3000, 500, np.int32)] for k in ("width", "height")} | {"caption_tokens": []})
    for epoch in (0, 1, 2):
        for _, images in sequences(plan.layout(epoch)):
            for image in images:
                rate = 1 - image["kept"] / 1024
                assert abs(rate - at(3000 * epoch + image["row"])) < 1 / 1024


def test_whole_images_keep_their_tokens() -> None:
    config = PlanConfig(resolution=Resolution(kind="fixed", high=160), drop=Drop(kind="constant", keep_whole=0.25))
    whole = np.mean([i["kept"] == math.prod(i["grid"]) for i in draws_of(config, 20_000)])
    assert abs(whole - 0.25) < 6 * math.sqrt(0.25 * 0.75 / 20_000)


def test_patch_sizes_follow_their_weights_and_runs() -> None:
    config = dataclasses.replace(MIXED, patch_weights=(3.0, 1.0), virtual_epoch=60_000, patch_run=4)
    found = sequences(mixed(config).layout(0), 1)
    share = np.mean([patch == 8 for patch, _ in found])
    runs = len(found) / 4
    assert abs(share - 0.75) < 6 * math.sqrt(0.75 * 0.25 / runs) + 0.01


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999))
def test_exact_is_nearly_full_and_never_late(seed: int) -> None:
    config = PlanConfig(seed=seed, resolution=Resolution(kind="uniform", low=64, high=256))
    report = make(config, columns(3000, seed, low=200, high=800)).layout(0).report(0, 1)
    inside = (report["slots"] - report["tokens"] - report["tail"]) / report["slots"]
    assert inside < 1e-4
    assert report["lateness"] <= 64


@pytest.mark.parametrize("fit", ["drop", "resolution"])
def test_fit_closes_sequences_exactly_and_says_what_moved(fit: str) -> None:
    config = PlanConfig(
        sequence_length=256,
        resolution=Resolution(kind="uniform", low=64, high=256),
        fit=fit,  # type: ignore[arg-type]
    )
    report = make(config, columns(5000, 1, low=200, high=800)).layout(0).report(0, 1)
    assert report["slots"] - report["tokens"] - report["tail"] == 0
    assert report["moved"] > 0
    assert report["moved_tokens"] < 40 * report["moved"]


def test_the_plan_of_a_fixed_configuration_is_pinned() -> None:
    """A change of order, draws or packing cannot slip in: raise `identity.PLAN_VERSION` along with this digest."""
    text = json.dumps([sequences(mixed().layout(e)) for e in (0, 1)], sort_keys=True)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == PINNED


PINNED = "3d64b63058aa5571"


def test_configurations_that_contradict_themselves_are_refused() -> None:
    for packing in ("first_fit", "best_fit", "best_fit_decreasing"):
        with pytest.raises(ConfigError, match=f"fit = 'drop'.*{packing}"):
            PlanConfig(fit="drop", packing=packing)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"upscale = False.*'native'"):
        Resolution(kind="budget")


def test_what_cannot_be_planned_is_named() -> None:
    source = columns(10, low=8, high=14)
    with pytest.raises(PlanError, match=r"patch_sizes has 16"):
        make(PlanConfig(), source)
    with pytest.raises(PlanError, match="no image"):
        make(PlanConfig(), columns(0))
    with pytest.raises(PlanError, match="weight"):
        make(PlanConfig(), columns(10, low=40), columns(10, low=40), weights=[1.0, 0.0])
    layout = make(PlanConfig(), columns(10, low=40)).layout(0)
    with pytest.raises(StateError, match="blocks"):
        layout.counts(0, 99)
    with pytest.raises(StateError, match="batch_size = 0"):
        layout.batch(0, 0)
    with pytest.raises(StateError, match="epoch"):
        make(PlanConfig(), columns(10, low=40)).layout(2**63)


def test_layouts_of_one_epoch_share_what_is_planned_and_each_learns_the_counts() -> None:
    plan = make(PlanConfig(block_images=100), columns(350, 5, low=40))
    first, second = plan.layout(0), plan.layout(0)
    assert not first.reaches(0, 4)
    assert first.batch_at_hand(0, 4) is None
    planned = first.batch(0, 4)
    assert first.reaches(0, 4)
    at_hand = first.batch_at_hand(0, 4)
    assert at_hand is not None
    assert at_hand.sequences == planned.sequences
    # What is at hand for one is known to the other as soon as it asks, block by block.
    assert second.counts(0, 1).tolist() == first.counts(0, 1).tolist()
    assert second.batch(0, 4).sequences == planned.sequences
    assert second.counts(0, second.num_blocks).tolist() == first.counts(0, first.num_blocks).tolist()
    assert first.batch_at_hand(first.num_sequences or 0, 4) is not None  # nothing is left to plan: masked
