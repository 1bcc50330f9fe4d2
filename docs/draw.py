"""Draws the pictures of docs/concepts: `python docs/draw.py`, from the repository's root.

In: photographs that scikit-image brings (the extra `bench`; public domain or CC0). Out: SVG in docs/pictures, each of
a real plan and batch of them, on a card of its own so that it reads on light and dark pages. Apart from the build of the site,
which takes them as they are: they change only where a batch's fields do.
"""

from __future__ import annotations

import base64
import io
import itertools
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from skimage import data

from navit_loader import LoaderConfig, PackedBatch, PackedLoader, build_index
from navit_loader.picture import COLOURS, packed_image

OUT = Path(__file__).parent / "pictures"
P, L = 16, 32
SIDES = [(4, 4), (2, 5), (3, 3), (4, 2), (2, 2), (3, 5), (4, 3), (2, 4)]
"""Grids of the images, height × width in patches."""

STYLE = """<style>
svg { --card: #f7f8fa; --ink: #1c2330; --faint: #667085; --line: #c3c9d4; --empty: #e4e7ec }
@media (prefers-color-scheme: dark) {
svg { --card: #1d222c; --ink: #e8ebf1; --faint: #98a2b3; --line: #475063; --empty: #333b4a } }
text { font: 16px system-ui, sans-serif; fill: var(--ink) }
.s { font-size: 14px } .f { fill: var(--faint) } .b { font-weight: 600 } .w { fill: #fff }
.m { text-anchor: middle } .e { text-anchor: end } .n { fill: none } .l { stroke: var(--line); stroke-width: 1 }
.empty { fill: var(--empty) } image { image-rendering: pixelated }
</style>"""


