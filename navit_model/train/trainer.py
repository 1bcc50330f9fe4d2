"""The training loop, the same for every task.

In: a run, a loader, the ranks, perhaps a checkpoint. Out: a trained module, its log and checkpoints. The loss is normalised
by the number of images of the whole step, over ranks and accumulation, since packed batches hold different counts of them.
A resumed run gives the same losses, bit for bit on a CPU: all that changes from step to step is in the checkpoint.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from navit_loader.batch import PackedBatch
from navit_loader.errors import ModelError, StateError
from navit_loader.picture import packed_svg

from ..model.navit import NaViT
from ..weights.saved import fill
from ..world import Later, World
from . import checkpoint, report
from .augment import augment
from .feed import Feed, Loader
from .flops import peak_tflops
from .log import RunLog
from .meter import Meter
from .optim import Average, adamw
from .schedule import learning_rate
from .settings import RunConfig
from .shard import hold_back, shard, whole
from .stop import Signals
from .task import Row
from .tasks import task_of

FIXED = ("task", "steps", "loss", "learning_rate", "schedule", "warmup", "cooldown", "seed")
"""Keys of `[train]` that may not change between a checkpoint and the run that goes on from it."""


class Trainer:
    """One run: its task, module, optimiser, average, loader and counters.

    Args:
        run: the configuration; what the data decide is filled in by the task.
        loader: gives this rank's batches.
        world: the ranks.
        start: the checkpoint to go on from, or None.
        begin: a model whose weights the image model starts from where there is no checkpoint; its classifier is used only
            where it has as many classes.

    Attributes:
        stop_after: save and stop after this step, as a signal would; None runs to the end.
    """

    def __init__(
        self,
        run: RunConfig,
        loader: Loader,
        world: World,
        start: checkpoint.Checkpoint | None,
        begin: NaViT | None = None,
    ) -> None:
        self.loader, self.world, self.classes = loader, world, list(loader.classes)
        kind = task_of(run)
        self.run_config = run = kind.prepare(run, loader)
        self.out = Path(run.train.out)
        torch.manual_seed(run.train.seed)
        self.task = kind(run, self.classes, world, checkpoint.open_image_model)
        self.module = kind.build(run).to(world.device)
        if start is None:
            kind.begin(run, self.module, checkpoint.open_image_model)
            if begin is not None:
                image_model = kind.image_model(self.module)
                if begin.config.classes != image_model.config.classes:
                    begin.reset_classifier(image_model.config.classes)
                fill(image_model, begin.state_dict(), "what the run begins with")
        spread = run.train.parallel == "fsdp" and world.size > 1
        if spread:
            shard(self.module, world, compiled=run.train.compile)
        self.optimizer = adamw(self.module, run.train)
        self.average = Average(self.module, run.train.ema) if run.train.ema else None
        self.step = self.images = self.tokens = 0
        self.flops = 0.0
        if start is not None:
            self._take_up(start)
        # Once: evaluation has a module of its own.
        self.module.train()
        self.forward: nn.Module = self.module
        if not spread:
            if run.train.compile:
                for part in self.module.modules():
                    if isinstance(part, NaViT):
                        part.compile()
            self.forward = world.wrap(self.module)
        self._stop = threading.Event()
        self._asked: Later | None = None
        self.stop_after: int | None = None

    def _take_up(self, start: checkpoint.Checkpoint) -> None:
        saved = start.config
        # A daemon's plan is its own; its plan_id is compared below.
        local = () if self.run_config.loader.data.endpoints or saved.loader.data.endpoints else ("plan",)
        for section in ("model", "text", "contrastive", "distillation", "train", *local):
            before, now = (c.to_dict()[section] for c in (saved, self.run_config))
            for key in FIXED if section == "train" else before:
                if (found := _difference(f"{section}.{key}", before[key], now[key])) is not None:
                    name, old, new = found
                    raise ModelError(
                        f"'{start.path}' was saved with {name} = {old!r}, the run now says {new!r}; "
                        "resume with the same value, or start another run"
                    )
        if start.classes != self.classes:
            raise ModelError(
                f"'{start.path}' was trained on other classes than the loader now gives; index the same folder"
            )
        start.restore(self.module, self.average, self.optimizer)
        other = self.run_config.train.allow_render_change
        state = start.state["loader"]
        try:
            self.loader.load_state_dict(state, other_renderer=other)
        except StateError as e:
            flag = (
                "" if state["plan_id"] != self.loader.plan_id else "; for a run that is train.allow_render_change=true"
            )
            raise StateError(f"'{start.path}': {e}{flag}") from None
        self.step, self.images, self.tokens = start.step, start.state["images"], start.state["tokens"]
        self.flops = start.state["flops"]

    def run(self) -> list[Row]:
        """Runs to the last step; see `train`."""
        config = self.run_config.train
        log = RunLog(self.out, config.steps, self.step, self.world.rank == 0, tensorboard=config.tensorboard)
        if self.step:
            log.say(f"going on from step {self.step} of '{self.out}'")
        for note in self.task.notes(self.loader):
            log.say(note)
        if (passes := self.run_config.loader.plan.passes) > 1:
            log.say(f"an epoch is {passes} passes over the images: plan.passes = {passes}, for `navit-loader plan` too")
        if config.decode != "cpu":
            rates = ", ".join(f"{name} {rate:,.0f}" for name, rate in self.loader.measured.items())
            log.say(f"pixels are made by {self.loader.decode}" + (f" (images/s: {rates})" if rates else ""))
        scores: list[Row] = []
        feed = Feed(self.loader, self.world.device, self.task.check)
        try:
            with Signals(self._stop):
                self._steps(feed, log, scores)
            if self.step < config.steps:
                log.say(f"stopped at step {self.step}; go on with --resume")
                raise KeyboardInterrupt
            if scores:
                log.say(self.task.table(scores))
            if self.world.rank == 0:
                log.say(f"report: {report.write(self.out)}")
        finally:
            feed.close()
            log.close()
        return scores

    def _steps(self, feed: Feed, log: RunLog, scores: list[Row]) -> None:
        config = self.run_config.train
        meter = Meter(self.world.device)
        saved = self.step
        if self.step == config.steps:
            scores[:] = self._evaluate(log)
        stopping = False
        while self.step < config.steps and not stopping:
            feed.waited = 0.0
            group = feed.take(config.accumulate)
            meter.waited += feed.waited
            if self.step == 0 and self.world.rank == 0 and feed.last is not None:
                (self.out / "packed.svg").write_text(packed_svg(feed.last, self.classes), encoding="utf-8")
            self._one(group, meter)
            self.step += 1
            last = self.step == config.steps
            stopping = self._stopping()
            if self.step % config.log_every == 0 or last or stopping:
                self._report(meter, log, feed)
                meter = Meter(self.world.device)
            due = config.checkpoint_every and self.step % config.checkpoint_every == 0
            if due or last or stopping:
                # A checkpoint is saved only after its loss was found finite.
                if meter.seen:
                    self._report(meter, log, feed)
                    meter = Meter(self.world.device)
                if self.step != saved:
                    self._save(feed)
                    saved = self.step
            if last or (config.eval_every and self.step % config.eval_every == 0):
                scores[:] = self._evaluate(log)
                meter.start = time.perf_counter()

    def _one(self, group: Sequence[PackedBatch], meter: Meter) -> None:
        """One optimiser step over the batches of one rank."""
        config, world = self.run_config.train, self.world
        rate = learning_rate(self.step, config)
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = rate
        # What is drawn in this step is a function of the step and the rank: a checkpoint needs no random state.
        torch.manual_seed(_key(config.seed, self.step, world.rank))
        mine = torch.stack([self.task.count(batch) for batch in group]).sum().float()
        asked = torch.full_like(mine, self._stop.is_set())
        images, asked = world.sum(torch.stack([mine, asked])).unbind()
        count = images.clamp(min=1)
        self._asked = Later(asked)
        total = torch.zeros((), device=world.device)
        for i, batch in enumerate(group):
            with self._exchange(i + 1 == len(group)):
                loss = self._loss(augment(batch, config.augment, config.seed))
                # DDP averages the gradients over the ranks; times their number, that is the sum.
                (loss * (world.size / count)).backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        norm = whole(nn.utils.clip_grad_norm_(self.module.parameters(), config.clip or float("inf")))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update(self.module)
        flops = torch.stack([self.task.flops(self.module, batch) for batch in group]).sum()
        meter.add(self.step, rate, total, count, norm, mine, flops, group)

    def _stopping(self) -> bool:
        """Whether to stop after this step: every rank says the same, whichever of them a signal reached."""
        if self.step == self.stop_after:
            return True
        if self.world.size == 1:
            return self._stop.is_set()
        assert self._asked is not None
        return bool(self._asked.read() > 0)

    def _exchange(self, last: bool) -> AbstractContextManager[None]:
        """Gradients go over the ranks with the last of the accumulated batches alone."""
        hold_back(self.module, last)
        if not last and isinstance(self.forward, nn.parallel.DistributedDataParallel):
            return self.forward.no_sync()
        return nullcontext()

    def _loss(self, batch: PackedBatch) -> Tensor:
        """Sum of the losses of the batch's images."""
        config = self.run_config.train
        with torch.autocast(self.world.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            outputs = self.forward(batch)
        return self.task.loss(outputs, batch)

    def _report(self, meter: Meter, log: RunLog, feed: Feed) -> None:
        values = meter.read(self.world)
        if meter.bad_step is not None:
            mine = torch.tensor(meter.identities[meter.bad_step], device=self.world.device)
            which = sorted(tuple(pair) for pair in self.world.gather(mine).tolist())
            log.write("not_finite", meter.bad_step + 1, batches=which)
            raise ModelError(
                f"the loss of step {meter.bad_step + 1} is not finite; its batches (epoch, first sequence) {which} are "
                f"named in '{self.out / 'log.jsonl'}', and 'navit-loader preview INDEX CONFIG --epoch E --first S "
                f"--sequences {self.run_config.loader.data.batch_size}' renders one again; lower train.learning_rate, "
                "or resume from the last checkpoint"
            )
        # Of all ranks, so that a run resumed onto another number of them counts on.
        self.images += values.pop("images")
        self.tokens += values.pop("tokens")
        self.flops += values.pop("flops")
        peak = self.run_config.train.peak_tflops or peak_tflops(self.world.device)
        if peak:
            values["mfu"] = values["tflops"] / peak
        state = feed.state_dict()
        seen = {"images_seen": self.images, "tokens_seen": self.tokens, "flops_seen": self.flops}
        log.progress(self.step, epoch=state["epoch"], **seen, **values)

    def _save(self, feed: Feed) -> None:
        first = self.world.rank == 0
        files = checkpoint.gather(self.module, self.average, self.optimizer, keep=first)
        if first:
            state = {
                "config": self.run_config.to_dict(),
                "classes": self.classes,
                "loader": feed.state_dict(),
                "images": self.images,
                "tokens": self.tokens,
                "flops": self.flops,
                "average_updates": self.average.updates if self.average is not None else 0,
            }
            keep = self.run_config.train.keep
            checkpoint.save(self.out, self.step, files, state, keep)
        self.world.meet()

    def _evaluate(self, log: RunLog) -> list[Row]:
        """Scores of the averaged weights; of the module's own where no average is kept."""
        weights = self.average.weights if self.average is not None else self.module.state_dict()
        # A copy: neither the mode nor the place of what is trained changes.
        module = type(self.task).build(self.run_config).to(self.world.device)
        module.load_state_dict({name: whole(value) for name, value in weights.items()})
        rows = self.task.evaluate(module.eval())
        for row in rows:
            log.write("eval", self.step, **row.to_dict())
            log.say(f"step {self.step}: {row}")
        return rows


def _difference(name: str, before: Any, now: Any) -> tuple[str, Any, Any] | None:
    """The first key in which two values differ, tables looked into, with both of its values; None where they are equal."""
    if before == now:
        return None
    if isinstance(before, dict) and isinstance(now, dict):
        inner = (_difference(f"{name}.{key}", before.get(key), now.get(key)) for key in before | now)
        return next(found for found in inner if found is not None)
    return name, before, now


def _key(seed: int, step: int, rank: int) -> int:
    """A seed of its own for each step of each rank."""
    text = f"navit {seed} {step} {rank}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1
