"""The text tower: a transformer over packed captions, of the same blocks and the same attention as the images'.

In: `Captions`: token ids of whole captions laid end to end, as a batch carries them or as `pack_captions` makes them. Out:
one vector a caption, `[B, E, D]`. Captions are packed as images are (NaViT, arXiv 2307.06304, section 3 and appendix A.2), so
no slot is spent on the difference between a short caption and the longest.

Shapes: B sequences · Lt text tokens of a sequence · T = B·Lt · E captions of a sequence at most · D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from navit_loader.batch import ABSENT, PackedBatch
from navit_loader.errors import ModelError

from ..config import TextConfig
from .attention import choose_for, number_of, segments
from .encoder import Context, blocks, norm
from .pool import AttentionPooling, members


@dataclass(frozen=True, slots=True)
class Captions:
    """Packed captions, as tensors on one device.

    Attributes:
        text: i32 `[B, Lt]`, token ids; −1 in padding.
        cu_seqlens: i32 `[S + 1]`, offsets over T; padding is a segment too, and the last offset is T.
        numbers: i64 `[B, Lt]`, the slot of each token's caption in its sequence; −1 in padding.
        slots: E.
    """

    text: Tensor
    cu_seqlens: Tensor
    numbers: Tensor
    slots: int

    @classmethod
    def of(cls, batch: PackedBatch) -> Captions:
        """The captions of a batch with tensors; no host value is read.

        Raises:
            ModelError: a batch without captions.
        """
        if batch.text.numel() == 0:
            raise ModelError("the batch has no captions; index a source with captions and set plan.text_tokens")
        B, Lt = batch.text.shape
        # The captions of a sequence's images stand in the order of the images, then one segment of padding.
        images = (batch.status != ABSENT).sum(1)
        first = (images + 1).cumsum(0) - (images + 1)
        numbers = number_of(batch.text_cu_seqlens, B * Lt).view(B, Lt) - first[:, None]
        return cls(batch.text, batch.text_cu_seqlens, numbers.where(batch.text >= 0, -1), batch.status.shape[1])

    @property
    def present(self) -> Tensor:
        """bool `[B, E]`: which slots have a caption."""
        return members(self.numbers, self.slots, torch.float32).sum(-1) > 0


def pack_captions(captions: Sequence[Sequence[int]], device: torch.device | str = "cpu") -> Captions:
    """Token ids of captions, none of them empty → one packed sequence, caption i in slot i.

    Raises:
        ModelError: no caption, or an empty one.
    """
    if not captions or not all(len(ids) for ids in captions):
        raise ModelError(
            f"{len(captions)} captions, {sum(not len(ids) for ids in captions)} of them empty; give tokens"
        )
    lengths = np.array([len(ids) for ids in captions])
    text = torch.tensor(np.concatenate([np.asarray(ids, np.int32) for ids in captions]), device=device)
    offsets = torch.tensor(np.concatenate([[0], lengths.cumsum()]).astype(np.int32), device=device)
    numbers = torch.tensor(np.repeat(np.arange(len(captions)), lengths), device=device)
    return Captions(text[None], offsets, numbers[None], len(captions))


class TextTower(nn.Module):
    """Token and position embedding, an encoder over captions, pooling."""

    def __init__(self, config: TextConfig) -> None:
        """Makes a tower with fresh weights.

        Raises:
            ModelError: the vocabulary or the longest caption is not known.
        """
        super().__init__()
        for key in ("vocabulary", "max_tokens"):
            if getattr(config, key) == 0:
                raise ModelError(
                    f"text.{key} = 0 says that an index with captions will tell; without one, give a number"
                )
        self.config = config
        self.checkpointing = config.checkpointing
        self.tokens = nn.Parameter(torch.empty(config.vocabulary, config.width))
        self.places = nn.Parameter(torch.empty(config.max_tokens, config.width))
        self.dropout = nn.Dropout(config.dropout) if config.dropout else nn.Identity()
        self.blocks = blocks(config)
        self.norm = norm(config, config.width)
        self.pool = AttentionPooling(config) if config.pool == "map" else None
        nn.init.normal_(self.tokens, std=0.02)
        nn.init.normal_(self.places, std=0.01)

    def forward(self, captions: Captions) -> Tensor:
        """One vector a caption, `[B, E, D]`; those of slots without one mean nothing.

        Raises:
            ModelError: a token beyond the vocabulary or a caption longer than the position table, where the text lies on
                the host.
        """
        text_T, cu_seqlens = captions.text.flatten(), captions.cu_seqlens
        segment_T = number_of(cu_seqlens, len(text_T))
        real_T = text_T >= 0
        place_T = (torch.arange(len(text_T), device=text_T.device) - cu_seqlens.long()[segment_T]) * real_T
        self._check(text_T, place_T)
        x_TD = F.embedding(text_T.clamp_min(0), self.tokens) + F.embedding(place_T, self.places)
        x_TD = self.dropout(x_TD)

        # Padding may be longer than any caption, but not than a sequence: kernels start a block for every place up to it.
        longest = captions.text.shape[1]
        backend = choose_for(self.config.attention, x_TD, self.config.width // self.config.heads)
        where = segments(cu_seqlens, longest, len(text_T), backend, causal=self.config.causal)
        order = where.order
        if order is not None:
            x_TD, where, segment_T = x_TD[order], replace(where, order=None), segment_T[order]
        context = Context(where, segment=segment_T, segments=len(cu_seqlens) - 1)
        for block in self.blocks:
            if self.checkpointing and self.training:
                x_TD = checkpoint(block, x_TD, context, use_reentrant=False)
            else:
                x_TD = block(x_TD, context)
        x_TD = x_TD if order is None else x_TD[torch.argsort(order)]
        x_BLD = self.norm(x_TD).unflatten(0, captions.text.shape)
        if self.pool is not None:
            return self.pool(x_BLD, captions.numbers, captions.slots)  # type: ignore[no-any-return]
        numbers = captions.numbers
        is_last = F.pad(numbers[:, 1:], (0, 1), value=-1) != numbers
        member = members(numbers.where(is_last, -1), captions.slots, x_BLD.dtype)
        pooled: Tensor = member @ x_BLD.masked_fill((numbers < 0)[..., None], 0.0)
        return pooled

    def _check(self, text_T: Tensor, place_T: Tensor) -> None:
        if torch.compiler.is_compiling() or text_T.device.type != "cpu" or len(text_T) == 0:
            return
        if (most := int(text_T.max())) >= len(self.tokens):
            raise ModelError(
                f"a caption has the token {most}, the tower knows {len(self.tokens)} (text.vocabulary); "
                "index with the tokenizer that it was trained with"
            )
        if (most := int(place_T.max()) + 1) > len(self.places):
            raise ModelError(
                f"a caption has {most} tokens, the tower takes {len(self.places)} (text.max_tokens); "
                "raise it, or lower plan.max_text_tokens"
            )
