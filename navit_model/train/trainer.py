"""The training loop, the same for every task.

In: a run, a loader, the ranks, perhaps a checkpoint. Out: a trained module, its log and checkpoints. The loss is normalised
by the number of images of the whole step, or by the sum of their weights, over ranks and accumulation, since packed batches
hold different counts of them. A resumed run gives the same losses, bit for bit on a CPU: all that changes from step to step
is in the checkpoint.
"""

from __future__ import annotations

import hashlib
import signal
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from navit_loader.batch import PackedBatch
from navit_loader.errors import ModelError, StateError, said
from navit_loader.picture import packed_svg
from navit_loader.schema import require
from navit_loader.shown import counted, tell

from ..model.navit import NaViT
from ..weights.saved import fill
from ..world import AMPERE, TIMEOUT, World, autocast
from . import checkpoint, report
from .best import Best, after
from .boards import open_boards
from .feed import Feed, Loader, with_plan_of
from .flops import peak_tflops
from .log import RunLog
from .meter import Meter
from .optim import Average, freeze, optimiser
from .schedule import learning_rate
from .settings import SECTIONS, RunConfig
from .shard import hold_back, shard, whole
from .stop import Signals, Stopped
from .task import Row
from .tasks import task_of
from .worth import Worth

FIXED = (
    "task",
    "steps",
    "loss",
    "class_weights",
    "learning_rate",
    "optimiser",
    "layer_decay",
    "freeze",
    "schedule",
    "warmup",
    "timescale",
    "cooldown",
    "seed",
)
"""Keys of `[train]` that may not change between a checkpoint and the run that goes on from it."""

FAULT = 1000
"""What a rank without a batch says to the others, above the numbers of all signals."""

