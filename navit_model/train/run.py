"""Starting a run: its folder, its ranks, its loader, and the checkpoint to go on from.

In: a `RunConfig`. Out: a run's folder with log, checkpoints, report, and scores on held-out data. Apart from the loop
(`trainer.py`), which is the same whether a command, a test or a notebook started it.
"""

from __future__ import annotations

import errno
import os
from contextlib import nullcontext
from pathlib import Path

import torch

from navit_loader.errors import ConfigError, ModelError, said

from ..model.navit import NaViT
from ..world import World
from . import checkpoint
from .feed import open_loader
from .lock import hold
from .passes import with_passes
from .settings import RunConfig
from .stop import end_with_parent
from .task import Row
from .trainer import Trainer


def train(
    run: RunConfig,
    *,
    resume: bool = False,
    begin: NaViT | None = None,
    again: str = "go on with --resume",
    page: bool = True,
) -> list[Row]:
    """Trains until `train.steps`, then evaluates on held-out data where some is named.

    Args:
        run: the configuration.
        resume: go on from the newest checkpoint of `train.out`, if there is one.
        begin: a model whose weights the image model starts from; see `navit_model.use.finetune`.
        again: how a run that is stopped goes on, for its last words.
        page: write the report in the end; who adds scores to it writes it then.

    Returns:
        The last scores; empty without held-out data.

    Raises:
        NavitError: configuration, index, daemon or checkpoint do not allow the run; the loss is no longer finite; or
            another rank is gone.
        KeyboardInterrupt: stopped by a signal; a checkpoint was saved.
    """
    if not isinstance(run, RunConfig):
        raise ConfigError(
            f"run is a {type(run).__name__}, not a RunConfig; make one with RunConfig.from_toml(PATH) or from_dict(TABLE)"
        )
    out = Path(run.train.out)
    # One process of a run holds its folder: the first.
    first = int(os.environ.get("RANK", "0")) == 0
    with hold(out) if first else nullcontext():
        if not resume and (steps := checkpoint.steps(out) or checkpoint.bests(out)):
            raise ConfigError(
                f"train.out = '{out}' already holds step {int(steps[-1].name[5:])} of a run; pass --resume to go on, "
                "or choose another folder with train.out=PATH"
            )
        found = checkpoint.find(out) if resume else None
        if run.train.threads:
            torch.set_num_threads(run.train.threads)
        end_with_parent()
        world = World.join(run.train.device)
        try:
            run = with_passes(run, world, found.config if found else None)
            with open_loader(run, world) as loader:
                trainer = Trainer(run, loader, world, found, begin)
                trainer.resume, trainer.again, trainer.page = resume, again, page
                return trainer.run()
        except OSError as e:
            if e.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
                raise
            raise ModelError(f"'{out}' cannot be written: {e.strerror}; make room and {again}") from None
        except RuntimeError as e:
            if not world.lost(e):
                raise
            reason = said(e)[0][:200]
            raise ModelError(
                f"rank {world.rank} lost another rank ({reason}); its own message says why; {again}"
            ) from None
        finally:
            world.leave()
