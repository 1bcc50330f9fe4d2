"""Every family of weights, tiny and random: outputs and gradients of the packed model are those of the library's own.

A row of the tables is a family: how to make a model of it, and how that model reads one image. Grids are odd, several images
share a sequence, and the bounds are relative to the spread of the output.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import timm
import torch
import transformers
from timm.layers import GluMlp, RmsNorm, SwiGLU, SwiGLUPacked
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.naflexvit import NaFlexVit, NaFlexVitCfg
from timm.models.vision_transformer import (
    DiffParallelScalingBlock,
    ParallelScalingBlock,
    ParallelThingsBlock,
    ResPostBlock,
    VisionTransformer,
)
from timm.models.vision_transformer_relpos import VisionTransformerRelPos
from torch import nn
from transformers.models.glm4v.configuration_glm4v import Glm4vVisionConfig
from transformers.models.glm4v.modeling_glm4v import Glm4vVisionModel
from transformers.models.kimi_k25.configuration_kimi_k25 import Kimi_K25VisionConfig
from transformers.models.kimi_k25.modeling_kimi_k25 import Kimi_K25VisionModel
from transformers.models.paddleocr_vl.configuration_paddleocr_vl import PaddleOCRVisionConfig
from transformers.models.paddleocr_vl.modeling_paddleocr_vl import PaddleOCRVisionModel
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLVisionConfig
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VisionTransformerPretrainedModel
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

from navit_loader import LoaderConfig, PackedBatch, pack_images
from navit_loader.batch import OK
from navit_loader.config import Drop, PlanConfig, Resolution
from navit_loader.errors import ModelError
from navit_model import NaViT, NaViTConfig
from navit_model.weights.convert import kernel

from .weights_kit import shaken

P = 4
FORWARD, BACKWARD = 1e-4, 1e-3
ODD = [(4, 4), (2, 7), (6, 3), (1, 1), (9, 2), (5, 5)]
EVEN = [(4, 4), (2, 8), (6, 12), (10, 2), (2, 2), (18, 4)]
THIRDS = [(3, 3), (6, 3), (3, 9), (6, 6)]

Reads = Callable[[Any, torch.Tensor], torch.Tensor]
"""A model and the normalised pixels `[3, H, W]` of one image → its output, one row or one a merged token."""


def pictures(grids: list[tuple[int, int]]) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (h * P, w * P, 3), np.uint8) for h, w in grids]


def pixels(image: np.ndarray, net: NaViT) -> torch.Tensor:
    mean, std = (torch.tensor(v)[:, None, None] for v in (net.config.mean, net.config.std))
    return (torch.from_numpy(image).permute(2, 0, 1) / 255 - mean) / std


def packed(net: NaViT, grids: list[tuple[int, int]], **plan: Any) -> PackedBatch:
    shape = {"sequence_length": 128, "max_tokens": 96, "max_images": 4, "patch_sizes": (P,), **plan}
    prefix = net.config.prefix_tokens
    config = LoaderConfig(plan=PlanConfig(**shape, prefix_tokens=prefix, resolution=Resolution(kind="native")))
    return pack_images(pictures(grids), config)


def ours(net: NaViT, grids: list[tuple[int, int]]) -> torch.Tensor:
    """Outputs of all images in their order: merged tokens where the model has them, else one row each."""
    batch = packed(net, grids)
    ok = batch.status == OK
    slots = np.argwhere(ok)[np.argsort(batch.image_ids[ok])]
    assert len(slots) == len(grids) and len(batch.status) < len(grids)
    if not net.config.merge:
        out = net(batch.to("cpu"))
        return torch.stack([out[b, e] for b, e in slots])
    merged = net.forward_merged(batch.to("cpu"))
    parts = torch.cat([merged.tokens, *merged.taps], -1)
    return torch.cat([parts[b][merged.segment_ids[b] == e] for b, e in slots])


def assert_same(source: nn.Module, net: NaViT, reads: Reads, grids: list[tuple[int, int]], patch: str) -> None:
    theirs = torch.cat([reads(source, pixels(image, net)) for image in pictures(grids)])
    found = ours(net, grids)
    assert found.shape == theirs.shape and theirs.std() > 0.01
    assert (found - theirs).abs().max() / theirs.std() < FORWARD
    weights = torch.linspace(-1, 1, found.numel()).view_as(found) / theirs.std().item()
    (found * weights).sum().backward()
    (theirs * weights).sum().backward()
    grad = source.get_parameter(patch).grad
    assert grad is not None and net.patch_embed.proj.weight.grad is not None
    # Every frame of a kernel over several sees the same image: the gradient of their sum is that of each.
    grad = grad / (grad.shape[2] if grad.ndim == 5 else 1)
    grad = kernel(grad) if grad.ndim > 2 else grad
    assert (net.patch_embed.proj.weight.grad - grad).abs().max() / grad.std() < BACKWARD


ROPE: dict[str, Any] = {"use_rot_pos_emb": True, "attn_type": "rope"}
DINOV3: dict[str, Any] = {
    "use_rot_pos_emb": True,
    "rope_type": "dinov3",
    "rope_temperature": 100,
    "rope_rotate_half": True,
    "use_abs_pos_emb": False,
    "use_fc_norm": False,
}
PE: dict[str, Any] = {
    **ROPE,
    "use_pre_transformer_norm": True,
    "ref_feat_shape": (6, 6),
    "rope_grid_offset": 1.0,
    "rope_grid_indexing": "xy",
}
EVA02: dict[str, Any] = {"use_rot_pos_emb": True, "swiglu_mlp": True, "ref_feat_shape": (5, 5), "mlp_ratio": 8 / 3}
LAYER5, RMS5, RMS6 = (partial(nn.LayerNorm, eps=1e-5), partial(RmsNorm, eps=1e-5), partial(RmsNorm, eps=1e-6))
TIMM: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    "eva": (Eva, {}),
    "eva02": (Eva, EVA02),
    "eva02_l": (Eva, {**EVA02, "qkv_fused": False, "scale_mlp": True, "scale_attn_inner": True}),
    "eva02_e": (Eva, {"use_post_norm": True, "global_pool": "token"}),
    "pe_core": (Eva, {**PE, "global_pool": "map", "attn_pool_num_heads": 8, "attn_pool_mlp_ratio": 2.0}),
    "pe_spatial": (Eva, {**PE, "use_post_transformer_norm": False, "use_fc_norm": False, "init_values": 0.1}),
    "rope_axial": (Eva, {**ROPE, "use_abs_pos_emb": False, "rope_temperature": 100.0}),
    "rope_mixed": (Eva, {**ROPE, "rope_type": "mixed", "rope_temperature": 10.0, "rope_grid_indexing": "xy"}),
    "rope_mixed_ape": (Eva, {**ROPE, "rope_type": "mixed", "rope_temperature": 10.0, "init_values": 0.1}),
    "dinov3": (Eva, {**DINOV3, "num_reg_tokens": 4, "init_values": 0.1, "norm_layer": LAYER5}),
    "dinov3_7b": (Eva, {**DINOV3, "num_reg_tokens": 4, "swiglu_mlp": True, "swiglu_align_to": 64, "qkv_bias": False}),
    "sapiens2": (
        Eva,
        {
            **DINOV3,
            "attn_type": "rope",
            "num_kv_heads": (4, 2),
            "qkv_fused": False,
            "qk_norm": True,
            "global_pool": "token",
            "swiglu_mlp": True,
            "init_values": 1.0,
            "attn_only_layer_scale": True,
            "norm_layer": RMS6,
        },
    ),
    "aimv2": (
        VisionTransformer,
        {
            "class_token": False,
            "norm_layer": RMS5,
            "embed_norm_layer": RMS5,
            "mlp_layer": SwiGLU,
            "act_layer": "silu",
            "qkv_bias": False,
            "proj_bias": False,
            "global_pool": "avg",
            "fc_norm": False,
        },
    ),
    "dinov2_g": (
        VisionTransformer,
        {"mlp_layer": SwiGLUPacked, "act_layer": "silu", "reg_tokens": 2, "init_values": 0.1},
    ),
    "radio": (VisionTransformer, {"final_norm": False, "reg_tokens": 2, "num_classes": 0}),
    "beit3": (VisionTransformer, {"scale_attn_norm": True, "scale_mlp_norm": True}),
    "post_norm": (VisionTransformer, {"block_fn": ResPostBlock, "class_token": False, "global_pool": "avg"}),
    "parallel": (VisionTransformer, {"block_fn": ParallelScalingBlock, "init_values": 0.1, "qk_norm": True}),
    "parallel_no_bias": (VisionTransformer, {"block_fn": ParallelScalingBlock, "qkv_bias": False}),
    "parallel_fused": (VisionTransformer, {"block_fn": partial(ParallelScalingBlock, fuse_out_proj=True)}),
    "difference": (VisionTransformer, {"attn_layer": "diff", "qk_norm": True, "qkv_bias": True}),
    "difference_of_two": (VisionTransformer, {"block_fn": partial(DiffParallelScalingBlock, dual_lambda=True)}),
    "parallel_difference": (VisionTransformer, {"block_fn": DiffParallelScalingBlock, "init_values": 0.1}),
    "pooled_prefix": (VisionTransformer, {"global_pool": "map", "reg_tokens": 1, "pool_include_prefix": True}),
}
SMALL: dict[str, Any] = {"patch_size": P, "embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 7}


@pytest.mark.parametrize("name", TIMM)
def test_timm(name: str) -> None:
    make, options = TIMM[name]
    source = shaken(make(**{**SMALL, "img_size": 16, "dynamic_img_size": True, **options}))
    assert_same(source, NaViT.from_timm(source), lambda m, x: m(x[None]), ODD, "patch_embed.proj.weight")


FLEX: dict[str, dict[str, Any]] = {
    "axial": {"rope_type": "axial", "rope_ref_feat_shape": (5, 5)},
    "dinov3": {"rope_type": "dinov3", "rope_temperature": 100.0, "rope_rotate_half": True, "pos_embed": "none"},
    "mixed": {"rope_type": "mixed", "rope_temperature": 10.0, "swiglu_mlp": True, "global_pool": "avg"},
    "radio": {"final_norm": False, "reg_tokens": 2, "global_pool": "avg", "pos_embed_align_corners": True},
}


@pytest.mark.parametrize("name", FLEX)
def test_timm_naflexvit(name: str) -> None:
    shape = {k: v for k, v in SMALL.items() if k != "num_classes"}
    source = shaken(NaFlexVit(NaFlexVitCfg(**{**shape, "pos_embed_grid_size": (4, 6), **FLEX[name]}), num_classes=7))

    def reads(model: Any, x: torch.Tensor) -> torch.Tensor:
        h, w = x.shape[1] // P, x.shape[2] // P
        patches = x.view(3, h, P, w, P).permute(1, 3, 2, 4, 0).reshape(1, h * w, -1)
        coord = torch.cartesian_prod(torch.arange(h), torch.arange(w))[None]
        found: torch.Tensor = model(
            {"patches": patches, "patch_coord": coord, "patch_valid": torch.ones(1, h * w, dtype=torch.bool)}
        )
        return found

    assert_same(source, NaViT.from_timm(source), reads, ODD, "embeds.proj.weight")


def resized(model: Any, x: torch.Tensor) -> Any:
    return model(pixel_values=x[None], interpolate_pos_encoding=True)


def blocks(x: torch.Tensor, side: int, frames: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Patches of one image, block of patches by block, as Qwen's processors lay them; and its grid."""
    h, w = x.shape[1] // P, x.shape[2] // P
    x = x.view(3, h // side, side, P, w // side, side, P).permute(1, 4, 2, 5, 0, 3, 6)
    x = x.reshape(h * w, 3, 1, P, P).expand(-1, -1, frames, -1, -1)
    return x.reshape(h * w, -1), torch.tensor([[1, h, w]])


def gemma(model: Any, x: torch.Tensor) -> torch.Tensor:
    h, w = x.shape[1] // P, x.shape[2] // P
    # It scales pixels itself.
    patches = (x.view(3, h, P, w, P).permute(1, 3, 2, 4, 0).reshape(1, h * w, -1) + 1) / 2
    at = torch.stack([torch.arange(w).repeat(h), torch.arange(h).repeat_interleave(w)], -1)
    found: torch.Tensor = model(patches, at[None]).last_hidden_state
    return found


def qwen3(model: Any, x: torch.Tensor) -> torch.Tensor:
    out = model(*blocks(x, 2, 2))
    return torch.cat([out.pooler_output, *out.deepstack_features], -1)


def kimi(model: Any, x: torch.Tensor) -> torch.Tensor:
    patches, grid = blocks(x, 1, 1)
    out = model(patches.view(-1, 3, P, P), grid_thw=grid).last_hidden_state
    return out.reshape(-1, 32).mean(0, keepdim=True)


def paddle(model: Any, x: torch.Tensor) -> torch.Tensor:
    patches, grid = blocks(x, 1, 1)
    return model(patches.view(1, -1, 3, P, P), grid_thw=grid).last_hidden_state.view(-1, 32).mean(0, keepdim=True)


WIDE: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "patch_size": P}
TOWER: dict[str, Any] = {**WIDE, "image_size": 16, "intermediate_size": 40}
VISUAL: dict[str, Any] = {"depth": 3, "num_heads": 4, "patch_size": P, "hidden_size": 32, "out_hidden_size": 24}
GATED: dict[str, Any] = {"use_gated_mlp": True, "hidden_act": "silu", "key_bias": True}
EMBED = "embeddings.patch_embedding.weight"
PROJ = "patch_embed.proj.weight"
KIMI: dict[str, Any] = {**WIDE, "intermediate_size": 40, "pos_emb_height": 5, "pos_emb_width": 5}
TABLED: dict[str, Any] = {"num_position_embeddings": 25, "deepstack_visual_indexes": [0, 1]}
GEMMA: dict[str, Any] = {"num_key_value_heads": 4, "head_dim": 8, "position_embedding_size": 20}

