"""The likeliest classes of image files, or their number.

In: a model, files and folders. Out: for each file its classes with their probabilities or, of a regression, its number; or
why there is none. A file is read, packed with its neighbours, and forgotten, so memory does not grow with their number.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from navit_loader.batch import OK
from navit_loader.errors import ModelError, PlanError
from navit_loader.index.sources.rows import IMAGE_SUFFIXES
from navit_loader.render.images import pack_images, picture, picture_size

from .frozen import planned
from .opened import OpenedModel

TOGETHER = 64
"""Files that are packed together."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the model says of one file.

    Attributes:
        path: the file.
        classes: names and probabilities, likeliest first.
        number: of a model that predicts one.
        error: why there is neither; empty where there is.
        labels: names of all classes whose probability reaches the threshold, of a model by which an image may have several.
    """

    path: Path
    classes: tuple[tuple[str, float], ...] = ()
    number: float | None = None
    error: str = ""
    labels: tuple[str, ...] | None = None


def predict(
    opened: OpenedModel,
    paths: Iterable[Path],
    *,
    top: int = 3,
    threshold: float = 0.5,
    tokens: int | None = None,
    patch_size: int | None = None,
) -> Iterator[Prediction]:
    """Predictions for files, in the order given; folders are gone through by name, their images by the suffixes of an index.

    Args:
        opened: a model with a classifier, or a regression.
        paths: files and folders.
        top: classes of each answer at most.
        threshold: probability from which on a label holds, of a model by which an image may have several.
        tokens: budget of one image; None takes the training cap and never scales up.
        patch_size: P; None takes the first of `plan.patch_sizes`.

    Raises:
        ModelError: the model has no classifier, or its answers are no numbers.
    """
    waiting: list[tuple[Path, bytes | str]] = []
    for path in files_of(paths):
        try:
            waiting.append((path, path.read_bytes()))
        except IsADirectoryError:
            waiting.append((path, "a folder without images"))
        except OSError as e:
            waiting.append((path, e.strerror or str(e)))
        if len(waiting) == TOGETHER:
            yield from _predictions(opened, waiting, top, threshold, tokens, patch_size)
            waiting = []
    if waiting:
        yield from _predictions(opened, waiting, top, threshold, tokens, patch_size)


def files_of(paths: Iterable[Path]) -> list[Path]:
    """Files, and those of folders, in the order in which they are predicted."""
    return [file for path in paths for file in _files(path)]


def _files(path: Path) -> list[Path]:
    """The images beneath a folder; of anything else, or where there are none, the path itself."""
    found = [p for p in path.rglob("*") if p.suffix[1:].lower() in IMAGE_SUFFIXES and p.is_file()]
    return sorted(found) or [path]


def _predictions(
    opened: OpenedModel,
    files: list[tuple[Path, bytes | str]],
    top: int,
    threshold: float,
    tokens: int | None,
    patch_size: int | None,
) -> list[Prediction]:
    config = planned(opened, tokens, patch_size)
    predictions = [Prediction(path, error=found if isinstance(found, str) else "") for path, found in files]
    pictures: dict[int, bytes] = {}
    for n, (path, found) in enumerate(files):
        if isinstance(found, bytes):
            try:
                picture_size(n, picture(n, found))
                pictures[n] = found
            except PlanError:
                predictions[n] = Prediction(path, error="no image of a known format")
    if pictures:
        good = list(pictures)
        batch = pack_images(list(pictures.values()), config)
        answers = (opened.numbers if opened.regresses else opened.chances)(batch).cpu().numpy()
        if np.isnan(answers[batch.status == OK]).any():
            raise ModelError(f"'{opened.path}' has no answer (NaN); its weights ran away or are damaged")
        for b, e in np.argwhere(batch.image_ids >= 0):
            n = good[int(batch.image_ids[b, e])]
            if batch.status[b, e] == OK and opened.regresses:
                predictions[n] = Prediction(files[n][0], number=float(answers[b, e]))
            elif batch.status[b, e] == OK:
                ranked = np.argsort(-answers[b, e], kind="stable")
                named = tuple((opened.classes[c], float(answers[b, e, c])) for c in ranked[:top])
                hold = tuple(opened.classes[c] for c in ranked if answers[b, e, c] >= threshold)
                predictions[n] = Prediction(files[n][0], named, labels=hold if opened.several else None)
            else:
                predictions[n] = Prediction(files[n][0], error="its pixels cannot be decoded")
    return predictions
