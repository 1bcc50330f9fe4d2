"""Boxes: from what people write to the batch, through crop, mirror and warp, in process and from a daemon."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from navit_loader import LoaderConfig, PackedBatch, PackedLoader, RemoteLoader, _packer, build_index, open_index
from navit_loader.batch import CROWD, FAILED, OK
from navit_loader.config import Crop, Drop, PlanConfig, RenderConfig, Resolution, Targets, Teacher, Warp
from navit_loader.errors import ConfigError, IndexFileError, PlanError
from navit_loader.render.engine import Engine

sys.path.insert(0, str(Path(__file__).parent))
from service_kit import Daemon, digest

ROOM = Targets(boxes=True, capacity=64)


def pictures(folder: Path, count: int, *, broken: tuple[int, ...] = (), seed: int = 0) -> dict[str, tuple[int, int]]:
    """PNG files of random sizes; (width, height) by name."""
    rng = np.random.default_rng(seed)
    sizes = {}
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        width, height = (int(side) for side in rng.integers(20, 90, 2))
        name = f"{i:03}.png"
        Image.fromarray(rng.integers(0, 255, (height, width, 3), np.uint8)).save(folder / name)
        if i in broken:
            data = (folder / name).read_bytes()
            (folder / name).write_bytes(data[: len(data) // 2] + bytes(30) + data[len(data) // 2 + 30 :])
        sizes[name] = (width, height)
    return sizes


def coco(sizes: dict[str, tuple[int, int]], most: int = 9, seed: int = 0) -> dict[str, Any]:
    """A COCO JSON of random boxes, ids of categories with gaps; every seventh image has none."""
    rng = np.random.default_rng(seed)
    annotations: list[dict[str, Any]] = []
    for number, (width, height) in enumerate(sizes.values()):
        for _ in range(0 if number % 7 == 3 else int(rng.integers(1, most + 1))):
            x, y = rng.uniform(0, 0.8, 2) * (width, height)
            w, h = rng.uniform(2, 0.6 * width), rng.uniform(2, 0.6 * height)
            annotation = {"id": 1000 + len(annotations), "image_id": number, "category_id": int(rng.choice([3, 7, 90]))}
            annotation |= {"bbox": [x, y, w, h], "area": w * h / 2, "iscrowd": int(rng.random() < 0.1)}
            annotations.append(annotation)
    images = [{"id": n, "file_name": name, "width": w, "height": h} for n, (name, (w, h)) in enumerate(sizes.items())]
    categories = [{"id": 90, "name": "zebra"}, {"id": 3, "name": "car"}, {"id": 7, "name": "bird"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def indexed(folder: Path, said: dict[str, Any], **options: Any) -> Any:
    """The index of `folder/images` with the boxes of a COCO JSON."""
    (folder / "said.json").write_text(json.dumps(said))
    build_index(folder / "images", folder / "x.arrow", boxes=folder / "said.json", **options)
    return open_index(folder / "x.arrow")


def config(batch_size: int = 2, threads: int = 1, **plan: Any) -> LoaderConfig:
    given = {
        "sequence_length": 128,
        "max_tokens": 64,
        "max_images": 16,
        "patch_sizes": (4,),
        "seed": 3,
        "resolution": Resolution(kind="uniform", low=12, high=32),
        "drop": Drop(kind="constant", rate=0.4),
        "crop": Crop(kind="random_resized", scale=(0.2, 1.0), flip=0.5),
        "targets": ROOM,
    } | plan
    found = LoaderConfig(plan=PlanConfig(**given), render=RenderConfig(threads=threads, failure_limit=1.0))
    return replace(found, data=replace(found.data, batch_size=batch_size))


def by_hand(index: Any, batch: PackedBatch, s: int, e: int, clip: float = 0.0) -> list[tuple[Any, ...]]:
    """The boxes of one image as the docs say: (corners, label, flags, place)."""
    said = index.boxes(int(batch.image_ids[s, e]))
    top, left, height, width = (float(v) for v in batch.crops[s, e])
    sides = batch.sizes[s, e][::-1].astype(float)
    found = []
    for place, corners in enumerate(said["boxes"].astype(np.float64)):
        there = np.clip(corners.reshape(2, 2), 0, sides)
        cut = np.clip(there, (left, top), (left + width, top + height))
        if (cut[1] <= cut[0]).any():
            continue
        seen = (cut - (left, top)) / (width, height)
        if (cut != there).any():
            share = np.prod(cut[1] - cut[0]) / np.prod(there[1] - there[0])
            if share < clip or (seen[1] - seen[0] <= 1e-3).any():
                continue
        if batch.flips[s, e]:
            seen[:, 0] = 1 - seen[::-1, 0]
        found.append((seen.reshape(-1), said["labels"][place], said["flags"][place], place))
    return found


def images_of(batch: PackedBatch) -> list[tuple[int, int, slice]]:
    """(sequence, image, its boxes among all slots) of each image of a batch, by the offsets alone."""
    found, n = [], 0
    room = batch.boxes.shape[1]
    cuts = batch.box_cu_seqlens
    for s in range(len(batch.status)):
        there = int((batch.status[s] > 0).sum())
        for e in range(there):
            found.append((s, e, slice(int(cuts[n + e]), int(cuts[n + e + 1]))))
        assert cuts[n] == s * room and cuts[n + there] <= (s + 1) * room
        n += there + 1
    first, end = batch.box_spans
    assert all((first[s, e], end[s, e]) == (own.start, own.stop) for s, e, own in found)
    assert (cuts[n:] == len(batch.status) * room).all() and len(cuts) == batch.status.size + len(batch.status) + 1
    return found


def check(index: Any, batch: PackedBatch, clip: float = 0.0) -> int:
    """Every box of a batch against the index; returns how many there are."""
    boxes = batch.boxes.reshape(-1, 4)
    labels, flags, places = (getattr(batch, f"box_{name}").reshape(-1) for name in ("labels", "flags", "places"))
    count, taken = 0, np.zeros(len(boxes), bool)
    for s, e, own in images_of(batch):
        taken[own] = True
        if batch.status[s, e] == FAILED:
            assert (labels[own] == -1).all() and not boxes[own].any() and (places[own] == -1).all()
            continue
        expected = by_hand(index, batch, s, e, clip)
        assert own.stop - own.start == len(expected)
        for at, (corners, label, flag, place) in zip(range(own.start, own.stop), expected, strict=True):
            assert np.allclose(boxes[at], corners, atol=1e-6)
            assert (labels[at], flags[at], places[at]) == (label, flag, place)
            count += 1
    assert not boxes[~taken].any() and (labels[~taken] == -1).all() and not flags[~taken].any()
    assert (boxes >= 0).all() and (boxes <= 1).all() and (boxes[labels >= 0, 2:] > boxes[labels >= 0, :2]).all()
    return count


@pytest.fixture(scope="module")
def data(tmp_path_factory: Any) -> Any:
    folder = tmp_path_factory.mktemp("boxes")
    said = coco(pictures(folder / "images", 60, broken=(5, 17)))
    return indexed(folder, said), said


def test_an_index_has_what_coco_says(data: Any) -> None:
    index, said = data
    assert index.classes == ["car", "bird", "zebra"] and index.category_ids == [3, 7, 90]
    assert index.box_counts().sum() == len(said["annotations"])
    by_image: dict[int, list[Any]] = {}
    for each in said["annotations"]:
        by_image.setdefault(each["image_id"], []).append(each)
    for row in range(index.num_rows):
        found, own = index.boxes(row), by_image.get(row, [])
        assert found["ids"].tolist() == [each["id"] for each in own]
        assert [index.category_ids[label] for label in found["labels"]] == [each["category_id"] for each in own]
        assert np.allclose(found["areas"], [each["area"] for each in own])
        assert (found["flags"] == [CROWD * each["iscrowd"] for each in own]).all()
        corners = np.array([each["bbox"] for each in own], np.float32).reshape(-1, 4)
        assert np.allclose(found["boxes"][:, 2:] - found["boxes"][:, :2], corners[:, 2:], atol=1e-4)


@pytest.mark.parametrize("clip", [0.0, 0.5, 1.0])
def test_boxes_go_through_crop_and_mirror(data: Any, clip: float) -> None:
    index, _ = data
    plan = config(targets=replace(ROOM, clip=clip))
    with PackedLoader(index, plan, rank=0, world_size=1) as loader:
        batches = list(loader)
    assert sum(check(index, batch, clip) for batch in batches) > 50
    assert any((batch.status == FAILED).any() for batch in batches)


def test_warped_boxes_hold_their_corners(data: Any) -> None:
    """The hull of what the crop leaves, by the inverse of the batch's map."""
    index, _ = data
    warp = Warp(rotation=30, shear=10, translation=0.1, perspective=0.2)
    with PackedLoader(index, config(warp=warp), rank=0, world_size=1) as loader:
        batches = list(loader)
    seen = 0
    for batch in batches:
        for s, e, own in images_of(batch):
            if batch.status[s, e] != OK:
                continue
            expected = {place: corners for corners, _, _, place in by_hand(index, batch, s, e)}
            map_ = np.linalg.inv(batch.warps[s, e].astype(np.float64).reshape(3, 3))
            for at in range(own.start, own.stop):
                x0, y0, x1, y1 = expected[int(batch.box_places.reshape(-1)[at])]
                there = np.array([[x0, y0, 1], [x1, y0, 1], [x1, y1, 1], [x0, y1, 1]]) @ map_.T
                there = there[:, :2] / there[:, 2:]
                hull = np.clip([*there.min(0), *there.max(0)], 0, 1)
                assert np.allclose(batch.boxes.reshape(-1, 4)[at], hull, atol=1e-5)
                seen += 1
    assert seen > 50


