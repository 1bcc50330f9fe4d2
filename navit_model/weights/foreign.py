"""Folders that timm or transformers saved: their `config.json` says what the model is, their files hold its weights.

In: such a folder. Out: configuration and weights of a NaViT, each tensor read when its turn comes, so that a second copy of all
of them is never held. The library is imported, to read its own configuration and to lay out an empty model; nothing
is asked of a network, and no code that comes with a folder is run. Apart from `saved`, which knows our own folders.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from navit_loader.errors import ModelError, said

from .convert import Taken
from .from_timm import convert as convert_timm
from .from_transformers import convert as convert_transformers
from .from_transformers import tower_of
from .tensors import Stored

T = TypeVar("T")
PIXELS = "preprocessor_config.json"
FORGOTTEN = ("position_ids", "inv_freq")
"""Ends of names that old files hold and that follow from the configuration."""


def is_foreign(table: Any) -> bool:
    """Whether a `config.json` is one of timm or transformers."""
    return isinstance(table, dict) and ("model_type" in table or "architecture" in table)


def open_folder(folder: Path, table: dict[str, Any]) -> Taken:
    """Configuration and weights of a folder whose `config.json` holds `table`.

    Raises:
        ModelError: the library is missing, does not know the model, or a file is; or what the family's conversion refuses.
    """
    library, of = ("transformers", _transformers) if "model_type" in table else ("timm", _timm)
    return _guarded(library, folder, of)


def _guarded(library: str, folder: Path, of: Callable[[Any, Path, Stored], T]) -> T:
    """What `of` makes of a folder with the library that saved it; its errors are ours."""
    try:
        found = importlib.import_module(library)
    except ImportError:
        raise ModelError(
            f"'{folder}' was saved by {library}, which is not installed; install it to read the folder"
        ) from None
    stored = Stored(folder)
    try:
        return of(found, folder, stored)
    except ModelError:
        raise
    except (AttributeError, ImportError, KeyError, OSError, RuntimeError, TypeError, ValueError) as e:
        raise ModelError(f"{library} cannot make the model of '{folder}' ({said(e)[0]})") from None


def _timm(timm: Any, folder: Path, stored: Stored) -> Taken:
    with torch.device("meta"):
        model = timm.create_model(f"local-dir:{folder}", pretrained=False)
    return convert_timm(model, Laid(model.state_dict(), stored, {name: name for name in stored}))


def _transformers(transformers: Any, folder: Path, stored: Stored) -> Taken:
    taken, weights = convert_transformers(*_laid_out(transformers, folder, stored, lambda model: tower_of(model)[1]))
    if (folder / PIXELS).is_file():
        pixels = json.loads((folder / PIXELS).read_text(encoding="utf-8"))
        mean, std = pixels.get("image_mean", taken.mean), pixels.get("image_std", taken.std)
        taken = replace(taken, mean=tuple(mean), std=tuple(std))
    return taken, weights


def open_model(folder: Path) -> tuple[Any, Mapping[str, Tensor]]:
    """An empty model of transformers, and the weights of a folder under its names.

    Raises:
        ModelError: as `open_folder`.
    """
    return _guarded("transformers", folder, _laid_out)


def _laid_out(
    transformers: Any, folder: Path, stored: Stored, place: Callable[[Any], str] = lambda model: ""
) -> tuple[Any, Mapping[str, Tensor]]:
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    name = (config.architectures or [""])[0]
    # Towers are not among the names of the package, so the class is looked for beside that of its configuration.
    beside = importlib.import_module(type(config).__module__.replace(".configuration_", ".modeling_"))
    kind = getattr(beside, name, None) or getattr(transformers, name, None)
    if kind is None:
        version = transformers.__version__
        raise ModelError(f"'{folder}' holds a model of the class '{name}', which transformers {version} does not have")
    with torch.device("meta"):
        model = kind._from_config(config)
    wanted = model.state_dict()
    names = _names(kind, model, wanted, stored, place(model))
    if names is None:
        # Only transformers knows what it makes of these files: then its whole copy is held beside ours.
        model = kind.from_pretrained(folder, local_files_only=True)
        return model, model.state_dict()
    return model, Laid(wanted, stored, names)


def _names(kind: Any, model: Any, wanted: dict[str, Tensor], stored: Stored, place: str) -> dict[str, str] | None:
    """For each name in the files that of the model, where that begins with `place`, as transformers itself renames them; None
    where some are changed too.
    """
    mapping = importlib.import_module("transformers.conversion_mapping").get_model_conversion_mapping(model)
    loading = importlib.import_module("transformers.core_model_loading")
    renamings = [m for m in mapping if isinstance(m, loading.WeightRenaming)]
    changes = [m for m in mapping if isinstance(m, loading.WeightConverter)]
    ignored = tuple(getattr(kind, "_keys_to_ignore_on_load_unexpected", None) or ())
    found = {}
    for name in stored:
        new, change = loading.rename_source_key(name, renamings, changes, model.base_model_prefix, wanted)
        known = new in wanted or not (new.endswith(FORGOTTEN) or any(re.search(pattern, new) for pattern in ignored))
        if not known or not new.startswith(place):
            continue
        if change is not None:
            return None
        found[name] = new
    return found


class Laid(Mapping[str, Tensor]):
    """Stored weights under the names of a model, each checked against its shape there when it is read."""

    def __init__(self, wanted: dict[str, Tensor], stored: Stored, names: dict[str, str]) -> None:
        """Takes the model's state dict, the files, and for each name in the files that of the model."""
        self.wanted, self.stored = wanted, stored
        self.files = {new: name for name, new in names.items()}

    def __getitem__(self, name: str) -> Tensor:
        value = self.stored[self.files[name]]
        if name in self.wanted and value.shape != self.wanted[name].shape:
            raise ModelError(
                f"weight '{self.files[name]}' has shape {list(value.shape)}, by its config.json it is "
                f"{list(self.wanted[name].shape)}"
            )
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)