Row = tuple[Callable[[], nn.Module], Reads, list[tuple[int, int]], str]
TRANSFORMERS: dict[str, Row] = {
    "dinov2_g": (
        lambda: transformers.Dinov2Model(transformers.Dinov2Config(**WIDE, image_size=16, use_swiglu_ffn=True)),
        lambda m, x: m(pixel_values=x[None]).pooler_output,
        ODD,
        "embeddings.patch_embeddings.projection.weight",
    ),
    "dinov3": (
        lambda: transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**TOWER, num_register_tokens=2)),
        lambda m, x: m(pixel_values=x[None]).pooler_output,
        ODD,
        "embeddings.patch_embeddings.weight",
    ),
    "dinov3_7b": (
        lambda: transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**TOWER, **GATED)),
        lambda m, x: m(pixel_values=x[None]).pooler_output,
        ODD,
        "embeddings.patch_embeddings.weight",
    ),
    "ijepa": (
        lambda: transformers.IJepaModel(transformers.IJepaConfig(**TOWER)),
        lambda m, x: resized(m, x).last_hidden_state.mean(1),
        ODD,
        "embeddings.patch_embeddings.projection.weight",
    ),
    "ijepa_classifier": (
        lambda: transformers.IJepaForImageClassification(transformers.IJepaConfig(**TOWER, num_labels=5)),
        lambda m, x: resized(m, x).logits,
        ODD,
        "ijepa.embeddings.patch_embeddings.projection.weight",
    ),
    "clip": (
        lambda: transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**TOWER)),
        lambda m, x: resized(m, x).pooler_output,
        ODD,
        EMBED,
    ),
    "owlvit": (
        lambda: transformers.OwlViTVisionModel(transformers.OwlViTVisionConfig(**TOWER)),
        lambda m, x: resized(m, x).pooler_output,
        ODD,
        f"vision_model.{EMBED}",
    ),
    "siglip_headless": (
        lambda: transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**TOWER, vision_use_head=False)),
        lambda m, x: resized(m, x).last_hidden_state.mean(1),
        ODD,
        EMBED,
    ),
    "aimv2": (
        lambda: transformers.Aimv2VisionModel(transformers.Aimv2VisionConfig(**TOWER)),
        lambda m, x: m(pixel_values=x[None]).pooler_output,
        [(4, 4)] * 5,
        "embeddings.patch_embed.weight",
    ),
    "aimv2_native": (
        lambda: transformers.Aimv2VisionModel(transformers.Aimv2VisionConfig(**TOWER, is_native=True)),
        lambda m, x: m(pixel_values=x[None]).pooler_output,
        ODD,
        "embeddings.patch_embed.weight",
    ),
    "pixtral": (
        lambda: transformers.PixtralVisionModel(transformers.PixtralVisionConfig(**TOWER)),
        lambda m, x: m(pixel_values=x[None]).last_hidden_state.mean(1),
        ODD,
        "patch_conv.weight",
    ),
    "qwen2_vl": (
        lambda: Qwen2VisionTransformerPretrainedModel(
            Qwen2VLVisionConfig(depth=2, embed_dim=32, hidden_size=24, num_heads=4, patch_size=P)
        ),
        lambda m, x: m(*blocks(x, 2, 2)).pooler_output,
        EVEN,
        PROJ,
    ),
    "qwen2_5_vl": (
        lambda: Qwen2_5_VisionTransformerPretrainedModel(
            Qwen2_5_VLVisionConfig(**VISUAL, intermediate_size=40, window_size=16, fullatt_block_indexes=[1])
        ),
        lambda m, x: m(*blocks(x, 2, 2)).pooler_output,
        EVEN,
        PROJ,
    ),
    "qwen3_vl": (
        lambda: Qwen3VLVisionModel(Qwen3VLVisionConfig(**VISUAL, intermediate_size=40, **TABLED)),
        qwen3,
        EVEN,
        PROJ,
    ),
    "glm4v": (
        lambda: Glm4vVisionModel(Glm4vVisionConfig(**VISUAL, image_size=20, intermediate_size=40)),
        lambda m, x: m(*blocks(x, 2, 2)).pooler_output,
        EVEN,
        PROJ,
    ),
    "kimi": (lambda: Kimi_K25VisionModel(Kimi_K25VisionConfig(**KIMI)), kimi, EVEN, PROJ),
    "paddleocr_vl": (
        lambda: PaddleOCRVisionModel(PaddleOCRVisionConfig(**TOWER)),
        paddle,
        ODD,
        f"vision_model.{EMBED}",
    ),
    "gemma4": (
        lambda: transformers.Gemma4VisionModel(
            transformers.Gemma4VisionConfig(**WIDE, intermediate_size=40, **GEMMA, pooling_kernel_size=3)
        ),
        gemma,
        THIRDS,
        "patch_embedder.input_proj.weight",
    ),
}


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers(name: str) -> None:
    make, reads, grids, patch = TRANSFORMERS[name]
    source = shaken(make())
    assert_same(source, NaViT.from_transformers(source), reads, grids, patch)


