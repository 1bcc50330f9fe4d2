"""Training steps of the model beside its peers, on the same images, and what they keep in memory.

In: nothing; images of 64 to 256 tokens are drawn. Out: tokens and images a second. A step is forward, loss, backward,
AdamW. Each peer takes the images in the order in which they came, as its own code batches them: timm's NaFlexViT padded by
its collator, vit-pytorch's NaViT packed by its own packer, with a dense mask. That packer leaves rows unfilled; a further
row hands it the images in the order of our packing, so that it pads nothing at all, and what remains is the model alone.
The bound is timm's plain ViT on as many tokens at 224 px, without padding or mask, with the same query-key norm and
pooling. On a CPU one thread is timed in CPU seconds, to which other programs do least; pin it with `taskset -c 0`. On a
GPU: `bench/gpu.py`.

    taskset -c 0 python bench/model.py [--repeat 7] [--sequences 8]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from kit import Report, installed, parse, seconds_of, turns
from timm.data.naflex_dataset import NaFlexCollator
from timm.models.naflexvit import NaFlexVit, NaFlexVitCfg
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from navit_loader import LoaderConfig, PackedBatch, pack_images
from navit_loader.batch import OK
from navit_loader.config import PlanConfig, Resolution
from navit_model import NaViT, NaViTConfig

P, L, MOST, CLASSES = 16, 1024, 256, 1000
PLAIN, NAFLEX, THEIRS = "timm ViT, plain, 224 px", "timm NaFlexViT", "vit-pytorch NaViT"
Step = Callable[[], Tensor]
"""One loss, ready for `backward`."""


def images(batch_size: int, seed: int = 0) -> tuple[PackedBatch, list[np.ndarray]]:
    """`batch_size` full sequences of images of 64 to 256 tokens as a loader gives them, and the images themselves."""
    rng = np.random.default_rng(seed)
    sides = rng.integers(8, 17, (batch_size * 16, 2)) * P
    found = [rng.integers(0, 256, (h, w, 3), np.uint8) for h, w in sides]
    plan = PlanConfig(sequence_length=L, max_images=16, max_tokens=MOST, resolution=Resolution(kind="native"))
    batch = pack_images(found, LoaderConfig(plan=plan), labels=rng.integers(0, CLASSES, len(found)))
    full = np.argsort(-(batch.segment_ids >= 0).sum(1), kind="stable")[:batch_size]
    return cut(batch, np.sort(full)), found


def cut(batch: PackedBatch, rows: np.ndarray) -> PackedBatch:
    """Some sequences of a batch, as a batch."""
    per = (len(batch.cu_seqlens) - 1) // len(batch.segment_ids)
    offsets = [0]
    for n, b in enumerate(rows):
        inside = batch.cu_seqlens[(batch.cu_seqlens > b * L) & (batch.cu_seqlens <= (b + 1) * L)]
        offsets += [int(o) for o in np.unique(inside) - b * L + n * L]
    offsets += [len(rows) * L] * (per * len(rows) + 1 - len(offsets))
    fields = {k: v[rows] for k, v in batch.arrays().items() if k != "cu_seqlens" and len(v) == len(batch.segment_ids)}
    return replace(batch, **fields, cu_seqlens=np.array(offsets, np.int32))


def pixels(image: np.ndarray) -> Tensor:
    return (torch.from_numpy(image).permute(2, 0, 1) / 255 - 0.5) / 0.5


class Peers:
    """Every model with its own form of the same images; `shape` is width, depth and heads."""

    def __init__(self, shape: tuple[int, int, int], batch_size: int, device: str) -> None:
        self.width, self.depth, self.heads = shape
        batch, all_images = images(batch_size)
        self.lengths = [int(h * w) for h, w in batch.grids[batch.status == OK]]
        self.tokens, self.count = sum(self.lengths), len(self.lengths)
        self.device = device
        self.host, self.batch = batch, batch.to(device)
        rows = batch.image_ids[batch.status == OK]
        self.packed_images = [all_images[i] for i in rows]
        self.packed_labels = torch.from_numpy(batch.labels[batch.status == OK][:, 0]).to(device)
        came = np.argsort(rows)
        self.images, self.labels = [self.packed_images[i] for i in came], self.packed_labels[torch.from_numpy(came)]

    def navit(self) -> tuple[nn.Module, Step, int, int]:
        shape = {"width": self.width, "depth": self.depth, "heads": self.heads}
        net = NaViT(NaViTConfig(**shape, patch_size=P, max_grid=16, classes=CLASSES)).to(self.device)
        # As the peers': a classifier of zeros gives gradients of zeros.
        nn.init.trunc_normal_(net.head.weight, std=0.02)
        where = self.batch.status.flatten() == OK
        labels = self.batch.labels.flatten().where(where, -100)
        return net, lambda: F.cross_entropy(net(self.batch).flatten(0, 1), labels), self.tokens, self.count

    def plain(self, side: int = 224) -> tuple[nn.Module, Step, int, int]:
        net = VisionTransformer(
            img_size=side,
            patch_size=P,
            embed_dim=self.width,
            depth=self.depth,
            num_heads=self.heads,
            num_classes=CLASSES,
            qk_norm=True,
            qkv_bias=False,
            class_token=False,
            global_pool="map",
        ).to(self.device)
        each = (side // P) ** 2
        n = round(self.tokens / each)
        x = torch.randn(n, 3, side, side, device=self.device)
        labels = torch.randint(0, CLASSES, (n,), device=self.device)
        return net, lambda: F.cross_entropy(net(x), labels), n * each, n

    def naflex(self) -> tuple[nn.Module, Step, int, int]:
        config = NaFlexVitCfg(
            patch_size=P,
            embed_dim=self.width,
            depth=self.depth,
            num_heads=self.heads,
            qk_norm=True,
            qkv_bias=False,
            pos_embed="factorized",
        )
        net = NaFlexVit(config, num_classes=CLASSES).to(self.device)
        items = []
        for image in self.images:
            h, w = image.shape[0] // P, image.shape[1] // P
            x = pixels(image).view(3, h, P, w, P).permute(1, 3, 2, 4, 0).reshape(h * w, -1)
            coord = torch.cartesian_prod(torch.arange(h), torch.arange(w))
            items.append(({"patches": x, "patch_coord": coord, "patch_valid": torch.ones(h * w, dtype=torch.bool)}, 0))
        given = NaFlexCollator(MOST)(items)[0]
        given = {k: v.to(self.device) if isinstance(v, Tensor) else v for k, v in given.items()}
        return net, lambda: F.cross_entropy(net(given), self.labels), self.tokens, self.count

    def vit_pytorch(self, packed: bool = False) -> tuple[nn.Module, Step, int, int]:
        from vit_pytorch.na_vit import NaViT as TheirNaViT

        net = TheirNaViT(
            image_size=256,
            patch_size=P,
            num_classes=CLASSES,
            dim=self.width,
            depth=self.depth,
            heads=self.heads,
            dim_head=self.width // self.heads,
            mlp_dim=4 * self.width,
        ).to(self.device)
        given = [pixels(image).to(self.device) for image in (self.packed_images if packed else self.images)]
        labels = self.packed_labels if packed else self.labels

        def step() -> Tensor:
            return F.cross_entropy(net(given, group_images=True, group_max_seq_len=L), labels)

        return net, step, self.tokens, self.count


def trained(net: nn.Module, step: Step, precision: torch.dtype | None = None) -> Callable[[], None]:
    """A whole training step."""
    kind = next(net.parameters()).device.type
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, fused=True)

    def run() -> None:
        with torch.autocast(kind, precision, enabled=precision is not None):
            loss = step()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def kept(step: Step, net: nn.Module) -> int:
    """Bytes that the forward pass keeps for the backward pass, weights and inputs of the model aside."""
    own = {p.untyped_storage().data_ptr() for p in [*net.parameters(), *net.buffers()]}
    seen: dict[int, int] = {}

    def note(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        loss = step()
    total = sum(seen.values())
    del loss
    return total


def cpu_rows(report: Report, repeat: int, threads: int, sequences: int, depth: int) -> None:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    peers = Peers((192, depth, 3), sequences, "cpu")
    makers = {PLAIN: peers.plain, "navit": peers.navit, NAFLEX: peers.naflex}
    if installed("vit_pytorch"):
        makers |= {THEIRS: peers.vit_pytorch, f"{THEIRS}, our order": partial(peers.vit_pytorch, packed=True)}
    else:
        report.left_out(THEIRS)
    ways, sizes, memory = {}, {}, {}
    clock = time.process_time if threads == 1 else time.perf_counter
    for name, make in makers.items():
        net, step, tokens, count = make()
        memory[name] = [kept(step, net) / tokens / 1024]
        ways[name], sizes[name] = seconds_of(trained(net, step), clock), (tokens, count)
    spent = turns(ways, repeat)
    given = {"images": peers.count, "tokens": peers.tokens, "padding": round(float(peers.host.padding), 4)}
    for n, unit in enumerate(("tokens/s", "images/s")):
        found = {name: [sizes[name][n] / s for s in of] for name, of in spent.items()}
        if n:  # its images are all of one size
            del found[PLAIN]
            report.row("a training step", found, unit, **given)
            continue
        report.row("a training step", found, unit, bounds=(PLAIN,), beside=PLAIN, goal=0.95, **given)
        for name, goal in ((NAFLEX, 1.8), (THEIRS, 2.0)):
            if name in found:
                report.row(
                    f"a training step, beside {name}", {"navit": found["navit"], name: found[name]}, unit, goal=goal
                )
    kept_by = "kept a token for the backward pass"
    report.row(kept_by, memory, "KiB", better="lower", bounds=(PLAIN,), beside=PLAIN, goal=round(1 / 1.05, 3))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument(
        "--threads", type=int, default=1, help="of the CPU rows; above 1 they are timed by the wall clock"
    )
    parser.add_argument("--sequences", type=int, default=8, help="of 1024 tokens a step, in the CPU rows")
    parser.add_argument("--depth", type=int, default=12, help="blocks of each model")
    args = parse(parser, {"repeat": 2, "sequences": 1, "depth": 1})
    report = Report("model", __doc__, args)
    cpu_rows(report, args.repeat, args.threads, args.sequences, args.depth)
    report.finish()


if __name__ == "__main__":
    main()
