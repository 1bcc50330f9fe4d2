"""Weights of timm and transformers give the outputs of their own models, and what is saved comes back the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.naflexvit import NaFlexVit, NaFlexVitCfg
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from transformers import (
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    Siglip2Config,
    Siglip2ForImageClassification,
    Siglip2Model,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

from navit_loader import LoaderConfig, PackedBatch, pack_images
from navit_loader.batch import OK
from navit_loader.config import PlanConfig, Resolution
from navit_loader.errors import ConfigError, ModelError
from navit_model import NaViT, NaViTConfig

from .weights_kit import shaken

P = 4
GRIDS = [(4, 4), (2, 7), (6, 3), (1, 1), (9, 2), (5, 5)]
BOUND = 1e-4


def pictures() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (h * P, w * P, 3), np.uint8) for h, w in GRIDS]


def pixels(image: np.ndarray, net: NaViT) -> torch.Tensor:
    """Normalised as the model does it, f32 `[3, H, W]`."""
    mean, std = (torch.tensor(v)[:, None, None] for v in (net.config.mean, net.config.std))
    return (torch.from_numpy(image).permute(2, 0, 1) / 255 - mean) / std


def packed(net: NaViT) -> PackedBatch:
    plan = PlanConfig(
        sequence_length=64,
        max_tokens=32,
        max_images=4,
        patch_sizes=(P,),
        prefix_tokens=net.config.prefix_tokens,
        resolution=Resolution(kind="native"),
    )
    return pack_images(pictures(), LoaderConfig(plan=plan))


def ours(net: NaViT) -> torch.Tensor:
    """Outputs of all images, in their order."""
    batch = packed(net)
    with torch.no_grad():
        out = net(batch.to("cpu"))
    assert {tuple(g) for g in batch.grids[batch.status == OK].tolist()} == set(GRIDS)
    order = np.argsort(batch.image_ids[batch.status == OK])
    return out[torch.from_numpy(batch.status == OK)][order]


def naflex_input(net: NaViT) -> dict[str, torch.Tensor]:
    """All images in one padded batch, as timm's NaFlex loader collates them."""
    most = max(h * w for h, w in GRIDS)
    patches = torch.zeros(len(GRIDS), most, P * P * 3)
    coord = torch.zeros(len(GRIDS), most, 2, dtype=torch.long)
    valid = torch.zeros(len(GRIDS), most, dtype=torch.bool)
    for i, (image, (h, w)) in enumerate(zip(pictures(), GRIDS, strict=True)):
        x = pixels(image, net).view(3, h, P, w, P).permute(1, 3, 2, 4, 0).reshape(h * w, -1)
        patches[i, : h * w], valid[i, : h * w] = x, True
        coord[i, : h * w] = torch.cartesian_prod(torch.arange(h), torch.arange(w))
    return {"patches": patches, "patch_coord": coord, "patch_valid": valid}