LOADER_S = 120
"""Seconds that a loader may take over one batch, where `data.remote.timeout_s` allows it no more."""


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
        resume: a checkpoint to go on from was asked for, whether there was one or not.
        again: how it goes on after a stop.
        page: write the report in the end.
        best: the best evaluation so far, of a run that keeps its checkpoint.
        scaler: of the loss, in float16.
    """

    def __init__(
        self,
        run: RunConfig,
        loader: Loader,
        world: World,
        start: checkpoint.Checkpoint | None,
        begin: NaViT | None = None,
    ) -> None:
        half = run.train.precision != "fp16" or world.device.type == "cuda"
        require(half, "train.precision", "fp16", "'fp32' or 'bf16' on a CPU, which cannot train in float16")
        self.loader, self.world, self.classes = loader, world, list(loader.classes)
        kind = task_of(run)
        self.run_config = run = kind.prepare(with_plan_of(run, loader), loader)
        self.out = Path(run.train.out)
        torch.manual_seed(run.train.seed)
        self.task = kind(run, self.classes, world, checkpoint.open_image_model)
        self.task.worth = Worth.of(loader, world.device, run.train.task, kind.weighs)
        self.module = kind.build(run).to(world.device)
        if start is None:
            kind.begin(run, self.module, checkpoint.open_image_model)
            if begin is not None:
                image_model = kind.image_model(self.module)
                if begin.config.classes != image_model.config.classes:
                    begin.reset_classifier(image_model.config.classes)
                fill(image_model, begin.state_dict(), "what the run begins with")
        freeze(kind.image_model(self.module), run.train.freeze)
        self.task.check_held_out(self.module)
        spread = run.train.parallel == "fsdp" and world.size > 1
        if spread:
            shard(self.module, world, compiled=run.train.compile)
        self.optimizer = optimiser(self.module, run.train)
        # Without fp16 it leaves losses and gradients as they are.
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=run.train.precision == "fp16")
        self.average = Average(self.module, run.train.ema) if run.train.ema else None
        self.step = self.images = self.tokens = 0
        self.flops = 0.0
        self.best: Best | None = None
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
        self.stop_after: int | None = None
        self.resume = False
        self.again = "go on with --resume"
        self.page = True
        self._signals = Signals()
        self._meter = Meter(world.device)
        self._saved = self._tried = self.step  # the steps of the last checkpoint, and of the last attempt at one
        self._behind = loader.state_dict()  # where the last whole step left the loader
        self._torn = False  # whether some weights are of a step that others are not of yet
        self._patience = TIMEOUT + timedelta(seconds=max(LOADER_S, run.loader.data.remote.timeout_s))

    def _take_up(self, start: checkpoint.Checkpoint) -> None:
        saved = start.config
        # A daemon's plan is its own; its plan_id is compared below.
        local = () if self.run_config.loader.data.endpoints or saved.loader.data.endpoints else ("plan",)
        for section in (*SECTIONS, *local):
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
        if self.scaler.is_enabled() and "scaler" in start.state:
            self.scaler.load_state_dict(start.state["scaler"])
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
        kept = checkpoint.best_of(self.out) if self.run_config.train.best else None
        if kept is not None and "best" in kept.state:
            # The run may have gone beyond the checkpoint that it now goes on from.
            known = start.state.get("best", {})
            self.best = Best(**(known if known.get("step") == kept.step else kept.state["best"]))

    def run(self) -> list[Row]:
        """Runs to the last step; see `train`."""
        config = self.run_config.train
        if self.world.rank == 0:
            report.check_drawing()
            self.out.mkdir(parents=True, exist_ok=True)
            left = config.steps - self.step
            saves = -(-left // (config.checkpoint_every or config.steps))
            if config.best:
                saves += -(-left // (config.eval_every or config.steps))
            checkpoint.check_room(
                self.out, self.module, bool(config.ema), self.optimizer, saves, config.keep, config.best
            )
        first = self.world.rank == 0
        boards = open_boards(config.boards, self.out, self.step, self.run_config.to_dict()) if first else ()
        log = RunLog(self.out, config.steps, self.step, first, boards=boards)
        for line in self._banner() if self.world.rank == 0 else ():
            log.say(line)
        for note in self.task.notes(self.loader):
            log.say(note)
        if self.task.worth is not None:
            log.say(str(self.task.worth))
        if (passes := self.run_config.loader.plan.passes) > 1:
            log.say(f"an epoch is {passes} passes over the images: plan.passes = {passes}, for `navit-loader plan` too")
        if config.decode != "cpu":
            rates = ", ".join(f"{name} {rate:,.0f}" for name, rate in self.loader.measured.items())
            log.say(f"pixels are made by {self.loader.decode}" + (f" (images/s: {rates})" if rates else ""))
        scores: list[Row] = []
        feed = Feed(self.loader, self.world.device, self._check)
        # What was opened until now took no time of the first step's.
        self._meter.start = time.perf_counter()
        try:
            with self._signals:
                try:
                    self._steps(feed, log, scores)
                except BaseException:
                    self._rescue()
                    if self._saved:
                        log.say(f"step {self._saved} of {config.steps} is saved; {self.again}")
                    raise
            if scores:
                log.say(self.task.table(scores))
            if self.best is not None:
                log.say(
                    f"step {self.best.step} scored best, and is what predict, eval and export take: "
                    f"'{self.out}/checkpoints/best-{self.best.step:08d}'"
                )
            if self.page and self.world.rank == 0:
                log.say(f"report: {report.write(self.out)}")
        finally:
            feed.close()
            log.close()
        return scores

    def _banner(self) -> list[str]:
        """What runs, where, and from which step on."""
        config, world, shape = self.run_config.train, self.world, type(self.task).image_model(self.module).config
        count = sum(p.numel() for p in self.module.parameters())
        gpu = world.device.type == "cuda"
        device = torch.cuda.get_device_name(world.device) if gpu else counted(torch.get_num_threads(), "thread")
        ranks = f", {world.size} ranks ({config.parallel})" if world.size > 1 else ""
        steps = max(1, round(self.loader.steps_about() / config.accumulate))
        lines = [
            f"{config.task}: {count:,} parameters, width {shape.width}, depth {shape.depth}, patches of "
            f"{', '.join(map(str, shape.patch_sizes or (shape.patch_size,)))}; on {world.device} ({device}){ranks}",
            f"{counted(config.steps, 'step')} of some {steps:,} an epoch; checkpoints, log and report in '{self.out}'",
        ]
        if gpu and (line := slower(torch.cuda.get_device_capability(world.device), config.precision)):
            lines.append(line)
        if self.step:
            lines.append(f"going on from step {self.step} of '{self.out}'")
        elif self.resume:
            lines.append(f"no checkpoint in '{self.out}': this run begins at step 0")
        return lines

    def _steps(self, feed: Feed, log: RunLog, scores: list[Row]) -> None:
        config = self.run_config.train
        if config.best:
            # What a run was stopped in that goes on here.
            if self.step and self._due(config.eval_every) and (self.best is None or self.best.evaluated < self.step):
                self._judge(log, scores)
        elif self.step == config.steps:
            scores[:] = self._evaluate(log)
        while self.step < config.steps and not self._waited_enough():
            group = self._take(feed, log)
            if self.step == 0 and self.world.rank == 0 and feed.last is not None:
                (self.out / "packed.svg").write_text(packed_svg(feed.last, self.classes), encoding="utf-8")
            self._one(group)
            self._behind = feed.state_dict()
            self.step += 1
            if self._due(config.log_every):
                self._report(log)
            judged = self._due(config.eval_every)
            # A checkpoint of a run that keeps its best one knows its own score; elsewhere weights are safe before all else.
            if judged and config.best:
                self._judge(log, scores)
            if self._due(config.checkpoint_every):
                self._save(log)
            if judged and not config.best:
                scores[:] = self._evaluate(log)
            if judged:
                self._meter.start = time.perf_counter()
        if self.step < config.steps:
            log.say(
                f"{config.patience} evaluations without a better score (train.patience): the run ends at step {self.step} of "
                f"{config.steps}"
            )
            self._save(log)
        if config.best and not scores and (kept := checkpoint.best_of(self.out)) is not None:
            scores[:] = self._scored(kept.module().to(self.world.device))

    def _check(self, batch: PackedBatch) -> None:
        """What is wrong with a batch (numpy, on the host), or with an index that was replaced."""
        self.task.check(batch)
        if self.run_config.loader.data.refresh:
            # With weights from the start it is refused.
            Worth.check_unweighted(self.loader)

    def _due(self, every: int) -> bool:
        """Whether what is done every so many steps is done now; at the last step everything is."""
        return self.step == self.run_config.train.steps or bool(every and self.step % every == 0)

    def _waited_enough(self) -> bool:
        patience = self.run_config.train.patience
        return bool(patience) and self.best is not None and self.best.waited >= patience

    def _take(self, feed: Feed, log: RunLog) -> list[PackedBatch]:
        """The batches of the next step. Where a rank has none, or was told to stop, all save and stop here."""
        group: list[PackedBatch] = []
        error: BaseException | None = None
        feed.waited = 0.0
        try:
            if self.step == self.stop_after:
                raise Stopped(signal.SIGINT)
            with self._signals.at_once():
                group = feed.take(self.run_config.train.accumulate)
        except BaseException as e:
            error = e
        self._meter.waited += feed.waited
        code = 0 if error is None else error.number if isinstance(error, Stopped) else FAULT
        if word := self.world.most(code, self._patience):
            self._save(log)
            if error is None and word == FAULT:
                error = ModelError(
                    f"rank {self.world.rank} stops, since another has no batch; its own message says why"
                )
            raise error or Stopped(word)
        return group

    def _rescue(self) -> None:
        """After an error between steps, or within one before the weights moved: saves the last whole step, as far as one rank
        can by itself, since the others may be anywhere."""
        spread = self.world.size > 1 and self.run_config.train.parallel == "fsdp"
        if self.step == self._tried or self._torn or self._signals.insisted or self.world.rank or spread:
            return
        try:
            values = self._meter.alone(self.world.size)
            sound = all(bool(torch.isfinite(p).all()) for p in self.module.parameters())
            if self._meter.bad_step is None and sound:
                self._count(values)
                self._write()
        except Exception as e:  # the device may be what failed; the first error is the one to raise
            tell(f"step {self.step} could not be saved: {said(e)[0]}")

    def _one(self, group: Sequence[PackedBatch]) -> None:
        """One optimiser step over the batches of one rank."""
        config, world = self.run_config.train, self.world
        rate = learning_rate(self.step, config)
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = rate * parameters["scale"]
        # What is drawn in this step is a function of the step and the rank: a checkpoint needs no random state.
        torch.manual_seed(_key(config.seed, self.step, world.rank))
        counts = [self.task.count(batch) for batch in group]
        mine = torch.stack(counts).sum().float()
        worth = torch.stack([self.task.weigh(*each) for each in zip(group, counts, strict=True)]).sum().float()
        count = world.sum(worth.clone())
        count = count.where(count > 0, 1.0)
        total = torch.zeros((), device=world.device)
        for i, batch in enumerate(group):
            with self._exchange(i + 1 == len(group)):
                loss = self._loss(self.task.augment(batch))
                # DDP averages the gradients over the ranks; times their number, that is the sum.
                self.scaler.scale(loss * (world.size / count)).backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        self.scaler.unscale_(self.optimizer)
        norm = whole(nn.utils.clip_grad_norm_(self.module.parameters(), config.clip or float("inf")))
        if self.scaler.is_enabled():
            # Where a gradient overflows, the step is left out and the scale halved.
            norm = norm.where(norm.isfinite(), 0.0)
        self._torn = True
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update(self.module)
        self._torn = False
        flops = torch.stack([self.task.flops(self.module, batch) for batch in group]).sum()
        self._meter.add(self.step, rate, total, count, norm, mine, worth, flops, group)

    def _exchange(self, last: bool) -> AbstractContextManager[None]:
        """Gradients go over the ranks with the last of the accumulated batches alone."""
        hold_back(self.module, last)
        if not last and isinstance(self.forward, nn.parallel.DistributedDataParallel):
            return self.forward.no_sync()
        return nullcontext()

    def _loss(self, batch: PackedBatch) -> Tensor:
        """Sum of the losses of the batch's images."""
        with autocast(self.world.device, self.run_config.train.precision):
            outputs = self.forward(batch)
        return self.task.loss(outputs, batch)

    def _report(self, log: RunLog) -> None:
        """Logs what happened since the last time; raises where a loss was not finite."""
        meter, self._meter = self._meter, Meter(self.world.device)
        values = meter.read(self.world)
        if meter.bad_step is not None:
            self._meter.bad_step = meter.bad_step
            mine = torch.tensor(meter.identities[meter.bad_step], device=self.world.device)
            which = sorted(tuple(pair) for pair in self.world.gather(mine).tolist())
            log.write("not_finite", meter.bad_step + 1, batches=which)
            raise ModelError(
                f"the loss of step {meter.bad_step + 1} is not finite; its batches (epoch, first sequence) {which} are "
                f"named in '{self.out / 'log.jsonl'}', and 'navit-loader preview INDEX CONFIG --epoch E --first S "
                f"--sequences {self.run_config.loader.data.batch_size}' renders one again; lower train.learning_rate, "
                "or resume from the last checkpoint"
            )
        self._count(values)
        peak = self.run_config.train.peak_tflops or peak_tflops(self.world.device)
        if peak:
            values["mfu"] = values["tflops"] / peak
        seen = {"images_seen": self.images, "tokens_seen": self.tokens, "flops_seen": self.flops}
        log.progress(self.step, epoch=self._behind["epoch"], **seen, **values)

    def _count(self, values: dict[str, Any]) -> None:
        # Of all ranks, so that a run resumed onto another number of them counts on.
        self.images += values.pop("images")
        self.tokens += values.pop("tokens")
        self.flops += values.pop("flops")

    def _save(self, log: RunLog, anew: bool = False) -> None:
        """Saves where something is unsaved, or `anew`; every rank calls it. Only after its loss was found finite."""
        if self._meter.seen:
            self._report(log)
        if anew or self.step != self._saved:
            self._write()
            self.world.meet()

    def _write(self) -> None:
        """The checkpoint of the last whole step; where that fails, it is not tried again."""
        first, self._tried = self.world.rank == 0, self.step
        files = checkpoint.gather(self.module, self.average, self.optimizer, keep=first)
        if first:
            state = {
                "config": self.run_config.to_dict(),
                "classes": self.classes,
                "loader": self._behind,
                "images": self.images,
                "tokens": self.tokens,
                "flops": self.flops,
                "average_updates": self.average.updates if self.average is not None else 0,
            }
            if self.scaler.is_enabled():
                state["scaler"] = self.scaler.state_dict()
            if self.best is not None:
                state["best"] = asdict(self.best)
            checkpoint.save(self.out, self.step, files, state, self.run_config.train.keep)
        self._saved = self.step

    def _evaluate(self, log: RunLog) -> list[Row]:
        """Scores of the averaged weights; of the module's own where no average is kept."""
        weights = self.average.weights if self.average is not None else self.module.state_dict()
        # A copy: neither the mode nor the place of what is trained changes.
        module = type(self.task).build(self.run_config).to(self.world.device)
        module.load_state_dict({name: whole(value) for name, value in weights.items()})
        rows = self._scored(module)
        for row in rows:
            log.write("eval", self.step, **row.to_dict())
            log.say(f"step {self.step}: {row}")
        return rows

    def _scored(self, module: nn.Module) -> list[Row]:
        alone = self.world.size == 1 or self.run_config.train.parallel == "ddp"
        # Parts of the weights lie on all ranks: then an evaluation is seen to its end, since saving takes them all.
        with self._signals.at_once() if alone else nullcontext():
            return self.task.evaluate(module.eval())

    def _judge(self, log: RunLog, scores: list[Row]) -> None:
        """Evaluates; where no step was better, keeps this one as the best, and its scores."""
        rows = self._evaluate(log)
        row = max(rows, key=lambda row: row.tokens)
        # The figure of the first rank, so that all decide alike.
        mine = self.task.score(row) if self.world.rank == 0 else 0.0
        score = float(self.world.sum(torch.tensor(mine, dtype=torch.float64, device=self.world.device)))
        self.best = after(self.best, self.step, row.tokens, score)
        if self.best.step == self.step:
            scores[:] = rows
            log.write("best", self.step, tokens=row.tokens, score=score)
            self._save(log, anew=True)
            if self.world.rank == 0:
                checkpoint.keep_best(self.out, self.step)
            self.world.meet()


def slower(capability: tuple[int, int], precision: str) -> str:
    """What a GPU before Ampere does without; empty for others."""
    if capability >= AMPERE:
        return ""
    advice = "" if precision == "fp16" else f"; '{precision}' is slow there: train.precision = 'fp16' is the quick one"
    return (
        f"this GPU (compute capability {capability[0]}.{capability[1]}) is from before Ampere, and has no kernel of packed "
        f"attention: model.attention = 'auto' takes 'segments', one call per length of image{advice}"
    )


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
