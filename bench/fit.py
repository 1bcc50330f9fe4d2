"""Is `navit-model fit` on some hundred images as good as timm's own script with its NaFlex loader, and how much quicker?

In: two packages of Debian with labelled pictures (openclipart-png, tuxpaint-stamps-default; 290 MB, fetched by apt-get),
and a checkout of timm's repository for its `train.py`. Out: accuracies of both on the same test images, the paired interval
of their difference over images and seeds, wall and processor seconds. Both start from the same weights, which `fit` makes
first from the packages' other pictures; they learn the same 500 images on one core, and choose among as many settings on
images that are neither. Each finished part leaves a file in the work folder and is not done twice.

    .venv/bin/python bench/fit.py WORK --timm CHECKOUT --core 1            # about two hours
    .venv/bin/python bench/fit.py WORK --timm CHECKOUT --quick             # plumbing alone, some minutes
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONUNBUFFERED": "1"}

import numpy as np
import timm
import torch
from corpus import debian
from kit import Report, parse
from PIL import Image
from timm.data import create_dataset, create_naflex_loader, resolve_data_config
from timm.models import load_checkpoint

from navit_loader import open_index
from navit_loader.render.engine import Engine
from navit_loader.render.images import pack_images
from navit_loader.schema import toml_value
from navit_loader.summary import summarise
from navit_model import NaViT, NaViTConfig
from navit_model.train.settings import RunConfig
from navit_model.use.opened import open_model

Made = dict[str, Any]
Image.MAX_IMAGE_PIXELS = None  # `PIXELS` sorts out what is too large

PACKAGES = {"openclipart-png": "usr/share/openclipart/png", "tuxpaint-stamps-default": "usr/share/tuxpaint/stamps"}
CLASSES = {
    "birds": ("animals/birds",),
    "bugs": ("animals/bugs",),
    "buildings": ("buildings", "!buildings/furniture"),
    "clothing": ("people/clothing",),
    "desserts": ("food/desserts",),
    "drinks": ("food/beverages",),
    "fruit": ("food/fruit",),
    "mammals": ("animals/mammals",),
    "music": ("recreation/music",),
    "office": ("office",),
    "people": ("people", "!people/clothing", "!people/smilies", "!people/stickmen", "!people/bodypart"),
    "plants": ("plants",),
    "sports": ("recreation/sports",),
    "tools": ("tools",),
    "vehicles": ("transportation", "!transportation/aiga-symbols", "!transportation/roadsigns"),
}
"""Folders of openclipart that are to be told apart; those with `!` are not of the class. All others are for the weights."""

DULL = ("computer/icons/flat-theme", "computer/icons/lemon-theme", "recreation/games/cards", "shapes/stars", "unsorted")
"""Hundreds of nearly the same, or of anything: for neither."""

FEWEST = 12
"""Pictures of a folder that makes a class of its own for the weights."""

PIXELS = 16_000_000
"""Of a picture at most; a few are of hundreds of millions."""

SIDE = 640
"""Of the longer side at most: as large as pictures of the web are, and no more than either side needs."""

NAME = "naflexvit_base_patch16_gap"

TIMM = "timm, NaFlex loader"
SIDES = (("navit", "ours"), (TIMM, "timm"))
OURS: dict[str, list[str]] = {
    "as proposed": [],
    "rate 1e-3": ["train.learning_rate=1e-3"],
}
"""Settings of `fit` that are tried, as changes of its proposal."""

COMMON = "--opt adamw --weight-decay 0.05 --layer-decay 0.75 --sched cosine --sched-on-updates --warmup-lr 1e-6 --smoothing 0.1"
THEIRS: dict[str, str] = {
    "rate 3e-4": f"{COMMON} --lr 3e-4",
    "rate 1e-3": f"{COMMON} --lr 1e-3",
}
"""As many of timm's script, with its augmentation by default, and with what its recipes for transformers share."""

LENGTHS = (1 / 3, 2 / 3, 1)
"""Sequence lengths that timm's NaFlex loader draws for a batch, as shares of the largest: its recipe has several."""


@dataclass(frozen=True)
class Sizes:
    """How much of everything; a setting is chosen by runs of `tries` epochs, the weights see `each` of a folder."""

    depth: int
    epochs: int
    tries: int
    tokens: int
    passes: int
    each: int
    learn: int
    tune: int
    test: int
    seeds: int

    @property
    def kwargs(self) -> Made:
        """What makes timm's model one of ViT-Ti's width."""
        return {"embed_dim": 192, "depth": self.depth, "num_heads": 3, "reg_tokens": 0}


