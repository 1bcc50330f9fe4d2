"""Folders in the layout of timm and transformers: read offline, tensor by tensor, and refused in one clear line."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import transformers
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

from navit_loader.errors import ModelError
from navit_model import NaViT
from navit_model.weights.foreign import open_folder

P = 4
WIDE: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
TOWER: dict[str, Any] = {**WIDE, "patch_size": P, "image_size": 16, "intermediate_size": 40}
TEXT: dict[str, Any] = {**WIDE, "intermediate_size": 40, "vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2}
SPEAKS: dict[str, Any] = {**WIDE, "num_key_value_heads": 2, "intermediate_size": 40, "vocab_size": 200}
FLEXIBLE: dict[str, Any] = {**WIDE, "intermediate_size": 40, "patch_size": P, "num_patches": 16}
QWEN: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 40, "num_heads": 4, "out_hidden_size": 24}


def random(model: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return model.eval()


def clip() -> nn.Module:
    return transformers.CLIPModel(transformers.CLIPConfig(vision_config=TOWER, text_config=TEXT, projection_dim=24))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "dinov3": lambda: transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**TOWER, num_register_tokens=2)),
    # In files its gated MLP is one layer, in memory two.
    "dinov2 giant": lambda: transformers.Dinov2Model(
        transformers.Dinov2Config(**WIDE, patch_size=P, image_size=16, use_swiglu_ffn=True)
    ),
    "vit": lambda: transformers.ViTForImageClassification(transformers.ViTConfig(**TOWER, num_labels=5)),
    "two towers": clip,
    # Of models that see and speak the tower is taken, and the projector stays behind.
    "see and speak": lambda: transformers.Lfm2VlForConditionalGeneration(
        transformers.Lfm2VlConfig(
            text_config={**SPEAKS, "model_type": "lfm2", "layer_types": ["full_attention", "conv"]},
            vision_config={**FLEXIBLE, "model_type": "siglip2_vision_model", "vision_use_head": False},
        )
    ),
    "windows": lambda: Qwen2_5_VisionTransformerPretrainedModel(
        Qwen2_5_VLVisionConfig(**QWEN, depth=2, patch_size=P, window_size=16, fullatt_block_indexes=[1])
    ),
}


def same(one: NaViT, other: NaViT) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return one.config == other.config and all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("shards", [False, True])
def test_a_folder_of_transformers(tmp_path: Path, name: str, shards: bool) -> None:
    source = random(MODELS[name]())
    source.save_pretrained(tmp_path, max_shard_size="20KB" if shards else "1GB")  # type: ignore[operator]
    assert (tmp_path / "model.safetensors").exists() != shards
    assert same(NaViT.from_pretrained(tmp_path), NaViT.from_transformers(source))


@pytest.mark.parametrize("name", ["two towers", "windows"])
def test_halves_are_added_as_floats(tmp_path: Path, name: str) -> None:
    source = random(MODELS[name]()).bfloat16()
    source.save_pretrained(tmp_path)  # type: ignore[operator]
    assert same(NaViT.from_pretrained(tmp_path), NaViT.from_transformers(source.float()))


def test_pixels_are_normalised_as_the_folder_says(tmp_path: Path) -> None:
    random(MODELS["dinov3"]()).save_pretrained(tmp_path)  # type: ignore[operator]
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5] * 3})
    )
    assert NaViT.from_pretrained(tmp_path).config.mean == (0.1, 0.2, 0.3)


def timm_folder(folder: Path) -> nn.Module:
    options = {"depth": 2, "patch_size": P, "img_size": 16, "embed_dim": 32, "num_heads": 4}
    source = random(timm.create_model("vit_small_patch16_dinov3", **options))
    timm.models.save_for_hf(source, folder, model_args=options, safe_serialization=True)
    return source


def test_a_folder_of_timm(tmp_path: Path) -> None:
    source = timm_folder(tmp_path)
    net = NaViT.from_pretrained(tmp_path)
    assert same(net, NaViT.from_timm(source)) and net.config.rope_places == "centred"


def broken(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


NAME = "encoder.layers.1.self_attn.k_proj.weight"
CHANGES: dict[str, tuple[str, Callable[[dict[str, torch.Tensor]], None]]] = {
    "missing": (f"has no weight '{NAME}'", lambda w: w.__delitem__(NAME)),
    "extra": (
        "no place for: encoder.layers.1.self_attn.sinks",
        lambda w: w.update({NAME[:26] + ".sinks": torch.zeros(4)}),
    ),
    "shape": (
        f"weight '{NAME}' has shape \\[32, 31\\], by its config.json it is \\[32, 32\\]",
        lambda w: w.update({NAME: torch.zeros(32, 31)}),
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_tensor_that_does_not_fit_is_named(tmp_path: Path, name: str) -> None:
    transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**TOWER)).save_pretrained(tmp_path)
    words, change = CHANGES[name]
    broken(tmp_path, change)
    with pytest.raises(ModelError, match=words) as caught:
        NaViT.from_pretrained(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_what_old_files_hold_besides_does_not_matter(tmp_path: Path) -> None:
    source = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**TOWER))
    source.save_pretrained(tmp_path)
    broken(tmp_path, lambda w: w.update({"embeddings.position_ids": torch.arange(17)[None]}))
    assert same(NaViT.from_pretrained(tmp_path), NaViT.from_transformers(source))


def test_bad_foreign_folders_are_named(tmp_path: Path) -> None:
    def refused(words: str) -> None:
        with pytest.raises(ModelError, match=words) as caught:
            NaViT.from_pretrained(tmp_path)
        assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)

    transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**TOWER)).save_pretrained(
        tmp_path, max_shard_size="20KB"
    )
    shard = sorted(tmp_path.glob("model-*.safetensors"))[0]
    whole, index = shard.read_bytes(), (tmp_path / "model.safetensors.index.json").read_text()
    shard.write_bytes(whole[: len(whole) // 2])
    refused("cannot be read .* copy the folder again")
    shard.unlink()
    refused(f"{shard.name}' cannot be read")
    shard.write_bytes(whole)
    table = json.loads(index)
    for changed, words in (
        ({"weight_map": {**table["weight_map"], "more": shard.name}}, "has no weight 'more', which"),
        ({"weight_map": {"more": "../elsewhere.safetensors"}}, "outside of its folder"),
        ({}, "index.json' cannot be read"),
    ):
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(changed))
        refused(words)
    (tmp_path / "model.safetensors.index.json").unlink()
    refused("pickled weights are not read")
    (tmp_path / "model.safetensors.index.json").write_text(index)
    config = json.loads((tmp_path / "config.json").read_text())
    for changes, words in (
        ({"model_type": "moonvit"}, "transformers cannot make the model"),
        ({"architectures": ["CLIPSeer"]}, "a model of the class 'CLIPSeer', which transformers"),
        ({"hidden_act": "relu"}, "hidden_act = 'relu' cannot be taken over"),
        ({"architectures": ["CLIPTextModel"]}, "cannot|from_transformers takes"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
        refused(words)


def big_vision(path: Path, pool: str, side: int = 3) -> dict[str, np.ndarray]:
    """A file as big_vision saves its ViT, random."""
    rng = np.random.default_rng(5)
    D, H, M, depth = 32, 4, 48, 2
    shapes: dict[str, tuple[int, ...]] = {"embedding/kernel": (P, P, 3, D), "embedding/bias": (D,)}
    shapes |= {"pos_embedding": (1, side * side, D), "head/kernel": (D, 5), "head/bias": (5,)}
    names = {f"Transformer/encoderblock_{n}/": 2 for n in range(depth)} | ({"MAPHead_0/": 1} if pool == "map" else {})
    for name, norms in names.items():
        attention = f"{name}MultiHeadDotProductAttention_0/"
        shapes |= {f"{attention}{part}/kernel": (D, H, D // H) for part in ("query", "key", "value")}
        shapes |= {f"{attention}{part}/bias": (H, D // H) for part in ("query", "key", "value")}
        shapes |= {f"{attention}out/kernel": (H, D // H, D), f"{attention}out/bias": (D,)}
        for n in range(norms):
            shapes |= {f"{name}LayerNorm_{n}/scale": (D,), f"{name}LayerNorm_{n}/bias": (D,)}
        shapes |= {f"{name}MlpBlock_0/Dense_0/kernel": (D, M), f"{name}MlpBlock_0/Dense_0/bias": (M,)}
        shapes |= {f"{name}MlpBlock_0/Dense_1/kernel": (M, D), f"{name}MlpBlock_0/Dense_1/bias": (D,)}
    shapes |= {f"Transformer/encoder_norm/{part}": (D,) for part in ("scale", "bias")}
    shapes |= {"cls": (1, 1, D)} if pool == "token" else {"MAPHead_0/probe": (1, 1, D)} if pool == "map" else {}
    arrays = {f"params/{name}": rng.normal(0, 0.2, shape).astype(np.float32) for name, shape in shapes.items()}
    np.savez(path, **arrays)
    return arrays


@pytest.mark.parametrize("pool", ["token", "map", "avg"])
def test_a_file_of_big_vision(tmp_path: Path, pool: str) -> None:
    path = tmp_path / "flexi.npz"
    arrays = big_vision(path, pool)
    net = NaViT.from_pretrained(path, patch_sizes=(2, P))
    shape = {"patch_size": P, "embed_dim": 32, "depth": 2, "num_heads": 4, "mlp_ratio": 1.5, "num_classes": 5}
    kind = {"class_token": pool == "token", "no_embed_class": True, "global_pool": pool, "fc_norm": False}
    source = VisionTransformer(img_size=3 * P, **shape, **kind, act_layer="gelu_tanh").eval()
    source.load_pretrained(str(path))
    rng = np.random.default_rng(0)
    images = [torch.from_numpy(rng.normal(size=(3, 3 * P, 3 * P)).astype(np.float32)) for _ in range(5)]
    with torch.no_grad():
        theirs = torch.cat([source(image[None]) for image in images])
    ours = net.classify(images, normalized=True)
    assert (ours - theirs).abs().max() / theirs.std() < 1e-4
    for change, words in (
        ({"params/head/sigma": np.zeros(5, np.float32)}, "no place for: head/sigma"),
        ({"params/head/bias": np.zeros(4, np.float32)}, r"'head.weight' .* shape \[5, 32\], .* \[4, 32\]"),
        (
            {"params/embedding/kernel": np.zeros((P, P, 4, 32), np.float32)},
            r"shape \[4, 4, 4, 32\], not \[P, P, 3, D\]",
        ),
    ):
        np.savez(path, **{**arrays, **change})
        with pytest.raises(ModelError, match=words):
            NaViT.from_pretrained(path)
    np.savez(path, **{k: v for k, v in arrays.items() if "encoder_norm/scale" not in k})
    with pytest.raises(ModelError, match="has no weight 'Transformer/encoder_norm/scale'"):
        NaViT.from_pretrained(path)
    with pytest.raises(ModelError, match=r"gone\.npz' cannot be read \(no such file\)"):
        NaViT.from_pretrained(tmp_path / "gone.npz")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ModelError, match=r"flexi\.npz' cannot be read"):
        NaViT.from_pretrained(path)


def test_weights_are_read_a_part_at_a_time(tmp_path: Path) -> None:
    """Nothing holds what was handed out, so beside the model there is never more than a block."""
    transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**TOWER)).save_pretrained(tmp_path)
    _, parts = open_folder(tmp_path, json.loads((tmp_path / "config.json").read_text()))
    handed: list[weakref.ref[torch.Tensor]] = []
    for part in parts:
        assert 1 <= len(part) <= 12
        handed += [weakref.ref(value) for value in part.values()]
        del part
        assert not any(tensor() is not None for tensor in handed)
    assert len(handed) == len(NaViT.from_pretrained(tmp_path).state_dict())
