"""Is native size worth it where things have to be found: boxes and maps of stamps on wallpapers, of any shape, against a
square.

In: two packages of Debian (tuxpaint-stamps-default, mate-backgrounds; 200 MB, fetched by apt-get). Out: AP and mean overlap at
native size and squashed to a square, for each seed, their mean, spread and ratio, and the operations of each. Stamps of 16
kinds stand on wallpapers of aspect 1 : 6 to 6 : 1, with exact boxes and masks; those of the test stand in no image that is
learnt from, nor do its wallpapers. A squashed image has as many pixels as the native one, so that both cost the same; of maps
there is one squashed to twice as many too. All runs start from the same encoder, which learns once to tell stamps alone,
nearly square ones, so that it knows neither way; they have the same steps, batches and settings. Each finished part leaves a
file in the work folder and is not done twice.

    .venv/bin/python bench/stamps.py WORK [--task detection|segmentation] [--device cuda]
    .venv/bin/python bench/stamps.py WORK --quick          # plumbing alone, a few minutes on one core
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from corpus import debian
from PIL import Image

from navit_loader import build_index
from navit_model.train.checkpoint import open_checkpoint
from navit_model.train.log import read_log
from navit_model.train.run import train
from navit_model.train.settings import RunConfig
from navit_model.use.finetune import load

PACKAGES = {"tuxpaint-stamps-default": "usr/share/tuxpaint/stamps", "mate-backgrounds": "usr/share/backgrounds/mate"}
KINDS = {
    "bird": "animals/birds",
    "house": "town/houses/cartoon",
    "fruit": "food/fruit",
    "flower": "plants/flowers",
    "sign": "town/roadsigns",
    "christmas": "seasonal/christmas",
    "vegetable": "food/vegetables",
    "halloween": "seasonal/halloween",
    "cow": "animals/mammals/bovines",
    "tool": "household/tools",
    "music": "symbols/music",
    "chess": "symbols/chess",
    "clothes": "clothes",
    "insect": "animals/insects/cartoon",
    "fish": "animals/fish",
    "planet": "space/planets",
}
"""Folders of stamps; one in four of each is for the test."""

PATCH = 16


@dataclass(frozen=True)
class Sizes:
    """How much of everything. `tokens` of an image, however it is seen."""

    learn: int
    test: int
    alone: int
    tokens: int
    width: int
    depth: int
    before: int
    steps: int
    batch: int
    seeds: int


FULL = Sizes(6000, 800, 8000, 256, 192, 8, 3000, 4000, 8, 3)
QUICK = Sizes(24, 12, 48, 64, 48, 2, 6, 8, 1, 2)

Made = dict[str, Any]
Stamp = tuple[int, Image.Image]


class Bench:
    """The work folder, and what every part needs."""

    def __init__(self, work: Path, sizes: Sizes, device: str) -> None:
        self.work, self.sizes, self.device = work.resolve(), sizes, device

    def stamps(self, test: bool) -> list[list[Stamp]]:
        """By kind, cut to what is not transparent."""
        found = []
        for kind, folder in enumerate(KINDS.values()):
            paths = sorted((self.work / PACKAGES["tuxpaint-stamps-default"] / folder).glob("*.png"))
            own: list[Stamp] = []
            for n, path in enumerate(paths):
                with Image.open(path) as opened:
                    image = opened.convert("RGBA")
                box = image.getchannel("A").point(lambda a: 255 * (a > 127)).getbbox()
                if box is not None and (n % 4 == 3) == test:
                    own.append((kind, image.crop(box)))
            found.append(own)
        return found

    def wallpapers(self, test: bool) -> list[Image.Image]:
        root = self.work / PACKAGES["mate-backgrounds"]
        paths = sorted(path for path in root.rglob("*") if path.suffix in (".jpg", ".png") and not path.is_symlink())
        found = []
        for path in paths[3::4] if test else [path for n, path in enumerate(paths) if n % 4 != 3]:
            with Image.open(path) as opened:
                image = opened.convert("RGB")
            image.thumbnail((1600, 1600))
            found.append(image)
        return found

    def data(self) -> None:
        """Images with boxes and maps, native and squashed; and stamps alone for the encoder."""
        if (self.work / "data.done").exists():
            return
        debian(self.work, PACKAGES)
        for name in ("native", "squashed", "twice", "alone"):
            shutil.rmtree(self.work / name, ignore_errors=True)
        for part, count in (("learn", self.sizes.learn), ("test", self.sizes.test)):
            self._scenes(part, count)
            for name in ("native", "squashed", "twice"):
                root = self.work / name
                build_index(
                    root / part, root / f"{part}.arrow", boxes=root / f"{part}.json", masks=root / f"{part}-maps"
                )
        self._alone()
        build_index(self.work / "alone", self.work / "alone.arrow")
        (self.work / "data.done").touch()

    def _scenes(self, part: str, count: int) -> None:
        rng = np.random.default_rng(len(part))
        stamps, papers = self.stamps(part == "test"), self.wallpapers(part == "test")
        side = PATCH * self.sizes.tokens**0.5
        squares = {"squashed": round(side), "twice": round(2**0.5 * side / PATCH) * PATCH}
        categories = [{"id": 0, "name": "ground"}, *({"id": n + 1, "name": name} for n, name in enumerate(KINDS))]
        said: dict[str, Made] = {}
        for name in ("native", *squares):
            said[name] = {"images": [], "annotations": [], "categories": categories}
            for folder in (part, f"{part}-maps"):
                (self.work / name / folder).mkdir(parents=True)
        for n in range(count):
            image, classes, boxes = _scene(rng, stamps, papers, side)
            for name in said:
                square = squares.get(name)
                size = (square, square) if square else image.size
                shares = size[0] / image.width, size[1] / image.height
                file = f"{n:05}.jpg"
                image.resize(size, Image.Resampling.BICUBIC).save(self.work / name / part / file, quality=92)
                classes.resize(size, Image.Resampling.NEAREST).save(self.work / name / f"{part}-maps" / f"{n:05}.png")
                said[name]["images"].append({"id": n, "file_name": file, "width": size[0], "height": size[1]})
                for kind, (x0, y0, x1, y1) in boxes:
                    box = [x0 * shares[0], y0 * shares[1], (x1 - x0) * shares[0], (y1 - y0) * shares[1]]
                    one = {"id": len(said[name]["annotations"]) + 1, "image_id": n, "category_id": kind + 1}
                    said[name]["annotations"].append({**one, "bbox": box, "area": box[2] * box[3], "iscrowd": 0})
        for name, table in said.items():
            (self.work / name / f"{part}.json").write_text(json.dumps(table))

    def _alone(self) -> None:
        """One stamp an image, from as wide as high to a fifth from it: what the encoder learns first."""
        rng = np.random.default_rng(0)
        stamps, papers = self.stamps(test=False), self.wallpapers(test=False)
        names = list(KINDS)
        for n in range(self.sizes.alone):
            kind = n % len(KINDS)
            aspect = float(np.exp(rng.uniform(-0.2, 0.2)))
            side = PATCH * (self.sizes.tokens / 4) ** 0.5
            image = _ground(rng, papers, round(side * aspect**0.5), round(side / aspect**0.5))
            _, stamp = stamps[kind][int(rng.integers(len(stamps[kind])))]
            _paste(image, None, stamp, kind, 0.9, rng)
            folder = self.work / "alone" / names[kind]
            folder.mkdir(parents=True, exist_ok=True)
            image.save(folder / f"{n:05}.jpg", quality=92)

    def config(self, out: Path, task: str, index: Path, seed: int, tokens: int, **train_keys: Any) -> Made:
        sizes = self.sizes
        return {
            "data": {"index": str(index), "batch_size": sizes.batch},
            "plan": {
                "sequence_length": 4 * tokens,
                "max_tokens": tokens,
                "max_images": 16,
                "patch_sizes": [PATCH],
                "seed": seed,
                "resolution": {"kind": "native"},
                "crop": {"flip": 0.5},
            },
            "model": {
                "width": sizes.width,
                "depth": sizes.depth,
                "heads": max(1, sizes.width // 48),
                "patch_size": PATCH,
                "max_grid": 256,
                "positions": "factorised",
            },
            "train": {
                "task": task,
                "out": str(out),
                "steps": sizes.steps,
                "warmup": max(1, sizes.steps // 20),
                "learning_rate": 5e-4,
                "weight_decay": 0.05,
                "ema": 0.999 if sizes is FULL else 0.0,
                "precision": "bf16" if self.device == "cuda" else "fp32",
                "device": self.device,
                "seed": seed,
                "log_every": max(1, sizes.steps // 50),
                **train_keys,
            },
        }

    def encoder(self) -> Path:
        """The folder of the run that all others start from."""
        out = self.work / "encoder"
        if not (out / "done").exists():
            shutil.rmtree(out, ignore_errors=True)
            keys = {"steps": self.sizes.before, "head_weight_decay": 0.05}
            train(
                RunConfig.from_dict(
                    self.config(out, "classification", self.work / "alone.arrow", 0, self.sizes.tokens, **keys)
                )
            )
            (out / "done").touch()
        return out

    def run(self, task: str, way: str, seed: int) -> Made:
        """One run: its score and its operations."""
        out = self.work / f"{task}-{way}-{seed}"
        file = out / "found.json"
        if not file.exists():
            shutil.rmtree(out, ignore_errors=True)
            root, tokens = self.work / way, self.sizes.tokens * (2 if way == "twice" else 1)
            # Rounded to whole patches an image may have a few more.
            table = self.config(out, task, root / "learn.arrow", seed, round(1.1 * tokens))
            table["data"]["eval_index"] = str(root / "test.arrow")
            table["plan"]["targets"] = {"boxes": True, "capacity": 64} if task == "detection" else {"masks": 4}
            train(RunConfig.from_dict(table), begin=load(str(self.encoder()), {}))
            score = [entry for entry in read_log(out) if entry["kind"] == "eval"][-1]
            state = open_checkpoint(out).state
            figure = score["ap"] if task == "detection" else score["miou"]
            file.write_text(json.dumps({"figure": figure or 0.0, "flops": state["flops"], "tokens": state["tokens"]}))
        found: Made = json.loads(file.read_text())
        return found


def _ground(rng: np.random.Generator, papers: list[Image.Image], width: int, height: int) -> Image.Image:
    """A piece of a wallpaper, of this shape."""
    paper = papers[int(rng.integers(len(papers)))]
    scale = min(paper.width / width, paper.height / height) * float(rng.uniform(0.5, 1))
    wide, high = round(width * scale), round(height * scale)
    left, top = int(rng.integers(paper.width - wide + 1)), int(rng.integers(paper.height - high + 1))
    return paper.resize((width, height), Image.Resampling.BICUBIC, (left, top, left + wide, top + high))


def _paste(
    image: Image.Image,
    classes: Image.Image | None,
    stamp: Image.Image,
    kind: int,
    share: float,
    rng: np.random.Generator,
) -> tuple[int, int, int, int]:
    """Puts a stamp of that share of the image's shorter side somewhere, and its class into the map."""
    scale = share * min(image.size) / max(stamp.size)
    small = stamp.resize((max(4, round(stamp.width * scale)), max(4, round(stamp.height * scale))))
    left, top = (int(rng.integers(max(1, a - b + 1))) for a, b in zip(image.size, small.size, strict=True))
    alpha = small.getchannel("A")
    image.paste(small, (left, top), alpha)
    if classes is not None:
        classes.paste(kind + 1, (left, top), alpha.point(lambda a: 255 * (a > 127)).convert("1"))
    return left, top, left + small.width, top + small.height


