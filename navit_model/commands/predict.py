"""`navit-model predict MODEL IMAGES…`: the likeliest classes of image files, their numbers, or what stands where in them."""

from __future__ import annotations

import argparse
import csv
import io
import itertools
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from navit_loader.commands import add_output
from navit_loader.schema import require
from navit_loader.shown import answer, say

from . import add_budget, add_model

if TYPE_CHECKING:
    from ..use.opened import OpenedModel


def add(subparsers: Any) -> None:
    """Adds the subcommand."""
    parser = subparsers.add_parser(
        "predict",
        examples=(
            "predict runs/photos photo.jpg folder",
            "predict runs/photos folder --csv > labels.csv",
        ),
        help="the likeliest classes of image files, their numbers, or what stands where in them",
        description="Prints the likeliest classes of each file, and of a model of sigmoids which labels hold, or the number "
        "that a regression predicts; of models of boxes, maps or segments what they find, which --draw shows. OWL-ViT and "
        "OWLv2, in folders that transformers saved, look for --queries or --query-image. "
        "Files that are no images, and folders that hold none, are named on stderr, status 1.",
    )
    add_model(parser)
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="files, or folders to look through")
    parser.add_argument("--top", type=int, default=3, metavar="N", help="classes shown for each image (3)")
    parser.add_argument(
        "--threshold",
        type=float,
        metavar="P",
        help="probability from which on a label holds, for sigmoids (0.5), or a box is told (0.3)",
    )
    parser.add_argument(
        "--queries", nargs="+", metavar="TEXT", help="what OWL-ViT or OWLv2 is to look for, such as 'a cat'"
    )
    parser.add_argument(
        "--query-image", nargs="+", type=Path, metavar="FILE", help="the same by pictures, each of one object"
    )
    parser.add_argument(
        "--windows",
        action="store_true",
        help="see images with more patches than the budget piece by piece, boxes and maps alike",
    )
    parser.add_argument(
        "--draw",
        type=Path,
        metavar="FOLDER",
        help="images with what was found in them, as PNG; where a name is taken, with a number",
    )
    parser.add_argument("--labels", nargs="+", metavar="NAME", help="classes told by name, for a contrastive model")
    parser.add_argument("--template", nargs="+", default=["{}"], metavar="TEXT", help="such as 'a photo of a {}'")
    parser.add_argument("--tokenizer", metavar="FILE", help="the tokenizer.json of the training's index (bytes)")
    add_budget(parser)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON object a line for each image")
    form.add_argument(
        "--csv",
        action="store_true",
        help="a table: path, then class and probability of each of the top (of sigmoids also labels, by ;), or the number",
    )
    add_output(parser, prints=True, json=False)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints one line for each image; status 1 where some file is no image.

    Raises:
        NavitError: the model cannot be used, or has no classes.
    """
    from navit_loader.progress import ProgressLine

    from ..use.opened import open_model
    from ..use.predict import files_of, predict
    from ..world import World

    require(args.top >= 1, "--top", args.top, "at least 1")
    device = World.alone(args.device).device
    if args.queries or args.query_image:
        from ..use.owls import open_owl

        looked_for = {"names": args.queries or (), "pictures": args.query_image or ()}
        return _where(
            args,
            open_owl(args.model, device, templates=args.template, tokenizer=args.tokenizer, **looked_for),
        )
    opened = open_model(args.model, device, raw=args.raw, last=args.last)
    if opened.places:
        return _where(args, opened)
    for option in ("windows", "draw"):
        value = getattr(args, option)
        require(not value, f"--{option}", value, "left out for a model that does not say where things are")
    if args.labels:
        opened = opened.with_classes(args.labels, args.template, args.tokenizer)
    threshold = 0.5 if args.threshold is None else args.threshold
    require(0 < threshold < 1, "--threshold", threshold, "above 0 and below 1")
    require(
        args.threshold is None or opened.several,
        "--threshold",
        threshold,
        "left out for a model that was not trained by train.loss = 'sigmoid', of which an image has one class, or a number",
    )
    if args.csv and opened.regresses:
        say(_row("path", "number"))
    elif args.csv:
        names = (
            f"{name}_{n + 1}" for n in range(min(args.top, len(opened.classes))) for name in ("class", "probability")
        )
        say(_row("path", *names, *(["labels"] if opened.several else [])))
    bad = 0
    files = files_of(args.images)
    with ProgressLine("predicting") as line:
        for n, prediction in enumerate(
            predict(opened, files, top=args.top, threshold=threshold, tokens=args.tokens, patch_size=args.patch_size)
        ):
            line.update((n + 1) / len(files), n + 1)
            labels = prediction.labels
            if prediction.error:
                bad += 1
                say(f"navit-model predict: '{prediction.path}': {prediction.error}", sys.stderr)
            elif args.json:
                told: dict[str, Any] = {"number": prediction.number}
                if prediction.number is None:
                    told = {"classes": dict(prediction.classes)} | ({} if labels is None else {"labels": labels})
                answer({"path": str(prediction.path), **told})
            elif prediction.number is not None:
                number = f"{prediction.number:.6g}"
                say(_row(str(prediction.path), number) if args.csv else f"{prediction.path}: {number}")
            elif args.csv:
                say(
                    _row(
                        str(prediction.path),
                        *(cell for name, share in prediction.classes for cell in (name, f"{share:.6f}")),
                        *([] if labels is None else [";".join(labels)]),
                    )
                )
            else:
                hold = "" if labels is None else f"; labels: {', '.join(labels) or 'none'}"
                say(
                    f"{prediction.path}: "
                    + ", ".join(f"{name} {share:.1%}" for name, share in prediction.classes)
                    + hold
                )
    return 1 if bad else 0


def _where(args: argparse.Namespace, opened: OpenedModel) -> int:
    """Prints what stands where in each image, and draws it where that is wanted."""
    from navit_loader.errors import PlanError

    from ..use.located import THRESHOLD, locate
    from ..use.predict import files_of

    require(not args.csv, "--csv", True, "left out for a model that says where things are; give --json")
    threshold = THRESHOLD if args.threshold is None else args.threshold
    require(0 <= threshold < 1, "--threshold", threshold, "at least 0 and below 1")
    if args.draw is not None:
        args.draw.mkdir(parents=True, exist_ok=True)
    # No source is written over, and no picture of this run.
    taken = {path.resolve() for path in files_of(args.images)} if args.draw is not None else set()
    budget = {"tokens": args.tokens, "patch_size": args.patch_size, "windows": args.windows}
    bad = 0
    for found in locate(opened, args.images, threshold=threshold, **budget):
        if found.error:
            bad += 1
            say(f"navit-model predict: '{found.path}': {found.error}", sys.stderr)
            continue
        told = found.to_dict(opened.classes)
        if args.json:
            answer(told)
        elif "pixels" in told:
            total = max(1, found.size[0] * found.size[1])
            largest = sorted(told["pixels"].items(), key=lambda each: -each[1])[: args.top]
            say(f"{found.path}: " + ", ".join(f"{name} {n / total:.1%}" for name, n in largest))
        else:
            said = [f"{each['class']} {each['score']:.2f}" for each in told.get("boxes") or told.get("segments") or ()]
            say(f"{found.path}: " + (", ".join(said) or "nothing"))
        if args.draw is not None:
            place = _free(args.draw, found.path.stem, taken)
            try:
                found.drawn().save(place)
            except (OSError, PlanError) as e:
                bad += 1
                say(f"navit-model predict: '{found.path}' cannot be drawn: {e}", sys.stderr)
    return 1 if bad else 0


def _free(folder: Path, stem: str, taken: set[Path]) -> Path:
    """The first of `stem.png`, `stem-2.png`, … that is not taken, which it is then."""
    names = itertools.chain([f"{stem}.png"], (f"{stem}-{n}.png" for n in itertools.count(2)))
    place = next(place for name in names if (place := (folder / name).resolve()) not in taken)
    taken.add(place)
    return place


def _row(*cells: str) -> str:
    """One line of a CSV file."""
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(cells)
    return line.getvalue()
