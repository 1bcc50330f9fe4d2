"""Training steps in bfloat16: MFU at three widths, beside timm's NaFlexViT and its plain ViT; and what packing itself costs.

In: nothing; images of 64 to 256 tokens are drawn. Out: a row for each model: images and tokens a second, MFU (operations of the
images over the device's peak), seconds of compiling, the most memory of a step. A step is forward, loss, backward, AdamW, and
must not wait for the host. The peers' blocks are compiled as ours are; where timm is not there, their rows say so.

    python bench/day/steps.py --out FILE [--seconds N]
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rows import Rows, copy_gbs, interleaved, matmul_tflops, need_gpu, ratio
from torch import nn

from navit_loader import LoaderConfig, PackedBatch, pack_images
from navit_loader.batch import OK
from navit_loader.config import PlanConfig, Resolution
from navit_model import NaViT, NaViTConfig
from navit_model.model.attention import attention, choose, segments
from navit_model.train.flops import forward_flops, peak_tflops

P, CLASSES = 16, 1000
SHAPES = {"B": (768, 12, 12, 64), "S": (384, 12, 6, 96), "L": (1024, 24, 16, 32)}
"""Width, depth, heads, and sequences of 1,024 tokens in a step; the most telling first."""


class Case:
    """One shape with its images, and a step of each model over them."""

    def __init__(self, shape: str, length: int = 1024, *, uniform: bool = False) -> None:
        self.width, self.depth, self.heads, sequences = SHAPES[shape]
        sequences = max(1, sequences * 1024 // length)
        rng = np.random.default_rng(0)
        count = sequences * length // 256 if uniform else round(sequences * length / 148)
        sides = np.full((count, 2), 16) if uniform else rng.integers(8, 17, (count, 2))
        self.images = [rng.integers(0, 256, (h * P, w * P, 3), np.uint8) for h, w in sides]
        plan = PlanConfig(
            sequence_length=length, max_images=16 * length // 1024, max_tokens=256, resolution=Resolution(kind="native")
        )
        packed = pack_images(self.images, LoaderConfig(plan=plan), labels=rng.integers(0, CLASSES, len(self.images)))
        self.lengths = [int(h * w) for h, w in packed.grids[packed.status == OK]]
        self.tokens, self.count = sum(self.lengths), len(self.lengths)
        self.batch: PackedBatch = packed.to("cuda")
        self.labels = torch.from_numpy(packed.labels[packed.status == OK][:, 0]).to("cuda")
        self.order = packed.image_ids[packed.status == OK]

    def navit(self) -> tuple[NaViT, Callable[[], torch.Tensor]]:
        torch.manual_seed(0)
        shape = {"width": self.width, "depth": self.depth, "heads": self.heads}
        net = NaViT(NaViTConfig(**shape, patch_size=P, max_grid=16, classes=CLASSES)).cuda()
        nn.init.trunc_normal_(net.head.weight, std=0.02)
        labels = self.batch.labels.flatten().where(self.batch.status.flatten() == OK, -100)
        return net, lambda: F.cross_entropy(net(self.batch).flatten(0, 1), labels)

    def plain(self) -> tuple[nn.Module, Callable[[], torch.Tensor]]:
        """timm's plain ViT over as many tokens, 256 an image, without padding or mask: what packing can at best equal."""
        from timm.models.vision_transformer import VisionTransformer

        shape = {"embed_dim": self.width, "depth": self.depth, "num_heads": self.heads, "num_classes": CLASSES}
        how = {"qk_norm": True, "qkv_bias": False, "class_token": False, "global_pool": "map"}
        net = VisionTransformer(img_size=256, patch_size=P, **shape, **how).cuda()
        n = round(self.tokens / 256)
        x = torch.randn(n, 3, 256, 256, device="cuda")
        labels = torch.randint(0, CLASSES, (n,), device="cuda")
        return net, lambda: F.cross_entropy(net(x), labels)

    def naflex(self) -> tuple[nn.Module, Callable[[], torch.Tensor]]:
        """timm's NaFlexViT over the same images, padded by its own collator."""
        from timm.data.naflex_dataset import NaFlexCollator
        from timm.models.naflexvit import NaFlexVit, NaFlexVitCfg

        shape = {"embed_dim": self.width, "depth": self.depth, "num_heads": self.heads}
        how = {"qk_norm": True, "qkv_bias": False, "pos_embed": "factorized"}
        net = NaFlexVit(NaFlexVitCfg(patch_size=P, **shape, **how), num_classes=CLASSES).cuda()
        items = []
        for n in self.order:
            image = self.images[n]
            h, w = image.shape[0] // P, image.shape[1] // P
            x = torch.from_numpy(image).permute(2, 0, 1) / 127.5 - 1
            x = x.view(3, h, P, w, P).permute(1, 3, 2, 4, 0).reshape(h * w, -1)
            at = torch.cartesian_prod(torch.arange(h), torch.arange(w))
            items.append(({"patches": x, "patch_coord": at, "patch_valid": torch.ones(h * w, dtype=torch.bool)}, 0))
        given = {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in NaFlexCollator(256)(items)[0].items()}
        return net, lambda: F.cross_entropy(net(given), self.labels)

    def mfu(self, seconds: float) -> float:
        config = NaViTConfig(width=self.width, depth=self.depth, heads=self.heads, patch_size=P, classes=CLASSES)
        squares = float(sum(t * t for t in self.lengths))
        flops = 3 * forward_flops(config, float(self.tokens), squares, float(self.count), P)
        return flops / seconds / (peak_tflops(torch.device("cuda")) * 1e12)