class Bench:
    """The work folder, and what every part needs.

    Args:
        work: the folder.
        script: timm's `train.py`.
        sizes: how much of everything.
    """

    def __init__(self, work: Path, script: Path, sizes: Sizes) -> None:
        self.work, self.script, self.sizes = work.resolve(), script, sizes
        self.images = self.work / "images"
        # Modules are compiled once, as those of an installation are, and not in each of the commands whose time is taken.
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ["PYTHONPYCACHEPREFIX"] = str(self.work / "pycache")

    def kept(self, name: str) -> Made | None:
        path = self.work / f"{name}.json"
        return json.loads(path.read_text()) if path.exists() else None

    def keep(self, name: str, made: Made) -> Made:
        path = self.work / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".new").write_text(json.dumps(made, indent=1))
        path.with_suffix(".new").replace(path)
        return made

    def call(self, command: list[str], log: Path) -> Made:
        """Runs a command to its end; wall and processor seconds."""
        log.parent.mkdir(parents=True, exist_ok=True)
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        with log.open("w") as out:
            done = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT)
        wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
        if done.returncode:
            sys.exit(f"{' '.join(command)}\nended with {done.returncode}:\n{log.read_text()[-3000:]}")
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return {"wall": wall, "cpu": cpu, "command": command, "load": os.getloadavg()[0]}

    # Pictures

    def data(self) -> None:
        """Writes `images/{weights,learn,tune,test}`, a folder for each class, all by the one seed of this function."""
        if self.kept("data"):
            return
        debian(self.work, PACKAGES)
        shutil.rmtree(self.images, ignore_errors=True)
        own: dict[str, list[Path]] = {name: [] for name in CLASSES}
        other: dict[str, list[Path]] = defaultdict(list)
        for package, place in PACKAGES.items():
            root = self.work / place
            for path in sorted(root.rglob("*.png")):
                folder = path.parent.relative_to(root).as_posix()
                if path.is_symlink() or _within(folder, DULL):
                    continue
                name = next((n for n, p in CLASSES.items() if _of(folder, p)), "") if package.startswith("open") else ""
                if name:
                    own[name].append(path)
                else:
                    other[f"{package.split('-')[0]}-{folder.replace('/', '-')}"].append(path)
        rng = np.random.default_rng(0)
        groups = [(name, group) for name, paths in own.items() for group in _series(paths)]
        order = rng.permutation(len(groups))
        # Each part has the same share of a class.
        total = sum(len(group) for _, group in groups)
        counts: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        seen: set[bytes] = set()
        for n in order.tolist():
            name, group = groups[n]
            room = {p: round(getattr(self.sizes, p) * len(own[name]) / total) for p in ("learn", "tune", "test")}
            part = next((p for p in room if counts[p][name] < room[p]), "test")
            # Of a series that is cut off the rest is nobody's.
            for path in group:
                if counts[part][name] < room[part]:
                    counts[part][name] += _write(path, self.images / part / name, seen)
        for name, paths in other.items():
            if len(paths) >= FEWEST:
                for path in paths[: self.sizes.each]:
                    counts["weights"][name] += _write(path, self.images / "weights" / name, seen)
        self.keep("data", {part: dict(of) for part, of in counts.items()})

    # Weights

    def weights(self) -> None:
        """Pretrains with `fit` on the other pictures; then the same weights as timm names them, and whether logits agree."""
        run, theirs = self.work / "weights", self.work / "weights.pth"
        if self.kept("weights"):
            return
        shape = self.timm(0)
        config, plain = NaViT.from_timm(shape).config, NaViTConfig()
        # `fit` would choose a smaller one.
        own = [k for k in asdict(config) if getattr(config, k) != getattr(plain, k) or k in ("width", "depth", "heads")]
        changes = [f"model.{key}={toml_value(getattr(config, key))}" for key in own]
        changes += [
            f"plan.prefix_tokens={config.prefix_tokens}",
            # Small pictures, and half of each: many are seen in little time.
            "plan.sequence_length=1024",
            "plan.max_images=256",
            "plan.resolution.low=64",
            "plan.resolution.high=128",
            "plan.drop.kind=constant",
            "plan.drop.rate=0.5",
            "data.batch_size=1",
            "train.mix.probability=0.3",
            "train.threads=1",
            "train.eval_every=0",
            "train.best=false",
            "train.patience=0",
        ]
        begin = [sys.executable, "-m", "navit_model", "fit", str(self.images / "weights"), "--held-out=0.1"]
        steps = max(2, round(self.sizes.passes * self.steps(begin, changes)))
        made = self.call([*begin, f"-o{run}", *changes, f"train.steps={steps}"], self.work / "weights.log")
        opened = open_model(run, torch.device("cpu"))
        twin = self.timm(len(opened.classes))
        twin.load_state_dict(as_timm(opened.model, twin))
        torch.save(twin.state_dict(), theirs)
        picture = next(iter(sorted((self.images / "learn").rglob("*.jpg"))))
        batch = pack_images(
            [picture], opened.run.loader.for_evaluation(max_tokens=self.sizes.tokens + config.prefix_tokens)
        )
        with torch.inference_mode():
            ours = opened.model(batch.to("cpu"))[0, 0]
            their = twin(batch.to_naflex(mean=config.mean, std=config.std))[0]
        apart = float((ours - their).abs().max())
        print(f"logits of one picture, ours and timm's: {apart:.1e} apart, of {float(ours.abs().max()):.1f}")
        if apart > 1e-4:
            sys.exit("the two models are not the same")
        scores = json.loads((run / "scores.json").read_text())
        self.keep("weights", {**made, "apart": apart, "classes": len(opened.classes), "scores": scores})

    def timm(self, classes: int) -> Any:
        return timm.create_model(NAME, num_classes=classes, **self.sizes.kwargs).eval()

    def steps(self, begin: list[str], changes: list[str]) -> float:
        """Steps in which `fit` sees each image that it learns once, of its own choice of batches."""
        trial = self.work / "trial"
        shutil.rmtree(trial, ignore_errors=True)
        self.call([*begin, f"-o{trial}", *changes, "train.steps=1"], self.work / "trial.log")
        config = RunConfig.from_toml(trial / "fit.toml").loader
        index = open_index(trial / "train.arrow")
        with Engine(replace(config, plan=replace(config.plan, passes=1)), index) as engine:
            each = summarise(engine, 0)["images_per_sequence"] * config.data.batch_size
        shutil.rmtree(trial)
        return float(index.num_rows / each)

    # Runs

    def ours(self, setting: str, epochs: int, seed: int) -> Made:
        """One run of `fit`."""
        name = _name("ours", setting, epochs, seed)
        if done := self.kept(name):
            return done
        out = self.work / name
        shutil.rmtree(out, ignore_errors=True)
        begin = [sys.executable, "-m", "navit_model", "fit", str(self.images / "learn")]
        begin += ["--from", str(self.work / "weights"), "--tokens", str(self.sizes.tokens)]
        if (plan := self.kept("plan")) is None:
            plan = self.keep("plan", {"steps": self.steps(begin, [])})
        changes = [
            f"train.steps={round(epochs * plan['steps'])}",
            f"train.seed={seed}",
            f"plan.seed={seed}",
            "train.threads=1",
        ]
        made = self.call([*begin, "-o", str(out), *changes, *OURS[setting]], out.with_suffix(".log"))
        return self.keep(name, {**made, "tune": self.our_answers(out, "tune")})

    def our_answers(self, out: Path, part: str) -> dict[str, str]:
        """The class that a run says of each picture of a part, as `predict` prints it."""
        command = [
            sys.executable,
            "-m",
            "navit_model",
            "predict",
            str(out),
            str(self.images / part),
            "--csv",
            "--top=1",
        ]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        rows = csv.DictReader(said.splitlines())
        return {str(Path(row["path"]).relative_to(self.images / part)): row["class_1"] for row in rows}

    def theirs(self, setting: str, epochs: int, seed: int) -> Made:
        """One run of timm's script, on the images that `fit` learns and with those that it holds out."""
        name = _name("timm", setting, epochs, seed)
        if done := self.kept(name):
            return done
        split, made = self.work / "split", self.work / "split.new"
        if not split.exists():
            shutil.rmtree(made, ignore_errors=True)
            run = next((self.work / "runs").glob("ours-*/train.arrow")).parent
            for part, arrow in (("train", "train"), ("validation", "heldout")):
                index = open_index(run / f"{arrow}.arrow")
                for row in range(index.num_rows):
                    path = Path(index.uri(row))
                    target = made / part / path.parent.name
                    target.mkdir(parents=True, exist_ok=True)
                    os.link(path, target / path.name)
            made.rename(split)
        out = self.work / name
        shutil.rmtree(out, ignore_errors=True)
        classes = sorted(p.name for p in (split / "train").iterdir())
        plan = self.kept("plan")
        assert plan is not None
        command = [sys.executable, str(self.script), "--data-dir", str(split), "--model", NAME, "--model-kwargs"]
        command += [f"{key}={v}" for key, v in self.sizes.kwargs.items()]
        command += f"--num-classes {len(classes)} --pretrained --pretrained-path {self.work / 'weights.pth'}".split()
        most = self.sizes.tokens
        lengths = " ".join(str(round(share * most)) for share in LENGTHS)
        command += f"--naflex-loader --naflex-train-seq-lens {lengths} --naflex-max-seq-len {most}".split()
        warmup = max(1, round(epochs / 10))
        command += f"--device cpu -j 0 -b 24 --epochs {epochs} --warmup-epochs {warmup} --seed {seed}".split()
        ema = min(0.9999, max(0.5, 1 - 20 / (epochs * plan["steps"])))
        command += f"--model-ema --model-ema-decay {ema} --checkpoint-hist 1".split()
        command += f"--output {out.parent} --experiment {out.name} {THEIRS[setting]}".split()
        took = self.call(command, out.with_suffix(".log"))
        return self.keep(name, {**took, "tune": self.their_answers(out, "tune")})

    def their_answers(self, out: Path, part: str) -> dict[str, str]:
        """The same of timm's best weights, with its own preprocessing at the largest length."""
        torch.set_num_threads(1)
        root = self.images / part
        data = create_dataset("", root=str(root), split=part)
        classes = sorted(p.name for p in (self.work / "split/train").iterdir())
        model = self.timm(len(classes))
        load_checkpoint(model, str(out / "model_best.pth.tar"), use_ema=True)
        shown = resolve_data_config({}, model=model)
        loader = create_naflex_loader(
            data,
            patch_size=16,
            max_seq_len=self.sizes.tokens,
            batch_size=24,
            interpolation=shown["interpolation"],
            mean=shown["mean"],
            std=shown["std"],
            num_workers=0,
            device=torch.device("cpu"),
            pin_memory=False,
        )
        with torch.inference_mode():
            best = torch.cat([model(patches).argmax(-1) for patches, _ in loader]).tolist()
        return {name: classes[n] for name, n in zip(data.filenames(), best, strict=True)}

    # The comparison

    def compare(self, args: argparse.Namespace) -> None:
        """Tries, chooses, runs all seeds interleaved, and looks at the test once."""
        tried: dict[str, dict[str, float]] = {"ours": {}, "timm": {}}
        for ours, theirs in zip(OURS, THEIRS, strict=True):
            tried["ours"][ours] = _accuracy(self.ours(ours, self.sizes.tries, 0)["tune"])
            tried["timm"][theirs] = _accuracy(self.theirs(theirs, self.sizes.tries, 0)["tune"])
            print(tried, flush=True)
        best = {side: max(of, key=lambda name: of[name]) for side, of in tried.items()}
        asked = [(best["ours"], best["timm"], self.sizes.epochs, seed) for seed in range(self.sizes.seeds)]
        runs = [(self.ours(a, epochs, seed), self.theirs(b, epochs, seed)) for a, b, epochs, seed in asked]
        if (test := self.kept("test")) is None:
            found: Made = {"ours": [], "timm": []}
            for a, b, epochs, seed in asked:
                found["ours"].append(self.our_answers(self.work / _name("ours", a, epochs, seed), "test"))
                found["timm"].append(self.their_answers(self.work / _name("timm", b, epochs, seed), "test"))
            test = self.keep("test", found)
        names = sorted(test["ours"][0])
        right = {
            side: np.array([[said[name] == Path(name).parent.name for name in names] for said in test[side]], float)
            for side in test
        }
        low, high = interval(right["ours"] - right["timm"])
        report = Report("fit", __doc__, args)
        given = {"images": len(names), "passes": self.sizes.epochs}
        found = {who: [100 * float(v) for v in right[side].mean(1)] for who, side in SIDES}
        tries = {who: ", ".join(f"{name}: {score:.1%}" for name, score in tried[side].items()) for who, side in SIDES}
        report.row("accuracy", found, "%", tried=tries["navit"], timm_tried=tries[TIMM], **given)
        apart = 100 * float((right["ours"] - right["timm"]).mean())
        words = f"{100 * low:+.2f} to {100 * high:+.2f}, 95 %, paired over images and seeds"
        report.row("accuracy, ours less timm's", apart, "points", interval=words, **given)
        for key, what, goal in (("wall", "wall time", round(1 / 0.6, 3)), ("cpu", "processor time", None)):
            ways = {who: [pair[n][key] for pair in runs] for n, (who, _) in enumerate(SIDES)}
            report.row(
                what, ways, "s", better="lower", goal=goal, load=max(run["load"] for pair in runs for run in pair)
            )
        report.finish()


