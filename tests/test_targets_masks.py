"""Masks: a cell lands where its pixel lands, whatever the crop, mirror, warp, orientation, drop and patch size; and regions are
those of pycocotools."""

from __future__ import annotations

import io
import json
import resource
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from navit_loader import LoaderConfig, PackedBatch, PackedLoader, RemoteLoader, _packer, build_index, open_index
from navit_loader.batch import FAILED, OK
from navit_loader.config import Crop, Drop, PlanConfig, RenderConfig, Resolution, Targets, Warp
from navit_loader.errors import ConfigError, IndexFileError, RenderError
from navit_loader.render.engine import Engine

sys.path.insert(0, str(Path(__file__).parent))
from pycocotools import mask as mask_utils
from rendering import LIMITS, batch, planned, source
from service_kit import Daemon, digest
from test_targets import coco, pictures, turned

# Of pycocotools under numpy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

NONE = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


def png(array: np.ndarray, **options: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(array).save(out, "PNG", **options)
    return out.getvalue()


def sources(image: bytes, mask: bytes, size: tuple[int, int], orientation: int = 1, **more: Any) -> dict[str, Any]:
    """The columns of one image with its mask beside it."""
    columns = source([size], [orientation], bytes=[image])
    beside = source([size], bytes=[mask])
    named = {f"mask_{name}": beside[name] for name in ("shard", "shards", "name", "offset", "length")}
    return columns | named | {"masks": "classes", "mask_classes": 0} | more


def rendered(columns: dict[str, Any], image: dict[str, Any], p: int, side: int, **limits: Any) -> Any:
    """The batch of one planned image, with masks of `side` cells."""
    warped = {"warps": "warp" in image}
    most = {"max_tokens": 1024, "masks": side, "regions": False, "boxes": 0, "clip": 0.0} | warped | limits
    made = _packer.Renderer(
        RenderConfig(threads=1, failure_limit=1.0, dct_scaling=False).to_json(), LIMITS | most, [columns]
    )
    try:
        got = made.submit(batch([[image]], p)).wait(30)
        assert got["status"][0, 0] == OK, made.failures()
        return got
    finally:
        made.close()


def cells_by_hand(
    labels: np.ndarray, grid: tuple[int, int], side: int, crop: tuple[int, int, int, int], flip: bool, warp: Any = NONE
) -> np.ndarray:
    """i64 `[h·S, w·S]` of the oriented mask, each cell by the formula in docs/plan.md."""
    top, left, height, width = crop
    rows, columns = grid[0] * side, grid[1] * side
    m = np.asarray(warp, np.float32).astype(np.float64).reshape(3, 3)
    out = np.full((rows, columns), -1, np.int64)
    for i in range(rows):
        for j in range(columns):
            if warp == NONE:
                n = columns - 1 - j if flip else j
                out[i, j] = labels[
                    top + (2 * i + 1) * height // (2 * rows), left + (2 * n + 1) * width // (2 * columns)
                ]
                continue
            x, y, z = m @ ((j + 0.5) / columns, (i + 0.5) / rows, 1.0)
            u, v = x / z, y / z
            u = 1 - u if flip else u
            if 0 <= u < 1 and 0 <= v < 1:
                out[i, j] = labels[top + min(int(v * height), height - 1), left + min(int(u * width), width - 1)]
    return out


def laid_out(found: Any, grid: tuple[int, int], side: int) -> np.ndarray:
    """The cells of kept tokens at their places, −9 where dropped."""
    out = np.full((grid[0] * side, grid[1] * side), -9, np.int64)
    for (y, x), cells in zip(found["positions"][0], found["masks"][0], strict=True):
        if y >= 0:
            out[y * side : (y + 1) * side, x * side : (x + 1) * side] = cells.reshape(side, side)
    return out


@settings(max_examples=120, deadline=None)
@given(
    grid=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    p=st.sampled_from([1, 2, 4, 7]),
    side=st.integers(1, 5),
    flip=st.booleans(),
    orientation=st.integers(1, 8),
    share=st.floats(0.1, 1.0),
    prefix=st.integers(0, 2),
    margins=st.tuples(*[st.integers(0, 9)] * 4),
    whole=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_cell_lands_where_its_pixel_lands(
    grid: tuple[int, int],
    p: int,
    side: int,
    flip: bool,
    orientation: int,
    share: float,
    prefix: int,
    margins: tuple[int, int, int, int],
    whole: bool,
    seed: int,
) -> None:
    """An image whose pixels are its mask: nothing is resized, so that where the cells are the pixels both say the same; and in
    any other number of cells the mask is what the formula says."""
    rng = np.random.default_rng(seed)
    side = p if whole else side
    height, width = grid[0] * p, grid[1] * p
    top, left = margins[0], margins[1]
    size = (top + height + margins[2], left + width + margins[3])
    labels = rng.integers(0, 255, size, np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        turned(Image.fromarray(np.repeat(labels[..., None], 3, 2)), orientation, Path(folder) / "a.png")
        image = (Path(folder) / "a.png").read_bytes()
    kept = max(1, round(share * grid[0] * grid[1]))
    plan = planned(0, 0, size, grid, crop=(top, left, height, width), kept=kept, flip=flip, key=seed)
    found = rendered(sources(image, png(labels), size, orientation), plan, p, side, prefix_tokens=prefix)
    cells = laid_out(found, grid, side)
    assert (cells >= 0).sum() == kept * side * side
    expected = cells_by_hand(labels, grid, side, (top, left, height, width), flip)
    assert np.array_equal(cells[cells != -9], expected[cells != -9])
    assert (found["masks"][0, :prefix] == -1).all() and (found["masks"][0, prefix + kept :] == -1).all()
    if side == p:
        pixels = found["patches"][0, prefix : prefix + kept].reshape(kept, p * p, 3)
        assert np.array_equal(found["masks"][0, prefix : prefix + kept], pixels[..., 0].astype(np.int16))


@settings(max_examples=40, deadline=None)
@given(
    size=st.tuples(st.integers(8, 60), st.integers(8, 60)),
    grid=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    side=st.integers(1, 4),
    flip=st.booleans(),
    warped=st.booleans(),
    orientation=st.integers(1, 8),
    seed=st.integers(0, 2**32 - 1),
)
def test_resized_turned_and_warped_masks_are_the_formula(
    size: tuple[int, int],
    grid: tuple[int, int],
    side: int,
    flip: bool,
    warped: bool,
    orientation: int,
    seed: int,
) -> None:
    """Also a mask that is stored as the image is, which its sides tell."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 255, size, np.uint8)
    crop = (int(rng.integers(0, 4)), int(rng.integers(0, 4)))
    crop = (*crop, int(rng.integers(1, size[0] - crop[0] + 1)), int(rng.integers(1, size[1] - crop[1] + 1)))
    warp = NONE
    if warped:
        angle, (dx, dy) = rng.uniform(-1, 1), rng.uniform(-0.2, 0.2, 2)
        warp = tuple(
            np.float32([np.cos(angle), -np.sin(angle), dx, np.sin(angle), np.cos(angle), dy, 0.1, 0.1, 0.9]).tolist()
        )
    with tempfile.TemporaryDirectory() as folder:
        turned(Image.fromarray(np.repeat(labels[..., None], 3, 2)), orientation, Path(folder) / "a.png")
        image = (Path(folder) / "a.png").read_bytes()
    mask = png(labels)
    if orientation >= 5 and size[0] != size[1]:
        mask = png(np.asarray(Image.open(io.BytesIO(image)).convert("L")))
    changes = {"warp": warp, "warp_layers": 0} if warped else {}
    plan = planned(0, 0, size, grid, crop=crop, flip=flip, **changes)
    cells = laid_out(rendered(sources(image, mask, size, orientation), plan, 4, side), grid, side)
    assert np.array_equal(cells, cells_by_hand(labels, grid, side, crop, flip, warp))


@pytest.mark.parametrize("kind", ["grey", "palette", "bits", "deep", "interlaced", "two"])
def test_samples_are_numbers_in_all_forms_of_png(kind: str) -> None:
    """A palette's indices and not its colours; 255, or 65535 of 16 bits, is not known."""
    rng = np.random.default_rng(3)
    labels = rng.integers(0, {"bits": 16, "two": 2, "deep": 3000}.get(kind, 256), (40, 60)).astype(np.uint16)
    labels[:5] = {"bits": 3, "two": 1, "deep": 65535}.get(kind, 255)
    small = labels.astype(np.uint8)
    if kind == "deep":
        mask = png(labels)
    elif kind in ("palette", "bits", "two"):
        image = Image.fromarray(small, "P")
        image.putpalette(rng.integers(0, 256, 768, np.uint8).tobytes())
        out = io.BytesIO()
        image.save(out, "PNG", bits={"palette": 8, "bits": 4, "two": 1}[kind], transparency=0)
        mask = out.getvalue()
    elif kind == "interlaced":
        mask = interlaced(small)
    else:
        mask = png(small)
    columns = sources(png(np.zeros((40, 60, 3), np.uint8)), mask, (40, 60))
    cells = laid_out(rendered(columns, planned(0, 0, (40, 60), (10, 15)), 4, 4), (10, 15), 4)
    expected = labels.astype(int)
    expected[labels == (65535 if kind == "deep" else 255)] = -1
    assert np.array_equal(cells, expected)


def interlaced(labels: np.ndarray) -> bytes:
    """A grey PNG in Adam7, which Pillow does not write."""
    import struct
    import zlib

    rows = b""
    for x0, y0, dx, dy in (
        (0, 0, 8, 8),
        (4, 0, 8, 8),
        (0, 4, 4, 8),
        (2, 0, 4, 4),
        (0, 2, 2, 4),
        (1, 0, 2, 2),
        (0, 1, 1, 2),
    ):
        part = labels[y0::dy, x0::dx]
        rows += b"".join(b"\0" + row.tobytes() for row in part) if part.shape[1] else b""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", labels.shape[1], labels.shape[0], 8, 0, 0, 0, 1)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_classes_beyond_the_table_are_not_known() -> None:
    labels = np.arange(24, dtype=np.uint8).reshape(4, 6)
    columns = sources(png(np.zeros((4, 6, 3), np.uint8)), png(labels), (4, 6), mask_classes=10)
    cells = laid_out(rendered(columns, planned(0, 0, (4, 6), (4, 6)), 1, 1), (4, 6), 1)
    assert np.array_equal(cells, np.where(labels < 10, labels.astype(int), -1))


# regions


def segmentation(rng: Any, width: int, height: int) -> Any:
    """A polygon, several, one with a hole (as runs), or a text of runs; some beyond the image."""
    kind = rng.integers(0, 4)
    if kind < 2:
        many = [rng.uniform(-5, 1.1 * max(width, height), 2 * int(rng.integers(3, 8))) for _ in range(1 + 2 * kind)]
        return [np.round(polygon, 2).tolist() for polygon in many]
    mask = np.zeros((height, width), np.uint8, order="F")
    y, x = (int(rng.integers(0, side)) for side in (height, width))
    mask[y : y + height // 2 + 1, x : x + width // 2 + 1] = 1
    mask[y + 2 : y + 5, x + 2 : x + 5] = 0
    runs = mask_utils.encode(mask)
    text = runs["counts"].decode()
    if kind == 2:
        return {"size": [height, width], "counts": text}
    flat = mask.reshape(-1, order="F")
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat])))
    counts = np.diff(np.concatenate([[0], edges, [len(flat)]])).tolist()
    return {"size": [height, width], "counts": counts}


