"""Two towers, one for images and one for captions, whose embeddings of a pair point the same way.

In: a batch with captions. Out: unit vectors of both, and the temperature (and bias) that the losses of
`navit_model.losses.contrastive` want. The names are open_clip's: `encode_image`, `encode_text`, `logit_scale`, `logit_bias`.

Shapes: B sequences · E images of a sequence · D joint width.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from navit_loader.batch import OK, PackedBatch

from ..config import ContrastiveConfig, NaViTConfig, TextConfig
from .navit import NaViT
from .text import Captions, TextTower

LARGEST_SCALE = 100.0
"""Of the softmax loss; more is not stable (CLIP, arXiv 2103.00020, section 2.5)."""


class TwoTowers(nn.Module):
    """A NaViT and a text tower, each with a linear map to the joint embedding.

    Attributes:
        image: the image tower, without a classifier.
        text: the text tower.
        logit_scale: logarithm of the inverse temperature s, `[1]`, since FSDP takes no scalars.
        logit_bias: b of the sigmoid loss, `[1]`; None with softmax.
    """

    def __init__(
        self,
        image: NaViTConfig,
        text: TextConfig,
        config: ContrastiveConfig,
        loss: Literal["softmax", "sigmoid"] = "softmax",
    ) -> None:
        """Makes both towers with fresh weights.

        Args:
            image: shape of the image tower; its `classes` is taken as 0.
            text: shape of the text tower, with a vocabulary.
            config: what joins them.
            loss: what they will be trained with. It sets the first temperature and bias: 0.07 (CLIP, section 2.5), or
                s = 10 and b = −10, at which the many wrong pairs cost next to nothing (SigLIP, arXiv 2303.15343, section 3.2).

        Raises:
            ModelError: the vocabulary is not known.
        """
        super().__init__()
        self.config = config
        self.image = NaViT(replace(image, classes=0))
        self.text = TextTower(text)
        self.image_projection = nn.Linear(image.width, config.width, bias=False)
        self.text_projection = nn.Linear(text.width, config.width, bias=config.text_bias)
        sigmoid = loss == "sigmoid"
        self.logit_scale = nn.Parameter(torch.tensor([math.log(10.0 if sigmoid else 1 / 0.07)]))
        self.logit_bias = nn.Parameter(torch.tensor([-10.0])) if sigmoid else None
        for projection in (self.image_projection, self.text_projection):
            nn.init.normal_(projection.weight, std=projection.in_features**-0.5)
        if config.text_bias:
            nn.init.zeros_(self.text_projection.bias)
        if config.locked:
            self.image.requires_grad_(False)

    def train(self, mode: bool = True) -> TwoTowers:
        """As any module's; a locked tower stays in evaluation mode, without dropout."""
        super().train(mode)
        if self.config.locked:
            self.image.eval()
        return self

    def forward(self, batch: PackedBatch) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """What the losses want: images and texts, unit vectors f32 `[B, E, D]`; s; b or None.

        Which rows are pairs, `pairs` says; the others mean nothing.

        Raises:
            ModelError: a batch that a tower does not take, or one without captions.
        """
        images = self.encode_image(batch, normalize=True)
        texts = self.encode_text(Captions.of(batch), normalize=True)
        return images, texts, self.scale(), None if self.logit_bias is None else self.logit_bias[0]

    def encode_image(self, batch: PackedBatch, normalize: bool = False) -> Tensor:
        """Embeddings of the images, f32 `[B, E, D]`; unit vectors with `normalize`."""
        found: Tensor = self.image_projection(self.image(batch)).float()
        return F.normalize(found, dim=-1) if normalize else found

    def encode_text(self, captions: Captions, normalize: bool = False) -> Tensor:
        """Embeddings of captions, f32 `[B, E, D]`; unit vectors with `normalize`."""
        found: Tensor = self.text_projection(self.text(captions)).float()
        return F.normalize(found, dim=-1) if normalize else found

    def scale(self) -> Tensor:
        """s, a scalar; with softmax at most `LARGEST_SCALE`."""
        if self.logit_bias is None:
            # The parameter itself is held back: behind a clamp, its gradient would be lost for good.
            with torch.no_grad():
                self.logit_scale.clamp_(max=math.log(LARGEST_SCALE))
        return self.logit_scale[0].exp()


def pairs(batch: PackedBatch) -> Tensor:
    """bool `[B, E]`: images that were read and have a caption; tensors on the device, no host value is read."""
    found: Tensor = (batch.status == OK) & Captions.of(batch).present
    return found