def as_timm(ours: NaViT, theirs: Any) -> dict[str, torch.Tensor]:
    """Weights of ours under timm's names; where each goes is seen from one of theirs whose weights are their own numbers."""
    numbers, shapes, count = {}, theirs.state_dict(), 0
    for name, weight in shapes.items():
        numbers[name] = torch.arange(count, count + weight.numel(), dtype=torch.float32).view(weight.shape)
        count += weight.numel()
    theirs.load_state_dict(numbers)
    places, flat, trained = NaViT.from_timm(theirs).state_dict(), torch.full((count,), torch.nan), ours.state_dict()
    for name, place in places.items():
        flat[place.long().flatten()] = trained[name].flatten()
    assert bool(flat.isfinite().all())
    return {name: flat[number.long()] for name, number in numbers.items()}


def interval(apart: np.ndarray, draws: int = 10_000) -> list[float]:
    """The middle 95 % of the mean over seeds and images that are both drawn anew; `apart` is f64 `[seeds, images]`."""
    rng = np.random.default_rng(0)
    seeds, images = apart.shape
    means = [
        apart[rng.integers(seeds, size=seeds)].mean(0)[rng.integers(images, size=images)].mean() for _ in range(draws)
    ]
    return [float(v) for v in np.quantile(means, (0.025, 0.975))]


