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
from navit_loader.index.sources import open_sources
from navit_loader.index.sources.columns import USUAL, Columns
from navit_loader.index.sources.folder import FolderSource
from navit_loader.index.sources.misread import splits_of, tables_in
from navit_loader.progress import ProgressLine
from navit_loader.shown import counted, say
from navit_loader.suggest import Choice, nested, suggest, toml

from ..evaluate.classification import other_classes
from ..model.check import TABLES
from ..train.checkpoint import steps
from ..train.choices import longer
from ..train.lock import hold
from ..train.recipe import DROPPED, Given, recipe
from ..train.run import train
from ..train.settings import RunConfig, check_changes, set_key
from ..train.task import Row
from ..world import half_of
from .finetune import load, starting
from .parts import SHOWN, sides, split

SHARE = 0.2
"""Held out where nothing else is said."""

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
        held_out: share of each class that is scored and not learnt; or one's own images to score by, as a source or an index.
            None takes what a folder of splits says, else a fifth.
        image_column, label_column, caption_column, target_column, weight_column: see `build_index`.
    """

    sources: tuple[str, ...]
    out: str
    weights: str = ""
    changes: tuple[str, ...] = ()
    tokens: int = 0
    held_out: float | str | None = None
    image_column: str = ""
    label_column: str = ""
    caption_column: str = ""
    target_column: str = ""
    weight_column: str = ""


def fit(asked: Fit) -> list[Row]:
    """Trains and scores, or goes on where an earlier call was stopped. The report is left to whoever has more scores for it.

    Returns:
        The last scores.

    Raises:
        NavitError: the images, the folder, the weights or a change do not allow it, or differ from those that the folder was
            begun with.
    """
    if isinstance(asked.held_out, float) and not 0 < asked.held_out < 1:
        raise ConfigError(f"--held-out = {asked.held_out} is not allowed; it must be above 0 and below 1, or be images")
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
    asked = _with_sides(asked)
    with hold(out, "fit"):
        index, own = _indexed(asked, out, begun, settled=config.exists())
        if not config.exists():
            made = _choices(asked, changed, index, own, out)
            RunConfig.from_dict(nested(made))
            waiting = config.with_suffix(".new")
            waiting.write_text(toml(made, _head(asked, config)), encoding="utf-8")
            waiting.replace(config)
        say(f"configuration, with the reason for each key: {config}")
        if asked.weights:
            run, model = starting(asked.weights, config)
        else:
            run, model = RunConfig.from_toml(config), None
        return train(run, resume=bool(steps(out)), begin=model, again="give the same command again", page=False)


_OURS = {f"{name}.arrow{end}" for name in ("all", "own") for end in ("", ".building", ".quarantine.jsonl")}
"""What a call that was stopped before `fit.json` leaves."""


def _with_sides(asked: Fit) -> Fit:
    """The same, with what a folder of splits says of what is learnt and what is scored.

    Raises:
        ConfigError: it holds splits, and something else was asked for.
        IndexFileError: its splits hold no classes.
    """
    where = asked.sources[0]
    plain = len(asked.sources) == 1 and os.path.isdir(where) and _is_plain(where, Columns(**_columns(asked)))
    splits = splits_of(where) if plain else None
    if splits is None:
        return asked if asked.held_out is not None else replace(asked, held_out=SHARE)
    named = f"'{where}' holds splits, {', '.join(splits.names)}, and no classes"
    if not splits.learnt:
        tables = tables_in(where)
        if splits.flat:
            answer = f", or give the table of their labels: {tables}" if tables else ", or give a table of their labels"
            raise IndexFileError(f"{named}; put the images of each class into a folder of its own within them{answer}")
        raise IndexFileError(
            f"{named}; none of them is called train; fit the one to learn from, and give --held-out the one to score by"
        )
    learnt, scored = os.path.join(where, splits.learnt), os.path.join(where, splits.scored)
    if asked.held_out is not None:
        raise ConfigError(f"{named}; with --held-out {asked.held_out} give the one to learn from, '{learnt}'")
    if not splits.scored:
        say(f"splits: '{learnt}' is learnt, and a share of it held out; the others hold no folders of classes")
        return replace(asked, sources=(learnt,), held_out=SHARE)
    say(f"splits: '{learnt}' is learnt, '{scored}' is held out")
    for name in sorted(set(splits.names) - {splits.learnt, splits.scored}):
        say(f"  '{name}' is left alone; in the end: navit-loader index {os.path.join(where, name)} -o {name}.arrow --classes "
            f"{asked.out}/all.arrow, then navit-model eval {asked.out} {name}.arrow")  # fmt: skip
    return replace(asked, sources=(learnt,), held_out=scored)


def _is_plain(folder: str, columns: Columns = USUAL) -> bool:
    """Whether a folder is one of images alone, and not what a table or another program says of them."""
    return [type(source) for source in open_sources([folder], columns)] == [FolderSource]


def _columns(asked: Fit) -> dict[str, str]:
    return {kind: getattr(asked, f"{kind}_column") for kind in ("image", "label", "caption", "target", "weight")}


def _indexed(asked: Fit, out: Path, begun: Path, settled: bool) -> tuple[Index, Index | None]:
    """The index of all images, and of one's own held-out ones; where an earlier call `settled` the configuration, only if all
    is as it was."""
    index = _index(asked.sources, out / "all.arrow", _columns(asked))
    if index.targets is None and index.classes:
        say(f"  {_classes(index)}")
    held = _own(asked, index, out / "own.arrow") if isinstance(asked.held_out, str) else None
    question = {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(asked).items() if key != "out"}
    question["sources"] = [_absolute(source) for source in asked.sources]
    if isinstance(asked.held_out, str):
        question["held_out"] = _absolute(asked.held_out)
    # Where they lie is no part of it, what they are is.
    content = [
        v for part in (index, held) if part for v in (part.num_rows, part.plan_fingerprint, part.render_fingerprint)
    ]
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
                f"the images have changed since '{out}' was begun ({sum(then[::3]):,} then, {sum(content[::3]):,} now); choose "
                "another folder with -o"
            )
    else:
        begun.write_text(json.dumps({"asked": question, "content": content}, indent=1), encoding="utf-8")
    return index, held


def _absolute(source: str) -> str:
    return source if "://" in source else os.path.abspath(source)


def _index(sources: Sequence[str], path: Path, called: dict[str, str], classes: list[str] | None = None) -> Index:
    """The index of sources at `path`, or the one that is given in their place; `called` as `_columns` gives it."""
    columns: dict[str, Any] = {f"{kind}_column": name for kind, name in called.items()}
    if len(sources) == 1 and _is_index(sources[0]):
        if named := next((key for key, name in columns.items() if name), ""):
            option = "--" + named.replace("_", "-")
            raise ConfigError(
                f"{option} {columns[named]} is of no use where '{sources[0]}' is an index; index the table with it: "
                f"navit-loader index TABLE -o {sources[0]} {option} {columns[named]}"
            )
        return open_index(sources[0])
    with ProgressLine("indexing") as line:
        done = build_index(
            sources,
            path,
            refresh=path.exists(),
            classes=classes,
            progress=lambda at: line.update(at.share, at.images, f"{at.broken:,} broken"),
            **columns,
        )
    what = ("different number", "") if called["target"] else ("class", "classes")
    say(f"{counted(done.rows, 'image')}, {counted(len(done.classes), *what)}")
    for note in done.notes:
        say(f"  {note}")
    if done.broken:
        say(f"  {done.broken:,} broken, left out; each with its reason in {done.quarantine}")
        with open(done.quarantine, encoding="utf-8") as file:
            for line in map(json.loads, itertools.islice(file, 3)):
                say(f"    {line['uri']}: {line['reason']}")
    return open_index(path)


def _own(asked: Fit, index: Index, path: Path) -> Index:
    """The index of one's own held-out images, whose classes are those of `index`.

    Raises:
        IndexFileError: they cannot be indexed, or have other classes.
    """
    source, called = str(asked.held_out), _columns(asked)
    say(f"held out is '{source}'")
    try:
        # Weights are of what is learnt. Names of columns are of tables alone, whichever side is one.
        called["weight"] = ""
        if _is_index(source) or (os.path.isdir(source) and _is_plain(source)):
            called = dict.fromkeys(called, "")
        own = _index([source], path, called, None if index.targets is not None else index.classes)
    except IndexFileError as e:
        raise IndexFileError(f"--held-out {source}: {e}; classes are those of '{asked.sources[0]}'") from None
    if (own.targets is None) != (index.targets is None):
        kinds = ("classes", "numbers") if index.targets is None else ("numbers", "classes")
        raise IndexFileError(
            f"'{asked.sources[0]}' has {kinds[0]}, and --held-out {source} {kinds[1]}; give both alike"
        )
    if index.targets is None and own.classes != index.classes:
        raise IndexFileError(other_classes(source, own.classes, index.classes, index.path))
    return own


def _other(asked: Fit, out: Path, key: str, old: Any, new: Any) -> str:
    """What was asked for when a folder was begun, and how to go on with that, or with what is asked for now."""
    then, now, way = f"{key} = {old!r}", repr(new), ""
    if key == "changes":
        then, now = (f"the changes {' '.join(each)}" if each else "no changes" for each in (old, new))
        was, wanted = (dict(text.split("=", 1) for text in each) for each in (old, new))
        steps, _ = wanted.pop("train.steps", ""), was.pop("train.steps", "")
        more = longer(out, steps) if steps and was == wanted else ""
        # Its configuration holds the old ones, and no word takes one back.
        if more:
            way = f", or train on from its weights: {more}"
        elif {text.partition("=")[0] for text in old} <= {text.partition("=")[0] for text in new}:
            way = f", or, with the same split, by navit-model {_again(asked)} {out}/fit.toml train.out=OTHER {' '.join(new)}"
    return (
        f"'{out}' was begun with {then}, not {now}; the command that began it goes on with it; begin another run in "
        f"another folder with -o{way}"
    )


def _classes(index: Index) -> str:
    """The first classes, each with its images."""
    labels = np.concatenate(index.columns()["labels"])
    counts = np.bincount(labels[labels >= 0], minlength=len(index.classes))
    more = f", and {len(index.classes) - SHOWN:,} more" if len(index.classes) > SHOWN else ""
    listed = (f"{name} ({count:,})" for name, count in zip(index.classes[:SHOWN], counts, strict=False))
    return f"classes with their images: {', '.join(listed)}{more}"


def _is_index(source: str) -> bool:
    return source.endswith(".arrow") and os.path.isfile(source)


def _choices(asked: Fit, changed: dict[str, Any], index: Index, own: Index | None, out: Path) -> list[Choice]:
    train_path, held_path = out / "train.arrow", out / "heldout.arrow"
    model = load(asked.weights, dict(changed.get("model", {}))).config if asked.weights else None
    where, paths = asked.sources[0], (train_path, held_path)
    if own is None:
        assert isinstance(asked.held_out, float)
        why_held = split(index, where, asked.held_out, *paths)
    else:
        why_held = sides(index, where, own, str(asked.held_out), *paths)
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
    labels = part.labels()
    counts = np.bincount(labels[labels >= 0], minlength=1)
    most, fewest = counts.max(), counts[counts > 0].min(initial=counts.max())
    if part.targets is None and most >= UNEVEN * fewest:
        say(
            f"the largest class has {most / fewest:.0f} times the images of the smallest; train.class_weights=balanced lets "
            "all count alike"
        )
    asked_of = changed.get("train", {})
    given = Given(
        images=part.num_rows,
        held_out=open_index(held_path).num_rows,
        step_images=_step_images(found, changed, part),
        tokens=keys["plan.max_tokens"].value - prefix,
        steps=int(asked_of.get("steps", 0)),
        pretrained=model is not None,
        sigmoid=bool(((labels >= 0).sum(1) != 1).any()),
        numbers=part.targets is not None,
        precision=half_of(torch.cuda.get_device_capability()) if gpu else "fp32",
        # Patience counts from the best step.
        best=asked_of.get("best", True if asked_of.get("patience") else None),
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
    scored = f", scored by {asked.held_out}" if isinstance(asked.held_out, str) else ""
    first = f"Written by navit-model fit for {', '.join(asked.sources)}{scored}. The same run again, elsewhere:"
    return f"{first}\n  navit-model {_again(asked)} {path} train.out=PATH"
