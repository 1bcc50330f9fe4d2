"""`pack_shards`: a data set as tars of smaller JPEGs, so that training decodes less.

In: an index, over whatever sources. Out: WebDataset tars in a folder, images in the order of the index, each with its
labels and caption beside it. What is done is kept: a run that was stopped goes on with the tar it was at.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from .batch import NO_CLASS
from .config import DataConfig, LoaderConfig, PlanConfig, RenderConfig
from .errors import IndexFileError
from .index import Index
from .render.engine import Engine

_RUN = 64
"""Images fetched at once: one planned sequence of one-token images."""


@dataclass(frozen=True, slots=True)
class Packed:
    """What a run did.

    Attributes:
        shards: tars in the folder.
        images: images in them that this run wrote.
        broken: images that could not be decoded, listed in `broken.jsonl` of the folder.
        bytes_before: of the files of those images.
        bytes_after: of what was written for them.
    """

    shards: int
    images: int
    broken: int
    bytes_before: int
    bytes_after: int


def pack_shards(
    index: Index,
    folder: str | os.PathLike[str],
    *,
    max_side: int = 512,
    quality: int = 90,
    shard_images: int = 4096,
    threads: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Packed:
    """Rewrites the images of `index` as tars `shard-000000.tar` … in `folder`.

    A JPEG that is small and upright already is copied as it is; all else is decoded, turned upright, scaled so that no
    side is longer than `max_side`, and written as JPEG.

    Args:
        index: an opened index.
        folder: made where it is missing.
        max_side: pixels of the longer side at most.
        quality: of the JPEGs, 1 to 95.
        shard_images: images per tar, a multiple of 64.
        threads: encoding threads; 0 means one per core that this process may use.
        progress: called with (images done, images in all).

    Raises:
        IndexFileError: a value that is not allowed, a folder that holds the tars of another run, or one that cannot be
            written.
        RenderError: a file that stays out of reach.
    """
    if max_side < 1 or not 1 <= quality <= 95 or shard_images < _RUN or shard_images % _RUN:
        raise IndexFileError(
            f"max_side = {max_side}, quality = {quality}, shard_images = {shard_images}: allowed are at least 1, 1 to 95, "
            f"and a multiple of {_RUN}"
        )
    place = os.path.abspath(os.fspath(folder))
    facts = {
        "plan_fingerprint": index.plan_fingerprint, "render_fingerprint": index.render_fingerprint,
        "max_side": max_side, "quality": quality, "shard_images": shard_images,
    }  # fmt: skip
    total = -(-index.num_rows // shard_images)
    try:
        os.makedirs(place, exist_ok=True)
        _same_run(os.path.join(place, "pack.json"), facts)
        counts = {"images": 0, "broken": 0, "bytes_before": 0, "bytes_after": 0}
        with Engine(_config(), index) as engine, ThreadPoolExecutor(threads or len(os.sched_getaffinity(0))) as pool:
            for shard in range(total):
                path = os.path.join(place, f"shard-{shard:06d}.tar")
                first, last = shard * shard_images, min((shard + 1) * shard_images, index.num_rows)
                if not os.path.exists(path):
                    _write(path, _images(engine, index, first, last, pool, max_side, quality, progress), counts)
                elif progress is not None:
                    progress(last, index.num_rows)
    except OSError as e:
        raise IndexFileError(f"'{place}' cannot be written: {e.strerror}; is there space and permission?") from None
    return Packed(shards=total, **counts)


@dataclass(frozen=True, slots=True)
class _Member:
    row: int
    uri: str
    jpeg: bytes | None
    reason: str
    before: int
    label: Any
    caption: str | None


def _config() -> LoaderConfig:
    """Images in order, `_RUN` to a sequence."""
    plan = PlanConfig(sequence_length=_RUN, max_images=_RUN, max_tokens=1, patch_sizes=(1,), packing="first_fit")
    render = RenderConfig(failure_limit=1.0)
    return LoaderConfig(data=DataConfig(batch_size=1), plan=plan, render=render).for_evaluation()


def _same_run(path: str, facts: dict[str, Any]) -> None:
    try:
        with open(path, encoding="utf-8") as file:
            before = json.load(file)
    except FileNotFoundError:
        with open(path, "w", encoding="utf-8") as file:
            json.dump(facts, file, indent=1)
        return
    except ValueError:
        before = {}
    if before != facts:
        other = ", ".join(key for key in facts if before.get(key) != facts[key])
        raise IndexFileError(
            f"'{os.path.dirname(path)}' holds the tars of another run ({other} differ); choose another"
        )


def _images(
    engine: Engine,
    index: Index,
    first: int,
    last: int,
    pool: ThreadPoolExecutor,
    max_side: int,
    quality: int,
    progress: Callable[[int, int], None] | None,
) -> Iterator[_Member]:
    rows = index.table().slice(first, last - first).select(_annotations(index)).to_pylist()
    sequences = range(first // _RUN, -(-last // _RUN))
    pending = [engine.submit_encoded(0, number, 1) for number in sequences[:2]]
    for number in sequences:
        batch = pending.pop(0).wait()
        assert batch is not None, "without a timeout there is a batch or an error"
        if number + 2 in sequences:
            pending.append(engine.submit_encoded(0, number + 2, 1))
        found = [int(row) for row in batch.slots.image_ids[0] if row >= 0]
        assert found == list(range(number * _RUN, min((number + 1) * _RUN, index.num_rows))), "images come in order"
        files = [bytes(batch.file(0, i)) for i in range(len(found))]
        turned = [int(value) for value in batch.orientations[0, : len(found)]]
        uris = [batch.uri(0, i) for i in range(len(found))]
        del batch
        made = pool.map(lambda file, turn: _smaller(file, turn, max_side, quality), files, turned)
        for row, uri, file, (jpeg, reason) in zip(found, uris, files, made, strict=True):
            said = rows[row - first]
            yield _Member(row, uri, jpeg, reason, len(file), said["label"], said.get("caption"))
        if progress is not None:
            progress(found[-1] + 1, index.num_rows)


def _annotations(index: Index) -> list[str]:
    return [name for name in ("label", "caption") if name in index.table().column_names]


def _smaller(file: bytes, orientation: int, max_side: int, quality: int) -> tuple[bytes | None, str]:
    """The JPEG to write, or the reason why there is none."""
    if not file:
        return None, "its file could not be had"
    try:
        with Image.open(io.BytesIO(file)) as image:
            if image.format == "JPEG" and orientation <= 1 and max(image.size) <= max_side and image.mode == "RGB":
                image.load()
                return file, ""
            # JPEG decodes at a smaller scale at once where the target allows.
            image.draft("RGB", (max_side, max_side))
            upright = ImageOps.exif_transpose(image)
            if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
                upright = upright.convert("RGBA")
                upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright)
            upright = upright.convert("RGB")
            upright.thumbnail((max_side, max_side), Image.Resampling.BICUBIC, reducing_gap=None)
            out = io.BytesIO()
            upright.save(out, "JPEG", quality=quality)
            return out.getvalue(), ""
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as e:
        return None, str(e)


def _write(path: str, members: Iterator[_Member], counts: dict[str, int]) -> None:
    """Writes one tar under another name, then its broken images to the list, then puts it in place."""
    broken = []
    with tarfile.open(f"{path}.part", "w", format=tarfile.USTAR_FORMAT) as tar:
        for member in members:
            if member.jpeg is None:
                broken.append({"row": member.row, "uri": member.uri, "reason": member.reason})
                continue
            counts["images"] += 1
            counts["bytes_before"] += member.before
            counts["bytes_after"] += len(member.jpeg)
            key = f"{member.row:09d}"
            _add(tar, f"{key}.jpg", member.jpeg)
            first, *_ = found = np.atleast_1d(member.label).tolist()
            labels = [label for label in found if label >= 0]
            if first == NO_CLASS:
                _add(tar, f"{key}.json", b'{"label": []}')
            elif len(labels) == 1:
                _add(tar, f"{key}.cls", str(labels[0]).encode())
            elif labels:
                _add(tar, f"{key}.json", json.dumps({"label": labels}).encode())
            if member.caption:
                _add(tar, f"{key}.txt", member.caption.encode())
    counts["broken"] += len(broken)
    if broken:
        with open(os.path.join(os.path.dirname(path), "broken.jsonl"), "a", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in broken)
    os.replace(f"{path}.part", path)


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))
