"""What the scores of boxes, maps and segments have in common: what an index says there is, the pass over it, and the rows.

In: an index with boxes or masks. Out: what is true of each of its images, in pixels of the oriented source; a loader that shows
each image once; `TargetScore`, one row for each token budget. Apart from the three passes, which differ in what they compare.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from navit_loader import PackedLoader
from navit_loader.batch import CROWD, PackedBatch
from navit_loader.config import LoaderConfig
from navit_loader.errors import ModelError
from navit_loader.index import Index

from ..world import World, halved
from .classification import aligned, left_out, of_all, other_classes, tokens_of, trained_tokens

Map = npt.NDArray[np.int64]

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What shows an image as it is meant, by its EXIF orientation."""

NAMES = {
    "ap": "AP",
    "ap50": "AP50",
    "ap75": "AP75",
    "ap_small": "AP small",
    "ap_medium": "AP medium",
    "ap_large": "AP large",
    "ar100": "AR",
    "miou": "mIoU",
    "pixel_accuracy": "pixel accuracy",
    "pq": "PQ",
    "sq": "SQ",
    "rq": "RQ",
    "pq_things": "PQ things",
    "pq_stuff": "PQ stuff",
}
"""Figures as they are shown; the first of a score is the one that counts."""


@dataclass(frozen=True, slots=True)
class TargetScore:
    """The result at one token budget.

    Attributes:
        tokens: tokens of one image at most.
        patch_size: P.
        rows: images of the index.
        images: those that were scored, failed ones among them: nothing is found in these.
        failed: those that could not be read.
        figures: of `NAMES`, the one that counts first; None where there was nothing to find.
        images_per_s: through loader and model.
        outside: whether the budget lies outside the sizes seen in training.
    """

    tokens: int
    patch_size: int
    rows: int
    images: int
    failed: int
    figures: Mapping[str, float | None]
    images_per_s: float
    outside: bool

    @property
    def main(self) -> float:
        """The figure that counts; 0 where there is none."""
        return next(iter(self.figures.values())) or 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; figures among them."""
        plain = asdict(self)
        return {**plain.pop("figures"), **plain}

    def __str__(self) -> str:
        """The figures and the budget, in a line of a run's output."""
        said = ", ".join(f"{NAMES[name]} {_shown(value)}" for name, value in self.figures.items())
        others = left_out(self.images, self.failed, self.rows, "target")
        return f"{said} of {self.images} held-out images at {self.tokens} tokens{others}"


def target_table(scores: Sequence[TargetScore]) -> str:
    """The scores as lines of text; budgets outside the trained sizes carry a star."""
    several = len({s.patch_size for s in scores}) > 1
    figures = [NAMES[name] for name in scores[0].figures]
    head = (*(("patch",) if several else ()), "tokens", *figures, "images", "failed", "images/s")
    rows = [
        (
            *((f"{s.patch_size}",) if several else ()),
            f"{s.tokens}{'*' if s.outside else ''}",
            *map(_shown, s.figures.values()),
            of_all(s.images, s.failed, s.rows),
            f"{s.failed:,}",
            f"{s.images_per_s:,.0f}",
        )
        for s in scores
    ]
    return aligned(head, rows, any(s.outside for s in scores))


def target_score(
    config: LoaderConfig,
    loader: PackedLoader,
    tokens: int | None,
    figures: Mapping[str, float | None],
    failed: int,
    seconds: float,
) -> TargetScore:
    """The row of one pass over all images of `loader`."""
    low, high = trained_tokens(config)
    rows = loader.engine.indexes[0].num_rows
    return TargetScore(
        tokens=tokens_of(config, tokens),
        patch_size=loader.config.plan.patch_sizes[0],
        rows=rows,
        images=rows,
        failed=failed,
        figures=figures,
        images_per_s=rows / seconds,
        outside=tokens is not None and not low <= tokens <= high,
    )


def held_out_targets(
    index: str,
    config: LoaderConfig,
    kind: str,
    *,
    classes: Sequence[str],
    tokens: int | None = None,
    patch_size: int | None = None,
    world: World | None = None,
) -> PackedLoader:
    """The images of an index, opened for a score: each once, nothing random, without targets in the batches, since what is true
    is read of the index.

    Args:
        index: its path.
        config: the training run's configuration.
        kind: `boxes`, `masks`, or `regions`, masks that tell segments: what it must have.
        classes: that the model knows, which must be the index's.
        tokens, patch_size, world: as of `classification.judge`.

    Raises:
        ModelError: the index has none of that kind, or other classes.
    """
    plan = config.for_evaluation(max_tokens=tokens, patch_size=patch_size)
    loader = PackedLoader(index, plan, rank=world.rank if world else 0, world_size=world.size if world else 1)
    try:
        if list(loader.classes) != list(classes):
            raise ModelError(other_classes(index, loader.classes, classes))
        Truth(loader.engine.indexes[0]).check(kind)
    except BaseException:
        loader.close()
        raise
    return loader


def answers(
    model: nn.Module, loader: PackedLoader, device: torch.device
) -> Iterator[tuple[PackedBatch, PackedBatch, Any]]:
    """Each batch as it came, as it was sent to the device, and what the model says of it."""
    for batch in loader:
        sent = batch.to(device)
        with halved(device):
            found = model(sent)
        yield batch, sent, found


