"""timm's ViT, DeiT and NaFlexViT → configuration and weights of a NaViT with the same outputs.

In: a model object of timm, whatever its weights. Out: a `NaViTConfig` and a state dict. timm itself is not imported.
Position grids are resized as timm does (bicubic or bilinear, antialiased), at every grid that is met, not once for all.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from navit_loader.errors import ModelError

from ..config import NaViTConfig
from .convert import OtherModel, Weights, kernel, need, query

ACTIVATIONS = {"GELU": "gelu", "GELUTanh": "gelu_tanh", "QuickGELU": "quick_gelu"}
POOLS = {"token": "class", "avg": "mean", "map": "map"}
LACKING = {"Eva": "rotary positions", "VisionTransformerRelPos": "relative positions", "Beit": "relative positions"}
"""Transformers of timm that are asked for often, and what of them a NaViT does not have."""
CLASSES = ("VisionTransformer", "VisionTransformerDistilled", "NaFlexVit")


def convert(model: Any) -> tuple[NaViTConfig, Weights]:
    """Configuration and weights.

    Args:
        model: a `VisionTransformer`, `VisionTransformerDistilled` or `NaFlexVit` of timm.

    Raises:
        ModelError: another class, or an option that NaViT does not have; names it.
    """
    name = type(model).__name__
    if name not in CLASSES:
        why = f" with its {LACKING[name]}" if name in LACKING else ""
        raise ModelError(f"from_timm takes {', '.join(CLASSES)}, not {name}{why}")
    flex = name == "NaFlexVit"
    embed = model.embeds if flex else model.patch_embed
    block = model.blocks[0]
    _check(model, embed, block, name)
    source = OtherModel(model)
    pooled = isinstance(model.norm, nn.Identity)
    activation = "gelu_tanh" if getattr(block.mlp.act, "approximate", "") == "tanh" else _activation(block, name)
    pictures = getattr(model, "pretrained_cfg", None) or {}
    config = NaViTConfig(
        width=model.embed_dim,
        depth=len(model.blocks),
        heads=block.attn.num_heads,
        mlp_ratio=block.mlp.fc1.out_features / model.embed_dim,
        patch_size=embed.patch_size[0],
        patch_filter="bicubic",
        mean=tuple(pictures.get("mean", (0.5, 0.5, 0.5))),
        std=tuple(pictures.get("std", (0.5, 0.5, 0.5))),
        embed_norm=not isinstance(model.norm_pre, nn.Identity),
        qk_norm=source.has("blocks.0.attn.q_norm.weight"),
        qkv_bias=block.attn.qkv.bias is not None,
        norm_bias=True,
        norm_pooled=pooled,
        out_bias=block.attn.proj.bias is not None,
        mlp_bias=block.mlp.fc1.bias is not None,
        norm_eps=(model.fc_norm if pooled else model.norm).eps,
        activation=activation,  # type: ignore[arg-type]
        layer_scale=float(source.has("blocks.0.ls1.gamma")),
        class_token=model.has_class_token,
        distill_token=name == "VisionTransformerDistilled",
        registers=model.num_reg_tokens,
        pool=POOLS[model.global_pool],  # type: ignore[arg-type]
        classes=model.num_classes,
        **(_flex_positions(embed, name) if flex else _positions(model, embed)),
    )
    weights = _embedding(model, embed, source, config, "embeds." if flex else "")
    for n in range(config.depth):
        weights |= _block(source, config, n)
    weights |= source.layer("fc_norm" if pooled else "norm", "norm")
    if config.pool == "map":
        weights |= _pool(source, config.heads)
    for theirs, ours in (("head", "head"), ("head_dist", "distill_head")):
        if config.classes and source.has(f"{theirs}.weight"):
            weights |= source.layer(theirs, ours)
    source.finish()
    return config, weights


def _check(model: Any, embed: Any, block: Any, name: str) -> None:
    """Refuses options without weights of their own; those with weights are found by `OtherModel`."""
    need(getattr(model, "rope", None) is None, name, "rope", True, "learned positions to take over")
    parts = {"block": (block, "Block"), "attention": (getattr(block, "attn", None), "Attention")}
    parts["MLP"] = (getattr(block, "mlp", None), "Mlp")
    for what, (part, known) in parts.items():
        need(type(part).__name__ == known, name, what, type(part).__name__, f"the plain {known}")
    need(isinstance(block.norm1, nn.LayerNorm), name, "norm", type(block.norm1).__name__, "LayerNorm")
    need(model.global_pool in POOLS, name, "global_pool", model.global_pool, f"{', '.join(POOLS)}")
    prefix = model.num_prefix_tokens
    within = model.pool_include_prefix and model.global_pool != "token" and prefix > 0
    need(not within, name, "pool_include_prefix", True, "pooling over patches alone")
    final = not (isinstance(model.norm, nn.Identity) and isinstance(model.fc_norm, nn.Identity))
    need(final, name, "final_norm", False, "a norm after the last block")
    need(
        model.in_chans == 3 and len(set(embed.patch_size)) == 1, name, "patches", embed.patch_size, "P × P × 3 patches"
    )
    if model.global_pool == "map":
        heads = model.attn_pool.num_heads
        need(heads == block.attn.num_heads, name, "attn_pool_num_heads", heads, "as many as the encoder's")


def _activation(block: Any, name: str) -> str:
    kind = type(block.mlp.act).__name__
    need(kind in ACTIVATIONS, name, "act_layer", kind, f"{', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[kind]


def _positions(model: Any, embed: Any) -> dict[str, Any]:
    if model.pos_embed is None:
        return {"positions": "none"}
    return {"positions": "resized_grid", "position_grid": tuple(embed.grid_size), "position_filter": "bicubic"}


def _flex_positions(embed: Any, name: str) -> dict[str, Any]:
    if embed.pos_embed_type == "none":
        return {"positions": "none"}
    need(not embed.pos_embed_use_grid_sample, name, "pos_embed_use_grid_sample", True, "resized grids")
    need(not embed.pos_embed_align_corners, name, "pos_embed_align_corners", True, "half-pixel centres")
    mode = embed.pos_embed_interp_mode
    need(mode in ("bilinear", "bicubic"), name, "pos_embed_interp_mode", mode, "bilinear and bicubic")
    found: dict[str, Any] = {"position_grid": tuple(embed.pos_embed_grid_size)}
    found["fraction"] = "longer" if embed.pos_embed_ar_preserving else "each"
    if embed.pos_embed_type == "factorized":
        return {**found, "positions": "resized_axes", "position_filter": "bilinear", "position_antialias": False}
    antialias = embed.pos_embed_antialias
    return {**found, "positions": "resized_grid", "position_filter": mode, "position_antialias": antialias}


def _embedding(model: Any, embed: Any, source: OtherModel, config: NaViTConfig, prefix: str) -> Weights:
    place = prefix or "patch_embed."
    weight = source.take(f"{place}proj.weight")
    if weight.ndim == 2 and not embed.channels_last:
        weight = weight.view(-1, 3, config.patch_size, config.patch_size)
    bias = source.take(f"{place}proj.bias") if source.has(f"{place}proj.bias") else weight.new_zeros(len(weight))
    found = {"patch_embed.proj.weight": kernel(weight) if weight.ndim == 4 else weight, "patch_embed.proj.bias": bias}
    if config.embed_norm:
        found |= source.layer("norm_pre", "embed_norm")
    names = [n for n in ("cls_token", "dist_token", "reg_token") if source.has(prefix + n)]
    tokens = [source.take(prefix + n)[0] for n in names]
    if config.positions == "resized_axes":
        found |= {f"positions.{axis}": source.take(f"embeds.pos_embed_{axis}")[0] for axis in "yx"}
    elif config.positions == "resized_grid":
        table = source.take(f"{prefix}pos_embed").flatten(0, -2)
        patches = config.position_grid[0] * config.position_grid[1]
        found["positions.table"] = table[len(table) - patches :]
        if len(table) > patches:
            # The class token and its like have a place of their own: one vector is as good as two added.
            tokens = [torch.cat(tokens) + table[: len(table) - patches]]
    if tokens:
        found["prefix"] = torch.cat(tokens)
    return found


def _block(source: OtherModel, config: NaViTConfig, n: int) -> Weights:
    theirs = ours = f"blocks.{n}."
    found = source.layer(f"{theirs}norm1", f"{ours}norm1") | source.layer(f"{theirs}norm2", f"{ours}norm2")
    found |= source.layer(f"{theirs}attn.qkv", f"{ours}qkv", config.qkv_bias)
    found |= source.layer(f"{theirs}attn.proj", f"{ours}out", config.out_bias)
    found |= source.layer(f"{theirs}mlp.fc1", f"{ours}mlp.up", config.mlp_bias)
    found |= source.layer(f"{theirs}mlp.fc2", f"{ours}mlp.down", config.mlp_bias)
    if config.qk_norm:
        found |= source.layer(f"{theirs}attn.q_norm", f"{ours}q_norm")
        found |= source.layer(f"{theirs}attn.k_norm", f"{ours}k_norm")
    if config.layer_scale:
        found |= {f"{ours}scale{i}": source.take(f"{theirs}ls{i}.gamma") for i in (1, 2)}
    return found


def _pool(source: OtherModel, heads: int) -> Weights:
    def bias(name: str, weight: Tensor) -> Tensor:
        return source.take(name) if source.has(name) else weight.new_zeros(len(weight))

    weight, kv = source.take("attn_pool.q.weight"), source.take("attn_pool.kv.weight")
    found = {
        "pool.query": query(source.take("attn_pool.latent"), weight, bias("attn_pool.q.bias", weight), heads),
        "pool.kv.weight": kv,
        "pool.kv.bias": bias("attn_pool.kv.bias", kv),
    }
    for theirs, ours in (("proj", "out"), ("norm", "norm"), ("mlp.fc1", "mlp.up"), ("mlp.fc2", "mlp.down")):
        found |= source.layer(f"attn_pool.{theirs}", f"pool.{ours}")
    return found
