"""Two towers of public weights: SigLIP, SigLIP 2, CLIP, OWL-ViT and OWLv2 of transformers → `TwoTowers`, ready for zero-shot.

In: a model object of transformers ≥ 5, or a folder of one. Out: towers in evaluation mode with the same embeddings and
temperature; of the owls their head for boxes and classes too. Apart from `saved`, which knows one tower.

Texts must be tokenised as the family does: SigLIP's are lower-cased, and filled up to 64 tokens (`TextConfig.pad`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from navit_loader.errors import ModelError

from ..config import ContrastiveConfig, TextConfig
from ..model.owl import ClassOwlHead, OwlHead
from ..model.towers import TwoTowers
from .convert import OtherModel, Weights, need
from .families import ACTIVATIONS, TEXT
from .foreign import open_model
from .from_transformers import Within, block, convert
from .saved import pour

MODELS = ("CLIPModel", "SiglipModel", "Siglip2Model", "OwlViTModel", "Owlv2Model")

OWLS = {"OwlViTForObjectDetection": "owlvit", "Owlv2ForObjectDetection": "owlv2"}
"""Detectors, and where they keep their towers."""


def two_towers(model: nn.Module | str | Path) -> TwoTowers:
    """Both towers of a model.

    Args:
        model: one of `MODELS`, or a folder of one that transformers saved.

    Raises:
        ModelError: another class, an option that a tower does not have, or a weight that does not fit; names it.
    """
    return _towers(*_opened(model))


def owl_vit(model: nn.Module | str | Path) -> tuple[TwoTowers, OwlHead]:
    """Both towers and the head of a model of `OWLS`, or of a folder of one: the head takes tokens of the image tower, and
    queries that are embeddings of texts or of its `query_of`.

    Raises:
        ModelError: as for `two_towers`.
    """
    found, weights = _opened(model)
    name = type(found).__name__
    if name not in OWLS:
        raise ModelError(f"owl_vit takes an {' or an '.join(OWLS)}, not {name}")
    inside = OWLS[name]
    towers = _towers(getattr(found, inside), Within(weights, f"{inside}."))
    width, queries = towers.image.config.width, found.class_head.dense0.out_features
    head = ClassOwlHead(width, queries, found.config.vision_config.layer_norm_eps, objectness=inside == "owlv2")
    source = OtherModel(name, weights)
    parts = [source.layer(f"box_head.dense{n}", f"box.{2 * n}") for n in range(3)]
    if head.objectness is not None:
        parts += [source.layer(f"objectness_head.dense{n}", f"objectness.{2 * n}") for n in range(3)]
    for theirs, ours in (("dense0", "embed"), ("logit_shift", "shift"), ("logit_scale", "scale")):
        parts.append(source.layer(f"class_head.{theirs}", ours))
    pour(head, [*parts, source.layer("layer_norm", "norm")], name)
    source.finish((f"{inside}.", "box_bias"))
    return towers, head.eval()


def _opened(model: Any) -> tuple[Any, Mapping[str, Tensor]]:
    if isinstance(model, nn.Module):
        return model, model.state_dict()
    return open_model(Path(model))


def _towers(model: Any, weights: Mapping[str, Tensor]) -> TwoTowers:
    name = type(model).__name__
    if name not in MODELS:
        raise ModelError(f"two_towers takes {', '.join(MODELS)}, not {name}")
    siglip = name.startswith("Siglip")
    image, image_parts = convert(model.vision_model, Within(weights, "vision_model."))
    source = OtherModel(name, weights)
    text = _text_config(model.text_model.config, source, siglip, name)
    wide = image.width if siglip else model.config.projection_dim
    towers = TwoTowers(image, text, ContrastiveConfig(width=wide, text_bias=siglip), "sigmoid" if siglip else "softmax")
    pour(towers.image, image_parts, name)
    pour(towers.text, _text(OtherModel(name, Within(weights, "text_model.")), text), name)
    projections = source.layer("text_model.head" if siglip else "text_projection", "text_projection")
    # SigLIP's images are embedded as they are.
    own = torch.eye(wide) if siglip else source.take("visual_projection.weight")
    scales = {key: source.take(key).reshape(1) for key in ("logit_scale", "logit_bias") if source.has(key)}
    pour(towers, [{**projections, "image_projection.weight": own, **scales}], name, ("image.", "text."))
    source.finish(("text_model.", "vision_model."))
    return towers.eval()


def _text_config(shape: Any, source: OtherModel, siglip: bool, name: str) -> TextConfig:
    act = shape.hidden_act
    need(act in ACTIVATIONS, name, "hidden_act", act, f"{', '.join(ACTIVATIONS)}")
    projection = source.take("text_model.head.weight") if siglip else source.take("text_projection.weight")
    need(projection.shape[1] == shape.hidden_size, name, "text width", projection.shape[1], f"{shape.hidden_size}")
    return TextConfig(
        width=shape.hidden_size,
        depth=shape.num_hidden_layers,
        heads=shape.num_attention_heads,
        mlp_ratio=shape.intermediate_size / shape.hidden_size,
        vocabulary=shape.vocab_size,
        max_tokens=shape.max_position_embeddings,
        pad=shape.pad_token_id if siglip and shape.pad_token_id is not None else -1,
        causal=not siglip,
        qk_norm=False,
        qkv_bias=True,
        norm_bias=True,
        norm_eps=shape.layer_norm_eps,
        activation=ACTIVATIONS[act],  # type: ignore[arg-type]
    )


def _text(source: OtherModel, config: TextConfig) -> Iterator[Weights]:
    yield {"tokens": source.take(f"{TEXT.patch}.weight"), "places": source.take(TEXT.table)}
    for n in range(config.depth):
        yield block(source, config, TEXT, n)
    yield source.layer(TEXT.last, "norm")
    source.finish(("head.",))
