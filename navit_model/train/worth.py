"""What each image counts in the loss, where an index has weights of images (`navit-loader index --weight-column`).

In: a loader, and batches on their device. Out: the weight of each image by its row, which no batch carries: a table on the
device, 4 bytes an image of the indexes. Apart from the tasks, which weigh their losses with it, and from the trainer, which
divides by the sum.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from navit_loader import PackedLoader, RemoteLoader
from navit_loader.batch import PackedBatch
from navit_loader.errors import ConfigError

from .feed import Loader, learnt_weights


class Worth:
    """The weights of all images of a loader.

    Args:
        loader: in this process, at least one of its indexes with weights.
        device: where the batches are.

    Raises:
        ConfigError: all of them are 0.
    """

    def __init__(self, loader: PackedLoader, device: torch.device) -> None:
        rows = [index.num_rows for index in loader.engine.indexes]
        given = [index.weights for index in loader.engine.indexes]
        found = [np.ones(n, np.float32) if w is None else w for n, w in zip(rows, given, strict=True)]
        # Of those that `plan.filter` leaves.
        self._learnt = learnt_weights(loader)
        if not self._learnt.any():
            raise ConfigError("all images that the run would learn weigh 0 in the index; change weights or plan.filter")
        self._first = torch.tensor([0, *np.cumsum(rows)[:-1]], device=device)
        self._weights = torch.from_numpy(np.concatenate(found)).to(device)

    @classmethod
    def of(cls, loader: Loader, device: torch.device, task: str, able: bool) -> Worth | None:
        """The weights, or None where all images count 1.

        Args:
            loader: gives the batches.
            device: where they go.
            task: what is learnt.
            able: whether that task weighs its loss.

        Raises:
            ConfigError: there are weights, and they cannot be had or used.
        """
        weighted = _weighted(loader)
        if weighted is None:
            return None
        remedy = "index again without --weight-column"
        if not able:
            raise ConfigError(
                f"'{weighted}' has weights of images, which train.task = '{task}' does not learn by; {remedy}"
            )
        if isinstance(loader, RemoteLoader):
            raise ConfigError(
                "the daemons' index has weights of images, which batches of daemons do not carry; train in process "
                f"(data.index in place of data.endpoints), or {remedy}"
            )
        if loader.config.data.refresh:
            raise ConfigError(
                f"data.refresh = true is not allowed where '{weighted}' has weights of images, read once; {remedy}"
            )
        return cls(loader, device)

    @staticmethod
    def check_unweighted(loader: Loader) -> None:
        """Of a run without weights whose index may be replaced (`data.refresh`).

        Raises:
            ConfigError: the index in use has got some.
        """
        if (weighted := _weighted(loader)) is not None:
            raise ConfigError(
                f"'{weighted}' has got weights of images since the run began, which does not learn by them; with data.refresh "
                "= true index again without --weight-column, or begin another run without data.refresh"
            )

    def __call__(self, batch: PackedBatch) -> Tensor:
        """f32 `[B, E]`: what each image of the batch counts; any number where there is none."""
        row = self._first[batch.source_ids.long().clamp(min=0)] + batch.image_ids.clamp(min=0)
        return self._weights[row]

    def __str__(self) -> str:
        low, high, mean = self._learnt.min(), self._learnt.max(), self._learnt.mean(dtype=np.float64)
        return f"images count by their weights in the index: from {low:g} to {high:g}, {mean:.4g} in the mean; scores do not"


def _weighted(loader: Loader) -> str | None:
    """An index in use that has weights of images."""
    if isinstance(loader, RemoteLoader):
        return "the daemons' index" if loader.served.weighted else None
    return next((index.path for index in loader.engine.indexes if index.weighted), None)
