"""Some images of an index, looked at: a small picture of each, the mode of its file, or why there is none.

In: an index that is small enough to be looked at as a whole, such as `Index.sample`. Out: what was seen, row by row. Apart from
`lint`, which looks at all and keeps no picture; here whatever cannot be had is one row's trouble.
"""

from __future__ import annotations

import io
import math
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from . import _packer
from .batch import PackedBatch
from .config import LoaderConfig, PlanConfig, RenderConfig, Resolution
from .errors import RenderError, said
from .index import Index
from .picture import pixels_of
from .render.encoded import EncodedBatch
from .render.engine import Engine
from .torn import torn

SIDE = 112
"""Pixels of a picture, as the square root of its area."""

PART, AHEAD = 8, 4
"""Images of a batch, and batches that are under way."""

FILES = 256
"""Whose files are opened."""

REFUSED = PART
"""Images one after the other that storage refuses, after which it is not asked for more."""

TORN = 24
"""Images without pixels of which what is there is drawn."""

Pixels = npt.NDArray[np.uint8]


@dataclass
class Seen:
    """What was seen, by row.

    Attributes:
        pictures: pixels u8 `[H, W, 3]` of those that were decoded.
        why: why there is none of others.
        stopped: why no more were looked at: storage stays away. Empty, where all were.
        torn: of some of those in `why` what can still be drawn, as JPEG.
        modes: of the files that were opened, as Pillow names them.
        profiles: colour profiles other than sRGB of what was decoded: kind, images, one of them.
    """

    pictures: dict[int, Pixels] = field(default_factory=dict)
    why: dict[int, str] = field(default_factory=dict)
    stopped: str = ""
    torn: dict[int, bytes] = field(default_factory=dict)
    modes: dict[int, str] = field(default_factory=dict)
    profiles: list[tuple[str, int, str]] = field(default_factory=list)


def evenly(count: int, most: int) -> npt.NDArray[np.int64]:
    """Rows that lie evenly over an index of `count`: all, or `most` of them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64))


def look(index: Index, progress: Callable[[int], None] | None = None) -> Seen:
    """Decodes all images of a small index, and opens some of their files.

    Args:
        index: of the images.
        progress: called with the images seen so far.
    """
    found = Seen()
    with opened(index, retries=2) as engine:
        for batch in _batches(engine, index, found):
            for row, _, pixels in pixels_of(batch):
                found.pictures[row] = pixels
            if progress is not None:
                progress(len(found.pictures) + len(found.why))
        found.profiles = engine.profiles()
        for failure in engine.failures():
            found.why.setdefault(failure["image"], f"{failure['reason']}: {failure['detail']}")
        if found.stopped:
            return found
        for row in sorted(found.pictures)[:: -(-len(found.pictures) // FILES) or 1]:
            with suppress(RenderError):
                if mode := _mode(file_of(engine, index, row)):
                    found.modes[row] = mode
        for row in sorted(found.why)[:TORN]:
            with suppress(RenderError):
                if drawn := torn(file_of(engine, index, row)):
                    found.torn[row] = drawn
    return found


def opened(index: Index, retries: int) -> Engine:
    """An engine for `file_of`; see `RenderConfig.retries`."""
    plan = PlanConfig(
        sequence_length=SIDE**2,
        max_tokens=SIDE**2,
        max_images=1,
        max_grid=SIDE**2,
        patch_sizes=(1,),
        prefix_tokens=0,
        resolution=Resolution(kind="native"),
    )
    return Engine(LoaderConfig(plan=plan, render=RenderConfig(retries=retries, failure_limit=1.0)), index)


def file_of(engine: Engine, index: Index, row: int) -> bytes:
    """The encoded file of a row; empty where the ledger says why there is none.

    Raises:
        RenderError: a fault that may pass outlasted its retries.
    """
    batch = engine.submit_planned(_planned(index, [row], encoded=True), encoded=True).wait()
    return bytes(batch.file(0, 0)) if isinstance(batch, EncodedBatch) else b""


def _batches(engine: Engine, index: Index, found: Seen) -> Iterator[PackedBatch]:
    """All images. What storage refuses is asked for again one by one, since one image may be to blame; after some without any
    other between them it is storage itself."""
    waiting: deque[tuple[Any, Sequence[int]]] = deque()
    parts = deque[Sequence[int]](range(index.num_rows)[at : at + PART] for at in range(0, index.num_rows, PART))
    refused = 0
    while parts or waiting:
        while parts and len(waiting) < AHEAD:
            part = parts.popleft()
            waiting.append((engine.submit_planned(_planned(index, part)), part))
        pending, part = waiting.popleft()
        try:
            batch = pending.wait()
        except RenderError as e:
            if len(part) > 1:
                parts.extendleft([row] for row in reversed(part))
                continue
            found.why[part[0]] = " ".join(said(e))
            refused += 1
            if refused == REFUSED:
                found.stopped = found.why[part[0]]
                return
        else:
            refused = 0
            yield batch


def _planned(index: Index, rows: Sequence[int], encoded: bool = False) -> _packer.PlannedBatch:
    """A sequence for each row: its image, whole and small."""
    columns = index.columns()
    blank: dict[str, Any] = {"key": 0, "offset": 0, "source": 0, "flip": False, "text_offset": 0}
    blank |= {"teacher_offset": 0, "teacher_grid": (0, 0)}
    sequences = []
    for row in rows:
        height, width = int(columns["height"][0][row]), int(columns["width"][0][row])
        scale = min(1.0, SIDE / math.sqrt(height * width))
        grid = (1, 1) if encoded else (max(1, int(height * scale)), max(1, int(width * scale)))
        # Of a thin image one pixel across is left, which scaling alone would make too long.
        grid = (min(grid[0], SIDE**2 // grid[1]), min(grid[1], SIDE**2))
        image = {"row": row, "crop": (0, 0, height, width), "grid": grid, "kept": grid[0] * grid[1]}
        sequences.append([blank | image])
    return _packer.PlannedBatch(0, 0, 1, len(rows), sequences)


def _mode(data: bytes) -> str:
    """The mode that Pillow names for a file, of which it reads the header alone; empty where it cannot tell."""
    from PIL import Image

    try:
        with warnings.catch_warnings(action="ignore"):
            return str(Image.open(io.BytesIO(data)).mode)
    except Exception:  # whatever a decoder of foreign bytes raises
        return ""
