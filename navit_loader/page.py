"""The one look of every page that navit writes: a plan's, an index's, a run's, a preview.

In: texts, which are escaped here, and pieces of HTML that were made here. Out: one HTML file that needs nothing beside it, is
light or dark as its reader's screen is, and stands on a phone too. Apart from who has something to say.
"""

from __future__ import annotations

import base64
import html
import io
import math
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import ConfigError, reason
from .shown import shown

BLUE, GREY, RED, GREEN = "#2563eb", "#667085", "#dc2626", "#059669"

COLOURS = (BLUE, "#d97706", GREEN, "#db2777", "#7c3aed", "#0891b2", "#65a30d", RED)
"""Of lines and outlines side by side."""

_NAMED = {BLUE: "blue", GREY: "soft", RED: "red", GREEN: "green"}
"""Colours that a dark page has others for, as they are named in `STYLE`."""

BINS = 40

STYLE = """
:root{color-scheme:light dark;--ink:#1b1f24;--soft:#667085;--line:#e3e6ea;--card:#fff;--page:#f6f7f9;
--blue:#2563eb;--red:#dc2626;--green:#059669}
@media(prefers-color-scheme:dark){:root{--ink:#e8eaed;--soft:#9aa3ad;--line:#2b3138;--card:#171b20;--page:#0f1216;
--blue:#6ea0ff;--red:#f87171;--green:#34d399}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
main{max-width:1180px;margin:0 auto;padding:32px 20px 60px}
h1{font-size:26px;line-height:1.25;margin:0 0 4px;overflow-wrap:anywhere}
h2{font-size:17px;line-height:1.35;margin:0 0 10px;overflow-wrap:anywhere}
p{color:var(--soft);margin:0 0 14px;overflow-wrap:anywhere}
section{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:18px 20px;margin:0 0 18px;min-width:0}
section>:last-child{margin-bottom:0}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(140px,1fr));gap:12px;margin:18px 0}
.tile{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:12px 16px}
.tile b{display:block;font-size:23px;line-height:1.3;font-variant-numeric:tabular-nums}
.tile span{color:var(--soft);font-size:13px}
.two{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,420px),1fr));gap:18px;margin-bottom:18px}
.two>section{margin:0}.two>div{min-width:0}section .two{margin-bottom:0}
svg{width:100%;height:auto;display:block}.narrow{max-width:620px}
.scroll{overflow-x:auto}.wide{min-width:720px}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{text-align:right;padding:6px 8px;border-bottom:1px solid var(--line);vertical-align:top;font-weight:400}
thead th{color:var(--soft);vertical-align:bottom}
th:first-child,td:first-child{text-align:left;padding-left:0}th:last-child,td:last-child{padding-right:0}
tbody th{overflow-wrap:anywhere;min-width:7em}
.left td,.left th{text-align:left}.left td{overflow-wrap:anywhere}
td.bar{width:45%;min-width:80px}td.bar i{display:block;height:12px;margin-top:5px;background:var(--blue);border-radius:2px}
.said{margin:0;padding-left:18px}.said li{margin:0 0 6px;overflow-wrap:anywhere}
code{font-size:13px;overflow-wrap:anywhere}
summary{cursor:pointer;font-size:17px;font-weight:700}details table{margin-top:12px}
.pictures{display:grid;grid-template-columns:repeat(auto-fill,minmax(128px,1fr));gap:14px}
.groups{display:flex;flex-wrap:wrap;gap:12px}
.group{border:1px solid var(--line);border-radius:8px;padding:12px;max-width:100%}.group p{font-size:12px;margin:0 0 8px}
.group>div{display:flex;flex-wrap:wrap;gap:12px}.group figure{width:124px}
figure{margin:0;min-width:0}figure img{display:block;height:112px;max-width:100%;object-fit:contain;border-radius:6px}
figcaption{font-size:12px;line-height:1.35;margin-top:4px;overflow-wrap:anywhere}figcaption span{color:var(--soft)}
@media(max-width:640px){main{padding:20px 12px 40px}section{padding:14px}th,td{padding:6px 5px}}
"""


def text(value: object) -> str:
    """A text as HTML."""
    return html.escape(shown(value))


def page(title: object, lead: object, body: str) -> str:
    """A whole page.

    Args:
        title: a text.
        lead: a line beneath it.
        body: HTML.
    """
    # What a hostile name could still try would fetch nothing and run nothing.
    rule = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f'<meta http-equiv="Content-Security-Policy" content="{rule}"><title>navit · {text(title)}</title>'
        f"<style>{STYLE}</style></head><body><main><h1>{text(title)}</h1><p>{text(lead)}</p>{body}</main></body></html>\n"
    )