def test_ranks_threads_and_a_resume_give_the_same_bytes(data: Any) -> None:
    index, _ = data
    with PackedLoader(index, config(), rank=0, world_size=1) as loader:
        once = [digest(batch) for batch in loader]
    with PackedLoader(index, config(threads=3), rank=0, world_size=1) as loader:
        assert [digest(batch) for batch in loader] == once
    ranks = []
    for rank in (0, 1):
        with PackedLoader(index, config(), rank=rank, world_size=2) as loader:
            ranks.append([digest(batch) for batch in loader])
    together = [batch for pair in zip(*ranks, strict=True) for batch in pair]
    assert together[: len(once)] == once
    with PackedLoader(index, config(), rank=0, world_size=1) as loader:
        list(islice(loader, 2))
        state = loader.state_dict()
    with PackedLoader(index, config(), rank=0, world_size=1) as loader:
        loader.load_state_dict(state)
        assert [digest(batch) for batch in loader] == once[2:]


PLAN = """
[plan]
sequence_length = 128
max_tokens = 64
max_images = 16
patch_sizes = [4]
seed = 3
[plan.resolution]
kind = "uniform"
low = 12
high = 32
[plan.crop]
kind = "random_resized"
scale = [0.2, 1.0]
flip = 0.5
[plan.targets]
boxes = true
capacity = 64
clip = 0.25
"""


