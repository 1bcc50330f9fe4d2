"""The forward of each family's tower, with our encoder in the place of its blocks: the same signature, the same outputs.

In: what the family's processor makes of images. Out: what its tower answers. Patch embedding, merger and head are the tower's
own modules; what lies between them is `PackedEncoder`'s. Apart from `packed`, which knows no family.

Shapes: N patches of all images · B images, padded · D width.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from navit_loader.errors import ModelError

from .packed import Places

Lay = Callable[[Tensor], Tensor]
Forward = Callable[..., Any]


def _encoded(
    tower: Any, x_TD: Tensor, places: Places, asked: dict[str, Any], lay: Lay, taps: Any = ()
) -> tuple[Any, ...]:
    """Encoded tokens, those after the blocks `taps`, and hidden states as the family lays them out, where they are wanted."""
    every = asked.get("output_hidden_states", getattr(tower.config, "output_hidden_states", False))
    wanted = range(-1, tower.navit.config.depth) if every else taps
    x_TD, found = tower.navit(tower, x_TD, places, wanted)
    if not every:
        return x_TD, found, None
    return x_TD, [found[n + 1] for n in taps], [lay(x) for x in found]


def _output(tower: Any, asked: dict[str, Any], hidden: list[Tensor] | None, tied: bool = True, **fields: Any) -> Any:
    """The family's output; with `tied` the last of the hidden states is its last one."""
    kind = "BaseModelOutputWithDeepstackFeatures" if "deepstack_features" in fields else "BaseModelOutputWithPooling"
    if hidden is not None:
        fields["hidden_states"] = (*hidden[:-1], fields["last_hidden_state"] if tied else hidden[-1])
    found = getattr(importlib.import_module(type(tower).__module__), kind)(**fields)
    as_dict = asked.get("return_dict", getattr(tower.config, "return_dict", True))
    return found if as_dict is not False else found.to_tuple()


def _frames(grid_thw: Tensor) -> Tensor:
    """(h, w) of every frame, i64 `[S, 2]`, on the host; a video's frames are images of their own."""
    thw = grid_thw.detach().to("cpu", torch.int64)
    return thw[:, 1:].repeat_interleave(thw[:, 0], 0)


def qwen(tower: Any, hidden_states: Tensor, grid_thw: Tensor, **kwargs: Any) -> Any:
    """Qwen2-VL, Qwen2.5-VL, Qwen3-VL."""
    places = Places.of(_frames(grid_thw), tower.spatial_merge_size)
    lay: Lay = lambda x: x  # noqa: E731
    if tower.navit.config.window:
        # Its tokens leave it window by window; what it merges does not.
        order, _ = importlib.import_module("transformers.vision_utils").get_vision_window_index(
            grid_thw, tower.spatial_merge_size, tower.window_size, tower.patch_size
        )
        lay = lambda x: x.view(-1, tower.spatial_merge_unit, x.shape[-1])[order.to(x.device)].flatten(0, 1)  # noqa: E731
    taps = tower.navit.config.merge_taps
    x_TD, tapped, hidden = _encoded(tower, tower.patch_embed(hidden_states), places, kwargs, lay, taps)
    more: dict[str, Any] = {}
    if hasattr(tower, "deepstack_merger_list"):
        more["deepstack_features"] = [m(x) for m, x in zip(tower.deepstack_merger_list, tapped, strict=True)]
    return _output(tower, kwargs, hidden, last_hidden_state=lay(x_TD), pooler_output=tower.merger(x_TD), **more)


def glm(tower: Any, hidden_states: Tensor, grid_thw: Tensor, **kwargs: Any) -> Any:
    """GLM-4V."""
    side = tower.spatial_merge_size
    places = Places.of(_frames(grid_thw), side)
    x_TD, _, hidden = _encoded(tower, tower.patch_embed(hidden_states), places, kwargs, lambda x: x)
    blocks = x_TD.view(-1, side, side, x_TD.shape[-1]).permute(0, 3, 1, 2)
    merged = tower.downsample(blocks).flatten(1)
    return _output(tower, kwargs, hidden, last_hidden_state=merged, pooler_output=tower.merger(merged))


