"""How far a model's numbers are from the true ones, at one or several token budgets.

In: a model, an index with numbers, the run's configuration. Out: a `RegressionScore` per budget: mean absolute error and R²,
which scikit-learn computes. Each image is seen once over all ranks. Of one that could not be read the mean of the training is
taken for the answer: nothing better is known of it. Apart from classification, whose answers are right or wrong.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from navit_loader import PackedLoader
from navit_loader.batch import FAILED, OK, PackedBatch
from navit_loader.config import LoaderConfig
from navit_loader.errors import ModelError
from navit_loader.progress import watched

from ..losses.regression import numbers_of
from ..world import World, halved
from .classification import aligned, held_out, left_out, of_all, trained_tokens


@dataclass(frozen=True, slots=True)
class RegressionScore:
    """The result at one token budget.

    Attributes:
        tokens: tokens of one image at most.
        patch_size: P.
        rows: images of the index.
        images: those with a number, failed ones among them.
        failed: those that could not be read.
        mae: mean absolute error, in the unit of the numbers.
        r2: share of the numbers' variance that is explained; 0 is what their mean as the answer would get.
        images_per_s: through loader and model.
        outside: whether the budget lies outside the sizes seen in training.
    """

    tokens: int
    patch_size: int
    rows: int
    images: int
    failed: int
    mae: float
    r2: float
    images_per_s: float
    outside: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        """Both figures and the budget, in a line of a run's output."""
        others = left_out(self.images, self.failed, self.rows, "number")
        return f"R² {self.r2:.4f}, MAE {self.mae:.4g} on {self.images} held-out images at {self.tokens} tokens{others}"


@dataclass(frozen=True, slots=True)
class Numbers:
    """What was said of each scored image, by row.

    Attributes:
        rows: i64 `[N]`, of the index.
        truth: f64 `[N]`.
        told: f64 `[N]`, the answers.
        failed: bool `[N]`, those that could not be read.
    """

    rows: npt.NDArray[np.int64]
    truth: npt.NDArray[np.float64]
    told: npt.NDArray[np.float64]
    failed: npt.NDArray[np.bool_]


def predict_numbers(model: nn.Module, batch: PackedBatch, device: torch.device, mean: float, std: float) -> Tensor:
    """The numbers of a batch's images, f64 `[B, E]` on `device`; those whose status is not `OK` mean nothing.

    Args:
        model: maps a batch on `device` to `[B, E, 1]`.
        batch: as the loader gives it.
        device: where to compute.
        mean: of the numbers that were learnt.
        std: their standard deviation, which is the unit of what the model says.
    """
    with halved(device):
        outputs: Tensor = model(batch.to(device))
    return outputs[..., 0].double() * std + mean


def held_out_numbers(
    index: str,
    config: LoaderConfig,
    *,
    tokens: int | None = None,
    patch_size: int | None = None,
    world: World | None = None,
) -> PackedLoader:
    """The images that `judge_numbers` scores, opened; see there for arguments and errors."""
    try:
        import sklearn  # noqa: F401
    except ImportError:
        raise ModelError("scores of numbers need scikit-learn: pip install scikit-learn") from None
    loader = held_out(index, config, tokens=tokens, patch_size=patch_size, world=world)
    try:
        numbers = numbers_of(loader.classes, f"'{index}'").numpy()
        labels = np.concatenate(loader.engine.indexes[0].columns()["labels"])
        if len(np.unique(numbers[labels[labels >= 0]])) < 2:
            raise ModelError(f"'{index}' has one number alone, by which nothing can be scored; hold others out too")
    except BaseException:
        loader.close()
        raise
    return loader


@torch.inference_mode()
def judge_numbers(
    model: nn.Module,
    index: str,
    config: LoaderConfig,
    *,
    mean: float,
    std: float,
    tokens: int | None = None,
    patch_size: int | None = None,
    world: World | None = None,
) -> tuple[RegressionScore, Numbers]:
    """Scores a model, and keeps what it said of each image.

    Args:
        model: on the world's device, in evaluation mode; see `predict_numbers`.
        index: path of an index with numbers, of which there may be others than those that were learnt.
        config: the training run's configuration.
        mean: see `predict_numbers`.
        std: see `predict_numbers`.
        tokens: budget of one image; None takes the training cap and never scales up.
        patch_size: P; None takes the first of `plan.patch_sizes`.
        world: the ranks that share the images; None for this process alone, on the model's device.

    Raises:
        ModelError: the index has no numbers, or one alone; or an answer is NaN.
    """
    device = next(model.parameters()).device
    world = world or World(0, 1, device)
    with held_out_numbers(index, config, tokens=tokens, patch_size=patch_size, world=world) as loader:
        plan, rows = loader.config.plan, loader.engine.indexes[0].num_rows
        numbers = numbers_of(loader.classes, f"'{index}'").to(device)
        # By row: the answer, the truth, and whether it is one of those that were read, or failed.
        found = torch.zeros(4, rows, dtype=torch.float64, device=device)
        start = time.perf_counter()
        for batch in watched(loader, loader.engine.indexes[0].num_rows // (world.size if world else 1)):
            said = predict_numbers(model, batch, device, mean, std)
            status, label = (torch.from_numpy(a).to(device) for a in (batch.status, batch.labels[..., 0]))
            failed = status == FAILED
            there = ((status == OK) | failed) & (label >= 0)
            wanted = numbers[label.clamp(min=0)]
            answer = torch.where(failed, torch.full_like(said, mean), said)
            kept = torch.stack([answer, wanted, torch.ones_like(said), failed.double()])
            found[:, torch.from_numpy(batch.image_ids).to(device)[there]] = kept[:, there]
        seconds = time.perf_counter() - start
    world.meet()
    answer, wanted, counted, failures = world.sum(found).cpu()
    scored = counted > 0
    if not bool(answer.isfinite().all()):
        raise ModelError(
            f"the model has no answer (NaN) for some images of '{index}'; its weights ran away or are damaged: take an earlier "
            "checkpoint"
        )
    from sklearn import metrics

    truth, told = wanted[scored].numpy(), answer[scored].numpy()
    low, high = trained_tokens(config)
    score = RegressionScore(
        tokens=tokens if tokens is not None else config.plan.max_tokens - config.plan.prefix_tokens,
        patch_size=plan.patch_sizes[0],
        rows=rows,
        images=int(scored.sum()),
        failed=int(failures.sum()),
        mae=float(metrics.mean_absolute_error(truth, told)),
        r2=float(metrics.r2_score(truth, told)),
        images_per_s=len(truth) / seconds,
        outside=tokens is not None and not low <= tokens <= high,
    )
    return score, Numbers(np.flatnonzero(scored.numpy()), truth, told, failures[scored].numpy() > 0)


def regression_table(scores: Sequence[RegressionScore]) -> str:
    """The scores as lines of text; budgets outside the trained sizes carry a star."""
    several = len({s.patch_size for s in scores}) > 1
    head = (*(("patch",) if several else ()), "tokens", "R²", "MAE", "images", "failed", "images/s")
    rows = [
        (
            *((f"{s.patch_size}",) if several else ()),
            f"{s.tokens}{'*' if s.outside else ''}",
            f"{s.r2:.4f}",
            f"{s.mae:.4g}",
            of_all(s.images, s.failed, s.rows),
            f"{s.failed:,}",
            f"{s.images_per_s:,.0f}",
        )
        for s in scores
    ]
    return aligned(head, rows, any(s.outside for s in scores))