def assert_equal(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert ours.shape == theirs.shape and theirs.std() > 0.05
    assert (ours - theirs).abs().max() < BOUND


SMALL: dict[str, Any] = {"patch_size": P, "embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 7}
CLASSIC: list[dict[str, Any]] = [
    {},
    {"global_pool": "avg", "reg_tokens": 3, "init_values": 0.1},
    {"global_pool": "map", "class_token": False, "act_layer": "gelu_tanh", "mlp_ratio": 2.5},
    {"global_pool": "map", "reg_tokens": 1, "qk_norm": True, "qkv_bias": False},
    {"pre_norm": True, "act_layer": "quick_gelu", "norm_layer": "layernorm"},
    {"no_embed_class": True, "reg_tokens": 2, "fc_norm": True, "num_classes": 0},
]


@pytest.mark.parametrize("options", CLASSIC, ids=str)
def test_timm_vit(options: dict[str, Any]) -> None:
    source = shaken(VisionTransformer(img_size=16, dynamic_img_size=True, **{**SMALL, **options}))
    net = NaViT.from_timm(source)
    with torch.no_grad():
        theirs = torch.cat([source(pixels(image, net)[None]) for image in pictures()])
    assert_equal(ours(net), theirs)


def test_timm_deit_distilled() -> None:
    source = shaken(VisionTransformerDistilled(img_size=16, dynamic_img_size=True, **SMALL))
    net = NaViT.from_timm(source)
    with torch.no_grad():
        theirs = torch.cat([source(pixels(image, net)[None]) for image in pictures()])
    assert_equal(ours(net), theirs)


FLEX: list[dict[str, Any]] = [
    {"reg_tokens": 1},
    {"global_pool": "avg", "reg_tokens": 4, "fc_norm": True, "init_values": 0.1},
    {"global_pool": "avg", "pos_embed_ar_preserving": True, "class_token": True},
    {"global_pool": "avg", "pos_embed_ar_preserving": True, "pos_embed": "factorized"},
    {"pos_embed": "factorized", "qk_norm": True, "qkv_bias": False, "mlp_ratio": 34 / 13},
    {"pos_embed_interp_mode": "bilinear", "act_layer": "gelu_tanh"},
    {"pos_embed_antialias": False, "global_pool": "token", "class_token": True},
    {"pos_embed": "none"},
]


@pytest.mark.parametrize("options", FLEX, ids=str)
def test_timm_naflexvit(options: dict[str, Any]) -> None:
    shape = {k: v for k, v in SMALL.items() if k != "num_classes"}
    config = NaFlexVitCfg(**{**shape, "pos_embed_grid_size": (4, 6), **options})
    source = shaken(NaFlexVit(config, num_classes=7))
    net = NaViT.from_timm(source)
    with torch.no_grad():
        assert_equal(ours(net), source(naflex_input(net)))


def test_timm_names_of_the_shelf() -> None:
    """A model by name brings the means and deviations of its pixels; other layouts of patches are put in order."""
    source = timm.create_model("vit_tiny_patch16_224", depth=1, patch_size=P, img_size=16, dynamic_img_size=True)
    net = NaViT.from_timm(shaken(source), max_grid=20)
    assert net.config.mean == (0.5, 0.5, 0.5) and net.config.max_grid == 20 and net.config.classes == 1000
    with torch.no_grad():
        theirs = torch.cat([source(pixels(image, net)[None]) for image in pictures()])
    assert_equal(ours(net), theirs)
    shape = {k: v for k, v in SMALL.items() if k != "num_classes"}
    last = shaken(NaFlexVit(NaFlexVitCfg(**shape, patchify_channels_last=False), num_classes=7))
    with torch.no_grad():
        one = last(pixels(pictures()[0], net)[None])
    assert_equal(ours(NaViT.from_timm(last))[:1], one)


TOWER: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "patch_size": P}


def siglip2(make: Callable[[], nn.Module], pick: Callable[[Any], torch.Tensor]) -> None:
    source = shaken(make())
    net = NaViT.from_transformers(source)
    given = naflex_input(net)
    shapes = {"pixel_attention_mask": given["patch_valid"].long(), "spatial_shapes": torch.tensor(GRIDS)}
    tower = source.vision_model if isinstance(source, Siglip2Model) else source
    with torch.no_grad():
        assert_equal(ours(net), pick(tower(pixel_values=given["patches"], **shapes)))


def test_transformers_siglip2_naflex() -> None:
    shape = {**TOWER, "intermediate_size": 80, "num_patches": 16}
    siglip2(lambda: Siglip2VisionModel(Siglip2VisionConfig(**shape)), lambda out: out.pooler_output)
    text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    text |= {"bos_token_id": 1, "eos_token_id": 2, "vocab_size": 50, "projection_size": 32}
    whole = Siglip2Config(vision_config=shape, text_config=text, num_labels=5)
    siglip2(lambda: Siglip2ForImageClassification(whole), lambda out: out.logits)
    siglip2(lambda: Siglip2Model(whole), lambda out: out.pooler_output)


CONVOLVED: dict[str, Callable[[], nn.Module]] = {
    "siglip": lambda: SiglipVisionModel(SiglipVisionConfig(**TOWER, image_size=16, intermediate_size=80)),
    "vit": lambda: ViTModel(ViTConfig(**TOWER, image_size=16, intermediate_size=64)),
    "vit_classifier": lambda: ViTForImageClassification(
        ViTConfig(**TOWER, image_size=16, intermediate_size=64, qkv_bias=False, num_labels=6)
    ),
    "dinov2": lambda: Dinov2Model(Dinov2Config(**TOWER, image_size=16)),
    "dinov2_registers": lambda: Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**TOWER, image_size=16)),
}


