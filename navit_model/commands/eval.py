"""`navit-model eval MODEL INDEX`: accuracy, calibration and speed by token budget and patch size, and a cascade."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from navit_loader.errors import ModelError
from navit_loader.schema import require
from navit_loader.shown import say

from . import add_model, check_output

if TYPE_CHECKING:
    from ..use.opened import OpenedModel
    from ..world import World


def add(subparsers: Any) -> None:
    """Adds the subcommand."""
    parser = subparsers.add_parser(
        "eval",
        help="accuracy, calibration and speed at several token budgets",
        description="Sees each image once, in order, nothing dropped. Under torchrun the ranks share the images.",
    )
    add_model(parser)
    parser.add_argument("index", metavar="INDEX", help="an index with labels; with captions for --retrieval")
    parser.add_argument("--tokens", type=int, nargs="+", metavar="N", help="budgets of one image (the training cap)")
    parser.add_argument("--patch-size", type=int, nargs="+", metavar="P", help="patch sides (all that were trained)")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--retrieval", action="store_true", help="recall at 1, 5 and 10 of a contrastive model")
    how.add_argument(
        "--zero-shot",
        nargs="*",
        metavar="TEMPLATE",
        help="accuracy of a contrastive model by the names of the index's classes, in templates such as 'a photo of a {}'",
    )
    parser.add_argument(
        "--tokenizer", metavar="FILE", help="the tokenizer.json of the training's index, for --zero-shot (bytes)"
    )
    parser.add_argument("--cascade", action="store_true", help="the curve of a cascade over the budgets too")
    parser.add_argument(
        "--details", action="store_true", help="top-5, balanced accuracy, ROC AUC, mAP; by class in --json"
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="accuracy against tokens as .svg, .png or .pdf")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the scores as JSON too")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints a table and writes what was asked for.

    Raises:
        NavitError: model or index cannot be used, or a budget or patch size is not allowed.
    """
    from ..use.opened import open_model
    from ..world import World

    for key in ("tokens", "patch_size"):
        given = getattr(args, key) or []
        require(all(v >= 1 for v in given), f"--{key.replace('_', '-')}", given, "at least 1")
    require(not args.cascade or len(args.tokens or []) > 1, "--cascade", True, "given with two or more --tokens")
    check_output("--json", args.json)
    check_output("--plot", args.plot)
    if args.plot:
        from ..evaluate.plot import check_ending

        check_ending(args.plot)
    world = World.join(args.device)
    try:
        opened = open_model(args.model, world.device, raw=args.raw, last=args.last)
        scored = _numbers if opened.regresses else _pairs if args.retrieval else _labels
        texts, found = scored(args, opened, world)
    finally:
        world.leave()
    if world.rank == 0:
        for line in "\n\n".join(texts).split("\n"):
            say(line)
        if args.json:
            text = json.dumps({"checkpoint": str(opened.path), **found}, indent=1)
            args.json.write_text(text + "\n", encoding="utf-8")
        if args.plot:
            from ..evaluate.plot import accuracy_plot

            accuracy_plot(args.plot, found["scores"], found.get("cascades", {}))
    return 0


