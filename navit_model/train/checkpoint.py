"""Checkpoints: everything a run needs to go on bit for bit, or a model needs to be used.

In: module, average, optimiser, loader state and counters. Out: `OUT/checkpoints/step-00000500/` with safetensors files,
`state.json` and `SHA256SUMS`; no pickle anywhere. A checkpoint appears by one rename, after everything in it has reached the
disk: killed at any moment or with the disk full, the previous one stays whole. A bit that flips later is seen by the hashes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from navit_loader.errors import ConfigError, ModelError

from ..model.navit import NaViT
from ..weights import tensors
from ..weights.saved import check_fit
from .optim import Average
from .optim import moments as moments_of
from .settings import RunConfig
from .shard import copy, like, whole
from .tasks import task_of

VERSION = 2
BEFORE = ".before"
"""Behind the name of a step's folder while its successor takes its place."""

SUMS = "SHA256SUMS"
"""Lines as `sha256sum -c` reads them. Checkpoints from before there were any have none."""

log = logging.getLogger("navit_model")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One saved step.

    Attributes:
        path: its folder.
        step: optimiser steps done.
        state: the rest of `state.json`: config, classes, loader state, counters.
    """

    path: Path
    step: int
    state: dict[str, Any]

    @property
    def config(self) -> RunConfig:
        """The configuration of the run that saved it."""
        return RunConfig.from_dict(self.state["config"])

    @property
    def classes(self) -> list[str]:
        """Names of the classes, in the order of the logits."""
        return list(self.state["classes"])

    def model(self, *, average: bool = True) -> NaViT:
        """The image model within `module`."""
        return task_of(self.config).image_model(self.module(average=average))

    def module(self, *, average: bool = True) -> nn.Module:
        """What was trained, in evaluation mode on the CPU.

        Args:
            average: take the moving average where one was kept.

        Raises:
            ModelError: the weights cannot be read or do not fit the saved configuration.
        """
        module = task_of(self.config).build(self.config)
        name = "average" if average and tensors.exists(self.path, "average") else "model"
        _fill(module, self.read(name), self.path)
        return module.eval()

    def read(self, name: str) -> dict[str, Tensor]:
        """Tensors by name: `model`, `average` or `optimizer`; see `navit_model.weights.tensors`."""
        return tensors.read(self.path, name)

    def restore(self, module: nn.Module, average: Average | None, optimizer: torch.optim.Optimizer) -> None:
        """Puts weights, average and optimiser back, in place; they may be spread over any number of ranks.

        Raises:
            ModelError: a file is damaged, or what it holds does not fit.
        """
        _fill(module, self.read("model"), self.path)
        if average is not None:
            if not tensors.exists(self.path, "average"):
                raise ModelError(f"'{self.path}' was saved without an average; set train.ema = 0, or start another run")
            saved = self.read("average")
            check_fit(average.weights, saved, f"the average of '{self.path}'")
            for key, value in average.weights.items():
                copy(value, saved[key])
            average.updates = self.state["average_updates"]
        moments = self.read("optimizer")
        parameters = {n: p for n, p in module.named_parameters() if p.requires_grad}
        # Where it was not noted, what has no moments is taken for what had none.
        noted = self.state.get("unmoved", parameters.keys() - _owners(moments))
        kept = moments_of(optimizer)
        wanted = {
            f"{name}/{key}": torch.zeros(()) if key == "step" else parameter
            for name, parameter in parameters.items()
            if name not in noted
            for key in kept[parameter]
        }
        check_fit(wanted, moments, f"the optimiser of '{self.path}'")
        for place, value in moments.items():
            name, _, key = place.rpartition("/")
            parameter = parameters[name]
            # The moments live like their parameter; the count of steps is a plain scalar.
            moved = value.to(parameter.device) if key == "step" else like(parameter, value)
            optimizer.state[parameter][key] = moved


def _owners(moments: dict[str, Tensor]) -> set[str]:
    """Names of the parameters that have moments."""
    return {place.rpartition("/")[0] for place in moments}


def _fill(module: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    wanted = module.state_dict()
    check_fit(wanted, weights, f"'{path}'")
    for name, value in wanted.items():
        copy(value, weights[name])


def find(path: str | Path, *, moments: bool = True, best: bool = False) -> Checkpoint | None:
    """The checkpoint at `path`: a checkpoint's folder, or the newest whole one of a run's folder. None where there is none.

    A damaged one is named in a warning where another takes its place.

    Args:
        path: where to look.
        moments: whether the optimiser's are needed too; without them they are not read.
        best: rather the best of a run that keeps it (`train.best`) than the newest.

    Raises:
        ModelError: what is there was written by another version or is damaged.
    """
    path = Path(path)
    if (path / "state.json").exists() or (path / SUMS).exists():
        return _open(path, moments)
    damage: ModelError | None = None
    for folder in reversed([*steps(path), *(bests(path) if best else ())]):
        try:
            found = _open(folder, moments)
        except ModelError as e:
            damage = damage or e
            continue
        if damage is not None:
            log.warning("%s; step %d is whole and taken in its place", damage, found.step)
        return found
    if damage is not None:
        raise damage
    return None


def steps(out: Path) -> list[Path]:
    """The folders of a run's checkpoints, in the order of their steps; of one that was being saved once more, the one before
    where its successor is not there."""
    there = sorted((out / "checkpoints").glob("step-*"), reverse=True)
    found = {name: f for f in there if (name := f.name[5:].removesuffix(BEFORE)).isdigit()}
    return [found[name] for name in sorted(found)]


def bests(out: Path) -> list[Path]:
    """The folder of a run's best checkpoint; two, the newer last, where a run was killed while one took the other's place."""
    return sorted(f for f in (out / "checkpoints").glob("best-*") if f.name[5:].isdigit())


def best_of(out: Path) -> Checkpoint | None:
    """The best checkpoint of a run, without its moments. None where there is none, or a damaged one, which a warning names."""
    for folder in reversed(bests(out)):
        try:
            return _open(folder, moments=False)
        except ModelError as e:
            log.warning("%s; the next evaluation takes the place of what was best", e)
    return None


def _open(path: Path, moments: bool) -> Checkpoint:
    sums = _sums(path)
    for file in sorted(path.iterdir() if sums is None else map(path.joinpath, sums)):
        if moments or not file.name.startswith("optimizer"):
            _check(file, None if sums is None else sums[file.name])
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        version = state.get("version")
    except (OSError, ValueError, AttributeError, RecursionError) as e:
        raise ModelError(f"'{path / 'state.json'}' cannot be read ({e}); go back to an earlier checkpoint") from None
    if version != VERSION:
        raise ModelError(f"'{path}' is a checkpoint of version {version}; this navit reads {VERSION}")
    if sums is None and state.get("sums"):
        raise ModelError(f"'{path / SUMS}' is missing; go back to an earlier checkpoint")
    for key, kind in STATE.items():
        if not isinstance(state.get(key), kind):
            raise ModelError(
                f"'{path / 'state.json'}' has no '{key}' as it should be; go back to an earlier checkpoint"
            )
    return Checkpoint(path, state["step"], state)


STATE: dict[str, type | tuple[type, ...]] = {
    "step": int,
    "config": dict,
    "classes": list,
    "loader": dict,
    "images": int,
    "tokens": int,
    "flops": (int, float),
    "average_updates": int,
}
"""What `state.json` holds beside its version."""


def _sums(path: Path) -> dict[str, str] | None:
    """The hashes of a checkpoint's files by name; None where it was saved without."""
    try:
        lines = (path / SUMS).read_text(encoding="ascii").splitlines()
        found = {name: digest for digest, name in (line.split("  ") for line in lines)}
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as e:
        raise ModelError(f"'{path / SUMS}' cannot be read ({e}); go back to an earlier checkpoint") from None
    if any("/" in name for name in found) or not {"state.json", "model.safetensors"} <= _whole_names(found):
        raise ModelError(f"'{path / SUMS}' is damaged; go back to an earlier checkpoint")
    return found


