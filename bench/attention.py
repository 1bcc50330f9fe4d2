"""What attention over packed images costs, by the width of the model, and what varlen kernels cost beside dense ones.

In: nothing; images of 64 to 256 tokens in sequences of 1,024 are drawn. Out: for each width the time, forward and backward,
of all of a block but its attention, and of its attention in several forms as a share of that:

- `unpacked`: as many tokens in images of 256 each, `[4B, 256]`, no mask: what a plain ViT does;
- `packed`: our segments, whatever their lengths (`segments` on a CPU, `torch_varlen` on a GPU);
- `masked`: the whole sequence under a mask of images, as NaViT (arXiv 2307.06304, section 2.1) does it;
- `varlen`: the GPU's kernel on those same images of 256; the goal is 3 % above `unpacked`.

    taskset -c 0 python bench/attention.py [--widths 192 384 768 1024] [--sequences 4] [--repeat 7]

On a CPU in float32, one thread, CPU seconds; on a GPU in bfloat16, by CUDA events.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from kit import Report, parse, turns
from model import images
from torch import Tensor

from navit_model import NaViTConfig
from navit_model.model import encoder as blocks
from navit_model.model.attention import attention, segments

L, UNIFORM = 1024, 256
MASKED, UNPACKED = "NaViT's mask over the whole sequence", "images of 256 tokens one by one, no mask"
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def forms(sequences: int, device: torch.device) -> dict[str, Attend]:
    """The forms of attention over `[T, H, K]`, each with all that is made once for all layers."""
    batch = images(sequences)[0]
    tokens = batch.segment_ids.size
    cu_seqlens = torch.from_numpy(batch.cu_seqlens).to(device)
    on_gpu = device.type == "cuda"
    packed = segments(cu_seqlens, UNIFORM, tokens, "torch_varlen" if on_gpu else "segments")
    ids = torch.from_numpy(batch.segment_ids).to(device)
    same = (ids[:, None, :, None] == ids[:, None, None, :]).contiguous()

    def dense(length: int, mask: Tensor | None, *qkv: Tensor) -> Tensor:
        rows = (x.unflatten(0, (-1, length)).transpose(1, 2) for x in qkv)
        return F.scaled_dot_product_attention(*rows, attn_mask=mask).transpose(1, 2).flatten(0, 1)

    found: dict[str, Attend] = {
        "unpacked": lambda q, k, v: dense(UNIFORM, None, q, k, v),
        # The model sorts its tokens once for all layers, so the order is none of attention's business.
        "packed": lambda q, k, v: attention(q, k, v, replace(packed, order=None)),
        "masked": lambda q, k, v: dense(L, same, q, k, v),
    }
    if on_gpu:
        every = torch.arange(0, tokens + 1, UNIFORM, dtype=torch.int32, device=device)
        uniform = segments(every, UNIFORM, tokens, "torch_varlen")
        found["varlen"] = lambda q, k, v: attention(q, k, v, uniform)
    return found


def seconds(step: Callable[[], None], device: torch.device) -> float:
    if device.type == "cpu":
        start = time.process_time()
        step()
        return time.process_time() - start
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    for _ in range(20):
        step()
    last.record()
    torch.cuda.synchronize()
    return float(first.elapsed_time(last)) / 1000 / 20


def row(report: Report, width: int, sequences: int, repeat: int, device: torch.device) -> None:
    """The rest of a block and each form of attention, forward and backward."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    heads, tokens = width // 64, sequences * L
    block = blocks.Block(NaViTConfig(width=width, heads=heads), 0.0).to(device, dtype)
    x = torch.randn(tokens, width, device=device, dtype=dtype, requires_grad=True)
    qkv = [torch.randn(tokens, heads, 64, device=device, dtype=dtype, requires_grad=True) for _ in range(3)]
    ways = {"rest": partial(seconds, rest(block, x), device)}
    for name, attend in forms(sequences, device).items():
        ways[name] = partial(seconds, backward(attend, qkv), device)
    spent = {name: [1000 * s for s in of] for name, of in turns(ways, repeat, warm=2).items()}
    whole, table = spent.pop("rest"), f"attention of a block of width {width}"
    found = {"navit": spent["packed"], MASKED: spent["masked"], UNPACKED: spent["unpacked"]}
    report.row("packed", found, "ms", better="lower", table=table, bounds=(UNPACKED,), beside=MASKED)
    for name, of in spent.items():
        shares = [100 * a / b for a, b in zip(of, whole, strict=True)]
        report.row(f"{name}, of the rest of a block", shares, "%", better="lower", table=table)
    report.row("the rest of a block", whole, "ms", better="lower", table=table)
    if "varlen" in spent:
        found = {"navit": spent["varlen"], UNPACKED: spent["unpacked"]}
        report.row(
            f"varlen on images of {UNIFORM}", found, "ms", better="lower", table=table, bounds=(UNPACKED,), goal=0.97
        )


def backward(attend: Attend, qkv: list[Tensor]) -> Callable[[], None]:
    return lambda: attend(*qkv).sum().backward()


def rest(block: blocks.Block, x: Tensor) -> Callable[[], None]:
    """A block whose attention hands its values through."""
    nothing = blocks.Context(segments(torch.zeros(2, dtype=torch.int32), 1, 0, "torch_varlen"))

    def step() -> None:
        kept, blocks.attention = blocks.attention, lambda q, k, v, where: q + k + v
        try:
            block(x, nothing).sum().backward()
        finally:
            blocks.attention = kept

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--widths", type=int, nargs="+", default=[192, 384, 768, 1024], help="multiples of 64")
    parser.add_argument("--sequences", type=int, default=4)
    parser.add_argument("--repeat", type=int, default=7)
    args = parse(parser, {"widths": [64, 128], "sequences": 1, "repeat": 2})
    report = Report("attention", __doc__, args)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if device.type == "cpu":
        report.left_out("varlen beside dense", "no CUDA device here")
    for width in args.widths:
        row(report, width, args.sequences, args.repeat, device)
    report.finish()


if __name__ == "__main__":
    main()
