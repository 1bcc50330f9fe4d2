"""One rank of `test_contrastive.py`: run under torchrun, it writes the losses and gradients of its own pairs.

In: a file with the pairs of all ranks, and the block size. Out: `OUT/rank-R.pt`. A program of its own, since the ranks are
real processes.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from navit_model.losses import contrastive
from navit_model.losses.contrastive import sigmoid_contrastive, softmax_contrastive


def main(pairs: str, out: str, block: str) -> None:
    contrastive.BLOCK = int(block)
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    saved = torch.load(pairs)
    pair = torch.distributed.new_group([0, 1])
    found = {}
    for kind, ranks in (("softmax", 3), ("sigmoid", 3), ("softmax", 2), ("sigmoid", 2)):
        if rank >= ranks:
            continue
        x, y = (saved[name][rank].clone().requires_grad_() for name in ("x", "y"))
        scale, bias = (saved[name].clone().requires_grad_() for name in ("scale", "bias"))
        group = pair if ranks == 2 else None
        if kind == "softmax":
            total, count = softmax_contrastive(x, y, saved["valid"][rank], scale, group=group)
        else:
            total, count = sigmoid_contrastive(x, y, saved["valid"][rank], scale, bias, group=group)
        # Another factor on every rank: what a text costs on another rank must come home with that rank's factor.
        (total * (rank + 1)).backward()
        grads = {"x": x.grad, "y": y.grad, "scale": scale.grad, "bias": bias.grad}
        found[kind, ranks] = {"sum": total.detach(), "count": count, **grads}
    torch.save(found, Path(out) / f"rank-{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
