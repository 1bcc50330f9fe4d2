"""Which evaluation of a run was the best, and how many came after it without being better.

In: the score of each evaluation, in the order of steps. Out: `Best`, which every checkpoint holds, so that a run that goes on
decides as one that was never stopped. Apart from the trainer, which keeps the weights and ends the run.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Best:
    """The best so far.

    Attributes:
        step: of the best evaluation.
        tokens: the budget that was scored.
        score: what was scored; higher is better.
        waited: evaluations since, none of them better.
        evaluated: step of the last evaluation.
    """

    step: int
    tokens: int
    score: float
    waited: int = 0
    evaluated: int = 0


def after(best: Best | None, step: int, tokens: int, score: float) -> Best:
    """The best once `step` was evaluated too; of equal scores the earlier one.

    A step that was counted before is not counted again: a run that goes on from a checkpoint before its best one comes by
    there a second time. A score at another budget cannot be compared, and is the first of its kind.
    """
    if best is None or tokens != best.tokens:
        return Best(step, tokens, score, evaluated=step)
    if step <= best.evaluated:
        return best
    if score > best.score:
        return Best(step, tokens, score, evaluated=step)
    return replace(best, waited=best.waited + 1, evaluated=step)
