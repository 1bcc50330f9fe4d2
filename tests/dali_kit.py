"""What the tests of other decoders share: one planned batch through the engine with pixels, and encoded through another."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from navit_loader import PackedBatch
from navit_loader.batch import View
from navit_loader.config import RENDER_KEYS, RenderConfig
from navit_loader.render.encoded import OWN_ARRAYS, EncodedBatch

from .rendering import batch, encode, photo, planned, renderer, source

SIZE = (130, 150)
DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
    ),
]

JPEG = {
    "4:4:4": (lambda: photo(150, 130), {"quality": 90, "subsampling": "4:4:4"}),
    "4:2:2": (lambda: photo(150, 130), {"quality": 90, "subsampling": "4:2:2"}),
    "4:2:0": (lambda: photo(150, 130), {"quality": 90, "subsampling": "4:2:0"}),
    "progressive": (lambda: photo(150, 130), {"quality": 90, "progressive": True}),
    "grey": (lambda: photo(150, 130).convert("L"), {"quality": 90}),
}
"""JPEG files that DALI and nvJPEG decode."""


def jpeg(kind: str = "4:2:0", orientation: int = 1, seed: int = 0) -> bytes:
    make, options = JPEG[kind]
    return encode(photo(150, 130, seed) if seed else make(), "JPEG", orientation, **options)


def packed(found: dict[str, Any]) -> PackedBatch:
    teacher = found.pop("teacher")
    return PackedBatch(**found, teacher=None if teacher is None else View(**teacher))


def both(
    files: list[bytes],
    sizes: list[tuple[int, int]],
    sequences: list[list[dict[str, Any]]],
    *,
    orientations: list[int] | None = None,
    limits: dict[str, Any] | None = None,
    patch_size: int = 16,
    batch_size: int = 0,
    **options: Any,
) -> tuple[PackedBatch, EncodedBatch, list[dict[str, Any]]]:
    """The batch with pixels, the same batch encoded, and the engine's ledger; row r is `files[r]`."""
    options = {"dct_scaling": False} | options
    made = renderer(source(sizes, orientations, bytes=files), limits, **options)
    planned = batch(sequences, patch_size, batch_size)
    want = packed(made.submit(planned).wait(30))
    found = made.submit(planned, True).wait(30)
    assert made.encoded_bytes(planned) >= sum(map(len, files[: sum(map(len, sequences))]))
    own = {name: found.pop(name) for name in OWN_ARRAYS}
    config = RenderConfig(**{k: v for k, v in options.items() if k in RENDER_KEYS})
    encoded = EncodedBatch(slots=packed(found), render={k: getattr(config, k) for k in RENDER_KEYS}, **own)
    failures = made.failures()
    made.close()
    return want, encoded, failures


def host(value: Any) -> np.ndarray:
    return value if isinstance(value, np.ndarray) else value.cpu().numpy()


def same_but_pixels(got: PackedBatch, want: PackedBatch) -> None:
    """Every field but `patches` is equal, bit for bit, and so is what holds no pixels."""
    assert (got.patch_size, got.max_seqlen, got.prefix_tokens, got.epoch, got.sequence) == (
        *(want.patch_size, want.max_seqlen, want.prefix_tokens, want.epoch, want.sequence),
    )
    assert list(got.arrays()) == list(want.arrays())
    for name, expected in want.arrays().items():
        found = host(got.arrays()[name])
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape), name
        if not name.endswith("patches"):
            assert np.array_equal(found, expected), name
    for mine, theirs in ((got, want), *([(got.teacher, want.teacher)] if want.teacher is not None else [])):
        pixels = (theirs.segment_ids >= 0) & (theirs.positions[..., 0] >= 0)
        assert not host(mine.patches)[~pixels].any()


def impossible_table(data: bytes) -> bytes:
    """The file with a Huffman table that cannot be: its markers are in order, and no decoder can read it."""
    at = data.index(b"\xff\xc4") + 5
    return data[:at] + b"\xff" * 16 + data[at + 16 :]


def turned(make: Any) -> tuple[list[bytes], list[tuple[int, int]], list[list[dict[str, Any]]], list[int]]:
    """All orientations, mirrored and not, cropped and not, with and without drop: four images a sequence."""
    files, sizes, orientations, sequences = [], [], [], []
    for n, orientation in enumerate(o for o in range(1, 9) for _ in range(2)):
        size = SIZE if orientation < 5 else SIZE[::-1]
        crop = (7, 11, 96, 87) if n % 3 else (0, 0, *size)
        offset = 0 if n % 4 == 0 else sequences[-1][-1]["offset"] + 2 + sequences[-1][-1]["kept"]
        if n % 4 == 0:
            sequences.append([])
        kept = (20, 7, 19)[n % 3]
        image = planned(n, offset, size, (5, 4), crop=crop, flip=bool(n % 2), kept=kept, teacher_grid=(3, 6))
        sequences[-1].append(image | {"teacher_offset": 19 * (n % 4)})
        files.append(make(orientation))
        sizes.append(size)
        orientations.append(orientation)
    return files, sizes, sequences, orientations


VIEWS = {
    "sequence_length": 128,
    "max_tokens": 40,
    "prefix_tokens": 2,
    "max_images": 5,
    "teacher": {"sequence_length": 80, "max_tokens": 24, "prefix_tokens": 1, "patch_size": 8},
}


def pixels(batch: Any) -> list[np.ndarray]:
    return [host(batch.patches), host(batch.teacher.patches)]
