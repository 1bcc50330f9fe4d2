"""transformers' vision towers → configuration and weights of a NaViT with the same outputs.

In: a tower of transformers ≥ 5, or a model that holds one, whatever its weights. Out: a `NaViTConfig` and its weights, part by
part. transformers itself is not imported. Normalisation of pixels is not part of those models, so the means and deviations
that their families were trained with are filled in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from navit_loader.errors import ModelError

from ..config import NaViTConfig, TextConfig
from .convert import OtherModel, Taken, Weights, kernel, need, query, turned
from .families import ACTIVATIONS, FAMILIES, PLAIN, Family

INSIDE = ("model", "visual", "vision_tower", "vision_encoder", "vision_model", "owlvit", "owlv2")
"""Where models that see and speak keep their tower."""


def tower_of(model: Any) -> tuple[Any, str]:
    """The tower of `FAMILIES` within a model, and the beginning of its names there.

    Raises:
        ModelError: there is none.
    """
    name, place = type(model).__name__, ""
    while type(model).__name__ not in FAMILIES:
        part = next((part for part in INSIDE if getattr(model, part, None) is not None), None)
        if part is None:
            raise ModelError(
                f"from_transformers takes {', '.join(FAMILIES)}, and models that hold one of them, not {name}"
            )
        model, place = getattr(model, part), f"{place}{part}."
    return model, place


def convert(model: Any, weights: Mapping[str, Tensor] | None = None) -> Taken:
    """Configuration and weights.

    The pooled output is that of SigLIP's head, of the class token after the last norm, or the mean of the patches; a
    classifier comes along. What ViT calls its pooler (a dense layer and tanh) is left out, and so are the mask token of
    DINOv2's pre-training and CLIP's projection, which is no part of a tower.

    Args:
        model: one of `FAMILIES`, or a model that holds one, of which the vision tower is taken.
        weights: those of `model`, where they are not its own.

    Raises:
        ModelError: another class, or an option that NaViT does not have; names it.
    """
    tower, place = tower_of(model)
    name = type(tower).__name__
    family = FAMILIES[name]
    given: Mapping[str, Tensor] = tower.state_dict() if weights is None else Within(weights, place)
    source = OtherModel(name, given, inner(name))
    shape = getattr(tower.config, "vision_config", tower.config)
    config = _config(tower, shape, source, family, name)
    return config, _weights(source, config, family)


class Within(Mapping[str, Tensor]):
    """The weights whose names begin with `place`, without it."""

    def __init__(self, weights: Mapping[str, Tensor], place: str) -> None:
        self.weights, self.place = weights, place
        self.names = [name.removeprefix(place) for name in weights if name.startswith(place)]

    def __getitem__(self, name: str) -> Tensor:
        return self.weights[self.place + name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def inner(name: str) -> str:
    """The beginning of a tower's names within a model that classifies."""
    return {"ViTForImageClassification": "vit.", "IJepaForImageClassification": "ijepa."}.get(name, "vision_model.")


def _config(tower: Any, shape: Any, source: OtherModel, family: Family, name: str) -> NaViTConfig:
    act = getattr(shape, "hidden_act", None) or shape.hidden_activation
    need(act in ACTIVATIONS, name, "hidden_act", act, f"{', '.join(ACTIVATIONS)}")
    channels = getattr(shape, "num_channels", None) or getattr(shape, "in_channels", 3)
    need(channels == 3, name, "num_channels", channels, "3 channels")
    first, (mlp, down) = f"{family.blocks}.0.", _mlp(source, family, f"{family.blocks}.0.")
    width = len(source.take(f"{first}{down}.weight"))
    classifies = name.endswith("ForImageClassification")
    keys: dict[str, Any] = {
        **PLAIN,
        "activation": ACTIVATIONS[act],
        "norm_eps": 1e-6,
        **family.keys(shape, tower, name),
    }
    return NaViTConfig(
        width=width,
        depth=getattr(shape, "num_hidden_layers", None) or shape.depth,
        heads=getattr(shape, "num_attention_heads", None) or shape.num_heads,
        mlp_ratio=source.take(f"{first}{down}.weight").shape[1] / width,
        patch_size=shape.patch_size,
        mlp_gate=len(mlp) == 2,
        mlp_bias=source.has(f"{first}{down}.bias"),
        out_bias=source.has(f"{first}{family.out}.bias"),
        qkv_bias=any(source.has(f"{first}{part}.bias") for part in family.qkv),
        classes=tower.config.num_labels if classifies else 0,
        **keys,
    )


def _mlp(source: OtherModel, family: Family, block: str) -> tuple[tuple[str, ...], str]:
    """The first layers of a block's MLP, the gate before the other, and its last."""
    for names in family.mlp:
        if all(source.has(f"{block}{name}.weight") for name in names):
            return names[:-1], names[-1]
    raise ModelError(
        f"{source.name} has no weight '{block}{family.mlp[0][0]}.weight'; its MLP is not one that NaViT has"
    )


def _weights(source: OtherModel, config: NaViTConfig, family: Family) -> Iterator[Weights]:
    yield embedding(source, config, family)
    for n in range(config.depth):
        yield turned(block(source, config, family, n), config.heads, family.turning)
    if family.last:
        yield source.layer(family.last, "norm")
    if config.pool == "map":
        yield _pool(source, config)
    if config.merge:
        yield from _merger(source, config)
    if config.classes:
        yield source.layer(family.classifier, "head")
    source.finish(family.unused if config.pool != "map" or config.classes else ())


