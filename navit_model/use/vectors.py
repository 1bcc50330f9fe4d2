"""Embeddings of a whole index as a file, made in one go or in several.

In: a model and an index. Out: `.npy` (f32 `[rows, D]`, in the order of the index) or `.arrow` (one row per image: `row`,
`shard`, `name`, `label`, `embedding`). Images that could not be read have NaN there, null in Arrow. The vectors are kept in
a memory-mapped file beside the output until all are there, so memory is bounded and a run that was stopped goes on.

Where others make them (`Spread`), a part of the work is `SAVE_EVERY` of the very batches that one process would make, so that
sums are added up in the same order; each part leaves a file, and what is started again makes those that are missing.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from navit_loader import open_index, pack_images
from navit_loader.config import LoaderConfig
from navit_loader.errors import ConfigError, ModelError
from navit_loader.index import Index
from navit_loader.plan import identity
from navit_loader.spread import Spread

from ..world import World
from .frozen import Counts, features, planned, starts
from .opened import OpenedModel

SAVE_EVERY = 50
"""Batches between two notes of how far the work is."""

Progress = Callable[[int, int], None]


def export(
    opened: OpenedModel,
    index: str,
    output: Path,
    *,
    tokens: int | None = None,
    patch_size: int | None = None,
    progress: Progress | None = None,
    spread: Spread | None = None,
    device: str = "cpu",
) -> int:
    """Writes the embeddings of an index.

    Args:
        opened: the model.
        index: path of the index.
        output: a `.npy` or `.arrow` file; it appears by one rename, when it is whole.
        tokens: budget of one image; None takes the training cap and never scales up.
        patch_size: P; None takes the first of `plan.patch_sizes`.
        progress: called with the images done and all images.
        spread: who makes them, in parts; None is this process.
        device: `auto`, `cpu` or `cuda`: where those compute; this process computes where `opened` lies.

    Returns:
        How many images could not be read.

    Raises:
        ConfigError: another ending than those two.
        IndexFileError: the index cannot be used.
        ModelError: work begun with another model or index lies beside the output, or the disk is full.
    """
    check_ending(output)
    config = planned(opened, tokens, patch_size)
    images = open_index(index)
    total, width = images.num_rows, _width(opened)
    work = output.with_name(output.name + ".part")
    what = {"model": str(opened.path.resolve()), "index": str(Path(index).resolve()), "rows": total, "width": width}
    try:
        note = _begin(work, what)
        parts = [] if spread is None else _made(opened, device, index, config, work, note, spread, progress)
        if parts:
            note["state"] = None
        vectors = np.lib.format.open_memmap(
            work / "vectors.npy", "r+" if note["state"] else "w+", np.float32, (total, width)
        )
        if not note["state"]:
            _take_room(work / "vectors.npy")
            vectors[:] = np.nan
        for part in parts:
            with np.load(part) as made:
                vectors[made["rows"]] = made["vectors"]
        for n, found in enumerate(features(opened, index, config, note["state"]) if spread is None else ()):
            vectors[found.rows] = found.vectors
            note = {**note, "state": found.state, "done": note["done"] + len(found.rows)}
            if n % SAVE_EVERY == SAVE_EVERY - 1:
                vectors.flush()
                _note(work, note)
            if progress is not None:
                progress(note["done"], total)
        vectors.flush()
        _note(work, note)
        failed = int(np.isnan(vectors).any(1).sum())
        if output.suffix == ".arrow":
            _to_arrow(images, vectors, work / "whole")
            del vectors
            (work / "whole").replace(output)
        else:
            del vectors
            (work / "vectors.npy").replace(output)
    except OSError as e:
        raise ModelError(f"'{output}' could not be written: {e}; the work so far is kept in '{work}'") from None
    shutil.rmtree(work)
    return failed


def _made(
    opened: OpenedModel,
    device: str,
    index: str,
    config: LoaderConfig,
    work: Path,
    note: dict[str, Any],
    spread: Spread,
    progress: Progress | None,
) -> list[Path]:
    """The files of all parts, made by `spread`."""
    _note(work, note)
    states, counts = starts(index, config, SAVE_EVERY)
    folder = work / identity.digest(states[0]["plan_id"], states[0]["render_id"])
    folder.mkdir(exist_ok=True)
    do = _Part(opened, device, index, config, folder, counts, SAVE_EVERY)
    done = 0
    for _, images in spread(do, states, kept=True):
        done += images
        if progress is not None:
            progress(done, note["rows"])
    return [do.path(state) for state in states]


@dataclass
class _Part:
    """Makes the vectors of a few batches, from a state on."""

    opened: OpenedModel
    device: str
    index: str
    config: LoaderConfig
    folder: Path
    counts: Counts
    batches: int

    def path(self, state: dict[str, Any]) -> Path:
        return self.folder / f"{state['next_sequence']}.npz"

    def __call__(self, state: dict[str, Any]) -> int:
        path = self.path(state)
        if not path.exists():
            self.opened.module.to(World.alone(self.device).device)
            with closing(features(self.opened, self.index, self.config, state, self.counts)) as every:
                found = list(islice(every, self.batches))
            # Two may be at it, where one was taken for lost.
            draft = path.with_name(f"{path.stem}.{uuid.uuid4().hex}.npz")
            rows, vectors = (np.concatenate([getattr(each, name) for each in found]) for name in ("rows", "vectors"))
            np.savez(draft, rows=rows, vectors=vectors)
            draft.replace(path)
        with np.load(path) as made:
            return len(made["rows"])


def check_ending(output: Path) -> None:
    """Refuses a name that says no format; raises the `ConfigError` of `export`."""
    if output.suffix not in (".npy", ".arrow"):
        raise ConfigError(f"output = '{output}' is not allowed; its name must end in .npy or .arrow")


def _take_room(file: Path) -> None:
    """Takes the disk's blocks of a sparse file: where they are missing, writing into a mapping would end the process."""
    with file.open("r+b") as opened:
        os.posix_fallocate(opened.fileno(), 0, file.stat().st_size)


