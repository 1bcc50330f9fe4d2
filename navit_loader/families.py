"""Tensors as other people's models take them: what stands where, family by family.

In: grids of patches, and how samples are normalised. Out: for each patch its place in the tensor `pixel_values`, and the
tensors that go with it. A family is a row of `FAMILIES`. Apart, since a batch that is rendered already
(`PackedBatch.to_qwen_vl` and its like) and images that are rendered for this alone (`ImageProcessor`) lay out alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from . import _packer
from .errors import PlanError, needed

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Three = tuple[float, float, float]

HALF: Three = (0.5, 0.5, 0.5)
CLIP_MEAN: Three = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Three = (0.26862954, 0.26130258, 0.27577711)


class Laid(NamedTuple):
    """Images of a tensor: grids `[N, 2]` (h, w), tokens `[N]`, slots an image has where it is padded, and of each token its
    image and its (y, x)."""

    grids: Ints
    tokens: Ints
    room: int
    image: Ints
    y: Ints
    x: Ints


@dataclass(frozen=True, slots=True)
class Family:
    """How models of one family take images.

    Attributes:
        with_it: the tensors beside the pixels, by name.
        form: `packed` patch after patch, `padded` to as many patches for each image, or whole `images` padded with zeros.
        mean, std: of samples between 0 and 1, where nothing else is given.
        blocks: side of the blocks in which patches follow each other, row by row where it is 1.
        channels_last: whether the colours of a pixel stand together, or each colour's pixels.
        repeats: how often a patch stands there, once a frame.
        flat: whether a patch is a row of floats, not `[3, P, P]`.
        pixels: name of the pixels.
        whole: whether tokens may not be missing.
    """

    with_it: Callable[[Laid], dict[str, npt.NDArray[Any]]]
    form: Literal["packed", "padded", "images"]
    mean: Three = HALF
    std: Three = HALF
    blocks: int = 1
    channels_last: bool = False
    repeats: int = 1
    flat: bool = True
    pixels: str = "pixel_values"
    whole: bool = True


def _thw(laid: Laid) -> dict[str, npt.NDArray[Any]]:
    return {"image_grid_thw": np.insert(laid.grids, 0, 1, axis=1)}


def _valid(laid: Laid) -> npt.NDArray[np.bool_]:
    return np.arange(laid.room) < laid.tokens[:, None]


def _naflex(laid: Laid) -> dict[str, npt.NDArray[Any]]:
    valid = _valid(laid)
    coord = np.zeros((*valid.shape, 2), np.int64)
    coord[valid] = np.stack([laid.y, laid.x], 1)
    return {"patch_coord": coord, "patch_valid": valid}


def _siglip2(laid: Laid) -> dict[str, npt.NDArray[Any]]:
    return {"pixel_attention_mask": _valid(laid).astype(np.int32), "spatial_shapes": laid.grids}


def _gemma4(laid: Laid) -> dict[str, npt.NDArray[Any]]:
    valid = _valid(laid)
    places = np.full((*valid.shape, 2), -1, np.int64)
    places[valid] = np.stack([laid.x, laid.y], 1)
    return {"image_position_ids": places, "num_soft_tokens_per_image": laid.tokens // 9}


FAMILIES: Mapping[str, Family] = {
    "naflex": Family(_naflex, "padded", channels_last=True, pixels="patches", whole=False),
    "siglip2": Family(_siglip2, "padded", channels_last=True),
    "gemma4": Family(_gemma4, "padded", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), channels_last=True),
    "qwen_vl": Family(_thw, "packed", CLIP_MEAN, CLIP_STD, blocks=2, repeats=2),
    "glm4v": Family(_thw, "packed", CLIP_MEAN, CLIP_STD, blocks=2, repeats=2),
    "paddleocr_vl": Family(_thw, "packed", CLIP_MEAN, CLIP_STD, flat=False),
    "kimi": Family(_thw, "packed", flat=False),
    "pixtral": Family(lambda laid: {}, "images", CLIP_MEAN, CLIP_STD),
}


class Scale(NamedTuple):
    """What becomes of a sample v of each colour: (v − `less`) ÷ `over` × `times`, in f32."""

    less: Three
    over: Three
    times: float

    @classmethod
    def normalising(cls, mean: Sequence[float], std: Sequence[float], factor: float = 1 / 255) -> Scale:
        """(v − mean/factor) ÷ (std/factor): to the bit as torchvision has it."""
        one = np.float32(1 / factor)
        less, over = ([float(np.float32(v) * one) for v in values] for values in (mean, std))
        return cls((less[0], less[1], less[2]), (over[0], over[1], over[2]), 1.0)

    @classmethod
    def by(cls, factor: float) -> Scale:
        """v × factor."""
        return cls((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), factor)


class Layout:
    """Where the patches of N images stand in one tensor.

    Args:
        family: whose tensor.
        patch: P.
        grids: i64 `[N, 2]`.
        tokens: i64 `[N]`, patches of each.
        room: patches an image is padded to.

    Raises:
        PlanError: an image has more.
    """

    def __init__(self, family: Family, patch: int, grids: Ints, tokens: Ints, room: int) -> None:
        self.family, self.patch, self.grids, self.tokens, self.room = family, patch, grids, tokens, room
        count, area = len(grids), patch * patch
        self.floats = 3 * area * family.repeats
        """Floats of a patch."""
        self.width = 0
        one = (self.floats,) if family.flat else (3 * family.repeats, patch, patch)
        if family.form == "packed":
            self.shape: tuple[int, ...] = (int(tokens.sum()), *one)
            self.starts = np.concatenate([[0], np.cumsum(tokens)]) * self.floats
        elif family.form == "padded":
            if (most := int(tokens.max())) > room:
                n = int(tokens.argmax())
                raise PlanError(
                    f"images[{n}] has {most} patches, more than the {room} that are asked for; leave it out"
                )
            self.shape = (count, room, *one)
            self.starts = np.arange(count + 1) * (room * self.floats)
        else:
            height, self.width = (int(v) * patch for v in grids.max(0))
            self.shape = (count, 3, height, self.width)
            self.starts = np.arange(count + 1) * (3 * height * self.width)
        # Floats to the next colour, to the next line, times, floats to the next time.
        if family.form == "images":
            self.strides = (patch, height * self.width, self.width, 1, 0)
        elif family.channels_last:
            self.strides = (patch, 1, 3 * patch, 1, 0)
        else:
            self.strides = (patch, family.repeats * area, patch, family.repeats, area)

    def places(self, y: Ints, x: Ints, columns: Ints | int, rank: Ints | None = None) -> Ints:
        """Where in their image's part patches begin: those at (y, x) of grids `columns` wide, or where some are missing
        those of `rank`."""
        if self.family.form == "images":
            return (y * self.width + x) * self.patch
        if rank is None:
            m = self.family.blocks
            block, inside = (y // m) * (columns // m) + x // m, (y % m) * m + x % m
            rank = block * (m * m) + inside
        return rank * self.floats

    def empty(self) -> Floats:
        """The tensor, of zeros where something may stay of it."""
        return (np.empty if self.family.form == "packed" else np.zeros)(self.shape, np.float32)

    def named(self, pixels: Floats, image: Ints, y: Ints, x: Ints) -> dict[str, npt.NDArray[Any]]:
        """The tensors by name, of tokens image by image."""
        laid = Laid(self.grids, self.tokens, self.room, image, y, x)
        found = {self.family.pixels: pixels, **self.family.with_it(laid)}
        if self.family.form == "images":
            found["image_sizes"] = self.grids * self.patch
        return found


def of_batch(
    batch: Any, name: str, mean: Sequence[float] | None, std: Sequence[float] | None, room: int | None = None
) -> dict[str, Any]:
    """The images of a `PackedBatch` that count, as torch tensors of a family.

    Raises:
        ExtraError: torch is not installed.
        PlanError: the batch lies on a device, tokens were dropped, or grids do not fit the family.
    """
    torch = needed("torch")
    family = FAMILIES[name]
    if getattr(batch.patches, "is_cuda", False):
        raise PlanError(f"to_{name}: the batch lies on {batch.patches.device}; convert it before .to(device)")
    status, segments, positions = (np.asarray(v) for v in (batch.status, batch.segment_ids, batch.positions))
    ok = status == 1
    number = np.cumsum(ok).reshape(ok.shape) - 1
    rows = np.flatnonzero((segments >= 0) & (positions[..., 0] >= 0))
    y, x = positions.reshape(-1, 2)[rows].astype(np.int64).T
    image = number[rows // segments.shape[1], segments.reshape(-1)[rows]].astype(np.int64)
    grids = np.asarray(batch.grids)[ok].astype(np.int64)
    if not len(grids):
        raise PlanError(f"to_{name}: no image of the batch could be rendered; leave such a batch out")
    tokens = np.bincount(image, minlength=len(grids)).astype(np.int64)
    missing = np.flatnonzero(tokens < grids.prod(1))
    if family.whole and len(missing):
        n = missing[0]
        raise PlanError(
            f"to_{name}: image {n} has {tokens[n]} of {grids[n].prod()} tokens; it takes whole images, so leave out [plan.drop]"
        )
    odd = np.flatnonzero((grids % family.blocks).any(1))
    if len(odd):
        h, w = grids[odd[0]]
        raise PlanError(
            f"to_{name}: image {odd[0]} has a grid of {h} × {w}, which cannot be merged {family.blocks} × {family.blocks}; "
            'plan with [plan.resolution] kind = "smart"'
        )
    room = batch.max_seqlen - batch.prefix_tokens if room is None else room
    layout = Layout(family, batch.patch_size, grids, tokens, room)
    firsts = np.cumsum(tokens) - tokens
    rank = None if family.whole else np.arange(len(rows)) - firsts[image]
    places = layout.starts[image] + layout.places(y, x, grids[image, 1], rank)
    pixels = layout.empty()
    scale = Scale.normalising(family.mean if mean is None else mean, family.std if std is None else std)
    patches = np.ascontiguousarray(np.asarray(batch.patches)).reshape(-1)
    _packer.spread(patches, rows, places, layout.strides, scale, pixels.reshape(-1))
    found = layout.named(pixels, image, y, x)
    if name == "qwen_vl":
        found["cu_seqlens"] = np.concatenate([[0], np.cumsum(tokens)]).astype(np.int32)
    return {key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in found.items()}
