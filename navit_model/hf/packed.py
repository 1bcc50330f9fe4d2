"""A NaViT's encoder over weights that stay a tower's own: no second copy, no other names in a file.

In: a tower of transformers, tokens of its patch embedding, and where they stand. Out: encoded tokens. Whatever our layers hold
otherwise (queries, keys and values as one) is joined from the tower's weights when a block runs, and let go behind it; so
training, `save_pretrained` and adapters of the rest go on as if nothing had happened. Apart from `towers`, which knows what
each family's forward takes and gives.

Shapes: T tokens · S images · D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from navit_loader.batch import View
from navit_loader.errors import ModelError

from ..config import NaViTConfig
from ..model.navit import NaViT
from ..model.positions import Positions, Rotation
from ..weights.convert import OtherModel, Weights, turned
from ..weights.families import FAMILIES
from ..weights.from_transformers import block, convert, embedding, inner
from ..weights.saved import from_parts


class Living(OtherModel):
    """A tower's weights as they are now, in their dtype and with their gradients."""

    def take(self, name: str) -> Tensor:
        """The weight itself."""
        return self.own(name)


@dataclass(frozen=True, slots=True)
class Places:
    """Where the tokens of several images stand, one image after the other; all on the host.

    Attributes:
        sizes: i64 `[S]`, tokens of each image.
        grids: i64 `[S, 2]`, (h, w) of each in patches.
        at: i64 `[T, 2]`, (y, x) of each token.
    """

    sizes: Tensor
    grids: Tensor
    at: Tensor

    @classmethod
    def of(cls, grids: Tensor, side: int = 1) -> Places:
        """Whole images row by row; with `side`, by blocks of that many patches a side, each block row by row."""
        sizes = grids.prod(1)
        first = sizes.cumsum(0) - sizes
        number = torch.arange(int(sizes.sum())) - first.repeat_interleave(sizes)
        wide = (grids[:, 1] // side).repeat_interleave(sizes)
        one, within = number // side**2, number % side**2
        y, x = one // wide * side + within // side, one % wide * side + within % side
        return cls(sizes, grids, torch.stack([y, x], 1))

    def view(self, like: Tensor) -> View:
        """What our encoder reads of a batch: one sequence without padding, on the device of `like`."""
        count = len(self.sizes)
        image = torch.arange(count).repeat_interleave(self.sizes)
        offsets = torch.cat([self.sizes.new_zeros(1), self.sizes.cumsum(0)]).int()
        at, image, offsets, grids = (x.to(like.device) for x in (self.at, image, offsets, self.grids))
        return View(like, at[None], image[None], offsets, grids[None], 1, int(self.sizes.max()), 0)


class PackedBlock(nn.Module):
    """A block of ours that asks for its weights when it runs, once more where its forward is recomputed."""

    def __init__(self, plain: nn.Module, encoder: PackedEncoder, number: int) -> None:
        super().__init__()
        self.plain, self.encoder, self.number = plain, encoder, number

    def forward(self, *args: Any) -> Tensor:
        """As the block's."""
        return functional_call(self.plain, self.encoder.block(self.number), args)  # type: ignore[no-any-return]


class Steps(nn.Module):
    """What `functional_call` calls: positions, blocks and the last norm."""

    def __init__(self, net: NaViT) -> None:
        super().__init__()
        self.net = net

    def forward(self, x_TD: Tensor, view: View, wanted: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
        """Encoded tokens `[T, D]`, and those after the blocks `wanted`; −1 are those before the first."""
        x_1TD, found = self.net.encode(x_TD, view, tuple(n for n in wanted if n >= 0))
        before = [self.net._place(x_TD, view)[0]] if -1 in wanted else []
        return x_1TD[0], before + [x[0] for x in found]


class PackedEncoder:
    """No module, so that a tower's state dict stays its own; a copy of the tower copies it along."""

    def __init__(self, tower: Any) -> None:
        """Lays out a NaViT without memory for weights, and sees that the tower's fit it.

        Raises:
            ModelError: what `NaViT.from_transformers` refuses; weights that are not plain numbers; dropout.
        """
        name = type(tower).__name__
        empty = {}
        for key, value in tower.state_dict().items():
            if not value.is_floating_point():
                raise ModelError(
                    f"{name}.{key} has dtype {value.dtype}; a quantised tower cannot run packed, load it in bfloat16"
                )
            empty[key] = value.to("meta")
        if rate := getattr(tower.config, "attention_dropout", 0.0):
            raise ModelError(f"{name} with attention_dropout = {rate} cannot run packed; set it to 0 in its config")
        with torch.device("meta"):
            config, parts = convert(tower, empty)
            # Tables of resizes are slow to lay out without memory, so they begin at one patch and grow with the images.
            changes = {"max_grid": 1} if config.positions == "resized_grid" else {}
            net = from_parts(NaViT, config, parts, name, changes)
        self.family, self.config = FAMILIES[name], net.config
        self.source = Living(name, {}, inner(name))
        net.rotation = Rotation(net.config) if net.config.rope else None
        net.positions = _positions(net.config)
        net.blocks = nn.ModuleList(PackedBlock(plain, self, n) for n, plain in enumerate(net.blocks))
        self.steps = Steps(net)

    def __call__(
        self, tower: Any, x_TD: Tensor, places: Places, wanted: Sequence[int] = ()
    ) -> tuple[Tensor, list[Tensor]]:
        """Tokens of the tower's patch embedding → `Steps.forward`.

        Raises:
            ModelError: an image beyond a table of positions that cannot be resized.
        """
        net = self.steps.net
        self._reach(int(places.grids.max()))
        for part in (net.rotation, net.positions):
            if part is not None:
                part.to(x_TD.device)
        self.source = Living(self.source.name, tower.state_dict(keep_vars=True), inner(self.source.name))
        net.train(tower.training)
        first = tower.get_submodule(self.family.blocks)[0]
        net.set_grad_checkpointing(bool(getattr(first, "gradient_checkpointing", False)))
        weights = embedding(self.source, self.config, self.family)
        if self.family.last:
            weights |= self.source.layer(self.family.last, "norm")
        named = {f"net.{name}": value for name, value in weights.items() if not name.startswith("patch_embed.")}
        return functional_call(self.steps, named, (x_TD, places.view(x_TD), wanted))  # type: ignore[no-any-return]

    def block(self, number: int) -> Weights:
        """The weights of one block under our names, joined from the tower's."""
        found = turned(block(self.source, self.config, self.family, number), self.config.heads, self.family.turning)
        return {name.removeprefix(f"blocks.{number}."): value for name, value in found.items()}

    def _reach(self, side: int) -> None:
        """Resizes for images of this many patches on a side; a table that is not resized ends where it ends."""
        if side <= self.config.max_grid or self.config.positions == "none":
            return
        if self.config.positions != "resized_grid":
            raise ModelError(
                f"an image has {side} patches on a side, {self.source.name} has positions for {self.config.max_grid}"
            )
        self.config = replace(self.config, max_grid=1 << (side - 1).bit_length())
        self.steps.net.positions = _positions(self.config)


def _positions(config: NaViTConfig) -> Positions:
    """Positions without weights; no number is drawn for them."""
    with torch.random.fork_rng(devices=[]):
        found = Positions(config)
    for weight in found.parameters():
        weight.data = torch.empty(0)
    return found
