"""What fine-tuning starts from: weights of timm, of transformers or of navit, and a run whose `[model]` is theirs.

In: the name of weights, a TOML file, changes. Out: the run's configuration and a model with the weights. Apart from
training, which sees a configuration and a model and does not care where they come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from navit_loader.errors import ModelError, said

from ..model.check import TABLES
from ..model.navit import NaViT
from ..train.settings import RunConfig, read_changed
from ..weights.saved import from_weights
from .opened import open_model


def starting(weights: str, config: str | Path, changes: Sequence[str] = ()) -> tuple[RunConfig, NaViT]:
    """The run and the model that it starts from.

    Args:
        weights: `timm:NAME`, `timm:NAME@FILE`, `transformers:NAME`, a run's folder, a checkpoint, or a saved model.
        config: path of a TOML file; keys of its `[model]` change the model where the weights allow it.
        changes: `section.key=value` texts.

    Raises:
        ConfigError: the file, a key or a value is not allowed.
        ModelError: the weights cannot be had, or do not allow a change.
    """
    table = read_changed(config, changes)
    model = load(weights, table.get("model", {}))
    # As many classes as the data have; the classifier is made anew where the weights have another number.
    table["model"] = {**asdict(model.config), "classes": 0}
    if "plan" not in table and table.get("data", {}).get("endpoints"):
        return RunConfig.from_dict(table), model  # the daemons' own, which the first batch is checked against
    plan = table.setdefault("plan", {})
    plan.setdefault("patch_sizes", list(model.config.patch_sizes or (model.config.patch_size,)))
    plan.setdefault("prefix_tokens", model.config.prefix_tokens)
    if model.config.positions in TABLES:
        plan.setdefault("max_grid", model.config.max_grid)
    return RunConfig.from_dict(table), model


def load(weights: str, changes: dict[str, Any]) -> NaViT:
    """A model with the weights that a name stands for.

    Args:
        weights: see `starting`.
        changes: keys of `NaViTConfig` that are to differ; they must leave every weight its shape.

    Raises:
        ConfigError: a key or value that is not allowed.
        ModelError: the weights cannot be had, or do not fit.
    """
    kind, colon, name = weights.partition(":")
    if colon and kind == "timm":
        return NaViT.from_timm(_from_timm(name), **changes)
    if colon and kind == "transformers":
        return NaViT.from_transformers(_from_transformers(name), **changes)
    model = open_model(weights, torch.device("cpu")).model
    return from_weights(NaViT, model.config, model.state_dict(), f"'{weights}'", dict(changes))


def _from_timm(name: str) -> nn.Module:
    try:
        import timm
    except ImportError:
        raise ModelError("weights of timm need the package 'timm'; install it") from None
    name, _, file = name.partition("@")
    if file and not Path(file).is_file():
        raise ModelError(f"'{file}' is no file; give a checkpoint of timm's '{name}'")
    try:
        model: nn.Module = timm.create_model(name, pretrained=not file, checkpoint_path=file)
    except Exception as e:  # timm and the hub raise what they like
        raise ModelError(f"timm's '{name}' cannot be had: {_said(e)}") from None
    return model


def _from_transformers(name: str) -> nn.Module:
    try:
        from transformers import AutoModel
    except ImportError:
        raise ModelError("weights of transformers need the package 'transformers'; install it") from None
    try:
        model: nn.Module = AutoModel.from_pretrained(name)
    except Exception as e:  # transformers and the hub raise what they like
        raise ModelError(f"transformers' '{name}' cannot be had: {_said(e)}") from None
    return model


def _said(error: Exception) -> str:
    """What a library said, in one line: its first words, and of a long list the first lines."""
    lines = said(error)
    return " ".join(lines[:3]) + (" …" if len(lines) > 3 else "")
