"""One small set of axes as SVG text, in the style of the pages that show them.

In: what is drawn on `Chart.axes`, by matplotlib. Out: `Chart.svg`. Apart from the pages, which share it.
"""

from __future__ import annotations

import io

from navit_loader.page import GREY, text, themed


class Chart:
    """One small set of axes in the page's style; `svg` holds it after the `with` block.

    Args:
        x, y: what they are called.
        height: in inches; the width is 6.4.
        below: what a second, low set of axes beneath the first counts, `Chart.below`; empty has none.
    """

    def __init__(self, x: str, y: str, *, height: float = 3.3, below: str = "") -> None:
        # Here, so that training does not pay for the import before it starts.
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure

        self.svg, self._what = "", " against ".join(filter(None, (y, x)))
        self._figure = Figure(figsize=(6.4, height), layout="constrained")
        self._canvas = FigureCanvasSVG(self._figure)
        if below:
            self.axes, self.below = self._figure.subplots(2, sharex=True, height_ratios=(3, 1))
            self.below.set_ylabel(below, color=GREY, fontsize=11)
        else:
            self.axes = self.below = self._figure.add_subplot()
        self.below.set_xlabel(x, color=GREY, fontsize=11)
        self.axes.set_ylabel(y, color=GREY, fontsize=11)
        for axes in {self.axes, self.below}:
            axes.tick_params(colors=GREY, length=0, labelsize=11)
            axes.grid(axis="y", color=GREY, alpha=0.25, linewidth=0.8)
            for side in axes.spines.values():
                side.set_visible(False)

    def legend(self) -> None:
        """Says which line is which."""
        self.axes.legend(frameon=False, labelcolor=GREY, fontsize=10)

    def __enter__(self) -> Chart:
        return self

    def __exit__(self, *_: object) -> None:
        import matplotlib

        file = io.StringIO()
        # Text stays text: searchable, and in the reader's own font.
        with matplotlib.rc_context({"svg.fonttype": "none", "font.family": "sans-serif", "svg.hashsalt": "navit"}):
            self._figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
        drawn = file.getvalue()
        drawn = drawn[drawn.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{text(self._what)}"', 1)
        self.svg = themed(drawn)