def _check(file: Path, digest: str | None) -> None:
    """Raises where a file is damaged, by its hash; without one, as far as its length tells."""
    try:
        if digest is None:
            if file.suffix == ".safetensors":
                with safe_open(file, "pt"):
                    pass
        elif _digest(file) != digest:
            raise ModelError(
                f"'{file}' is damaged: its hash is not the one in {SUMS}; go back to an earlier checkpoint"
            )
    except (OSError, SafetensorError) as e:
        raise ModelError(f"'{file}' cannot be read ({e}); go back to an earlier checkpoint") from None


def _whole_names(names: dict[str, str]) -> set[str]:
    """Names without the numbers of parts."""
    return {name.partition("-")[0] + ".safetensors" if "-" in name else name for name in names}


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def open_checkpoint(path: str | Path, *, last: bool = False) -> Checkpoint:
    """As `find`, for a model that is used: the best of a run that keeps it, or with `last` the newest all the same. The
    optimiser's moments are not looked at, and a missing checkpoint is an error.

    Raises:
        ModelError: there is no checkpoint at `path`.
    """
    found = find(path, moments=False, best=not last)
    if found is None:
        raise ModelError(f"no checkpoint at '{path}'; give a run's folder or one of its checkpoints/step-* folders")
    return found


def open_image_model(path: str) -> tuple[NaViT, list[str]]:
    """An `OpenImageModel` (`task.py`): what tasks open other runs with.

    Raises:
        ModelError: there is no checkpoint at `path`, or it is damaged.
    """
    saved = open_checkpoint(path)
    return saved.model(), saved.classes