@pytest.mark.parametrize("kind", CONVOLVED)
def test_transformers_towers(kind: str) -> None:
    source = shaken(CONVOLVED[kind]())
    net = NaViT.from_transformers(source)
    how = {} if "dino" in kind else {"interpolate_pos_encoding": True}
    theirs = []
    with torch.no_grad():
        for image in pictures():
            out = source(pixel_values=pixels(image, net)[None], **how)
            if kind == "vit_classifier":
                theirs.append(out.logits)
            else:
                theirs.append(out.last_hidden_state[:, 0] if kind == "vit" else out.pooler_output)
    assert_equal(ours(net), torch.cat(theirs))


CONFIG = NaViTConfig(
    width=24, depth=2, heads=2, patch_size=P, classes=5, patch_sizes=(2, 4), position_grid=(3, 5), max_grid=12
)


CHANGES: list[dict[str, Any]] = [
    {},
    {"positions": "resized_grid", "class_token": True, "distill_token": True},
    {"rope": True, "rope_places": "scaled", "rope_grid": (3, 5), "norm": "rms", "mlp_gate": True, "pool_heads": 4},
    {"window": 2, "window_free": (1,), "merge": 2, "merge_width": 8, "merge_taps": (0, 1), "norm_place": "after"},
]


@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_saved_models_come_back(tmp_path: Path, changes: dict[str, Any]) -> None:
    net = shaken(NaViT(replace(CONFIG, **changes)))
    net.save_pretrained(tmp_path / "model")
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == ["README.md", "config.json", "model.safetensors"]
    back = NaViT.from_pretrained(tmp_path / "model")
    assert back.config == net.config and not back.training
    assert torch.equal(ours(back), ours(net))
    net.reset_classifier(9)
    net.save_pretrained(tmp_path / "model")
    assert NaViT.from_pretrained(str(tmp_path / "model")).config.classes == 9


def test_a_saved_model_is_changed_where_its_weights_allow(tmp_path: Path) -> None:
    net = shaken(NaViT(CONFIG))
    net.save_pretrained(tmp_path)
    fresh = NaViT.from_pretrained(tmp_path, classes=3, drop_path=0.1, attention="dense")
    assert fresh.config == replace(CONFIG, classes=3, drop_path=0.1, attention="dense")
    assert fresh.head.weight.shape == (3, 24) and not fresh.head.weight.any()
    assert torch.equal(fresh.patch_embed.proj.weight, net.patch_embed.proj.weight)
    with pytest.raises(ModelError, match=r"positions.y' .* shape \[12, 24\], that of the configured model \[20, 24\]"):
        NaViT.from_pretrained(tmp_path, max_grid=20)
    with pytest.raises(ModelError, match=r"no weight 'blocks\.2\.norm1"):
        NaViT.from_pretrained(tmp_path, depth=3)
    with pytest.raises(ModelError, match=r"a weight 'blocks\.1\."):
        NaViT.from_pretrained(tmp_path, depth=1)
    with pytest.raises(ConfigError, match="dropp is no key"):
        NaViT.from_pretrained(tmp_path, dropp=0.1)


def test_bad_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is no folder, and no model on the hub"):
        NaViT.from_pretrained(tmp_path / "none" / "there")
    with pytest.raises(ModelError, match=r"config.json' cannot be read"):
        NaViT.from_pretrained(tmp_path)
    NaViT(CONFIG).save_pretrained(tmp_path)
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ModelError, match=r"model.safetensors' cannot be read"):
        NaViT.from_pretrained(tmp_path)
    table = json.loads((tmp_path / "config.json").read_text())
    for broken, words in (({**table, "heads": 5}, "heads = 5"), ({**table, "wings": 2}, "unknown key .*wings")):
        (tmp_path / "config.json").write_text(json.dumps(broken))
        with pytest.raises(ConfigError, match=words):
            NaViT.from_pretrained(tmp_path)
    for text in ("[1, 2]", "{"):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ModelError, match=r"config.json' cannot be read"):
            NaViT.from_pretrained(tmp_path)
