"""What stands where in image files: boxes, maps of classes, or segments.

In: a model of one of these tasks, files and folders. Out: for each file what was found, in pixels of the oriented image, or why
nothing can be. A file is read, asked about and forgotten, so memory does not grow with their number.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import nn

from navit_loader.batch import OK
from navit_loader.config import LoaderConfig, RenderConfig
from navit_loader.errors import ModelError, PlanError
from navit_loader.render.images import pack_images, picture, picture_size, upright_pixels

from ..evaluate.drawn import Corners, with_boxes, with_map
from ..evaluate.segmentation import segmented
from ..model.dense import likeliest
from ..model.owl import best_of
from ..world import halved
from .frozen import planned
from .opened import OpenedModel
from .predict import files_of
from .windows import Window, ends_inside, joined_map, one_of_each, windows_of

THRESHOLD = 0.3
"""Least score of a box that is told."""


@dataclass(frozen=True, slots=True)
class Located:
    """What was found in one file.

    Attributes:
        path: the file.
        size: height and width of the oriented image.
        boxes: of a detector: name, number of the class, score, and (left, top, right, bottom) in pixels; surest first.
        map: of others: classes of the pixels, or numbers of segments from 1 on, i64 `[height, width]`.
        segments: name, class and score of segments 1, 2, …; None where `map` is of classes.
        error: why there is nothing; empty where there is.
        render: how its pixels are read.
    """

    path: Path
    size: tuple[int, int] = (0, 0)
    boxes: tuple[tuple[str, int, float, Corners], ...] = ()
    map: npt.NDArray[np.int64] | None = None
    segments: tuple[tuple[str, int, float], ...] | None = None
    error: str = ""
    render: RenderConfig = field(default_factory=RenderConfig, repr=False)

    def to_dict(self, classes: list[str]) -> dict[str, Any]:
        """Plain values: boxes as COCO has them, and of a map the pixels of each class or segment."""
        found: dict[str, Any] = {"path": str(self.path), "height": self.size[0], "width": self.size[1]}
        if self.map is None:
            boxes = [
                {"class": name, "score": score, "bbox": [x0, y0, x1 - x0, y1 - y0]}
                for name, _, score, (x0, y0, x1, y1) in self.boxes
            ]
            return {**found, "boxes": boxes}
        if self.segments is None:
            return {**found, "pixels": {name: int((self.map == n).sum()) for n, name in enumerate(classes)}}
        segments = [
            {"class": name, "score": score, "pixels": int((self.map == n + 1).sum())}
            for n, (name, _, score) in enumerate(self.segments)
        ]
        return {**found, "segments": segments}

    def drawn(self) -> Image.Image:
        """The image with what was found in it, its pixels as the model got them.

        Raises:
            OSError, PlanError: the file cannot be read any more.
        """
        image = Image.fromarray(upright_pixels(self.path.read_bytes(), self.render))
        if self.map is None:
            return with_boxes(image, self.boxes)
        return with_map(image, self.map, -1 if self.segments is None else 0)


def locate(
    opened: OpenedModel,
    paths: Iterable[Path],
    *,
    threshold: float = THRESHOLD,
    tokens: int | None = None,
    patch_size: int | None = None,
    windows: bool = False,
) -> Iterator[Located]:
    """What is found in files, in the order given; folders are gone through by name.

    Args:
        opened: a model that `places`.
        paths: files and folders.
        threshold: least score of a box.
        tokens: budget of one image, or of one window; None takes the training cap and never scales up.
        patch_size: P; None takes the first of `plan.patch_sizes`.
        windows: images with more patches than that are seen piece by piece at their own size, in place of being scaled down.

    Raises:
        ModelError: the model is of another task, or a panoptic one that is to see windows.
    """
    task = opened.run.train.task
    if not opened.places:
        raise ModelError(f"'{opened.path}' (train.task = '{task}') does not say where things are")
    if windows and task == "panoptic":
        raise ModelError("segments of windows cannot be put together; leave --windows out, or give more --tokens")
    config = planned(opened, None if windows else tokens, patch_size)
    if windows:
        plan = config.plan
        cap = plan.max_tokens if tokens is None else tokens + plan.prefix_tokens
        config = replace(config, plan=replace(plan, max_tokens=cap, sequence_length=max(plan.sequence_length, cap)))
    for path in files_of(paths):
        try:
            data = path.read_bytes()
            size = picture_size(0, picture(0, data))
        except OSError as e:
            yield Located(path, error="a folder without images" if path.is_dir() else e.strerror or str(e))
            continue
        except PlanError:
            yield Located(path, error="no image of a known format")
            continue
        yield _located(opened, path, data, size, config, threshold, windows)


def _located(
    opened: OpenedModel,
    path: Path,
    data: bytes,
    size: tuple[int, int],
    config: LoaderConfig,
    threshold: float,
    windows: bool,
) -> Located:
    plan, parts = config.plan, [(0, 0, *size)]
    pieces: list[Any] = [data]
    if windows:
        parts = windows_of(size, plan.patch_sizes[0], plan.max_tokens - plan.prefix_tokens)
    if len(parts) > 1:
        try:
            pixels = upright_pixels(data, config.render)
        except PlanError:
            return Located(path, error="its pixels cannot be decoded")
        pieces = [np.ascontiguousarray(pixels[y : y + h, x : x + w]) for y, x, h, w in parts]
    answers = [_asked(opened, piece, config) for piece in pieces]
    if any(answer is None for answer in answers):
        return Located(path, error="its pixels cannot be decoded")
    task = opened.run.train.task
    if task == "detection":
        return Located(path, size, boxes=_boxes(opened, answers, parts, size, threshold), render=config.render)
    if task == "segmentation":
        joined = joined_map(size, parts, [answer.cpu().numpy() for answer in answers])
        return Located(path, size, map=joined, render=config.render)
    found = answers[0]
    named = ((opened.classes[kind], kind, score) for kind, score in zip(found.classes, found.scores, strict=True))
    return Located(path, size, map=found.map.cpu().numpy(), segments=tuple(named), render=config.render)


@torch.inference_mode()
def _asked(opened: OpenedModel, piece: Any, config: LoaderConfig) -> Any:
    """What the model says of one image; None where it cannot be decoded."""
    host = pack_images([piece], config)
    if not (host.status == OK).any():
        return None
    batch = host.to(opened.device)
    module: nn.Module = opened.module
    with halved(opened.device):
        found = module(batch)
    if opened.run.train.task == "detection":
        return best_of(found, batch)[0]
    if opened.run.train.task == "segmentation":
        return likeliest(found, batch)[0]
    panoptic = opened.run.panoptic
    return segmented(found, batch, [name not in panoptic.stuff for name in opened.classes], panoptic)[0]


def _boxes(
    opened: OpenedModel, answers: list[Any], parts: list[Window], size: tuple[int, int], threshold: float
) -> tuple[tuple[str, int, float, Corners], ...]:
    offsets = [np.array([x, y, x, y]) for y, x, _, _ in parts]
    placed = [a["boxes"].double().cpu().numpy() + o for a, o in zip(answers, offsets, strict=True)]
    boxes = np.concatenate(placed)
    scores, kinds = (
        np.concatenate([answer[name].cpu().numpy() for answer in answers]) for name in ("scores", "queries")
    )
    if np.isnan(boxes).any():
        raise ModelError(f"'{opened.path}' has no answer (NaN); its weights ran away or are damaged")
    sure = np.flatnonzero(scores >= threshold)
    sure = sure[np.argsort(-scores[sure], kind="stable")]
    if len(parts) > 1:
        cut = np.concatenate([ends_inside(own, part, size) for own, part in zip(placed, parts, strict=True)])
        sure = sure[one_of_each(boxes[sure], scores[sure].astype(np.float64), kinds[sure], cut[sure])]
    return tuple(
        (opened.classes[int(kinds[n])], int(kinds[n]), float(scores[n]), tuple(boxes[n].tolist())) for n in sure
    )
