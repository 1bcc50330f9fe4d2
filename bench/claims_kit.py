"""What the experiments of `claims.py` share: images, runs that are made once, and figures with their spread.

In: a folder, and either scikit-learn's digits or indexes of the user's. Out: accuracies of trained models. A run that is
finished is kept with its scores and used again, so that the table can be made in several sittings and claims share runs.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from navit_loader import build_index, open_index
from navit_model.evaluate.classification import Score, evaluate
from navit_model.train import checkpoint
from navit_model.train.feed import open_loader
from navit_model.train.log import RunLog, read_log
from navit_model.train.settings import RunConfig
from navit_model.train.task import Row
from navit_model.train.trainer import Trainer
from navit_model.world import World

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
import digits

Table = dict[str, Any]
PATCH = 4
QUICK: dict[str, Table] = {
    "data": {"batch_size": 1},
    "model": {"positions": "fractional_fourier"},
    "train": {"learning_rate": 4e-3},
}
"""What lets the tiny model learn in the fewest operations, whatever sizes it sees: one sequence a step, and positions that
are as strong as the patches from the start (learned tables start near zero, and the loss stays level for long)."""


@dataclass(frozen=True)
class Data:
    """The images of one split: indexes of training and held-out images, at their own sizes and squared."""

    train: str
    test: str

    def squared(self, side: int) -> Data:
        """The same images, each resized to `side` × `side` as a fixed-resolution ViT has them; made once."""
        found = []
        for path in (self.train, self.test):
            index = open_index(path)
            folder = Path(path).with_suffix("") / f"square-{side}"
            arrow = folder.with_suffix(".arrow")
            if not arrow.exists():
                labels = np.concatenate(index.columns()["labels"]).reshape(index.num_rows, -1)[:, 0]
                for row in np.flatnonzero(labels >= 0).tolist():
                    target = folder / index.classes[labels[row]]
                    target.mkdir(parents=True, exist_ok=True)
                    with Image.open(index.uri(row)) as image:
                        small = image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
                    small.save(target / f"{row:06d}.png")
                build_index(folder, arrow, classes=path)
            found.append(str(arrow))
        return Data(*found)


@dataclass(frozen=True)
class Figure:
    """A number measured several times."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return float(np.mean(self.values))

    @property
    def spread(self) -> float:
        """Standard deviation of the sample; 0 for one value."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else 0.0

    def percent(self) -> str:
        return f"{self.mean:.2%} ± {self.spread:.2%}"


@dataclass(frozen=True)
class Line:
    """One line of the table; `holds` is None where there is nothing to hold."""

    claim: str
    paper: str
    ours: str
    holds: bool | None


class Kit:
    """Runs by name.

    Args:
        out: folder of everything that is made.
        seeds: how many splits and initialisations.
        scale: factor of every number of steps; 1 is the table's own.
        given: the user's training and held-out index, in place of the digits.
    """

    def __init__(self, out: Path, seeds: int, scale: float, given: tuple[str, str] | None) -> None:
        self.out, self.seeds, self.scale, self.given = out.resolve(), range(seeds), scale, given
        self.world = World.join("cpu")

    def steps(self, count: int) -> int:
        return max(4, round(count * self.scale))

    def data(self, seed: int) -> Data:
        """Split number `seed` of the digits; the user's indexes are the same for every seed."""
        if self.given:
            return Data(*self.given)
        folder = self.out / f"digits-{seed}"
        indexes = [folder / f"{name}.arrow" for name in ("train", "heldout")]
        if not all(path.exists() for path in indexes):
            digits.write(folder / "images", seed)
            for path in indexes:
                build_index(folder / "images" / path.stem, path)
        return Data(*map(str, indexes))

    def quick(self, name: str, seed: int, steps: int, **changes: Mapping[str, Any]) -> Path:
        """`run` with `QUICK` beneath the changes."""
        sections = QUICK.keys() | changes.keys()
        return self.run(name, seed, steps, **{key: {**QUICK.get(key, {}), **changes.get(key, {})} for key in sections})

    def table(self, data: Data, steps: int, seed: int, changes: Mapping[str, Mapping[str, Any]]) -> Table:
        """A run: the demo's, with the sections of `changes` laid over it."""
        base: Table = {
            "data": {"index": data.train, "eval_index": data.test, "batch_size": 4},
            "plan": {
                "seed": seed,
                "sequence_length": 512,
                "max_images": 96,
                "max_tokens": 64,
                "max_grid": 32,
                "patch_sizes": [PATCH],
                "resolution": {"kind": "uniform", "low": 12, "high": 32},
                "drop": {"kind": "constant", "rate": 0.5},
            },
            "render": {"threads": 1},
            "model": {"width": 64, "depth": 4, "heads": 2, "patch_size": PATCH, "max_grid": 32},
            "train": {
                "steps": steps,
                "seed": seed,
                "learning_rate": 2e-3,
                "warmup": max(1, steps // 15),
                "weight_decay": 0.05,
                "head_weight_decay": 0.05,
                "label_smoothing": 0.05,
                "ema": 0.998,
                "log_every": 10,
                "checkpoint_every": 0,
                "device": "cpu",
            },
        }
        for section, keys in changes.items():
            base[section] |= keys
        return base

    def run(self, name: str, seed: int, steps: int, **changes: Mapping[str, Any]) -> Path:
        """Trains `name` with `seed`, if that was not done before, and returns the run's folder."""
        folder = self.out / "runs" / f"{name}-{seed}"
        given = self.table(self.data(seed), self.steps(steps), seed, changes)
        given["train"]["out"] = str(folder)
        # Held-out images are looked at afterwards, at the budgets that a claim asks for.
        given["data"].pop("eval_index")
        done = checkpoint.find(folder)
        if done is None or done.config != RunConfig.from_dict(_classes(given, done)):
            shutil.rmtree(folder, ignore_errors=True)
            self._train(RunConfig.from_dict(given))
        return folder

    def score(
        self, folder: Path, data: Data, tokens: int | None = 64, patch_size: int | None = None, native: bool = False
    ) -> Score:
        """The held-out score of a finished run's averaged weights, kept beside it."""
        kept = folder / "held-out.json"
        scores = json.loads(kept.read_text()) if kept.exists() else {}
        key = f"{data.test} {tokens} {patch_size} {native}"
        if key not in scores:
            saved = checkpoint.open_checkpoint(folder)
            score = evaluate(
                saved.model(),
                data.test,
                saved.config.loader,
                tokens=None if native else tokens,
                patch_size=patch_size,
                classes=saved.classes,
            )
            scores[key] = score.to_dict()
            kept.write_text(json.dumps(scores, indent=1))
        return Score(**scores[key])

    def flops(self, folder: Path) -> float:
        """Operations of a run's training."""
        return float([e for e in read_log(folder) if e["kind"] == "train"][-1]["flops_seen"])

    def reach(self, name: str, seed: int, goal: float, given: Table, every: int, limit: float) -> float:
        """Training operations after which a run first reaches an accuracy, looked at each `every` steps.

        Infinite where it does not within `limit` operations, or within the table's steps. A run that is not near the goal
        when two thirds of the limit are spent is given up.
        """
        folder = self.out / "runs" / f"{name}-{seed}"
        kept = folder / "reached.json"
        note = {"goal": goal, "steps": given["train"]["steps"], "every": every}
        if kept.exists():
            found = json.loads(kept.read_text())
            # A run that was given up says nothing of a wider limit.
            if {key: found[key] for key in note} == note and (found["flops"] or found["limit"] >= limit):
                return float(found["flops"]) if found["flops"] and found["flops"] <= limit else float("inf")
        shutil.rmtree(folder, ignore_errors=True)
        given["train"] |= {"out": str(folder), "eval_every": every, "log_every": every}
        self._train(RunConfig.from_dict(given), goal, limit)
        entries = list(read_log(folder))
        seen = {e["step"]: e["flops_seen"] for e in entries if e["kind"] == "train"}
        hits = [e["step"] for e in entries if e["kind"] == "eval" and e["accuracy"] >= goal]
        flops = seen[hits[0]] if hits else None
        kept.write_text(json.dumps({**note, "limit": limit, "flops": flops}))
        return flops or float("inf")

    def _train(self, run: RunConfig, goal: float | None = None, limit: float = float("inf")) -> None:
        print(f"training {run.train.out}", file=sys.stderr, flush=True)
        Path(run.train.out).mkdir(parents=True, exist_ok=True)
        with open_loader(run, self.world) as loader:
            trainer = _Until(run, loader, self.world, None)
            trainer.goal, trainer.limit = goal, limit
            try:
                trainer.run()
            except KeyboardInterrupt:
                if trainer.stop_after is None:
                    raise


class _Until(Trainer):
    """A trainer that stops once its held-out accuracy is reached, or no longer to be hoped for."""

    goal: float | None = None
    limit = float("inf")

    def _evaluate(self, log: RunLog) -> list[Row]:
        rows = super()._evaluate(log)
        if self.goal is not None:
            best = max(row.accuracy for row in rows if isinstance(row, Score))
            hopeless = self.flops > self.limit * 2 / 3 and best < self.goal * 0.95
            if best >= self.goal or hopeless or self.flops > self.limit:
                self.stop_after = self.step + 1
        return rows


def _classes(given: Table, done: checkpoint.Checkpoint | None) -> Table:
    """The table with the classes that the data filled in, to compare with what was saved."""
    classes = 0 if done is None else done.config.model.classes
    return {**given, "model": {**given["model"], "classes": classes}}
