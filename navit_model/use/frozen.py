"""Features of the images of an index, from a model that stays as it is.

In: a model and an index. Out: vectors, batch by batch, in the order of the index, each image once. Apart from `probe` and
`vectors`, which ask for them.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from navit_loader import PackedLoader
from navit_loader.batch import FAILED, OK
from navit_loader.config import LoaderConfig
from navit_loader.progress import watched

from .opened import OpenedModel


@dataclass(frozen=True, slots=True)
class Features:
    """The images of one batch.

    Attributes:
        rows: i64 `[n]`, rows of the index.
        vectors: f32 `[n, D]`; NaN for images that could not be read.
        labels: i64 `[n]`; −1 where unlabelled.
        state: of the loader behind this batch.
    """

    rows: npt.NDArray[np.int64]
    vectors: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    state: dict[str, Any]


def planned(
    opened: OpenedModel, tokens: int | None = None, patch_size: int | None = None, rows: str = ""
) -> LoaderConfig:
    """How the images are seen: nothing random, at the most patches that fit `tokens`; `rows` filters the index."""
    config = opened.run.loader.for_evaluation(max_tokens=tokens, patch_size=patch_size)
    return replace(config, plan=replace(config.plan, filter=rows, text_tokens=0, max_text_tokens=0))


Counts = npt.NDArray[np.uint32]
"""Sequences of each block of an epoch's plan."""


def starts(index: str, config: LoaderConfig, batches: int) -> tuple[list[dict[str, Any]], Counts]:
    """States of a loader at the first of every so many batches, from the first of all on; and the counts of the plan.

    Args:
        index: path of an index.
        config: from `planned`.
        batches: from one state to the next.

    Raises:
        IndexFileError: the index cannot be used.
    """
    with PackedLoader(index, config, rank=0, world_size=1) as loader:
        layout = loader.engine.layout(0)
        counts = layout.counts(0, layout.num_blocks)
        found, at, total = [], 0, int(counts.sum())
        while at < total:
            found.append({**loader.state_dict(), "next_sequence": at})
            for _ in range(batches):
                behind = layout.next(at, loader.batch_size)
                assert behind is not None, "a local layout always knows"
                at = behind
        return found, counts


def features(
    opened: OpenedModel,
    index: str,
    config: LoaderConfig,
    state: dict[str, Any] | None = None,
    counts: Counts | None = None,
) -> Generator[Features, None, None]:
    """Vectors of an index's images.

    Args:
        opened: the model.
        index: path of an index.
        config: from `planned`.
        state: of an earlier `Features`, to go on behind it; or of `starts`.
        counts: of `starts`, so that nothing before the state is planned.

    Raises:
        IndexFileError: the index cannot be used.
        StateError: the state is of another index or configuration.
    """
    with PackedLoader(index, config, rank=0, world_size=1) as loader:
        if counts is not None:
            loader.engine.layout(0).extend(counts)
        if state is not None:
            loader.load_state_dict(state)
            if state["epoch"] > 0:
                return
        # Of rows that are picked out nobody knows how many there are; they are few.
        whole = not config.plan.filter
        for batch in watched(loader, loader.engine.indexes[0].num_rows) if whole else loader:
            there = (batch.status == OK) | (batch.status == FAILED)
            vectors = opened.embed(batch).cpu().numpy()
            vectors[batch.status != OK] = np.nan
            labels = batch.labels[..., 0] if batch.labels.shape[-1] else np.full(there.shape, -1, np.int64)
            yield Features(batch.image_ids[there], vectors[there], labels[there], loader.state_dict())