def trained(net: nn.Module, loss: Callable[[], torch.Tensor], **how: Any) -> Callable[[], None]:
    """A whole training step."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, fused=True, **how)

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def warmed(step: Callable[[], None]) -> float:
    """Seconds until a step was as quick as the next: what compiling takes."""
    start = time.perf_counter()
    for _ in range(2):
        step()
    torch.cuda.synchronize()
    took = time.perf_counter() - start
    for _ in range(3):
        step()
    torch.cuda.synchronize()
    return took


def peak_mib(step: Callable[[], None]) -> float:
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() / 2**20


def width(rows: Rows, shape: str) -> None:
    """One width at L = 1,024, all models in turns."""
    case = Case(shape)
    steps: dict[str, Callable[[], None]] = {}
    compiling: dict[str, float] = {}

    def ready(name: str, make: Callable[[], tuple[nn.Module, Callable[[], torch.Tensor]]]) -> None:
        net, loss = make()
        if isinstance(net, NaViT):
            net.compile()
        else:
            # As ours: one block's trace serves all of them.
            for block in net.blocks:  # type: ignore[union-attr]
                block.compile(dynamic=False)
        step = trained(net, loss)
        compiling[name] = warmed(step)
        steps[name] = step

    for name, make in (("navit", case.navit), ("timm NaFlexViT", case.naflex), ("timm ViT", case.plain)):
        rows.attempt(f"{name} {shape}/16", lambda name=name, make=make: ready(name, make), needs=20)
    if "navit" in steps:

        def no_sync() -> None:
            torch.cuda.set_sync_debug_mode("error")
            try:
                steps["navit"]()
            finally:
                torch.cuda.set_sync_debug_mode("default")
            rows.add(f"navit {shape}/16 step without a host sync", passed=True)

        rows.attempt(f"navit {shape}/16 step without a host sync", no_sync)
    found = interleaved(steps, 5, 4)
    for name, seconds in found.items():
        middle = statistics.median(seconds)
        count = case.count if name != "timm ViT" else round(case.tokens / 256)
        values: dict[str, Any] = {"images_per_s": count / middle, "tokens_per_s": case.tokens / middle}
        if name != "navit":
            if "navit" in found:
                values["navit_is"] = ratio(found["navit"], seconds)
        else:
            values["mfu"] = case.mfu(middle)
        rows.add(
            f"{name} {shape}/16", **values, compile_s=compiling[name], peak_mib=peak_mib(steps[name]), ms=1e3 * middle
        )


def modes(rows: Rows) -> None:
    """Width 768: L = 4,096, eager, and the whole step as one CUDA graph."""

    def one(name: str, case: Case, prepare: Callable[[NaViT], None]) -> None:
        net, loss = case.navit()
        prepare(net)
        step = trained(net, loss)
        compiling = warmed(step)
        middle = statistics.median(interleaved({"step": step}, 10, 3)["step"])
        rows.add(name, images_per_s=case.count / middle, mfu=case.mfu(middle), compile_s=compiling, ms=1e3 * middle)

    long = "navit B/16, L = 4,096"
    rows.attempt(long, lambda: one(long, Case("B", 4096), lambda net: net.compile()), needs=15)
    case = Case("B")
    rows.attempt("navit B/16, eager", lambda: one("navit B/16, eager", case, lambda net: None), needs=8)

    def graph() -> None:
        net, loss = case.navit()
        net.compile()
        step = trained(net, loss, capturable=True)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            compiling = warmed(step)
        torch.cuda.current_stream().wait_stream(side)
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            step()
        middle = statistics.median(interleaved({"step": captured.replay}, 10, 3)["step"])
        values = {"images_per_s": case.count / middle, "mfu": case.mfu(middle)}
        rows.add("navit B/16, one CUDA graph", **values, compile_s=compiling, ms=1e3 * middle)

    rows.attempt("navit B/16, one CUDA graph", graph, needs=10)


def varlen(rows: Rows) -> None:
    """Attention alone, forward and backward: segments of 256 tokens by the varlen kernel, beside dense without a mask."""
    heads, channels, t = 12, 64, 256
    n = 256
    q, k, v, g = (torch.randn(n * t, heads, channels, device="cuda", dtype=torch.bfloat16) for _ in range(4))
    q, k, v = (x.requires_grad_() for x in (q, k, v))
    cu = torch.arange(0, n * t + 1, t, dtype=torch.int32, device="cuda")

    def dense() -> None:
        x, y, z = (a.view(n, t, heads, channels).transpose(1, 2) for a in (q, k, v))
        out = F.scaled_dot_product_attention(x, y, z).transpose(1, 2).reshape(n * t, heads, channels)
        torch.autograd.grad(out, (q, k, v), g)

    works: dict[str, Callable[[], Any]] = {"dense": dense}
    for name in ("torch_varlen", "flash_attn", "triton"):

        def packed(name: str = name) -> None:
            where = segments(cu, t, n * t, name)  # type: ignore[arg-type]
            torch.autograd.grad(attention(q, k, v, where), (q, k, v), g)

        def ready(name: str = name, packed: Callable[[], None] = packed) -> None:
            choose(name, torch.device("cuda"))
            packed()
            works[name] = packed

        rows.attempt(f"{name} on uniform T = 256", ready)
    dense()
    found = interleaved(works, 20, 5)
    flops = 3.5 * 4 * n * heads * t * t * channels
    for name, seconds in found.items():
        middle = statistics.median(seconds)
        slower = statistics.median(m / d for m, d in zip(seconds, found["dense"], strict=True)) - 1
        rows.add(f"{name} on uniform T = 256", ms=1e3 * middle, tflops=flops / middle / 1e12, slower_than_dense=slower)


def main() -> None:
    rows = Rows.begin(__doc__)
    need_gpu(rows, *(f"navit {shape}/16" for shape in SHAPES), "torch_varlen on uniform T = 256")
    torch.set_float32_matmul_precision("high")
    rows.attempt("ceilings", lambda: rows.add("ceilings", tflops=matmul_tflops(), copy_gb_per_s=copy_gbs()))
    rows.attempt("varlen", lambda: varlen(rows))
    for shape in SHAPES:
        rows.attempt(f"width of {shape}/16", lambda shape=shape: width(rows, shape), needs=25)
        torch.cuda.empty_cache()
        if shape == "B":
            rows.attempt("modes", lambda: modes(rows), needs=20)
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