def _scene(
    rng: np.random.Generator, stamps: list[list[Stamp]], papers: list[Image.Image], side: float
) -> tuple[Image.Image, Image.Image, list[tuple[int, tuple[int, int, int, int]]]]:
    """An image of `side`² pixels, the classes of its pixels, and its boxes; a stamp that would cover another stays away."""
    aspect = float(np.exp(rng.uniform(-np.log(6), np.log(6))))
    image = _ground(rng, papers, round(side * aspect**0.5), round(side / aspect**0.5))
    classes = Image.new("L", image.size, 0)
    boxes: list[tuple[int, tuple[int, int, int, int]]] = []
    for _ in range(int(rng.integers(1, 9))):
        kind = int(rng.integers(len(stamps)))
        _, stamp = stamps[kind][int(rng.integers(len(stamps[kind])))]
        over, above = image.copy(), classes.copy()
        box = _paste(over, above, stamp, kind, float(rng.uniform(0.3, 0.95)), rng)
        if all(min(box[2], b[2]) <= max(box[0], b[0]) or min(box[3], b[3]) <= max(box[1], b[1]) for _, b in boxes):
            image, classes = over, above
            boxes.append((kind, box))
    return image, classes, boxes


def main() -> None:
    """Makes what is missing, trains what is missing, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--task", choices=("detection", "segmentation"), action="append")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--quick", action="store_true", help="plumbing alone: the figures mean nothing")
    args = parser.parse_args()
    sizes = QUICK if args.quick else FULL
    bench = Bench(args.work, sizes, args.device)
    bench.data()
    where = torch.cuda.get_device_name() if args.device == "cuda" else platform.machine()
    print(f"{sizes.learn} images to learn from, {sizes.test} to score, {sizes.steps} steps; on {where}\n")
    print(
        "| task | seen | " + " | ".join(f"seed {n}" for n in range(sizes.seeds)) + " | mean ± deviation | operations |"
    )
    print("|---|---|" + "---|" * (sizes.seeds + 2))
    for task in args.task or ("detection", "segmentation"):
        means = {}
        for way in ("native", "squashed", *(("twice",) if task == "segmentation" else ())):
            found = [bench.run(task, way, seed) for seed in range(sizes.seeds)]
            figures = [one["figure"] for one in found]
            means[way] = mean(figures)
            cells = " | ".join(f"{figure:.4f}" for figure in figures)
            flops = mean(one["flops"] for one in found)
            print(f"| {task} | {way} | {cells} | {means[way]:.4f} ± {stdev(figures):.4f} | {flops:.3e} |", flush=True)
        for way in list(means)[1:]:
            print(f"\n{task}: native over {way} {means['native'] / max(means[way], 1e-9):.3f}\n")


if __name__ == "__main__":
    main()
