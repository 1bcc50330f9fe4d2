"""Towers of images and texts from public weights, tiny and random: embeddings, temperatures and detections are their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import nn

from navit_loader import LoaderConfig, PackedBatch, pack_images
from navit_loader.batch import OK
from navit_loader.config import PlanConfig, Resolution
from navit_loader.errors import ModelError
from navit_model.model.owl import ClassOwlHead
from navit_model.model.text import pack_captions
from navit_model.model.towers import TwoTowers
from navit_model.use.zero_shot import ZeroShot
from navit_model.weights.convert import kernel
from navit_model.weights.pairs import owl_vit, two_towers

from .weights_kit import shaken

P = 4
GRIDS = [(4, 4), (2, 7), (6, 3), (9, 2), (5, 5)]
WIDE: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40}
TOWER: dict[str, Any] = {**WIDE, "patch_size": P, "image_size": 16}
TEXT: dict[str, Any] = {**WIDE, "vocab_size": 50, "max_position_embeddings": 9, "pad_token_id": 1}
TEXT |= {"bos_token_id": 48, "eos_token_id": 49}
OWL: dict[str, Any] = {"vision_config": TOWER, "text_config": TEXT, "projection_dim": 32}


def siglip(kind: str, vision: dict[str, Any]) -> nn.Module:
    text = {**TEXT, "projection_size": 32}
    config = getattr(transformers, f"{kind}Config")(vision_config=vision, text_config=text)
    found: nn.Module = getattr(transformers, f"{kind}Model")(config)
    return found


MODELS: dict[str, Callable[[], nn.Module]] = {
    "clip": lambda: transformers.CLIPModel(
        transformers.CLIPConfig(vision_config=TOWER, text_config=TEXT, projection_dim=24)
    ),
    "siglip": lambda: siglip("Siglip", TOWER),
    "siglip2": lambda: siglip("Siglip2", {**{k: v for k, v in TOWER.items() if k != "image_size"}, "num_patches": 16}),
    "owlvit": lambda: transformers.OwlViTModel(transformers.OwlViTConfig(**OWL)),
}


def pictures() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (h * P, w * P, 3), np.uint8) for h, w in GRIDS]


def pixels(towers: TwoTowers) -> list[torch.Tensor]:
    mean, std = (torch.tensor(v)[:, None, None] for v in (towers.image.config.mean, towers.image.config.std))
    return [(torch.from_numpy(image).permute(2, 0, 1) / 255 - mean) / std for image in pictures()]


def packed(towers: TwoTowers) -> PackedBatch:
    plan = PlanConfig(
        sequence_length=64,
        max_tokens=32,
        max_images=4,
        patch_sizes=(P,),
        prefix_tokens=towers.image.config.prefix_tokens,
        resolution=Resolution(kind="native"),
    )
    return pack_images(pictures(), LoaderConfig(plan=plan))


def slots(batch: PackedBatch) -> np.ndarray:
    ok = batch.status == OK
    return np.argwhere(ok)[np.argsort(batch.image_ids[ok])]


def image_features(model: Any, x: torch.Tensor) -> torch.Tensor:
    if type(model).__name__ != "Siglip2Model":
        found = model.get_image_features(pixel_values=x[None], interpolate_pos_encoding=True).pooler_output
        return found  # type: ignore[no-any-return]
    h, w = x.shape[1] // P, x.shape[2] // P
    patches = x.view(3, h, P, w, P).permute(1, 3, 2, 4, 0).reshape(1, h * w, -1)
    shapes = {"pixel_attention_mask": torch.ones(1, h * w, dtype=torch.long), "spatial_shapes": torch.tensor([[h, w]])}
    return model.get_image_features(pixel_values=patches, **shapes).pooler_output  # type: ignore[no-any-return]


def captions(padded: bool) -> list[list[int]]:
    rng = np.random.default_rng(2)
    found = [[48, *rng.integers(2, 48, n).tolist(), 49] for n in (1, 5, 3, 7)]
    return [[*ids, *[1] * (9 - len(ids))] for ids in found] if padded else found


@pytest.mark.parametrize("name", MODELS)
def test_both_towers(name: str) -> None:
    source: Any = shaken(MODELS[name]())
    towers = two_towers(source)
    batch = packed(towers)
    image = towers.encode_image(batch.to("cpu"))
    image = torch.stack([image[b, e] for b, e in slots(batch)])
    theirs = torch.cat([image_features(source, x) for x in pixels(towers)])
    ids = captions(padded="siglip" in name)
    text = towers.encode_text(pack_captions(ids))[0]
    spoken = torch.cat([source.get_text_features(input_ids=torch.tensor([i])).pooler_output for i in ids])
    for ours, other in ((image, theirs), (text, spoken)):
        assert ours.shape == other.shape and (ours - other).abs().max() / other.std() < 1e-4
    assert torch.allclose(towers.scale(), source.logit_scale.exp().reshape(()))
    if "siglip" in name:
        assert torch.equal(towers.logit_bias, source.logit_bias)
    (F.normalize(image, dim=-1)[:4] * F.normalize(text, dim=-1)).sum().backward()
    (F.normalize(theirs, dim=-1)[:4] * F.normalize(spoken, dim=-1)).sum().backward()
    patch = source.vision_model.embeddings.patch_embedding.weight.grad
    words = source.text_model.embeddings.token_embedding.weight.grad
    for mine, other in (
        (towers.image.patch_embed.proj.weight.grad, kernel(patch) if patch.ndim == 4 else patch),
        (towers.text.tokens.grad, words),
    ):
        assert mine is not None and (mine - other).abs().max() / other.std() < 1e-3


def test_towers_come_from_a_folder(tmp_path: Path) -> None:
    source = shaken(MODELS["siglip2"]())
    source.save_pretrained(tmp_path)  # type: ignore[operator]
    one, other = two_towers(tmp_path), two_towers(source)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))
    with pytest.raises(ModelError, match=r"has no model\.safetensors"):
        two_towers(tmp_path / "none")


def test_texts_are_filled_up_where_the_tower_wants_it(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    words = {word: n for n, word in enumerate(["[UNK]", "[PAD]", "a", "cat", "dog"])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    source: Any = shaken(MODELS["siglip"]())
    towers = two_towers(source)
    assert towers.text.config.pad == 1
    found = ZeroShot(towers, ["cat", "dog"], ["a {}"], tmp_path / "tokenizer.json").weight
    ids = torch.tensor([[2, n, *[1] * 7] for n in (3, 4)])
    wanted = F.normalize(source.get_text_features(input_ids=ids).pooler_output, dim=-1)
    assert torch.allclose(found, wanted, atol=1e-5)


def owl(kind: str) -> Any:
    made = getattr(transformers, f"{kind}ForObjectDetection")(getattr(transformers, f"{kind}Config")(**OWL))
    return shaken(made)


@pytest.mark.parametrize("kind", ["OwlViT", "Owlv2"])
def test_detections_of_owls(kind: str) -> None:
    source = owl(kind)
    towers, head = owl_vit(source)
    batch = packed(towers)
    queries = towers.encode_text(pack_captions(captions(False)))[0]
    found = head(towers.image.forward_features(batch.to("cpu")), batch.to("cpu"), queries)
    ids = torch.tensor([[*i, *[0] * (9 - len(i))] for i in captions(False)])
    for (b, e), x in zip(slots(batch), pixels(towers), strict=True):
        out = source(
            input_ids=ids,
            pixel_values=x[None],
            attention_mask=torch.ones_like(ids),
            interpolate_pos_encoding=True,
        )
        own = found.there[b] & torch.from_numpy(batch.segment_ids[b] == e)
        assert (found.boxes[b][own] - out.pred_boxes[0]).abs().max() < 1e-4
        assert (found.logits[b][own] - out.logits[0]).abs().max() / out.logits.std() < 1e-4


@pytest.mark.parametrize("kind", ["OwlViT", "Owlv2"])
def test_an_image_is_a_query(kind: str) -> None:
    source = owl(kind)
    towers, head = owl_vit(source)
    assert isinstance(head, ClassOwlHead)
    host = packed(towers)
    batch = host.to("cpu")
    query_image, *targets = pixels(towers)
    plan = PlanConfig(
        sequence_length=64,
        max_tokens=64,
        patch_sizes=(P,),
        prefix_tokens=towers.image.config.prefix_tokens,
        resolution=Resolution(kind="native"),
    )
    alone = pack_images(pictures()[:1], LoaderConfig(plan=plan)).to("cpu")
    query = head.query_of(towers.image.forward_features(alone)[0], alone)
    found = head(towers.image.forward_features(batch), batch, query[None])
    for (b, e), x in zip(slots(host)[1:], targets, strict=True):
        out = source.image_guided_detection(
            pixel_values=x[None], query_pixel_values=query_image[None], interpolate_pos_encoding=True
        )
        own = found.there[b] & (batch.segment_ids[b] == e)
        assert (found.boxes[b][own] - out.target_pred_boxes[0]).abs().max() < 1e-4
        assert (found.logits[b][own] - out.logits[0]).abs().max() / out.logits.std() < 1e-4


def test_what_is_no_pair_is_named() -> None:
    with pytest.raises(ModelError, match=r"two_towers takes CLIPModel, .* not Linear"):
        two_towers(nn.Linear(2, 2))
    with pytest.raises(ModelError, match="OwlViTForObjectDetection or an Owlv2ForObjectDetection, not CLIPModel"):
        owl_vit(MODELS["clip"]())
    strange = transformers.CLIPModel(
        transformers.CLIPConfig(vision_config=TOWER, text_config={**TEXT, "hidden_act": "relu"}, projection_dim=24)
    )
    with pytest.raises(ModelError, match="hidden_act = 'relu'"):
        two_towers(strange)
