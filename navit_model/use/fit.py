"""From a folder of images to a trained and scored model: an index, a split, a configuration that says why, a run.

In: sources, a folder, perhaps weights. Out: the run's folder, with `fit.toml`, which `navit-model train` takes as well. Each
stage leaves a file and is not done twice; what was asked for stands in `fit.json`, so that another question is refused there.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from navit_loader.config import LoaderConfig
from navit_loader.errors import ConfigError, IndexFileError
from navit_loader.index import Index, build_index, open_index
from navit_loader.index.sources.misread import are_splits, tables_in
from navit_loader.index.subset import split_groups, write_subset
from navit_loader.shown import counted, say
from navit_loader.suggest import Choice, nested, suggest, toml

from ..model.check import TABLES
from ..train.checkpoint import steps
from ..train.lock import hold
from ..train.recipe import DROPPED, Given, recipe
from ..train.run import train
from ..train.settings import RunConfig, check_changes, set_key
from ..train.task import Row
from ..world import half_of
from .finetune import load, starting
from .twins import find_twins

FEWEST = 8
"""Labelled images; of fewer no score means anything."""

SHOWN = 12
"""Classes that are listed at most."""

UNEVEN = 5
"""The largest class over the smallest, from which on that is said."""


@dataclass(frozen=True, slots=True)
class Fit:
    """What is asked for.

    Attributes:
        sources: what `build_index` takes; or one index.
        out: folder of the run.
        weights: what to start from; empty starts from nothing.
        changes: `section.key=value` texts.
        tokens: of one image at most; 0 chooses.
        held_out: share of each class that is scored and not learnt.
        image_column, label_column, caption_column, target_column, weight_column: see `build_index`.
    """

    sources: tuple[str, ...]
    out: str
    weights: str = ""
    changes: tuple[str, ...] = ()
    tokens: int = 0
    held_out: float = 0.2
    image_column: str = ""
    label_column: str = ""
    caption_column: str = ""
    target_column: str = ""
    weight_column: str = ""


def fit(asked: Fit) -> list[Row]:
    """Trains and scores, or goes on where an earlier call was stopped.

    Returns:
        The last scores.

    Raises:
        NavitError: the images, the folder, the weights or a change do not allow it, or differ from those that the folder was
            begun with.
    """
    if not 0 < asked.held_out < 1:
        raise ConfigError(f"--held-out = {asked.held_out} is not allowed; it must be above 0 and below 1")
    changed: dict[str, Any] = {}
    for text in asked.changes:
        set_key(changed, text)
    check_changes(changed)
    if "out" in changed.get("train", {}):
        raise ConfigError(f"train.out = {changed['train']['out']!r} is not allowed here; name the folder with -o")
    out = Path(os.path.abspath(asked.out))
    begun, config = out / "fit.json", out / "fit.toml"
    if out.exists() and not begun.exists() and (not out.is_dir() or set(os.listdir(out)) - {".fit.lock", *_OURS}):
        raise ConfigError(f"'{out}' holds something else already; choose another folder with -o")
    with hold(out, "fit"):
        index = _indexed(asked, out, begun, settled=config.exists())
        if not config.exists():
            made = _choices(asked, changed, index, out)
            RunConfig.from_dict(nested(made))
            waiting = config.with_suffix(".new")
            waiting.write_text(toml(made, _head(asked, config)), encoding="utf-8")
            waiting.replace(config)
        say(f"configuration, with the reason for each key: {config}")
        if asked.weights:
            run, model = starting(asked.weights, config)
        else:
            run, model = RunConfig.from_toml(config), None
        return train(run, resume=bool(steps(out)), begin=model, again="give the same command again")


_OURS = {"all.arrow", "all.arrow.building", "all.arrow.quarantine.jsonl"}
"""What a call that was stopped before `fit.json` leaves."""


def _indexed(asked: Fit, out: Path, begun: Path, settled: bool) -> Index:
    """The index of all images; where an earlier call `settled` the configuration, only if all is as it was."""
    path = out / "all.arrow"
    given = open_index(asked.sources[0]) if _is_index(asked.sources) else None
    columns = {
        key: getattr(asked, key) for key in (f"{k}_column" for k in ("image", "label", "caption", "target", "weight"))
    }
    if given is not None and (named := next((key for key, name in columns.items() if name), "")):
        option = "--" + named.replace("_", "-")
        raise ConfigError(
            f"{option} {columns[named]} is of no use where '{asked.sources[0]}' is an index; index the table with it: "
            f"navit-loader index TABLE -o {asked.sources[0]} {option} {columns[named]}"
        )
    if given is None:
        done = build_index(asked.sources, path, refresh=path.exists(), **columns)
        what = ("different number", "") if asked.target_column else ("class", "classes")
        say(f"{counted(done.rows, 'image')}, {counted(len(done.classes), *what)}")
        for note in done.notes:
            say(f"  {note}")
        if done.broken:
            say(f"  {done.broken:,} broken, left out; each with its reason in {done.quarantine}")
            with open(done.quarantine, encoding="utf-8") as file:
                for line in map(json.loads, itertools.islice(file, 3)):
                    say(f"    {line['uri']}: {line['reason']}")
        _no_splits(asked, done.classes)
    index = given or open_index(path)
    if index.targets is None and index.classes:
        say(f"  {_classes(index)}")
    question = {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(asked).items() if key != "out"}
    question["sources"] = [source if "://" in source else os.path.abspath(source) for source in asked.sources]
    # Where they lie is no part of it, what they are is.
    content = [index.num_rows, index.plan_fingerprint, index.render_fingerprint]
    if settled:
        try:
            before = json.loads(begun.read_text(encoding="utf-8"))
            old, then = before["asked"], before["content"]
        except (OSError, ValueError, LookupError, TypeError):
            raise ConfigError(f"'{begun}' is damaged; choose another folder with -o") from None
        for key, value in question.items():
            if old.get(key, "") != value:
                raise ConfigError(_other(asked, out, key, old.get(key, ""), value))
        if then != content:
            raise ConfigError(
                f"the images have changed since '{out}' was begun ({then[0]:,} then, {index.num_rows:,} now); choose another "
                "folder with -o"
            )
    else:
        begun.write_text(json.dumps({"asked": question, "content": content}, indent=1), encoding="utf-8")
    return index


def _other(asked: Fit, out: Path, key: str, old: Any, new: Any) -> str:
    """What was asked for when a folder was begun, and how to go on with that, or with what is asked for now."""
    then, now, way = f"{key} = {old!r}", repr(new), ""
    if key == "changes":
        then, now = (f"the changes {' '.join(each)}" if each else "no changes" for each in (old, new))
        # Its configuration holds the old ones, and no word takes one back.
        if {text.partition("=")[0] for text in old} <= {text.partition("=")[0] for text in new}:
            way = f", or, with the same split, by navit-model {_again(asked)} {out}/fit.toml train.out=OTHER {' '.join(new)}"
    return (
        f"'{out}' was begun with {then}, not {now}; the command that began it goes on with it; begin another run in "
        f"another folder with -o{way}"
    )


def _no_splits(asked: Fit, classes: list[str]) -> None:
    """Refuses a folder of splits, whose images of training would be told from those of testing.

    Raises:
        IndexFileError: says what to give.
    """
    where = asked.sources[0]
    if not os.path.isdir(where) or not are_splits(where, classes):
        return
    first = next((name for name in classes if name.lower().startswith("train")), classes[0])
    other = next(name for name in classes if name != first)
    raise IndexFileError(
        f"'{where}' holds splits, {', '.join(classes)}, and no classes; fit {os.path.join(where, first)}, and score "
        f"afterwards: navit-loader index {os.path.join(where, other)} -o {other}.arrow --classes {asked.out}/all.arrow, then "
        f"navit-model eval {asked.out} {other}.arrow"
    )


def _classes(index: Index) -> str:
    """The first classes, each with its images."""
    labels = np.concatenate(index.columns()["labels"])
    counts = np.bincount(labels[labels >= 0], minlength=len(index.classes))
    more = f", and {len(index.classes) - SHOWN:,} more" if len(index.classes) > SHOWN else ""
    listed = (f"{name} ({count:,})" for name, count in zip(index.classes[:SHOWN], counts, strict=False))
    return f"classes with their images: {', '.join(listed)}{more}"


def _is_index(sources: Sequence[str]) -> bool:
    return len(sources) == 1 and sources[0].endswith(".arrow") and os.path.isfile(sources[0])


def _split(asked: Fit, index: Index, train_path: Path, held_path: Path) -> str:
    """Writes both parts; what is said of them."""
    labels = np.concatenate(index.columns()["labels"]).reshape(-1, index.label_width)
    labelled = labels[:, 0] != -1
    many = int(labelled.sum())
    where = asked.sources[0]
    # The images' folder is a class where their table was meant.
    tables = tables_in(where) if os.path.isdir(where) else ""
    beside = f"; or, if their labels stand in {tables}, give that" if tables else ""
    if not many:
        raise IndexFileError(
            f"no image of '{where}' has a label; put each class into a folder of its own, or give --label-column or "
            f"--target-column{beside}"
        )
    if many < FEWEST:
        raise IndexFileError(
            f"'{where}' has {counted(many, 'labelled image')}; fit needs {FEWEST} at least, and hundreds to be of use"
        )
    present = np.unique(labels[labels >= 0])
    if len(present) < 2:
        only = f"'{index.classes[present[0]]}'" if len(present) else "none"
        if index.targets is not None:
            raise IndexFileError(
                f"all images of '{where}' have the number {only}; give others, or another --target-column"
            )
        raise IndexFileError(
            f"all images of '{where}' are of one class, {only}; give two at least, a folder for each, in one folder{beside}"
        )
    say("looking for equal and nearly equal pictures")
    twins = find_twins(index)
    usable = labelled & twins.decoded
    if bad := np.flatnonzero(~twins.decoded).tolist():
        say(f"  left out: {counted(len(bad), 'image')} that cannot be decoded, such as {index.uri(bad[0])}")
    if many < index.num_rows:
        say(f"  left out: {counted(index.num_rows - many, 'image')} without a label")
    if not usable.any():
        raise IndexFileError(f"no image of '{where}' can be decoded; navit-loader lint says why of each")
    double = int((twins.groups != np.arange(len(twins.groups)))[usable].sum())
    held = split_groups(index, asked.held_out, 0, twins.groups, usable)
    first = twins.groups
    odd = np.flatnonzero(usable & usable[first] & (labels != labels[first]).any(1))
    if len(odd):
        say(f"  {counted(len(odd), 'picture')} with a twin of another label, such as {index.uri(int(odd[0]))} and "
            f"{index.uri(int(first[odd[0]]))}")  # fmt: skip
    for path, keep in ((train_path, usable & ~held), (held_path, held)):
        write_subset(index, keep, path)
    kind = "class" if index.targets is None else "range of the numbers"
    said = f"{int(held.sum()):,} of {int(usable.sum()):,} images, a share of each {kind}"
    return said + (f"; {counted(double, 'twin')} on the side of the picture" if double else "")


def _choices(asked: Fit, changed: dict[str, Any], index: Index, out: Path) -> list[Choice]:
    train_path, held_path = out / "train.arrow", out / "heldout.arrow"
    model = load(asked.weights, dict(changed.get("model", {}))).config if asked.weights else None
    why_held = _split(asked, index, train_path, held_path)
    say(f"held out: {why_held}")
    gpu = torch.cuda.is_available() and changed.get("train", {}).get("device") != "cpu"
    part = open_index(train_path)
    found = suggest(
        part,
        tokens=asked.tokens,
        patch_size=model.patch_size if model else 0,
        prefix_tokens=model.prefix_tokens if model else 0,
        max_grid=model.max_grid if model and model.positions in TABLES else 0,
        memory_mb=torch.cuda.get_device_properties(0).total_memory >> 20 if gpu else 0,
        drop=DROPPED if model else 0.0,
    )
    keys = {choice.key: choice for choice in found}
    prefix = model.prefix_tokens if model else 0
    labels = np.concatenate(part.columns()["labels"]).reshape(-1, part.label_width)
    counts = np.bincount(labels[labels >= 0], minlength=1)
    most, fewest = counts.max(), counts[counts > 0].min(initial=counts.max())
    if part.targets is None and most >= UNEVEN * fewest:
        say(
            f"the largest class has {most / fewest:.0f} times the images of the smallest; train.class_weights=balanced lets "
            "all count alike"
        )
    given = Given(
        images=part.num_rows,
        held_out=open_index(held_path).num_rows,
        step_images=_step_images(found, changed, part),
        tokens=keys["plan.max_tokens"].value - prefix,
        steps=int(changed.get("train", {}).get("steps", 0)),
        pretrained=model is not None,
        sigmoid=bool(((labels >= 0).sum(1) != 1).any()),
        numbers=part.targets is not None,
        precision=half_of(torch.cuda.get_device_capability()) if gpu else "fp32",
    )
    found += [Choice("data.eval_index", str(held_path), why_held), *recipe(given)]
    found.append(Choice("train.out", str(out), "log, checkpoints, report.html"))
    if model is None:
        found.append(Choice("model.patch_size", keys["plan.patch_sizes"].value[0], "that of the plan"))
        found.append(Choice("model.max_grid", keys["plan.max_grid"].value, "that of the plan"))
    return found + [Choice(key, value, "as asked for") for key, value in _flat(changed)]


def _step_images(found: list[Choice], changed: dict[str, Any], index: Index) -> float:
    """Images of a step, about, with what was asked for."""
    from navit_loader.render.engine import Engine
    from navit_loader.summary import summarise

    table = nested([*found, *(Choice(key, value, "") for key, value in _flat(changed))])
    config = LoaderConfig.from_dict(table)
    with Engine(replace(config, plan=replace(config.plan, passes=1)), index) as engine:
        return float(summarise(engine, 0)["images_per_sequence"]) * config.data.batch_size


def _flat(table: dict[str, Any], before: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in table.items():
        found += _flat(value, f"{before}{key}.") if isinstance(value, dict) else [(before + key, value)]
    return found


def _again(asked: Fit) -> str:
    return f"finetune {asked.weights}" if asked.weights else "train"


def _head(asked: Fit, path: Path) -> str:
    first = f"Written by navit-model fit for {', '.join(asked.sources)}. The same run again, elsewhere:"
    return f"{first}\n  navit-model {_again(asked)} {path} train.out=PATH"
