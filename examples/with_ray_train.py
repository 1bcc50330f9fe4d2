"""navit's own trainer on Ray Train, in the place of torchrun: Ray places the ranks, and starts them anew where one is lost.

In: a configuration, as `navit-model train` takes it, whose index and folder all machines see under the same paths. Out: the
run's folder, as always. A rank that dies, or its machine, ends the others behind the last whole step; Ray starts all of them
again, and they go on from there, with the losses of a run that was never stopped. Needs the package `ray` (our extra `ray`).

    python examples/with_ray_train.py examples/digits.toml --workers 2 train.steps=500
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray.train import FailureConfig, ScalingConfig
from ray.train import RunConfig as RayConfig
from ray.train.torch import TorchConfig, TorchTrainer

from navit_model.train.run import train
from navit_model.train.settings import RunConfig
from navit_model.world import TIMEOUT


def rank(table: dict[str, Any]) -> None:
    """One rank. Ray has put it among the others; from the newest checkpoint on it finds its way by itself."""
    train(RunConfig.from_dict(table), resume=True, again="Ray starts it again")


def fit(run: RunConfig, workers: int, gpu: bool = False, failures: int = 3) -> None:
    """Trains until `train.steps`.

    Args:
        run: the configuration.
        workers: ranks.
        gpu: one GPU for each.
        failures: how often the ranks may be lost.
    """
    # A rank has a working folder of its own.
    out = Path(run.train.out).absolute()
    data = run.loader.data
    if data.index:
        data = replace(data, index=str(Path(data.index).absolute()))
    run = replace(run, train=replace(run.train, out=str(out)), loader=replace(run.loader, data=data))
    TorchTrainer(
        rank,
        train_loop_config=run.to_dict(),
        torch_config=TorchConfig(timeout_s=int(TIMEOUT.total_seconds())),
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpu),
        run_config=RayConfig(name="ray", storage_path=str(out), failure_config=FailureConfig(max_failures=failures)),
    ).fit()


def main() -> None:
    """Command line of this file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path, metavar="CONFIG.toml", help="as for navit-model train")
    parser.add_argument("changes", nargs="*", metavar="section.key=value", help="changes, such as train.steps=500")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="ranks (2)")
    parser.add_argument("--gpu", action="store_true", help="a GPU for each")
    args = parser.parse_args()
    fit(RunConfig.from_toml(args.config, args.changes), args.workers, args.gpu)


if __name__ == "__main__":
    main()
