"""`navit-model fit FOLDER -o RUN [key=value …]`: from images to a trained and scored model, in one command."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from navit_loader.commands import add_columns, add_output
from navit_loader.progress import watching

from ..train.stop import Stopped
from . import eval as evaluation

if TYPE_CHECKING:
    from ..train.task import Row

CHANCES = 2**26
"""Images times classes at most for which scores by class are made unasked: 256 MiB of probabilities."""


def add(subparsers: Any) -> None:
    """Adds the subcommand."""
    parser = subparsers.add_parser(
        "fit",
        examples=(
            "fit photos -o runs/photos",
            "fit photos.csv --target-column age -o runs/age train.steps=2000",
        ),
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
    add_output(parser)
    parser.set_defaults(run=run)


def _share_or_source(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def run(args: argparse.Namespace) -> int:
    """Trains to the end, or to a signal."""
    from navit_loader.shown import answer, say, tell

    from ..train import report
    from ..train.choices import longer
    from ..use.fit import Fit, fit

    out = Path(args.output)
    asked = Fit(
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
    try:
        rows = fit(asked)
        files, lines, budget = _scored(out, rows)
        page = report.write(out, evaluated=files)
        answer({"run": str(out), "report": str(page), "scores": [row.to_dict() for row in rows]})
        say(f"report: {page}")
    except KeyboardInterrupt as e:
        # A run that was stopped in its steps has said so.
        if not isinstance(e, Stopped) or not any(out.glob("checkpoints/step-*")):
            tell(_kept(out))
        raise
    for line in lines:
        say(line)
    say(f"use it: navit-model predict {out} IMAGE …{budget}")
    if more := longer(out):
        say(f"more steps from its weights: {more}")
    return 0


def _scored(out: Path, done: Sequence[Row]) -> tuple[list[Path], list[str], str]:
    """What a person asks next: which classes, how sure, which images, at the budget that the run was scored by.

    Args:
        out: the run's folder.
        done: its last scores.

    Returns:
        Files of scores for the report; lines to end with; the budget as an option of `predict`.
    """
    from navit_loader import open_index

    from ..evaluate.classification import Score
    from ..evaluate.page import caution, read_scores
    from ..evaluate.regression import RegressionScore
    from ..train.settings import RunConfig

    rows = [row for row in done if isinstance(row, Score | RegressionScore)]
    if not rows:
        return [], [], ""
    config = RunConfig.from_toml(out / "fit.toml").train
    # Without a budget small images would be seen at their own size.
    largest = max(rows, key=lambda row: row.tokens)
    held, file, budget = out / "heldout.arrow", out / "scores.json", f" --tokens {largest.tokens}"
    index = open_index(held)
    lines, found = [], {"scores": [largest.to_dict()]}
    if find_spec("sklearn") and (index.targets is not None or index.num_rows * len(index.classes) <= CHANCES):
        with watching("evaluating"):
            evaluation.evaluate(
                evaluation.Asked(out, str(held), details=True, tokens=[largest.tokens], json=file, device=config.device)
            )
        found = read_scores(file)
    else:
        need = "" if find_spec("sklearn") else "pip install scikit-learn, then "
        lines.append(f"scores by class: {need}navit-model eval {out} {held} --details{budget}")
    if few := caution(found, config.best):
        lines.append(few)
    return [file] if file.exists() else [], lines, budget


def _kept(out: Path) -> str:
    """What is there of a run that was stopped elsewhere than in its steps."""
    if saved := sorted(out.glob("checkpoints/step-*")):
        return f"step {int(saved[-1].name[5:13])} is saved in '{out}'; give the same command again"
    done = "the index is" if (out / "all.arrow").exists() else "what was indexed so far is"
    done = "the index and fit.toml are" if (out / "fit.toml").exists() else done
    return f"nothing is trained yet; {done} kept in '{out}'; give the same command again, and it goes on from there"