def embedding(source: OtherModel, config: NaViTConfig, family: Family) -> Weights:
    """The weights before the first block."""
    weight = source.take(f"{family.patch}.weight")
    shift = weight.new_zeros(len(weight))
    found = {
        "patch_embed.proj.weight": kernel(weight) if weight.ndim > 2 else weight,
        "patch_embed.proj.bias": source.take(f"{family.patch}.bias") if source.has(f"{family.patch}.bias") else shift,
    }
    for theirs, ours in ((family.patch_norm, "patch_norm"), (family.embed_norm, "embed_norm")):
        if theirs:
            found |= source.layer(theirs, ours)
    tokens = [source.take(name).view(-1, config.width) for name in family.tokens if source.has(name)]
    if config.positions == "factorised":
        x, y = source.take(family.table)
        found |= {"positions.y": y[: config.max_grid], "positions.x": x[: config.max_grid]}
    elif config.positions == "resized_grid":
        table = source.take(family.table).reshape(-1, config.width)
        more = len(table) - config.position_grid[0] * config.position_grid[1]
        if more:
            # The class token has a place of its own: one vector is as good as two added.
            tokens[0] = tokens[0] + table[:more]
        found["positions.table"] = table[more:]
    if tokens:
        found["prefix"] = torch.cat(tokens)
    return found


def block(source: OtherModel, config: NaViTConfig | TextConfig, family: Family, n: int) -> Weights:
    """The weights of block `n`, of an image's or a text's tower."""
    theirs, ours = f"{family.blocks}.{n}.", f"blocks.{n}."
    found: Weights = {}
    for name, place in zip(family.norms, ("norm1", "norm2", "after1", "after2"), strict=False):
        found |= source.layer(theirs + name, ours + place)
    found |= source.joined([theirs + part for part in family.qkv], f"{ours}qkv")
    found |= source.layer(theirs + family.out, f"{ours}out")
    up, down = _mlp(source, family, theirs)
    found |= source.joined([theirs + part for part in up], f"{ours}mlp.up")
    found |= source.layer(theirs + down, f"{ours}mlp.down")
    for name, place in zip(family.inner, ("q_norm", "k_norm"), strict=False):
        found |= source.layer(theirs + name, ours + place)
    if config.layer_scale:
        found |= {f"{ours}scale{i}": source.take(theirs + family.scale.format(i)) for i in (1, 2)}
    if config.v_norm:
        # Its attention divides by nothing, so its queries are longer; and the norm of its values has no weights.
        channels = config.width // config.heads
        found[f"{ours}q_norm.weight"] = found[f"{ours}q_norm.weight"] * channels**0.5
        found[f"{ours}v_norm.weight"] = torch.ones_like(found[f"{ours}q_norm.weight"])
    return found


def _pool(source: OtherModel, config: NaViTConfig) -> Weights:
    if not config.pool_mlp:
        token = source.take("head.cls_token").view(config.heads, -1)
        return {
            "pool.query": token,
            **_biased(source.joined(["head.k_proj", "head.v_proj"], "pool.kv"), "pool.kv"),
            **source.layer("head.output_proj", "pool.out"),
        }
    weight, bias = source.take("head.attention.in_proj_weight"), source.take("head.attention.in_proj_bias")
    width = weight.shape[1]
    found = {
        "pool.query": query(source.take("head.probe"), weight[:width], bias[:width], config.heads),
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


def _biased(found: Weights, name: str) -> Weights:
    weight = found[f"{name}.weight"]
    return {f"{name}.bias": weight.new_zeros(len(weight)), **found}


def _merger(source: OtherModel, config: NaViTConfig) -> Iterator[Weights]:
    if config.merge_kind == "mean":
        root = torch.full((config.width,), config.width**0.5)
        scale = source.take("std_scale") if source.has("std_scale") else torch.ones_like(root)
        shift = source.take("std_bias") * scale if source.has("std_bias") else torch.zeros_like(root)
        yield {"merger.scale": root * scale, "merger.shift": -shift}
        return
    if config.merge_kind == "convolved":
        found = source.layer("downsample", "merger.down")
        # As blocks are gathered: row, column, channel.
        found["merger.down.weight"] = kernel(found["merger.down.weight"])
        found |= source.layer("merger.proj", "merger.proj") | source.layer("merger.post_projection_norm", "merger.norm")
        found |= source.joined(["merger.gate_proj", "merger.up_proj"], "merger.gated")
        yield found | source.layer("merger.down_proj", "merger.out")
        return
    for theirs, ours in (
        ("merger", "merger"),
        *((f"deepstack_merger_list.{n}", f"tap_mergers.{n}") for n in range(len(config.merge_taps))),
    ):
        old = source.has(f"{theirs}.ln_q.weight")
        for name, place in zip(
            ("ln_q", "mlp.0", "mlp.2") if old else ("norm", "linear_fc1", "linear_fc2"),
            ("norm", "up", "down"),
            strict=True,
        ):
            yield source.layer(f"{theirs}.{name}", f"{ours}.{place}")