def _accuracy(said: dict[str, str]) -> float:
    return mean(Path(name).parent.name == answer for name, answer in said.items())


def _name(side: str, setting: str, epochs: int, seed: int) -> str:
    return f"runs/{side}-{re.sub(r'[^a-z0-9-]+', '-', setting)}-{epochs}-{seed}"


def _within(folder: str, places: tuple[str, ...]) -> bool:
    return any(folder == place or folder.startswith(place + "/") for place in places)


def _of(folder: str, places: tuple[str, ...]) -> bool:
    without = tuple(place[1:] for place in places if place.startswith("!"))
    return _within(folder, places) and not _within(folder, without)


def _series(paths: list[Path]) -> list[list[Path]]:
    """Pictures of one class whose names begin with the same word: one author's series, or one subject."""
    found: dict[str, list[Path]] = defaultdict(list)
    for path in paths:
        word = re.split(r"[^a-z]+", path.stem.lower().lstrip("0123456789_-"))[0]
        found[word].append(path)
    return list(found.values())


def _write(path: Path, folder: Path, seen: set[bytes]) -> int:
    """The picture without its empty margin, on white, as a JPEG; 0 where it is too large, empty, or was there before."""
    with Image.open(path) as image:
        if image.width * image.height > PIXELS:
            return 0
        picture = image.convert("RGBA")
    alpha = np.asarray(picture)[..., 3]
    white = Image.new("RGBA", picture.size, "white")
    white.alpha_composite(picture)
    flat = white.convert("RGB")
    full = alpha.min() > 16
    pixels = np.asarray(flat).astype(np.int16)
    there = np.abs(pixels - pixels[0, 0]).max(-1) > 16 if full else alpha > 16
    rows, columns = np.flatnonzero(there.any(1)), np.flatnonzero(there.any(0))
    if not len(rows) or min(len(rows), len(columns)) < 16:
        return 0
    flat = flat.crop((int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1))
    flat.thumbnail((SIDE, SIDE))
    small = flat.resize((16, 16)).tobytes()
    if small in seen:
        return 0
    seen.add(small)
    folder.mkdir(parents=True, exist_ok=True)
    flat.save(folder / f"{path.stem}.jpg", quality=90)
    return 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--timm", type=Path, required=True, help="a checkout of timm's repository, which has train.py")
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--epochs", type=int, default=15, help="passes over the images that are learnt")
    parser.add_argument("--passes", type=int, default=40, help="passes of the weights over what they are learnt from")
    parser.add_argument("--tokens", type=int, default=196, help="of an image at most")
    parser.add_argument("--core", type=int, help="the core that everything runs on")
    args = parse(parser, {})
    if args.core is not None:
        os.sched_setaffinity(0, {args.core})
    tries = max(1, 2 * args.epochs // 5)
    sizes = Sizes(
        args.depth, args.epochs, tries, args.tokens, args.passes, each=400, learn=500, tune=300, test=1000, seeds=3
    )
    if args.quick:
        sizes = Sizes(2, 2, 1, args.tokens, passes=0.5, each=12, learn=90, tune=40, test=60, seeds=2)
    bench = Bench(args.work, args.timm.resolve() / "train.py", sizes)
    bench.data()
    bench.weights()
    bench.compare(args)


if __name__ == "__main__":
    main()
