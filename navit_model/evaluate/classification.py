"""How good a model is, at one or several token budgets.

In: a model, an index, the run's configuration. Out: a `Score` per budget: accuracy, calibration, throughput. Each image is
seen once over all ranks, in order, at the most patches that fit the budget, with nothing dropped and nothing random.
An image that could not be read counts as wrong. One with several labels is right where the likeliest class is among them; one
that is known to be of no class, which only a model of sigmoids is asked about, where no class reaches one half.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from navit_loader import PackedLoader
from navit_loader.batch import NO_CLASS, PackedBatch
from navit_loader.config import LoaderConfig
from navit_loader.errors import ModelError
from navit_loader.progress import watched

from ..world import World, halved
from .cascade import Answers
from .tally import Tally


@dataclass(frozen=True, slots=True)
class Score:
    """The result at one token budget.

    Attributes:
        tokens: tokens of one image at most.
        mean_tokens: tokens of one image on average.
        patch_size: P.
        rows: images of the index.
        images: labelled ones, failed ones among them.
        failed: those that could not be read.
        accuracy: share of `images` of which the likeliest class is a label.
        ece: expected calibration error of the likeliest class, 30 bins, over the images that were read.
        images_per_s: through loader and model.
        tokens_per_s: the same, in tokens.
        padding: share of slots that held no image.
        outside: whether the budget lies outside the sizes seen in training.
    """

    tokens: int
    mean_tokens: float
    patch_size: int
    rows: int
    images: int
    failed: int
    accuracy: float
    ece: float
    images_per_s: float
    tokens_per_s: float
    padding: float
    outside: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        """Accuracy and budget, in a line of a run's output."""
        others = left_out(self.images, self.failed, self.rows, "label")
        return f"{self.accuracy:.2%} of {self.images} held-out images at {self.tokens} tokens{others}"


def of_all(images: int, failed: int, rows: int) -> str:
    """How many images were scored; where that is not all of the index, of how many."""
    read = images - failed
    return f"{rows:,}" if read == rows else f"{read:,} of {rows:,}"


def left_out(images: int, failed: int, rows: int, without: str) -> str:
    """What became of the images of an index that were not scored, to follow a score; empty where all were.

    Args:
        images: those that a score is of, failed ones among them.
        failed: those that could not be read.
        rows: all of the index.
        without: what the others have not.
    """
    parts = {"could not be read and count as wrong": failed, f"have no {without}": rows - images}
    said = ", ".join(f"{n:,} {what}" for what, n in parts.items() if n)
    return f"; {of_all(images, failed, rows)} images scored: {said}" if said else ""


