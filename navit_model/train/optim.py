"""AdamW with the paper's two weight decays, perhaps Muon beside it, and a moving average of the weights.

In: a model and `[train]`. Out: an optimiser whose groups carry their decay and their share of the rate, what is frozen, and
`Average`. Apart from the loop, since which parameter belongs to which group is a decision of the recipe.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from navit_loader.schema import require

from ..model.encoder import Block, GatedMLP
from ..model.navit import NaViT
from ..model.text import TextTower
from .muon import Muon
from .settings import TrainConfig

HEAD = "head"
"""The module of this name, anywhere, is the classifier."""

EMBEDDING = ("patch_embed", "positions", "rotation", "prefix", "tokens", "places")
"""Parts of a tower before its blocks: the first of its layers."""


def optimiser(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """The optimiser of `train.optimiser`: AdamW over matrices of the body, matrices of the head, and all that is no matrix,
    undecayed; these for each layer where `train.layer_decay` gives it a rate of its own: `scale` of a group, times which the
    schedule's is taken.

    Scales of norms, biases and lone vectors are not decayed. Position tables, prefix tokens, queries of pooling and the
    patch embedding are matrices and are. With `muon` the matrices of the blocks are Muon's, with the decay of the body.
    """
    decays = {"body": config.weight_decay, "head": config.head_weight_decay, "rest": 0.0}
    below = _layers_behind(model) if config.layer_decay < 1 else {}
    parts = _matrices(model) if config.optimiser == "muon" else {}
    found: dict[tuple[int, str, int], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            kind = "rest" if parameter.ndim < 2 else "head" if HEAD in name.split(".") else "body"
            found.setdefault((below.get(name, 0), kind, parts.get(parameter, 0)), []).append(parameter)
    groups = [
        {"params": found[key], "weight_decay": decays[key[1]], "scale": config.layer_decay ** key[0], "parts": key[2]}
        for key in sorted(found)
    ]
    if config.optimiser == "muon":
        return Muon(groups, lr=config.learning_rate, betas=config.betas)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)


def moments(optimizer: torch.optim.Optimizer) -> dict[Tensor, tuple[str, ...]]:
    """What the optimiser keeps of each of its parameters, once it has moved."""
    return {
        parameter: ("momentum_buffer",) if group["parts"] else ("step", "exp_avg", "exp_avg_sq")
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


def _matrices(model: nn.Module) -> dict[Tensor, int]:
    """The matrices of all blocks, and how many lie above each other in each."""
    found: dict[Tensor, int] = {}
    for block in model.modules():
        if isinstance(block, Block):
            gated = isinstance(block.mlp, GatedMLP)
            weights = {block.qkv: 3, block.out: 1, block.mlp.up: 2 if gated else 1, block.mlp.down: 1}
            found |= {linear.weight: parts for linear, parts in weights.items()}
    return found


def freeze(model: NaViT, layers: int) -> None:
    """Leaves the first `layers` layers of the image model as they are; the embedding is the first. A merger, which no task
    reads, stays as it is too: ranks would wait for its gradients.

    Raises:
        ConfigError: it has fewer.
    """
    most = model.config.depth + 1
    require(layers <= most, "train.freeze", layers, f"at most {most}: the embedding and {most - 1} blocks")
    for name, behind in _layers_behind(model).items():
        if most - behind < layers or name.startswith(("merger.", "tap_mergers.")):
            model.get_parameter(name).requires_grad_(False)


def _layers_behind(model: nn.Module) -> dict[str, int]:
    """For each parameter of a tower the number of layers behind its own: depth + 1 for the embedding, 1 for the last block."""
    found = {}
    for tower, module in model.named_modules():
        if isinstance(module, NaViT | TextTower):
            for name, _ in module.named_parameters():
                part, _, rest = name.partition(".")
                layer = 0 if part in EMBEDDING else 1 + int(rest.split(".")[0]) if part == "blocks" else None
                behind = 0 if layer is None else module.config.depth + 1 - layer
                found[f"{tower}.{name}" if tower else name] = behind
    return found


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