def write(path: Path, whole: str) -> None:
    """Writes a page; where a file is or will be, so that nobody reads half of it. A device, a pipe or a link stays what it is.

    Raises:
        ConfigError: it cannot be written.
    """
    plain = not path.is_symlink() and (path.is_file() or not path.exists())
    draft = path.with_name(f"{path.name}.{os.getpid()}.draft") if plain else path
    try:
        draft.write_text(whole, encoding="utf-8")
        if plain:
            draft.replace(path)
    except OSError as e:
        if plain:
            with suppress(OSError):
                draft.unlink()
        raise ConfigError(f"'{path}' cannot be written: {reason(e)}; is there a folder and space?") from None


def card(title: object, body: str) -> str:
    """A section: a text, and HTML."""
    return f"<section><h2>{text(title)}</h2>{body}</section>"


def paragraph(words: object) -> str:
    """A paragraph."""
    return f"<p>{text(words)}</p>"


def tiles(figures: Sequence[tuple[str, str]]) -> str:
    """What a page is about, in large figures: what each is, and the figure."""
    found = "".join(f'<div class="tile"><b>{text(value)}</b><span>{text(what)}</span></div>' for what, value in figures)
    return f'<div class="tiles">{found}</div>'


def table(head: Sequence[object], rows: Sequence[Sequence[object]], *, left: bool = False) -> str:
    """A table of texts, numbers to the right; `left` has words in all of its columns."""
    top = "".join(f'<th scope="col">{text(cell)}</th>' if cell else "<td></td>" for cell in head)
    top = f"<thead><tr>{top}</tr></thead>" if any(head) else ""
    body = "".join(
        f'<tr><th scope="row">{text(first)}</th>{"".join(f"<td>{text(cell)}</td>" for cell in rest)}</tr>'
        for first, *rest in rows
    )
    kind = "scroll left" if left else "scroll"
    return f'<div class="{kind}" tabindex="0"><table>{top}<tbody>{body}</tbody></table></div>'


def bars(head: tuple[str, str], rows: Sequence[tuple[str, int]]) -> str:
    """Counts by name, each with a bar."""
    most = max((count for _, count in rows), default=0) or 1
    body = "".join(
        f'<tr><th scope="row">{text(name)}</th><td>{count:,}</td>'
        f'<td class="bar" aria-hidden="true"><i style="width:{100 * count / most:.1f}%"></i></td></tr>'
        for name, count in rows
    )
    top = "".join(f'<th scope="col">{text(cell)}</th>' for cell in head)
    return f'<div class="scroll" tabindex="0"><table><thead><tr>{top}<td></td></tr></thead><tbody>{body}</tbody></table></div>'


def figure(picture: str, name: object, *lines: str) -> str:
    """A picture with lines beneath, which are HTML.

    Args:
        picture: its data URL; whatever else it is, is left out.
        name: what it shows, for those who do not see it.
        lines: HTML.
    """
    image = ""
    if picture.startswith("data:image/"):
        image = f'<img src="{html.escape(picture)}" alt="{text(name)}" title="{text(name)}" loading="lazy">'
    return f"<figure>{image}<figcaption>{'<br>'.join(lines)}</figcaption></figure>"


def data_url(pixels: npt.NDArray[np.uint8]) -> str:
    """A small picture, u8 `[H, W, 3]`, as a page holds it."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=85)
    return jpeg_url(file.getvalue())


def jpeg_url(data: bytes) -> str:
    """The same of a JPEG file; empty of none."""
    return "data:image/jpeg;base64," + base64.b64encode(data).decode() if data else ""


def themed(svg: str) -> str:
    """A drawing in colours of this module, as a dark page can show it too."""
    for colour, name in _NAMED.items():
        svg = svg.replace(f'"{colour}"', f'"var(--{name},{colour})"').replace(
            f": {colour}", f": var(--{name},{colour})"
        )
    return svg


def binned(values: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Counts and edges of some `BINS` bins of equal width; of whole numbers each has as many of them."""
    low, high = float(values.min()), float(values.max())
    if (values == np.round(values)).all():
        step = max(1, math.ceil((high + 1 - low) / BINS))
        edges = np.arange(low, high + step + 1, step)
        return np.histogram(values, edges)
    return np.histogram(values, BINS, (low, high))


WIDTH, HEIGHT, FOOT, LEFT = 480, 190, 34, 56
"""Of a drawing made here, in its own units: the area of the data, what is beneath it and what is beside it."""


