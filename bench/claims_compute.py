"""The paper's main claim at small scale: training operations to an accuracy, packed against fixed resolution.

In: a `Kit`. Out: `Line`s. Apart from the other claims, since both sides must be tuned alike: each has three sides and three
kinds of drop at one learning rate, and its two best of these have two more rates. All that is tuned on the first seed
alone; the winner of each family then runs on every seed. A run that has spent far more than the best of its family
is given up.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any

from claims_kit import PATCH, QUICK, Figure, Kit, Line

GOAL = 0.98

SIDES = {"fixed": (12, 16, 24), "packed": (14, 16, 24)}
"""In pixels: of fixed images, and the largest of packed ones. Digits have 8 × 8 pixels, so that larger views hold no more."""

LOW = 12
"""Smallest side of a packed image: sides from 8 px on took more operations, not fewer."""

RATES = (4e-3, 2e-3, 8e-3)
"""Learning rates; every choice runs at the first, the best at the others."""

TUNED = 2
"""Choices of a family that run at the other rates."""

SLACK = 1.5
"""A run that spends so many times the best of its family, on the first seed, is given up."""

WORST = 3.0
"""A packed run that has spent so many times the best fixed side's operations is given up: the claim is lost by then."""

DROPS: dict[str, dict[str, Any]] = {
    "half dropped": {"kind": "constant", "rate": 0.5},
    "drop falling": {
        "kind": "constant",
        "schedule": {"kind": "linear", "start": 0.75, "end": 0.0, "images": 30_000},
    },
    "whole": {"kind": "none"},
}
"""From the cheapest on, so that the others meet a tight limit."""


@dataclass(frozen=True)
class Choice:
    """One way of training.

    Attributes:
        family: `packed` (the side drawn from `LOW` to `side`, aspect ratio kept) or `fixed` (all images `side` × `side`).
        side: in pixels.
        drop: a name of `DROPS`.
        rate: learning rate.
    """

    family: str
    side: int
    drop: str
    rate: float

    @property
    def size(self) -> str:
        return f"{LOW} to {self.side} px" if self.family == "packed" else f"{self.side} px"

    def __str__(self) -> str:
        return f"{self.size}, {self.drop}, rate {self.rate:g}"


def cost(kit: Kit, choice: Choice, seed: int, limit: float) -> float:
    """Training operations to `GOAL`, in 10¹²; infinite beyond `limit`."""
    tokens = round((choice.side / PATCH) ** 2)
    data = kit.data(seed)
    # Short sequences, one a step: for both families the fewest operations lead to the goal so.
    plan: dict[str, Any] = {"sequence_length": 256, "max_images": 128, "max_tokens": tokens, "drop": DROPS[choice.drop]}
    if choice.family == "fixed":
        data = data.squared(choice.side)
        plan["resolution"] = {"kind": "native"}
    else:
        plan["resolution"] = {"kind": "uniform", "low": LOW, "high": choice.side}
    train = {"schedule": "constant", "learning_rate": choice.rate, "warmup": 100, "eval_tokens": [tokens]}
    given = kit.table(data, kit.steps(6000), seed, {**QUICK, "plan": plan, "train": train})
    name = f"reach-{choice.family}-{choice.side}-{choice.drop.replace(' ', '-')}-{choice.rate:g}"
    return kit.reach(name, seed, GOAL, given, max(2, kit.steps(40)), limit * 1e12) / 1e12


def race(kit: Kit, family: str, most: float) -> dict[Choice, float]:
    """Costs of a family's choices on the first seed; infinite for those that were given up."""
    found: dict[Choice, float] = {}

    def enter(choice: Choice) -> None:
        found[choice] = cost(kit, choice, 0, min(most, SLACK * min(found.values(), default=float("inf"))))

    for drop, side in itertools.product(DROPS, SIDES[family]):
        enter(Choice(family, side, drop, RATES[0]))
    for choice in sorted(found, key=found.__getitem__)[:TUNED]:
        for rate in RATES[1:]:
            enter(replace(choice, rate=rate))
    return found


def packing(kit: Kit) -> list[Line]:
    """Operations to first reach 98 %: packed at drawn sizes against the best fixed-resolution ViT, equally tuned."""
    claim, paper = "packing against the best fixed side, compute to 98 %", "1/4 (goal 1/2)"
    fixed = race(kit, "fixed", float("inf"))
    packed = race(kit, "packed", WORST * min(fixed.values()))
    both = {**fixed, **packed}
    ours, theirs = (min(found, key=found.__getitem__) for found in (packed, fixed))
    mine, base = (Figure(tuple(cost(kit, c, seed, float("inf")) for seed in kit.seeds)) for c in (ours, theirs))
    if base.mean == float("inf"):
        return [Line(claim, paper, f"the fixed side did not reach it on every seed ({theirs})", None)]
    share = mine.mean / base.mean
    text = (
        f"{share:.2f} of the compute: packed {mine.mean:.2f} ± {mine.spread:.2f} TFLOP ({ours}), "
        f"fixed {base.mean:.2f} ± {base.spread:.2f} ({theirs})"
    )
    # The best of each size, on the seed that all was tuned on.
    sizes: dict[str, Choice] = {}
    for choice in sorted(both, key=both.__getitem__):
        sizes.setdefault(f"{choice.family} {choice.size}", choice)
    table = ", ".join(
        f"{name} {both[c]:.2f} ({c.drop})" if both[c] < float("inf") else f"{name} given up"
        for name, c in sizes.items()
    )
    return [Line(claim, paper, text, share <= 0.5), Line("the same by size, TFLOP, first seed alone", "–", table, None)]
