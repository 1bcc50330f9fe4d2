"""Vision-language models, tiny and random: with our encoder in their tower they say what they said, and learn what they learnt.

A row of the table is a model, and what its processor would make of several images of odd shapes. Compared are logits of the
whole model, gradients of every weight, tokens of `generate`, and what comes back from a folder.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers.models.glm4v.modeling_glm4v import Glm4vForConditionalGeneration
from transformers.models.kimi_k25.configuration_kimi_k25 import Kimi_K25Config
from transformers.models.kimi_k25.modeling_kimi_k25 import Kimi_K25ForConditionalGeneration

from navit_loader.errors import ModelError
from navit_model.hf import replace_vision_tower, restore_vision_tower
from navit_model.weights.families import FAMILIES
from navit_model.weights.from_transformers import tower_of

from .weights_kit import shaken

P, IMAGE, START, END = 4, 90, 91, 92
FORWARD, BACKWARD = 1e-4, 1e-3
GRIDS = [(4, 6), (2, 10), (12, 2), (2, 2), (6, 18)]
TEXT: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MROPE: dict[str, Any] = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 1]}
SEES: dict[str, Any] = {"depth": 3, "num_heads": 4, "patch_size": P, "hidden_size": 32, "out_hidden_size": 24}
TOWER: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "patch_size": P,
    "image_size": 16,
}
IDS: dict[str, Any] = {
    "image_token_id": IMAGE,
    "vision_start_token_id": START,
    "vision_end_token_id": END,
    "video_token_id": 93,
}


def words(counts: list[int], around: tuple[int, int] | None = None) -> dict[str, torch.Tensor]:
    """A text with as many image tokens for each image as `counts`."""
    ids = [1]
    for n, count in enumerate(counts):
        ids += [10 + n, *((around or ())[:1]), *[IMAGE] * count, *((around or ())[1:])]
    found = torch.tensor([[*ids, 7, 8]])
    return {"input_ids": found, "attention_mask": torch.ones_like(found)}


def grids(side: int, frames: int, merge: int = 2) -> dict[str, torch.Tensor]:
    """Patches as Qwen's processors lay them out, in which frames differ."""
    thw = torch.tensor([[1, h, w] for h, w in GRIDS])
    total = int(thw.prod(1).sum())
    shape = (total, 3 * frames * P * P) if side else (total, 3, P, P)
    inputs = words([h * w // merge**2 for h, w in GRIDS], (START, END))
    kinds = (inputs["input_ids"] == IMAGE).int()
    more = {"mm_token_type_ids": kinds} if side else {}
    return {**inputs, **more, "pixel_values": torch.randn(shape), "image_grid_thw": thw}


def qwen(kind: str, vision: dict[str, Any], rope: str = "rope_parameters") -> nn.Module:
    config = getattr(transformers, f"{kind}Config")(
        text_config={**TEXT, rope: MROPE, "head_dim": 6}, vision_config=vision, **IDS
    )
    return getattr(transformers, f"{kind}ForConditionalGeneration")(config)  # type: ignore[no-any-return]


def pixtral(kind: str, **options: Any) -> nn.Module:
    config = getattr(transformers, f"{kind}Config")(
        text_config=transformers.MistralConfig(**TEXT),
        vision_config=transformers.PixtralVisionConfig(**TOWER),
        **options,
    )
    return getattr(transformers, f"{kind}ForConditionalGeneration")(config)  # type: ignore[no-any-return]


def images(counts: list[int]) -> dict[str, Any]:
    sizes = torch.tensor(GRIDS) * P
    pixels = torch.randn(len(GRIDS), 3, *sizes.amax(0).tolist())
    return {**words(counts), "pixel_values": pixels, "image_sizes": sizes}


def lfm2() -> nn.Module:
    vision = transformers.Siglip2VisionConfig(**{**TOWER, "num_patches": 25}, vision_use_head=False)
    text = transformers.Lfm2Config(**TEXT, layer_types=["full_attention", "conv"])
    return transformers.Lfm2VlForConditionalGeneration(
        transformers.Lfm2VlConfig(text_config=text, vision_config=vision, image_token_id=IMAGE, downsample_factor=2)
    )


def padded() -> dict[str, Any]:
    sizes = [h * w for h, w in GRIDS]
    mask = torch.arange(max(sizes)) < torch.tensor(sizes)[:, None]
    return {
        **words([n // 4 for n in sizes]),
        "pixel_values": torch.randn(len(sizes), max(sizes), 3 * P * P),
        "pixel_attention_mask": mask.long(),
        "spatial_shapes": torch.tensor(GRIDS),
    }


def gemma4() -> nn.Module:
    vision = {**TOWER, "num_key_value_heads": 4, "head_dim": 8, "position_embedding_size": 20, "pooling_kernel_size": 2}
    text = {**TEXT, "head_dim": 8, "global_head_dim": 8, "vocab_size_per_layer_input": 100, "num_kv_shared_layers": 0}
    config = transformers.Gemma4Config(
        text_config={**text, "hidden_size_per_layer_input": 4, "layer_types": ["sliding_attention", "full_attention"]},
        vision_config=vision,
        audio_config=None,
        image_token_id=IMAGE,
    )
    return transformers.Gemma4ForConditionalGeneration(config)


def placed() -> dict[str, Any]:
    most = max(h * w for h, w in GRIDS)
    at = torch.full((len(GRIDS), most, 2), -1)
    for n, (h, w) in enumerate(GRIDS):
        at[n, : h * w] = torch.cartesian_prod(torch.arange(h), torch.arange(w)).flip(1)
    inputs = words([h * w // 4 for h, w in GRIDS])
    return {
        **inputs,
        "pixel_values": torch.rand(len(GRIDS), most, 3 * P * P),
        "image_position_ids": at,
        "mm_token_type_ids": (inputs["input_ids"] == IMAGE).int(),
    }


def paddle() -> nn.Module:
    config = transformers.PaddleOCRVLConfig(
        text_config={**TEXT, "head_dim": 6, "rope_parameters": MROPE}, vision_config=TOWER, **IDS
    )
    return transformers.PaddleOCRVLForConditionalGeneration(config)


def kimi() -> nn.Module:
    config = Kimi_K25Config(
        text_config=transformers.LlamaConfig(**TEXT),
        vision_config={**TOWER, "pos_emb_height": 5, "pos_emb_width": 5},
        projection_hidden_size=32,
        image_token_id=IMAGE,
    )
    return Kimi_K25ForConditionalGeneration(config)


QUARTERS = [h * w // 4 for h, w in GRIDS]
MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], dict[str, Any]]]] = {
    "qwen2_vl": (
        lambda: qwen("Qwen2VL", {**SEES, "embed_dim": 32, "hidden_size": 24}),
        lambda: grids(2, 2),
    ),
    "qwen2_5_vl": (
        lambda: qwen("Qwen2_5_VL", {**SEES, "intermediate_size": 40, "window_size": 16, "fullatt_block_indexes": [1]}),
        lambda: grids(2, 2),
    ),
    "qwen3_vl": (
        lambda: qwen(
            "Qwen3VL",
            {**SEES, "intermediate_size": 40, "num_position_embeddings": 25, "deepstack_visual_indexes": [0, 1]},
        ),
        lambda: grids(2, 2),
    ),
    "glm4v": (
        lambda: Glm4vForConditionalGeneration(
            transformers.Glm4vConfig(
                text_config={**TEXT, "rope_parameters": MROPE},
                vision_config={**SEES, "image_size": 20, "intermediate_size": 40},
                **IDS,
                image_start_token_id=START,
                image_end_token_id=END,
            )
        ),
        lambda: grids(2, 2),
    ),
    "mistral3": (lambda: pixtral("Mistral3", image_token_id=IMAGE), lambda: images(QUARTERS)),
    "llava": (
        lambda: pixtral(
            "Llava", image_token_index=IMAGE, vision_feature_select_strategy="full", vision_feature_layer=-2
        ),
        lambda: images([4 * n for n in QUARTERS]),
    ),
    "lfm2_vl": (lfm2, padded),
    "gemma4": (gemma4, placed),
    "paddleocr_vl": (
        paddle,
        lambda: grids(2, 1) | {"pixel_values": torch.randn(sum(4 * n for n in QUARTERS), 3, P, P)},
    ),
    "kimi": (kimi, lambda: grids(0, 1)),
}


def built(name: str) -> tuple[nn.Module, dict[str, Any]]:
    torch.manual_seed(0)
    make, inputs = MODELS[name]
    return shaken(make()), inputs()


def learnt(model: nn.Module, inputs: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logits, and the gradients of all weights."""
    model.zero_grad()
    logits = model(**inputs).logits
    (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum().backward()
    return logits.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_says_and_learns_the_same(name: str) -> None:
    model, inputs = built(name)
    theirs, slopes = learnt(model, inputs)
    replace_vision_tower(model)
    tower, _ = tower_of(model)
    tower.get_submodule(FAMILIES[type(tower).__name__].blocks)[0].register_forward_hook(lambda *_: pytest.fail("ran"))
    ours, grads = learnt(model, inputs)
    assert (ours - theirs).abs().max() / theirs.std() < FORWARD
    assert grads.keys() == slopes.keys() and len(grads) > 40
    for weight, slope in slopes.items():
        assert (grads[weight] - slope).abs().max() <= BACKWARD * max(float(slope.std()), 1e-2), (
            weight
        )  # of some it is 0


@pytest.mark.parametrize("name", MODELS)
def test_a_tower_answers_as_before_with_all_that_it_is_asked_for(name: str) -> None:
    """Fields, shapes and hidden states; of padded tokens there is nothing to compare."""
    model, inputs = built(name)
    tower, _ = tower_of(model)
    asked: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    hook = tower.register_forward_pre_hook(lambda _, args, kwargs: asked.append((args, kwargs)), with_kwargs=True)
    with torch.no_grad():
        model(**inputs)
        hook.remove()
        args, kwargs = asked[0]
        kwargs = {**kwargs, "output_hidden_states": True, "return_dict": True}
        theirs = tower(*args, **kwargs)
        replace_vision_tower(model)
        ours = tower(*args, **kwargs)
        plain = tower(*args, **{**kwargs, "output_hidden_states": False, "return_dict": False})
    assert type(ours) is type(theirs) and ours.keys() == theirs.keys() and isinstance(plain, tuple)
    real = kwargs.get("pixel_attention_mask", kwargs.get("pixel_position_ids"))
    real = real if real is None or real.ndim == 2 else real[..., 0] >= 0
    for key, value in theirs.items():
        for one, other in zip(*((x if isinstance(x, (tuple, list)) else [x]) for x in (ours[key], value)), strict=True):
            assert one.shape == other.shape, key
            if real is not None and one.shape[:2] == real.shape:
                one, other = one[real.bool()], other[real.bool()]
            assert (one - other).abs().max() / other.std() < FORWARD, key


@pytest.mark.parametrize("name", ["qwen2_5_vl", "mistral3", "lfm2_vl"])
def test_generate_and_folders_go_on(name: str, tmp_path: Path) -> None:
    model, inputs = built(name)
    how = {"max_new_tokens": 4, "do_sample": False}
    theirs = model.generate(**inputs, **how)  # type: ignore[operator]
    kept = {key: value.clone() for key, value in model.state_dict().items()}
    replace_vision_tower(model)
    assert torch.equal(model.generate(**inputs, **how), theirs)  # type: ignore[operator]
    assert model.state_dict().keys() == kept.keys()
    model.save_pretrained(tmp_path)  # type: ignore[operator]
    opened = type(model).from_pretrained(tmp_path)  # type: ignore[attr-defined]
    for key, value in opened.state_dict().items():
        assert torch.equal(value, kept[key]), key


def test_a_step_reaches_the_packed_tower_and_its_copy_runs_its_own() -> None:
    model, inputs = built("mistral3")
    replace_vision_tower(model)
    twin = copy.deepcopy(model)
    before, _ = learnt(model, inputs)
    with torch.no_grad():
        for weight in model.parameters():
            weight.sub_(0.1 * weight.sign())
    after, _ = learnt(model, inputs)
    assert not torch.allclose(after, before, atol=1e-2)
    assert torch.equal(learnt(twin, inputs)[0], before)
    restore_vision_tower(model)
    again, _ = learnt(model, inputs)
    assert (again - after).abs().max() / after.std() < FORWARD
    assert "forward" not in vars(tower_of(model)[0])


@pytest.mark.parametrize("name", ["qwen3_vl", "lfm2_vl"])
def test_blocks_are_recomputed_where_the_tower_recomputes_them(name: str) -> None:
    model, inputs = built(name)
    theirs, slopes = learnt(model, inputs)
    model.activation_checkpointing_enable()  # type: ignore[operator]
    model.train()
    replace_vision_tower(model)
    tower, _ = tower_of(model)
    runs: list[int] = []
    tower.navit.steps.net.blocks[1].register_forward_pre_hook(lambda *_: runs.append(1))
    ours, grads = learnt(model, inputs)
    assert len(runs) == 2
    assert (ours - theirs).abs().max() / theirs.std() < FORWARD
    for weight, slope in slopes.items():
        assert (grads[weight] - slope).abs().max() <= BACKWARD * max(float(slope.std()), 1e-2), weight


def test_frames_of_a_video_differ_and_do_not_see_each_other() -> None:
    model, _ = built("qwen2_5_vl")
    tower, _ = tower_of(model)
    thw = torch.tensor([[3, 4, 6], [1, 2, 2]])
    patches = torch.randn(3 * 24 + 4, 3 * 2 * P * P)
    with torch.no_grad():
        theirs = tower(patches, thw).pooler_output
        replace_vision_tower(model)
        ours = tower(patches, thw).pooler_output
    assert (ours - theirs).abs().max() / theirs.std() < FORWARD


def test_images_beyond_the_table_of_the_start() -> None:
    """Tables are resized to what comes, however long."""
    model, _ = built("qwen3_vl")
    tower, _ = tower_of(model)
    thw = torch.tensor([[1, 2, 150], [1, 4, 4]])
    patches = torch.randn(300 + 16, 3 * 2 * P * P)
    state = torch.get_rng_state()
    with torch.no_grad():
        theirs = tower(patches, thw).pooler_output
        replace_vision_tower(model)
        ours = tower(patches, thw).pooler_output
    assert (ours - theirs).abs().max() / theirs.std() < FORWARD
    assert torch.equal(torch.get_rng_state(), state)


def test_no_second_copy_of_the_weights_is_kept() -> None:
    model, inputs = built("mistral3")
    replace_vision_tower(model)
    with torch.no_grad():
        model(**inputs)
    gc.collect()
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    tower, _ = tower_of(model)
    most = max(p.numel() for p in tower.parameters())
    kept = [x for x in tower.navit.steps.state_dict().values() if not x.is_meta]
    assert sum(x.numel() for x in kept if x.untyped_storage().data_ptr() not in own) < most


def test_half_precision() -> None:
    model, inputs = built("gemma4")
    with torch.no_grad():
        exact = model(**inputs).logits
        model.bfloat16()
        theirs = model(**inputs).logits
        replace_vision_tower(model)
        ours = model(**inputs).logits
    assert ours.dtype == torch.bfloat16
    assert (ours - exact).abs().mean() < 1.5 * (theirs - exact).abs().mean() + 1e-3


def quantised() -> nn.Module:
    model, _ = built("lfm2_vl")
    tower, _ = tower_of(model)
    layer = tower.encoder.layers[0].mlp.fc1
    layer.weight = nn.Parameter(layer.weight.to(torch.int8), requires_grad=False)
    return model


def dropping() -> nn.Module:
    model, _ = built("mistral3")
    tower_of(model)[0].config.attention_dropout = 0.1
    return model


REFUSED: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "one size": (
        "SiglipVisionModel takes images of one size.*replace_vision_tower takes Qwen2Vision",
        lambda: transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**TOWER)),
    ),
    "unknown": (
        "from_transformers takes .* not ConvNextModel",
        lambda: transformers.ConvNextModel(transformers.ConvNextConfig(depths=[1] * 4, hidden_sizes=[8] * 4)),
    ),
    "quantised": (r"layers.0.mlp.fc1.weight has dtype torch.int8; a quantised tower", quantised),
    "dropout": ("attention_dropout = 0.1 cannot run packed", dropping),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_swapped_is_named_with_the_reason(name: str) -> None:
    words, make = REFUSED[name]
    model = make()
    with pytest.raises(ModelError, match=words):
        replace_vision_tower(model)
    assert not any("navit" in vars(module) for module in model.modules())


def test_inputs_that_no_packed_tower_takes() -> None:
    model, inputs = built("lfm2_vl")
    replace_vision_tower(model)
    inputs["pixel_attention_mask"][0, 0] = 0
    with pytest.raises(ModelError, match="as many patches of each image as spatial_shapes"):
        model(**inputs)
    model, inputs = built("kimi")
    replace_vision_tower(model)
    with pytest.raises(ModelError, match="frames attend to one another"):
        tower_of(model)[0](torch.randn(8, 3, P, P), torch.tensor([[2, 2, 2]]))
    model, _ = built("gemma4")
    replace_vision_tower(model)
    at = torch.cartesian_prod(torch.arange(42), torch.arange(2))[None]
    with pytest.raises(ModelError, match="42 patches on a side, Gemma4VisionModel has positions for 20"):
        tower_of(model)[0](torch.rand(1, 84, 3 * P * P), at)