def windowed() -> NaViT:
    return NaViT.from_transformers(shaken(TRANSFORMERS["qwen2_5_vl"][0]()))


def test_windows_are_the_same_on_every_backend() -> None:
    net = windowed()
    with torch.no_grad():
        found = ours(net, EVEN)
        net.config = replace(net.config, attention="dense")
        assert (ours(net, EVEN) - found).abs().max() / found.std() < 1e-5


PARTS: list[dict[str, Any]] = [
    {"rope": True, "rope_places": "centred", "positions": "none", "mlp_gate": True, "norm": "rms"},
    {"rope": True, "rope_speeds": "learned", "norm_place": "both"},
    {"rope": True, "window": 2, "window_free": (1,), "parallel": True},
    {"differential": True},
]


@pytest.mark.parametrize("options", PARTS, ids=str)
def test_parts_are_traced_whole(options: dict[str, Any]) -> None:
    net = NaViT(NaViTConfig(width=32, depth=3, heads=4, patch_size=P, classes=5, attention="dense", **options))
    net = shaken(net)  # type: ignore[assignment]
    batch = packed(net, ODD).to("cpu")
    with torch.no_grad():
        plain = net(batch)
        net.compile(backend="eager")
        assert torch.equal(net(batch), plain)


def test_images_that_do_not_fall_into_blocks_are_refused() -> None:
    net = windowed()
    with pytest.raises(ModelError, match=r"3 x 4 patches, the model merges 2 x 2 .* multiples of 2"):
        net.forward_merged(packed(net, [(2, 2), (3, 4)]).to("cpu"))
    dropped = packed(net, EVEN, drop=Drop(kind="constant", rate=0.5))
    with pytest.raises(ModelError, match="dropped, but the model's blocks attend in windows"):
        net(dropped.to("cpu"))
    net = NaViT.from_transformers(TRANSFORMERS["qwen2_vl"][0]())
    with pytest.raises(ModelError, match="dropped, but the model merges blocks"):
        net.forward_merged(dropped.to("cpu"))
    assert net(dropped.to("cpu")).shape[-1] == 32
    plain = NaViT.from_timm(VisionTransformer(img_size=16, **SMALL))
    with pytest.raises(ModelError, match=r"forward_merged needs model\.merge"):
        plain.forward_merged(packed(plain, ODD).to("cpu"))


