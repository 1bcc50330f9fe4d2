"""Boxes, maps and segments learnt and scored end to end: from what people write to `eval`, `predict` and the report."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as runs

from navit_loader import LoaderConfig, PackedLoader, build_index, open_index
from navit_loader.errors import NavitError
from navit_loader.index.subset import write_subset
from navit_model.cli import main
from navit_model.evaluate.average_precision import average_precision
from navit_model.evaluate.detection import coco_results
from navit_model.evaluate.targets import Truth
from navit_model.train import checkpoint
from navit_model.train.log import read_log
from navit_model.train.run import train
from navit_model.train.settings import RunConfig

sys.path.insert(0, str(Path(__file__).parent))
from ranks import stopped

NAMES = ("ground", "red", "green")


def write_scenes(root: Path, count: int, seed: int = 0) -> Path:
    """Bright squares on dark ground, as COCO has boxes, regions and panoptic maps, and as a PNG of classes."""
    rng = np.random.default_rng(seed)
    for name in ("images", "classes", "panoptic"):
        (root / name).mkdir(parents=True, exist_ok=True)
    categories = [{"id": 10 * n + 5, "name": name, "isthing": int(n > 0)} for n, name in enumerate(NAMES)]
    said: dict[str, Any] = {"images": [], "annotations": [], "categories": categories}
    panoptic: dict[str, Any] = {"images": [], "annotations": [], "categories": categories}
    for i in range(count):
        h, w = (int(v) * 4 for v in rng.integers(4, 8, 2))
        pixels = rng.integers(0, 60, (h, w, 3)).astype(np.uint8)
        classes = np.zeros((h, w), np.uint8)
        ids = np.full((h, w), 1)
        info = []
        for n in range(int(rng.integers(1, 3))):
            kind, size = int(rng.integers(1, 3)), int(rng.integers(6, 10))
            top, left = int(rng.integers(0, h - size + 1)), int(rng.integers(0, w - size + 1))
            place = np.s_[top : top + size, left : left + size]
            if (ids[place] != 1).any():
                continue
            pixels[place] = 0
            pixels[(*place, kind - 1)] = 230
            classes[place], ids[place] = kind, n + 2
            box = {"category_id": 10 * kind + 5, "bbox": [left, top, size, size], "area": size * size, "iscrowd": 0}
            region = runs.encode(np.asfortranarray((ids == n + 2).astype(np.uint8)))
            segmentation = {"size": [h, w], "counts": region["counts"].decode()}
            one = {**box, "id": 1 + len(said["annotations"]), "image_id": i, "segmentation": segmentation}
            said["annotations"].append(one)
            info.append({**box, "id": n + 2})
        name = f"{i:02}.png"
        ground = {"category_id": 5, "bbox": [0, 0, w, h], "area": int((ids == 1).sum()), "iscrowd": 0, "id": 1}
        panoptic["annotations"].append({"image_id": i, "file_name": name, "segments_info": [ground, *info]})
        for table in (said, panoptic):
            table["images"].append({"id": i, "file_name": name, "width": w, "height": h})
        Image.fromarray(pixels).save(root / "images" / name)
        Image.fromarray(classes).save(root / "classes" / name)
        Image.fromarray(np.stack([ids, ids * 0, ids * 0], -1).astype(np.uint8)).save(root / "panoptic" / name)
    (root / "boxes.json").write_text(json.dumps(said))
    (root / "panoptic.json").write_text(json.dumps(panoptic))
    return root


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_scenes(tmp_path_factory.mktemp("scenes"), 24)
    build_index(root / "images", root / "detection.arrow", boxes=root / "boxes.json")
    build_index(root / "images", root / "regions.arrow", masks=f"coco:{root / 'boxes.json'}")
    build_index(root / "images", root / "segmentation.arrow", masks=root / "classes", classes=list(NAMES))
    build_index(
        root / "images", root / "panoptic.arrow", masks=f"panoptic:{root / 'panoptic.json'},{root / 'panoptic'}"
    )
    return root


TARGETS: dict[str, dict[str, Any]] = {
    "detection": {"boxes": True, "capacity": 32},
    "segmentation": {"masks": 2},
    "panoptic": {"boxes": True, "capacity": 48, "masks": 2, "kind": "regions"},
}
FIGURE = {"detection": "ap", "segmentation": "miou", "panoptic": "pq"}


def config(scenes: Path, out: Path, task: str, **train_keys: Any) -> dict[str, Any]:
    index = str(scenes / f"{task}.arrow")
    return {
        "data": {"index": index, "eval_index": index, "batch_size": 2},
        "plan": {
            "sequence_length": 128,
            "max_images": 8,
            "max_tokens": 64,
            "patch_sizes": [4],
            "resolution": {"kind": "native"},
            "targets": TARGETS[task],
        },
        "render": {"threads": 1},
        "model": {"width": 24, "depth": 2, "heads": 2, "patch_size": 4, "max_grid": 16},
        "panoptic": {"queries": 6, "depth": 1, "stuff": ["ground"]},
        "segmentation": {"depth": 1},
        "train": {
            "task": task,
            "out": str(out),
            "steps": 6,
            "warmup": 2,
            "learning_rate": 3e-3,
            "log_every": 1,
            "checkpoint_every": 5,
            "threads": 1,
            "device": "cpu",
            **train_keys,
        },
    }


def test_what_is_true_is_what_was_written(scenes: Path) -> None:
    said = json.loads((scenes / "boxes.json").read_text())
    for name in ("detection", "regions"):
        truth = Truth(open_index(scenes / f"{name}.arrow")).coco()
        found = [(a["image_id"], a["bbox"], a["area"], 10 * a["category_id"] + 5) for a in truth["annotations"]]
        assert found == [(a["image_id"], a["bbox"], a["area"], a["category_id"]) for a in said["annotations"]]
    classes, panoptic, regions = (
        Truth(open_index(scenes / f"{name}.arrow")) for name in ("segmentation", "panoptic", "regions")
    )
    for row in range(24):
        wanted = np.asarray(Image.open(scenes / "classes" / f"{row:02}.png")).astype(int)
        assert (classes.classes(row) == wanted).all() and (panoptic.classes(row) == wanted).all()
        # Nobody says of COCO's regions that what lies between them is ground.
        assert (regions.classes(row) == np.where(wanted == 0, -1, wanted)).all()
        ids, kinds, crowds = panoptic.segments(row)
        assert set(np.unique(ids)) == set(kinds) and not crowds


@pytest.mark.parametrize("turned", [False, True])
def test_masks_of_turned_images_are_seen_as_the_images_are(turned: bool, tmp_path: Path) -> None:
    """A photograph on its side, its mask drawn as it is stored or as it is shown, in 16 bits; the engine sees the same."""
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    stored = np.arange(8 * 12).reshape(8, 12).astype(np.uint16)
    stored[0, 0] = 65535
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((8, 12, 3), np.uint8)).save(tmp_path / "images" / "x.jpg", exif=exif)
    Image.fromarray(np.rot90(stored, -1).copy() if turned else stored).save(tmp_path / "masks" / "x.png")
    names = [str(n) for n in range(96)]
    build_index(tmp_path / "images", tmp_path / "x.arrow", masks=tmp_path / "masks", classes=names)
    wanted = np.rot90(stored.astype(int), -1)
    found = Truth(open_index(tmp_path / "x.arrow")).classes(0)
    assert (found == np.where(wanted == 65535, -1, wanted)).all()
    plan = {"patch_sizes": [4], "max_tokens": 8, "sequence_length": 8, "resolution": {"kind": "native"}}
    targets = {"targets": {"masks": 4}}
    with PackedLoader(tmp_path / "x.arrow", LoaderConfig.from_dict({"plan": plan | targets})) as loader:
        batch = next(iter(loader))
    for t in np.flatnonzero(batch.segment_ids[0] == 0):
        y, x = 4 * batch.positions[0, t].astype(int)
        assert (batch.masks[0, t].reshape(4, 4) == found[y : y + 4, x : x + 4]).all()


@pytest.mark.parametrize("form", ["boxes", "panoptic"])
def test_results_name_images_as_their_json_does(form: str, scenes: Path, tmp_path: Path) -> None:
    """Whatever number the files are named by; of an image that it does not list nothing is said."""
    said = json.loads((scenes / f"{form}.json").read_text())
    for each in said["images"]:
        each["id"] = 1000 - each["id"]
    for each in said["annotations"]:
        each["image_id"] = 1000 - each["image_id"]
    said["images"] = [each for each in said["images"] if each["file_name"] != "03.png"]
    said["annotations"] = [each for each in said["annotations"] if each["image_id"] != 997]
    path = tmp_path / "said.json"

    def index(change: Any = None) -> str:
        path.write_text(json.dumps(said if change is None else change(said)))
        given = {"boxes": path} if form == "boxes" else {"masks": f"panoptic:{path},{scenes / 'panoptic'}"}
        build_index(scenes / "images", tmp_path / "x.arrow", **given)
        return str(tmp_path / "x.arrow")

    told = [{"image_id": n, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 0.5} for n in range(24)]
    found = coco_results(told, index())
    assert [each["image_id"] for each in found] == [1000 - n for n in range(24) if n != 3]
    assert {each["category_id"] for each in found} == {15}
    opened = open_index(tmp_path / "x.arrow")
    opened.check()
    keep = np.arange(24) % 2 == 1
    write_subset(opened, keep, tmp_path / "part.arrow")
    part = open_index(tmp_path / "part.arrow")
    assert part.image_numbers is not None and opened.image_numbers is not None
    assert (part.image_numbers == opened.image_numbers[keep]).all()

    def in_words(said: dict[str, Any]) -> dict[str, Any]:
        images = [{**each, "id": f"n{each['id']}"} for each in said["images"]]
        return {
            **said,
            "images": images,
            "annotations": [{**a, "image_id": f"n{a['image_id']}"} for a in said["annotations"]],
        }

    # Where its ids are no numbers, the files' are.
    assert [each["image_id"] for each in coco_results(told, index(in_words))] == list(range(24))


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_masks_of_few_bits_are_scored_by_their_numbers(bits: int, tmp_path: Path) -> None:
    """As the engine reads them for training."""
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    stored = np.arange(64).reshape(8, 8).astype(np.uint8) % 2**bits
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "images" / "x.png")
    rows = b"".join(
        b"\0" + np.packbits(np.unpackbits(row[:, None], axis=1)[:, 8 - bits :].reshape(-1)).tobytes() for row in stored
    )
    chunks = ((b"IHDR", struct.pack(">2I5B", 8, 8, bits, 0, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    png = b"".join(struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    (tmp_path / "masks" / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n" + png)
    names = [str(n) for n in range(16)]
    build_index(tmp_path / "images", tmp_path / "x.arrow", masks=tmp_path / "masks", classes=names)
    assert (Truth(open_index(tmp_path / "x.arrow")).classes(0) == stored).all()
    plan = {"patch_sizes": [8], "max_tokens": 1, "sequence_length": 1, "resolution": {"kind": "native"}}
    with PackedLoader(
        tmp_path / "x.arrow", LoaderConfig.from_dict({"plan": plan | {"targets": {"masks": 8}}})
    ) as loader:
        assert (next(iter(loader)).masks[0, 0].reshape(8, 8) == stored).all()


@pytest.mark.parametrize("task", FIGURE)
def test_a_task_is_learnt_scored_and_used(
    task: str, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, told = tmp_path / "run", tmp_path / "scores.json"
    steps = 60 if task == "detection" else 30
    train(RunConfig.from_dict(config(scenes, out, task, steps=steps, log_every=5, ema=0.0)))
    losses = [e["loss"] for e in read_log(out) if e["kind"] == "train"]
    assert losses[-1] < 0.8 * losses[0]
    (row,) = [e for e in read_log(out) if e["kind"] == "eval"]
    assert 0 <= row[FIGURE[task]] <= 1 and row["images"] == 24
    page = (out / "report.html").read_text()
    assert {"ap": "AP", "miou": "mIoU", "pq": "PQ"}[FIGURE[task]] in page and "data:image/jpeg" in page
    arguments = ["eval", str(out), str(scenes / f"{task}.arrow"), "--device", "cpu", "--json", str(told)]
    if task == "detection":
        arguments += ["--results", str(tmp_path / "results.json")]
    assert main(arguments) == 0
    (score,) = json.loads(told.read_text())["scores"]
    assert score[FIGURE[task]] == pytest.approx(row[FIGURE[task]])
    if task == "detection":
        # Scored from the file by COCO's own numbers it is the same.
        results = json.loads((tmp_path / "results.json").read_text())
        said = json.loads((scenes / "boxes.json").read_text())
        assert average_precision(said, results)["ap"] == pytest.approx(score["ap"])
    capsys.readouterr()
    images = sorted((scenes / "images").glob("0[0-2].png"))
    assert (
        main(["predict", str(out), *map(str, images), "--device", "cpu", "--json", "--draw", str(tmp_path / "d")]) == 0
    )
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["path"] for line in lines] == [str(path) for path in images]
    assert sorted(path.name for path in (tmp_path / "d").iterdir()) == [path.name for path in images]
    for line in lines:
        assert {"detection": "boxes", "segmentation": "pixels", "panoptic": "segments"}[task] in line


@pytest.mark.parametrize("task", FIGURE)
def test_a_resumed_run_is_the_same_bit_for_bit(task: str, scenes: Path, tmp_path: Path) -> None:
    whole, halves = (RunConfig.from_dict(config(scenes, tmp_path / n, task)) for n in ("whole", "halves"))
    train(whole, page=False)
    stopped(halves, 3)
    train(halves, resume=True, page=False)
    ends = [checkpoint.open_checkpoint(tmp_path / name).read("model") for name in ("whole", "halves")]
    assert all(torch.equal(ends[0][k], ends[1][k]) for k in ends[0])


@pytest.mark.slow
def test_two_ranks_learn_and_score_as_one_with_the_doubled_batch(scenes: Path, tmp_path: Path) -> None:
    jobs = []
    for task in FIGURE:
        one = config(scenes, tmp_path / f"{task}-one", task, steps=4)
        train(RunConfig.from_dict(one), page=False)
        two = config(scenes, tmp_path / f"{task}-two", task, steps=4)
        two["data"]["batch_size"] = 1
        jobs.append({"table": two})
    file = tmp_path / "jobs.json"
    file.write_text(json.dumps(jobs))
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = str(Path(__file__).with_name("ranks.py"))
    done = subprocess.run([*line, script, str(file)], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    for task, figure in FIGURE.items():
        logs = [list(read_log(tmp_path / f"{task}-{name}")) for name in ("one", "two")]
        losses = [[e["loss"] for e in log if e["kind"] == "train"] for log in logs]
        assert losses[1] == pytest.approx(losses[0], rel=1e-3), task
        scores = [next(e for e in log if e["kind"] == "eval") for log in logs]
        assert scores[1][figure] == pytest.approx(scores[0][figure], abs=1e-2), task
        assert scores[1]["images"] == scores[0]["images"] and scores[1]["failed"] == 0


BOXES = {"boxes": True, "capacity": 48}
OTHER = {"data": {"index": "panoptic"}}
MISTAKES: list[tuple[str, str, dict[str, Any], str]] = [
    (
        "no boxes",
        "detection",
        {"plan": {"targets": {"masks": 1}}, "data": {"index": "panoptic"}},
        "plan.targets.boxes = true",
    ),
    (
        "no masks",
        "segmentation",
        {"plan": {"targets": {"boxes": True, "capacity": 9}}, "data": {"index": "panoptic"}},
        "plan.targets.masks",
    ),
    (
        "a kind",
        "panoptic",
        {"plan": {"targets": {"boxes": True, "capacity": 48, "masks": 1}}},
        "plan.targets.kind = 'semantic'",
    ),
    ("stuff", "panoptic", {"panoptic": {"stuff": ["sky"]}}, "no class 'sky'"),
    ("classes", "detection", {"detection": {"classes": 7}}, "detection.classes = 7"),
    ("a classifier", "detection", {"model": {"classes": 3}}, "model.classes = 3"),
    ("mixing", "detection", {"train": {"mix": {"mixup": 0.2}}}, "train.mix"),
    ("no true boxes", "detection", {"data": {"eval_index": "segmentation"}}, "segmentation.arrow' has no boxes"),
    (
        "no true segments",
        "panoptic",
        {"data": {"eval_index": "segmentation"}},
        "masks of classes, which tell no segments",
    ),
]


@pytest.mark.parametrize(("task", "changes", "said"), [pytest.param(t, c, s, id=n) for n, t, c, s in MISTAKES])
def test_mistakes_are_one_line_before_the_first_step(
    task: str, changes: dict[str, Any], said: str, scenes: Path, tmp_path: Path
) -> None:
    given = config(scenes, tmp_path / "run", task)
    for section, keys in changes.items():
        named = {k: str(scenes / f"{v}.arrow") if section == "data" else v for k, v in keys.items()}
        given[section] = {**given.get(section, {}), **named}
    with pytest.raises(NavitError, match=said) as error:
        train(RunConfig.from_dict(given))
    assert "\n" not in str(error.value) and not checkpoint.steps(tmp_path / "run")
