"""The paper's main claim at small scale: training operations to an accuracy, packed against fixed resolution.

In: a `Kit`. Out: one `Line`. Apart from the other claims, since both sides must be tuned alike: each has three sides, with and
without token drop, and three learning rates; each choice races against the best of its own family on the first seed, and
those near the best run on every seed. A run that has spent far more than the best cannot win and is given up.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

from claims_kit import PATCH, SIDES, Figure, Kit, Line

GOAL = 0.98
LOW = 12
"""Smallest side of a packed image, in pixels: below three patches a side, little of a digit is left."""

RATES = (4e-3, 2e-3, 8e-3)
"""Learning rates; every choice runs at the first, those near the best at the others."""

SLACK = 1.5
"""What may cost so many times the best of its family stays in the race."""

WORST = 3.0
"""A packed run that has spent so many times the best fixed side's operations is given up: the claim is lost by then."""

FINALISTS = 2
"""Choices of a family that run on every seed."""

DROP: dict[str, Any] = {"kind": "constant", "rate": 0.5}


@dataclass(frozen=True)
class Choice:
    """One way of training.

    Attributes:
        family: `packed` (the side drawn from `LOW` to `side`, aspect ratio kept) or `fixed` (all images `side` × `side`).
        side: in pixels.
        drop: half of the patches are dropped.
        rate: learning rate.
    """

    family: str
    side: int
    drop: bool
    rate: float

    def __str__(self) -> str:
        size = f"{LOW} to {self.side} px" if self.family == "packed" else f"{self.side} px"
        return f"{size}{', half dropped' if self.drop else ''}, rate {self.rate:g}"


def cost(kit: Kit, choice: Choice, seed: int, limit: float) -> float:
    """Training operations to `GOAL`, in 10¹²; infinite beyond `limit`."""
    tokens = (choice.side // PATCH) ** 2
    data = kit.data(seed)
    plan: dict[str, Any] = {"max_tokens": tokens, "drop": DROP if choice.drop else {"kind": "none"}}
    if choice.family == "fixed":
        data = data.squared(choice.side)
        plan["resolution"] = {"kind": "native"}
    else:
        plan["resolution"] = {"kind": "uniform", "low": LOW, "high": choice.side}
    # One sequence a step: for both families the fewest operations lead to the goal so.
    changes: dict[str, dict[str, Any]] = {
        "data": {"batch_size": 1},
        "plan": plan,
        "train": {"schedule": "constant", "learning_rate": choice.rate, "warmup": 100, "eval_tokens": [tokens]},
    }
    given = kit.table(data, kit.steps(6000), seed, changes)
    name = f"reach-{choice.family}-{choice.side}-{'drop' if choice.drop else 'whole'}-{choice.rate:g}"
    return kit.reach(name, seed, GOAL, given, max(2, kit.steps(20)), limit * 1e12) / 1e12


def race(kit: Kit, family: str, most: float) -> dict[Choice, float]:
    """Costs on the first seed of the choices that stayed in the race, none above `most`."""
    found: dict[Choice, float] = {}

    def limit() -> float:
        return min(most, SLACK * min(found.values(), default=float("inf")))

    for rate in RATES:
        # Dropping first: it is cheaper, so that the others meet a tight limit.
        variants = [(c.drop, c.side) for c in found if found[c] <= limit()] if found else None
        for drop, side in dict.fromkeys(variants or itertools.product((True, False), SIDES)):
            choice = Choice(family, side, drop, rate)
            found[choice] = cost(kit, choice, 0, limit())
    return {choice: flops for choice, flops in found.items() if flops <= limit()}


def packing(kit: Kit) -> list[Line]:
    """Operations to first reach 98 %: packed at drawn sizes against the best fixed-resolution ViT, equally tuned."""
    best: dict[str, tuple[Choice, Figure]] = {}
    most = float("inf")
    for family in ("fixed", "packed"):
        raced = race(kit, family, most)
        finalists = sorted(raced, key=raced.__getitem__)[:FINALISTS]
        if not finalists:
            base = best["fixed"][1]
            text = f"more than {WORST:g} of the compute: no packed run reached it within that of {base.mean:.2f} TFLOP"
            return [Line("packing against the best fixed side, compute to 98 %", "1/4 (goal 1/2)", text, False)]
        costs = {c: Figure(tuple(cost(kit, c, seed, float("inf")) for seed in kit.seeds)) for c in finalists}
        choice = min(costs, key=lambda c: costs[c].mean)
        best[family] = choice, costs[choice]
        most = WORST * costs[choice].mean
    (ours, mine), (theirs, base) = best["packed"], best["fixed"]
    share = mine.mean / base.mean
    text = (
        f"{share:.2f} of the compute: packed {mine.mean:.2f} ± {mine.spread:.2f} TFLOP ({ours}), "
        f"fixed {base.mean:.2f} ± {base.spread:.2f} ({theirs})"
    )
    return [Line("packing against the best fixed side, compute to 98 %", "1/4 (goal 1/2)", text, share <= 0.5)]