def decoded(said: Any, width: int, height: int) -> np.ndarray:
    """bool `[height, width]`, by pycocotools."""
    if isinstance(said, list):
        runs = mask_utils.merge(mask_utils.frPyObjects(said, height, width))
    elif isinstance(said["counts"], list):
        runs = mask_utils.frPyObjects(said, height, width)
    else:
        runs = said
    return mask_utils.decode(runs).astype(bool)


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), size=st.tuples(st.integers(1, 80), st.integers(1, 80)))
def test_polygons_are_pycocotools_to_the_byte(seed: int, size: tuple[int, int]) -> None:
    width, height = size
    rng = np.random.default_rng(seed)
    many = [rng.uniform(-20, 100, 2 * int(rng.integers(3, 9))).tolist() for _ in range(int(rng.integers(1, 4)))]
    if seed % 3 == 0:
        many = [np.round(polygon).tolist() for polygon in many]
    theirs = mask_utils.merge(mask_utils.frPyObjects(many, height, width))["counts"]
    assert _packer.region_of_polygons(many, width, height) == theirs
    assert _packer.region_of_text(theirs, width, height) == theirs


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), size=st.tuples(st.integers(1, 40), st.integers(1, 40)))
def test_corners_far_outside_are_pycocotools_too(seed: int, size: tuple[int, int]) -> None:
    """Up to thousands of pixels beyond the image, and near it at once."""
    width, height = size
    rng = np.random.default_rng(seed)
    polygon = (rng.uniform(-1, 1, 10) * 10.0 ** rng.uniform(0, 4, 10)).tolist()
    theirs = mask_utils.merge(mask_utils.frPyObjects([polygon], height, width))["counts"]
    assert _packer.region_of_polygons([polygon], width, height) == theirs


