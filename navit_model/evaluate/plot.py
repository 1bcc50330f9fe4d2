"""Accuracy against tokens, as a picture file.

In: rows of scores, and curves of cascades. Out: SVG, PNG or PDF by the name's ending. Apart from the report, which shows a
whole run and embeds its own drawings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from navit_loader.errors import ModelError


def check_ending(path: Path) -> None:
    """Refuses a file whose ending is no picture's, before anything is drawn.

    Raises:
        ModelError: names those that are.
    """
    from matplotlib.backend_bases import FigureCanvasBase

    known = FigureCanvasBase.get_supported_filetypes()
    if path.suffix[1:].lower() not in known:
        raise ModelError(f"'{path}' cannot be drawn; its name must end in one of .{', .'.join(sorted(known))}")


def accuracy_plot(
    path: Path, scores: Sequence[Mapping[str, Any]], cascades: Mapping[str, Sequence[Mapping[str, Any]]]
) -> None:
    """Draws one line for each patch size, and one for each cascade.

    Args:
        path: the file to write.
        scores: rows of `Score.to_dict`.
        cascades: rows of `Point.to_dict`, by patch size.

    Raises:
        ModelError: the file cannot be written, or its ending is no picture's.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for patch in sorted({int(s["patch_size"]) for s in scores}):
        rows = sorted((s for s in scores if s["patch_size"] == patch), key=lambda s: float(s["mean_tokens"]))
        x, y = [s["mean_tokens"] for s in rows], [100 * s["accuracy"] for s in rows]
        (line,) = axes.plot(x, y, marker="o", label=f"patch {patch}")
        outside = [(a, b) for a, b, s in zip(x, y, rows, strict=True) if s["outside"]]
        if outside:
            axes.plot(*zip(*outside, strict=True), "o", color="white", markeredgecolor=line.get_color(), zorder=3)
        curve = cascades.get(str(patch), ())
        if curve:
            ordered = sorted(curve, key=lambda p: float(p["tokens"]))
            axes.plot(
                [p["tokens"] for p in ordered],
                [100 * p["accuracy"] for p in ordered],
                linestyle="--",
                color=line.get_color(),
                label=f"patch {patch}, cascade",
            )
    axes.set_xlabel("tokens of an image, mean (hollow: outside the sizes seen in training)")
    axes.set_ylabel("accuracy, %")
    axes.grid(alpha=0.25)
    axes.legend()
    try:
        figure.savefig(path)
    except (OSError, ValueError) as e:
        raise ModelError(f"'{path}' cannot be written: {e}") from None
