"""Weights of other libraries' models, taken name by name, so that nothing is lost unseen.

In: the weights of a model of timm or transformers, in memory or in a file. Out: those of a NaViT of the same function, in
parts of a block each, so that no second copy of all of them is ever held. A name that is missing, or one that is left over,
is an error: then the model computes something that a NaViT does not. Apart from `from_timm` and `from_transformers`, which
know the names of their library.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from navit_loader.errors import ModelError

from ..config import NaViTConfig

Weights = dict[str, Tensor]
Taken = tuple[NaViTConfig, Iterator[Weights]]
"""A configuration, and the weights that go with it, part by part."""


class OtherModel:
    """The weights of a model to read from; `taken` remembers which were used."""

    def __init__(self, name: str, weights: Mapping[str, Tensor], strip: str = "") -> None:
        """Reads `weights` of a model called `name`; `strip` is a prefix that some names bear and others do not."""
        self.name, self.weights = name, weights
        self.names = {key.removeprefix(strip): key for key in weights}
        self.taken: set[str] = set()

    def take(self, name: str) -> Tensor:
        """One weight in float32, which may be the model's own memory: what is added or multiplied here loses nothing to halves.

        Raises:
            ModelError: the model has none of this name.
        """
        return self.own(name).detach().float()

    def own(self, name: str) -> Tensor:
        """The same as the model has it: in its dtype, with its gradient."""
        if name not in self.names:
            raise ModelError(f"{self.name} has no weight '{name}'; this variant is not one that NaViT can take over")
        self.taken.add(name)
        return self.weights[self.names[name]]

    def has(self, name: str) -> bool:
        """Whether the model has a weight of this name."""
        return name in self.names

    def layer(self, theirs: str, ours: str, bias: bool | None = None) -> Weights:
        """Weight and bias of a linear or norm layer under our name; None takes the bias where there is one."""
        found = {f"{ours}.weight": self.take(f"{theirs}.weight")}
        if self.has(f"{theirs}.bias") if bias is None else bias:
            found[f"{ours}.bias"] = self.take(f"{theirs}.bias")
        return found

    def joined(self, theirs: Iterable[str], ours: str) -> Weights:
        """Several linear layers as one, their outputs one after another; one without a bias has one of 0 beside others."""
        parts = [self.layer(name, "") for name in theirs]
        found = {f"{ours}.weight": torch.cat([part[".weight"] for part in parts])}
        if any(".bias" in part for part in parts):
            zeros = (part[".weight"].new_zeros(len(part[".weight"])) for part in parts)
            found[f"{ours}.bias"] = torch.cat(
                [part.get(".bias", zero) for part, zero in zip(parts, zeros, strict=True)]
            )
        return found

    def finish(self, unused: tuple[str, ...] = ()) -> None:
        """Refuses a model with weights that nobody took, save those whose names start with one of `unused`.

        Raises:
            ModelError: names up to five of them.
        """
        left = [name for name in self.names if name not in self.taken and not name.startswith(unused)]
        if left:
            more = f" and {len(left) - 5} more" if len(left) > 5 else ""
            raise ModelError(f"{self.name} has weights that NaViT has no place for: {', '.join(left[:5])}{more}")


@dataclass(frozen=True, slots=True)
class Turning:
    """Which channels of a head another model turns together, and with which axis.

    Attributes:
        pairs: of K channels, `halves`: (p, p + K/2); `neighbours`: (2p, 2p + 1); `quarters`: (p, p + K/4) of each half.
        x_first: the first half of the pairs turns with x, not with y.
        alternating: not halves of the pairs turn with an axis, but every other pair; the first is that of the first half.
    """

    pairs: Literal["halves", "neighbours", "quarters"] = "halves"
    x_first: bool = False
    alternating: bool = False

    def order(self, channels: int) -> Tensor:
        """For each of our channels the number of theirs, i64 `[K]`."""
        half, pair = channels // 2, torch.arange(channels // 2)
        if self.x_first:
            pair = pair.roll(channels // 4)
        if self.alternating:
            pair = pair % (half // 2) * 2 + pair // (half // 2)
        if self.pairs == "neighbours":
            return torch.cat([2 * pair, 2 * pair + 1])
        if self.pairs == "quarters":
            first = pair + pair // (half // 2) * (half // 2)
            return torch.cat([first, first + half // 2])
        return torch.cat([pair, pair + half])


def turned(found: Weights, heads: int, turning: Turning | None) -> Weights:
    """A block's weights with the channels of queries and keys in our order; scores do not change with it."""
    if turning is None or turning == Turning():
        return found
    result = {}
    for name, value in found.items():
        if ".qkv." in name:
            q, k, v = value.chunk(3)
            order = turning.order(len(q) // heads)
            q, k = (part.reshape(heads, -1, *part.shape[1:])[:, order].flatten(0, 1) for part in (q, k))
            value = torch.cat([q, k, v])
        elif ".q_norm." in name or ".k_norm." in name:
            value = value[turning.order(len(value))]
        result[name] = value
    return result


def kernel(weight: Tensor) -> Tensor:
    """A patch embedding's kernel `[D, 3, P, P]`, as a convolution has it, to our `[D, P·P·3]`, channels last.

    One over several frames, `[D, 3, F, P, P]`, sees the same image in each: their sum is the same.
    """
    if weight.ndim == 5:
        weight = weight.sum(2)
    return weight.permute(0, 2, 3, 1).flatten(1)


def query(latent: Tensor, weight: Tensor, bias: Tensor, heads: int) -> Tensor:
    """The query of attention pooling, `[H, K]`: a learned vector's projection is itself just a learned vector."""
    return (latent.flatten() @ weight.T + bias).view(heads, -1)


def need(ok: bool, name: str, what: str, value: object, known: str) -> None:
    """Refuses an option of the source model that a NaViT does not have."""
    if not ok:
        raise ModelError(f"{name} with {what} = {value!r} cannot be taken over; NaViT has {known}")


def one_eps(model: nn.Module, name: str, but: Callable[[str], bool] = lambda name: False) -> tuple[str, float]:
    """Kind and ε of a model's norms, `layer` or `rms`; those whose names are `but` for do not count.

    Raises:
        ModelError: another kind, or several: a NaViT has one.
    """
    kinds: dict[tuple[str, float], str] = {}
    for part, module in model.named_modules():
        kind = type(module).__name__
        if "norm" not in kind.lower() or not hasattr(module, "weight") or but(part):
            continue
        known = "rms" if "rms" in kind.lower() else "layer" if "layernorm" in kind.lower() else ""
        need(bool(known), name, part, kind, "LayerNorm and RMSNorm")
        eps: Any = getattr(module, "eps", None) or getattr(module, "variance_epsilon", None)
        kinds.setdefault((known, float(eps or torch.finfo(torch.float32).eps)), part)
    need(len(kinds) == 1, name, "norms", sorted(kinds), "one kind with one epsilon")
    return next(iter(kinds))