def test_corners_far_outside_cost_nothing() -> None:
    """The boundary is followed where the image is: 10⁸ pixels beyond it would be gigabytes of points, and seconds."""
    far = 9.9e7
    corners = [-far, -far, far, -far + 9, far, far, 7, far, -far, far - 5] * 20
    started, most = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    _packer.region_of_polygons([corners], 64, 64)
    assert time.process_time() - started < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - most < 100_000  # KiB


@pytest.fixture(scope="module")
def regions(tmp_path_factory: Any) -> Any:
    """30 images with regions, crowds among them."""
    folder = tmp_path_factory.mktemp("regions")
    sizes = pictures(folder / "images", 30, broken=(4,))
    said = coco(sizes)
    rng = np.random.default_rng(1)
    for each in said["annotations"]:
        width, height = list(sizes.values())[each["image_id"]]
        each["segmentation"] = segmentation(rng, width, height)
        each["area"] = float(decoded(each["segmentation"], width, height).sum())
    said["annotations"][0]["segmentation"] = []
    (folder / "said.json").write_text(json.dumps(said))
    build_index(folder / "images", folder / "x.arrow", masks=f"coco:{folder / 'said.json'}")
    return open_index(folder / "x.arrow"), said


def config(batch_size: int = 2, threads: int = 1, **plan: Any) -> LoaderConfig:
    given = {
        "sequence_length": 128,
        "max_tokens": 64,
        "max_images": 16,
        "patch_sizes": (4,),
        "seed": 3,
        "prefix_tokens": 1,
        "resolution": Resolution(kind="uniform", low=12, high=32),
        "drop": Drop(kind="constant", rate=0.4),
        "crop": Crop(kind="random_resized", scale=(0.2, 1.0), flip=0.5),
        "targets": Targets(boxes=True, capacity=64, masks=2, kind="regions"),
    } | plan
    found = LoaderConfig(plan=PlanConfig(**given), render=RenderConfig(threads=threads, failure_limit=1.0))
    return replace(found, data=replace(found.data, batch_size=batch_size))


