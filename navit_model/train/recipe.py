"""How a set of some hundred to some ten thousand images is best trained: a value for each key, and why.

In: how many images, what sizes were chosen, whether weights are there. Out: choices for `[train]`, `[plan]` and `[model]`.
Apart from `settings`, which says what is allowed.
"""

from __future__ import annotations

from dataclasses import dataclass

from navit_loader.shown import counted
from navit_loader.suggest import Choice


@dataclass(frozen=True, slots=True)
class Given:
    """What a recipe depends on.

    Attributes:
        images: that are learnt.
        held_out: images that are scored.
        step_images: of a step, about.
        tokens: of one image at most, prefix tokens left out.
        steps: asked for; 0 chooses.
        pretrained: weights are there to start from.
        sigmoid: images have several labels, or none as a fact.
        numbers: numbers are to be predicted, in the place of classes.
        precision: what the device is quickest in.
        best: whether the best step is to be kept; None chooses.
    """

    images: int
    held_out: int
    step_images: float
    tokens: int
    steps: int
    pretrained: bool
    sigmoid: bool
    numbers: bool
    precision: str
    best: bool | None = None


def recipe(given: Given) -> list[Choice]:
    """The choices."""
    n, old = given.images, given.pretrained
    # From weights each image of a small set is seen some 40 times; from nothing that takes many more.
    passes = min(40.0, max(10.0, 20_000 / n)) if old else min(300.0, max(30.0, 150_000 / n))
    steps = given.steps or max(50, round(n * passes / given.step_images))
    # Scoring an image over all budgets costs about a third more than learning it at drawn sizes.
    allowed = steps * given.step_images / (12 * given.held_out)
    often = -(-steps // int(min(10, max(2, allowed))))
    evaluations = -(-steps // often)
    cost = "a tenth of the time at most" if allowed >= 2 else "the fewest, though more than a tenth of the time"
    found = [
        Choice("plan.crop.kind", "random_resized", "another part of each image each time"),
        Choice("plan.crop.scale", [0.5, 1.0] if old else [0.3, 1.0], "of its area; small sets bear no small crops"),
        Choice("plan.crop.flip", 0.5, "mirrored left to right; 0 where that changes the class, as in text"),
        Choice("train.steps", steps, f"each image some {steps * given.step_images / n:.0f} times"),
        Choice("train.warmup", max(1, steps // 10), "a tenth of the steps"),
        Choice("train.schedule", "cosine", "ends at nothing, so that the last weights are settled"),
        Choice(
            "train.learning_rate", 3e-4 if old else 1e-3, "low, since the weights are good" if old else "from nothing"
        ),
        Choice("train.weight_decay", 0.05, "usual for AdamW"),
        Choice("train.head_weight_decay", 0.05, "the paper's 3.0 is for hundreds of millions of images"),
        *_target(given),
        Choice("train.ema", round(min(0.9999, max(0.5, 1 - 20 / steps)), 4), "an average over the last twentieth"),
        Choice("train.eval_every", often, f"{counted(evaluations, 'time')} in all, {cost}"),
        Choice("train.checkpoint_every", often, "as often; navit-model fit goes on from the last"),
        *_ending(given, evaluations),
        Choice("train.log_every", max(1, min(20, often)), "lines of the log"),
        Choice("train.eval_tokens", _budgets(given.tokens), "a quarter, half and all of the tokens of an image"),
    ]
    if given.precision != "fp32":
        found.append(Choice("train.precision", given.precision, "the device has it"))
    if old:
        return [*found, Choice("train.layer_decay", 0.75, "what lies near the pixels needs the least change")]
    width, depth, heads, why = next(shape for most, shape in _SHAPES if n < most)
    return [
        *found,
        Choice("model.width", width, f"a small model for {n:,} images: {why}"),
        Choice("model.depth", depth, "blocks"),
        Choice("model.heads", heads, "each sees an equal part of the width"),
    ]


DROPPED = 0.25
"""Of the tokens of an image in a step, from weights: images of a small set are seen so often that each is seen whole."""

SURE = 400
"""Images, from which on evaluations are told apart: of 100 a score is uncertain by 5 points, of 400 by 2.5, while the last half
of a run wins fewer; the best of ten such scores is luck, and the end of the schedule is not."""


def _ending(given: Given, evaluations: int) -> list[Choice]:
    """Which weights are taken, and when a run ends."""
    if given.best is False:
        return [Choice("train.patience", 0, "nothing to wait for without train.best")]
    if given.best is None and given.held_out < SURE:
        why = f"{given.held_out:,} held-out images are too few to choose a step by; the last weights are settled"
        return [Choice("train.best", False, why), Choice("train.patience", 0, "nor to end the run by")]
    return [
        Choice("train.best", True, "weights of the best evaluation are kept, and used"),
        Choice(
            "train.patience",
            max(1, evaluations // 2),
            "half of the evaluations without a better score, and the run ends",
        ),
    ]


_SHAPES = (
    (5_000, (128, 6, 4, "a larger one would learn them by heart")),
    (100_000, (192, 12, 3, "ViT-Ti")),
    (float("inf"), (384, 12, 6, "ViT-S")),
)


def _target(given: Given) -> list[Choice]:
    """What is learnt of an image."""
    if given.numbers:
        return [Choice("train.task", "regression", "labels are numbers to be predicted")]
    old, why = given.pretrained, "images have several labels, or none as a fact"
    return [
        Choice("train.loss", *(("sigmoid", why) if given.sigmoid else ("softmax", "one label an image"))),
        Choice("train.label_smoothing", 0.1, "labels of people are not all right"),
        Choice("train.mix.mixup", 0.2 if old else 0.8, "images blended within a sequence, more so from nothing"),
        Choice("train.mix.cutmix", 1.0, "parts of one image in another"),
        Choice("train.mix.probability", 0.5 if old else 0.8, "of an image to be mixed"),
    ]


def _budgets(tokens: int) -> list[int]:
    return sorted({max(1, tokens // 4), max(1, tokens // 2), tokens})
