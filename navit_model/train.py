"""The training loop.

In: a `RunConfig`. Out: a run's folder with log, checkpoints, and scores on the held-out index. The loss is normalised by the
number of images of the whole step, over ranks and accumulation, since packed batches hold different counts of them.
A resumed run gives the same losses, bit for bit on a CPU: all that changes from step to step is in the checkpoint.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from navit_loader import PackedLoader, RemoteLoader
from navit_loader.batch import OK, PackedBatch
from navit_loader.errors import ConfigError, ModelError, NavitError

from . import checkpoint, report
from .evaluate import Score, evaluate, score_table
from .journal import Journal
from .lock import hold
from .losses import classification_loss
from .meter import Meter
from .model import NaViT
from .optim import Average, adamw
from .picture import packed_svg
from .schedule import learning_rate
from .settings import RunConfig
from .world import World

Loader = PackedLoader | RemoteLoader


def open_loader(run: RunConfig, world: World) -> Loader:
    """The training loader: in process, or from `data.endpoints`.

    Raises:
        ConfigError: neither an index nor endpoints are given.
    """
    data = run.loader.data
    if data.endpoints:
        return RemoteLoader(
            data.endpoints,
            rank=world.rank,
            world_size=world.size,
            batch_size=data.batch_size,
            remainder=data.remainder,
            prefetch=run.loader.render.prefetch,
        )
    if not data.index:
        raise ConfigError("data.index = '' is not allowed; give an index file, or data.endpoints of running daemons")
    return PackedLoader(data.index, run.loader, rank=world.rank, world_size=world.size)


def train(run: RunConfig, *, resume: bool = False) -> list[Score]:
    """Trains until `train.steps`, then evaluates on `data.eval_index` where one is given.

    Args:
        run: the configuration.
        resume: go on from the newest checkpoint of `train.out`, if there is one.

    Returns:
        The last scores, one per token budget; empty without a held-out index.

    Raises:
        NavitError: configuration, index, daemon or checkpoint do not allow the run; or the loss is no longer finite.
        KeyboardInterrupt: stopped by a signal; a checkpoint was saved.
    """
    out = Path(run.train.out)
    # One process of a run holds its folder: the first.
    first = int(os.environ.get("RANK", "0")) == 0
    with hold(out) if first else nullcontext():
        found = checkpoint.find(out)
        if found is not None and not resume:
            raise ConfigError(
                f"train.out = '{out}' already holds step {found.step} of a run; pass --resume to go on, "
                "or choose another folder with train.out=PATH"
            )
        if run.train.threads:
            torch.set_num_threads(run.train.threads)
        world = World.join(run.train.device)
        try:
            with open_loader(run, world) as loader:
                return Trainer(run, loader, world, found).run()
        finally:
            world.leave()


class Trainer:
    """One run: its model, optimiser, average, loader and counters.

    Args:
        run: the configuration; `model.classes` is filled in from the loader where it is 0.
        loader: gives this rank's batches.
        world: the ranks.
        start: the checkpoint to go on from, or None.

    Attributes:
        stop_after: save and stop after this step, as a signal would; None runs to the end.
    """

    def __init__(self, run: RunConfig, loader: Loader, world: World, start: checkpoint.Checkpoint | None) -> None:
        self.loader, self.world, self.classes = loader, world, list(loader.classes)
        self.run_config = run = _with_data(run, loader)
        self.out = Path(run.train.out)
        torch.manual_seed(run.train.seed)
        self.model = NaViT(run.model).to(world.device)
        self.optimizer = adamw(self.model, run.train)
        self.average = Average(self.model, run.train.ema) if run.train.ema else None
        self.step = self.images = self.tokens = 0
        if start is not None:
            self._take_up(start)
        forward: nn.Module = torch.compile(self.model) if run.train.compile else self.model  # type: ignore[assignment]
        self.forward = world.wrap(forward)
        self._stop = threading.Event()
        self.stop_after: int | None = None

    def _take_up(self, start: checkpoint.Checkpoint) -> None:
        saved = start.config
        for section in ("model", "train"):
            before, now = (c.to_dict()[section] for c in (saved, self.run_config))
            for key in FIXED_TRAIN if section == "train" else before:
                if before[key] != now[key]:
                    raise ModelError(
                        f"'{start.path}' was saved with {section}.{key} = {before[key]!r}, the run now says {now[key]!r}; "
                        "resume with the same value, or start another run"
                    )
        if start.classes != self.classes:
            raise ModelError(
                f"'{start.path}' was trained on other classes than the loader now gives; index the same folder"
            )
        start.restore(self.model, self.average, self.optimizer)
        other = self.run_config.train.allow_render_change
        self.loader.load_state_dict(start.state["loader"], other_renderer=other)
        self.step, self.images, self.tokens = start.step, start.state["images"], start.state["tokens"]

    def run(self) -> list[Score]:
        """Runs to the last step; see `train`."""
        config = self.run_config.train
        journal = Journal(self.out, config.steps, self.step, speak=self.world.rank == 0)
        if self.step:
            journal.say(f"going on from step {self.step} of '{self.out}'")
        scores: list[Score] = []
        try:
            with _signals(self._stop):
                self._steps(journal, scores)
            if self._stop.is_set() and self.step < config.steps:
                journal.say(f"stopped at step {self.step}; go on with --resume")
                raise KeyboardInterrupt
            if scores:
                journal.say(score_table(scores))
            if self.world.rank == 0:
                journal.say(f"report: {report.write(self.out)}")
        finally:
            journal.close()
        return scores

    def _steps(self, journal: Journal, scores: list[Score]) -> None:
        config = self.run_config.train
        batches = _endless(self.loader)
        meter = Meter(self.world.device)
        saved = self.step
        if self.step == config.steps:
            scores[:] = self._evaluate(journal)
        while self.step < config.steps and not self._stop.is_set():
            waited = time.perf_counter()
            group = [next(batches) for _ in range(config.accumulate)]
            meter.waited += time.perf_counter() - waited
            if self.step == 0 and self.world.rank == 0:
                (self.out / "packed.svg").write_text(packed_svg(group[0], self.classes), encoding="utf-8")
            self._one(group, meter)
            self.step += 1
            last = self.step == config.steps
            if self.step == self.stop_after:
                self._stop.set()
            if self.step % config.log_every == 0 or last or self._stop.is_set():
                self._report(meter, journal)
                meter = Meter(self.world.device)
            due = config.checkpoint_every and self.step % config.checkpoint_every == 0
            if due or last or self._stop.is_set():
                # A checkpoint is saved only after its loss was found finite.
                if meter.seen:
                    self._report(meter, journal)
                    meter = Meter(self.world.device)
                if self.step != saved:
                    self._save()
                    saved = self.step
            if last or (config.eval_every and self.step % config.eval_every == 0):
                scores[:] = self._evaluate(journal)
                meter.start = time.perf_counter()

    def _one(self, group: list[PackedBatch], meter: Meter) -> None:
        """One optimiser step over the batches of one rank."""
        config, world = self.run_config.train, self.world
        rate = learning_rate(self.step, config)
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = rate
        mine = sum(int(((batch.status == OK) & (batch.labels[..., 0] >= 0)).sum()) for batch in group)
        count = world.sum(torch.tensor(float(mine), device=world.device)).clamp(min=1)
        self.forward.train()
        total = torch.zeros((), device=world.device)
        for i, batch in enumerate(group):
            with self._no_sync(i + 1 < len(group)):
                loss = self._loss(batch.to(world.device, non_blocking=True))
                # DDP averages the gradients over the ranks; times their number, that is the sum.
                (loss * (world.size / count)).backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), config.clip or float("inf"))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update(self.model)
        tokens = sum(batch.num_tokens for batch in group)
        meter.add(self.step, rate, total, count, norm, mine, tokens, group)

    def _no_sync(self, more: bool) -> AbstractContextManager[None]:
        if more and isinstance(self.forward, nn.parallel.DistributedDataParallel):
            return self.forward.no_sync()
        return nullcontext()

    def _loss(self, batch: PackedBatch) -> Tensor:
        """Sum of the losses of the batch's images."""
        config = self.run_config.train
        with torch.autocast(self.world.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            logits = self.forward(batch)
        total, _ = classification_loss(logits.float(), batch, kind=config.loss, label_smoothing=config.label_smoothing)
        return total

    def _report(self, meter: Meter, journal: Journal) -> None:
        values = meter.read(self.world)
        if meter.bad_step is not None:
            which = meter.identities[meter.bad_step]
            journal.write("not_finite", meter.bad_step + 1, batches=which)
            raise ModelError(
                f"the loss of step {meter.bad_step + 1} is not finite; its batches (epoch, first sequence) {which} are "
                f"named in '{self.out / 'log.jsonl'}'; lower train.learning_rate, or resume from the last checkpoint"
            )
        # Of all ranks, so that a run resumed onto another number of them counts on.
        self.images += values.pop("images")
        self.tokens += values.pop("tokens")
        state = self.loader.state_dict()
        journal.progress(self.step, epoch=state["epoch"], images_seen=self.images, tokens_seen=self.tokens, **values)

    def _save(self) -> None:
        if self.world.rank == 0:
            state = {
                "config": self.run_config.to_dict(),
                "classes": self.classes,
                "loader": self.loader.state_dict(),
                "images": self.images,
                "tokens": self.tokens,
            }
            keep = self.run_config.train.keep
            checkpoint.save(self.out, self.step, self.model, self.average, self.optimizer, state, keep)
        self.world.sum(torch.zeros(1, device=self.world.device))  # the others wait for the file

    def _evaluate(self, journal: Journal) -> list[Score]:
        """Scores of the averaged weights (of the model's own where no average is kept) at each budget."""
        run = self.run_config
        index = run.loader.data.eval_index
        if not index:
            return []
        model = self.model
        if self.average is not None:
            model = NaViT(run.model).to(self.world.device)
            model.load_state_dict(self.average.weights)
        model.eval()
        scores = []
        for tokens in run.train.eval_tokens or (None,):
            score = evaluate(
                model,
                index,
                run.loader,
                tokens=tokens,
                world=self.world,
                sigmoid=run.train.loss == "sigmoid",
                classes=self.classes,
            )
            scores.append(score)
            journal.write("eval", self.step, **score.to_dict())
            journal.say(
                f"step {self.step}: {score.accuracy:.2%} of {score.images} held-out images at {score.tokens} tokens"
            )
        return scores


FIXED_TRAIN = ("steps", "loss", "learning_rate", "schedule", "warmup", "cooldown", "seed")
"""Keys of `[train]` that may not change between a checkpoint and the run that goes on from it."""


def _with_data(run: RunConfig, loader: Loader) -> RunConfig:
    """The run with the number of classes that the loader knows."""
    classes = len(loader.classes)
    if run.model.classes and run.model.classes != classes:
        raise ConfigError(
            f"model.classes = {run.model.classes} is not allowed; the index has {classes} classes: leave the key out"
        )
    if classes == 0:
        raise ConfigError("the index has no classes to learn; index a folder with one folder per class")
    return replace(run, model=replace(run.model, classes=classes))


def _endless(loader: Loader) -> Iterator[PackedBatch]:
    """The loader's batches, epoch after epoch."""
    while True:
        empty = True
        for batch in loader:
            empty = False
            yield batch
        if empty:
            raise NavitError("the plan has no batch; lower data.batch_size, or set data.remainder = 'fill'")


class _signals:
    """Turns SIGINT and SIGTERM into an event, so that the step ends and is saved; a second one stops at once."""

    def __init__(self, event: threading.Event) -> None:
        self.event = event
        self.before: dict[int, Any] = {}

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.before[number] = signal.signal(number, self._note)

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.event.is_set():
            raise KeyboardInterrupt
        self.event.set()