def painted(index: Any, said: dict[str, Any], row: int, kind: str) -> np.ndarray:
    """i64 `[height, width]`: the smaller region lies on top, a crowd is of no class."""
    name = index.uri(row).rpartition("/")[2]
    image = next(each for each in said["images"] if each["file_name"] == name)
    own = [each for each in said["annotations"] if each["image_id"] == image["id"]]
    out = np.full((image["height"], image["width"]), -1, np.int64)
    for place in sorted(range(len(own)), key=lambda n: (-np.float32(own[n]["area"]), n)):
        each = own[place]
        if each["segmentation"]:
            label = -1 if each["iscrowd"] else [3, 7, 90].index(each["category_id"])
            there = decoded(each["segmentation"], image["width"], image["height"])
            out[there] = place if kind == "regions" else label
    return out


def check(index: Any, batch: PackedBatch, labels: Any, side: int) -> int:
    """Every cell of every image; returns how many say something."""
    count = 0
    for s, e in np.argwhere(batch.status > 0):
        kept = batch.segment_ids[s] == e
        if batch.status[s, e] == FAILED:
            assert not kept.any()
            continue
        grid = tuple(int(v) for v in batch.grids[s, e])
        crop = tuple(int(v) for v in batch.crops[s, e])
        warp = NONE if batch.warps is None else tuple(batch.warps[s, e].tolist())
        expected = cells_by_hand(labels(int(batch.image_ids[s, e])), grid, side, crop, bool(batch.flips[s, e]), warp)  # type: ignore[arg-type]
        for token in np.flatnonzero(kept):
            y, x = batch.positions[s, token]
            own = batch.masks[s, token].reshape(side, side)
            if y < 0:
                assert (own == -1).all()
                continue
            there = expected[y * side : (y + 1) * side, x * side : (x + 1) * side]
            assert np.array_equal(own, there)
            count += int((there >= 0).sum())
    assert (batch.masks[batch.segment_ids < 0] == -1).all()
    return count


