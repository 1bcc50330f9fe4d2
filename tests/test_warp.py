"""Pictures that are turned, sheared, moved and tilted (`[plan.warp]`): against torchvision, and what their draws depend on."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as F

from navit_loader import LoaderConfig, PackedBatch, PackedLoader, RemoteLoader, _packer, pack_images
from navit_loader.batch import OK
from navit_loader.config import Crop, Drop, PlanConfig, RenderConfig, Resolution, Teacher, Warp
from navit_loader.errors import ConfigError, ModelError, RenderError
from navit_loader.render.engine import Engine

sys.path.insert(0, str(Path(__file__).parent))
from rendering import LIMITS, batch, encode, photo, planned, unpatched
from service_kit import PLAN, Daemon, digest, load, make_config

FILL = 128
NONE = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
CORNERS = np.array([[0, 0, 1], [1, 0, 1], [1, 1, 1], [0, 1, 1]], np.float64)


def rendered(data: bytes, size: tuple[int, int], grid: tuple[int, int], warp: Any = None, **changes: Any) -> np.ndarray:
    """u8 `[h·P, w·P, 3]`; `warp` is the map, row by row."""
    if warp is not None:
        changes |= {"warp": tuple(warp), "warp_layers": 0}
    plan = batch([[planned(0, 0, size, grid, **changes)]])
    limits = LIMITS | {"warps": warp is not None}
    got = _packer.render_images([data], plan, limits, RenderConfig(dct_scaling=False).to_json())
    assert got["status"][0, 0] == OK
    return unpatched(got["patches"][0, : grid[0] * grid[1]], grid, 16)


def forwards(warp: Any) -> np.ndarray:
    """Where the corners of the plain picture are in the warped one, in fractions, `[4, 2]`."""
    there = CORNERS @ np.linalg.inv(np.asarray(warp, np.float64).reshape(3, 3)).T
    return there[:, :2] / there[:, 2:]


def by_torchvision(plain: np.ndarray, warp: Any) -> np.ndarray:
    """The warped picture, from the plain one. Around it lies `FILL`, with which torchvision blends too when that is 0."""
    height, width = plain.shape[:2]
    image = torch.from_numpy(plain).permute(2, 0, 1).double() - FILL
    sides = np.array([width, height])
    to = (forwards(warp) * sides).tolist()
    found = F.perspective(image, (CORNERS[:, :2] * sides).tolist(), to, F.InterpolationMode.BILINEAR)
    return (found + FILL).permute(1, 2, 0).numpy()


def config(**plan: Any) -> LoaderConfig:
    given = {"sequence_length": 1024, "max_tokens": 512, "seed": 3, "resolution": Resolution(kind="native")} | plan
    return LoaderConfig(plan=PlanConfig(**given))


def drawn(n: int, size: tuple[int, int] = (40, 60), **plan: Any) -> list[dict[str, Any]]:
    """The planned images of an index of `n` images of one size."""
    sides = {name: [np.full(n, side, np.int32)] for name, side in zip(("height", "width"), size, strict=True)}
    layout = _packer.Plan(config(patch_sizes=(8,), **plan).plan.to_json(), [sides], [(0, None, 1.0)]).layout(0)
    layout.counts(0, layout.num_blocks)
    images = [i for s in layout.batch(0, layout.num_sequences or 1).sequences for i in s]
    return sorted(images, key=lambda i: i["row"])


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(["PNG", "JPEG"]),
    grid=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    flip=st.booleans(),
    row=st.integers(0, 400),
    warp=st.builds(
        Warp,
        rotation=st.floats(1, 180),
        shear=st.floats(0, 40),
        translation=st.floats(0, 0.5),
        perspective=st.floats(0, 0.5),
    ),
)
def test_pixels_are_torchvisions(kind: str, grid: tuple[int, int], flip: bool, row: int, warp: Warp) -> None:
    data, size = encode(photo(150, 110, row), kind), (110, 150)
    one = drawn(400 + 1, size, warp=warp)[row]["warp"]
    crop = (3, 10, 100, 120)
    plain = rendered(data, size, grid, crop=crop, flip=flip)
    found = rendered(data, size, grid, one, crop=crop, flip=flip)
    # A level of rounding on either side of it: weights have 11 bits here.
    assert np.abs(found - by_torchvision(plain, one)).max() <= 1.0
    assert np.array_equal(rendered(data, size, grid, NONE, crop=crop, flip=flip), plain)


@settings(max_examples=60, deadline=None)
@given(
    grid=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    rotation=st.floats(0, 180),
    shear=st.floats(0, 60),
    translation=st.floats(0.01, 1),
    row=st.integers(0, 40),
)
def test_affine_draws_are_those_of_random_affine(
    grid: tuple[int, int], rotation: float, shear: float, translation: float, row: int
) -> None:
    """Each is torchvision's `affine` by an angle, two shears and a move within their bounds."""
    height, width = size = (16 * grid[0], 16 * grid[1])
    warp = drawn(41, size, warp=Warp(rotation=rotation, shear=shear, translation=translation))[row]["warp"]
    pixels = np.diag([width, height, 1.0])
    forth = np.linalg.inv(pixels @ np.asarray(warp, np.float64).reshape(3, 3) @ np.linalg.inv(pixels))
    (a, b, _), (c, _, _), _ = forth
    centre = np.array([width / 2, height / 2, 1])
    move = (forth @ centre - centre)[:2]
    assert (np.abs(move) <= translation * np.array([width, height]) + 1e-3).all()
    assume(abs(a) > 0.01)
    # |cos| of the second shear is known, its sign is not; either gives a decomposition.
    slope, fits = math.acos(min(1.0, 1 / math.hypot(a, c))), []
    for rise in (slope, -slope):
        turn = (math.atan2(c, a) + rise + math.pi) % (2 * math.pi) - math.pi
        slant = math.atan(-(b + math.sin(turn)) / a)
        degrees = [math.degrees(v) for v in (turn, slant, rise)]
        if abs(degrees[0]) <= rotation + 0.1 and max(abs(d) for d in degrees[1:]) <= shear + 0.1:
            fits.append(degrees)
    assert fits
    data = encode(photo(width, height, row), "PNG")
    plain = torch.from_numpy(rendered(data, size, grid)).permute(2, 0, 1).double() - FILL
    turn, *shears = fits[0]
    theirs = F.affine(plain, turn, move.tolist(), 1.0, shears, F.InterpolationMode.BILINEAR) + FILL
    assert np.abs(rendered(data, size, grid, warp) - theirs.permute(1, 2, 0).numpy()).max() <= 1.5


