"""Contrastive: images and captions of a pair come together, all others part.

In: batches with captions. Out: the softmax or sigmoid loss over the pairs of all ranks, and recall on the held-out index at
each token budget.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor, nn

from navit_loader import PackedLoader
from navit_loader.batch import PackedBatch
from navit_loader.errors import ConfigError, ModelError

from ...evaluate.retrieval import evaluate_retrieval, held_out_pairs, retrieval_table
from ...losses.contrastive import sigmoid_contrastive, softmax_contrastive
from ...model.navit import NaViT
from ...model.text import Captions
from ...model.towers import TwoTowers, pairs
from ..begin import take_over
from ..feed import Loader
from ..flops import batch_flops, text_flops
from ..settings import RunConfig
from ..task import OpenImageModel, Row, Task


class Contrastive(Task):
    """See the file's first lines; the module is `TwoTowers`."""

    @classmethod
    def prepare(cls, run: RunConfig, loader: Loader) -> RunConfig:
        """The run with the vocabulary, the longest caption and the tokenizer of the loader."""
        if loader.max_text_tokens == 0:
            raise ConfigError("plan.text_tokens = 0: set it to the caption tokens that a sequence may hold")
        text = run.text
        needed = {"vocabulary": loader.vocabulary, "max_tokens": loader.max_text_tokens}
        for key, least in needed.items():
            if 0 < getattr(text, key) < least:
                raise ConfigError(
                    f"text.{key} = {getattr(text, key)} is not allowed; the data need {least}: leave the key out"
                )
        if isinstance(loader, PackedLoader):
            tokenizer = loader.engine.indexes[0].tokens.hash
            if text.tokenizer not in ("", tokenizer):
                raise ConfigError(
                    f"text.tokenizer = '{text.tokenizer}' is not allowed; the index has '{tokenizer}': leave the key out"
                )
            text = replace(text, tokenizer=tokenizer)
        text = replace(
            text,
            vocabulary=text.vocabulary or loader.vocabulary,
            max_tokens=text.max_tokens or loader.max_text_tokens,
        )
        return replace(run, text=text, model=replace(run.model, classes=0))

    @classmethod
    def build(cls, run: RunConfig) -> TwoTowers:
        """Two towers."""
        return TwoTowers(run.model, run.text, run.contrastive, run.train.loss)

    @classmethod
    def begin(cls, run: RunConfig, module: nn.Module, open_image_model: OpenImageModel) -> None:
        """Starts the image tower from `contrastive.image_from`."""
        if path := run.contrastive.image_from:
            take_over(cls.image_model(module), open_image_model(path)[0], path)

    @classmethod
    def image_model(cls, module: nn.Module) -> NaViT:
        """The image tower; its outputs are features, not yet those of the joint embedding."""
        assert isinstance(module, TwoTowers)
        return module.image

    @classmethod
    def embed(cls, module: nn.Module, batch: PackedBatch) -> Tensor:
        """Unit vectors of the joint embedding."""
        assert isinstance(module, TwoTowers)
        return module.encode_image(batch, normalize=True)

    def check(self, batch: PackedBatch) -> None:
        """Tokens must be of the vocabulary."""
        most = int(batch.text.max(initial=-1))
        if most >= self.run.text.vocabulary:
            b = int(np.argwhere(batch.text == most)[0][0])
            raise ModelError(
                f"sequence {batch.sequence + b} of epoch {batch.epoch} has the caption token {most}, but the vocabulary has "
                f"{self.run.text.vocabulary}; write the index again with its tokenizer"
            )

    def notes(self, loader: Loader) -> list[str]:
        """How many captions are cut, where any are."""
        if not isinstance(loader, PackedLoader):
            return []
        most = loader.max_text_tokens
        cut = sum(index.captions_beyond(most) for index in loader.engine.indexes)
        return [f"{cut:,} captions have more than {most} tokens, and are cut (plan.max_text_tokens)"] if cut else []

    def count(self, batch: PackedBatch) -> Tensor:
        """Images that were read and have a caption."""
        return pairs(batch).sum()

    def loss(self, outputs: tuple[Tensor, Tensor, Tensor, Tensor | None], batch: PackedBatch) -> Tensor:
        """The loss of this rank's pairs among those of all ranks."""
        images, texts, scale, bias = outputs
        if bias is None:
            total, _ = softmax_contrastive(images, texts, pairs(batch), scale)
        else:
            total, _ = sigmoid_contrastive(images, texts, pairs(batch), scale, bias)
        return total

    def flops(self, module: nn.Module, batch: PackedBatch) -> Tensor:
        """Both towers, their projections, and this rank's images against the texts of all ranks.

        A locked image tower has its forward pass alone; of the ranks this one is taken for the mean.
        """
        assert isinstance(module, TwoTowers)
        width, passes = module.config.width, 1 if module.config.locked else 3
        count = pairs(batch).sum().double()
        joined = 2 * width * (module.image.config.width + module.text.config.width) * count
        compared = 2 * width * self.world.size * count.square()
        text = text_flops(module.text.config, Captions.of(batch))
        return passes * batch_flops(module.image.config, batch) + 3 * (text + joined + compared)

    def _asked(self) -> list[dict[str, Any]]:
        """Arguments of each score of `data.eval_index`, one for each of `train.eval_tokens`."""
        run, index = self.run, self.run.loader.data.eval_index
        common = {"index": index, "config": run.loader, "world": self.world}
        return [{**common, "tokens": tokens} for tokens in run.train.eval_tokens or (None,)] if index else []

    def check_held_out(self, module: nn.Module) -> None:
        """Its captions, their tokenizer, and the budgets."""
        assert isinstance(module, TwoTowers)
        for asked in self._asked():
            held_out_pairs(module, **asked).close()

    def evaluate(self, module: nn.Module) -> list[Row]:
        """A `RetrievalScore` for each of `train.eval_tokens` on `data.eval_index`."""
        assert isinstance(module, TwoTowers)
        return [evaluate_retrieval(module, **asked) for asked in self._asked()]

    def score(self, row: Any) -> float:
        """The mean of both recalls at 1."""
        return float(row.image_to_text[1] + row.text_to_image[1]) / 2

    def table(self, rows: Sequence[Any]) -> str:
        """See `retrieval_table`."""
        return retrieval_table(rows)
