"""How well the trainer is fed, and what it costs beside the model's own step.

In: scikit-learn's digits. Out: the starved share of a run fed by a daemon, and the time of the trainer's step beside that
of a bare loop (forward, loss, backward, clip, optimiser, average) on the same batches, both as CPU time and as wall time.

    python bench/training.py [--steps 300] [--rounds 7]
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from kit import Report, parse, turns
from torch import nn

from navit_loader import build_index
from navit_model.losses.classification import classification_loss
from navit_model.train.feed import open_loader
from navit_model.train.log import read_log
from navit_model.train.meter import Meter
from navit_model.train.optim import Average, optimiser
from navit_model.train.run import train
from navit_model.train.schedule import learning_rate
from navit_model.train.settings import RunConfig
from navit_model.train.trainer import Trainer
from navit_model.world import World

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
import demo
import digits

BARE = "the bare step"
BATCHES = 20
"""Batches of one round."""


def starved(run: Path, steps: int) -> list[float]:
    """The share of the time that a step of the demo's run waits for its daemon, line by line of its log."""
    with demo.daemon(run) as address:
        changes = [f"data.endpoints=['{address}']", f"train.steps={steps}", "train.eval_tokens=[]", "data.eval_index="]
        config = RunConfig.from_toml(run, changes)
        train(config)
    # The first line holds the warming up of threads and caches.
    return [e["starved"] for e in read_log(Path(config.train.out)) if e["kind"] == "train"][1:]


def overhead(run: Path, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Seconds of `BATCHES` steps of the trainer and of bare ones, by CPU time and wall time."""
    config = RunConfig.from_toml(run)
    world = World.join("cpu")
    with open_loader(config, world) as loader:
        trainer = Trainer(config, loader, world, None)
        batches = [batch.to("cpu") for batch in itertools.islice(loader, BATCHES)]
        bare = type(trainer.task).build(trainer.run_config).train()
        optimizer, average = optimiser(bare, config.train), Average(bare, config.train.ema)

        def ours() -> None:
            trainer._meter = Meter(world.device)
            for batch in batches:
                trainer._one([batch])
                trainer.step += 1
            trainer._meter.read(world)

        def plain() -> None:
            for n, batch in enumerate(batches):
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(n, config.train)
                total, count = classification_loss(bare(batch), batch, label_smoothing=config.train.label_smoothing)
                (total / count).backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(bare.parameters(), config.train.clip)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                average.update(bare)

        def timed(work: Callable[[], None]) -> tuple[float, float]:
            wall, cpu = time.perf_counter(), time.process_time()
            work()
            return time.process_time() - cpu, time.perf_counter() - wall

        return turns({"navit": partial(timed, ours), BARE: partial(timed, plain)}, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=7)
    args = parse(parser, {"steps": 40, "rounds": 1})
    report = Report("training", __doc__, args)
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary)
        counts = digits.write(out / "digits")
        for name in counts:
            build_index(out / "digits" / name, out / f"{name}.arrow")
        run = out / "demo.toml"
        text = demo.CONFIG.read_text(encoding="utf-8").replace("runs/digits/run", str(out / "run"))
        run.write_text(text.replace("runs/digits/", f"{out}/"), encoding="utf-8")
        shares = [100 * share for share in starved(run, args.steps)]
        report.row("starved share, a tiny NaViT from a daemon", shares, "%", better="lower", goal=2)
        found = overhead(run, args.rounds)
        for n, clock in enumerate(("CPU time", "wall time")):
            ways = {name: [1e3 * times[n] / BATCHES for times in of] for name, of in found.items()}
            what = f"the trainer's step, {clock}"
            report.row(what, ways, "ms", better="lower", bounds=(BARE,), goal=round(1 / 1.03, 3))
    report.finish()


if __name__ == "__main__":
    main()
