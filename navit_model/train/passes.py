"""How many passes over its images an epoch of a run has.

In: a run's configuration, and that of the checkpoint that it goes on from. Out: the configuration with `plan.passes` settled.
Apart from `feed`, which opens what the configuration says.
"""

from __future__ import annotations

from dataclasses import replace

from navit_loader.plan.config import passes_for
from navit_loader.render.engine import Engine

from ..world import World
from .settings import RunConfig

MANY = 20
"""Passes over a small set from which on they are planned together."""


def with_passes(run: RunConfig, world: World, saved: RunConfig | None) -> RunConfig:
    """The run with epochs of several passes, where so many of a small set are ahead that the ends of epochs would pad much.

    What a run goes on from says how many they are. Where `passes` or `virtual_epoch` is set, or something happens once an
    epoch (a new index, draws of `train.augment`), epochs stay as they are.

    Args:
        run: the configuration.
        world: the ranks, which share an epoch.
        saved: the configuration of the checkpoint that the run goes on from.
    """
    data, plan = run.loader.data, run.loader.plan
    given = plan.passes > 1 or plan.virtual_epoch or not (data.index or data.mixture)
    if given or data.endpoints or data.refresh or data.remainder == "drop" or run.train.augment.on:
        return run
    passes = 1 if saved is None else saved.loader.plan.passes
    if saved is None:
        with Engine(run.loader, data.index or None) as engine:
            layout = engine.layout(0)
            if layout.num_blocks > 1:
                return run
            layout.counts(0, 1)
            batch = data.batch_size * world.size
            ahead = run.train.steps * run.train.accumulate * batch / (layout.num_sequences or 1)
            if ahead >= MANY:
                passes = min(passes_for(layout.num_sequences or 1, batch), int(ahead))
    return replace(run, loader=replace(run.loader, plan=replace(plan, passes=passes)))
