"""What masks cost: beside the images, and against pycocotools and Pillow.

In: nothing; photographs and annotations are made here in a temporary folder. Out: rows. CPU seconds of this process, on one
thread.

    python bench/targets.py [--images 200] [--repeat 7] [--quick]

- Masks beside images: JPEG photographs with PNG masks of 21 classes in smooth blobs, a palette as Pascal VOC has it; rendering
  with `plan.targets.masks = 1` and 4 over rendering without. Goal: 15 % at most.
- COCO's runs into cells: the seconds that rendering takes longer with masks than with boxes alone, against pycocotools'
  `decode` of each region, Pillow's NEAREST resize of the crop, and painting. Goal: five times as fast.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from kit import Report, parse, turns
from PIL import Image
from pycocotools import mask as mask_utils

from navit_loader import LoaderConfig, build_index, open_index
from navit_loader.config import Crop, Drop, PlanConfig, RenderConfig, Resolution, Targets
from navit_loader.render.engine import Engine

REGIONS = 20
"""Of an image."""


def main() -> None:
    """Makes the data, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--repeat", type=int, default=7)
    args = parse(parser, {"images": 16, "repeat": 2})
    report = Report("targets", __doc__, args)
    with tempfile.TemporaryDirectory() as folder:
        sizes = make(Path(folder), args.images)
        beside(report, Path(folder), args.repeat)
        runs(report, Path(folder), sizes, args.repeat)
    report.finish()


def make(folder: Path, count: int) -> list[tuple[int, int]]:
    """JPEG photographs of some 500 × 375, masks of blobs, and a COCO JSON of regions. Returns (width, height) of each."""
    rng = np.random.default_rng(0)
    images, annotations, sizes = [], [], []
    for name in ("images", "masks"):
        (folder / name).mkdir()
    for n in range(count):
        width, height = (int(side) for side in rng.integers(330, 660, 2))
        sizes.append((width, height))
        noise = Image.fromarray(rng.integers(0, 256, (height // 6, width // 6, 3), np.uint8))
        noise.resize((width, height), Image.Resampling.BICUBIC).save(folder / "images" / f"{n:05}.jpg", quality=90)
        blobs = Image.fromarray(rng.integers(0, 255, (6, 8), np.uint8)).resize(
            (width, height), Image.Resampling.BICUBIC
        )
        mask = Image.fromarray((np.asarray(blobs) // 13).astype(np.uint8), "P")
        mask.putpalette(rng.integers(0, 256, 768, np.uint8).tobytes())
        mask.save(folder / "masks" / f"{n:05}.png")
        images.append({"id": n, "file_name": f"{n:05}.jpg", "width": width, "height": height})
        for k in range(REGIONS):
            turns = np.linspace(0, 2 * np.pi, 40, endpoint=False)
            radius = rng.uniform(0.02, 0.3) * min(width, height) * rng.uniform(0.6, 1.4, 40)
            x, y = rng.uniform(0.1, 0.9, 2) * (width, height)
            polygon = np.stack([x + radius * np.cos(turns), y + radius * np.sin(turns)], -1).round(2)
            box = [*polygon.min(0).tolist(), *(polygon.max(0) - polygon.min(0)).tolist()]
            one = {"id": n * REGIONS + k, "image_id": n, "category_id": 1 + k % 5, "bbox": box, "iscrowd": 0}
            annotations.append(one | {"area": box[2] * box[3] / 2, "segmentation": [polygon.reshape(-1).tolist()]})
    categories = [{"id": n, "name": str(n)} for n in range(1, 6)]
    said = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "said.json").write_text(json.dumps(said))
    build_index(folder / "images", folder / "files.arrow", masks=folder / "masks")
    build_index(folder / "images", folder / "regions.arrow", masks=f"coco:{folder / 'said.json'}")
    return sizes


def config(targets: Targets | None) -> LoaderConfig:
    """Crops, mirrors and drop, as in training."""
    plan = PlanConfig(
        sequence_length=1024,
        max_tokens=256,
        resolution=Resolution(kind="uniform", low=128, high=256),
        drop=Drop(kind="constant", rate=0.25),
        crop=Crop(kind="random_resized", scale=(0.3, 1.0), flip=0.5),
        targets=targets,
    )
    return LoaderConfig(plan=plan, render=RenderConfig(threads=1, fetch_threads=0))


def rendering(path: Path, targets: Targets | None) -> Callable[[], float]:
    """What renders one epoch and says how long that took."""
    engine = Engine(config(targets), open_index(path))
    n = int(engine.layout(0).counts(0, 1)[0])

    def once() -> float:
        before = time.process_time()
        engine.submit(0, 0, n).wait()
        return time.process_time() - before

    return once


def beside(report: Report, folder: Path, repeat: int) -> None:
    """Masks beside the images."""
    path, alone = folder / "files.arrow", "images alone"
    ways = {side: rendering(path, Targets(masks=side) if side else None) for side in (0, 1, 4)}
    found = turns(ways, repeat)
    for side in (1, 4):
        report.row(
            f"PNG masks, S = {side}",
            {"navit": found[side], alone: found[0]},
            "s",
            better="lower",
            table="images with masks, beside images alone",
            bounds=[alone],
            goal=1 / 1.15,
        )


def runs(report: Report, folder: Path, sizes: list[tuple[int, int]], repeat: int) -> None:
    """COCO's runs into cells."""
    path = folder / "regions.arrow"
    index = open_index(path)
    texts = [index.regions(row) for row in range(index.num_rows)]
    areas = [index.boxes(row)["areas"] for row in range(index.num_rows)]
    room = {"boxes": True, "capacity": 32767, "kind": "regions"}
    for side in (1, 4):
        engine = Engine(config(Targets(masks=side, **room)), index)  # type: ignore[arg-type]
        batch = engine.submit(0, 0, int(engine.layout(0).counts(0, 1)[0])).wait()
        assert batch is not None
        wanted: list[tuple[int, Any, Any, bool]] = [
            (
                int(batch.image_ids[s, e]),
                batch.crops[s, e].tolist(),
                batch.grids[s, e].tolist(),
                bool(batch.flips[s, e]),
            )
            for s, e in np.argwhere(batch.status == 1)
        ]

        def theirs(side: int = side, wanted: list[tuple[int, Any, Any, bool]] = wanted) -> float:
            before = time.process_time()
            for row, (top, left, height, width), (h, w), flip in wanted:
                box, cells = (left, top, left + width, top + height), np.full((h * side, w * side), -1, np.int16)
                for place in np.argsort(-areas[row], kind="stable"):
                    full = mask_utils.decode({"size": sizes[row][::-1], "counts": texts[row][place]})
                    small = Image.fromarray(full).resize((w * side, h * side), Image.Resampling.NEAREST, box=box)
                    cells[np.asarray(small) > 0] = place
                if flip:
                    cells = cells[:, ::-1]
            return time.process_time() - before

        ways = {
            "boxes": rendering(path, Targets(boxes=True, capacity=32767)),
            "masks": rendering(path, Targets(masks=side, **room)),  # type: ignore[arg-type]
            "theirs": theirs,
        }
        found, peer = turns(ways, repeat), "pycocotools and Pillow"
        ours = [max(masks - boxes, 1e-4) for masks, boxes in zip(found["masks"], found["boxes"], strict=True)]
        report.row(
            f"20 regions an image, S = {side}",
            {"navit": ours, peer: found["theirs"]},
            "s",
            better="lower",
            table="COCO's runs into cells",
            goal=5,
        )


if __name__ == "__main__":
    main()
