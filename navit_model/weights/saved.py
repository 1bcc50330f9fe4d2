"""Weights that come and go: a folder with `model.safetensors` and `config.json`, ours or another library's, or its model.

In: a folder, a name on the Hugging Face hub, or a model object of timm or transformers. Out: a model in evaluation mode on
the CPU. Apart from training's checkpoints (`navit_model.train.checkpoint`), which hold a whole run; a folder made here is for
those who want the model alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from navit_loader.errors import ConfigError, ModelError, said
from navit_loader.schema import parse

from ..config import NaViTConfig
from ..model.navit import NaViT
from .convert import Weights
from .foreign import PIXELS, is_foreign, open_folder
from .from_big_vision import open_npz
from .from_timm import convert as convert_timm
from .from_transformers import convert as convert_transformers
from .tensors import INDEX, read_file

Model = TypeVar("Model", bound=NaViT)
CONFIG, WEIGHTS = "config.json", "model.safetensors"


def fill(model: nn.Module, weights: dict[str, Tensor], source: str) -> None:
    """Copies `weights` into a model that has exactly these names and shapes.

    Args:
        model: the model to fill, in place.
        weights: state dict.
        source: where it comes from, for messages.

    Raises:
        ModelError: names the first weight that is missing, unknown or of another shape.
    """
    check_fit(model.state_dict(), weights, source)
    model.load_state_dict(weights)


def pour(model: nn.Module, parts: Iterable[Weights], source: str, leave: tuple[str, ...] = ()) -> None:
    """As `fill`, from weights that come part by part, so that a second copy of all of them is never held.

    Args:
        model: the model to fill, in place; half of it, where this fails.
        parts: what together is a state dict.
        source: where it comes from, for messages.
        leave: beginnings of names that keep what the model has.

    Raises:
        ModelError: as `fill`.
    """
    wanted = model.state_dict()
    missing = {name for name in wanted if not name.startswith(leave)}
    for part in parts:
        part = {name: value for name, value in part.items() if not name.startswith(leave)}
        check_fit({name: value for name, value in wanted.items() if name in part}, part, source)
        with torch.no_grad():
            for name, value in part.items():
                wanted[name].copy_(value)
        missing -= part.keys()
    check_fit({name: wanted[name] for name in wanted if name in missing}, {}, source)


def check_fit(wanted: dict[str, Tensor], weights: dict[str, Tensor], source: str) -> None:
    """Raises the `ModelError` of `fill`; `wanted` is the state dict of the model to fill."""
    for name in [*wanted, *weights]:
        if name not in weights:
            raise ModelError(f"{source} has no weight '{name}', which the configured model needs")
        if name not in wanted:
            raise ModelError(f"{source} has a weight '{name}', for which the configured model has no place")
        theirs, ours = list(weights[name].shape), list(wanted[name].shape)
        if theirs != ours:
            raise ModelError(f"weight '{name}' of {source} has shape {theirs}, that of the configured model {ours}")


def from_pretrained(
    kind: type[Model],
    path: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
    **changes: Any,
) -> Model:
    """A saved model, in evaluation mode on the CPU.

    Args:
        kind: the class of the model: `NaViT`, or one made of it.
        path: a folder that `save_pretrained` made, ours or that of timm or transformers, or a name on the hub of such a one.
            For theirs the library must be installed. Or an `.npz` of big_vision.
        revision: branch, tag or commit on the hub; this and the next four mean nothing for a folder.
        token: credentials for the hub.
        cache_dir: where downloads are kept.
        force_download: download again.
        local_files_only: use what was downloaded before.
        changes: keys of `NaViTConfig` to change, such as `drop_path=0.1` or `patch_sizes=(8, 16)`; they must leave
            every weight its shape, save that `classes` puts a fresh classifier in place.

    Raises:
        ModelError: there is no such model, a file is damaged, or the weights do not fit.
        ConfigError: a key or value of the configuration that is not allowed.
    """
    folder = Path(path)
    if folder.suffix == ".npz":
        return from_parts(kind, *open_npz(folder), f"'{folder}'", changes)
    if not folder.is_dir():
        try:
            found = snapshot_download(
                str(path),
                revision=revision,
                token=token,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
                allow_patterns=[CONFIG, WEIGHTS, INDEX, PIXELS, "model-*.safetensors"],
            )
        except (HfHubHTTPError, HFValidationError, OSError) as e:
            reason = said(e)[0]
            raise ModelError(f"'{path}' is no folder, and no model on the hub that can be had ({reason})") from None
        folder = Path(found)
    try:
        table = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        if not isinstance(table, dict):
            raise ValueError("it holds no table")
        foreign = is_foreign(table)
        config = NaViTConfig() if foreign else parse(NaViTConfig, table, str(folder / CONFIG))
    except (OSError, ValueError) as e:
        if isinstance(e, ConfigError):
            raise
        if (folder / "checkpoints").is_dir() or (folder / "state.json").exists():
            raise ModelError(
                f"'{folder}' is a run or a checkpoint, which holds more than a model; open it with navit_model.open_model"
            ) from None
        raise ModelError(f"'{folder / CONFIG}' cannot be read ({e}); give a folder of save_pretrained") from None
    if foreign:
        return _foreign(kind, folder, table, changes)
    return from_weights(kind, config, read_file(folder / WEIGHTS), f"'{folder / WEIGHTS}'", changes)


def _foreign(kind: type[Model], folder: Path, table: dict[str, Any], changes: dict[str, Any]) -> Model:
    try:
        return from_parts(
            kind, *open_folder(folder, table), str(table.get("architecture", table.get("model_type"))), changes
        )
    except ModelError as e:
        raise ModelError(str(e) if str(folder) in str(e) else f"'{folder}': {e}") from None


def from_timm(kind: type[Model], model: nn.Module, **changes: Any) -> Model:
    """A model with the outputs of a transformer of timm, at any grid that it takes itself.

    Args:
        kind: the class of the model: `NaViT`, or one made of it.
        model: see `navit_model.weights.from_timm`.
        changes: as for `from_pretrained`.

    Raises:
        ModelError: another class, or an option that NaViT does not have; names it.
    """
    return from_parts(kind, *convert_timm(model), type(model).__name__, changes)


def from_transformers(kind: type[Model], model: nn.Module, **changes: Any) -> Model:
    """A model with the outputs of a vision tower of transformers ≥ 5.

    Args:
        kind: the class of the model: `NaViT`, or one made of it.
        model: see `navit_model.weights.from_transformers`.
        changes: as for `from_pretrained`; `mean` and `std` where the tower was trained with unusual ones.

    Raises:
        ModelError: another class, or an option that NaViT does not have; names it.
    """
    return from_parts(kind, *convert_transformers(model), type(model).__name__, changes)


def from_weights(
    kind: type[Model], config: NaViTConfig, weights: dict[str, Tensor], source: str, changes: dict[str, Any]
) -> Model:
    """A model with these weights, its configuration changed as wanted; `source` names them in messages."""
    return from_parts(kind, config, [weights], source, changes)


def from_parts(
    kind: type[Model], config: NaViTConfig, parts: Iterable[Weights], source: str, changes: dict[str, Any]
) -> Model:
    """The same of weights that come part by part."""
    known = {f.name for f in fields(NaViTConfig)}
    for key in changes.keys() - known:
        raise ConfigError(f"{key} is no key of a model's configuration; allowed: {', '.join(sorted(known))}")
    model = kind(replace(config, **changes))
    fresh = model.config.classes != config.classes
    pour(model, parts, source, ("head.", "distill_head.") if fresh else ())
    return model.eval()


def save(model: NaViT, folder: Path) -> None:
    """Weights and configuration, each by a rename, so that a full disk leaves whole files."""
    weights = {name: value.detach().contiguous() for name, value in model.state_dict().items()}
    try:
        save_file(weights, folder / f".{WEIGHTS}")
        text = json.dumps(asdict(model.config), indent=1)
        (folder / f".{CONFIG}").write_text(text, encoding="utf-8")
        for name in (WEIGHTS, CONFIG):
            (folder / f".{name}").replace(folder / name)
    except (OSError, SafetensorError) as e:
        raise ModelError(f"the model could not be saved to '{folder}': {e}") from None
