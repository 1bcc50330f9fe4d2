"""Muon for the matrices of the blocks, beside AdamW for all else.

In: groups of parameters, of which those with `parts` are Muon's. Out: one optimiser, so that the loop, the scaler of the
loss and checkpoints see no difference. Apart from `optim`, which says which parameter belongs where. Torch's own Muon takes
whole parameters one by one: here queries, keys and values are matrices of their own, and equal shapes are done at once.

Muon (Keller Jordan, https://kellerjordan.github.io/posts/muon/): the update is the momentum with all its singular values
brought near 1, by five Newton-Schulz steps. Its size is that of Moonlight (arXiv 2502.16982, section 2.2): times
0.2·√(longer side), an update has the root mean square of AdamW's, so learning rate and decay of AdamW carry over.

Matrices that lie in one weight are brought there each by itself (`parts`: three of queries, keys and values, two of a gated
MLP). Together they would share one set of singular values, and those with small gradients get almost no update: after 60
steps of a model of four blocks, whose values had 50 times the gradient of its queries, a tenth of the values' update.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from .shard import like, whole

MOMENTUM = 0.95
STEPS = 5
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic whose repetition brings singular values to between about 0.7 and 1.2, the smallest ones quickest."""

AT_ONCE = 1 << 26
"""Elements of equal shape that are orthogonalised together at most."""


class Muon(torch.optim.AdamW):
    """AdamW but for the groups whose `parts` is not 0, which are Muon's: how many matrices lie above each other in each of its
    parameters. Its state is `momentum_buffer`. Parameters may be spread over the ranks: then each computes every update."""

    def __init__(self, groups: list[dict[str, Any]], *, lr: float, betas: tuple[float, float]) -> None:
        super().__init__(groups, lr=lr, betas=betas, fused=True)
        # Where a gradient overflowed, the scaler leaves out the step, and does not ask the kernel to.
        self._step_supports_amp_scaling = False

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step of both."""
        groups = self.param_groups
        try:
            self.param_groups = [group for group in groups if not group["parts"]]
            super().step()
        finally:
            self.param_groups = groups
        for matrices in _alike(groups, self.state):
            updates = orthogonal(torch.cat([matrix for _, _, matrix in matrices]))
            for parameter, group, matrix in matrices:
                update, updates = updates[: len(matrix)], updates[len(matrix) :]
                rows, columns = parameter.shape
                if rows // group["parts"] > columns:
                    update = update.mT
                size = 0.2 * max(update.shape[-2:]) ** 0.5
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.sub_(like(parameter, update.reshape(rows, columns)), alpha=group["lr"] * size)


_Matrix = tuple[Tensor, dict[str, Any], Tensor]


def _alike(groups: list[dict[str, Any]], state: Mapping[Tensor, dict[str, Tensor]]) -> Iterator[list[_Matrix]]:
    """(parameter, group, its matrices `[parts, m, n]` with m ≤ n) of Muon's parameters, those of equal m and n together; moves
    their momentum."""
    waiting: dict[tuple[int, ...], list[_Matrix]] = {}
    for group in groups:
        for parameter in group["params"] if group["parts"] else ():
            if parameter.grad is None:
                continue
            if "momentum_buffer" not in state[parameter]:
                state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
            momentum = state[parameter]["momentum_buffer"]
            momentum.lerp_(parameter.grad, 1 - MOMENTUM)
            # Nesterov's: a step ahead of the momentum.
            ahead = whole(parameter.grad.lerp(momentum, MOMENTUM))
            matrix = ahead.view(group["parts"], -1, ahead.shape[1])
            matrix = _quick(matrix.mT if matrix.shape[-2] > matrix.shape[-1] else matrix)
            alike = waiting.setdefault(tuple(matrix.shape[1:]), [])
            alike.append((parameter, group, matrix))
            if sum(found.numel() for *_, found in alike) >= AT_ONCE:
                yield waiting.pop(tuple(matrix.shape[1:]))
    yield from waiting.values()


def orthogonal(matrices: Tensor) -> Tensor:
    """Matrices `[N, m, n]`, m ≤ n, with the singular vectors that they have, and singular values near 1."""
    a, b, c = COEFFICIENTS
    x: Tensor = matrices / matrices.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def _quick(matrix: Tensor) -> Tensor:
    """In bfloat16, which suffices here, where the device computes in it; else as it is."""
    able = matrix.is_cuda and torch.cuda.is_bf16_supported(including_emulation=False)
    return matrix.bfloat16() if able else matrix