def test_a_daemon_gives_the_same_bytes(data: Any, tmp_path: Path) -> None:
    index, _ = data
    toml = tmp_path / "config.toml"
    toml.write_text(
        f'[data]\nbatch_size = 2\nindex = "{index.path}"\n[render]\nthreads = 1\nfailure_limit = 1.0\n{PLAN}'
    )
    with PackedLoader(None, LoaderConfig.from_toml(toml), rank=0, world_size=1) as loader:
        here = [digest(batch) for batch in loader]
    daemon = Daemon(toml)
    try:
        for shared in (True, False):
            with RemoteLoader([daemon.endpoint], rank=0, world_size=1, shared=shared) as loader:
                assert loader.served.boxes == 64 and loader.served.masks == 0
                assert [digest(batch) for batch in loader] == here
    finally:
        daemon.close()


def test_encoded_batches_have_boxes(data: Any) -> None:
    index, _ = data
    with Engine(config(), index) as engine:
        pixels, encoded = engine.submit(0, 0, 2).wait(), engine.submit_encoded(0, 0, 2).wait()
        assert pixels is not None and encoded is not None
        assert np.array_equal(pixels.box_cu_seqlens, encoded.slots.box_cu_seqlens)
        # What cannot be decoded is found at the other end.
        first, end = pixels.box_spans
        for s, e in np.argwhere(pixels.status == OK):
            for name in ("boxes", "box_labels", "box_places"):
                here, there = (getattr(each, name) for each in (pixels, encoded.slots))
                own = slice(first[s, e], end[s, e])
                assert np.array_equal(here.reshape(-1, *here.shape[2:])[own], there.reshape(-1, *there.shape[2:])[own])


