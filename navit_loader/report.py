"""The page of an index: what is in it, what is broken, what is there twice, and what to do next.

In: an index. Out: HTML. What columns say is of all rows; pictures are of a sample, which lies evenly over the index, so that
the page of ten million images is made nearly as soon as that of ten thousand. Apart from `info`, which says the most of it on a
terminal.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from . import page
from .batch import NO_CLASS
from .errors import NavitError
from .facts import ASPECTS, SIDES, Facts, facts_of
from .index import Index
from .index.sources.remote import is_remote
from .look import TORN, Seen, evenly, look
from .schema import toml_value
from .shown import counted
from .suggest import suggest
from .torn import torn
from .twins import HEIGHT, WIDTH, joined, shrunk

LOOKED_AT = 1024
"""Images that are decoded."""

GALLERY, GROUPS, EACH, CLASSES, BROKEN = 48, 24, 6, 40, 60
"""Pictures, groups of twins and pictures of each, classes and broken files that are shown."""

SAME = 4
"""Rows that have size and length in common are looked at as possible copies, where they are no more."""

PLANNED = 1 << 18
"""Rows of which sizes are proposed, where there are more."""

DOTS = 4000
"""Points of the drawing of widths and heights."""

LARGE_FILE = 1 << 26


def report(index: Index, looked_at: int = LOOKED_AT, progress: Callable[[int, int], None] | None = None) -> str:
    """Makes the page.

    Args:
        index: what it is about.
        looked_at: images that are decoded; all of a smaller index.
        progress: called with the images decoded so far, and how many there will be.

    Raises:
        IndexFileError: the index is damaged.
    """
    index.check()
    facts, rows = facts_of(index), _rows(index, looked_at)
    few = index.sample(rows)
    seen = look(few, None if progress is None else lambda done: progress(done, len(rows)))
    groups = _twins(few, seen)
    # Two of one group that are called differently: one of them is wrong.
    odd = [group for group in groups if len({_label(few, row) for row in group}) > 1]
    body = page.tiles(
        [
            ("images", f"{index.num_rows:,}"),
            ("encoded", _size(facts.nbytes)),
            ("side in the middle, pixels", page.short(_middle(facts.sides, SIDES))),
            ("numbers" if index.targets is not None else "classes", f"{len(index.classes):,}"),
            ("broken when indexed", f"{index.broken:,}"),
            ("looked at", f"{len(rows):,}"),
        ]
    )
    body += page.card("In words", _words(index, facts, few, seen, groups, odd))
    body += page.card("A sample", _gallery(few, seen))
    drawn = page.card("Sizes", page.histogram("side (root of the area, pixels)", facts.sides, SIDES))
    drawn += page.card("Aspect ratios", page.histogram("width ÷ height", facts.aspects, ASPECTS))
    dots = index.sample(evenly(index.num_rows, DOTS))
    width, height = next(iter(dots.sides()))
    drawn += page.card("Width and height", page.scatter(width, height, ("width, pixels", "height, pixels")))
    drawn += page.card("What kind", _kinds(index, facts, seen))
    if len(facts.captions) > 1:
        counts = facts.captions[1:]
        step = max(1, -(-len(counts) // page.BINS))
        binned = np.add.reduceat(counts, np.arange(0, len(counts), step))
        edges = 1 + step * np.arange(len(binned) + 1)
        drawn += page.card("Captions", page.histogram("tokens of a caption", binned, edges))
    body += f'<div class="two">{drawn}</div>'
    body += _classes(index, facts)
    body += _broken(index, few, seen)
    body += page.card("The same picture twice", _copies(few, seen, groups, odd, len(rows) < index.num_rows))
    body += _proposed(index)
    where = f"{index.path}: images beneath {index.root}"
    return page.page(Path(index.path).name, where, body)


def _rows(index: Index, most: int) -> npt.NDArray[np.int64]:
    """Rows to look at: all, or such as lie evenly over the index, and at most half of them such as may be copies of others."""
    if index.num_rows <= most:
        return np.arange(index.num_rows)
    lengths = index.columns()["length"]
    keys = np.empty(index.num_rows, np.uint64)
    at = 0
    for (width, height), length in zip(index.sides(), lengths, strict=True):
        # Numbers that spread: nothing hangs on two that meet.
        sides = width.astype(np.uint64) << np.uint64(32) | height.astype(np.uint64)
        mixed = sides * np.uint64(0x9E3779B97F4A7C15) ^ length.astype(np.uint64) * np.uint64(0xC2B2AE3D27D4EB4F)
        keys[at : at + len(mixed)] = mixed
        at += len(mixed)
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    sizes = np.diff(np.append(starts, len(ordered)))
    copies = starts[(sizes > 1) & (sizes <= SAME)][: most // 8]
    maybe = [
        order[start : start + size] for start, size in zip(copies, sizes[np.searchsorted(starts, copies)], strict=True)
    ]
    found = np.concatenate([np.zeros(0, np.int64), *maybe])
    return np.unique(np.concatenate([evenly(index.num_rows, most - len(found)), found]))


def _twins(few: Index, seen: Seen) -> list[list[int]]:
    """Groups of rows with one picture, the largest first."""
    small, decoded = np.zeros((few.num_rows, HEIGHT, WIDTH), np.float32), np.zeros(few.num_rows, bool)
    for row, pixels in seen.pictures.items():
        small[row], decoded[row] = shrunk(pixels), True
    first = joined(small, decoded)
    found: dict[int, list[int]] = {}
    for row, group in enumerate(first.tolist()):
        found.setdefault(group, []).append(row)
    return sorted((rows for rows in found.values() if len(rows) > 1), key=len, reverse=True)


def _label(few: Index, row: int) -> str:
    labels = few.labels()[row]
    if labels[0] == NO_CLASS:
        return "of no class"
    return ", ".join(few.classes[label] for label in labels.tolist() if label >= 0)


def _words(index: Index, facts: Facts, few: Index, seen: Seen, groups: list[list[int]], odd: list[list[int]]) -> str:
    """What a person should know first, as a list."""
    looked = f"of the {counted(few.num_rows, 'image')}{' that were looked at' if few.num_rows < index.num_rows else ''}"
    smallest, largest = (f"{w:,} × {h:,}" for w, h in (facts.smallest, facts.largest))
    lines = [
        f"Sides go from {smallest} to {largest} pixels; half of the images are above "
        f"{page.short(_middle(facts.sides, SIDES))} a side."
    ]
    if index.broken:
        lines.append(
            f"{counted(index.broken, 'file was', 'files were')} broken when the index was built, and left out of it."
        )
    lines.append(
        f"{len(seen.why):,} {looked} cannot be decoded, and would be masked in every batch ('navit-loader lint' looks at all)."
        if seen.why
        else f"All {looked} can be decoded."
    )
    if seen.stopped:
        lines.append(
            f"Storage stays away, so that no more than {len(seen.pictures):,} have a picture here: {seen.stopped}"
        )
    given = facts.given[facts.given > 0]
    if index.targets is None and len(given) > 1 and not index.boxed:
        least, most = int(given.min()), int(given.max())
        names = [index.classes[int(np.argmax(facts.given == n))] for n in (most, least)]
        times = most / least
        lines.append(
            f"The largest class, '{names[0]}' with {most:,}, has {times:,.1f} times the images of the smallest, '{names[1]}' "
            f"with {least:,}" + ("; train.class_weights = 'balanced' lets all count alike." if times >= 3 else ".")
        )
    if index.boxed:
        there = counted(index.num_rows - facts.unlabelled, "image has", "images have")
        lines.append(f"{there} {counted(int(facts.given.sum()), 'box', 'boxes')} of objects.")
    if index.masks:
        lines.append("Each image may have a mask; 'navit-loader lint' reads them all.")
    annotated = index.boxed or index.masks
    if not annotated and (none := int((facts.given == 0).sum())):
        lines.append(f"{counted(none, 'class has', 'classes have')} no image.")
    if facts.unlabelled and len(index.classes) and not annotated:
        lines.append(f"{counted(facts.unlabelled, 'image has', 'images have')} no label.")
    if groups:
        double = sum(len(group) - 1 for group in groups)
        said = f"{double:,} {looked} are copies of another, or nearly"
        lines.append(
            f"{said}; {counted(len(odd), 'group has', 'groups have')} different labels." if odd else f"{said}."
        )
    if seen.profiles:
        profiles = ", ".join(f"{kind} {images:,}" for kind, images, _ in seen.profiles)
        lines.append(
            f"Colour profiles other than sRGB are in some {looked}: {profiles}; they are applied with [render] profiles = "
            "'convert' alone."
        )
    return f'<ul class="said">{"".join(f"<li>{page.text(line)}</li>" for line in lines)}</ul>'


def _gallery(few: Index, seen: Seen) -> str:
    rows = [sorted(seen.pictures)[i] for i in evenly(len(seen.pictures), GALLERY)] if seen.pictures else []
    figures = "".join(_figure(few, row, page.data_url(seen.pictures[row])) for row in rows)
    return f'<div class="pictures">{figures}</div>' if figures else page.paragraph("No image could be decoded.")


def _figure(few: Index, row: int, picture: str, more: str = "") -> str:
    columns = few.columns()
    size = f"{int(columns['width'][0][row]):,} × {int(columns['height'][0][row]):,}"
    lines = [page.text(label[:60]) for label in [_label(few, row)] if label]
    if columns["caption"]:
        offsets, data = columns["caption"][0]
        caption = bytes(data[offsets[row] : offsets[row + 1]]).decode("utf-8", "replace")
        lines += [page.text(caption if len(caption) < 100 else f"{caption[:99]}…")] if caption else []
    return page.figure(picture, few.uri(row), *lines, f"<span>{page.text(more or size)}</span>")


def _kinds(index: Index, facts: Facts, seen: Seen) -> str:
    body = page.bars(("format", "images"), facts.formats)
    if seen.modes:
        modes = Counter(seen.modes.values()).most_common()
        body += page.bars((f"mode, of {len(seen.modes):,} files", "images"), modes)
    rows = [("turned by EXIF", f"{facts.turned:,}"), ("files and containers", f"{len(index.shards):,}")]
    if (weights := index.weights) is not None:
        rows.append(("weights in a loss", f"{weights.min():g} to {weights.max():g}"))
    if len(facts.captions):
        captions, most = int(facts.captions[1:].sum()), len(facts.captions) - 1
        mean = facts.captions @ np.arange(most + 1) / max(1, captions)
        rows += [("images with a caption", f"{captions:,}"), ("its tokens, mean and most", f"{mean:.1f}, {most:,}")]
    return body + page.table(["", ""], rows)


def _classes(index: Index, facts: Facts) -> str:
    if not len(index.classes):
        return page.card("Classes", page.paragraph("No image has a label."))
    if index.targets is not None:
        numbers = index.targets
        counts, edges = np.histogram(numbers, page.BINS, weights=facts.given)
        drawn = page.histogram("number to be predicted", counts.astype(np.int64), edges)
        return page.card("Numbers to be predicted", f'<div class="narrow">{drawn}</div>')
    order = np.argsort(-facts.given, kind="stable")
    rows = [(index.classes[i], int(facts.given[i])) for i in order]
    if len(rows) > CLASSES:
        half = CLASSES // 2
        left = sum(count for _, count in rows[half:-half])
        rows = [*rows[:half], (f"{len(rows) - CLASSES:,} classes between", left), *rows[-half:]]
    if index.masks and not index.boxed:
        return page.card("Classes", page.paragraph(", ".join(index.classes)))
    more = [(f"without a {'box' if index.boxed else 'label'}", facts.unlabelled)]
    more += [("known to be of no class", facts.negatives)]
    body = page.bars(("class", "boxes" if index.boxed else "images"), [*rows, *(pair for pair in more if pair[1])])
    several = page.paragraph(f"An image has up to {index.label_width} labels.") if index.label_width > 1 else ""
    return page.card("Classes and their balance", several + body)


def _broken(index: Index, few: Index, seen: Seen) -> str:
    listed = index.quarantine(BROKEN)
    if not listed and not seen.why:
        return ""
    body, figures = "", ""
    for row, jpeg in sorted(seen.torn.items()):
        figures += _figure(few, row, page.jpeg_url(jpeg), seen.why[row])
    for line in listed[:TORN]:
        if jpeg := _left(line["shard"], line["name"]):
            figures += page.figure(page.jpeg_url(jpeg), line["uri"], f"<span>{page.text(line['reason'])}</span>")
    if figures:
        body += page.paragraph("What can still be drawn of them:") + f'<div class="pictures">{figures}</div><br>'
    rows = [(few.uri(row), seen.why[row]) for row in sorted(seen.why)[:BROKEN]]
    rows += [(line["uri"], line["reason"]) for line in listed]
    body += page.table(["file", "why"], rows, left=True)
    hidden = max(0, len(seen.why) - BROKEN) + max(0, index.broken - len(listed))
    if hidden:
        body += page.paragraph(
            f"and {hidden:,} more, all of those broken when indexed in {index.path}.quarantine.jsonl"
        )
    return page.card("Broken files", body)


def _left(shard: str, name: str) -> bytes:
    """What can be drawn of a file in quarantine, where it is one by itself on this machine."""
    if not shard.endswith("/") or is_remote(shard):
        return b""
    try:
        path = Path(shard + name)
        return torn(path.read_bytes()) if path.stat().st_size <= LARGE_FILE else b""
    except (OSError, ValueError):
        return b""


def _copies(few: Index, seen: Seen, groups: list[list[int]], odd: list[list[int]], sampled: bool) -> str:
    what = "Equal files, and files that differ in size, format or compression alone"
    if sampled:
        what += (
            f", among the {few.num_rows:,} images that were looked at; rows that share size and length with another were "
            "preferred. Copies of images that were not looked at are not seen"
        )
    if not groups:
        return page.paragraph(f"{what}: none.")
    body = page.paragraph(f"{what}. 'navit-model fit' keeps them on one side of its split.")
    boxes = ""
    shown = [*odd, *(group for group in groups if group not in odd)][:GROUPS]
    for group in shown:
        figures = "".join(_figure(few, row, page.data_url(seen.pictures[row])) for row in group[:EACH])
        differ = "<p>Their labels differ.</p>" if group in odd else ""
        more = page.paragraph(f"and {len(group) - EACH:,} more") if len(group) > EACH else ""
        boxes += f'<div class="group">{differ}<div>{figures}</div>{more}</div>'
    body += f'<div class="groups">{boxes}</div>'
    if len(groups) > len(shown):
        body += "<br>" + page.paragraph(f"and {len(groups) - len(shown):,} more groups")
    return body


def _proposed(index: Index) -> str:
    rows = index.num_rows
    try:
        found = suggest(index if rows <= PLANNED else index.sample(evenly(rows, PLANNED)))
    except NavitError as e:
        return page.card("Sizes to train with", page.paragraph(f"Nothing can be proposed: {e}"))
    lines = [(choice.key, toml_value(choice.value), choice.why) for choice in found if choice.key != "data.index"]
    sampled = f" From {PLANNED:,} of the images." if rows > PLANNED else ""
    note = page.paragraph(f"What 'navit-loader suggest' proposes; with --toml it prints a configuration.{sampled}")
    return page.card("Sizes to train with", note + page.table(["key", "value", "why"], lines, left=True))


def _middle(counts: npt.NDArray[np.int64], edges: npt.NDArray[np.float64]) -> float:
    """The median, to the width of a bin."""
    bin_ = int(np.searchsorted(np.cumsum(counts), counts.sum() / 2))
    return float(np.sqrt(edges[bin_] * edges[bin_ + 1]))


def _size(nbytes: int) -> str:
    power = min(4, max(0, len(str(nbytes)) - 1) // 3)
    return f"{nbytes / 1000**power:,.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"
