"""Sizes for a data set: what `[plan]` and `data.batch_size` could be, proposed from the index and the machine's memory.

In: an index, and what is fixed already (tokens of an image, a model's patch size, memory). Out: keys with a reason each, and as
TOML. Apart from `plan/config.py`, which says what is allowed, since here it is what is advisable; a distribution over the
index's columns chooses, and a planned epoch shows what it comes to.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .config import LoaderConfig
from .errors import ConfigError
from .index import Index, open_index
from .plan.config import MAX_LENGTH, passes_for
from .render.engine import Engine
from .schema import toml_key, toml_value
from .summary import summarise

TOKENS = 196
"""Tokens of an image where nothing else is asked for: what 224 × 224 pixels are in patches of 16."""

TOKEN_BYTES = 1 << 20
"""Memory that a step takes for a token, activations and gradients of a ViT-B in float32: smaller models take less."""

PADDING = 0.005
"""Share of slots within sequences that may stay empty; a longer sequence is taken where more would."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One key, and why it is what it is.

    Attributes:
        key: `section.key`, as in `plan.max_tokens`.
        value: as TOML has it.
        why: in a few words.
    """

    key: str
    value: Any
    why: str


def suggest(
    index: str | os.PathLike[str] | Index,
    *,
    tokens: int = 0,
    patch_size: int = 0,
    prefix_tokens: int = 0,
    max_grid: int = 0,
    memory_mb: int = 0,
    drop: float = 0.0,
) -> list[Choice]:
    """Proposes sizes.

    Args:
        index: of the images to be trained on.
        tokens: tokens of one image at most; 0 chooses.
        patch_size: P of a model that is there already; 0 chooses.
        prefix_tokens: learned tokens of each image that the model has.
        max_grid: patches per side that it takes at most; 0 chooses.
        memory_mb: of the device that trains; 0 takes what is free on this machine.
        drop: share of each image's tokens that a step leaves out.

    Raises:
        ConfigError: `tokens` that no plan allows.
        IndexFileError: the index cannot be opened, or is damaged.
    """
    if not 0 <= tokens <= 8192:
        raise ConfigError(f"--tokens = {tokens} is not allowed; it must be between 1 and 8192")
    opened = index if isinstance(index, Index) else open_index(index)
    pairs = list(opened.sides())
    width = np.concatenate([w for w, _ in pairs]).astype(np.float64)
    height = np.concatenate([h for _, h in pairs]).astype(np.float64)
    small, usual, large = (int(v) for v in np.percentile(np.sqrt(width * height), (5, 50, 95)))
    longest = float(np.percentile(np.maximum(width / height, height / width), 99))
    found = [Choice("data.index", os.path.abspath(opened.path), f"{opened.num_rows:,} images")]

    p = patch_size or next((p for p in (16, 8, 4) if usual >= 6 * p), 2)
    why = "the weights' own" if patch_size else f"half of the images have sides above {usual} pixels"
    found.append(Choice("plan.patch_sizes", [p], why))
    shown = tokens or min(TOKENS, max(16, math.ceil(large / p) ** 2))
    tokens_why = "as asked for" if tokens else f"sides are {small} to {large} pixels (5th to 95th percentile)"
    found.append(Choice("plan.max_tokens", shown + prefix_tokens, tokens_why))
    if prefix_tokens:
        found.append(Choice("plan.prefix_tokens", prefix_tokens, "the weights' own"))
    high = max(p, math.isqrt(shown) * p)
    scaled = small < high
    found.append(
        Choice("plan.resolution.kind", "uniform", "each size up to the largest is learnt, so each can be used")
    )
    low = max(p, min(high, high // 2))
    found.append(Choice("plan.resolution.low", low, "half of the largest side: a quarter of the tokens"))
    found.append(Choice("plan.resolution.high", high, f"the square of {shown} patches of {p} pixels"))
    if scaled and usual < high:
        found.append(Choice("plan.resolution.upscale", True, f"half of the images are smaller than {high} pixels"))
    if drop:
        share = f"{drop:.0%} of each image's patches are left out of a step, and as much of its time"
        found.append(Choice("plan.drop.kind", "constant", share))
        found.append(Choice("plan.drop.rate", drop, "others each time; all are there when it is scored (PatchDropout)"))
    # A long image has more patches on one side than a square one of as many tokens.
    grid = min(shown, max(8, 8 * math.ceil(math.sqrt(shown * longest) / 8)))
    grid = min(grid, max_grid) if max_grid else grid
    found.append(Choice("plan.max_grid", grid, f"99 of 100 images are at most {longest:.1f} times as long as wide"))
    return [*found, *_of_plan(opened, found, shown + prefix_tokens, memory_mb)]


def _of_plan(index: Index, found: list[Choice], cap: int, memory_mb: int) -> Iterator[Choice]:
    """Lengths and batch, of which a planned epoch shows what they come to."""
    best: tuple[float, int, dict[str, Any]] | None = None
    for length in (2**n for n in range(8, 21)):
        if length < min(4 * cap, MAX_LENGTH):
            continue
        trial = nested([*found, Choice("plan.sequence_length", length, ""), Choice("plan.max_images", length, "")])
        with Engine(LoaderConfig.from_dict(trial), index) as engine:
            layout = engine.layout(0)
            layout.counts(0, layout.num_blocks)
            summary = summarise(engine, 0)
            batch = layout.batch(0, min(256, summary["sequences"]))
            summary["most"] = max(len(images) for images in batch.sequences)
        if best is None or summary["padding_inside"] < best[0]:
            best = summary["padding_inside"], length, summary
        # Longer sequences of a small set would leave too few for a batch.
        if best[0] <= PADDING or summary["sequences"] < 64 or length >= 32768:
            break
    assert best is not None
    padding, length, summary = best
    yield Choice("plan.sequence_length", length, f"leaves {padding:.2%} of the slots empty within sequences")
    room = min(length, 8 * math.ceil(1.25 * summary["most"] / 8))
    yield Choice(
        "plan.max_images", room, f"a sequence holds up to {summary['most']} images, and a quarter more in reserve"
    )

    each = summary["images_per_sequence"]
    free = memory_mb or memory()
    fits = max(1, int(free * 2**20 / 2 / (length * TOKEN_BYTES)))
    wanted = max(1, round(min(256, max(16, index.num_rows / 20)) / each))
    size = min(fits, wanted)
    why = f"some {size * each:.0f} images a step"
    if fits < wanted:
        why += f"; more would take more than half of {free:,} MiB"
    yield Choice("data.batch_size", size, why)
    passes = passes_for(summary["sequences"], size) if index.num_rows <= 65536 else 1
    if passes > 1:
        yield Choice("plan.passes", passes, "the end of an epoch is filled up, so a small set's is several passes")


def memory() -> int:
    """MiB that are free on this machine, within the limit of its container."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) << 10
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        if limit != "max":
            free = min(free, int(limit) - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    except (OSError, ValueError, KeyError):
        pass
    return max(256, free >> 20)


def nested(choices: list[Choice]) -> dict[str, Any]:
    """The keys as nested tables, as a TOML file would give them."""
    table: dict[str, Any] = {}
    for choice in choices:
        *path, key = choice.key.split(".")
        inner = table
        for part in path:
            inner = inner.setdefault(part, {})
        inner[key] = choice.value
    return table


def toml(choices: list[Choice], head: str) -> str:
    """The keys as a TOML file, each with its reason as a comment.

    Args:
        choices: the last of a key counts.
        head: the comment that the file begins with.
    """
    keys = {choice.key: choice for choice in choices}
    sections: dict[str, list[Choice]] = {}
    for choice in keys.values():
        sections.setdefault(choice.key.rpartition(".")[0], []).append(choice)
    lines = [f"# {line}".rstrip() for line in head.splitlines()]
    for name in sorted(sections, key=lambda name: (name.split(".")[0], name.count("."))):
        lines += ["", f"[{name}]"]
        for choice in sections[name]:
            said = f"{toml_key(choice.key.rpartition('.')[2])} = {toml_value(choice.value)}"
            lines.append(f"{said:<30}  # {' '.join(choice.why.split())}" if choice.why else said)
    return "\n".join(lines) + "\n"