def _labels(args: argparse.Namespace, opened: OpenedModel, world: World) -> tuple[list[str], dict[str, Any]]:
    """Scores of a classifier, or of class names, at each patch size and budget."""
    from ..evaluate.cascade import cascade, curve_table
    from ..evaluate.classification import held_out, judge, score_table

    if args.details:
        from ..evaluate.details import details, details_text

    named = args.zero_shot is not None
    opened = _classifier(opened, args)
    assert opened.classifier is not None
    loader = opened.run.loader
    loader = replace(loader, plan=replace(loader.plan, text_tokens=0, max_text_tokens=0))
    scores, curves, texts, closer = [], {}, [], []
    sigmoid, classes = opened.run.train.loss == "sigmoid" and not named, None if named else opened.classes
    patch_sizes, budgets = args.patch_size or opened.patch_sizes, args.tokens or [None]
    # All of it can be scored, or nothing is.
    for patch_size in patch_sizes:
        opened.check_patch_size(patch_size)
        for tokens in budgets:
            asked: dict[str, Any] = {"tokens": tokens, "patch_size": patch_size, "sigmoid": sigmoid, "classes": classes}
            held_out(args.index, loader, **asked).close()
    for patch_size in patch_sizes:
        by_budget = []
        for tokens in budgets:
            score, answers = judge(
                opened.classifier,
                args.index,
                loader,
                tokens=tokens,
                patch_size=patch_size,
                world=world,
                sigmoid=sigmoid,
                classes=classes,
                keep=len(opened.classes) if args.details else 0,
            )
            if args.details:
                closer.append(details(answers, opened.classes, sigmoid=sigmoid))
                texts.append(f"patch {patch_size}, {details_text(score.tokens, closer[-1])}")
                answers = replace(answers, chances=None, labels=None)
            scores.append(score)
            by_budget.append((score.tokens, answers))
        if args.cascade:
            rising = [answers for _, answers in sorted(by_budget, key=lambda pair: pair[0])]
            curve = cascade(rising)
            curves[str(patch_size)] = [point.to_dict() for point in curve]
            texts.append(f"patch {patch_size}, {curve_table(curve)}")
    found: dict[str, Any] = {"scores": [score.to_dict() for score in scores]}
    if closer:
        found["details"] = closer
    if curves:
        found["cascades"] = curves
    return [score_table(scores), *texts], found


def _numbers(args: argparse.Namespace, opened: OpenedModel, world: World) -> tuple[list[str], dict[str, Any]]:
    """Errors of a regression at each patch size and budget."""
    from ..evaluate.regression import evaluate_regression, regression_table

    for option in ("cascade", "details", "plot", "retrieval", "zero_shot"):
        value = getattr(args, option)
        name = f"--{option.replace('_', '-')}"
        require(value is None or value is False, name, value, "left out for a model that predicts numbers")
    unit = opened.run.regression
    scores = [
        evaluate_regression(
            opened.model,
            args.index,
            opened.run.loader,
            mean=unit.mean,
            std=unit.std,
            tokens=tokens,
            patch_size=patch_size,
            world=world,
        )
        for patch_size in args.patch_size or opened.patch_sizes
        for tokens in args.tokens or [None]
    ]
    return [regression_table(scores)], {"scores": [score.to_dict() for score in scores]}


def _pairs(args: argparse.Namespace, opened: OpenedModel, world: World) -> tuple[list[str], dict[str, Any]]:
    """Recall of a contrastive model at each patch size and budget."""
    from ..evaluate.retrieval import evaluate_retrieval, retrieval_table
    from ..model.towers import TwoTowers

    for option, value in (("--cascade", args.cascade), ("--details", args.details), ("--plot", args.plot)):
        require(not value, option, value, "left out with --retrieval")
    if not isinstance(opened.module, TwoTowers):
        raise ModelError(f"'{opened.path}' is no contrastive model (train.task = '{opened.run.train.task}')")
    scores = [
        evaluate_retrieval(
            opened.module, args.index, opened.run.loader, tokens=tokens, patch_size=patch_size, world=world
        )
        for patch_size in args.patch_size or opened.patch_sizes
        for tokens in args.tokens or [None]
    ]
    return [retrieval_table(scores)], {"scores": [score.to_dict() for score in scores]}


def _classifier(opened: OpenedModel, args: argparse.Namespace) -> OpenedModel:
    """The model with the classifier that is asked for."""
    if args.zero_shot is not None:
        from navit_loader import open_index

        names = open_index(args.index).classes
        if not names:
            raise ModelError(
                f"'{args.index}' has no class names to tell the model; index a folder with one folder per class"
            )
        return opened.with_classes(names, args.zero_shot or ("{}",), args.tokenizer)
    if opened.classifier is None:
        raise ModelError(f"'{opened.path}' has no classifier; give --retrieval or --zero-shot for a contrastive model")
    return opened
