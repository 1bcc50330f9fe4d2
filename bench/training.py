"""How well the trainer is fed, and what it costs beside the model's own step.

In: scikit-learn's digits. Out: the starved share of a run fed by a daemon, median over its log, and the time of the
trainer's step over that of a bare loop (forward, loss, backward, clip, optimiser, average) on the same batches, both as CPU
time and as wall time, medians of interleaved rounds.

    python bench/training.py [--steps 300] [--rounds 7]
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
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

BATCHES = 20
"""Batches of one round."""


def starved(run: Path, steps: int) -> float:
    """The median share of the time that a step of the demo's run waits for its daemon."""
    with demo.daemon(run) as address:
        changes = [f"data.endpoints=['{address}']", f"train.steps={steps}", "train.eval_tokens=[]", "data.eval_index="]
        config = RunConfig.from_toml(run, changes)
        train(config)
    # The first line holds the warming up of threads and caches.
    return median([e["starved"] for e in read_log(Path(config.train.out)) if e["kind"] == "train"][1:])


def overhead(run: Path, rounds: int) -> tuple[float, float]:
    """CPU time and wall time of the trainer's step over the bare one's."""
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

        times: dict[str, list[tuple[float, float]]] = {"ours": [], "plain": []}
        for _ in range(rounds + 1):
            for name, work in (("ours", ours), ("plain", plain)):
                wall, cpu = time.perf_counter(), time.process_time()
                work()
                times[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    pairs = list(zip(times["ours"], times["plain"], strict=True))[1:]
    return median(a[0] / b[0] for a, b in pairs), median(a[1] / b[1] for a, b in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary)
        counts = digits.write(out / "digits")
        for name in counts:
            build_index(out / "digits" / name, out / f"{name}.arrow")
        run = out / "demo.toml"
        text = demo.CONFIG.read_text(encoding="utf-8").replace("runs/digits/run", str(out / "run"))
        run.write_text(text.replace("runs/digits/", f"{out}/"), encoding="utf-8")
        share = starved(run, args.steps)
        cpu, wall = overhead(run, args.rounds)
    print(
        f"\n{args.steps} steps, {args.rounds} rounds, torch {torch.__version__}, {os.cpu_count()} cores "
        f"({platform.machine()}), load {os.getloadavg()[0]:.1f}\n"
    )
    print("| what | goal | here |\n|---|---|---|")
    print(f"| starved share, tiny NaViT from a daemon | ≤ 2 % | {share:.1%} |")
    print(f"| trainer's step over the bare step, CPU time | ≤ 1.03 | {cpu:.3f} |")
    print(f"| the same, wall time | ≤ 1.03 | {wall:.3f} |")


if __name__ == "__main__":
    main()
