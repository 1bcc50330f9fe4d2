"""One rank of a training run that notes which images it was given; run by itself, or as a script under torchrun.

In: a job: the configuration as a table, perhaps the step after which to stop. Out: the run's own files, and
`OUT/seen-STEP-RANK.json` with (epoch, image) of every image that the trainer took from step STEP on.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from navit_loader.batch import OK, PackedBatch
from navit_model.train import checkpoint
from navit_model.train.feed import open_loader
from navit_model.train.passes import with_passes
from navit_model.train.settings import RunConfig
from navit_model.train.trainer import Trainer
from navit_model.world import World


class Noting:
    """A loader that notes the images of each batch that it hands out."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader
        self.seen: list[tuple[int, int]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def __iter__(self) -> Iterator[PackedBatch]:
        for batch in self._loader:
            self.seen += [(batch.epoch, int(i)) for i in batch.image_ids[batch.status == OK]]
            yield batch


def stopped(run: RunConfig, step: int) -> None:
    """Trains alone until an interrupt behind this step ends it."""
    world = World.join("cpu")
    with open_loader(run, world) as loader:
        trainer = Trainer(run, loader, world, None)
        trainer.stop_after = step
        with pytest.raises(KeyboardInterrupt):
            trainer.run()


def work(table: dict[str, Any], stop_after: int | None = None, world: World | None = None) -> None:
    """Trains as `navit_model.train.run.train` does, from the newest checkpoint where there is one.

    Args:
        table: the configuration.
        stop_after: the step after which to stop.
        world: the ranks; None for a run alone. Jobs of one process share it, since torchrun's store remembers the sockets of
            a group that was left, and a second one would read the old addresses.
    """
    run = RunConfig.from_dict(table)
    out = Path(run.train.out)
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    start = checkpoint.find(out)
    world = world or World(0, 1, torch.device("cpu"))
    run = with_passes(run, world, start.config if start else None)
    with open_loader(run, world) as inner:
        loader = Noting(inner)
        trainer = Trainer(run, loader, world, start)  # type: ignore[arg-type]
        trainer.stop_after = stop_after
        try:
            trainer.run()
        except KeyboardInterrupt:
            assert trainer.step == stop_after
        step = start.step if start else 0
        (out / f"seen-{step}-{world.rank}.json").write_text(json.dumps(loader.seen))
    # The next job's ranks look for a checkpoint where this one's first rank may still be at work.
    world.meet()


def seen(out: Path) -> list[tuple[int, int]]:
    """Every (epoch, image) that any rank of any attempt was given."""
    return [tuple(pair) for path in out.glob("seen-*.json") for pair in json.loads(path.read_text())]


if __name__ == "__main__":
    ranks = World.join("cpu")
    try:
        for job in json.loads(Path(sys.argv[1]).read_text()):
            work(**job, world=ranks)
    finally:
        ranks.leave()