def test_nothing_changes_where_no_boxes_are_wanted(data: Any, tmp_path: Path) -> None:
    index, _ = data
    build_index(Path(index.path).parent / "images", tmp_path / "plain.arrow")
    plain = open_index(tmp_path / "plain.arrow")
    assert not plain.boxed and "navit.annotated" not in plain._meta
    with Engine(config(targets=None), plain) as engine:
        batch = engine.submit(0, 0, 2).wait()
        assert batch is not None and batch.boxes is None and batch.masks is None
        assert not {"boxes", "masks", "box_cu_seqlens"} & batch.arrays().keys()
    assert "targets" not in json.loads(config(targets=None).plan.to_json())
    with pytest.raises(ConfigError, match="has no boxes"):
        Engine(config(), plain)


def test_images_with_more_boxes_than_there_is_room_are_counted_and_left_out(data: Any, caplog: Any) -> None:
    index, _ = data
    counts = index.box_counts()
    plan = config(targets=Targets(boxes=True, capacity=4), drop=Drop(), crop=Crop())
    from navit_loader.summary import summarise

    with Engine(plan, index) as engine:
        summary = summarise(engine, 0, 1)
        assert summary["images"] == (counts <= 4).sum()
        assert summary["boxes_beyond"] == (counts > 4).sum() and summary["boxes_most"] == counts.max()
    assert f"{(counts > 4).sum()}" in caplog.text and index.uri(int((counts > 4).argmax())) in caplog.text
    with pytest.raises(PlanError, match=r"plan.targets.capacity = 1"):
        Engine(config(targets=Targets(boxes=True, capacity=1), filter="boxes > 1"), index)


def test_filters_know_how_many_boxes_there_are(data: Any) -> None:
    index, _ = data
    with Engine(config(filter="boxes > 0 and boxes < 5"), index) as engine:
        layout = engine.layout(0)
        rows = {i["row"] for s in layout.batch(0, layout.num_sequences or 1).sequences for i in s}
    counts = index.box_counts()
    assert rows and all(0 < counts[row] < 5 for row in rows)


@settings(max_examples=40, deadline=None)
@given(
    counts=st.lists(st.integers(0, 12), min_size=1, max_size=80),
    capacity=st.integers(12, 30),
    packing=st.sampled_from(["exact", "first_fit", "best_fit", "best_fit_decreasing"]),
    fit=st.booleans(),
)
def test_no_sequence_has_more_boxes_than_its_room(counts: list[int], capacity: int, packing: Any, fit: bool) -> None:
    n = len(counts)
    plan = config(packing=packing, fit="drop" if fit and packing == "exact" else "none", drop=Drop()).plan
    plan = replace(plan, targets=Targets(boxes=True, capacity=capacity))
    columns = {"width": [np.full(n, 40, np.int32)], "height": [np.full(n, 30, np.int32)]}
    columns["box_count"] = [np.array(counts, np.int32)]
    layout = _packer.Plan(plan.to_json(), [columns], [(0, None, 1.0)]).layout(0)
    layout.counts(0, layout.num_blocks)
    sequences = layout.batch(0, layout.num_sequences or 1).sequences
    assert sorted(i["row"] for s in sequences for i in s) == list(range(n))
    assert all(sum(counts[i["row"]] for i in s) <= capacity for s in sequences)


