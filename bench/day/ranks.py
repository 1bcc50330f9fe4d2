"""FSDP2 and DDP on one GPU: wrapped as the trainer wraps, does a step give what the bare model gives? And what a batch takes.

In: nothing. Out: for each way the largest difference of the loss over three steps from the bare model's, and the most memory.

    python bench/day/ranks.py --out FILE [--seconds N]
"""

from __future__ import annotations

import os
from collections.abc import Callable
from copy import deepcopy

import torch
from rows import Rows, need_gpu
from steps import Case, peak_mib, trained
from torch import distributed, nn
from torch.nn import functional as F

from navit_model.train.shard import shard
from navit_model.world import World


def main() -> None:
    rows = Rows.begin(__doc__)
    need_gpu(rows, "FSDP2 on one GPU", "DDP on one GPU")
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "RANK": "0", "WORLD_SIZE": "1"}
    torch.cuda.set_device(0)
    store = distributed.TCPStore("127.0.0.1", 0, 1, is_master=True)
    distributed.init_process_group("nccl", store=store, rank=0, world_size=1, device_id=torch.device("cuda", 0))
    world = World(0, 1, torch.device("cuda", 0))
    case = Case("S")
    first, _ = case.navit()
    labels = case.batch.labels.flatten().where(case.batch.status.flatten() == 1, -100)

    def run(wrap: Callable[[nn.Module], nn.Module]) -> tuple[list[float], float]:
        torch.manual_seed(0)
        net = wrap(deepcopy(first))
        losses: list[torch.Tensor] = []

        def loss() -> torch.Tensor:
            value = F.cross_entropy(net(case.batch).flatten(0, 1), labels)
            losses.append(value.detach())
            return value

        step = trained(net, loss)
        for _ in range(3):
            step()
        return [float(v) for v in losses], peak_mib(step)

    def sharded(net: nn.Module, *, compiled: bool) -> nn.Module:
        shard(net, world, compiled=compiled)
        return net

    bare, memory = run(lambda net: net)
    rows.add("bare, eager", loss=bare[-1], peak_mib=memory)
    ways: dict[str, Callable[[nn.Module], nn.Module]] = {
        "DDP on one GPU": lambda net: nn.parallel.DistributedDataParallel(net, device_ids=[0]),
        "FSDP2 on one GPU": lambda net: sharded(net, compiled=False),
        "FSDP2 on one GPU, blocks compiled": lambda net: sharded(net, compiled=True),
    }
    for name, wrap in ways.items():

        def one(name: str = name, wrap: Callable[[nn.Module], nn.Module] = wrap) -> None:
            found, memory = run(wrap)
            rows.add(
                name, largest_difference=max(abs(a - b) for a, b in zip(found, bare, strict=True)), peak_mib=memory
            )

        rows.attempt(name, one, needs=5)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
