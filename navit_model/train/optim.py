"""AdamW with the paper's two weight decays, and a moving average of the weights.

In: a model and `[train]`. Out: an optimiser whose groups carry their decay, and `Average`. Apart from the loop, since
which parameter belongs to which group is a decision of the recipe.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .settings import TrainConfig

HEAD = "head"
"""The module of this name, anywhere, is the classifier."""


def adamw(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over three groups: matrices of the body, matrices of the head, and all that is no matrix, undecayed.

    Scales of norms, biases and lone vectors are not decayed. Position tables, prefix tokens, queries of pooling and the
    patch embedding are matrices and are.
    """
    body: list[Tensor] = []
    head: list[Tensor] = []
    rest: list[Tensor] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            group = rest if parameter.ndim < 2 else head if HEAD in name.split(".") else body
            group.append(parameter)
    groups = [
        {"params": body, "weight_decay": config.weight_decay},
        {"params": head, "weight_decay": config.head_weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [g for g in groups if g["params"]], lr=config.learning_rate, betas=config.betas, fused=True
    )


class Average:
    """Exponential moving average of a model's parameters and buffers, in fp32 on their device.

    The decay is warmed up as min(decay, (1 + n)/(10 + n)) after n updates, so that a short run forgets its first weights.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.weights: dict[str, Tensor] = {k: v.detach().clone() for k, v in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Moves the average towards the model's present weights."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        now = model.state_dict()
        floats = [k for k, v in self.weights.items() if v.is_floating_point()]
        torch._foreach_lerp_([self.weights[k] for k in floats], [now[k] for k in floats], 1 - decay)
        for key in self.weights.keys() - set(floats):
            self.weights[key].copy_(now[key])
