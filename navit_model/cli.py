"""`navit-model`: train, evaluate, report.

In: a command line. Out: what the command says, and status 0; 2 with one line for an error that navit raises on purpose;
130 after an interrupt. Apart from the work itself, which Python callers reach without it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from navit_loader.errors import NavitError


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status."""
    args = _parser().parse_args(argv)
    # Torch's idle threads spin by default and take the cores from decoding threads, ours or a daemon's on this host.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        args.run(args)
    except NavitError as e:
        print(f"navit-model {args.command}: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="navit-model", description="Train and use native-resolution vision transformers."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    train = commands.add_parser("train", help="train from a TOML file")
    train.add_argument("config", type=Path, metavar="CONFIG.toml")
    train.add_argument("changes", nargs="*", metavar="section.key=value", help="changes, such as train.steps=500")
    train.add_argument("--resume", action="store_true", help="go on from the newest checkpoint of train.out, if any")
    train.set_defaults(run=_train)

    evaluate = commands.add_parser("eval", help="accuracy, calibration and speed at several token budgets")
    evaluate.add_argument("checkpoint", type=Path, help="a run's folder, or one of its checkpoints")
    evaluate.add_argument("index", help="an index with labels")
    evaluate.add_argument("--tokens", type=int, nargs="+", metavar="N", help="budgets of one image (the training cap)")
    evaluate.add_argument("--patch-size", type=int, metavar="P", help="patch side (the first of plan.patch_sizes)")
    evaluate.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    evaluate.add_argument("--raw", action="store_true", help="the last weights in place of their moving average")
    evaluate.add_argument("--json", type=Path, metavar="FILE", help="write the scores as JSON too")
    evaluate.set_defaults(run=_evaluate)

    report = commands.add_parser("report", help="write report.html of a run")
    report.add_argument("out", type=Path, metavar="RUN", help="a run's folder")
    report.set_defaults(run=_report)
    return parser


def _train(args: argparse.Namespace) -> None:
    from .settings import RunConfig
    from .train import train

    train(RunConfig.from_toml(args.config, args.changes), resume=args.resume)


def _evaluate(args: argparse.Namespace) -> None:
    from .checkpoint import open_checkpoint
    from .evaluate import evaluate, score_table
    from .world import World

    world = World.join(args.device)
    try:
        saved = open_checkpoint(args.checkpoint)
        model = saved.model(average=not args.raw).to(world.device)
        scores = [
            evaluate(
                model,
                args.index,
                saved.config.loader,
                tokens=tokens,
                patch_size=args.patch_size,
                world=world,
                sigmoid=saved.config.train.loss == "sigmoid",
                classes=saved.classes,
            )
            for tokens in args.tokens or [None]
        ]
    finally:
        world.leave()
    if world.rank == 0:
        print(score_table(scores))
        if args.json:
            rows: list[dict[str, Any]] = [s.to_dict() for s in scores]
            args.json.write_text(
                json.dumps({"checkpoint": str(saved.path), "scores": rows}, indent=1), encoding="utf-8"
            )


def _report(args: argparse.Namespace) -> None:
    from . import report

    print(f"report: {report.write(args.out)}")


if __name__ == "__main__":
    sys.exit(main())
