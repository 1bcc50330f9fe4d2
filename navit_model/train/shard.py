"""Parameters spread over the ranks (FSDP2), and whole again.

In: a module, or tensors of which each rank holds a part. Out: the module with every rank holding 1/W of each parameter, or
whole tensors. Apart from the loop and from checkpoints, which see plain tensors alone: so a checkpoint does not depend on
how many ranks wrote it. Torch's part of it is imported where something is spread, since it takes a third of a start's time;
what is spread is known by its `full_tensor`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..model.attention import check_traceable
from ..model.encoder import Block
from ..model.navit import NaViT
from ..model.text import TextTower
from ..world import World


def shard(module: nn.Module, world: World, *, compiled: bool) -> None:
    """Spreads the parameters over the ranks, in place: each block of an encoder by itself, then the rest.

    Args:
        module: on the world's device, the same on every rank.
        world: the ranks.
        compiled: run each block through `torch.compile`; a graph cannot hold the exchange between blocks.

    Raises:
        ModelError: a tower's attention cannot be compiled.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    for tower in [m for m in module.modules() if compiled and isinstance(m, NaViT | TextTower)]:
        check_traceable(tower.config.attention, world.device)
    mesh = init_device_mesh(world.device.type, (world.size,))
    for block in [m for m in module.modules() if isinstance(m, Block)]:
        if compiled:
            block.compile()
        fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh)


def hold_back(module: nn.Module, last: bool) -> None:
    """For a sharded module: whether this backward pass, of several that accumulate, exchanges its gradients."""
    if exchange := getattr(module, "set_requires_gradient_sync", None):
        exchange(last)


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be spread over the ranks; then every rank must call it."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def like(target: Tensor, value: Tensor) -> Tensor:
    """This rank's part of `value`, where `target` is spread; else `value` on the target's device."""
    if not hasattr(target, "full_tensor"):
        return value.to(target.device)
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(target, DTensor)
    # Every rank has the value, so nothing is sent.
    value = value.to(target.to_local().device)
    spread: Tensor = distribute_tensor(value, target.device_mesh, target.placements, src_data_rank=None)
    return spread


@torch.no_grad()
def copy(target: Tensor, value: Tensor) -> None:
    """Writes `value` into a tensor that may be spread over the ranks."""
    target.copy_(like(target, value))