Files = dict[str, dict[str, Tensor]]
"""Tensors of a checkpoint: by file, then by name."""


def gather(module: nn.Module, average: Average | None, optimizer: torch.optim.Optimizer, keep: bool) -> Files:
    """The tensors of a checkpoint, whole and on the CPU. Every rank calls it.

    Args:
        module: the module, not wrapped.
        average: its moving average, or None.
        optimizer: its optimiser.
        keep: whether this rank wants them; others only give their part.
    """
    names = {id(p): n for n, p in module.named_parameters()}
    moments = {
        f"{names[id(parameter)]}/{key}": value
        for parameter, values in optimizer.state.items()
        for key, value in values.items()
    }
    files = {"model": module.state_dict(), "optimizer": moments}
    if average is not None:
        files["average"] = average.weights
    found: Files = {}
    for file, held in files.items():
        for name, value in held.items():
            # One at a time: no device ever holds more than one whole tensor beside its own parts.
            complete = whole(value.detach())
            if keep:
                found.setdefault(file, {})[name] = complete.cpu()
    return found


def save(out: Path, step: int, files: Files, state: dict[str, Any], keep: int) -> Path:
    """Saves one step and removes all but the newest `keep`.

    Args:
        out: the run's folder.
        step: optimiser steps done.
        files: from `gather`.
        state: plain values for `state.json`: config, classes, loader, counters.
        keep: checkpoints to keep.

    Raises:
        ModelError: the disk is full or not writable; earlier checkpoints are untouched.
    """
    folder = out / "checkpoints"
    target = folder / f"step-{step:08d}"
    draft, before = folder / f".writing-{step:08d}", folder / f"{target.name}{BEFORE}"
    # Weights that no gradient has reached, such as those of a frozen tower: that others have no moments is an error.
    unmoved = sorted(files["model"].keys() - _owners(files.get("optimizer", {})))
    state = {**state, "version": VERSION, "step": step, "unmoved": unmoved, "sums": True}
    try:
        for old in folder.glob(".writing-*"):
            # Of a run that was killed while saving.
            shutil.rmtree(old, ignore_errors=True)
        draft.mkdir(parents=True)
        for name, held in files.items():
            tensors.write(draft, name, held)
        (draft / "state.json").write_text(json.dumps(state, indent=1), encoding="utf-8")
        sums = "".join(f"{_digest(file)}  {file.name}\n" for file in sorted(draft.iterdir()))
        (draft / SUMS).write_text(sums, encoding="ascii")
        for file in draft.iterdir():
            _sync(file)
        _sync(draft)
        if target.exists():  # whoever is killed here has that one
            shutil.rmtree(before, ignore_errors=True)
            target.rename(before)
        draft.rename(target)
        _sync(folder)
        shutil.rmtree(before, ignore_errors=True)
    except (OSError, SafetensorError) as e:
        shutil.rmtree(draft, ignore_errors=True)
        raise ModelError(
            f"step {step} could not be saved to '{target}': {e}; earlier checkpoints are whole; "
            "make room and go on from there"
        ) from None
    # What lies behind this step is damaged, or the run would have gone on from there: it takes no good one's place.
    for old in [found for found in steps(out) if found.name <= target.name][:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def keep_best(out: Path, step: int) -> None:
    """Keeps a saved step as the best, in place of the one before. As long as the step's own folder lies there, both are the
    same files on disk.

    Raises:
        ModelError: the disk is full or not writable; the best before is untouched.
    """
    folder = out / "checkpoints"
    target, draft = folder / f"best-{step:08d}", folder / f".writing-best-{step:08d}"
    try:
        draft.mkdir()
        for file in (folder / f"step-{step:08d}").iterdir():
            try:
                os.link(file, draft / file.name)
            except OSError:  # not every file system has links
                shutil.copyfile(file, draft / file.name)
                _sync(draft / file.name)
        _sync(draft)
        shutil.rmtree(target, ignore_errors=True)
        draft.rename(target)
        _sync(folder)
    except OSError as e:
        shutil.rmtree(draft, ignore_errors=True)
        raise ModelError(
            f"step {step} could not be kept as '{target}': {e}; the best before it is whole; make room and go on from there"
        ) from None
    for old in bests(out):
        if old != target:
            shutil.rmtree(old, ignore_errors=True)


def check_room(
    out: Path,
    module: nn.Module,
    average: bool,
    optimizer: torch.optim.Optimizer,
    saves: int,
    keep: int,
    best: bool = False,
) -> None:
    """Whether the checkpoints that a run is going to write have room.

    Args:
        out: the run's folder.
        module: what is trained.
        average: whether a moving average is saved too.
        optimizer: its optimiser.
        saves: how many are still to come, those of evaluations that may be better among them.
        keep: how many are kept; one more lies there while it is written.
        best: whether the best is kept beside them, which shares its files with its step's while that lies there.

    Raises:
        ConfigError: they have not; says how much is missing.
    """
    size = sum(v.numel() * v.element_size() * (2 if average else 1) for v in module.state_dict().values())
    size += sum(len(set(kept) - {"step"}) * p.numel() * p.element_size() for p, kept in moments_of(optimizer).items())
    there = len({folder.name[5:] for folder in (*steps(out), *bests(out))})
    count = max(1, min(keep + 1 + best, there + saves) - there)
    folder = out / "checkpoints"
    free = shutil.disk_usage(folder if folder.is_dir() else out).free
    if saves and free < size * count:
        raise ConfigError(
            f"train.out = '{out}' has room for {free / 1e6:,.1f} MB, but {count} checkpoints of {size / 1e6:,.1f} MB will lie "
            "there together; make room, choose another folder, or lower train.keep"
        )


def _sync(path: Path) -> None:
    """Waits until a file, or a folder's entries, have reached the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