class Truth:
    """What an index says there is in each of its images, in pixels of the oriented source."""

    def __init__(self, index: Index) -> None:
        self.index = index
        self._table = index.table()

    def check(self, kind: str) -> None:
        """Raises a `ModelError` where the index has no boxes, no masks, or masks that do not tell `regions`."""
        if kind == "boxes" and not self.index.boxed:
            raise ModelError(f"'{self.index.path}' has no boxes; index its source with --boxes")
        if kind != "boxes" and not self.index.masks:
            raise ModelError(f"'{self.index.path}' has no masks; index its source with --masks")
        if kind == "regions" and self.index.masks == "classes":
            raise ModelError(
                f"'{self.index.path}' has masks of classes, which tell no segments; give --masks panoptic:…"
            )

    def coco(self) -> dict[str, Any]:
        """The boxes in COCO's words; an image's `image_id` is its row, a category's its class."""
        annotations: list[dict[str, Any]] = []
        for row in range(self.index.num_rows):
            found = self.index.boxes(row)
            for (x0, y0, x1, y1), label, flag, area in zip(
                found["boxes"].tolist(),
                found["labels"].tolist(),
                found["flags"].tolist(),
                found["areas"].tolist(),
                strict=True,
            ):
                one = {"id": len(annotations) + 1, "image_id": row, "category_id": label}
                box = [x0, y0, x1 - x0, y1 - y0]
                annotations.append({**one, "bbox": box, "area": area, "iscrowd": flag & CROWD})
        return {
            "images": [{"id": row} for row in range(self.index.num_rows)],
            "annotations": annotations,
            "categories": [{"id": n, "name": name} for n, name in enumerate(self.index.classes)],
        }

    def segments(self, row: int) -> tuple[Map, dict[int, int], list[int]]:
        """The number of each pixel's segment, i64 `[height, width]`; the class of each number, and which of them are crowds. Of
        regions that lie over each other the smaller is on top. A map alone has one segment for each of its classes."""
        kind = self.index.masks
        if kind == "classes":
            found = self._picture(row)
            return found, {int(n): int(n) for n in np.unique(found) if n >= 0}, []
        boxes = self.index.boxes(row)
        labels, crowd = boxes["labels"].tolist(), (boxes["flags"] & CROWD) > 0
        if kind == "panoptic":
            ids = boxes["ids"].tolist()
            return (
                self._picture(row),
                dict(zip(ids, labels, strict=True)),
                [n for n, c in zip(ids, crowd, strict=True) if c],
            )
        from pycocotools import mask

        height, width = self.size(row)
        found = np.full((height, width), -1, np.int64)
        every = self.index.regions(row)
        with warnings.catch_warnings():
            # pycocotools is older than numpy's last wish of those who make arrays.
            warnings.simplefilter("ignore", DeprecationWarning)
            for place in np.argsort(-boxes["areas"], kind="stable").tolist():
                if every[place]:
                    found[mask.decode({"size": [height, width], "counts": every[place]}) > 0] = place
        return found, dict(enumerate(labels)), np.flatnonzero(crowd).tolist()

    def classes(self, row: int) -> Map:
        """The class of each pixel, i64 `[height, width]`; −1 where it is not known, and in crowds."""
        numbers, kinds, crowds = self.segments(row)
        found = np.full(numbers.shape, -1, np.int64)
        for n, kind in kinds.items():
            if n not in crowds:
                found[numbers == n] = kind
        return found

    def size(self, row: int) -> tuple[int, int]:
        """Height and width of the oriented image."""
        height, width = (int(self._table[name][row].as_py()) for name in ("height", "width"))
        return height, width

    def _picture(self, row: int) -> Map:
        """The values of a mask's file: palette places, not colours; of colours the number that COCO makes of them."""
        offset, length = (int(self._table[f"mask_{name}"][row].as_py()) for name in ("offset", "length"))
        if length == 0:
            return np.full(self.size(row), -1, np.int64)
        shard, name = (self._table[f"mask_{part}"][row].as_py() for part in ("shard", "name"))
        path = os.path.join(self.index.root, shard)
        path = os.path.join(path, name) if os.path.isdir(path) else path
        try:
            with open(path, "rb") as file:
                file.seek(offset)
                data = file.read(length)
            with Image.open(io.BytesIO(data)) as opened:
                colours = self.index.masks == "panoptic"
                picture: Image.Image = opened
                void = 65535 if opened.mode.startswith("I") else 255
                widened = 1 if colours else _widened(data)
                if opened.size != self.size(row)[::-1]:
                    # It was drawn over the image as it is stored.
                    turn = TURNS.get(int(self._table["orientation"][row].as_py()))
                    picture = opened if turn is None else opened.transpose(turn)
                values = np.asarray(picture.convert("RGB") if colours else picture).astype(np.int64) // widened
        except OSError as e:
            raise ModelError(f"the mask '{path}' cannot be read: {e}") from None
        if colours:
            return values @ np.array([1, 256, 65536])  # type: ignore[no-any-return]
        return np.where(values == void, -1, values)


def _widened(png: bytes) -> int:
    """What Pillow multiplies the samples of a PNG file with: greys of 2 and 4 bits, to make 8 of them."""
    bits, colour = png[24:26] if png.startswith(b"\x89PNG") else (8, 0)
    return 255 // (2**bits - 1) if colour == 0 and bits in (2, 4) else 1


def gathered(world: World, rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The rows of all ranks, one rank after the other."""
    if world.size == 1:
        return rows
    device = world.device
    counts = world.gather(torch.tensor([len(rows)], device=device)).tolist()
    padded: Tensor = torch.zeros(max(counts), rows.shape[1], dtype=torch.float64, device=device)
    padded[: len(rows)] = torch.from_numpy(rows).to(device)
    parts = torch.split(world.gather(padded).cpu(), max(counts)) if max(counts) else ()
    return np.concatenate([part[:n].numpy() for part, n in zip(parts, counts, strict=True)] or [rows])


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
