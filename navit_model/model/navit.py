"""NaViT: a vision transformer over packed images of any size (arXiv 2307.06304).

In: a `PackedBatch` on the model's device. Out: logits of each image, `[B, E, classes]`. Every shape is static, and on a
GPU nothing of the batch is read on the host.

Shapes: B sequences · L tokens · T = B·L · D width · E images per sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import MethodType
from typing import Any, Self

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from navit_loader.batch import PackedBatch, View
from navit_loader.errors import ConfigError, ModelError

from ..config import NaViTConfig
from .attention import Backend, check_traceable, choose_for, number_of, segments
from .check import check_batch, check_blocks, check_place
from .embed import PatchEmbedding
from .encoder import Context, blocks, norm
from .merge import MERGERS, Merged, Merger, blocks_of, gather
from .pool import AttentionPooling, pick_prefix, pool_mean
from .positions import Positions, Rotation
from .windows import windows


class NaViT(nn.Module, PyTorchModelHubMixin, library_name="navit", tags=["navit"]):
    """Patch embedding, positions, an encoder over segments, pooling, a classifier.

    `save_pretrained` and `push_to_hub` come from the hub's mixin.
    """

    def __init__(self, config: NaViTConfig) -> None:
        """Makes a model with fresh weights.

        Args:
            config: its shape; with `classes = 0` there is no classifier, and logits are the pooled features.
        """
        super().__init__()
        if not isinstance(config, NaViTConfig):
            raise ConfigError(f"config is a {type(config).__name__}; give a NaViTConfig, or NaViTConfig.preset('B/16')")
        self.config = config
        self.checkpointing = config.checkpointing
        self.patch_embed = PatchEmbedding(config)
        self.patch_norm = norm(config, config.width) if config.patch_norm else nn.Identity()
        self.positions = Positions(config)
        self.rotation = Rotation(config) if config.rope else None
        self.prefix = nn.Parameter(torch.empty(config.prefix_tokens, config.width)) if config.prefix_tokens else None
        self.dropout = nn.Dropout(config.dropout) if config.dropout else nn.Identity()
        self.embed_norm = norm(config, config.width) if config.embed_norm else nn.Identity()
        self.blocks = blocks(config)
        self.norm = norm(config, config.width) if config.last_norm else nn.Identity()
        self.pool = AttentionPooling(config) if config.pool == "map" else None
        self.merger = MERGERS[config.merge_kind](config) if config.merge else None
        self.tap_mergers = nn.ModuleList(Merger(config, whole=True) for _ in config.merge_taps)
        self.head = _classifier(config)
        self.distill_head = _classifier(config) if config.distill_token else None
        if self.prefix is not None:
            nn.init.trunc_normal_(self.prefix, std=0.02)

    def forward(self, batch: PackedBatch | View) -> Tensor:
        """Logits of each image slot, f32 `[B, E, classes]`; only those with status `OK` mean anything.

        With a distillation token they are the mean of both classifiers' (DeiT); `forward_distilled` keeps them apart.

        Raises:
            ModelError: a batch that the model does not take; see `navit_model.model.check`.
        """
        return self.forward_head(self.forward_features(batch), batch)

    def forward_features(self, batch: PackedBatch | View) -> Tensor:
        """Encoded tokens, `[B, L, D]`; no image is influenced by padding or by another image."""
        return self.encode(self._embed(batch), batch, ())[0]

    def forward_head(self, x_BLD: Tensor, batch: PackedBatch | View, pre_logits: bool = False) -> Tensor:
        """Pooled images `[B, E, D]` with `pre_logits`, else their logits, f32 `[B, E, classes]`."""
        pooled = self._pool(x_BLD, batch)
        if pre_logits:
            return pooled
        logits: Tensor = self.head(pooled).float()
        if self.distill_head is None:
            return logits
        return (logits + self._distilled(x_BLD, batch)) / 2

    def forward_distilled(self, batch: PackedBatch | View) -> tuple[Tensor, Tensor]:
        """Logits of the classifier and of the distillation token's, each f32 `[B, E, classes]` (DeiT)."""
        x_BLD = self.forward_features(batch)
        return self.head(self._pool(x_BLD, batch)).float(), self._distilled(x_BLD, batch)

    def forward_intermediates(
        self, batch: PackedBatch | View, indices: int | Sequence[int] | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Encoded tokens `[B, L, D]`, and the tokens after each of the blocks named, in the order of the blocks.

        Args:
            batch: the images.
            indices: numbers of blocks, negative ones counted from the end; one number means that many of the last
                blocks, None all of them (as in timm).

        Raises:
            ModelError: a block that there is not, or a batch that the model does not take.
        """
        depth = len(self.blocks)
        if indices is None or isinstance(indices, int):
            indices = range(-(depth if indices is None else indices), 0)
        if not all(-depth <= n < depth for n in indices):
            raise ModelError(f"indices = {list(indices)} must be numbers of the model's {depth} blocks")
        return self.encode(self._embed(batch), batch, tuple(n % depth for n in indices))

    def forward_merged(self, batch: PackedBatch | View) -> Merged:
        """Blocks of `merge` × `merge` patches as one token each, `[B, M, merge_width]`, as a language model takes them.

        Raises:
            ModelError: a model without a merger, or a batch that it does not take.
        """
        if self.merger is None:
            raise ModelError("forward_merged needs model.merge, the side of the blocks that become one token")
        check_blocks(self.config, batch)
        x_BLD, tapped = self.forward_intermediates(batch, self.config.merge_taps)
        index_BMm, image_BM = blocks_of(batch, self.config.merge)
        taps = [merger(gather(x, index_BMm)) for merger, x in zip(self.tap_mergers, tapped, strict=True)]
        return Merged(self.merger(gather(x_BLD, index_BMm)), image_BM, tuple(taps))

    def _embed(self, batch: PackedBatch | View) -> Tensor:
        """Pixels → tokens `[T, D]`: all that depends on the patch size."""
        self.check(batch)
        patches = batch.patches.flatten(0, 1)
        if patches.is_floating_point():
            # Masked memory may hold anything; a NaN there would reach weight gradients as 0 · NaN.
            is_patch = (batch.segment_ids >= 0) & (batch.positions[..., 0] >= 0)
            patches = patches.masked_fill(~is_patch.flatten()[:, None], 0.0)
        return self.patch_embed(patches, batch.patch_size)  # type: ignore[no-any-return]

    def encode(self, x_TD: Tensor, batch: PackedBatch | View, wanted: tuple[int, ...]) -> tuple[Tensor, list[Tensor]]:
        """Tokens of patches `[T, D]` → encoded tokens `[B, L, D]`, and those after the blocks `wanted`; reads no pixels."""
        B, L = batch.segment_ids.shape
        x_TD, at_T2, grid_T2, is_patch_T = self._place(x_TD, batch)
        backend, window = self._backend(x_TD), self.config.window
        where = segments(batch.cu_seqlens, batch.max_seqlen, B * L, backend)
        draws = self.training and self.config.drop_path > 0
        segment_T = number_of(batch.cu_seqlens, B * L) if draws else None
        order, near = where.order, where
        if window:
            order, offsets = windows(batch.cu_seqlens, at_T2, is_patch_T, window)
            near = segments(offsets, min(window**2, batch.max_seqlen), B * L, backend)
        elif order is not None:
            # Sorted once for all layers, since nothing but attention looks at neighbours.
            where = near = replace(where, order=None)
        if order is not None:
            x_TD, at_T2, grid_T2, is_patch_T = x_TD[order], at_T2[order], grid_T2[order], is_patch_T[order]
            segment_T = None if segment_T is None else segment_T[order]
        turns = {} if self.rotation is None else self.rotation(at_T2, grid_T2, is_patch_T)
        far = Context(where, segment=segment_T, segments=batch.cu_seqlens.shape[0] - 1, **turns)
        inside = replace(far, where=near)

        found = []
        for n, block in enumerate(self.blocks):
            context = far if n in self.config.window_free else inside
            if self.checkpointing and self.training:
                x_TD = checkpoint(block, x_TD, context, use_reentrant=False)
            else:
                x_TD = block(x_TD, context)
            if n in wanted:
                found.append(x_TD)
        if not self.config.norm_pooled:
            x_TD = self.norm(x_TD)
        back = None if order is None else torch.argsort(order)
        x_BLD, *found = ((x if back is None else x[back]).view(B, L, -1) for x in (x_TD, *found))
        return x_BLD, found

    def _place(self, x_TD: Tensor, batch: PackedBatch | View) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Tokens that know where they stand; (y, x) of each and (h, w) of its image, i64 `[T, 2]`, 0 and 1 where there is none;
        whether it is a patch.
        """
        real_T, place_T2 = (batch.segment_ids >= 0).flatten(), batch.positions.flatten(0, 1)
        is_patch_T = real_T & (place_T2[:, 0] >= 0)
        at_T2 = place_T2.long().clamp_min(0) * is_patch_T[:, None]
        grid_T2 = self._grids(batch)
        x_TD = self.patch_norm(x_TD)
        places = self.positions(at_T2, grid_T2)
        if places is not None:
            x_TD = x_TD + places
        if self.prefix is not None:
            learned = self.prefix[place_T2[:, 1].long().clamp(0, len(self.prefix) - 1)].to(x_TD.dtype)
            x_TD = torch.where((real_T & ~is_patch_T)[:, None], learned, x_TD)
        return self.embed_norm(self.dropout(x_TD)), at_T2, grid_T2, is_patch_T

    def _grids(self, batch: PackedBatch | View) -> Tensor:
        """(h, w) of each token's image, i64 `[T, 2]`; 1 where there is none."""
        index = batch.segment_ids.long().clamp_min(0)[..., None].expand(-1, -1, 2)
        grids: Tensor = batch.grids.long().gather(1, index)
        return grids.clamp_min(1).flatten(0, 1)

    def _pool(self, x_BLD: Tensor, batch: PackedBatch | View) -> Tensor:
        images = batch.grids.shape[1]
        # Padding has negative places too: what is read are patches alone.
        patch_of = batch.segment_ids
        if not self.config.pool_prefix:
            patch_of = patch_of.where(batch.positions[..., 0] >= 0, -1)
        if self.config.pool == "class":
            pooled = pick_prefix(x_BLD, batch.segment_ids, batch.positions, images, 0)
        elif self.pool is not None:
            pooled = self.pool(x_BLD, patch_of, images)
        else:
            pooled = pool_mean(x_BLD, patch_of, images)
        return self.norm(pooled) if self.config.norm_pooled else pooled

    def _distilled(self, x_BLD: Tensor, batch: PackedBatch | View) -> Tensor:
        if self.distill_head is None:
            raise ModelError("forward_distilled needs model.distill_token = true")
        number = int(self.config.class_token)
        token = pick_prefix(x_BLD, batch.segment_ids, batch.positions, batch.grids.shape[1], number)
        token = self.norm(token) if self.config.norm_pooled else token
        return self.distill_head(token).float()  # type: ignore[no-any-return]

    def check(self, batch: PackedBatch | View) -> None:
        """Refuses a batch or backend that the model does not take, before any kernel; `forward` calls it itself."""
        weight = self.patch_embed.proj.weight
        check_place(batch, weight.device)
        check_batch(self.config, batch)
        self._backend(weight)

    def _backend(self, x: Tensor) -> Backend:
        channels = self.config.width // self.config.heads
        return choose_for(self.config.attention, x, channels // 2 if self.config.differential else channels)

    @property
    def num_features(self) -> int:
        """D, the width of tokens and pooled images."""
        return self.config.width

    @property
    def num_classes(self) -> int:
        """Outputs of the classifier; 0 where there is none."""
        return self.config.classes

    def get_classifier(self) -> nn.Module:
        """The classifier: a linear layer, or an identity where there are no classes."""
        return self.head

    def reset_classifier(self, num_classes: int) -> None:
        """A fresh classifier with this many classes; 0 leaves the pooled features as they are."""
        self.config = replace(self.config, classes=num_classes)
        like = self.patch_embed.proj.weight
        self.head = _classifier(self.config).to(like.device, like.dtype)
        if self.distill_head is not None:
            self.distill_head = _classifier(self.config).to(like.device, like.dtype)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Whether to recompute each block in the backward pass."""
        self.checkpointing = enable

    def compile(self, **options: Any) -> None:
        """Compiles in place, without a graph break: the patch embedding once for each P, one block for all, the rest once.

        For CUDA graphs record a whole step (docs/rooms/model.md); blocks that share one trace cannot be graphs of their own.

        Args:
            options: of `torch.compile`.

        Raises:
            ModelError: the backend of attention cannot be traced.
        """
        check_traceable(self.config.attention, self.patch_embed.proj.weight.device)
        options = {"fullgraph": True, "dynamic": False, **options}
        # Dynamo gives up after eight shapes; FlexiViT has ten patch sizes.
        limit = torch._dynamo.config.recompile_limit
        torch._dynamo.config.recompile_limit = max(limit, len(self.config.patch_sizes) + 1)
        parts = [(self.patch_embed, "project"), (self, "_place"), (self, "forward_head")]
        parts += [(block, "forward") for block in self.blocks]
        compiled: dict[Any, Any] = {}
        for part, name in parts:
            plain = getattr(type(part), name)
            if plain not in compiled:
                compiled[plain] = torch.compile(plain, **options)
            # Bound anew, so that a copy of the model runs its own weights.
            setattr(part, name, MethodType(compiled[plain], part))

    # Doors to the rooms above, `use` and `weights`: those rooms import this one, so they are imported when a door is opened;
    # and so a model is built and run where the packer is missing.

    def classify(
        self,
        images: Sequence[Any],
        tokens: int | Sequence[int] | None = None,
        normalized: bool = False,
        *,
        sure: float = 0.9,
        sigmoid: bool = False,
    ) -> Tensor:
        """Logits of images of any size, f32 `[N, classes]`; see `navit_model.use.images.classify`."""
        from ..use.images import classify

        return classify(self, images, tokens, normalized, sure=sure, sigmoid=sigmoid)

    def embed(self, images: Sequence[Any], tokens: int | None = None, normalized: bool = False) -> Tensor:
        """Pooled features of images of any size, f32 `[N, D]`; see `navit_model.use.images.embed`."""
        from ..use.images import embed

        return embed(self, images, tokens, normalized)

    @classmethod
    def from_pretrained(cls, path: str | Path, **options: Any) -> Self:  # type: ignore[override]
        """A saved model, from a folder or the hub; see `navit_model.weights.saved.from_pretrained`."""
        from ..weights.saved import from_pretrained

        return from_pretrained(cls, path, **options)

    @classmethod
    def from_timm(cls, model: nn.Module, **changes: Any) -> Self:
        """A model with the outputs of one of timm's; see `navit_model.weights.saved.from_timm`."""
        from ..weights.saved import from_timm

        return from_timm(cls, model, **changes)

    @classmethod
    def from_transformers(cls, model: nn.Module, **changes: Any) -> Self:
        """A model with the outputs of one of transformers'; see `navit_model.weights.saved.from_transformers`."""
        from ..weights.saved import from_transformers

        return from_transformers(cls, model, **changes)

    def _save_pretrained(self, save_directory: Path) -> None:
        from ..weights.saved import save

        save(self, save_directory)


def _classifier(config: NaViTConfig) -> nn.Module:
    if config.classes == 0:
        return nn.Identity()
    head = nn.Linear(config.width, config.classes)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head