@pytest.mark.parametrize("kind", ["regions", "semantic"])
@pytest.mark.parametrize("warp", [None, Warp(rotation=40, shear=10, translation=0.2, perspective=0.2)])
def test_regions_are_those_of_pycocotools(regions: Any, kind: Any, warp: Warp | None) -> None:
    index, said = regions
    targets = Targets(boxes=True, capacity=64, masks=3, kind=kind)
    with PackedLoader(index, config(targets=targets, warp=warp), rank=0, world_size=1) as loader:
        batches = list(loader)
    found = sum(check(index, batch, lambda row: painted(index, said, row, kind), 3) for batch in batches)
    assert found > 500 and any((batch.status == FAILED).any() for batch in batches)


def test_a_part_keeps_its_regions(regions: Any, tmp_path: Path) -> None:
    from navit_loader.index.subset import write_subset

    index, said = regions
    keep = np.arange(index.num_rows) % 2 == 1
    write_subset(index, keep, tmp_path / "part.arrow")
    part = open_index(tmp_path / "part.arrow")
    part.check()
    assert [part.regions(row) for row in range(part.num_rows)] == [index.regions(int(n)) for n in np.flatnonzero(keep)]
    middle = index.part(3, 9)
    assert middle.regions(2) == index.regions(5)
    with PackedLoader(middle, config(), rank=0, world_size=1) as loader:
        found = sum(check(middle, each, lambda row: painted(middle, said, row, "regions"), 2) for each in loader)
    assert found


# files of masks


