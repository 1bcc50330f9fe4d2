"""Every image of an index decoded, as training does, its mask with it: which are broken.

In: an index. Out: what of its images cannot be decoded, and what surprises about the others. Apart from the command, which
prints it, since the parts of a large index are looked at by whoever does parts (`Spread`). Then each leaves a file in
`INDEX.linting` until all are done, so that a check which is started again does what is missing.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from .config import DataConfig, LoaderConfig, PlanConfig, RenderConfig, Targets
from .deliver.local import PackedLoader
from .errors import IndexFileError, reason
from .index import Index
from .plan import identity
from .spread import Spread

PART = 8192
"""Images of one part: some half a minute of one core."""


@dataclass
class Decoded:
    """What came of the images.

    Attributes:
        seen: images, broken ones included.
        failures: entries of the ledger.
        dark: images of 16 bits a sample that are nearly black.
        profiles: colour profiles other than sRGB that were not applied: their kind, how many images, one of them.
    """

    seen: int = 0
    failures: list[dict[str, Any]] = field(default_factory=list)
    dark: float = 0.0
    profiles: list[tuple[str, int, str]] = field(default_factory=list)


def decode_all(
    index: Index, threads: int = 0, progress: Callable[[int], None] | None = None, spread: Spread | None = None
) -> Decoded:
    """Renders all images once, small.

    Args:
        index: of the images.
        threads: decoding threads; 0 means one per core that this process may use.
        progress: called with the images seen so far.
        spread: who decodes, in parts; None is this process.

    Raises:
        RenderError: a fault that may pass, such as a refused permission, outlasted its retries.
        IndexFileError: parts cannot be kept beside the index.
    """
    if spread is None:
        found = _decoded(index, threads, progress)
    else:
        place = Path(f"{index.path}.linting")
        found, do = Decoded(), _Part(index, threads, place, PART)
        parts = dict[int, Decoded]()
        try:
            place.mkdir(exist_ok=True)
            for number, part in spread(do, range(0, index.num_rows, PART)):
                parts[number] = part
                found.seen += part.seen
                if progress is not None:
                    progress(found.seen)
        except OSError as e:
            raise IndexFileError(
                f"'{place}' cannot be written: {reason(e)}; copy the index to where you, and all machines, may write"
            ) from None
        counts: dict[str, tuple[int, str]] = {}
        for _, part in sorted(parts.items()):
            found.failures += part.failures
            found.dark += part.dark
            for kind, images, uri in part.profiles:
                before, first = counts.get(kind, (0, uri))
                counts[kind] = (before + images, first)
        found.profiles = [(kind, *counts[kind]) for kind in sorted(counts)]
        shutil.rmtree(place, ignore_errors=True)
    found.failures.sort(key=lambda failure: str(failure["uri"]))
    return found


@dataclass(frozen=True)
class _Part:
    """Decodes the images from one row on."""

    index: Index
    threads: int
    place: Path
    count: int

    def __call__(self, first: int) -> Decoded:
        part = self.index.part(first, self.count)
        path = self.place / f"{identity.digest(part.plan_fingerprint, part.render_fingerprint)}.json"
        if path.exists():
            return Decoded(**json.loads(path.read_text(encoding="utf-8")))
        found = _decoded(part, self.threads, None)
        for failure in found.failures:
            failure["image"] += first
        draft = path.with_suffix(f".{uuid.uuid4().hex}")
        draft.write_text(json.dumps(asdict(found)), encoding="utf-8")
        draft.replace(path)
        return found


def _decoded(index: Index, threads: int, progress: Callable[[int], None] | None) -> Decoded:
    config = LoaderConfig(
        data=DataConfig(batch_size=1),
        plan=PlanConfig(sequence_length=512, max_images=64, max_tokens=64),
        # Scaled decoding would skip coefficients of the picture, so it is off here.
        render=RenderConfig(threads=threads, dct_scaling=False, failure_limit=1.0),
    ).for_evaluation()
    if index.masks:  # an evaluation reads them by itself
        config = replace(config, plan=replace(config.plan, targets=Targets(masks=1)))
    with PackedLoader(index, config, rank=0, world_size=1) as loader:
        seen = 0
        for batch in loader:
            seen += int((batch.status > 0).sum())
            if progress is not None:
                progress(seen)
        return Decoded(seen, loader.failures(), loader.stats()["dark"], loader.engine.profiles())
