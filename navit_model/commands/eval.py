"""`navit-model eval MODEL INDEX`: accuracy, calibration and speed by token budget and patch size, and a cascade."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from navit_loader.commands import add_output
from navit_loader.errors import ModelError
from navit_loader.progress import watching
from navit_loader.schema import require
from navit_loader.shown import answer, say

from . import add_model, add_scores, check_output, scores_file

if TYPE_CHECKING:
    from navit_loader.config import LoaderConfig

    from ..evaluate.cascade import Answers
    from ..evaluate.classification import Score
    from ..evaluate.groups import Groups
    from ..use.opened import OpenedModel
    from ..world import World


def add(subparsers: Any) -> None:
    """Adds the subcommand."""
    parser = subparsers.add_parser(
        "eval",
        examples=(
            "eval runs/photos heldout.arrow --tokens 64 128 256 --cascade",
            "eval runs/photos heldout.arrow --details --json scores.json",
        ),
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
        "--details",
        action="store_true",
        help="top-5, balanced accuracy, F1, ROC AUC, mAP, or RMSE and a baseline of numbers, with intervals; by class, "
        "calibration and the worst mistakes in --json",
    )
    parser.add_argument(
        "--group-by",
        nargs="+",
        metavar="COLUMN",
        help="scores by group, the worst and its gap: a column of the index (format, width, aspect, ...) or FILE.csv:COLUMN",
    )
    parser.add_argument(
        "--corrupt",
        nargs="*",
        metavar="KIND",
        help="accuracy under corruption at five strengths: noise, blur, jpeg, brightness, contrast (all of them)",
    )
    parser.add_argument(
        "--results",
        type=Path,
        metavar="FILE",
        help="what a detector finds, in COCO's JSON of results, at the last budget",
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="accuracy against tokens as .svg, .png or .pdf")
    add_scores(parser)
    add_output(parser, prints=True, json=False)
    parser.set_defaults(run=run)


@dataclass(frozen=True, slots=True)
class Asked:
    """What is evaluated, and what is wanted beside accuracy; see the options."""

    model: Path
    index: str
    tokens: Sequence[Any] | None = None
    patch_size: Sequence[Any] | None = None
    retrieval: bool = False
    zero_shot: list[str] | None = None
    tokenizer: str | None = None
    cascade: bool = False
    details: bool = False
    group_by: list[str] | None = None
    corrupt: list[str] | None = None
    plot: Path | None = None
    results: Path | None = None
    json: Path | str | None = None
    device: str = "auto"
    last: bool = False
    raw: bool = False


def run(args: argparse.Namespace) -> int:
    """Prints a table and writes what was asked for; see `evaluate`."""
    with watching("evaluating"):
        found = evaluate(Asked(**{field.name: getattr(args, field.name) for field in fields(Asked)}))
    if found:
        answer(found)
    return 0


def evaluate(args: Asked) -> dict[str, Any]:
    """Prints a table and writes what was asked for.

    Returns:
        The scores, as `--json` gives them; nothing but on the first rank.

    Raises:
        NavitError: model or index cannot be used, or a budget or patch size is not allowed.
    """
    from ..evaluate.corrupt import KINDS
    from ..use.opened import open_model
    from ..world import World

    for key in ("tokens", "patch_size"):
        given = getattr(args, key) or []
        require(all(v >= 1 for v in given), f"--{key.replace('_', '-')}", given, "at least 1")
    check_output("--json", scores_file(args.json))
    check_output("--plot", args.plot)
    check_output("--results", args.results)
    if args.plot:
        from ..evaluate.plot import check_ending

        check_ending(args.plot)
    for kind in args.corrupt or ():
        require(kind in KINDS, "--corrupt", kind, f"one or several of {', '.join(KINDS)}")
    world = World.join(args.device)
    try:
        opened = open_model(args.model, world.device, raw=args.raw, last=args.last)
        _need_index(args, opened)
        several = opened.places or not args.cascade or len(args.tokens or []) > 1
        require(several, "--cascade", True, "given with two or more --tokens")
        scored = _numbers if opened.regresses else _pairs if args.retrieval else _labels
        scored = _places if opened.places else scored
        require(args.results is None or opened.boxes, "--results", args.results, "left out for a model without boxes")
        texts, found = scored(args, opened, world)
    finally:
        world.leave()
    if world.rank == 0:
        for line in "\n\n".join(texts).split("\n"):
            say(line)
        found = {"checkpoint": str(opened.path), "index": args.index, **found}
        if file := scores_file(args.json):
            file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        if args.plot:
            from ..evaluate.plot import accuracy_plot

            accuracy_plot(args.plot, found["scores"], found.get("cascades", {}))
        return found
    return {}


def _need_index(args: Asked, opened: OpenedModel) -> None:
    """Refuses a folder, or a table, that was not indexed.

    Raises:
        ModelError: gives the command.
    """
    from navit_loader.index.sources import ENDS

    source = args.index.rstrip("/")
    name, end = os.path.splitext(os.path.basename(source))
    if not os.path.isdir(args.index) and end.lower() not in ENDS:
        return
    data = opened.run.loader.data
    known = data.index or next((each.index for each in data.mixture), "")
    labels = f" --classes {known}" if opened.classes and known else ""
    if opened.regresses:
        labels = " --target-column COLUMN"
    elif opened.places:
        labels = " --boxes FROM" if opened.boxes else " --masks FROM"
    raise ModelError(
        f"'{args.index}' is no index; make one first: navit-loader index {source} -o {name or 'x'}.arrow{labels}, and give "
        f"{name or 'x'}.arrow"
    )


def _labels(args: Asked, opened: OpenedModel, world: World) -> tuple[list[str], dict[str, Any]]:
    """Scores of a classifier, or of class names, at each patch size and budget."""
    from navit_loader import open_index

    from ..evaluate.cascade import cascade, curve_table
    from ..evaluate.classification import held_out, judge, score_table

    if args.details or args.group_by:
        # Before the pass, as it needs scikit-learn.
        from ..evaluate.groups import read_groups

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
    groups = [read_groups(column, open_index(args.index)) for column in args.group_by or ()]
    keep = len(opened.classes) if args.details or groups else 0
    clean = []
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
                keep=keep,
            )
            if keep and world.rank == 0:
                closer.append(_closer(args, opened, loader, groups, answers, sigmoid, world))
                texts += [f"patch {patch_size}, {said}" for said in _said(score, closer[-1])]
            answers = replace(answers, chances=None, labels=None)
            scores.append(score)
            by_budget.append((score.tokens, answers))
            clean.append((score, tokens, answers))
        if args.cascade:
            rising = [answers for _, answers in sorted(by_budget, key=lambda pair: pair[0])]
            curve = cascade(rising)
            curves[str(patch_size)] = [point.to_dict() for point in curve]
            texts.append(f"patch {patch_size}, {curve_table(curve)}")
    found: dict[str, Any] = {"scores": [score.to_dict() for score in scores]}
    found |= {key: [one[key] for one in closer] for key in (closer[0] if closer else ())}
    if curves:
        found["cascades"] = curves
    if args.corrupt is not None:
        from ..evaluate.corrupt import KINDS
        from ..evaluate.robustness import robustness, robustness_text

        kinds = args.corrupt or tuple(KINDS)
        found["corruptions"] = robustness(
            opened.classifier, args.index, loader, clean, kinds, world=world, sigmoid=sigmoid
        )
        texts += [f"patch {one['patch_size']}, {robustness_text(one)}" for one in found["corruptions"]]
    return [score_table(scores), *texts], found


def _numbers(args: Asked, opened: OpenedModel, world: World) -> tuple[list[str], dict[str, Any]]:
    """Errors of a regression at each patch size and budget."""
    from ..evaluate.regression import judge_numbers, regression_table

    others = (option for option in _OF_CLASSES if option != "details")
    _left_out(args, (*others, "retrieval", "zero_shot"), "for a model that predicts numbers")
    unit, loader = opened.run.regression, opened.run.loader
    scores, closer, texts = [], [], []
    for patch_size in args.patch_size or opened.patch_sizes:
        for tokens in args.tokens or [None]:
            score, numbers = judge_numbers(
                opened.model,
                args.index,
                loader,
                mean=unit.mean,
                std=unit.std,
                tokens=tokens,
                patch_size=patch_size,
                world=world,
            )
            scores.append(score)
            if args.details and world.rank == 0:
                from ..evaluate.deviations import deviations, deviations_text, worst_numbers

                closer.append(deviations(numbers, unit.mean))
                texts.append(f"patch {patch_size}, {deviations_text(score.tokens, closer[-1])}")
                closer[-1]["mistakes"] = worst_numbers(numbers, args.index, loader, world)
    found: dict[str, Any] = {"scores": [score.to_dict() for score in scores]}
    return [regression_table(scores), *texts], found | ({"details": closer} if closer else {})


def _places(args: Asked, opened: OpenedModel, world: World) -> tuple[list[str], dict[str, Any]]:
    """AP, mean overlap or panoptic quality at each patch size and budget."""
    from ..evaluate.detection import coco_results, judge_boxes
    from ..evaluate.segmentation import judge_maps, judge_segments
    from ..evaluate.targets import target_table

    _left_out(args, (*_OF_CLASSES, "retrieval", "zero_shot"), "for a model that says where things are")
    scores, task = [], opened.run.train.task
    for patch_size in args.patch_size or opened.patch_sizes:
        opened.check_patch_size(patch_size)
        for tokens in args.tokens or [None]:
            asked: dict[str, Any] = {"index": args.index, "config": opened.run.loader, "classes": opened.classes}
            asked |= {"tokens": tokens, "patch_size": patch_size, "world": world}
            if task == "detection":
                score, results = judge_boxes(opened.module, **asked)
            elif task == "segmentation":
                score = judge_maps(opened.module, **asked)
            else:
                score = judge_segments(opened.module, panoptic=opened.run.panoptic, **asked)
            scores.append(score)
    if args.results is not None and world.rank == 0:
        args.results.write_text(json.dumps(coco_results(results, args.index)) + "\n", encoding="utf-8")
    return [target_table(scores)], {"scores": [score.to_dict() for score in scores]}


def _pairs(args: Asked, opened: OpenedModel, world: World) -> tuple[list[str], dict[str, Any]]:
    """Recall of a contrastive model at each patch size and budget."""
    from ..evaluate.retrieval import evaluate_retrieval, retrieval_table
    from ..model.towers import TwoTowers

    _left_out(args, _OF_CLASSES, "with --retrieval")
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


_OF_CLASSES = ("cascade", "corrupt", "details", "group_by", "plot")
"""Options that are of classes alone."""


def _left_out(args: Asked, options: Sequence[str], where: str) -> None:
    """Refuses options that mean nothing there."""
    for option in options:
        value = getattr(args, option)
        require(value is None or value is False, f"--{option.replace('_', '-')}", value, f"left out {where}")


def _classifier(opened: OpenedModel, args: Asked) -> OpenedModel:
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


def _closer(
    args: Asked,
    opened: OpenedModel,
    loader: LoaderConfig,
    groups: Sequence[Groups],
    answers: Answers,
    sigmoid: bool,
    world: World,
) -> dict[str, Any]:
    """What was asked for beside the score of one setting, as JSON."""
    from ..evaluate.details import details
    from ..evaluate.groups import by_group
    from ..evaluate.mistakes import worst_mistakes

    found: dict[str, Any] = {}
    if args.details:
        found["details"] = details(answers, opened.classes, sigmoid=sigmoid)
        found["details"]["mistakes"] = worst_mistakes(answers, args.index, loader, opened.classes, world)
    if groups:
        found["groups"] = [by_group(answers, group, opened.classes, sigmoid=sigmoid) for group in groups]
    return found


def _said(score: Score, found: dict[str, Any]) -> list[str]:
    """The same as texts."""
    from ..evaluate.details import details_text
    from ..evaluate.groups import groups_text

    texts = [details_text(score.tokens, found["details"])] if "details" in found else []
    return texts + [groups_text(score.tokens, one) for one in found.get("groups", ())]