@pytest.fixture(scope="module")
def files(tmp_path_factory: Any) -> Any:
    """30 images with masks in a folder of their own; one has none, one is broken inside."""
    folder = tmp_path_factory.mktemp("files")
    sizes = pictures(folder / "images" / "train", 30, broken=(4,))
    rng = np.random.default_rng(5)
    labels = {}
    (folder / "masks" / "train").mkdir(parents=True)
    for name, (width, height) in sizes.items():
        labels[name] = np.kron(rng.integers(0, 6, (9, 9)), np.ones((10, 10))).astype(np.uint8)[:height, :width]
        if name != "007.png":
            Image.fromarray(labels[name], "L").save(folder / "masks" / "train" / name)
    damaged = folder / "masks" / "train" / "011.png"
    data = damaged.read_bytes()
    damaged.write_bytes(data[: len(data) // 2] + bytes(9) + data[len(data) // 2 + 9 :])
    summary = build_index(folder / "images" / "train", folder / "x.arrow", masks=folder / "masks")
    return open_index(folder / "x.arrow"), labels, summary


SEMANTIC = Targets(masks=2)


def test_lint_decodes_masks_and_info_names_them(regions: Any, files: Any, capsys: Any) -> None:
    from navit_loader.cli import main

    assert main(["lint", files[0].path]) == 1
    said = capsys.readouterr().out
    assert "28 of 30 images decode" in said and "its mask: " in said
    assert main(["info", regions[0].path]) == 0
    assert "masks: a region for each box" in capsys.readouterr().out


def test_masks_beside_the_images(files: Any) -> None:
    index, labels, summary = files
    assert index.masks == "classes" and not index.boxed
    assert any("says nothing of 1 images, which have no mask, such as" in note for note in summary.notes)

    def of(row: int) -> np.ndarray:
        name = index.uri(row).rpartition("/")[2]
        return np.full(labels[name].shape, -1) if name == "007.png" else labels[name]

    with PackedLoader(index, config(targets=SEMANTIC), rank=0, world_size=1) as loader:
        batches = list(loader)
        failed = {failure["uri"].rpartition("/")[2]: failure["detail"] for failure in loader.failures()}
    assert sum(check(index, batch, of, 2) for batch in batches) > 500
    assert failed.keys() == {"004.png", "011.png"} and failed["011.png"].startswith("its mask: ")
    assert all(batch.boxes is None for batch in batches)


def test_masks_are_the_same_bytes_on_threads_ranks_and_from_a_daemon(regions: Any, files: Any, tmp_path: Path) -> None:
    for n, (index, targets) in enumerate(((regions[0], config().plan.targets), (files[0], SEMANTIC))):
        with PackedLoader(index, config(targets=targets), rank=0, world_size=1) as loader:
            once = [digest(batch) for batch in loader]
        with PackedLoader(index, config(targets=targets, threads=3), rank=0, world_size=1) as loader:
            assert [digest(batch) for batch in loader] == once
        with PackedLoader(index, config(targets=targets), rank=1, world_size=2) as loader:
            assert [digest(batch) for batch in loader][: len(once) // 2] == once[1::2]
        with PackedLoader(index, config(targets=targets), rank=0, world_size=1) as loader:
            next(iter(loader))
            state = loader.state_dict()
        with PackedLoader(index, config(targets=targets), rank=0, world_size=1) as loader:
            loader.load_state_dict(state)
            assert [digest(batch) for batch in loader] == once[1:]
        toml = tmp_path / f"config{n}.toml"
        table = "boxes = true\ncapacity = 64\nkind = 'regions'" if targets is not SEMANTIC else ""
        toml.write_text(
            f'[data]\nbatch_size = 2\nindex = "{index.path}"\n[render]\nthreads = 1\nfailure_limit = 1.0\n[plan]\n'
            f"sequence_length = 128\nmax_tokens = 64\nmax_images = 16\npatch_sizes = [4]\nseed = 3\nprefix_tokens = 1\n"
            "[plan.resolution]\nkind = 'uniform'\nlow = 12\nhigh = 32\n[plan.drop]\nkind = 'constant'\nrate = 0.4\n"
            f"[plan.crop]\nkind = 'random_resized'\nscale = [0.2, 1.0]\nflip = 0.5\n[plan.targets]\nmasks = 2\n{table}\n"
        )
        daemon = Daemon(toml)
        try:
            with RemoteLoader([daemon.endpoint], rank=0, world_size=1) as remote:
                assert remote.served.masks == 2
                assert [digest(batch) for batch in remote] == once
            with pytest.raises(ConfigError, match=r"plan\.targets\.masks"):
                RemoteLoader([daemon.endpoint], rank=0, world_size=1, decode="dali")
        finally:
            daemon.close()


def test_what_cannot_be_had_is_refused_by_name(regions: Any, files: Any) -> None:
    with Engine(config(), regions[0]) as engine, pytest.raises(RenderError, match=r"plan\.targets\.masks"):
        engine.submit_encoded(0, 0, 2)
    with pytest.raises(ConfigError, match=r"plan\.targets\.masks"):
        PackedLoader(regions[0], config(), rank=0, world_size=1, decode="nvjpeg")
    with pytest.raises(ConfigError, match="has no boxes"):
        Engine(config(), files[0])
    with pytest.raises(ConfigError, match="does not tell regions"):
        _mixed(regions[0], files[0])


def _mixed(*indexes: Any) -> None:
    Engine(config(), [replace_classes(index, indexes[0]) for index in indexes])


def replace_classes(index: Any, other: Any) -> Any:
    """An index that claims the class table of another, as one that was written with `--classes` has it."""
    index.classes = other.classes
    return index


def test_masks_of_another_size_break_their_image(tmp_path: Path) -> None:
    sizes = pictures(tmp_path / "images", 4)
    (tmp_path / "masks").mkdir()
    for n, (name, (width, height)) in enumerate(sizes.items()):
        Image.fromarray(np.zeros((height + (n == 2), width), np.uint8)).save(tmp_path / "masks" / name)
    (tmp_path / "masks" / "003.png").write_bytes(b"nothing")
    summary = build_index(tmp_path / "images", tmp_path / "x.arrow", masks=tmp_path / "masks")
    assert (summary.rows, summary.broken) == (2, 2)
    reasons = [line["reason"] for line in open_index(tmp_path / "x.arrow").quarantine()]
    assert "pixels, but the image has" in reasons[0] and reasons[1].startswith("its mask ")


@pytest.mark.parametrize("kind", ["regions", "semantic"])
def test_panoptic_files(tmp_path: Path, kind: Any) -> None:
    """Ids are colours; what no segment has, and id 0, is not known; a crowd is of no class."""
    sizes = pictures(tmp_path / "images", 6)
    rng = np.random.default_rng(0)
    (tmp_path / "segments").mkdir()
    said: dict[str, Any] = coco(sizes) | {"annotations": []}
    ids = {}
    for image in said["images"]:
        own = np.array([0, *rng.choice(2**24 - 1, 5, replace=False) + 1])
        blocks = own[rng.integers(0, 6, (9, 9))]
        ids[image["file_name"]] = found = np.kron(blocks, np.ones((10, 10), int))[: image["height"], : image["width"]]
        colours = np.stack([found % 256, found // 256 % 256, found // 65536], -1).astype(np.uint8)
        Image.fromarray(colours).save(tmp_path / "segments" / image["file_name"])
        segments = [
            {"id": int(id), "category_id": 7, "bbox": [0, 0, 9, 9], "area": 9, "iscrowd": int(n == 1)}
            for n, id in enumerate(own[1:5])
        ]
        each = {"image_id": image["id"], "file_name": image["file_name"], "segments_info": segments}
        said["annotations"].append(each)
    (tmp_path / "said.json").write_text(json.dumps(said))
    spec = f"panoptic:{tmp_path / 'said.json'},{tmp_path / 'segments'}"
    build_index(tmp_path / "images", tmp_path / "x.arrow", masks=spec)
    index = open_index(tmp_path / "x.arrow")
    assert index.masks == "panoptic" and (index.box_counts() == 4).all()

    def of(row: int) -> np.ndarray:
        found, own = ids[index.uri(row).rpartition("/")[2]], index.boxes(row)
        out = np.full(found.shape, -1)
        for place, (id, flags) in enumerate(zip(own["ids"], own["flags"], strict=True)):
            out[found == id] = place if kind == "regions" else -1 if flags else 1
        return out

    targets = Targets(boxes=True, capacity=64, masks=2, kind=kind)
    with PackedLoader(index, config(targets=targets), rank=0, world_size=1) as loader:
        assert sum(check(index, batch, of, 2) for batch in loader) > 100


def test_objects_of_one_pixel_and_images_of_none(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "images" / "a.png")
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "images" / "b.png")
    counts = [3 * 8 + 5, 1, 64 - 3 * 8 - 6]
    one = {"id": 1, "image_id": 0, "category_id": 3, "bbox": [3, 5, 1, 1], "area": 1}
    said = coco({"a.png": (8, 8), "b.png": (8, 8)})
    said["annotations"] = [one | {"segmentation": {"size": [8, 8], "counts": counts}}]
    (tmp_path / "said.json").write_text(json.dumps(said))
    build_index(tmp_path / "images", tmp_path / "x.arrow", masks=f"coco:{tmp_path / 'said.json'}")
    plain = {"prefix_tokens": 0, "drop": Drop(), "crop": Crop(), "resolution": Resolution(kind="native")}
    with PackedLoader(
        tmp_path / "x.arrow", config(1, targets=Targets(masks=4), **plain), rank=0, world_size=1
    ) as loader:
        cells = next(iter(loader)).masks[0, :8]
    # Two images of 2 × 2 patches of 4 × 4 cells: (x, y) = (3, 5) is cell (3, 1) of the third patch.
    assert np.argwhere(cells >= 0).tolist() in ([[2, 7]], [[6, 7]]) and cells.max() == 0


def test_a_region_of_another_size_is_left_out(tmp_path: Path) -> None:
    said = coco(pictures(tmp_path / "images", 3))
    for n, each in enumerate(said["annotations"]):
        each["segmentation"] = {"size": [5, 5], "counts": [25]} if n == 0 else [[1, 1, 5, 1, 5, 5]]
    (tmp_path / "said.json").write_text(json.dumps(said))
    notes = build_index(tmp_path / "images", tmp_path / "x.arrow", masks=f"coco:{tmp_path / 'said.json'}").notes
    assert any("1 regions that cannot be read are left out" in note for note in notes)
    with pytest.raises(IndexFileError, match="regions belong to boxes"):
        build_index(
            tmp_path / "images",
            tmp_path / "x.arrow",
            boxes=tmp_path / "images",
            masks=f"coco:{tmp_path / 'said.json'}",
        )
