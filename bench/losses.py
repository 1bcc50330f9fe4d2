"""Does the memory of the contrastive losses grow with the pairs, or with their square? And what does that cost in time?

In: numbers of pairs of one process, and a width. Out: for our losses, block by block, and for the whole matrix in plain
PyTorch: peak memory of forward and backward beyond the embeddings themselves, bytes a pair, seconds (of CPU time on a CPU),
and how far ours is from the whole matrix in float64. Each cell is a process of its own, so that no peak hides another's.

    .venv/bin/python bench/losses.py                       # this machine's CPU
    .venv/bin/python bench/losses.py --device cuda --pairs 4096 8192 16384 32768
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from kit import Report, parse, turns
from torch import Tensor

from navit_model.losses.contrastive import sigmoid_contrastive, softmax_contrastive

FORMS = ("ours", "whole")
WHOLE = "the whole matrix, PyTorch"
KINDS = ("softmax", "sigmoid")


def whole(kind: str, x: Tensor, y: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """The loss from the matrix of all pairs, as it is usually written."""
    z = scale * x @ y.T
    if kind == "softmax":
        target = torch.arange(len(x), device=x.device)
        return (F.cross_entropy(z, target, reduction="sum") + F.cross_entropy(z.T, target, reduction="sum")) / 2
    sign = 2 * torch.eye(len(x), device=x.device, dtype=x.dtype) - 1
    return -F.logsigmoid(sign * (z + bias)).sum()


def ours(kind: str, x: Tensor, y: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    valid = torch.ones(len(x), dtype=torch.bool, device=x.device)
    if kind == "softmax":
        return softmax_contrastive(x, y, valid, scale)[0]
    return sigmoid_contrastive(x, y, valid, scale, bias)[0]


def pairs(count: int, width: int, device: str, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    rows = [F.normalize(torch.randn(count, width, generator=generator), dim=-1) for _ in range(2)]
    leaves = [*rows, torch.tensor(14.0), torch.tensor(-10.0)]
    return [leaf.to(device, dtype).requires_grad_() for leaf in leaves]


def peak(device: str) -> int:
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024


def cell(kind: str, form: str, count: int, width: int, device: str) -> dict[str, float]:
    """Peak bytes and seconds of one forward and backward pass."""
    step = ours if form == "ours" else whole
    # Threads, libraries and kernels come into being on a small case.
    step(kind, *pairs(64, width, device)).backward()
    leaves = pairs(count, width, device)
    for leaf in leaves:
        leaf.grad = torch.zeros_like(leaf)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        # Linux: the peak starts again from what is resident now.
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = peak(device)
    # On a CPU its own time: other work on the machine does not count.
    clock = time.perf_counter if device == "cuda" else time.process_time
    start = clock()
    step(kind, *leaves).backward()
    if device == "cuda":
        torch.cuda.synchronize()
    return {"bytes": peak(device) - before, "seconds": clock() - start}


def difference(kind: str, count: int, width: int, device: str) -> float:
    """Largest difference of value and gradients, as a share of the largest entry of each."""
    found = []
    for step, dtype in ((ours, torch.float32), (whole, torch.float64)):
        leaves = pairs(count, width, device, dtype)
        total = step(kind, *leaves)
        total.backward()
        found.append([total.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)])
    return max(float((a.double() - b).abs().max() / b.abs().max()) for a, b in zip(*found, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, nargs="+", default=[2048, 4096, 8192, 16384])
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--cell", nargs=3, metavar=("KIND", "FORM", "PAIRS"), help=argparse.SUPPRESS)
    args = parse(parser, {"pairs": [256, 512]})
    torch.set_num_threads(args.threads)
    if args.cell:
        kind, form, count = args.cell
        print(json.dumps(cell(kind, form, int(count), args.width, args.device)))
        return
    report = Report("losses", __doc__, args)
    flags = ["--width", args.width, "--device", args.device, "--threads", args.threads]

    def way(*which: object) -> dict[str, float]:
        command = [str(part) for part in (sys.executable, Path(__file__), *flags, "--cell", *which)]
        return dict(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))

    for kind in KINDS:
        for count in args.pairs:
            got = turns({form: partial(way, kind, form, count) for form in FORMS}, args.repeat, warm=0)
            for what, key, unit, by in (("memory", "bytes", "MiB", 2**20), ("time", "seconds", "s", 1)):
                ways = {
                    name: [run[key] / by for run in got[form]] for name, form in (("navit", "ours"), (WHOLE, "whole"))
                }
                report.row(f"{what}, {count:,} pairs", ways, unit, better="lower", table=kind, x=count)
        gap = difference(kind, max(args.pairs[0], 3000 if not args.quick else 0), args.width, args.device)
        report.row("largest relative difference", gap, "of the whole matrix", better="lower", table=f"{kind}, float64")
    report.finish()


if __name__ == "__main__":
    main()
