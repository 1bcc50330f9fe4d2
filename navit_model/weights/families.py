"""Families of transformers' vision towers: how each names its parts, and which keys of ours say what it computes.

In: a tower of transformers ≥ 5 and its configuration. Out: `Family`, a table of names, and keys of `NaViTConfig`. A new family
is an entry here. Apart from `from_transformers`, which reads any of them by its table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from .convert import Turning, need

ACTIVATIONS = {"gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "quick_gelu": "quick_gelu", "silu": "silu"}
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
CLIP = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}
PLAIN: dict[str, Any] = {"qk_norm": False, "norm_bias": True}

Keys = Callable[[Any, Any, str], dict[str, Any]]
"""Of a tower's configuration, the tower and its class: what of `NaViTConfig` is its family's own."""


@dataclass(frozen=True, slots=True)
class Family:
    """How one family names its parts; those of a block are said without its number.

    Attributes:
        keys: see `Keys`.
        blocks: where the blocks are.
        patch: the patch embedding.
        norms: of a block: before attention and MLP; two more behind them, where there are.
        qkv: one layer for queries, keys and values, or three.
        out: attention's output projection.
        mlp: the MLP's layers, first and last; with a gate, the gate comes first. Several spellings, the first that is there.
        last: the norm behind the last block.
        table: position table.
        tokens: learned prefix tokens.
        patch_norm: a norm between patches and positions.
        embed_norm: a norm between embedding and blocks.
        scale: scale of each branch, with {} for 1 and 2.
        inner: norms of queries and keys.
        classifier: of a model that classifies.
        unused: beginnings of names that are left behind.
        turning: which channels turn together.
    """

    keys: Keys
    blocks: str
    patch: str
    norms: tuple[str, ...]
    qkv: tuple[str, ...]
    out: str
    mlp: tuple[tuple[str, ...], ...]
    last: str = ""
    table: str = ""
    tokens: tuple[str, ...] = ()
    patch_norm: str = ""
    embed_norm: str = ""
    scale: str = ""
    inner: tuple[str, ...] = ()
    classifier: str = "classifier"
    unused: tuple[str, ...] = ()
    turning: Turning | None = None


def _qkv(prefix: str) -> tuple[str, ...]:
    return tuple(f"{prefix}.{part}_proj" for part in "qkv")


def _side(shape: Any) -> int:
    return int(shape.image_size) // int(shape.patch_size)


def _grid(side: int, filter: str = "bicubic", antialias: bool = False, corners: bool = False) -> dict[str, Any]:
    return {
        "positions": "resized_grid",
        "position_grid": (side, side),
        "position_filter": filter,
        "position_antialias": antialias,
        "position_corners": corners,
    }


def _turns(shape: Any, name: str) -> dict[str, Any]:
    """Rotary positions as `rope_parameters` say them."""
    rope = shape.rope_parameters
    need(rope["rope_type"] == "axial", name, "rope_type", rope["rope_type"], "axial rotation")
    return {"rope": True, "rope_base": float(rope["rope_theta"])}


def _siglip(shape: Any, model: Any, name: str) -> dict[str, Any]:
    flexible, classifies = name.startswith("Siglip2"), name.endswith("ForImageClassification")
    side = int(shape.num_patches**0.5) if flexible else _side(shape)
    headless = not classifies and not shape.vision_use_head
    return {
        **_grid(side, "bilinear" if flexible else "bicubic", flexible),
        "norm_eps": shape.layer_norm_eps,
        "pool": "mean" if classifies or headless else "map",
    }


def _vit(shape: Any, model: Any, name: str) -> dict[str, Any]:
    return {**_grid(_side(shape)), "norm_eps": shape.layer_norm_eps, "class_token": True, "pool": "class"}


def _ijepa(shape: Any, model: Any, name: str) -> dict[str, Any]:
    return {**IMAGENET, **_grid(_side(shape)), "norm_eps": shape.layer_norm_eps, "pool": "mean"}


def _dinov2(shape: Any, model: Any, name: str) -> dict[str, Any]:
    registers = getattr(shape, "num_register_tokens", 0)
    own = {"layer_scale": 1.0, "registers": registers}
    if shape.use_swiglu_ffn:
        own["activation"] = "silu"
    return {
        **_vit(shape, model, name),
        **_grid(_side(shape), antialias=name.startswith("Dinov2With")),
        **IMAGENET,
        **own,
    }


def _dinov3(shape: Any, model: Any, name: str) -> dict[str, Any]:
    turns = {"rope": True, "rope_base": float(shape.rope_theta), "rope_places": "centred"}
    tokens = {"class_token": True, "registers": shape.num_register_tokens, "pool": "class"}
    return {**IMAGENET, **turns, **tokens, "positions": "none", "norm_eps": shape.layer_norm_eps, "layer_scale": 1.0}


def _clip(shape: Any, model: Any, name: str) -> dict[str, Any]:
    return {**_vit(shape, model, name), **CLIP, "embed_norm": True}


def _aimv2(shape: Any, model: Any, name: str) -> dict[str, Any]:
    places = {"positions": "sinusoidal_xy"} if shape.is_native else _grid(_side(shape))
    pool = {"pool": "map", "pool_mlp": False} if shape.use_head else {"pool": "mean"}
    return {**CLIP, **places, **pool, **RMS, "norm_eps": shape.rms_norm_eps, "patch_norm": True}


RMS: dict[str, Any] = {"norm": "rms", "norm_bias": False}


def _pixtral(shape: Any, model: Any, name: str) -> dict[str, Any]:
    own = {"positions": "none", "rope_speeds": "alternating", "embed_norm": True, "last_norm": False, "pool": "mean"}
    return {**CLIP, **RMS, **_turns(shape, name), **own, "norm_eps": 1e-5}


def _merging(shape: Any) -> dict[str, Any]:
    return {"pool": "mean", "merge": shape.spatial_merge_size, "merge_width": shape.out_hidden_size}


def _qwen2(shape: Any, model: Any, name: str) -> dict[str, Any]:
    own = {"positions": "none", "last_norm": False, "pool": "mean", "merge": shape.spatial_merge_size}
    return {**CLIP, **_turns(shape, name), **own, "merge_width": shape.hidden_size}


def _qwen2_5(shape: Any, model: Any, name: str) -> dict[str, Any]:
    own = {"positions": "none", "last_norm": False, "window": shape.window_size // shape.patch_size}
    whole = tuple(n for n in shape.fullatt_block_indexes if n < shape.depth)
    return {**CLIP, **RMS, **_turns(shape, name), **_merging(shape), **own, "window_free": whole}


def _qwen3(shape: Any, model: Any, name: str) -> dict[str, Any]:
    taps = tuple(shape.deepstack_visual_indexes)
    need(list(taps) == sorted(set(taps)), name, "deepstack_visual_indexes", taps, "rising numbers of blocks")
    side = int(shape.num_position_embeddings**0.5)
    own = {**_grid(side, "bilinear", corners=True), "last_norm": False, "merge_taps": taps}
    return {**_turns(shape, name), **_merging(shape), **own}


def _glm(shape: Any, model: Any, name: str) -> dict[str, Any]:
    own = {**_grid(_side(shape)), "patch_norm": True, "norm_eps": shape.rms_norm_eps}
    merging = {"merge_kind": "convolved", "merge_hidden": shape.intermediate_size}
    return {**CLIP, **RMS, **_turns(shape, name), **_merging(shape), **own, **merging}


def _kimi(shape: Any, model: Any, name: str) -> dict[str, Any]:
    table = (shape.pos_emb_height, shape.pos_emb_width)
    need(table[0] == table[1], name, "position table", table, "a square one")
    return {**_turns(shape, name), **_grid(table[0]), "norm_eps": 1e-5, "pool": "mean"}


def _paddle(shape: Any, model: Any, name: str) -> dict[str, Any]:
    own = {"norm_eps": shape.layer_norm_eps, "pool": "mean"}
    return {**_turns(shape, name), **_grid(_side(shape), "bilinear"), **own}


def _gemma4(shape: Any, model: Any, name: str) -> dict[str, Any]:
    need(not shape.use_clipped_linears, name, "use_clipped_linears", True, "linear layers without bounds")
    same = (shape.num_key_value_heads, shape.head_dim * shape.num_attention_heads)
    known = (shape.num_attention_heads, shape.hidden_size)
    need(same == known, name, "(key-value heads, width of heads)", same, f"{known}")
    places = {"positions": "factorised", "max_grid": min(shape.position_embedding_size, 32767)}
    norms = {**RMS, "norm_eps": shape.rms_norm_eps, "norm_place": "both", "qk_norm": True, "v_norm": True}
    merging = {"merge": shape.pooling_kernel_size, "merge_width": shape.hidden_size, "merge_kind": "mean"}
    return {**_turns(shape, name), **places, **norms, **merging, "last_norm": False, "pool": "mean"}


_FC = ("mlp.fc1", "mlp.fc2")
_GATED = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
_SIGLIP = Family(
    _siglip,
    "encoder.layers",
    "embeddings.patch_embedding",
    ("layer_norm1", "layer_norm2"),
    _qkv("self_attn"),
    "self_attn.out_proj",
    (_FC,),
    last="post_layernorm",
    table="embeddings.position_embedding.weight",
    # A classifier on SigLIP reads the mean, so the head of its pre-training is left behind.
    unused=("head.",),
)
_CLIP = replace(
    _SIGLIP,
    keys=_clip,
    embed_norm="pre_layrnorm",
    tokens=("embeddings.class_embedding",),
    unused=("visual_projection",),
)
_VIT = Family(
    _vit,
    "layers",
    "embeddings.patch_embeddings.projection",
    ("layernorm_before", "layernorm_after"),
    _qkv("attention"),
    "attention.o_proj",
    (_FC,),
    last="layernorm",
    table="embeddings.position_embeddings",
    tokens=("embeddings.cls_token",),
    # What ViT calls its pooler is a dense layer and tanh.
    unused=("pooler.", "embeddings.mask_token"),
)
_DINOV2 = replace(
    _VIT,
    keys=_dinov2,
    blocks="encoder.layer",
    norms=("norm1", "norm2"),
    mlp=(_FC, _GATED),
    scale="layer_scale{}.lambda1",
    tokens=("embeddings.cls_token", "embeddings.register_tokens"),
)
_QWEN2 = Family(_qwen2, "blocks", "patch_embed.proj", ("norm1", "norm2"), ("attn.qkv",), "attn.proj", (_FC,))
_QWEN2_5 = replace(_QWEN2, keys=_qwen2_5, mlp=(_GATED,))
_QWEN3 = replace(_QWEN2, keys=_qwen3, mlp=(("mlp.linear_fc1", "mlp.linear_fc2"),), table="pos_embed.weight")

TEXT = replace(
    _SIGLIP, last="final_layer_norm", table="embeddings.position_embedding.weight", patch="embeddings.token_embedding"
)
"""How SigLIP, SigLIP 2, CLIP and OWL-ViT name the parts of their text towers."""

FAMILIES = {
    "SiglipVisionModel": _SIGLIP,
    "SiglipForImageClassification": _SIGLIP,
    "Siglip2VisionModel": _SIGLIP,
    "Siglip2ForImageClassification": _SIGLIP,
    "ViTModel": _VIT,
    "ViTForImageClassification": _VIT,
    "IJepaModel": replace(_VIT, keys=_ijepa, tokens=()),
    "IJepaForImageClassification": replace(_VIT, keys=_ijepa, tokens=()),
    "Dinov2Model": _DINOV2,
    "Dinov2WithRegistersModel": _DINOV2,
    "DINOv3ViTModel": replace(
        _DINOV2,
        keys=_dinov3,
        blocks="model.layer",
        patch="embeddings.patch_embeddings",
        mlp=(_GATED, ("mlp.up_proj", "mlp.down_proj")),
        last="norm",
        table="",
    ),
    "CLIPVisionModel": _CLIP,
    "CLIPVisionModelWithProjection": _CLIP,
    "OwlViTVisionTransformer": replace(_CLIP, embed_norm="pre_layernorm"),
    "Owlv2VisionTransformer": replace(_CLIP, embed_norm="pre_layernorm"),
    "Aimv2VisionModel": Family(
        _aimv2,
        "encoder.layers",
        "embeddings.patch_embed",
        ("rms_norm1", "rms_norm2"),
        _qkv("attention"),
        "attention.out_proj",
        (("ffn.gate_proj", "ffn.up_proj", "ffn.down_proj"),),
        last="rms_norm",
        table="embeddings.position_embedding.weight",
        patch_norm="embeddings.rms_norm",
    ),
    "PixtralVisionModel": Family(
        _pixtral,
        "transformer.layers",
        "patch_conv",
        ("attention_norm", "ffn_norm"),
        _qkv("attention"),
        "attention.o_proj",
        (("feed_forward.gate_proj", "feed_forward.up_proj", "feed_forward.down_proj"),),
        embed_norm="ln_pre",
        turning=Turning(),
    ),
    "Qwen2VisionTransformerPretrainedModel": _QWEN2,
    "Qwen2_5_VisionTransformerPretrainedModel": _QWEN2_5,
    "Qwen3VLVisionModel": _QWEN3,
    "Qwen3VLMoeVisionModel": _QWEN3,
    "Glm4vVisionModel": replace(
        _QWEN2_5,
        keys=_glm,
        last="post_layernorm",
        table="embeddings.position_embedding.weight",
        patch_norm="post_conv_layernorm",
    ),
    "Kimi_K25VisionModel": replace(
        _QWEN2,
        keys=_kimi,
        blocks="layers",
        patch="patch_embed.proj",
        qkv=_qkv("attn"),
        last="final_layernorm",
        table="patch_embed.pos_emb.position_embeddings",
        turning=Turning(alternating=True, x_first=True),
    ),
    "PaddleOCRVisionTransformer": replace(_SIGLIP, keys=_paddle, unused=()),
    "Gemma4VisionModel": Family(
        _gemma4,
        "encoder.layers",
        "patch_embedder.input_proj",
        (
            "input_layernorm",
            "pre_feedforward_layernorm",
            "post_attention_layernorm",
            "post_feedforward_layernorm",
        ),
        tuple(f"{name}.linear" for name in _qkv("self_attn")),
        "self_attn.o_proj.linear",
        (tuple(f"{name}.linear" for name in _GATED),),
        table="patch_embedder.position_embedding_table",
        inner=("self_attn.q_norm", "self_attn.k_norm"),
        turning=Turning("quarters", x_first=True),
    ),
}
