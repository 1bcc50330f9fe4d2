"""`navit-model fit FOLDER -o RUN [key=value …]`: from images to a trained and scored model, in one command."""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from navit_loader.commands import add_columns

from . import eval as evaluation

if TYPE_CHECKING:
    from ..evaluate.classification import Score
    from ..evaluate.regression import RegressionScore

CHANCES = 2**26
"""Images times classes at most for which scores by class are made unasked: 256 MiB of probabilities."""


def add(subparsers: Any) -> None:
    """Adds the subcommand."""
    parser = subparsers.add_parser(
        "fit",
        help="from a folder of images to a trained and scored model",
        description="Indexes the images, holds a share of each class out (equal and nearly equal pictures stay on one side), "
        "chooses sizes and a recipe, trains, scores over token budgets and writes scores.json "
        "and report.html, with the worst classes and mistakes. Each choice stands with its "
        "reason in RUN/fit.toml. Started again, it goes on where it was.",
    )
    parser.add_argument(
        "source",
        metavar="FOLDER",
        help="one folder per class, such folders in train/ and val/, a manifest, tar, zip, Parquet, what Hugging Face, MDS, "
        "LitData or COCO wrote, a URL, or an index",
    )
    parser.add_argument("changes", nargs="*", metavar="section.key=value", help="changes, such as train.steps=500")
    parser.add_argument("-o", "--output", required=True, metavar="RUN", help="folder of the run")
    parser.add_argument(
        "--from",
        dest="weights",
        default="",
        metavar="WEIGHTS",
        help="what to start from, as navit-model finetune takes it",
    )
    parser.add_argument(
        "--tokens", type=int, default=0, metavar="M", help="tokens of one image at most (default: chosen)"
    )
    parser.add_argument(
        "--held-out",
        type=_share_or_source,
        metavar="F|SOURCE",
        help="share of each class to score by (default: 0.2), or a folder, table or index of your own validation images",
    )
    add_columns(parser)
    parser.set_defaults(run=run)


def _share_or_source(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def run(args: argparse.Namespace) -> int:
    """Trains to the end, or to a signal."""
    from navit_loader import open_index
    from navit_loader.shown import say

    from ..evaluate.classification import Score
    from ..evaluate.regression import RegressionScore
    from ..use.fit import Fit, fit

    done = fit(
        Fit(
            sources=(args.source,),
            out=args.output,
            weights=args.weights,
            changes=tuple(args.changes),
            tokens=args.tokens,
            held_out=args.held_out,
            image_column=args.image_column,
            label_column=args.label_column,
            caption_column=args.caption_column,
            target_column=args.target_column,
            weight_column=args.weight_column,
        )
    )
    budget = ""
    if done and isinstance(done[-1], Score | RegressionScore):
        tokens = max(row.tokens for row in done if isinstance(row, Score | RegressionScore))
        # What chose the best step; without a budget small images would be seen at their own size.
        budget = f" --tokens {tokens}"
        held = f"{args.output}/heldout.arrow"
        index = open_index(held)
        if find_spec("sklearn") and (index.targets is not None or index.num_rows * len(index.classes) <= CHANCES):
            _details(Path(args.output), tokens)
        else:
            need = "" if find_spec("sklearn") else "pip install scikit-learn, then "
            say(f"scores by class: {need}navit-model eval {args.output} {held} --details{budget}")
        if said := _few(Path(args.output), done[-1]):
            say(said)
    say(f"use it: navit-model predict {args.output} IMAGE …{budget}")
    return 0


def _few(out: Path, last: Score | RegressionScore) -> str:
    """What few held-out images allow to be said."""
    from ..evaluate.page import caution, read_scores
    from ..train.settings import RunConfig

    scores = out / "scores.json"
    found = read_scores(scores) if scores.exists() else {"scores": [last.to_dict()]}
    return caution(found, RunConfig.from_toml(out / "fit.toml").train.best)


def _details(out: Path, tokens: int) -> None:
    """What a person asks next, of the best step at the budget that chose it: which classes, how sure, which images."""
    from ..train import report
    from ..train.settings import RunConfig

    parser = argparse.ArgumentParser()
    evaluation.add(parser.add_subparsers())
    device = RunConfig.from_toml(out / "fit.toml").train.device
    line = [
        "eval",
        str(out),
        str(out / "heldout.arrow"),
        "--details",
        f"--tokens={tokens}",
        f"--json={out / 'scores.json'}",
        f"--device={device}",
    ]
    asked = parser.parse_args(line)
    asked.run(asked)
    report.write(out, evaluated=[out / "scores.json"])