def pixtral(tower: Any, pixel_values: Tensor, image_sizes: Any = None, **kwargs: Any) -> Any:
    """Pixtral, the tower of Mistral 3 and of LLaVA's kind."""
    x_BDhw = tower.patch_conv(pixel_values.to(tower.patch_conv.weight.dtype))
    sizes = [pixel_values.shape[2:]] * len(pixel_values) if image_sizes is None else image_sizes
    grids = torch.as_tensor([[int(side) // tower.patch_size for side in size] for size in sizes])
    x_TD = torch.cat([x[:, :h, :w].flatten(1).T for x, (h, w) in zip(x_BDhw, grids.tolist(), strict=True)])
    x_TD, _, hidden = _encoded(tower, x_TD, Places.of(grids), kwargs, lambda x: x[None])
    return _output(tower, kwargs, hidden, last_hidden_state=x_TD[None])


def _padded(kept_BN: Tensor) -> Lay:
    """Tokens `[T, D]` → `[B, N, D]`, 0 where there is none."""
    return lambda x: x.new_zeros(*kept_BN.shape, x.shape[-1]).masked_scatter(kept_BN[..., None], x)


def siglip2(
    tower: Any, pixel_values: Tensor, pixel_attention_mask: Tensor, spatial_shapes: Tensor, **kwargs: Any
) -> Any:
    """SigLIP 2 with images of any shape, the tower of LFM2-VL."""
    kept_BN = pixel_attention_mask.bool()
    places = Places.of(spatial_shapes.detach().to("cpu", torch.int64))
    if kept_BN.sum(1).tolist() != places.sizes.tolist():
        raise ModelError("pixel_attention_mask must keep as many patches of each image as spatial_shapes says")
    patches = pixel_values[kept_BN].to(tower.embeddings.patch_embedding.weight.dtype)
    lay = _padded(kept_BN)
    x_TD, _, hidden = _encoded(tower, tower.embeddings.patch_embedding(patches), places, kwargs, lay)
    last = lay(x_TD)
    pooled = tower.head(last, pixel_attention_mask) if tower.use_head else None
    return _output(tower, kwargs, hidden, tied=False, last_hidden_state=last, pooler_output=pooled)


def gemma4(tower: Any, pixel_values: Tensor, pixel_position_ids: Tensor, **kwargs: Any) -> Any:
    """Gemma 4."""
    empty_BN = (pixel_position_ids == -1).all(-1)
    at_BN2 = pixel_position_ids.flip(-1).detach().to("cpu", torch.int64)
    kept_BN = ~empty_BN
    at = at_BN2[kept_BN.cpu()]
    places = Places(kept_BN.sum(1).cpu(), at_BN2.amax(1).clamp_min(0) + 1, at)
    linear, lay = tower.patch_embedder.input_proj, _padded(kept_BN)
    x_TD, _, hidden = _encoded(
        tower, linear((2 * (pixel_values[kept_BN] - 0.5)).to(linear.weight.dtype)), places, kwargs, lay
    )
    length = pixel_values.shape[-2] // tower.config.pooling_kernel_size**2
    pooled, real = tower.pooler(
        hidden_states=lay(x_TD),
        pixel_position_ids=pixel_position_ids,
        padding_positions=empty_BN,
        output_length=length,
    )
    pooled = pooled[real]
    if tower.config.standardize:
        pooled = (pooled - tower.std_bias.float()) * tower.std_scale.float()
    return _output(tower, kwargs, hidden, last_hidden_state=pooled.to(x_TD.dtype))


def paddle(
    tower: Any,
    pixel_values: Tensor,
    attention_mask: Tensor | None = None,
    grid_thw: Tensor | None = None,
    **kwargs: Any,
) -> Any:
    """PaddleOCR-VL."""
    if attention_mask is not None or grid_thw is None:
        raise ModelError("a packed PaddleOCRVisionTransformer takes grid_thw, and no attention_mask")
    conv = tower.embeddings.patch_embedding
    x_TD = conv(pixel_values.flatten(0, 1).to(conv.weight.dtype)).flatten(1)
    x_TD, _, hidden = _encoded(tower, x_TD, Places.of(_frames(grid_thw)), kwargs, lambda x: x)
    return _output(tower, kwargs, hidden, tied=False, last_hidden_state=x_TD, pooler_output=None)


def kimi(tower: Any, pixel_values: Tensor, grid_thw: Tensor, **kwargs: Any) -> Any:
    """Kimi K2.5."""
    if int(grid_thw[:, 0].max()) > 1:
        raise ModelError("Kimi's frames attend to one another; a packed tower takes images alone: restore_vision_tower")
    x_TD = tower.patch_embed.proj(pixel_values).flatten(1)
    x_TD, _, hidden = _encoded(tower, x_TD, Places.of(_frames(grid_thw)), kwargs, lambda x: x)
    pooled = tower.temporal_merge(x_TD, grid_thw, *tower.merge_kernel_size, kwargs=kwargs)
    return _output(tower, kwargs, hidden, last_hidden_state=x_TD, pooler_output=pooled)


FORWARDS: dict[str, Forward] = {
    "Qwen2VisionTransformerPretrainedModel": qwen,
    "Qwen2_5_VisionTransformerPretrainedModel": qwen,
    "Qwen3VLVisionModel": qwen,
    "Qwen3VLMoeVisionModel": qwen,
    "Glm4vVisionModel": glm,
    "PixtralVisionModel": pixtral,
    "Siglip2VisionModel": siglip2,
    "Gemma4VisionModel": gemma4,
    "PaddleOCRVisionTransformer": paddle,
    "Kimi_K25VisionModel": kimi,
}
"""By the class of the tower. Towers whose images are all of one size are not here: packing changes nothing for them."""
