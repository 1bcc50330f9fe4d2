"""What the trainer eats: an endless stream of batches on its device, and how long it had to wait for them.

In: an index or daemons. Out: batches that passed the task's check, on the device, epoch after epoch. Apart from the loop,
so that one place knows where batches come from and when the host waits. On a GPU the copy of the next batches overlaps the
step (`DevicePrefetcher`); on a CPU the arrays are shared, not copied.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict, fields, replace
from typing import Any

import numpy as np
import torch

from navit_loader import PackedLoader, RemoteLoader
from navit_loader.batch import PackedBatch, View
from navit_loader.config import PlanConfig, Teacher
from navit_loader.deliver.boundary import Agree
from navit_loader.errors import ConfigError, NavitError
from navit_loader.index import Index
from navit_loader.plan import identity
from navit_loader.plan.selection import rows_where

from ..world import World
from .settings import RunConfig

Loader = PackedLoader | RemoteLoader
Check = Callable[[PackedBatch], None]


def open_loader(run: RunConfig, world: World) -> Loader:
    """The training loader: in process, or from `data.endpoints`.

    Raises:
        ConfigError: neither an index nor endpoints are given, or `train.decode` cannot be.
    """
    data, render = run.loader.data, run.loader.render
    agree = world.comparer()
    loader: Loader
    if data.endpoints:
        loader = RemoteLoader(
            data.endpoints,
            rank=world.rank,
            world_size=world.size,
            batch_size=data.batch_size,
            remainder=data.remainder,
            prefetch=render.prefetch,
            **{**asdict(data.remote), "keys": data.remote.keys or None},
            decode=run.train.decode,
            device=str(world.device),
            ledger=render.ledger,
            refresh=data.refresh,
            agree=agree,
        )
    else:
        loader = _in_process(run, world, agree)
    said = agree(f"plan {loader.plan_id}, renderer {loader.render_id}")
    # With `data.refresh` the loader compares by itself, and waits for a rank that is late to see a new index.
    if not data.refresh and len(set(said)) > 1:
        loader.close()
        views = "; ".join(f"rank {rank} has {view}" for rank, view in enumerate(said))
        raise ConfigError(f"the ranks read different indexes or configurations: {views}; give every host the same")
    return loader


def _in_process(run: RunConfig, world: World, agree: Agree) -> PackedLoader:
    data = run.loader.data
    if not data.index and not data.mixture:
        raise ConfigError(
            "data.index = '' is not allowed; give an index file, [[data.mixture]], or data.endpoints of running daemons"
        )
    return PackedLoader(
        data.index or None,
        run.loader,
        rank=world.rank,
        world_size=world.size,
        decode=run.train.decode,
        device=str(world.device),
        agree=agree,
    )


def learnt_labels(loader: PackedLoader) -> np.ndarray[Any, Any]:
    """i64 `[images, K]`: labels of the rows that `plan.filter` leaves, −1 where there are fewer; K is the widest index's."""
    indexes = loader.engine.indexes
    width = max(index.label_width for index in indexes)
    found = []
    for index in indexes:
        labels = index.labels()[_learnt(loader, index)]
        found.append(np.pad(labels, ((0, 0), (0, width - labels.shape[1])), constant_values=-1))
    return np.concatenate(found)


def learnt_weights(loader: PackedLoader) -> np.ndarray[Any, Any]:
    """f32 `[images]`: what each row that `plan.filter` leaves counts in the loss; 1 where its index has no weights."""
    found = []
    for index in loader.engine.indexes:
        weights = index.weights
        found.append((np.ones(index.num_rows, np.float32) if weights is None else weights)[_learnt(loader, index)])
    return np.concatenate(found)


def _learnt(loader: PackedLoader, index: Index) -> Any:
    """The rows of an index that `plan.filter` leaves."""
    return rows_where(loader.config.plan.filter, index) if loader.config.plan.filter else slice(None)


