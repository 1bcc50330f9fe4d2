"""`navit-model probe MODEL TRAIN_INDEX TEST_INDEX`: k-shot accuracy of a linear map on frozen features."""

from __future__ import annotations

import argparse
import json
from typing import Any

from navit_loader.commands import add_output
from navit_loader.shown import answer, say

from . import add_budget, add_model, add_scores, check_output, scores_file


def add(subparsers: Any) -> None:
    """Adds the subcommand."""
    parser = subparsers.add_parser(
        "probe",
        examples=("probe runs/photos train.arrow heldout.arrow --shots 1 10",),
        help="k-shot linear probe of frozen features",
        description="Draws k labelled images of each class, fits a regularised least-squares map from their features to the "
        "classes, and predicts the other index.",
    )
    add_model(parser)
    parser.add_argument("train", metavar="TRAIN_INDEX", help="where the k images of each class come from")
    parser.add_argument("test", metavar="TEST_INDEX", help="what is predicted")
    parser.add_argument("--shots", type=int, nargs="+", default=[10], metavar="K", help="images of each class (10)")
    parser.add_argument("--draws", type=int, default=3, metavar="N", help="times that k images are drawn (3)")
    parser.add_argument("--seed", type=int, default=0)
    add_budget(parser)
    add_scores(parser)
    add_output(parser, prints=True, json=False)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints one line for each k.

    Raises:
        NavitError: model or indexes cannot be used, or a class has too few images.
    """
    from navit_loader.progress import watching
    from navit_loader.schema import require

    from ..use.opened import open_model
    from ..use.probe import probe
    from ..world import World

    require(all(k >= 1 for k in args.shots), "--shots", args.shots, "at least 1")
    require(args.seed >= 0, "--seed", args.seed, "at least 0")
    require(args.draws >= 1, "--draws", args.draws, "at least 1")
    check_output("--json", scores_file(args.json))
    opened = open_model(args.model, World.alone(args.device).device, raw=args.raw, last=args.last)
    found = []
    for shots in args.shots:
        with watching("probing"):
            shot = probe(
                opened,
                args.train,
                args.test,
                shots=shots,
                draws=args.draws,
                tokens=args.tokens,
                patch_size=args.patch_size,
                seed=args.seed,
            )
        say(shot)
        found.append(shot.to_dict())
    told = {"checkpoint": str(opened.path), "probes": found}
    answer(told)
    if file := scores_file(args.json):
        file.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    return 0