def test_outside_is_fill_and_a_warp_and_its_inverse_leave_the_middle() -> None:
    y, x = np.mgrid[0:160, 0:160] / 160
    smooth = np.stack([200 * x, 200 * y, 100 + 50 * x * y], -1).round().astype(np.uint8)
    from PIL import Image

    data, grid = encode(Image.fromarray(smooth), "PNG"), (10, 10)
    warp = drawn(5, (160, 160), warp=Warp(rotation=25, shear=10, translation=0.1, perspective=0.2))[2]["warp"]
    there = rendered(data, (160, 160), grid, warp)
    u, v = np.meshgrid((np.arange(160) + 0.5) / 160, (np.arange(160) + 0.5) / 160)
    at = np.stack([u, v, np.ones_like(u)], -1) @ np.asarray(warp, np.float64).reshape(3, 3).T
    at = at[..., :2] / at[..., 2:]
    beyond = ((at < -1 / 160) | (at > 1 + 1 / 160)).any(-1)
    assert beyond.any() and (there[beyond] == FILL).all()
    inverse = np.linalg.inv(np.asarray(warp, np.float64).reshape(3, 3))
    inverse /= inverse[2] @ [0.5, 0.5, 1]
    back = rendered(encode(Image.fromarray(there), "PNG"), (160, 160), grid, inverse.ravel())
    assert np.abs(back[60:100, 60:100].astype(int) - smooth[60:100, 60:100]).max() <= 3


WARPS = [
    Warp(rotation=20, shear=8, translation=0.1, perspective=0.3, probability=0.7),
    Warp(kind="randaugment", layers=3, magnitude=15),
]


