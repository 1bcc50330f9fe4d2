"""The patch embedding at other patch sizes: the pseudo-inverse resize, against its definition and against timm's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers.patch_embed import resample_patch_embed

from navit_model import NaViTConfig
from navit_model.model.embed import PatchEmbedding


def embedding(base: int, filter: str) -> PatchEmbedding:
    torch.manual_seed(0)
    config = NaViTConfig(width=16, heads=1, patch_size=base, patch_filter=filter)  # type: ignore[arg-type]
    return PatchEmbedding(config).double()


def resized(x: torch.Tensor, target: int, filter: str) -> torch.Tensor:
    """`[N, P, P, 3]` by PyTorch's own resize."""
    size = (target, target)
    return F.interpolate(x.permute(0, 3, 1, 2), size, mode=filter, antialias=filter == "bicubic").permute(0, 2, 3, 1)


@settings(max_examples=25, deadline=None)
@given(base=st.integers(2, 12), more=st.integers(0, 12), filter=st.sampled_from(["bilinear", "bicubic"]))
def test_upsized_patches_give_the_same_tokens(base: int, more: int, filter: str) -> None:
    """⟨x, w⟩ = ⟨Bx, ŵ⟩ (FlexiViT)."""
    embed = embedding(base, filter)
    x = torch.randn(5, base, base, 3, dtype=torch.float64)
    bigger = resized(x, base + more, filter)
    weight = embed.weight(base + more)
    assert torch.allclose(embed(x.flatten(1), base), F.linear(bigger.flatten(1), weight, embed.proj.bias), atol=1e-4)


@pytest.mark.parametrize(("base", "target"), [(16, 8), (16, 12), (16, 24), (32, 16), (8, 8)])
def test_equals_timm(base: int, target: int) -> None:
    embed = embedding(base, "bicubic").float()
    kernel = embed.proj.weight.detach().view(16, base, base, 3).permute(0, 3, 1, 2)
    theirs = resample_patch_embed(kernel, [target, target], interpolation="bicubic", antialias=True)
    ours = embed.weight(target).detach().view(16, target, target, 3).permute(0, 3, 1, 2)
    assert torch.allclose(ours, theirs, atol=1e-4 * float(theirs.abs().max()))


def test_resizes_from_the_base_and_keeps_it_learning() -> None:
    embed = embedding(8, "bilinear").float()
    first = embed.weight(4).detach().clone()
    embed.weight(12)
    assert torch.equal(embed.weight(4), first)
    assert not [name for name, _ in embed.named_buffers() if "resize" in name]
    embed(torch.zeros(2, 48, dtype=torch.uint8), 4).sum().backward()
    assert embed.proj.weight.grad is not None and embed.proj.weight.grad.abs().max() > 0


def test_pixels_are_normalised_by_channel() -> None:
    config = NaViTConfig(width=16, heads=1, patch_size=2, mean=(0.1, 0.5, 0.9), std=(0.2, 0.4, 0.8))
    embed = PatchEmbedding(config)
    pixels = torch.randint(0, 256, (7, 2, 2, 3), dtype=torch.uint8)
    plain = (pixels / 255 - torch.tensor(config.mean)) / torch.tensor(config.std)
    assert torch.allclose(embed(pixels.flatten(1), 2), embed(plain.flatten(1), 2), atol=1e-5)
