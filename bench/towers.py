"""Is a packed tower faster than the family's own, on the same images and weights?

In: nothing. Out: a row a family of transformers: seconds of its own tower and of the same one packed
(`navit_model.hf.replace_vision_tower`), taken in turns. Images have 64 to 1,024 tokens, towers the width of ViT-S and
random weights; on a CPU the seconds are those of the process, in float32; on a GPU those of the clock, in bfloat16.

    .venv/bin/python bench/towers.py                                      # one thread, some ten minutes
    .venv/bin/python bench/towers.py pixtral siglip2 --images 8 --depth 2
    .venv/bin/python bench/towers.py --device cuda
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import transformers
from kit import Report, parse, turns
from torch import nn
from transformers.models.glm4v.modeling_glm4v import Glm4vVisionConfig, Glm4vVisionModel
from transformers.models.paddleocr_vl.modeling_paddleocr_vl import PaddleOCRVisionConfig, PaddleOCRVisionModel
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VisionTransformerPretrainedModel,
    Qwen2_5_VLVisionConfig,
)
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VisionTransformerPretrainedModel, Qwen2VLVisionConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionConfig, Qwen3VLVisionModel

from navit_model.hf import replace_vision_tower, restore_vision_tower

P, WIDTH, HEADS, HIDDEN = 14, 384, 6, 1536
OWN = "its own tower"
Grids = list[tuple[int, int]]
Inputs = dict[str, torch.Tensor]


def images(count: int) -> Grids:
    """Grids of 64 to 1,024 patches, sides even, up to 3 : 1."""
    torch.manual_seed(0)
    found: Grids = []
    while len(found) < count:
        h, w = (2 * int(n) for n in torch.randint(2, 28, (2,)))
        if 64 <= h * w <= 1024 and max(h, w) <= 3 * min(h, w):
            found.append((h, w))
    return found


def listed(grids: Grids, values: int) -> Inputs:
    thw = torch.tensor([[1, h, w] for h, w in grids])
    return {"hidden_states": torch.randn(int(thw.prod(1).sum()), values), "grid_thw": thw}


def paddle(grids: Grids) -> Inputs:
    found = listed(grids, 3 * P * P)
    return {"pixel_values": found["hidden_states"].view(1, -1, 3, P, P), "grid_thw": found["grid_thw"]}


def pixtral(grids: Grids) -> Inputs:
    sizes = torch.tensor(grids) * P
    return {"pixel_values": torch.randn(len(grids), 3, *sizes.amax(0).tolist()), "image_sizes": sizes}


def siglip2(grids: Grids) -> Inputs:
    sizes = torch.tensor(grids)
    longest = int(sizes.prod(1).max())
    mask = (torch.arange(longest) < sizes.prod(1)[:, None]).long()
    patches = torch.randn(len(grids), longest, 3 * P * P)
    return {"pixel_values": patches, "pixel_attention_mask": mask, "spatial_shapes": sizes}


def gemma4(grids: Grids) -> Inputs:
    longest = max(h * w for h, w in grids)
    at = torch.full((len(grids), longest, 2), -1)
    for n, (h, w) in enumerate(grids):
        at[n, : h * w] = torch.cartesian_prod(torch.arange(h), torch.arange(w)).flip(1)
    return {"pixel_values": torch.rand(len(grids), longest, 3 * P * P), "pixel_position_ids": at}


def towers(depth: int) -> dict[str, tuple[str, Callable[[], nn.Module], Callable[[Grids], Inputs]]]:
    """What each does with images of several sizes, how to make it, and what it is given."""
    plain: dict[str, Any] = {
        "hidden_size": WIDTH,
        "intermediate_size": HIDDEN,
        "num_hidden_layers": depth,
        "num_attention_heads": HEADS,
        "patch_size": P,
        "image_size": 16 * P,
    }
    sees: dict[str, Any] = {"depth": depth, "num_heads": HEADS, "patch_size": P, "out_hidden_size": WIDTH}
    wide = {**sees, "hidden_size": WIDTH, "intermediate_size": HIDDEN}
    key_values = {"num_key_value_heads": HEADS, "head_dim": WIDTH // HEADS}

    def frames(grids: Grids) -> Inputs:
        return listed(grids, 3 * 2 * P * P)

    return {
        "siglip2": (
            "pads",
            lambda: transformers.Siglip2VisionModel(transformers.Siglip2VisionConfig(**plain)),
            siglip2,
        ),
        "gemma4": (
            "pads",
            lambda: transformers.Gemma4VisionModel(
                transformers.Gemma4VisionConfig(**plain, **key_values, pooling_kernel_size=2)
            ),
            gemma4,
        ),
        "pixtral": (
            "packs",
            lambda: transformers.PixtralVisionModel(transformers.PixtralVisionConfig(**plain)),
            pixtral,
        ),
        "qwen2_vl": (
            "packs",
            lambda: Qwen2VisionTransformerPretrainedModel(
                Qwen2VLVisionConfig(
                    depth=depth, embed_dim=WIDTH, hidden_size=WIDTH, num_heads=HEADS, patch_size=P, mlp_ratio=4
                )
            ),
            frames,
        ),
        "qwen2_5_vl": (
            "packs",
            lambda: Qwen2_5_VisionTransformerPretrainedModel(
                Qwen2_5_VLVisionConfig(**wide, fullatt_block_indexes=list(range(depth))[depth // 4 :: 4] or [0])
            ),
            frames,
        ),
        "qwen3_vl": (
            "packs",
            lambda: Qwen3VLVisionModel(Qwen3VLVisionConfig(**wide, deepstack_visual_indexes=[0])),
            frames,
        ),
        "glm4v": ("packs", lambda: Glm4vVisionModel(Glm4vVisionConfig(**wide, image_size=16 * P)), frames),
        "paddleocr_vl": ("packs", lambda: PaddleOCRVisionModel(PaddleOCRVisionConfig(**plain)), paddle),
    }


def seconds(device: torch.device, run: Callable[[], Any]) -> float:
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = clock()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - start


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", help="which (all)")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    args = parse(parser, {"images": 2, "depth": 1, "rounds": 2})
    report = Report("towers", __doc__, args)
    torch.set_num_threads(1)
    device = torch.device(args.device)
    grids = images(args.images)
    tokens = sum(h * w for h, w in grids)
    table = towers(args.depth)
    for name in args.families or table:
        kind, make, inputs = table[name]
        tower = make().eval().to(device)
        given = {key: value.to(device) for key, value in inputs(grids).items()}
        if device.type == "cuda":
            tower = tower.bfloat16()
            given = {key: value.bfloat16() if value.is_floating_point() else value for key, value in given.items()}

        def way(change: Callable[[nn.Module], Any], run: Callable[[], Any], tower: nn.Module = tower) -> float:
            change(tower)
            return seconds(device, run)

        run = partial(tower, **given)
        ways = {"navit": partial(way, replace_vision_tower, run), OWN: partial(way, restore_vision_tower, run)}
        goal = 1.5 if kind == "pads" else 1.0
        spent = turns(ways, args.rounds)
        report.row(name, spent, "s", better="lower", table=f"its own {kind}", goal=goal, tokens=tokens)
    report.finish()


if __name__ == "__main__":
    main()