def with_plan_of(run: RunConfig, loader: Loader) -> RunConfig:
    """The run with the plan that its batches are of: that of the daemons, where they make them.

    Without a `[plan]` of its own, what the daemons say of theirs is recorded: the keys that fix shapes.

    Raises:
        ConfigError: the run has a `[plan]`, and it is not theirs; names the keys that differ. Or it has none, and theirs warps
            images.
    """
    if not run.loader.data.endpoints:
        return run
    assert not isinstance(loader, PackedLoader)
    own, served = run.loader.plan, loader.served
    theirs: dict[str, Any] = {
        **{key: getattr(served.view, key) for key in ("sequence_length", "max_tokens", "prefix_tokens")},
        **{key: getattr(served, key) for key in ("max_images", "text_tokens")},
        "patch_sizes": tuple(served.patch_sizes),
        "max_text_tokens": served.max_text_tokens,
        "teacher": served.teacher and Teacher(**asdict(served.teacher)),
    }
    if own == PlanConfig():
        if served.warps:
            raise ConfigError(
                "the daemons of data.endpoints warp images ([plan.warp]), and do not tell how; give this run their [plan] "
                "too, so that [train.augment] is held against it"
            )
        return replace(run, loader=replace(run.loader, plan=replace(own, **theirs)))
    # A plan's order may depend on whether its images are remote, which the daemon alone knows.
    said = [replace(own, order=own.order.settled(remote=remote)).to_json() for remote in (False, True)]
    if served.plan_id.split(".")[2:3] in [[identity.digest(json.loads(text))] for text in said]:
        return run
    ours = {**{key: getattr(own, key) for key in theirs}, "max_text_tokens": own.caption_cap}
    differ = [f"plan.{k} = {ours[k]!r} where they have {v!r}" for k, v in theirs.items() if ours[k] != v]
    unsaid = [
        f.name for f in fields(own) if f.name not in theirs and getattr(own, f.name) != getattr(PlanConfig(), f.name)
    ]
    raise ConfigError(
        "the daemons of data.endpoints serve another [plan] than this run's: "
        + (
            "; ".join(differ)
            or f"in a key that they do not tell (here are set: {', '.join(unsaid) or 'none of those'})"
        )
        + "; give them and the run the same [plan], or leave it out here to take theirs"
    )


class Feed:
    """The batches of one rank.

    Args:
        loader: where they come from.
        device: where they go.
        check: called with each batch in numpy; raises what is wrong with it. Of a batch that was decoded on a GPU the pixels
            stay there, unseen.

    Attributes:
        waited: seconds that `take` waited since `waited` was last set to 0.
    """

    def __init__(self, loader: Loader, device: torch.device, check: Check) -> None:
        self.waited = 0.0
        self._device = device
        self._checked = _Checked(loader, check)
        self._loader: Any = self._checked
        if device.type == "cuda":
            from navit_loader.deliver.device import DevicePrefetcher

            self._loader = DevicePrefetcher(self._checked, device)
        self._batches = self._endless()

    def take(self, count: int) -> list[PackedBatch]:
        """The next batches, with tensors on the device.

        Raises:
            NavitError: the loader or the check fail, or the plan has no batch at all.
        """
        start = time.perf_counter()
        group = [next(self._batches) for _ in range(count)]
        self.waited += time.perf_counter() - start
        return group

    @property
    def last(self) -> PackedBatch | None:
        """The batch that last passed the check, in numpy; for pictures."""
        return None if self._checked.last is None else _in_numpy(self._checked.last)

    def state_dict(self) -> dict[str, Any]:
        """The loader's state behind the last batch that was taken."""
        state: dict[str, Any] = self._loader.state_dict()
        return state

    def close(self) -> None:
        """Ends the stream; the loader stays open."""
        self._batches.close()

    def _endless(self) -> Generator[PackedBatch, None, None]:
        # One epoch may have nothing left: a run can be resumed behind an epoch's last batch.
        barren = 0
        while True:
            barren += 1
            for batch in self._loader:
                barren = 0
                yield batch.to(self._device)
            if barren == 2:
                raise NavitError("the plan has no batch; lower data.batch_size, or set data.remainder = 'fill'")


class _Checked:
    """A loader whose batches pass a check on the host."""

    def __init__(self, loader: Loader, check: Check) -> None:
        self._loader, self._check = loader, check
        self.last: PackedBatch | None = None

    def __iter__(self) -> Iterator[PackedBatch]:
        for batch in self._loader:
            self._check(_in_numpy(batch, pixels=False))
            self.last = batch
            yield batch

    def __len__(self) -> int:
        return len(self._loader)

    def state_dict(self) -> dict[str, Any]:
        return self._loader.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._loader.load_state_dict(state)

    def set_epoch(self, epoch: int) -> None:
        self._loader.set_epoch(epoch)


def _in_numpy(batch: PackedBatch, pixels: bool = True) -> PackedBatch:
    """The batch with its tensors on the host, in numpy, those of pixels only where they are wanted."""

    def found(part: PackedBatch | View) -> dict[str, Any]:
        values = {f.name: getattr(part, f.name) for f in fields(part) if pixels or f.name != "patches"}
        return {name: v.cpu().numpy() for name, v in values.items() if isinstance(v, torch.Tensor)}

    teacher = batch.teacher and replace(batch.teacher, **found(batch.teacher))
    return replace(batch, **found(batch), teacher=teacher)