@pytest.mark.parametrize("warp", WARPS)
def test_dropped_patches_other_patches_and_the_teachers_view_see_one_warped_picture(warp: Warp) -> None:
    photos = [photo(128, 96, seed) for seed in range(12)]
    common: dict[str, Any] = {"patch_sizes": (16,), "warp": warp, "crop": Crop(kind="random_resized", flip=0.5)}
    whole = pack_images(photos, config(**common))
    some = pack_images(photos, config(**common, drop=Drop(kind="constant", rate=0.6)))
    teacher = Teacher(patch_size=8, sequence_length=4096, max_tokens=1024)
    both = pack_images(photos, config(**common, teacher=teacher))
    small = pack_images(photos, config(**common | {"patch_sizes": (8,)}))
    assert whole.warps.shape == (*whole.status.shape, 9) and whole.warps.dtype == np.float32
    maps = of_images(whole)
    assert len({m.tobytes() for m in maps.values()}) > 4
    for other in (some, both, small):
        assert all(np.array_equal(maps[n], m) for n, m in of_images(other).items())
    seen, full = tokens(some), tokens(whole)
    assert 0 < len(seen) < len(full) and all(full[at] == seen[at] for at in seen)
    assert tokens(both) == full
    # The teacher's patches are those of a plan with its patch size, wherever the grids have as many pixels.
    view = replace(
        both, **{name: getattr(both.teacher, name) for name in ("patches", "positions", "segment_ids", "grids")}
    )
    theirs, ours = tokens(view), tokens(small)
    same = [at for at in ours if at in theirs and grid_of(view, at[0]) == grid_of(small, at[0])]
    assert len(same) > 500 and all(theirs[at] == ours[at] for at in same)


def of_images(batch: PackedBatch) -> dict[int, np.ndarray]:
    return {int(batch.image_ids[b, e]): batch.warps[b, e] for b, e in np.argwhere(batch.status == OK)}


def tokens(batch: PackedBatch) -> dict[tuple[int, int, int], bytes]:
    """The pixels of each patch by image and place."""
    found = {}
    for b, slot in np.argwhere(batch.segment_ids >= 0):
        image = int(batch.image_ids[b, batch.segment_ids[b, slot]])
        found[(image, *batch.positions[b, slot].tolist())] = batch.patches[b, slot].tobytes()
    return found


def grid_of(batch: PackedBatch, image: int) -> list[int]:
    b, e = np.argwhere(batch.image_ids == image)[0]
    return batch.grids[b, e].tolist()


@pytest.mark.parametrize("warp", WARPS)
def test_the_rest_of_the_plan_is_as_without(warp: Warp) -> None:
    plan = {"crop": Crop(kind="random_resized", flip=0.5), "drop": Drop(kind="beta"), "block_images": 64}
    with_it, without = drawn(200, warp=warp, **plan), drawn(200, **plan)
    assert [{k: v for k, v in i.items() if k not in ("warp", "warp_layers")} for i in with_it] == without
    # A draw belongs to the image: cutting blocks elsewhere and another batch change nothing.
    elsewhere = drawn(200, warp=warp, **plan | {"block_images": 90})
    assert [i["warp"] for i in elsewhere] == [i["warp"] for i in with_it]
    assert "warp" not in json.loads(PlanConfig().to_json())
    assert config(warp=warp).for_evaluation().plan.warp is None
    shares = [i["warp_layers"] for i in drawn(3000, warp=warp)]
    if warp.kind == "randaugment":
        assert max(shares) == warp.layers and abs(np.mean(shares) / warp.layers - 5 / 12) < 0.03
        assert all(i["warp"] == list(NONE) for i in with_it if i["warp_layers"] == 0)
    else:
        assert not any(shares) and abs(np.mean([i["warp"] == list(NONE) for i in with_it]) - 0.3) < 0.12


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    warp = '[plan.warp]\nkind = "randaugment"\nmagnitude = 12\n'
    return make_config(tmp_path_factory.mktemp("warp"), PLAN + warp, count=160)


def sequences(batches: list[PackedBatch]) -> dict[int, tuple[Any, ...]]:
    """Each sequence's pixels and warps by its number."""
    found = {}
    for one in batches:
        for b in range(len(one.status)):
            if one.status[b].any():
                parts = (one.patches, one.warps, one.warp_layers, one.image_ids)
                found[one.sequence + b] = tuple(p[b].tobytes() for p in parts)
    return found


