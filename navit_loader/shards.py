"""`pack_shards`: a data set as tars of smaller JPEGs, so that training decodes less.

In: an index, over whatever sources. Out: WebDataset tars in a folder, images in the order of the index, each with its
labels and caption beside it. A tar is a part of the work, made by whoever does parts (`Spread`) and put in place by a rename,
so a run that was stopped goes on with the tars that are missing. A note beside each says what became of its images, until all
are there.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from .batch import NO_CLASS
from .config import DataConfig, LoaderConfig, PlanConfig, RenderConfig
from .errors import IndexFileError
from .index import Index
from .render.engine import Engine
from .spread import Spread, here

_RUN = 64
"""Images fetched at once: one planned sequence of one-token images."""


@dataclass(frozen=True, slots=True)
class Packed:
    """What a run did, with those before it that were stopped.

    Attributes:
        shards: tars in the folder.
        images: images that were written into them.
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
    spread: Spread | None = None,
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
        spread: who makes the tars; None is this process. They are the same.

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
    if index.boxed or index.masks:
        raise IndexFileError(
            f"'{index.path}' has boxes or masks, which the tars would not hold; index the images without --boxes and --masks, "
            "and pack those"
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
        # Elsewhere nobody sees how far a tar is.
        make = _Tar(index, place, max_side, quality, shard_images, threads, progress if spread is None else None)
        missing = [shard for shard in range(total) if not os.path.exists(make.path(shard))]
        done = index.num_rows - sum(make.images(shard) for shard in missing)
        for number, _ in (spread or here)(make, missing):
            done += make.images(missing[number])
            if progress is not None:
                progress(done, index.num_rows)
        return Packed(shards=total, **_join(Path(place)))
    except OSError as e:
        raise IndexFileError(f"'{place}' cannot be written: {e.strerror}; is there space and permission?") from None


@dataclass(frozen=True, slots=True)
class _Tar:
    """Makes a tar, by its number."""

    index: Index
    place: str
    max_side: int
    quality: int
    shard_images: int
    threads: int
    progress: Callable[[int, int], None] | None

    def path(self, shard: int) -> str:
        return os.path.join(self.place, f"shard-{shard:06d}.tar")

    def images(self, shard: int) -> int:
        return min(self.shard_images, self.index.num_rows - shard * self.shard_images)

    def __call__(self, shard: int) -> None:
        path = self.path(shard)
        if os.path.exists(path):
            # Whoever made it was lost before it could say so.
            return
        first = shard * self.shard_images
        rows = self.index.part(first, self.shard_images)
        with (
            Engine(_config(), rows) as engine,
            ThreadPoolExecutor(self.threads or len(os.sched_getaffinity(0))) as pool,
        ):
            _write(path, self._seen(_images(engine, rows, first, pool, self.max_side, self.quality)))

    def _seen(self, members: Iterator[_Member]) -> Iterator[_Member]:
        for member in members:
            yield member
            if self.progress is not None and member.row % _RUN == _RUN - 1:
                self.progress(member.row + 1, self.index.num_rows)


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
    engine: Engine, index: Index, first: int, pool: ThreadPoolExecutor, max_side: int, quality: int
) -> Iterator[_Member]:
    """All images of `index`, whose rows are those of another from `first` on."""
    rows = index.table().select(_annotations(index)).to_pylist()
    sequences = range(-(-index.num_rows // _RUN))
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
            said = rows[row]
            yield _Member(first + row, uri, jpeg, reason, len(file), said["label"], said.get("caption"))


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


def _write(path: str, members: Iterator[_Member]) -> None:
    """Writes one tar under another name, then its note, then puts it in place."""
    counts = {"images": 0, "bytes_before": 0, "bytes_after": 0}
    broken: list[dict[str, Any]] = []
    # Two may be at it, where one was taken for lost.
    draft = f"{path}.{uuid.uuid4().hex}.part"
    try:
        with tarfile.open(draft, "w", format=tarfile.USTAR_FORMAT) as tar:
            for member in members:
                if member.jpeg is None:
                    broken.append({"row": member.row, "uri": member.uri, "reason": member.reason})
                    continue
                counts["images"] += 1
                counts["bytes_before"] += member.before
                counts["bytes_after"] += len(member.jpeg)
                _add_member(tar, member, member.jpeg)
        with open(f"{draft}.note", "w", encoding="utf-8") as file:
            json.dump({**counts, "broken": broken}, file)
        os.replace(f"{draft}.note", f"{path}.note")
        os.replace(draft, path)
    except BaseException:
        for left in (draft, f"{draft}.note"):
            with suppress(OSError):
                os.unlink(left)
        raise


def _add_member(tar: tarfile.TarFile, member: _Member, jpeg: bytes) -> None:
    key = f"{member.row:09d}"
    _add(tar, f"{key}.jpg", jpeg)
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


def _join(place: Path) -> dict[str, int]:
    """The notes of all tars, summed up; the broken images go into `broken.jsonl`, in the order of the index."""
    total = {"images": 0, "broken": 0, "bytes_before": 0, "bytes_after": 0}
    broken = {}
    listed = place / "broken.jsonl"
    if listed.exists():
        # Of tars from before there were notes.
        broken = {line["row"]: line for line in map(json.loads, listed.read_text(encoding="utf-8").splitlines())}
    notes = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(place.glob("shard-*.tar.note"))]
    for note in notes:
        broken |= {line["row"]: line for line in note["broken"]}
        total["broken"] += len(note["broken"])
        for name in ("images", "bytes_before", "bytes_after"):
            total[name] += note[name]
    if broken:
        draft = place / "broken.jsonl.part"
        draft.write_text("".join(json.dumps(broken[row]) + "\n" for row in sorted(broken)), encoding="utf-8")
        draft.replace(listed)
    for left in (*place.glob("shard-*.tar.note"), *place.glob("shard-*.part"), *place.glob("shard-*.part.note")):
        left.unlink()
    return total


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))