def _width(opened: OpenedModel) -> int:
    """D, from an image of one patch."""
    config = planned(opened, 1)
    side = config.plan.patch_sizes[0]
    return int(opened.embed(pack_images([np.zeros((side, side, 3), np.uint8)], config)).shape[-1])


def _begin(work: Path, identity: dict[str, Any]) -> dict[str, Any]:
    """What an earlier attempt noted, or the first note."""
    file = work / "note.json"
    if not file.exists():
        work.mkdir(parents=True, exist_ok=True)
        return {**identity, "state": None, "done": 0}
    note: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    for key, value in identity.items():
        if note.get(key) != value:
            raise ModelError(
                f"'{work}' was begun with {key} = {note.get(key)!r}, not {value!r}; remove it to start anew"
            )
    return note


def _note(work: Path, note: dict[str, Any]) -> None:
    draft = work / "note.draft"
    draft.write_text(json.dumps(note), encoding="utf-8")
    draft.replace(work / "note.json")


def _to_arrow(images: Index, vectors: npt.NDArray[np.float32], path: Path) -> None:
    """Writes the rows of the index beside their vectors, record batch by record batch."""
    table = images.table().select(["shard", "name", "label"])
    width = vectors.shape[1]
    embedding = pa.field("embedding", pa.list_(pa.float32(), width))
    schema = pa.schema([pa.field("row", pa.int64()), *table.schema, embedding])
    at = 0
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        for batch in table.to_batches(max_chunksize=16384):
            part = np.ascontiguousarray(vectors[at : at + len(batch)])
            lists = pa.FixedSizeListArray.from_arrays(
                pa.array(part.reshape(-1)), width, mask=pa.array(np.isnan(part).any(1))
            )
            rows = pa.array(np.arange(at, at + len(batch)))
            writer.write_batch(pa.record_batch([rows, *batch.columns, lists], schema=schema))
            at += len(batch)
