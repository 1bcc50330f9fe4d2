"""How well images find their captions and captions their images: recall at 1, 5 and 10.

In: two towers and an index with captions. Out: a `RetrievalScore` per token budget. Each pair is seen once over all ranks.
Rows with the same caption are one text, and each of their images is right for it. An image that could not be read is found
by nothing.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from navit_loader import PackedLoader
from navit_loader.batch import OK
from navit_loader.config import LoaderConfig
from navit_loader.errors import ModelError
from navit_loader.progress import watched

from ..model.text import Captions
from ..model.towers import TwoTowers
from ..world import World
from .classification import aligned, left_out, of_all, trained_tokens

IntArray = npt.NDArray[np.int64]

AT = (1, 5, 10)
"""K of the recalls."""

QUERIES = 1024
"""Queries that are compared with everything at once."""


@dataclass(frozen=True, slots=True)
class RetrievalScore:
    """The result at one token budget.

    Attributes:
        tokens: tokens of one image at most.
        patch_size: P.
        rows: images of the index.
        images: those with a caption, failed ones among them.
        texts: different captions.
        failed: images that could not be read.
        image_to_text: share of the images that have their caption among the K nearest texts, by K.
        text_to_image: share of the captions that have one of their images among the K nearest images, by K.
        images_per_s: pairs through loader and model.
        outside: whether the budget lies outside the sizes seen in training.
    """

    tokens: int
    patch_size: int
    rows: int
    images: int
    texts: int
    failed: int
    image_to_text: dict[int, float]
    text_to_image: dict[int, float]
    images_per_s: float
    outside: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        ways = ("image_to_text", "text_to_image")
        return asdict(self) | {way: {str(k): share for k, share in getattr(self, way).items()} for way in ways}

    def __str__(self) -> str:
        """Recall at 1 both ways and budget, in a line of a run's output."""
        return (
            f"R@1 {self.image_to_text[1]:.2%} image to text, {self.text_to_image[1]:.2%} text to image, "
            f"{self.images} images and {self.texts} captions at {self.tokens} tokens"
            f"{left_out(self.images, self.failed, self.rows, 'caption')}"
        )


def held_out_pairs(
    towers: TwoTowers,
    index: str,
    config: LoaderConfig,
    *,
    tokens: int | None = None,
    patch_size: int | None = None,
    world: World | None = None,
) -> PackedLoader:
    """The pairs that `evaluate_retrieval` scores, opened; see there for arguments and errors. `plan.filter` is not applied."""
    plan = config.for_evaluation(max_tokens=tokens, patch_size=patch_size)
    loader = PackedLoader(index, plan, rank=world.rank if world else 0, world_size=world.size if world else 1)
    found, trained = loader.engine.indexes[0].tokens.hash, towers.text.config.tokenizer
    if trained and found != trained:
        loader.close()
        raise ModelError(
            f"the captions of '{index}' have the tokenizer '{found}', the model was trained with '{trained}'; "
            "index with the same --tokenizer"
        )
    return loader


