"""Classes that a model was never shown, told by their names.

In: two towers, names of classes, templates such as `a photo of a {}`. Out: a module that maps a batch to logits, one per
name, like any classifier: it can be scored by `evaluate` and asked for predictions (CLIP, arXiv 2103.00020, section 3.1).
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from navit_loader.batch import PackedBatch
from navit_loader.errors import ModelError
from navit_loader.index.tokens import BYTES, load_tokenizer

from ..config import TextConfig
from ..model.text import pack_captions
from ..model.towers import TwoTowers

TEXTS = 1024
"""Texts that are embedded at once."""


class ZeroShot(nn.Module):
    """A classifier whose weights are embedded texts.

    Attributes:
        weight: f32 `[classes, D]`, unit vectors: for each class the mean over its templates.
    """

    def __init__(
        self,
        towers: TwoTowers,
        names: Sequence[str],
        templates: Sequence[str] = ("{}",),
        tokenizer: str | os.PathLike[str] | None = None,
    ) -> None:
        """Embeds the names.

        Args:
            towers: in evaluation mode.
            names: of the classes, in the order of the logits.
            templates: texts with `{}` where the name goes.
            tokenizer: the `tokenizer.json` that the index of the training was written with; None for bytes.

        Raises:
            ModelError: no name, a template without `{}`, or another tokenizer than that of the training.
            IndexFileError: the tokenizer cannot be read.
        """
        super().__init__()
        if not names or not templates or not all("{}" in template for template in templates):
            raise ModelError(
                f"zero-shot needs names, and templates that hold '{{}}'; it got {len(names)}, {list(templates)}"
            )
        self.towers = towers
        config = towers.text.config
        loaded = load_tokenizer(tokenizer)
        if config.tokenizer not in ("", loaded.facts.hash) or loaded.facts.vocabulary > config.vocabulary:
            raise ModelError(
                f"the model was trained with the tokenizer '{config.tokenizer}' of {config.vocabulary} tokens, not with "
                f"'{loaded.facts.hash}' of {loaded.facts.vocabulary}; give its tokenizer.json with --tokenizer"
            )
        texts = [template.replace("{}", name) for name in names for template in templates]
        ids = _ids(loaded.columns(texts), texts, loaded.facts.end, loaded.facts.hash == BYTES)
        ids = [_filled(_cut(each, config.max_tokens, loaded.facts.end), config) for each in ids]
        device = towers.logit_scale.device
        with torch.no_grad():
            parts = [
                towers.encode_text(pack_captions(ids[at : at + TEXTS], device), normalize=True)[0]
                for at in range(0, len(ids), TEXTS)
            ]
            mean = torch.cat(parts).view(len(names), len(templates), -1).mean(1)
        self.weight: Tensor
        self.register_buffer("weight", F.normalize(mean, dim=-1))

    def forward(self, batch: PackedBatch) -> Tensor:
        """Logits of each image slot, f32 `[B, E, classes]`."""
        return self.towers.scale() * self.towers.encode_image(batch, normalize=True) @ self.weight.T


def _ids(columns: dict[str, object], texts: Sequence[str], end: int, as_bytes: bool) -> list[list[int]]:
    """Token ids of each text, as an index holds them."""
    if as_bytes:
        return [[*text.encode(), end] for text in texts]
    found: list[list[int]] = columns["caption_ids"].to_pylist()  # type: ignore[attr-defined]
    return found


def _filled(ids: list[int], config: TextConfig) -> list[int]:
    """As long as the tower wants it."""
    return ids if config.pad < 0 else [*ids, *[config.pad] * (config.max_tokens - len(ids))]


def _cut(ids: list[int], most: int, end: int) -> list[int]:
    """The first `most` tokens; a cut text keeps its end mark, as the captions of a batch do."""
    if len(ids) <= most:
        return ids
    return [*ids[: most - 1], end] if end >= 0 else ids[:most]
