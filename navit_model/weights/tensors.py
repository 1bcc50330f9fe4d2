"""Named tensors in a folder: safetensors files, in several parts where there is much.

In: tensors by name. Out: `NAME.safetensors`, or `NAME-00001-of-00003.safetensors` and so on; and those of other libraries'
folders, read one by one. Apart from checkpoints, which say what is saved and when; no file here is ever pickled.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from navit_loader.errors import ModelError

INDEX = "model.safetensors.index.json"
PART_BYTES = 4 * 2**30
"""A part is closed before it grows beyond this; a single tensor is never split."""


def write(folder: Path, name: str, tensors: Mapping[str, Tensor]) -> None:
    """Writes tensors that lie on the CPU.

    Raises:
        OSError: the disk is full or not writable.
        SafetensorError: the same, as seen by safetensors.
    """
    parts: list[dict[str, Tensor]] = [{}]
    size = 0
    for key, value in tensors.items():
        if parts[-1] and size + value.nbytes > PART_BYTES:
            parts.append({})
            size = 0
        parts[-1][key] = value.contiguous()
        size += value.nbytes
    for n, part in enumerate(parts):
        tail = f"-{n + 1:05d}-of-{len(parts):05d}" if len(parts) > 1 else ""
        save_file(part, folder / f"{name}{tail}.safetensors")


def exists(folder: Path, name: str) -> bool:
    """Whether `write` was called with this name."""
    return bool(_files(folder, name))


def read(folder: Path, name: str) -> dict[str, Tensor]:
    """All tensors of `write`.

    Raises:
        ModelError: a file is missing or damaged.
    """
    files = _files(folder, name)
    if not files:
        raise ModelError(f"'{folder / name}.safetensors' is missing; go back to an earlier checkpoint")
    found: dict[str, Tensor] = {}
    for path in files:
        found |= read_file(path)
    return found


def read_file(path: Path) -> dict[str, Tensor]:
    """Tensors of one safetensors file.

    Raises:
        ModelError: the file is missing or damaged.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as e:
        raise ModelError(f"'{path}' cannot be read ({e}); go back to an earlier copy") from None


class Stored(Mapping[str, Tensor]):
    """The tensors of a folder of another library, `model.safetensors` or the shards that an index names, each read when it is
    asked for.
    """

    def __init__(self, folder: Path) -> None:
        """Opens the files.

        Raises:
            ModelError: a file is missing or damaged; or weights are pickled, which are not read.
        """
        single, index = folder / "model.safetensors", folder / INDEX
        if not single.exists() and not index.exists():
            raise ModelError(f"'{folder}' has no model.safetensors and no {INDEX}; pickled weights are not read")
        self.files: dict[str, Any] = {}
        if single.exists():
            opened = _opened(single)
            self.files = dict.fromkeys(opened.keys(), opened)
            return
        try:
            places: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            shards = {name: folder / name for name in sorted(set(places.values()))}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
            raise ModelError(f"'{index}' cannot be read ({e}); copy the folder again") from None
        for shard, path in shards.items():
            if Path(shard).name != shard:
                raise ModelError(f"'{index}' names the shard '{shard}' outside of its folder")
            opened = _opened(path)
            named = [name for name, place in places.items() if place == shard]
            if lost := sorted(set(named) - set(opened.keys())):
                raise ModelError(
                    f"'{path}' has no weight '{lost[0]}', which {INDEX} says it has; copy the folder again"
                )
            self.files |= dict.fromkeys(named, opened)

    def __getitem__(self, name: str) -> Tensor:
        value: Tensor = self.files[name].get_tensor(name)
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, "pt")
    except (OSError, SafetensorError) as e:
        raise ModelError(f"'{path}' cannot be read ({e}); copy the folder again") from None


def _files(folder: Path, name: str) -> list[Path]:
    """The parts of one name, all of them.

    Raises:
        ModelError: a part is missing.
    """
    if (folder / f"{name}.safetensors").exists():
        return [folder / f"{name}.safetensors"]
    parts = sorted(folder.glob(f"{name}-[0-9]*-of-[0-9]*.safetensors"))
    wanted = int(parts[0].stem.rsplit("-", 1)[1]) if parts else 0
    if len(parts) != wanted:
        raise ModelError(f"'{folder}' has {len(parts)} of {wanted} parts of '{name}'; go back to an earlier checkpoint")
    return parts