def test_daemons_ranks_and_a_resume_give_the_same_pixels(data: Path) -> None:
    with PackedLoader(config=load(data)) as loader:
        local = list(loader)
    assert {int(n) for b in local for n in b.warp_layers[b.status == OK]} == {0, 1, 2}
    ranks = []
    for rank in range(3):
        with PackedLoader(config=load(data), rank=rank, world_size=3) as loader:
            ranks += list(loader)
    assert sequences(ranks) == sequences(local)
    with PackedLoader(config=load(data)) as loader:
        half = list(islice(loader, 5))
        state = loader.state_dict()
    with PackedLoader(config=load(data)) as loader:
        loader.load_state_dict(state)
        assert sequences([*half, *loader]) == sequences(local)
    with Daemon(data) as daemon:
        for shared in (True, False):
            with RemoteLoader([daemon.endpoint], shared=shared) as loader:
                assert loader.served.warps
                assert [digest(b) for b in loader] == [digest(b) for b in local]
        with pytest.raises(ConfigError, match=r"decode = 'nvjpeg' cannot do \[plan.warp\]; take decode = 'cpu'"):
            RemoteLoader([daemon.endpoint], decode="nvjpeg")
    with pytest.raises(ConfigError, match=r"decode = 'dali' cannot do \[plan.warp\]"):
        PackedLoader(config=load(data), decode="dali")
    with PackedLoader(config=load(data), decode="auto") as loader:
        assert digest(next(iter(loader))) == digest(local[0])
    with (
        Engine(load(data)) as engine,
        pytest.raises(RenderError, match=r"encoded batches cannot be had with \[plan.warp\]"),
    ):
        engine.submit_encoded(0, 0, 1)


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"rotation": 190}, "plan.warp.rotation = 190.0 is not allowed; it must be between 0 and 180 degrees"),
        ({"shear": -1}, "plan.warp.shear = -1.0 is not allowed"),
        ({"translation": 2}, "plan.warp.translation = 2.0 is not allowed"),
        ({"perspective": 0.7}, "plan.warp.perspective = 0.7 is not allowed; it must be between 0 and 0.5"),
        ({"rotation": 5, "probability": 0}, "plan.warp.probability = 0.0 is not allowed; it must be above 0"),
        ({"rotation": 5, "probability": 1.5}, "plan.warp.probability = 1.5 is not allowed"),
        ({}, "plan.warp.rotation = 0.0 is not allowed; it must be above 0, or another key"),
        ({"rotation": 5, "layers": 3}, "plan.warp.layers = 3 is not allowed; it must be left out for kind = 'random'"),
        ({"kind": "randaugment", "rotation": 5}, "plan.warp.rotation = 5.0 is not allowed; it must be left out"),
        ({"kind": "randaugment", "layers": 0}, "plan.warp.layers = 0 is not allowed; it must be between 1 and 16"),
        ({"kind": "randaugment", "magnitude": 31}, "plan.warp.magnitude = 31.0 is not allowed"),
        ({"rotate": 5}, "unknown key 'plan.warp.rotate' \\(did you mean 'rotation'\\?\\)"),
        ({"rotation": float("nan")}, "plan.warp.rotation = nan is not allowed"),
    ],
)
def test_bad_values_are_one_line_each(table: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as error:
        LoaderConfig.from_dict({"plan": {"warp": table}})
    assert "\n" not in str(error.value)


def test_a_planned_batch_and_its_limits_agree_on_warps() -> None:
    data = encode(photo(64, 64), "PNG")
    one = planned(0, 0, (64, 64), (2, 2))
    for changes, warps in (({"warp": NONE, "warp_layers": 0}, False), ({}, True)):
        with pytest.raises(RenderError, match=f"has {1 - warps} warps, where {int(warps)} belong"):
            _packer.render_images([data], batch([[one | changes]]), LIMITS | {"warps": warps}, RenderConfig().to_json())


def test_places_in_the_source_are_refused_of_warped_images() -> None:
    from navit_model.losses.detection import with_objects
    from navit_model.model.dense import pixels
    from navit_model.model.owl import detections

    made = pack_images([photo(64, 64)], config(warp=Warp(rotation=9))).to("cpu")
    with pytest.raises(
        ModelError, match=r"maps at the source's size are not known of warped images; leave \[plan.warp\] out"
    ):
        pixels(torch.zeros(*made.segment_ids.shape, 2), made, source=True)
    assert len(pixels(torch.zeros(*made.segment_ids.shape, 2), made)) == 1
    anything: Any = None
    with pytest.raises(ModelError, match="boxes in the source are not known of warped images"):
        detections(anything, made)
    with pytest.raises(ModelError, match="boxes of objects are not known of warped images"):
        with_objects(made, [])
