"""Weights of other libraries' models, taken name by name, so that nothing is lost unseen.

In: the state dict of a model of timm or transformers. Out: the state dict of a NaViT of the same function. A name that is
missing, or one that is left over, is an error: then the model computes something that a NaViT does not. Apart from
`from_timm` and `from_transformers`, which know the names of their library.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from navit_loader.errors import ModelError

Weights = dict[str, Tensor]


class OtherModel:
    """The weights of a model to read from; `taken` remembers which were used."""

    def __init__(self, model: nn.Module, strip: str = "") -> None:
        """Reads the weights of `model`; `strip` is a prefix that some names bear and others do not."""
        self.name = type(model).__name__
        self.weights = {key.removeprefix(strip): value.detach() for key, value in model.state_dict().items()}
        self.taken: set[str] = set()

    def take(self, name: str) -> Tensor:
        """A copy of one weight.

        Raises:
            ModelError: the model has none of this name.
        """
        if name not in self.weights:
            raise ModelError(f"{self.name} has no weight '{name}'; this variant is not one that NaViT can take over")
        self.taken.add(name)
        found: Tensor = self.weights[name].clone()
        return found

    def has(self, name: str) -> bool:
        """Whether the model has a weight of this name."""
        return name in self.weights

    def layer(self, theirs: str, ours: str, bias: bool = True) -> Weights:
        """Weight and bias of a linear or norm layer under our name."""
        found = {f"{ours}.weight": self.take(f"{theirs}.weight")}
        if bias:
            found[f"{ours}.bias"] = self.take(f"{theirs}.bias")
        return found

    def joined(self, theirs: Iterable[str], ours: str, bias: bool = True) -> Weights:
        """Several linear layers as one, their outputs one after another."""
        parts = [self.layer(name, "", bias) for name in theirs]
        return {ours + key: torch.cat([part[key] for part in parts]) for key in parts[0]}

    def finish(self, unused: tuple[str, ...] = ()) -> None:
        """Refuses a model with weights that nobody took, save those whose names start with one of `unused`.

        Raises:
            ModelError: names up to five of them.
        """
        left = [name for name in self.weights if name not in self.taken and not name.startswith(unused)]
        if left:
            more = f" and {len(left) - 5} more" if len(left) > 5 else ""
            raise ModelError(f"{self.name} has weights that NaViT has no place for: {', '.join(left[:5])}{more}")


def kernel(weight: Tensor) -> Tensor:
    """A patch embedding's kernel `[D, 3, P, P]`, as a convolution has it, to our `[D, P·P·3]`, channels last."""
    return weight.permute(0, 2, 3, 1).flatten(1)


def query(latent: Tensor, weight: Tensor, bias: Tensor, heads: int) -> Tensor:
    """The query of attention pooling, `[H, K]`: a learned vector's projection is itself just a learned vector."""
    return (latent.flatten() @ weight.T + bias).view(heads, -1)


def need(ok: bool, name: str, what: str, value: object, known: str) -> None:
    """Refuses an option of the source model that a NaViT does not have."""
    if not ok:
        raise ModelError(f"{name} with {what} = {value!r} cannot be taken over; NaViT has {known}")