def vit(**options: Any) -> nn.Module:
    return VisionTransformer(img_size=16, **{**SMALL, **options})


def flex(**options: Any) -> nn.Module:
    shape = {k: v for k, v in SMALL.items() if k != "num_classes"}
    return NaFlexVit(NaFlexVitCfg(**{**shape, **options}), num_classes=7)


def with_sinks() -> nn.Module:
    model = vit()
    model.blocks[0].attn.sinks = nn.Parameter(torch.zeros(4))  # type: ignore[union-attr]
    return model


def without_a_layer() -> nn.Module:
    model = vit()
    del model.blocks[1].mlp.fc2.weight  # type: ignore[union-attr]
    return model


REFUSED: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "beit": ("a bias of attention for each pair of tokens, which no kernel", lambda: Beit(img_size=16, **SMALL)),
    "relative": ("a bias of attention for each pair", lambda: VisionTransformerRelPos(img_size=16, **SMALL)),
    "two at once": ("block = 'ParallelThingsBlock'", lambda: vit(block_fn=ParallelThingsBlock)),
    "stem": (
        "the stem HybridEmbed .* read beyond a patch",
        lambda: timm.create_model("vit_tiny_r_s16_p8_224", depth=1),
    ),
    "gate last": ("gate_last = True", lambda: vit(mlp_layer=GluMlp)),
    "two activations": ("pooling's activation = 'gelu'", lambda: flex(swiglu_mlp=True)),
    "gated attention": ("attn_gated = True", lambda: flex(rope_type="axial", attn_gated=True)),
    "mrope": ("rope = 'RotaryEmbeddingMRope'", lambda: flex(rope_type="mrope", rope_mrope_section=(0, 2, 2))),
    "no transformer": ("from_transformers takes .*Siglip2VisionModel, .* not Linear", lambda: nn.Linear(2, 2)),
    "largest": ("global_pool = 'max'", lambda: vit(global_pool="max")),
    "relu": ("act_layer = 'ReLU'", lambda: vit(act_layer="relu")),
    "more weights": ("no place for: blocks.0.attn.sinks", lambda: with_sinks()),
    "less weights": ("no weight 'blocks.1.mlp.fc2.weight'", lambda: without_a_layer()),
    "pooling": ("global_pool = 'prr'", lambda: vit(global_pool="prr")),
    "clipped": (
        "use_clipped_linears = True",
        lambda: transformers.Gemma4VisionModel(
            transformers.Gemma4VisionConfig(**WIDE, intermediate_size=40, **GEMMA, use_clipped_linears=True)
        ),
    ),
    "activation": (
        "hidden_act = 'relu'",
        lambda: transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**TOWER, hidden_act="relu")),
    ),
    "family": (
        "from_transformers takes .* not ConvNextModel",
        lambda: transformers.ConvNextModel(transformers.ConvNextConfig(depths=[1] * 4, hidden_sizes=[8] * 4)),
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_taken_is_named_with_the_reason(name: str) -> None:
    words, make = REFUSED[name]
    model = make()
    take = NaViT.from_timm if type(model).__module__.startswith("timm") else NaViT.from_transformers
    with pytest.raises(ModelError, match=words):
        take(model)
