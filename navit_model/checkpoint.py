"""Checkpoints: everything a run needs to go on bit for bit, or a model needs to be used.

In: model, average, optimiser, loader state and counters. Out: `OUT/checkpoints/step-00000500/` with safetensors files and
`state.json`; no pickle anywhere. A checkpoint appears by one rename, after everything in it has reached the disk: killed
at any moment or with the disk full, the previous one stays whole.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from navit_loader.errors import ModelError

from .model import NaViT
from .optim import Average
from .saved import fill, read
from .settings import RunConfig
from .tasks import task_of

VERSION = 1


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
        name = "average" if average and (self.path / "average.safetensors").exists() else "model"
        fill(module, self.read(name), f"'{self.path}'")
        return module.eval()

    def read(self, name: str) -> dict[str, Tensor]:
        """Tensors of `name.safetensors`; see `navit_model.saved.read`."""
        return read(self.path / f"{name}.safetensors")

    def restore(self, model: nn.Module, average: Average | None, optimizer: torch.optim.Optimizer) -> None:
        """Puts weights, average, optimiser and random state back, in place.

        Raises:
            ModelError: a file is damaged, or what it holds does not fit.
        """
        fill(model, self.read("model"), f"'{self.path}'")
        if average is not None:
            saved = self.read("average")
            for key, value in average.weights.items():
                value.copy_(saved[key])
            average.updates = self.state["average_updates"]
        moments = self.read("optimizer")
        names = {id(p): n for n, p in model.named_parameters()}
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                prefix = names[id(parameter)] + "/"
                state = {k.removeprefix(prefix): v for k, v in moments.items() if k.startswith(prefix)}
                # `step` stays where torch made it; the moments live beside their parameter.
                optimizer.state[parameter] = {k: v.to(parameter.device) for k, v in state.items()}
        random = self.read("random")
        torch.set_rng_state(random["cpu"])
        if "cuda" in random and torch.cuda.is_available():
            torch.cuda.set_rng_state(random["cuda"])


def find(path: str | Path) -> Checkpoint | None:
    """The checkpoint at `path`: a checkpoint's folder, or the newest of a run's folder. None where there is none.

    Raises:
        ModelError: what is there was written by another version or is damaged.
    """
    path = Path(path)
    if not (path / "state.json").exists():
        steps = sorted((path / "checkpoints").glob("step-*"))
        if not steps:
            return None
        path = steps[-1]
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise ModelError(f"'{path / 'state.json'}' cannot be read ({e}); go back to an earlier checkpoint") from None
    if state.get("version") != VERSION:
        raise ModelError(f"'{path}' is a checkpoint of version {state.get('version')}; this navit reads {VERSION}")
    return Checkpoint(path, state["step"], state)


def open_checkpoint(path: str | Path) -> Checkpoint:
    """As `find`, but a missing checkpoint is an error.

    Raises:
        ModelError: there is no checkpoint at `path`.
    """
    found = find(path)
    if found is None:
        raise ModelError(f"no checkpoint at '{path}'; give a run's folder or one of its checkpoints/step-* folders")
    return found


def save(
    out: Path,
    step: int,
    model: nn.Module,
    average: Average | None,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    keep: int,
) -> Path:
    """Saves one step and removes all but the newest `keep`.

    Args:
        out: the run's folder.
        step: optimiser steps done.
        model: the model, not wrapped.
        average: its moving average, or None.
        optimizer: its optimiser.
        state: plain values for `state.json`: config, classes, loader, counters.
        keep: checkpoints to keep.

    Raises:
        ModelError: the disk is full or not writable; earlier checkpoints are untouched.
    """
    folder = out / "checkpoints"
    target = folder / f"step-{step:08d}"
    draft = folder / f".writing-{step:08d}"
    names = {id(p): n for n, p in model.named_parameters()}
    moments = {
        f"{names[id(parameter)]}/{key}": value
        for parameter, values in optimizer.state.items()
        for key, value in values.items()
    }
    random = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        random["cuda"] = torch.cuda.get_rng_state()
    files = {"model": model.state_dict(), "optimizer": moments, "random": random}
    state = {**state, "version": VERSION, "step": step}
    if average is not None:
        files["average"] = average.weights
        state["average_updates"] = average.updates
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        for name, tensors in files.items():
            save_file({k: v.detach().contiguous() for k, v in tensors.items()}, draft / f"{name}.safetensors")
        (draft / "state.json").write_text(json.dumps(state, indent=1), encoding="utf-8")
        for file in draft.iterdir():
            _sync(file)
        _sync(draft)
        shutil.rmtree(target, ignore_errors=True)
        draft.rename(target)
        _sync(folder)
    except (OSError, SafetensorError) as e:
        shutil.rmtree(draft, ignore_errors=True)
        raise ModelError(f"step {step} could not be saved to '{target}': {e}; earlier checkpoints are whole") from None
    for old in sorted(folder.glob("step-*"))[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def _sync(path: Path) -> None:
    """Waits until a file, or a folder's entries, have reached the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