def histogram(what: str, counts: npt.NDArray[Any], edges: npt.NDArray[Any], unit: str = "images") -> str:
    """Bars of equal width; those that hold nothing at either end are cut away.

    Args:
        what: is on the axis.
        counts: `[n]`.
        edges: `[n + 1]`.
        unit: what is counted.
    """
    filled = np.flatnonzero(counts)
    if not len(filled):
        return paragraph("none")
    counts, edges = counts[filled[0] : filled[-1] + 1], edges[filled[0] : filled[-1] + 2]
    step, top = WIDTH / len(counts), int(counts.max())
    drawn = []
    for i, count in enumerate(counts):
        tall = max(HEIGHT * count / top, 1.0) if count else 0.0
        place = f'x="{LEFT + i * step:.1f}" y="{10 + HEIGHT - tall:.1f}" width="{max(step - 1, 0.5):.1f}" height="{tall:.1f}"'
        title = f"{short(edges[i])} to {short(edges[i + 1])}: {int(count):,} {unit}"
        drawn.append(f'<rect {place} fill="var(--blue)" fill-opacity=".8"><title>{title}</title></rect>')
    ticks = sorted({round(i * len(counts) / 6) for i in range(7)})
    for i in ticks:
        anchor = "end" if i == len(counts) else "start" if i == 0 else "middle"
        drawn.append(_label(LEFT + i * step, HEIGHT + 25, short(edges[i]), anchor))
    return _drawing(
        [*drawn, _label(LEFT - 5, 18, f"{top:,}", "end")], what, f"histogram of {what}, {int(counts.sum()):,} {unit}"
    )


def scatter(x: npt.NDArray[Any], y: npt.NDArray[Any], names: tuple[str, str]) -> str:
    """A point for each pair, both axes logarithmic.

    Args:
        x, y: above 0.
        names: of the axes.
    """
    ends = [(float(np.log2(v.min())) - 0.1, float(np.log2(v.max())) + 0.1) for v in (x, y)]
    high = 1.6 * HEIGHT
    at_x = LEFT + WIDTH * (np.log2(x) - ends[0][0]) / (ends[0][1] - ends[0][0])
    at_y = 10 + high * (1 - (np.log2(y) - ends[1][0]) / (ends[1][1] - ends[1][0]))
    drawn = []
    for value in _powers(*ends[0]):
        place = LEFT + WIDTH * (math.log2(value) - ends[0][0]) / (ends[0][1] - ends[0][0])
        drawn += [_line(place, 10, place, 10 + high), _label(place, high + 25, short(value), "middle")]
    for value in _powers(*ends[1]):
        place = 10 + high * (1 - (math.log2(value) - ends[1][0]) / (ends[1][1] - ends[1][0]))
        drawn += [_line(LEFT, place, LEFT + WIDTH, place), _label(LEFT - 5, place + 4, short(value), "end")]
    # Points that share a place are one, and darker.
    places, counts = np.unique(np.round(np.stack([at_x, at_y], 1), 1), axis=0, return_counts=True)
    for (px, py), count in zip(places, counts, strict=True):
        drawn.append(
            f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3" fill="var(--blue)" fill-opacity="{1 - 0.6 ** min(count, 5):.2f}"/>'
        )
    return _drawing(drawn, names[0], f"{names[1]} against {names[0]}, {len(x):,} points", high, names[1])


def _powers(low: float, high: float) -> list[float]:
    """Round values within 2^low to 2^high, some four of them."""
    step = max(1, math.ceil((high - low) / 5))
    found = [2.0**n for n in range(math.ceil(low), math.floor(high) + 1, step)]
    return found if len(found) > 1 else [round(2 ** (low + (high - low) * share)) for share in (0.15, 0.85)]


def _label(x: float, y: float, words: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{words}</text>'


def _line(x: float, y: float, to_x: float, to_y: float) -> str:
    return f'<path d="M{x:.1f} {y:.1f}L{to_x:.1f} {to_y:.1f}" stroke="var(--line)"/>'


def _drawing(parts: Sequence[str], below: str, label: str, height: float = HEIGHT, beside: str = "") -> str:
    side = (
        f'<text transform="translate(11 {10 + height / 2:.0f}) rotate(-90)" text-anchor="middle">{text(beside)}</text>'
    )
    return (
        f'<svg viewBox="0 0 {LEFT + WIDTH + 10} {height + 10 + FOOT + 4:.0f}" role="img" aria-label="{text(label)}" '
        f'font-family="system-ui, sans-serif" font-size="12" fill="var(--soft)">{"".join(parts)}'
        f"{side if beside else ''}{_label(LEFT + WIDTH / 2, height + 10 + FOOT, text(below), 'middle')}</svg>"
    )


def short(value: float) -> str:
    """A number on an axis."""
    if abs(value) >= 10_000:
        return f"{value / 1000:,.0f}k"
    return f"{value:,.0f}" if abs(value) >= 10 else f"{value:.3g}"
