"""`navit-model finetune WEIGHTS CONFIG.toml [key=value …]`: training that starts from weights of here or elsewhere."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from navit_loader.commands import add_output
from navit_loader.shown import answer


def add(subparsers: Any) -> None:
    """Adds the subcommand."""
    parser = subparsers.add_parser(
        "finetune",
        examples=("finetune timm:vit_small_patch16_224.augreg_in21k config.toml train.learning_rate=1e-4",),
        help="train from weights of timm, transformers, or navit",
        description="Trains a model that starts from given weights. Their shape becomes [model]; keys given there, such as "
        "drop_path or classes, are changed. plan.patch_sizes and plan.prefix_tokens follow the model where left out.",
    )
    parser.add_argument(
        "weights",
        metavar="WEIGHTS",
        help="timm:NAME, timm:NAME@FILE for a checkpoint on disk, transformers:NAME or :FOLDER, a run, or a saved model",
    )
    parser.add_argument("config", type=Path, metavar="CONFIG.toml")
    parser.add_argument("changes", nargs="*", metavar="section.key=value", help="changes, such as train.steps=500")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint of train.out, if any")
    add_output(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Trains to the end, or to a signal."""
    from ..train.settings import RunConfig

    # Before torch is loaded, which takes seconds: a wrong key is told at once.
    RunConfig.from_toml(args.config, args.changes)
    from ..train.run import train
    from ..use.finetune import starting

    config, model = starting(args.weights, args.config, args.changes)
    scores = train(config, resume=args.resume, begin=model)
    if int(os.environ.get("RANK", "0")) == 0:
        answer({"run": config.train.out, "scores": [row.to_dict() for row in scores]})
    return 0
