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
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from navit_loader.errors import NavitError

if TYPE_CHECKING:
    from .checkpoint import Checkpoint
    from .model import NaViT
    from .towers import TwoTowers
    from .zero_shot import ZeroShot


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

    evaluate = commands.add_parser("eval", help="accuracy, or recall of pairs, and speed at several token budgets")
    evaluate.add_argument("checkpoint", type=Path, help="a run's folder, or one of its checkpoints")
    evaluate.add_argument("index", help="an index with labels; with captions for --retrieval")
    evaluate.add_argument("--tokens", type=int, nargs="+", metavar="N", help="budgets of one image (the training cap)")
    evaluate.add_argument("--patch-size", type=int, metavar="P", help="patch side (the first of plan.patch_sizes)")
    how = evaluate.add_mutually_exclusive_group()
    how.add_argument("--retrieval", action="store_true", help="recall at 1, 5 and 10 of a contrastive model")
    how.add_argument(
        "--zero-shot",
        nargs="*",
        metavar="TEMPLATE",
        help="accuracy of a contrastive model by the names of the index's classes, in templates such as 'a photo of a {}'",
    )
    evaluate.add_argument(
        "--tokenizer", metavar="FILE", help="the tokenizer.json of the training's index, for --zero-shot (bytes)"
    )
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
    from .retrieval import evaluate_retrieval, retrieval_table
    from .world import World

    world = World.join(args.device)
    scores: list[Any]
    try:
        saved = open_checkpoint(args.checkpoint)
        loader, budgets = saved.config.loader, args.tokens or [None]
        if args.retrieval:
            towers = _towers(saved, args).to(world.device)
            scores = [
                evaluate_retrieval(towers, args.index, loader, tokens=tokens, patch_size=args.patch_size, world=world)
                for tokens in budgets
            ]
            table = retrieval_table(scores)
        else:
            named = args.zero_shot is not None
            model = (_zero_shot(saved, args) if named else _classifier(saved, args)).to(world.device)
            scores = [
                evaluate(
                    model,
                    args.index,
                    replace(loader, plan=replace(loader.plan, text_tokens=0, max_text_tokens=0)),
                    tokens=tokens,
                    patch_size=args.patch_size,
                    world=world,
                    sigmoid=saved.config.train.loss == "sigmoid" and not named,
                    classes=None if named else saved.classes,
                )
                for tokens in budgets
            ]
            table = score_table(scores)
    finally:
        world.leave()
    if world.rank == 0:
        print(table)
        if args.json:
            rows: list[dict[str, Any]] = [s.to_dict() for s in scores]
            args.json.write_text(
                json.dumps({"checkpoint": str(saved.path), "scores": rows}, indent=1), encoding="utf-8"
            )


def _classifier(saved: Checkpoint, args: argparse.Namespace) -> NaViT:
    from navit_loader.errors import ModelError

    model = saved.model(average=not args.raw)
    if model.config.classes == 0:
        raise ModelError(f"'{saved.path}' has no classifier; give --retrieval or --zero-shot for a contrastive model")
    return model


def _towers(saved: Checkpoint, args: argparse.Namespace) -> TwoTowers:
    from navit_loader.errors import ModelError

    from .towers import TwoTowers

    module = saved.module(average=not args.raw)
    if not isinstance(module, TwoTowers):
        raise ModelError(f"'{saved.path}' is no contrastive model (train.task = '{saved.config.train.task}')")
    return module


def _zero_shot(saved: Checkpoint, args: argparse.Namespace) -> ZeroShot:
    from navit_loader import open_index
    from navit_loader.errors import ModelError

    from .zero_shot import ZeroShot

    names = open_index(args.index).classes
    if not names:
        raise ModelError(
            f"'{args.index}' has no class names to tell the model; index a folder with one folder per class"
        )
    return ZeroShot(_towers(saved, args), names, args.zero_shot or ("{}",), args.tokenizer)


def _report(args: argparse.Namespace) -> None:
    from . import report

    print(f"report: {report.write(args.out)}")


if __name__ == "__main__":
    sys.exit(main())
