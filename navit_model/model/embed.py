"""Patches → tokens: pixels are normalised on the device, then mapped linearly, at any patch size that the model takes.

In: u8 patches (or float ones, already normalised). Out: one token a patch. Apart, since it alone knows the patch size:
compiled, it is traced once per P, the encoder behind it once per run.

Shapes: T tokens · P patch side · D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import NaViTConfig


def resize_matrix(source: int, target: int, filter: str, antialias: bool, corners: bool = False) -> Tensor:
    """The `[target, source]` matrix of PyTorch's resize of one axis; 2D resizing is its product over both axes."""
    # The columns of the unit matrix are the basis; a resize that keeps their number leaves them apart.
    basis = torch.eye(source, dtype=torch.float64)[None, None]
    return F.interpolate(basis, (target, source), mode=filter, antialias=antialias, align_corners=corners)[0, 0]


def pi_resize_matrix(source: int, target: int, filter: str) -> Tensor:
    """Q of the pseudo-inverse resize of one axis, `[target, source]` (FlexiViT, arXiv 2212.08013).

    With B = R⊗R the resize of patches, ŵ = (Bᵀ)⁺w = (Q⊗Q)w for Q = (Rᵀ)⁺, so no matrix of P²×P² is ever made.

    Args:
        source: side of the base kernel.
        target: side wanted.
        filter: `bilinear` without antialias, or `bicubic` with it.
    """
    inverse: Tensor = torch.linalg.pinv(resize_matrix(source, target, filter, antialias=filter == "bicubic").T)
    return inverse


class PatchEmbedding(nn.Module):
    """u8 patches → tokens. Other patch sizes take the base kernel, always resized from the base, never in a chain."""

    def __init__(self, config: NaViTConfig) -> None:
        super().__init__()
        self.base, self.filter = config.patch_size, config.patch_filter
        inputs = 3 * self.base**2
        self.proj = nn.Linear(inputs, config.width)
        self.scale: Tensor
        self.shift: Tensor
        self.register_buffer("scale", 1 / (255 * torch.tensor(config.std)), persistent=False)
        self.register_buffer("shift", -torch.tensor(config.mean) / torch.tensor(config.std), persistent=False)
        # No buffers: they say nothing that the configuration does not, and sizes never met cost nothing.
        self._resizes: dict[tuple[int, torch.device], Tensor] = {}
        nn.init.trunc_normal_(self.proj.weight, std=inputs**-0.5)
        nn.init.zeros_(self.proj.bias)

    def resize(self, patch_size: int) -> Tensor | None:
        """Q of this patch size, `[P, base]`, made once and kept; None for the base itself."""
        if patch_size == self.base:
            return None
        key = (patch_size, self.proj.weight.device)
        if key not in self._resizes:
            self._resizes[key] = pi_resize_matrix(self.base, patch_size, self.filter).to(key[1], torch.float32)
        return self._resizes[key]

    def weight(self, patch_size: int) -> Tensor:
        """The kernel for patches of this side, `[D, P·P·3]`, differentiable in the base kernel."""
        return self._kernel(self.resize(patch_size))

    def _kernel(self, q: Tensor | None) -> Tensor:
        weight = self.proj.weight
        if q is None:
            return weight
        q = q.to(weight.dtype)
        kernel = weight.view(-1, self.base, self.base, 3)
        return torch.einsum("ai,bj,dijc->dabc", q, q, kernel).flatten(1)

    def forward(self, patches: Tensor, patch_size: int) -> Tensor:
        """Patches `[T, P·P·3]` → `[T, D]`.

        Args:
            patches: u8 pixels; or float, which are taken as normalised already.
            patch_size: P.
        """
        return self.project(patches, self.resize(patch_size))

    def project(self, patches: Tensor, q: Tensor | None) -> Tensor:
        """What `forward` does on the device alone: this is what can be compiled, once for each P."""
        weight = self._kernel(q)
        x = patches.to(weight.dtype)
        if patches.dtype == torch.uint8:
            area = patches.shape[1] // 3
            x = x * self.scale.to(x.dtype).repeat(area) + self.shift.to(x.dtype).repeat(area)
        return F.linear(x, weight, self.proj.bias)
