"""A data set that a tiny model learns in seconds, and a run on it.

In: a folder. Out: an index over 90 small images of three classes, bright above, on the left, or both; and the table of a
run's configuration.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from navit_loader import build_index


def write_index(root: Path, kind: str = "png") -> str:
    """Writes the images, files of one kind, and returns the path of their index."""
    rng = np.random.default_rng(0)
    for i in range(90):
        h, w = (int(v) for v in rng.integers(10, 30, 2))
        pixels = rng.integers(0, 60, (h, w, 3))
        if i % 3 != 1:
            pixels[: h // 2] += 150
        if i % 3 != 0:
            pixels[:, : w // 2] += 45
        folder = root / "images" / f"class{i % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.{kind}")
    build_index(root / "images", root / "shapes.arrow")
    return str(root / "shapes.arrow")


def table(index: str, out: Path, batch_size: int = 2, **train: Any) -> dict[str, Any]:
    """A run of a few seconds; `train` changes keys of `[train]`."""
    return {
        "data": {"index": index, "batch_size": batch_size},
        "plan": {
            "sequence_length": 64,
            "max_images": 16,
            "max_tokens": 32,
            "patch_sizes": [4],
            "resolution": {"kind": "uniform", "low": 8, "high": 20},
            "drop": {"kind": "constant", "rate": 0.4},
        },
        "render": {"threads": 1},
        "model": {"width": 16, "depth": 1, "heads": 2, "patch_size": 4, "max_grid": 16},
        "train": {
            "out": str(out),
            "steps": 12,
            "warmup": 2,
            "learning_rate": 1e-2,
            "head_weight_decay": 0.1,
            "log_every": 1,
            "checkpoint_every": 5,
            "threads": 1,
            "device": "cpu",
            **train,
        },
    }


def write_toml(table: dict[str, Any], path: Path) -> Path:
    """A configuration as a file; returns its path."""

    def value(v: Any) -> str:
        if isinstance(v, dict):
            return "{" + ", ".join(f"{k} = {value(x)}" for k, x in v.items()) + "}"
        return json.dumps(v)

    lines = [
        f"[{name}]\n" + "\n".join(f"{k} = {value(v)}" for k, v in section.items()) for name, section in table.items()
    ]
    path.write_text("\n".join(lines))
    return path