@torch.inference_mode()
def evaluate_retrieval(
    towers: TwoTowers,
    index: str,
    config: LoaderConfig,
    *,
    tokens: int | None = None,
    patch_size: int | None = None,
    world: World | None = None,
) -> RetrievalScore:
    """Scores two towers on an index with captions.

    Args:
        towers: on the world's device, in evaluation mode.
        index: path of the index.
        config: the training run's configuration.
        tokens: budget of one image; None takes the training cap and never scales up.
        patch_size: P; None takes the first of `plan.patch_sizes`.
        world: the ranks that share the work.

    Raises:
        IndexFileError: the index cannot be used.
        ConfigError: it has no captions, or `plan.text_tokens` is 0.
        ModelError: it has another tokenizer, or no image of it with a caption could be read.
    """
    world = world or World(0, 1, next(towers.parameters()).device)
    low, high = trained_tokens(config)
    with held_out_pairs(towers, index, config, tokens=tokens, patch_size=patch_size, world=world) as loader:
        plan, opened = loader.config, loader.engine.indexes[0]
        start = time.perf_counter()
        # Each rank fills in its own rows; the sum over the ranks has them all.
        both = torch.zeros(2, opened.num_rows, towers.config.width, device=world.device)
        seen = torch.zeros(2, opened.num_rows, device=world.device)
        for batch in watched(loader, opened.num_rows // world.size):
            batch = batch.to(world.device)
            images, texts, _, _ = towers(batch)
            captioned = Captions.of(batch).present
            row, good = batch.image_ids[captioned], (batch.status == OK)[captioned]
            both[0, row], both[1, row] = images[captioned].where(good[:, None], 0.0), texts[captioned]
            seen[0, row], seen[1, row] = 1.0, good.float()
        world.sum(both)
        world.sum(seen)
        seconds = time.perf_counter() - start
        caption = opened.table()["caption"].combine_chunks().dictionary_encode().indices
    planned, read = seen.cpu().numpy() > 0
    if not read.any():
        raise ModelError(f"no image of '{index}' with a caption could be read; see the index's quarantine")
    rows = np.flatnonzero(planned)
    # Texts by number, and for each the first row that has it.
    _, first, text_of = np.unique(caption.fill_null(-1).to_numpy()[rows], return_index=True, return_inverse=True)
    alive = torch.from_numpy(read[rows]).to(world.device)
    x, y = both[0, rows], both[1, rows[first]]
    image_of, there = np.arange(len(rows)), torch.ones(len(y), dtype=torch.bool, device=world.device)
    return RetrievalScore(
        tokens=tokens if tokens is not None else config.plan.max_tokens - config.plan.prefix_tokens,
        patch_size=plan.plan.patch_sizes[0],
        rows=len(planned),
        images=len(x),
        texts=len(y),
        failed=int((~alive).sum()),
        image_to_text=recalls(x, y, image_of, text_of, alive, there),
        text_to_image=recalls(y, x, text_of, image_of, there, alive),
        images_per_s=float(planned.sum()) / seconds,
        outside=tokens is not None and not low <= tokens <= high,
    )


def recalls(
    queries: Tensor,
    targets: Tensor,
    query_of: IntArray,
    target_of: IntArray,
    query_there: Tensor,
    target_there: Tensor,
) -> dict[int, float]:
    """Share of the queries with one of their own among the K targets of the largest inner product, for each K of `AT`.

    What is level with a query's own best counts as nearer, so that a model that says the same of everything finds nothing.

    Args:
        queries: `[Q, D]`.
        targets: `[N, D]`.
        query_of: i64 `[pairs]`, the query of each pair.
        target_of: i64 `[pairs]`, its target.
        query_there: bool `[Q]`; a query that is not there finds nothing, but is counted.
        target_there: bool `[N]`; a target that is not there is found by nothing.
    """
    found = dict.fromkeys(AT, 0)
    for low in range(0, len(queries), QUERIES):
        some = queries[low : low + QUERIES]
        here = (query_of >= low) & (query_of < low + len(some))
        own = torch.zeros(len(some), len(targets), dtype=torch.bool, device=queries.device)
        own[torch.from_numpy(query_of[here] - low), torch.from_numpy(target_of[here])] = True
        score = (some @ targets.T).masked_fill(~target_there, -torch.inf)
        best = score.masked_fill(~own, -torch.inf).amax(1, keepdim=True)
        nearer = ((score >= best) & ~own).sum(1)
        counts = query_there[low : low + QUERIES] & (best[:, 0] > -torch.inf)
        for k in AT:
            found[k] += int((counts & (nearer < k)).sum())
    return {k: n / len(queries) for k, n in found.items()}


def retrieval_table(scores: Sequence[RetrievalScore]) -> str:
    """The scores as lines of text; budgets outside the trained sizes carry a star."""
    ways = ("image→text", "text→image")
    several = len({s.patch_size for s in scores}) > 1
    head = (
        "tokens",
        *(("patch",) if several else ()),
        *(f"{way} R@{k}" for way in ways for k in AT),
        "images",
        "texts",
        "failed",
        "pairs/s",
    )
    rows = [
        (
            f"{s.tokens}{'*' if s.outside else ''}",
            *((f"{s.patch_size}",) if several else ()),
            *(f"{share[k]:.2%}" for share in (s.image_to_text, s.text_to_image) for k in AT),
            of_all(s.images, s.failed, s.rows),
            f"{s.texts:,}",
            f"{s.failed:,}",
            f"{s.images_per_s:,.0f}",
        )
        for s in scores
    ]
    return aligned(head, rows, any(s.outside for s in scores))
