"""The learning rate as a function of the step.

In: a step and the keys of `[train]`. Out: one number. A pure function, so that a resumed run needs no schedule state.
"""

from __future__ import annotations

import math

from .settings import TrainConfig


def learning_rate(step: int, config: TrainConfig) -> float:
    """Learning rate of the optimiser step number `step` (from 0).

    A linear warm-up reaches the peak after `warmup` steps. Then `cosine` falls to 0 at `steps`; `rsqrt` is
    peak·√(t/(step − warmup + t)) for t = `timescale`, which is the warm-up's length where it is 0 (arXiv 2106.04560; NaViT),
    and `constant` stays, both with a linear descent to 0 over the last `cooldown` steps.
    """
    warmup = max(config.warmup, 1)
    if step < config.warmup:
        return config.learning_rate * (step + 1) / warmup
    if config.schedule == "cosine":
        share = (step - config.warmup) / max(config.steps - config.warmup, 1)
        return config.learning_rate * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))
    rate = config.learning_rate
    if config.schedule == "rsqrt":
        scale = config.timescale or warmup
        rate *= math.sqrt(scale / (max(step, warmup) - warmup + scale))
    left = config.steps - step
    return rate * min(1.0, left / config.cooldown) if config.cooldown else rate
