"""timm's ViT, DeiT, EVA, DINOv3 and NaFlexViT → configuration and weights of a NaViT with the same outputs.

In: a model object of timm, whatever its weights. Out: a `NaViTConfig` and its weights, part by part. timm itself is not
imported. Position grids are resized as timm does (bicubic or bilinear, antialiased), at every grid that is met, not once for
all.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from navit_loader.errors import ModelError

from ..config import NaViTConfig
from .convert import OtherModel, Taken, Turning, Weights, kernel, need, one_eps, query, turned

ACTIVATIONS = {"GELU": "gelu", "GELUTanh": "gelu_tanh", "QuickGELU": "quick_gelu", "SiLU": "silu"}
POOLS = {"token": "class", "avg": "mean", "map": "map"}
BIAS = "a bias of attention for each pair of tokens, which no kernel over packed sequences takes"
LACKING = {"VisionTransformerRelPos": BIAS, "Beit": BIAS}
"""Transformers of timm that are asked for often, and what of them a NaViT does not have."""
CLASSES = ("VisionTransformer", "VisionTransformerDistilled", "NaFlexVit", "Eva")
BLOCKS = {
    "Block": "before",
    "EvaBlock": "before",
    "ResPostBlock": "after",
    "EvaBlockPostNorm": "after",
    "ParallelScalingBlock": "before",
    "DiffParallelScalingBlock": "before",
}
ATTENTIONS = ("Attention", "AttentionRope", "EvaAttention", "DiffAttention")
MLPS = ("Mlp", "GluMlp", "SwiGLU")


def convert(model: Any, weights: Mapping[str, Tensor] | None = None) -> Taken:
    """Configuration and weights.

    Args:
        model: a `VisionTransformer`, `VisionTransformerDistilled`, `NaFlexVit` or `Eva` of timm.
        weights: its weights, where they are not the model's own.

    Raises:
        ModelError: another class, or an option that NaViT does not have; names it.
    """
    name = type(model).__name__
    if name not in CLASSES:
        why = f": it has {LACKING[name]}" if name in LACKING else ""
        raise ModelError(f"from_timm takes {', '.join(CLASSES)}, not {name}{why}")
    flex = name == "NaFlexVit"
    embed, token = (model.embeds, model.embeds) if flex else (model.patch_embed, model)
    block = model.blocks[0]
    parallel = type(block).__name__.endswith("ParallelScalingBlock")
    _check(model, embed, block, name)
    source = OtherModel(name, model.state_dict() if weights is None else weights)
    attention, mlp = (block, block) if parallel else (block.attn, block.mlp)
    gated = not parallel and type(mlp).__name__ in ("GluMlp", "SwiGLU")
    hidden = block.in_split[0] if parallel else mlp.fc2.in_features
    # The norm of a difference of attentions is of its own kind everywhere.
    norm, eps = one_eps(model, name, lambda part: part.endswith("sub_norm"))
    pair = "blocks.0." if parallel else "blocks.0.attn."
    activation = _activation(mlp.mlp_act if parallel else mlp.act, name)
    turning, rope = _rope(getattr(model, "rope", None), name)
    pooled = not isinstance(model.fc_norm, nn.Identity)
    pictures = getattr(model, "pretrained_cfg", None) or {}
    pooling = getattr(model, "attn_pool", None)
    registers = getattr(token, "reg_token", None)
    config = NaViTConfig(
        width=model.embed_dim,
        depth=len(model.blocks),
        heads=attention.num_heads,
        mlp_ratio=hidden / model.embed_dim,
        patch_size=embed.patch_size[0],
        patch_filter="bicubic",
        mean=tuple(pictures.get("mean", (0.5, 0.5, 0.5))),
        std=tuple(pictures.get("std", (0.5, 0.5, 0.5))),
        **(_flex_positions(embed, name) if flex else _positions(model, embed)),
        **rope,
        patch_norm=not isinstance(getattr(embed, "norm", nn.Identity()), nn.Identity),
        embed_norm=not isinstance(model.norm_pre, nn.Identity),
        norm=norm,  # type: ignore[arg-type]
        norm_place=BLOCKS[type(block).__name__],  # type: ignore[arg-type]
        last_norm=pooled or not isinstance(model.norm, nn.Identity),
        parallel=parallel,
        qk_norm=source.has("blocks.0.attn.q_norm.weight") or source.has("blocks.0.q_norm.weight"),
        qkv_bias=any(
            source.has(f"blocks.0.{n}")
            for n in (
                "attn.qkv.bias",
                "attn.q_bias",
                "attn.q_proj.bias",
                "attn.k_proj.bias",
                "in_proj.bias",
            )
        ),
        differential=source.has(f"{pair}sub_norm.weight"),
        norm_bias=norm == "layer",
        norm_pooled=pooled,
        out_bias=any(source.has(f"blocks.0.{n}.bias") for n in ("attn.proj", "attn_out_proj", "out_proj")),
        mlp_bias=parallel or mlp.fc2.bias is not None,
        mlp_gate=gated,
        attn_norm=source.has("blocks.0.attn.norm.weight"),
        mlp_norm=source.has("blocks.0.mlp.norm.weight"),
        norm_eps=eps,
        activation=activation,  # type: ignore[arg-type]
        layer_scale=float(any(source.has(f"blocks.0.{n}") for n in ("ls1.gamma", "gamma_1", "ls.gamma"))),
        class_token=token.cls_token is not None,
        distill_token=name == "VisionTransformerDistilled",
        registers=0 if registers is None else registers.shape[1],
        pool_prefix=_reads_prefix(model, name),
        pool=POOLS[model.global_pool],  # type: ignore[arg-type]
        **(_pooling(pooling, attention.num_heads, hidden, activation, name) if pooling is not None else {}),
        classes=model.num_classes,
    )
    return config, _weights(source, config, embed, "embeds." if flex else "", turning, model)


def _weights(
    source: OtherModel, config: NaViTConfig, embed: Any, prefix: str, turning: Turning | None, model: Any
) -> Iterator[Weights]:
    yield _embedding(embed, source, config, prefix)
    for n in range(config.depth):
        part = (_parallel_block if config.parallel else _block)(source, config, model.blocks[n], n)
        if config.rope_speeds == "learned":
            # Their first grid is y, or x where it says so.
            freqs = source.take("rope.freqs")[:, n]
            part[f"blocks.{n}.speeds"] = freqs.flip(0) if model.rope.grid_indexing == "xy" else freqs
        yield turned(part, config.heads, turning)
    if config.last_norm:
        yield source.layer("fc_norm" if config.norm_pooled else "norm", "norm")
    if config.pool == "map":
        yield _pool(source, config.pool_heads or config.heads)
    for theirs, ours in (("head", "head"), ("head_dist", "distill_head")):
        if config.classes and source.has(f"{theirs}.weight"):
            yield source.layer(theirs, ours)
    source.finish()


def _check(model: Any, embed: Any, block: Any, name: str) -> None:
    """Refuses options without weights of their own; those with weights are found by `OtherModel`."""
    kind = type(block).__name__
    need(kind in BLOCKS, name, "block", kind, f"{', '.join(BLOCKS)}")
    if "Parallel" not in kind:
        for what, part, known in (("attention", block.attn, ATTENTIONS), ("MLP", block.mlp, MLPS)):
            need(type(part).__name__ in known, name, what, type(part).__name__, f"{', '.join(known)}")
        need(getattr(block.attn, "gate", None) is None, name, "attn_gated", True, "attention without a gate")
        gate_last = getattr(block.mlp, "gate_last", False)
        need(not gate_last, name, "gate_last", True, "the gate first")
        width = block.attn.proj.in_features
        need(
            width == model.embed_dim,
            name,
            "width of all heads",
            width,
            f"heads that share the width of {model.embed_dim}",
        )
    if embed.__class__.__name__ not in ("PatchEmbed", "NaFlexEmbeds"):
        kind = type(embed).__name__
        raise ModelError(
            f"{name} with the stem {kind} cannot be taken over: its convolutions read beyond a patch, and patches are packed "
            "by themselves"
        )
    need(model.global_pool in POOLS, name, "global_pool", model.global_pool, f"{', '.join(POOLS)}")
    twice = not (isinstance(model.norm, nn.Identity) or isinstance(model.fc_norm, nn.Identity))
    need(not twice, name, "norms", "before and behind pooling", "one of them")
    square = getattr(model, "in_chans", 3) == 3 and len(set(embed.patch_size)) == 1
    need(square, name, "patches", embed.patch_size, "P × P × 3 patches")


def _activation(act: Any, name: str) -> str:
    kind = type(act).__name__
    need(kind in ACTIVATIONS, name, "act_layer", kind, f"{', '.join(ACTIVATIONS)}")
    return "gelu_tanh" if getattr(act, "approximate", "") == "tanh" else ACTIVATIONS[kind]


def _reads_prefix(model: Any, name: str) -> bool:
    """Whether pooling reads prefix tokens: Eva's attention pooling does, others' where they say so."""
    said = getattr(model, "pool_include_prefix", name == "Eva" and model.global_pool == "map")
    return bool(said and model.num_prefix_tokens > 0 and model.global_pool != "token")


def _pooling(pool: Any, heads: int, hidden: int, activation: str, name: str) -> dict[str, Any]:
    """Attention pooling where it differs from the encoder."""
    need(type(pool).__name__ == "AttentionPoolLatent", name, "pooling", type(pool).__name__, "AttentionPoolLatent")
    act = _activation(pool.mlp.act, name)
    need(act == activation, name, "pooling's activation", act, f"the encoder's, {activation}")
    found: dict[str, Any] = {} if pool.num_heads == heads else {"pool_heads": pool.num_heads}
    own = pool.mlp.fc1.out_features
    return found if own == hidden else {**found, "pool_mlp_ratio": own / pool.mlp.fc1.in_features}


def _rope(rope: Any, name: str) -> tuple[Turning | None, dict[str, Any]]:
    """How a model turns, and the keys of ours that say so."""
    if rope is None:
        return None, {}
    kind = type(rope).__name__
    known = {"RotaryEmbeddingCat": "index", "RotaryEmbeddingDinoV3": "centred", "RotaryEmbeddingMixed": "index"}
    need(kind in known, name, "rope", kind, f"{', '.join(known)}")
    turning = Turning("halves" if getattr(rope, "rotate_half", False) else "neighbours", rope.grid_indexing == "xy")
    found: dict[str, Any] = {"rope": True, "rope_places": known[kind]}
    if kind == "RotaryEmbeddingMixed":
        return Turning("neighbours"), {**found, "rope_speeds": "learned"}
    if kind == "RotaryEmbeddingDinoV3":
        by = (rope.normalize_coords, rope.min_period, rope.max_period)
        need(by == ("separate", None, None), name, "rope", by, "each axis by its own count, and a base")
    else:
        need(not rope.in_pixels and rope.grid_type == "index", name, "rope grid", rope.grid_type, "indices")
        if rope.ref_feat_shape is not None:
            found |= {"rope_places": "scaled", "rope_grid": tuple(rope.ref_feat_shape)}
    return turning, {**found, "rope_base": float(rope.temperature), "rope_offset": float(rope.grid_offset)}


def _positions(model: Any, embed: Any) -> dict[str, Any]:
    if model.pos_embed is None:
        return {"positions": "none"}
    return {"positions": "resized_grid", "position_grid": tuple(embed.grid_size), "position_filter": "bicubic"}


def _flex_positions(embed: Any, name: str) -> dict[str, Any]:
    if embed.pos_embed_type == "none":
        return {"positions": "none"}
    need(not embed.pos_embed_use_grid_sample, name, "pos_embed_use_grid_sample", True, "resized grids")
    mode = embed.pos_embed_interp_mode
    need(mode in ("bilinear", "bicubic"), name, "pos_embed_interp_mode", mode, "bilinear and bicubic")
    found: dict[str, Any] = {"position_grid": tuple(embed.pos_embed_grid_size)}
    found["fraction"] = "longer" if embed.pos_embed_ar_preserving else "each"
    if embed.pos_embed_type == "factorized":
        return {**found, "positions": "resized_axes", "position_filter": "bilinear", "position_antialias": False}
    return {
        **found,
        "positions": "resized_grid",
        "position_filter": mode,
        "position_antialias": embed.pos_embed_antialias,
        "position_corners": embed.pos_embed_align_corners,
    }


def _embedding(embed: Any, source: OtherModel, config: NaViTConfig, prefix: str) -> Weights:
    place = prefix or "patch_embed."
    weight = source.take(f"{place}proj.weight")
    if weight.ndim == 2 and not embed.channels_last:
        weight = weight.view(-1, 3, config.patch_size, config.patch_size)
    bias = source.take(f"{place}proj.bias") if source.has(f"{place}proj.bias") else weight.new_zeros(len(weight))
    found = {"patch_embed.proj.weight": kernel(weight) if weight.ndim == 4 else weight, "patch_embed.proj.bias": bias}
    if config.patch_norm:
        found |= source.layer(f"{place}norm", "patch_norm")
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


def _block(source: OtherModel, config: NaViTConfig, block: Any, n: int) -> Weights:
    theirs = ours = f"blocks.{n}."
    norms = ("norm1", "norm2") if config.norm_place == "before" else ("after1", "after2")
    found = source.layer(f"{theirs}norm1", ours + norms[0]) | source.layer(f"{theirs}norm2", ours + norms[1])
    found |= _qkv(source, config, f"{theirs}attn.", f"{ours}qkv")
    found |= source.layer(f"{theirs}attn.proj", f"{ours}out")
    if source.has(f"{theirs}mlp.fc1_g.weight"):
        found |= source.joined([f"{theirs}mlp.fc1_g", f"{theirs}mlp.fc1_x"], f"{ours}mlp.up")
    else:
        found |= source.layer(f"{theirs}mlp.fc1", f"{ours}mlp.up")
    found |= source.layer(f"{theirs}mlp.fc2", f"{ours}mlp.down")
    for there, name in ((config.qk_norm, "q_norm"), (config.qk_norm, "k_norm"), (config.attn_norm, "norm")):
        if there:
            found |= source.layer(f"{theirs}attn.{name}", ours + ("attn_norm" if name == "norm" else name))
    if config.differential:
        found |= _difference(source, f"{theirs}attn.", ours, n)
    if config.mlp_norm:
        found |= source.layer(f"{theirs}mlp.norm", f"{ours}mlp.norm")
    if config.layer_scale:
        for i in (1, 2):
            name = next((n for n in (f"{theirs}ls{i}.gamma", f"{theirs}gamma_{i}") if source.has(n)), "")
            # Where attention alone is scaled, the MLP's scale is 1.
            found[f"{ours}scale{i}"] = source.take(name) if name else torch.ones_like(found[f"{ours}scale1"])
    return found


def _qkv(source: OtherModel, config: NaViTConfig, theirs: str, ours: str) -> Weights:
    if source.has(f"{theirs}qkv.weight"):
        found = source.layer(f"{theirs}qkv", ours)
        if source.has(f"{theirs}q_bias"):
            q, v = (source.take(f"{theirs}{part}_bias") for part in "qv")
            found[f"{ours}.bias"] = torch.cat([q, torch.zeros_like(q), v])
        return found
    parts = [source.layer(f"{theirs}{part}_proj", "") for part in "qkv"]
    for part in parts[1:]:
        # Keys and values that several heads share are each head's own from here on.
        times = config.width // len(part[".weight"])
        for key, value in part.items():
            channels = config.width // config.heads
            part[key] = value.view(-1, channels, *value.shape[1:]).repeat_interleave(times, 0).flatten(0, 1)
    found = {f"{ours}.weight": torch.cat([part[".weight"] for part in parts])}
    if config.qkv_bias:
        zero = found[f"{ours}.weight"].new_zeros(config.width)
        found[f"{ours}.bias"] = torch.cat([part.get(".bias", zero) for part in parts])
    return found


def _difference(source: OtherModel, theirs: str, ours: str, n: int) -> Weights:
    weight = source.take(f"{theirs}sub_norm.weight")
    start = 0.8 - 0.6 * math.exp(-0.3 * n)
    if source.has(f"{theirs}lambda_a"):
        # A scalar is a product too, of itself and 1.
        pairs = weight.new_zeros(2, 2, len(weight) // 2)
        pairs[:, 0, 0] = torch.stack([source.take(f"{theirs}lambda_{part}") for part in "ab"])
        pairs[:, 1, 0] = 1
    else:
        parts = [source.take(f"{theirs}lambda_{part}{i}") for i in (1, 2) for part in "qk"]
        pairs = torch.stack(parts).view(2, 2, -1)
    return {f"{ours}difference.pairs": pairs, f"{ours}difference.norm.weight": weight * (1 - start)}


def _parallel_block(source: OtherModel, config: NaViTConfig, block: Any, n: int) -> Weights:
    theirs = ours = f"blocks.{n}."
    hidden = block.in_split[0]
    weight = source.take(f"{theirs}in_proj.weight")
    found = source.layer(f"{theirs}in_norm", f"{ours}norm1")
    found |= {f"{ours}mlp.up.weight": weight[:hidden], f"{ours}qkv.weight": weight[hidden:]}
    if config.qkv_bias:
        bias = source.take(f"{theirs}in_proj.bias")
        found |= {f"{ours}mlp.up.bias": bias[:hidden], f"{ours}qkv.bias": bias[hidden:]}
    else:
        found[f"{ours}mlp.up.bias"] = source.take(f"{theirs}mlp_bias")
    if source.has(f"{theirs}out_proj.weight"):
        both = source.layer(f"{theirs}out_proj", f"{ours}out")
        weight = both[f"{ours}out.weight"]
        found |= {**both, f"{ours}out.weight": weight[:, : config.width]}
        # Its bias is added once.
        found |= {
            f"{ours}mlp.down.weight": weight[:, config.width :],
            f"{ours}mlp.down.bias": weight.new_zeros(config.width),
        }
    else:
        found |= source.layer(f"{theirs}attn_out_proj", f"{ours}out")
        found |= source.layer(f"{theirs}mlp_out_proj", f"{ours}mlp.down")
    if config.differential:
        found |= _difference(source, theirs, ours, n)
    if config.qk_norm:
        found |= source.layer(f"{theirs}q_norm", f"{ours}q_norm") | source.layer(f"{theirs}k_norm", f"{ours}k_norm")
    if config.layer_scale:
        found[f"{ours}scale1"] = source.take(f"{theirs}ls.gamma")
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