def test_many_boxes(tmp_path: Path) -> None:
    """500 objects in one image, beside images of none."""
    sizes = pictures(tmp_path / "images", 8)
    said = coco(sizes, 3)
    width, height = sizes["002.png"]
    rng = np.random.default_rng(0)
    for n in range(500):
        x, y = rng.uniform(0, 0.7, 2) * (width, height)
        said["annotations"].append({"id": 5000 + n, "image_id": 2, "category_id": 7, "bbox": [x, y, 3, 4]})
    index = indexed(tmp_path, said)
    with PackedLoader(index, config(targets=Targets(boxes=True, capacity=600)), rank=0, world_size=1) as loader:
        assert sum(check(index, batch) for batch in loader) > 100


def turned(image: Image.Image, orientation: int, path: Path) -> None:
    """Stores an image such that its EXIF orientation shows it as it is."""
    T = Image.Transpose
    back = {2: T.FLIP_LEFT_RIGHT, 3: T.ROTATE_180, 4: T.FLIP_TOP_BOTTOM, 5: T.TRANSPOSE, 6: T.ROTATE_90}
    back |= {7: T.TRANSVERSE, 8: T.ROTATE_270}
    exif = Image.Exif()
    exif[0x0112] = orientation
    (image.transpose(back[orientation]) if orientation > 1 else image).save(path, exif=exif)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("stored", [False, True])
def test_a_box_is_around_its_pixels_in_all_orientations(tmp_path: Path, orientation: int, stored: bool) -> None:
    """A bright patch, annotated upright or, where width and height tell so, as it is stored."""
    if stored and orientation < 5:
        pytest.skip("the sides do not tell")
    width, height, (x, y, w, h) = 60, 40, (8, 12, 20, 10)
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[y : y + h, x : x + w] = 255
    (tmp_path / "images").mkdir()
    turned(Image.fromarray(pixels), orientation, tmp_path / "images" / "a.png")
    size, bbox = (width, height), [x, y, w, h]
    if stored:
        found = np.argwhere(np.asarray(Image.open(tmp_path / "images" / "a.png"))[..., 0] > 0)
        size, bbox = (height, width), [*found.min(0)[::-1].tolist(), h, w]
    said = coco({"a.png": size}) | {"annotations": [{"id": 1, "image_id": 0, "category_id": 3, "bbox": bbox}]}
    index = indexed(tmp_path, said)
    assert index.boxes(0)["boxes"].tolist() == [[x, y, x + w, y + h]]
    plan = config(
        1, drop=Drop(), crop=Crop(flip=1.0), resolution=Resolution(kind="native"), max_grid=256, max_tokens=128
    )
    plan = replace(plan, plan=replace(plan.plan, sequence_length=256, max_tokens=256))
    with PackedLoader(index, plan, rank=0, world_size=1) as loader:
        batch = next(iter(loader))
    x0, y0, x1, y1 = batch.boxes[0, 0] * (60, 40, 60, 40)
    grid_h, grid_w = (int(v) for v in batch.grids[0, 0])
    seen = (
        batch.patches[0, : grid_h * grid_w].reshape(grid_h, grid_w, 4, 4, 3).transpose(0, 2, 1, 3, 4).reshape(40, 60, 3)
    )
    assert seen[round(y0) : round(y1), round(x0) : round(x1)].min() == 255 and (seen == 255).sum() == 3 * w * h


def notes_of(folder: Path, said: dict[str, Any], **options: Any) -> list[str]:
    (folder / "said.json").write_text(json.dumps(said))
    return build_index(folder / "images", folder / "x.arrow", boxes=folder / "said.json", **options).notes