def trained_tokens(config: LoaderConfig) -> tuple[int, int]:
    """Fewest and most tokens of one image before drop that the training sizes lead to, whatever P."""
    plan = config.plan
    cap = plan.max_tokens - plan.prefix_tokens
    if plan.resolution.kind in ("native", "budget", "smart"):
        return 1, cap
    low = max(1, plan.resolution.low // max(plan.patch_sizes)) ** 2
    high = max(1, plan.resolution.high // min(plan.patch_sizes)) ** 2
    if plan.resolution.kind == "fixed":
        low = max(1, plan.resolution.high // max(plan.patch_sizes)) ** 2
    return min(low, cap), min(high, cap)


def predict(model: nn.Module, batch: PackedBatch, device: torch.device, sigmoid: bool = False) -> Tensor:
    """Class probabilities, fp32 `[B, E, classes]` on `device`; rows whose status is not `OK` mean nothing.

    Args:
        model: maps a batch on `device` to logits `[B, E, classes]`.
        batch: as the loader gives it.
        device: where to compute.
        sigmoid: the model was trained with one sigmoid per class.
    """
    with halved(device):
        logits: Tensor = model(batch.to(device)).float()
    return logits.sigmoid() if sigmoid else logits.softmax(-1)


def evaluate(
    model: nn.Module,
    index: str,
    config: LoaderConfig,
    *,
    tokens: int | None = None,
    patch_size: int | None = None,
    world: World | None = None,
    sigmoid: bool = False,
    classes: Sequence[str] | None = None,
) -> Score:
    """The score of `judge`; see there."""
    score, _ = judge(
        model,
        index,
        config,
        tokens=tokens,
        patch_size=patch_size,
        world=world,
        sigmoid=sigmoid,
        classes=classes,
    )
    return score


def held_out(
    index: str,
    config: LoaderConfig,
    *,
    tokens: int | None = None,
    patch_size: int | None = None,
    world: World | None = None,
    sigmoid: bool = False,
    classes: Sequence[str] | None = None,
) -> PackedLoader:
    """The images that `judge` scores, opened; see there for arguments and errors. `plan.filter` chose what was learnt, and is
    not applied."""
    plan = config.for_evaluation(max_tokens=tokens, patch_size=patch_size)
    loader = PackedLoader(index, plan, rank=world.rank if world else 0, world_size=world.size if world else 1)
    try:
        if classes is not None and list(loader.classes) != list(classes):
            raise ModelError(other_classes(index, loader.classes, classes))
        labels = np.concatenate(loader.engine.indexes[0].columns()["labels"])
        first = labels[:: max(loader.engine.label_width, 1)]
        if not ((first >= 0) | (sigmoid & (first == NO_CLASS))).any():
            raise ModelError(f"'{index}' has no labelled images; index a folder with one folder per class")
    except BaseException:
        loader.close()
        raise
    return loader


@torch.inference_mode()
def judge(
    model: nn.Module,
    index: str,
    config: LoaderConfig,
    *,
    tokens: int | None = None,
    patch_size: int | None = None,
    world: World | None = None,
    sigmoid: bool = False,
    classes: Sequence[str] | None = None,
    keep: int = 0,
) -> tuple[Score, Answers]:
    """Scores a model on a labelled index, and keeps what it said of each image.

    Args:
        model: the model, on the world's device, in evaluation mode.
        index: path of an index with labels.
        config: the training run's configuration.
        tokens: budget of one image; None takes the training cap and never scales up.
        patch_size: P; None takes the first of `plan.patch_sizes`.
        world: the ranks that share the work.
        sigmoid: see `predict`.
        classes: the classes that the model knows, which must be those of the index.
        keep: classes of the model, to keep all probabilities and labels for `details`, 4 bytes a class and image; 0 keeps none.

    Raises:
        IndexFileError: the index cannot be used.
        ModelError: it has other classes, or no labels; or the model's answers are no numbers.
    """
    world = world or World(0, 1, next(model.parameters()).device)
    low, high = trained_tokens(config)
    device = world.device
    slots = filled = 0
    asked: dict[str, Any] = {"tokens": tokens, "patch_size": patch_size, "sigmoid": sigmoid, "classes": classes}
    with held_out(index, config, world=world, **asked) as loader:
        plan, rows = loader.config, loader.engine.indexes[0].num_rows
        tally = Tally(rows, device, sigmoid=sigmoid, keep=keep, labels=max(loader.engine.label_width, 1))
        start = time.perf_counter()
        for batch in watched(loader, rows // world.size):
            tally.add(batch, predict(model, batch, device, sigmoid))
            slots += batch.segment_ids.size
            filled += batch.num_tokens
        seconds = time.perf_counter() - start
    world.meet()
    counts = world.sum(torch.tensor([slots, filled], dtype=torch.float64, device=device))
    answers = tally.end(world, index)
    score = Score(
        tokens=tokens_of(config, tokens),
        mean_tokens=float(counts[1]) / max(tally.seen, 1),
        patch_size=plan.plan.patch_sizes[0],
        rows=rows,
        images=int(tally.read + tally.failed),
        failed=int(tally.failed),
        accuracy=tally.accuracy,
        ece=tally.ece,
        images_per_s=tally.seen / seconds,
        tokens_per_s=float(counts[1]) / seconds,
        padding=1.0 - float(counts[1] / counts[0]),
        outside=tokens is not None and not low <= tokens <= high,
    )
    return score, answers


def tokens_of(config: LoaderConfig, tokens: int | None) -> int:
    """A budget, or the training cap where there is none."""
    return tokens if tokens is not None else config.plan.max_tokens - config.plan.prefix_tokens


def score_table(scores: Sequence[Score]) -> str:
    """The scores as lines of text; budgets outside the trained sizes carry a star."""
    several = len({s.patch_size for s in scores}) > 1
    head = (
        *(("patch",) if several else ()),
        "tokens",
        "accuracy",
        "ECE",
        "images",
        "failed",
        "images/s",
        "tokens/s",
        "padding",
    )
    rows = [
        (
            *((f"{s.patch_size}",) if several else ()),
            f"{s.tokens}{'*' if s.outside else ''}",
            f"{s.accuracy:.2%}",
            f"{s.ece:.3f}",
            of_all(s.images, s.failed, s.rows),
            f"{s.failed:,}",
            f"{s.images_per_s:,.0f}",
            f"{s.tokens_per_s:,.0f}",
            f"{s.padding:.1%}",
        )
        for s in scores
    ]
    return aligned(head, rows, any(s.outside for s in scores))


def aligned(head: Sequence[str], rows: Sequence[Sequence[str]], outside: bool) -> str:
    """A table in columns of equal width; with `outside`, a line that explains the star."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in (head, *rows)]
    if outside:
        lines.append("* outside the sizes seen in training")
    return "\n".join(lines)


def other_classes(index: str, found: Sequence[str], wanted: Sequence[str], train: str = "") -> str:
    """Why an index cannot be scored: its classes are not those of the model. `train` is the index that it learns from."""
    return (
        f"'{index}' has the classes {_few(found)}, the model was trained on {_few(wanted)}; index it again with --classes "
        f"{train or 'FROM, the index of its training'}"
    )


def _few(names: Sequence[str]) -> str:
    shown = ", ".join(map(str, names[:5]))
    return f"[{shown}{', …' if len(names) > 5 else ''}] ({len(names)})"
