"""transformers' vision towers → configuration and weights of a NaViT with the same outputs.

In: a SigLIP, SigLIP 2, ViT or DINOv2 model object of transformers ≥ 5, whatever its weights. Out: a `NaViTConfig` and a
state dict. transformers itself is not imported. Normalisation of pixels is not part of those models, so the means and
deviations that their families were trained with are filled in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from navit_loader.errors import ModelError

from ..config import NaViTConfig
from .convert import OtherModel, Weights, kernel, need, query

ACTIVATIONS = {"gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "quick_gelu": "quick_gelu"}
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


@dataclass(frozen=True, slots=True)
class Names:
    """How one family names the parts of a block; `layers` is where the blocks are."""

    layers: str
    norm1: str
    norm2: str
    attention: str
    out: str
    last: str
    scale: str = ""


SIGLIP = Names("encoder.layers", "layer_norm1", "layer_norm2", "self_attn", "out_proj", "post_layernorm")
VIT = Names("layers", "layernorm_before", "layernorm_after", "attention", "o_proj", "layernorm")
DINOV2 = Names("encoder.layer", "norm1", "norm2", "attention", "o_proj", "layernorm", "layer_scale")

FAMILIES = {
    "Siglip2VisionModel": SIGLIP,
    "Siglip2ForImageClassification": SIGLIP,
    "SiglipVisionModel": SIGLIP,
    "SiglipForImageClassification": SIGLIP,
    "ViTModel": VIT,
    "ViTForImageClassification": VIT,
    "Dinov2Model": DINOV2,
    "Dinov2WithRegistersModel": DINOV2,
}


def convert(model: Any) -> tuple[NaViTConfig, Weights]:
    """Configuration and weights.

    The pooled output is that of SigLIP's head, or the class token after the last norm; a classifier comes along. What
    ViT calls its pooler (a dense layer and tanh) is left out, and so is the mask token of DINOv2's pre-training.

    Args:
        model: one of `FAMILIES`, or a whole SigLIP model, of which the vision tower is taken.

    Raises:
        ModelError: another class, or an option that NaViT does not have; names it.
    """
    name = type(model).__name__
    if name in ("Siglip2Model", "SiglipModel"):
        return convert(model.vision_model)
    if name not in FAMILIES:
        raise ModelError(f"from_transformers takes {', '.join(FAMILIES)}, Siglip2Model and SiglipModel, not {name}")
    names = FAMILIES[name]
    shape = getattr(model.config, "vision_config", model.config)
    config = _config(model, shape, names, name)
    strip = {"ViTForImageClassification": "vit."}.get(name, "vision_model.")
    source = OtherModel(model, strip)
    weights = _embedding(source, config)
    for n in range(config.depth):
        weights |= _block(source, config, names, n)
    weights |= source.layer(names.last, "norm")
    if config.pool == "map":
        weights |= _pool(source, config.heads)
    if config.classes:
        weights |= source.layer("classifier", "head")
    # A classifier on SigLIP reads the mean, so the head of its pre-training is left behind.
    source.finish(("pooler.", "embeddings.mask_token", *(("head.",) if config.pool == "mean" else ())))
    return config, weights


def _config(model: Any, shape: Any, names: Names, name: str) -> NaViTConfig:
    need(shape.hidden_act in ACTIVATIONS, name, "hidden_act", shape.hidden_act, f"{', '.join(ACTIVATIONS)}")
    need(shape.num_channels == 3, name, "num_channels", shape.num_channels, "3 channels")
    need(not getattr(shape, "use_swiglu_ffn", False), name, "use_swiglu_ffn", True, "the plain MLP")
    siglip, flexible = names is SIGLIP, name.startswith("Siglip2")
    side = int(shape.num_patches**0.5) if flexible else shape.image_size // shape.patch_size
    hidden = getattr(shape, "intermediate_size", None) or int(shape.hidden_size * shape.mlp_ratio)
    classifies = name.endswith("ForImageClassification")
    if siglip:
        need(classifies or shape.vision_use_head, name, "vision_use_head", False, "a head to pool with")
    return NaViTConfig(
        width=shape.hidden_size,
        depth=shape.num_hidden_layers,
        heads=shape.num_attention_heads,
        mlp_ratio=hidden / shape.hidden_size,
        patch_size=shape.patch_size,
        **(IMAGENET if names is DINOV2 else {}),  # type: ignore[arg-type]
        positions="resized_grid",
        position_grid=(side, side),
        position_filter="bilinear" if flexible else "bicubic",
        position_antialias=flexible or name == "Dinov2WithRegistersModel",
        qk_norm=False,
        qkv_bias=siglip or shape.qkv_bias,
        norm_bias=True,
        norm_eps=shape.layer_norm_eps,
        activation=ACTIVATIONS[shape.hidden_act],  # type: ignore[arg-type]
        layer_scale=float(names is DINOV2),
        class_token=not siglip,
        registers=getattr(shape, "num_register_tokens", 0),
        pool="class" if not siglip else "mean" if classifies else "map",
        classes=model.config.num_labels if classifies else 0,
    )


def _embedding(source: OtherModel, config: NaViTConfig) -> Weights:
    place = next(p for p in ("patch_embeddings.projection", "patch_embedding") if source.has(f"embeddings.{p}.weight"))
    found = source.layer(f"embeddings.{place}", "patch_embed.proj")
    if found["patch_embed.proj.weight"].ndim == 4:
        found["patch_embed.proj.weight"] = kernel(found["patch_embed.proj.weight"])
    if not config.class_token:
        return {**found, "positions.table": source.take("embeddings.position_embedding.weight")}
    table = source.take("embeddings.position_embeddings")[0]
    # The class token has a place of its own: one vector is as good as two added.
    tokens = [source.take("embeddings.cls_token")[0] + table[:1]]
    if config.registers:
        tokens.append(source.take("embeddings.register_tokens")[0])
    return {**found, "positions.table": table[1:], "prefix": torch.cat(tokens)}


def _block(source: OtherModel, config: NaViTConfig, names: Names, n: int) -> Weights:
    theirs, ours = f"{names.layers}.{n}.", f"blocks.{n}."
    found = source.layer(theirs + names.norm1, f"{ours}norm1") | source.layer(theirs + names.norm2, f"{ours}norm2")
    parts = [f"{theirs}{names.attention}.{part}_proj" for part in "qkv"]
    found |= source.joined(parts, f"{ours}qkv", config.qkv_bias)
    found |= source.layer(f"{theirs}{names.attention}.{names.out}", f"{ours}out")
    found |= source.layer(f"{theirs}mlp.fc1", f"{ours}mlp.up") | source.layer(f"{theirs}mlp.fc2", f"{ours}mlp.down")
    if config.layer_scale:
        found |= {f"{ours}scale{i}": source.take(f"{theirs}{names.scale}{i}.lambda1") for i in (1, 2)}
    return found


def _pool(source: OtherModel, heads: int) -> Weights:
    weight, bias = source.take("head.attention.in_proj_weight"), source.take("head.attention.in_proj_bias")
    width = weight.shape[1]
    found = {
        "pool.query": query(source.take("head.probe"), weight[:width], bias[:width], heads),
        "pool.kv.weight": weight[width:],
        "pool.kv.bias": bias[width:],
    }
    for theirs, ours in (
        ("attention.out_proj", "out"),
        ("layernorm", "norm"),
        ("mlp.fc1", "mlp.up"),
        ("mlp.fc2", "mlp.down"),
    ):
        found |= source.layer(f"head.{theirs}", f"pool.{ours}")
    return found