def test_what_cannot_be_is_one_clear_line_each(tmp_path: Path) -> None:
    sizes = pictures(tmp_path / "images", 4)
    said = coco(sizes)
    said["annotations"] = [
        {"id": 1, "image_id": 0, "category_id": 3, "bbox": [1, 1, -5, 5]},
        {"id": 2, "image_id": 0, "category_id": 3, "bbox": [1, 1, 0, 5]},
        {"id": 3, "image_id": 1, "category_id": 3, "bbox": [500, 1, 5, 5]},
        {"id": 4, "image_id": 1, "category_id": 3, "bbox": [-3, -3, 9, 9]},
        {"id": 5, "image_id": 2, "category_id": 3},
    ]
    said["images"].append({"id": 99, "file_name": "gone.png", "width": 3, "height": 3})
    said["images"].pop(3)
    notes = "\n".join(notes_of(tmp_path, said))
    for words in (
        "2 boxes without an area are left out, such as",
        "1 boxes outside of their images are left out",
        "1 annotations without a bbox are left out",
        "1 of its images are not indexed, such as 'gone.png'",
        "says nothing of 1 images",
    ):
        assert words in notes, notes
    index = open_index(tmp_path / "x.arrow")
    assert index.box_counts().tolist() == [0, 1, 0, 0]
    assert index.boxes(1)["boxes"].tolist() == [[-3, -3, 6, 6]]
    with pytest.raises(IndexFileError, match=r"boxes outside of their|boxes without|without a bbox"):
        notes_of(tmp_path, said, strict=True)


@pytest.mark.parametrize(
    "region",
    [
        {"counts": [1]},
        {"counts": None},
        {"counts": [-1]},
        {"counts": [2**40]},
        {"counts": [float("inf")]},
        5,
        [{"x": 1}],
        [[10**400, 1, 2, 3, 4, 5]],
    ],
)
def test_a_region_that_is_none_leaves_its_box(tmp_path: Path, region: Any) -> None:
    said = coco(sizes := pictures(tmp_path / "images", 1))
    if isinstance(region, dict) and region["counts"] != [1]:
        region["size"] = list(sizes["000.png"][::-1])
    said["annotations"] = [{"image_id": 0, "category_id": 3, "bbox": [1, 1, 5, 5], "segmentation": region}]
    path = _written(tmp_path, said)
    notes = build_index(tmp_path / "images", tmp_path / "x.arrow", masks=f"coco:{path}").notes
    assert any("1 regions that cannot be read are left out" in note for note in notes)
    assert open_index(tmp_path / "x.arrow").box_counts().tolist() == [1]


@pytest.mark.parametrize(
    "change",
    [
        {"bbox": [0, 0, 1e300, 5]},
        {"bbox": [0, 0, 1e25, 1e25]},
        {"bbox": [15, 0, 1e-7, 5]},
        {"area": float("nan")},
        {"area": 1e300},
    ],
)
def test_boxes_are_measured_as_the_index_holds_them(tmp_path: Path, change: dict[str, Any]) -> None:
    """In float32: what is no box there is left out, so that the index opens and no box of it is empty."""
    said = coco(pictures(tmp_path / "images", 1))
    said["annotations"] = [
        {"id": 1, "image_id": 0, "category_id": 3, "bbox": [1, 1, 5, 5], **own} for own in (change, {})
    ]
    notes = notes_of(tmp_path, said)
    assert any("1 boxes without an area are left out" in note and note.endswith("box 1") for note in notes)
    assert open_index(tmp_path / "x.arrow").boxes(0)["boxes"].tolist() == [[1, 1, 6, 6]]


def test_annotations_of_another_size_break_their_image(tmp_path: Path) -> None:
    said = coco(pictures(tmp_path / "images", 4))
    said["images"][2]["width"] += 1
    summary = build_index(tmp_path / "images", tmp_path / "x.arrow", boxes=_written(tmp_path, said))
    assert summary.broken == 1 and summary.rows == 3
    assert "it is annotated as" in open_index(tmp_path / "x.arrow").quarantine()[0]["reason"]