def main() -> None:
    """Makes the batches and writes the three pictures."""
    with tempfile.TemporaryDirectory() as folder:
        index = photographs(Path(folder))
        dropped = first(index, {"kind": "constant", "rate": 0.25})
        write("the-batch", the_batch(dropped))
        write("isolation", isolation(dropped))
        write("plan-first", plan_first(first(index, {"kind": "none"})))
    with tempfile.TemporaryDirectory() as folder:
        index = photographs(Path(folder), 64)
        picture = packed_image(first(index, {"kind": "none"}, length=256, most=64, resolution={"low": 48, "high": 128}))
        picture.resize((picture.width // 2, picture.height // 2)).quantize(128).save(
            OUT / "tour-packed.png", optimize=True
        )


def photographs(folder: Path, side: int = P) -> Path:
    """Small versions of photographs, cut to the aspect ratios of SIDES, of `side` pixels a patch of them, and their index."""
    pictures = [data.chelsea(), data.coffee(), data.rocket(), data.astronaut()]
    for n, ((h, w), pixels) in enumerate(zip(SIDES, itertools.cycle(pictures), strict=False)):
        picture = Image.fromarray(pixels)
        scale = min(picture.width / w, picture.height / h)
        left, top = (picture.width - scale * w) / 2, (picture.height - scale * h) / 2
        box = (round(left), round(top), round(left + scale * w), round(top + scale * h))
        picture.resize((side * w, side * h), Image.Resampling.LANCZOS, box=box).save(folder / f"{n}.png")
    build_index([folder], folder / "index.arrow")
    return folder / "index.arrow"


def first(
    index: Path, drop: dict[str, object], length: int = L, most: int = 16, resolution: dict[str, object] | None = None
) -> PackedBatch:
    """The first two sequences: images in order, at their own size where none is drawn."""
    plan = {"sequence_length": length, "max_tokens": most, "max_images": 32, "patch_sizes": [P], "drop": drop}
    plan |= {"order": {"kind": "sequential"}, "resolution": resolution or {"kind": "native"}, "packing": "first_fit"}
    if resolution:
        plan |= {"packing": "auto", "passes": 6, "order": {"kind": "permutation"}}
    with PackedLoader(str(index), LoaderConfig.from_dict({"data": {"batch_size": 2}, "plan": plan})) as loader:
        return next(iter(loader))


def the_batch(batch: PackedBatch, cell: float = 27) -> str:
    """The fields of one sequence, slot by slot: what stands in each slot, in which image, and where its bounds are."""
    left, parts = 136.0, []
    ids, images = batch.segment_ids[0], present(batch, 0)
    x = left
    for e in images:
        h, w = (int(v) for v in batch.grids[0, e])
        side = 21.0
        parts.append(picture(restored(batch, 0, e), x, 24 + (4 - h) * side, w * side, h * side))
        parts.append(box(x, 24 + (4 - h) * side, w * side, h * side, COLOURS[e]))
        kept = int((ids == e).sum())
        parts.append(words(x, 126, f"{h}, {w}: {kept} of {h * w} kept", "s"))
        parts.append(words(x, 144, f"{batch.status[0, e]} (ok)", "s"))
        x += max(w * side, 132) + 34
    parts.append(words(left - 12, 70, "images", "e b"))
    rows = {"patches": 172, "positions": 218, "segment_ids": 272, "cu_seqlens": 322}
    for name, y in {"grids": 108, "status": 126, **rows}.items():
        parts.append(words(left - 12, y + 18, name, "e b"))
    parts.append(picture(strip(batch, 0), left, rows["patches"], L * cell, cell))
    for s, image in enumerate(ids.tolist()):
        x = left + s * cell
        colour = COLOURS[image] if image >= 0 else ""
        if image < 0:
            parts.append(f'<rect x="{x}" y="{rows["patches"]}" width="{cell}" height="{cell}" class="empty"/>')
        parts.append(box(x, rows["patches"], cell, cell, "var(--card)"))
        y0, x0 = batch.positions[0, s].tolist()
        parts += [words(x + cell / 2, rows["positions"] + dy, str(v), "m s") for dy, v in ((11, y0), (27, x0))]
        parts.append(
            f'<rect x="{x + 1}" y="{rows["segment_ids"]}" width="{cell - 2}" height="24" rx="3" '
            + (f'fill="{colour}"/>' if colour else 'class="empty"/>')
        )
        parts.append(words(x + cell / 2, rows["segment_ids"] + 17, str(image), "m s w b" if colour else "m s"))
    for offset in sorted({v for v in batch.cu_seqlens.tolist() if v <= L}):
        x = left + offset * cell
        parts.append(f'<path class="l" d="M{x} {rows["patches"] - 8}V{rows["cu_seqlens"] + 4}"/>')
        parts.append(words(x, rows["cu_seqlens"] + 18, str(offset), "m"))
    for n, text in enumerate(("y, then x, of each patch", "in its image's grid")):
        parts.append(words(left + L * cell + 10, rows["positions"] + 11 + 16 * n, text, "s f"))
    notes = {
        "patches": "16 × 16 × 3 bytes a slot",
        "segment_ids": "−1 is padding",
        "cu_seqlens": "where segments begin",
    }
    parts += [
        words(left + L * cell + (10 if name != "cu_seqlens" else 20), rows[name] + 17, text, "s f")
        for name, text in notes.items()
    ]
    parts += [
        words(left + L * cell + 10, y, text, "s f")
        for y, text in ((126, "one for each image,"), (144, "up to E of them"))
    ]
    return card(left + L * cell + 196, 366, parts)


def isolation(batch: PackedBatch, cell: float = 12) -> str:
    """Who attends to whom: one block for each segment of the sequence, the padding's own among them."""
    left, top, parts, labels = 180.0, 66.0, [], []
    bounds = sorted({v for v in batch.cu_seqlens.tolist() if v <= L})
    side, pairs = L * cell, 0
    parts.append(f'<rect x="{left}" y="{top}" width="{side}" height="{side}" class="empty"/>')
    for a, b in itertools.pairwise(bounds):
        image = int(batch.segment_ids[0, a])
        fill = f'fill="{COLOURS[image]}"' if image >= 0 else 'fill="var(--faint)"'
        at, wide = left + a * cell, (b - a) * cell
        parts.append(f'<rect x="{at}" y="{top + a * cell}" width="{wide}" height="{wide}" {fill}/>')
        name = f"image {image}" if image >= 0 else "padding"
        parts.append(words(left - 34, top + a * cell + wide / 2 + 4, f"{name}, {b - a} tokens", "e s"))
        if image >= 0:
            pairs += (b - a) ** 2
            labels.append(words(at + wide / 2, top + a * cell + wide / 2 + 4, f"{b - a}²", "m w b"))
    tokens = strip(batch, 0)
    parts.append(picture(tokens, left, top - 24, side, cell))
    column = np.concatenate(np.split(tokens, L, axis=1), axis=0)
    parts.append(picture(column, left - 24, top, cell, side))
    d = "".join(f"M{left + n * cell} {top}v{side}M{left} {top + n * cell}h{side}" for n in range(L + 1))
    parts.append(f'<path d="{d}" stroke="var(--card)" stroke-width="0.6"/>')
    parts += labels
    parts.append(words(left, top - 34, "keys: the tokens that are looked at", "s f"))
    parts.append(words(left - 34, top - 10, "queries", "e s f"))
    x = left + side + 28
    lines = [
        ("b", f"{pairs} of {L * L} pairs"), ("s", "are computed: Σ n² over the images,"), ("s", "not L²."), ("s", ""),
        ("b", "Nothing crosses a block."), ("s", "An image's answer is the same alone"), ("s", "or beside any others."),
        ("s", ""), ("b", "Padding is a segment too,"), ("s", "so every row has something to attend"),
        ("s", "to, and no NaN comes of it."),
    ]  # fmt: skip
    parts += [words(x, top + 50 + 22 * n, text, style) for n, (style, text) in enumerate(lines)]
    return card(x + 282, top + side + 24, parts)


def plan_first(batch: PackedBatch) -> str:
    """The five rooms in a row, each with what it knows of the same sequences."""
    wide, gap, top, parts = 176.0, 38.0, 62.0, []
    rooms = [
        ("index", "headers"),
        ("plan", "slots"),
        ("render", "patches"),
        ("deliver", "batches"),
        ("learn", "gradients"),
    ]
    for n, (name, gives) in enumerate(rooms):
        x = 24 + n * (wide + gap)
        parts.append(f'<rect x="{x}" y="{top}" width="{wide}" height="150" rx="8" class="n l"/>')
        parts.append(words(x + wide / 2, top + 22, name, "m b"))
        parts.append(words(x + wide / 2, top + 172, gives, "m s f"))
        if n:
            middle = top + 75
            parts.append(
                f'<path d="M{x - gap + 6} {middle}h{gap - 16}m-7 -5l7 5l-7 5" class="n" style="stroke: var(--ink)"/>'
            )
    x, y = 40.0, top + 40
    for b in range(2):
        for e in present(batch, b):
            h, w = (int(v) * 8 for v in batch.grids[b, e])
            if x + w > 24 + wide - 8:
                x, y = 40.0, y + 38
            parts.append(box(x, y, w, h, COLOURS[(4 * b + e) % len(COLOURS)]))
            x += w + 7
    slot = (wide - 32) / 16
    for room in (1, 2, 3):
        for b in range(2):
            left, high = 24 + room * (wide + gap) + 16, top + 44 + b * 50 + (6 if room == 3 and b else 0)
            pixels = strip(batch, b)
            for row in range(2):
                y = high + row * slot
                if room > 1:
                    parts.append(picture(pixels[:, row * 16 * P : (row + 1) * 16 * P], left, y, 16 * slot, slot))
                for s in range(16):
                    image = int(batch.segment_ids[b, row * 16 + s])
                    colour = COLOURS[(4 * b + image) % len(COLOURS)]
                    if image < 0:
                        parts.append(
                            f'<rect x="{left + s * slot}" y="{y}" width="{slot}" height="{slot}" class="empty"/>'
                        )
                    elif room == 1:
                        parts.append(filled(left + s * slot + 0.5, y + 0.5, slot - 1, slot - 1, f'fill="{colour}"'))
            if room == 3:
                parts.append(filled(left - 5, high - 5, 16 * slot + 10, 2 * slot + 10, 'rx="4" class="n l"'))
                parts.append(words(left - 2, high + 2 * slot + 20, f"rank {b}", "s f"))
    x = 24 + 4 * (wide + gap) + 18
    parts.append(f'<path d="M{x} {top + 44}v88h142" class="n l"/>')
    parts.append(
        f'<path d="M{x + 4} {top + 52}c20 58 50 66 134 72" class="n" stroke="{COLOURS[0]}" stroke-width="2.4"/>'
    )
    for start, stop, text in (
        (0, 1, "a pure function of headers, configuration, seed and epoch"),
        (2, 4, "pixels: any machine, any time, in any order"),
    ):
        a, b = 24 + start * (wide + gap), 24 + stop * (wide + gap) + wide
        parts.append(f'<path d="M{a} 44v-8H{b}v8" class="n l"/>')
        parts.append(words((a + b) / 2, 26, text, "m s"))
    return card(24 + 5 * wide + 4 * gap + 24, top + 190, parts)


def present(batch: PackedBatch, b: int) -> list[int]:
    """Which images sequence b has."""
    return [int(e) for e in np.flatnonzero(batch.status[b])]


def strip(batch: PackedBatch, b: int) -> npt.NDArray[np.uint8]:
    """The patches of a sequence side by side, [P, L·P, 3]; padding is grey."""
    patches = batch.patches[b].reshape(L, P, P, 3).copy()
    patches[batch.segment_ids[b] < 0] = 200
    return np.concatenate(list(patches), axis=1)


def restored(batch: PackedBatch, b: int, e: int) -> npt.NDArray[np.uint8]:
    """An image put together of its kept patches; what was dropped is grey."""
    h, w = (int(v) for v in batch.grids[b, e])
    canvas = np.full((h, P, w, P, 3), 200, np.uint8)
    for s in np.flatnonzero(batch.segment_ids[b] == e):
        y, x = batch.positions[b, s]
        canvas[y, :, x] = batch.patches[b, s].reshape(P, P, 3)
    return canvas.reshape(h * P, w * P, 3)


def picture(pixels: npt.NDArray[np.uint8], x: float, y: float, width: float, height: float) -> str:
    """Pixels stretched over a box."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", optimize=True)
    code = base64.b64encode(file.getvalue()).decode()
    place = f'x="{x}" y="{y}" width="{width}" height="{height}"'
    return f'<image {place} preserveAspectRatio="none" href="data:image/png;base64,{code}"/>'


def box(x: float, y: float, width: float, height: float, colour: str) -> str:
    """An outline."""
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" class="n" stroke="{colour}" stroke-width="2"/>'


def filled(x: float, y: float, width: float, height: float, style: str) -> str:
    """A rectangle."""
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" {style}/>'


def words(x: float, y: float, text: str, style: str = "") -> str:
    """A line of text."""
    return f'<text x="{x}" y="{y}" class="{style}">{text}</text>'


def card(width: float, height: float, parts: list[str]) -> str:
    """A whole SVG."""
    size = f'viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}"'
    ground = f'<rect width="{width:.0f}" height="{height:.0f}" rx="10" style="fill: var(--card)"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{STYLE}{ground}{"".join(parts)}</svg>\n'


def write(name: str, svg: str) -> None:
    """Puts a picture into its place."""
    OUT.mkdir(exist_ok=True)
    (OUT / f"{name}.svg").write_text(svg, encoding="utf-8")
    print(f"{OUT / name}.svg: {len(svg):,} bytes")


if __name__ == "__main__":
    main()