def _written(folder: Path, said: dict[str, Any]) -> Path:
    (folder / "said.json").write_text(json.dumps(said))
    return folder / "said.json"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda said: said["annotations"][0].update(category_id=5), "has category 5, which is not listed"),
        (lambda said: said["annotations"][0].update(image_id=77), "it lists no such image"),
        (lambda said: said["images"].append(said["images"][0]), "two images have the id 0"),
        (lambda said: said["categories"].append({"id": 4, "name": "car"}), "the same id or the same name"),
        (lambda said: said.pop("categories"), "is no COCO file"),
        (
            lambda said: said["annotations"][0].update(id=2**70),
            f"annotation {2**70} of image 0: id {2**70} is no whole",
        ),
        (lambda said: said["annotations"][0].update(id=float("inf")), "of image 0: id inf is no whole number"),
        (
            lambda said: said["annotations"][0].update(bbox=[0, 0, 10**400, 1]),
            "annotation 1000 of image 0: .* too large",
        ),
        (lambda said: said["images"][0].update(width=float("inf")), "image 0: width inf and height"),
        (
            lambda said: said.update(images=[{"id": 0, "file_name": "other.png"}], annotations=[]),
            "says nothing of the images",
        ),
    ],
)
def test_a_json_that_contradicts_itself_is_refused(tmp_path: Path, change: Any, words: str) -> None:
    said = coco(pictures(tmp_path / "images", 2))
    change(said)
    with pytest.raises(IndexFileError, match=words):
        notes_of(tmp_path, said)


def test_two_images_of_one_name_are_refused(tmp_path: Path) -> None:
    for part in ("train", "val"):
        pictures(tmp_path / "images" / part, 2)
    with pytest.raises(IndexFileError, match=r"both go by the name '000\.png'"):
        notes_of(tmp_path, coco({"000.png": (20, 20)}))


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"boxes": True}, "capacity"),
        ({"capacity": 3}, "boxes"),
        ({"boxes": True, "capacity": 3, "clip": 1.5}, "clip"),
        ({"masks": 65}, "masks"),
        ({"masks": 2, "kind": "regions"}, "regions are numbered"),
        ({"boxes": True, "capacity": 9, "kind": "regions"}, "masks"),
        ({}, "nothing would be"),
    ],
)
def test_keys_are_checked(table: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        LoaderConfig.from_dict({"plan": {"targets": table}})


def test_a_teachers_view_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"plan.teacher"):
        PlanConfig(targets=ROOM, teacher=Teacher())


def test_a_part_of_an_index_keeps_its_boxes(data: Any, tmp_path: Path) -> None:
    from navit_loader.index.subset import write_subset

    index, _ = data
    keep = np.arange(index.num_rows) % 3 == 0
    write_subset(index, keep, tmp_path / "part.arrow")
    part = open_index(tmp_path / "part.arrow")
    part.check()
    assert part.category_ids == index.category_ids
    for row, old in enumerate(np.flatnonzero(keep)):
        for name, values in index.boxes(int(old)).items():
            assert np.array_equal(values, part.boxes(row)[name])
    with PackedLoader(part, config(), rank=0, world_size=1) as loader:
        assert sum(check(part, batch) for batch in loader)


def test_tars_that_would_lose_boxes_are_refused(data: Any, tmp_path: Path) -> None:
    from navit_loader.shards import pack_shards

    with pytest.raises(IndexFileError, match="has boxes or masks"):
        pack_shards(data[0], tmp_path / "tars")


def test_a_damaged_column_is_found(data: Any, tmp_path: Path) -> None:
    index, _ = data
    bytes_ = bytearray(Path(index.path).read_bytes())
    value = index.boxes(1)["boxes"][0].tobytes()
    at = bytes_.index(value)
    bytes_[at : at + 4] = np.float32(np.nan).tobytes()
    (tmp_path / "bad.arrow").write_bytes(bytes_)
    with pytest.raises(IndexFileError, match="row 1 has the box"):
        open_index(tmp_path / "bad.arrow").check()
