"""`PackedBatch`: what the loader hands to the model, and what travels on the wire.

In: arrays filled by the Rust renderer (`navit_loader._packer`) or received by `RemoteLoader`. Out: the same fields as
numpy arrays, or as torch tensors after `PackedBatch.to`. Every shape is static for a given configuration and patch
size.

Legend: P patch side in pixels · C = 3 · L tokens per sequence · B sequences · E images per sequence at most ·
M tokens of one image at most · K label columns · Lt text tokens per sequence ·
O boxes of a sequence at most · S cells of a mask along each side of a patch.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import needed

if TYPE_CHECKING:
    import torch

ABSENT, OK, FAILED = 0, 1, 2
"""Values of `PackedBatch.status`."""

CROWD, DIFFICULT, TRUNCATED = 1, 2, 4
"""Flags of `PackedBatch.box_flags`."""

NO_CLASS = -2
"""First label of an image that is known to be of no class, which an unlabelled one (−1) is not."""

Array = Any
"""A numpy array as loaded; a `torch.Tensor` after `.to(device)`."""


@dataclass(frozen=True, slots=True)
class View:
    """The tokens of one view of the images: the batch's own, or the teacher's.

    Attributes:
        patches: u8 `[B, L, P·P·3]`, pixels of each patch, row-major, channels last, not normalised; 0 in padding.
        positions: i16 `[B, L, 2]`, (y, x) in the image's full grid; prefix token j of an image is (−1, j); padding
        (−1, −1).
        segment_ids: i16 `[B, L]`, which image of the sequence; −1 for padding and for tokens of a failed image.
        cu_seqlens: i32 `[B·(E + ⌈L/M⌉) + 1]`, offsets over the flattened B·L tokens: sequence by sequence its images (a
            failed one keeps its segment), then its padding in real segments of at most M; then repeats of B·L.
        grids: i16 `[B, E, 2]`, (h, w) of each image before drop; 0 where absent.
        patch_size: P.
        max_seqlen: M, an upper bound of every segment; the same for every batch of a plan.
        prefix_tokens: slots at the start of each image's segment for learned tokens.
    """

    patches: Array
    positions: Array
    segment_ids: Array
    cu_seqlens: Array
    grids: Array
    patch_size: int
    max_seqlen: int
    prefix_tokens: int

    def __repr__(self) -> str:
        """A few lines: the shapes."""
        return _few_lines(f"View: patches of {self.patch_size}, segments of {self.max_seqlen} tokens at most", self)


@dataclass(frozen=True, slots=True, repr=False)
class PackedBatch:
    """B fixed-length sequences of packed images; the first eight fields are those of `View`.

    Attributes:
        status: u8 `[B, E]`: 0 absent, 1 ok, 2 failed at render. Losses, counts and outputs use `OK` alone.
        labels: i64 `[B, E, K]`; −1 where unlabelled or absent; `NO_CLASS` first where the image is known to be of no class.
        image_ids: i64 `[B, E]`, row in its index; −1 where absent.
        source_ids: i16 `[B, E]`, which index of a mixture; −1 where absent.
        sizes: i32 `[B, E, 2]`, oriented source size (height, width) in pixels.
        crops: i32 `[B, E, 4]`, (top, left, height, width) in oriented source pixels.
        flips: u8 `[B, E]`, 1 where mirrored left to right.
        text: i32 `[B, Lt]`, caption tokens, packed; −1 in padding; size 0 without captions.
        text_cu_seqlens: i32 `[B·(E + 1) + 1]`, offsets over the flattened B·Lt tokens: sequence by sequence the caption
            of each image (empty where it has none), then the padding; then repeats of B·Lt.
        teacher: the second view of the same images (`[plan.teacher]`), else None.
        epoch: epoch of the plan.
        sequence: number of the batch's first sequence in its epoch.
        warps: f32 `[B, E, 9]`, row by row the 3 × 3 matrix that leads from a point (x, y, 1) of the picture as it is to that of
            the crop, mirrored where it is, which is seen there; both in fractions of width and height. The last row gives 1
            in the picture's middle; all 0 where absent. None without `[plan.warp]`.
        warp_layers: u8 `[B, E]`, layers of RandAugment that are part of the warp; None without `[plan.warp]`.
        boxes: f32 `[B, O, 4]`, (x0, y0, x1, y1) of each box that is seen, in fractions of the picture as it is seen, clipped to
            it; those of an image stand together, in the order of its index; 0 in padding. This and the next four are None
            without `plan.targets.boxes`.
        box_labels: i32 `[B, O]`, its class; −1 in padding and in a failed image.
        box_flags: u8 `[B, O]`, `CROWD`, `DIFFICULT` and `TRUNCATED`, summed.
        box_places: i16 `[B, O]`, its number among the boxes that the index has of its image; −1 as in `box_labels`.
        box_cu_seqlens: i32 `[B·(E + 1) + 1]`, offsets over the flattened B·O boxes, as `text_cu_seqlens` over tokens. A failed
            image keeps its slots.
        masks: i16 `[B, L, S·S]`, for each token its S × S cells, row by row: the class, or with `kind = "regions"` the number
            of the box, at the source's pixel in the cell's middle; −1 where there is none, and in prefix tokens, padding and
            failed images. None without `plan.targets.masks`.
    """

    patches: Array
    positions: Array
    segment_ids: Array
    cu_seqlens: Array
    grids: Array
    patch_size: int
    max_seqlen: int
    prefix_tokens: int
    status: Array
    labels: Array
    image_ids: Array
    source_ids: Array
    sizes: Array
    crops: Array
    flips: Array
    text: Array
    text_cu_seqlens: Array
    teacher: View | None
    epoch: int
    sequence: int
    warps: Array | None = None
    warp_layers: Array | None = None
    boxes: Array | None = None
    box_labels: Array | None = None
    box_flags: Array | None = None
    box_places: Array | None = None
    box_cu_seqlens: Array | None = None
    masks: Array | None = None

    def __repr__(self) -> str:
        """A few lines: what it is, what it holds, and the shapes."""
        return _few_lines(
            f"PackedBatch: epoch {self.epoch}, sequences {self.sequence} to {self.sequence + len(self.status) - 1}; "
            f"{self.num_images} images, {self.num_tokens} tokens, padding {self.padding:.2%}, patches of {self.patch_size}",
            self,
        )

    @property
    def num_images(self) -> int:
        """Images that count: status `OK`. Host value; on a device tensor this synchronises."""
        return int((self.status == OK).sum())

    @property
    def num_tokens(self) -> int:
        """Tokens of images that count, prefix tokens included."""
        return int((self.segment_ids >= 0).sum())

    @property
    def padding(self) -> float:
        """Share of the B·L slots that belong to no image (masked slots of failed images included)."""
        return 1.0 - self.num_tokens / int(np.prod(self.segment_ids.shape))

    @property
    def box_spans(self) -> tuple[Array, Array]:
        """i32 `[B, E]` each: where the boxes of each image begin and end among the flattened B·O; 0 where absent. On a device
        without waiting for it."""
        there, cuts = self.status > ABSENT, self.box_cu_seqlens
        assert cuts is not None, "without plan.targets.boxes there are none"
        count = there.sum(-1) + 1
        # Each sequence has its images' offsets, then that of its padding.
        at = (count.cumsum(0) - count)[:, None] + there.cumsum(-1) - 1
        return cuts[at] * there, cuts[at + 1] * there

    def arrays(self) -> dict[str, Array]:
        """All array fields by name, those of the teacher's view as `teacher.<field>`; the order of the wire."""
        found = {name: getattr(self, name) for name in _ARRAYS}
        found |= {name: each for name in _LATER_ARRAYS if (each := getattr(self, name)) is not None}
        if self.teacher is not None:
            found |= {"teacher." + name: getattr(self.teacher, name) for name in _VIEW_ARRAYS}
        return found

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> PackedBatch:
        """The batch with every array as a torch tensor on `device`.

        Arrays are wrapped without a copy first, so on the CPU the result shares the batch's memory.

        Args:
            device: where to.
            non_blocking: passed on to `torch.Tensor.to`; asynchronous from pinned memory alone.

        Raises:
            ExtraError: torch is not installed.
        """
        torch = needed("torch")

        def move(value: Array) -> Array:
            if isinstance(value, np.ndarray):
                with warnings.catch_warnings():
                    # Received batches are read-only views of their frames; nobody writes to a batch.
                    warnings.simplefilter("ignore", UserWarning)
                    value = torch.from_numpy(value)
            return value.to(device, non_blocking=non_blocking) if isinstance(value, torch.Tensor) else value

        def moved(part: Any) -> dict[str, Any]:
            return {f.name: move(getattr(part, f.name)) for f in fields(part) if f.name != "teacher"}

        teacher = None if self.teacher is None else View(**moved(self.teacher))
        return replace(self, **moved(self), teacher=teacher)

    # What somebody else's model takes. Images that count alone, in the order of `image_ids[status == OK]`; a failed one is
    # absent. Pixels are float32, normalised by the family's mean and deviation where no other is given, `[3]` each, of
    # samples between 0 and 1. Raises as `families.of_batch` does.

    def to_naflex(
        self, *, mean: Sequence[float] | None = None, std: Sequence[float] | None = None, max_seq_len: int | None = None
    ) -> dict[str, torch.Tensor]:
        """As timm's NaFlex collator: `patches` `[N, T, P·P·3]`, `patch_coord` i64 `[N, T, 2]`, `patch_valid` bool `[N, T]`.

        Args:
            mean, std: of the model.
            max_seq_len: T; None takes the most patches that the plan allows. Tokens may be dropped.
        """
        return _as(self, "naflex", mean, std, max_seq_len)

    def to_siglip2(
        self,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        max_num_patches: int | None = None,
    ) -> dict[str, torch.Tensor]:
        """As SigLIP 2 and LFM2-VL without tiles: `pixel_values` `[N, T, P·P·3]`, `pixel_attention_mask` i32 `[N, T]`,
        `spatial_shapes` i64 `[N, 2]`.

        Args:
            mean, std: of the model.
            max_num_patches: T; None takes the most patches that the plan allows.
        """
        return _as(self, "siglip2", mean, std, max_num_patches)

    def to_gemma4(self, *, max_patches: int | None = None) -> dict[str, torch.Tensor]:
        """As Gemma 4: `pixel_values` `[N, T, P·P·3]`, `image_position_ids` i64 `[N, T, 2]` (x, y), −1 in padding, and
        `num_soft_tokens_per_image` i64 `[N]`.

        Args:
            max_patches: T; None takes the most patches that the plan allows.
        """
        return _as(self, "gemma4", None, None, max_patches)

    def to_qwen_vl(
        self, *, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
    ) -> dict[str, torch.Tensor]:
        """As Qwen2-VL, Qwen2.5-VL and, by their mean and deviation of ½, Qwen3-VL: `pixel_values` `[n, 3·2·P·P]`, blocks of
        2 × 2 patches after each other, each patch twice; `image_grid_thw` i64 `[N, 3]`; `cu_seqlens` i32 `[N + 1]`."""
        return _as(self, "qwen_vl", mean, std)

    def to_glm4v(
        self, *, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
    ) -> dict[str, torch.Tensor]:
        """As GLM-4V: `pixel_values` `[n, 3·2·P·P]` in the order of `to_qwen_vl`, `image_grid_thw` i64 `[N, 3]`."""
        return _as(self, "glm4v", mean, std)

    def to_paddleocr_vl(
        self, *, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
    ) -> dict[str, torch.Tensor]:
        """As PaddleOCR-VL: `pixel_values` `[n, 3, P, P]`, row by row; `image_grid_thw` i64 `[N, 3]`."""
        return _as(self, "paddleocr_vl", mean, std)

    def to_kimi(
        self, *, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
    ) -> dict[str, torch.Tensor]:
        """As Kimi's MoonViT: `pixel_values` `[n, 3, P, P]`, row by row; `image_grid_thw` i64 `[N, 3]`."""
        return _as(self, "kimi", mean, std)

    def to_pixtral(
        self, *, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
    ) -> dict[str, torch.Tensor]:
        """As Pixtral: whole images, `pixel_values` `[N, 3, H, W]`, 0 beyond each, and `image_sizes` i64 `[N, 2]` in pixels."""
        return _as(self, "pixtral", mean, std)


def _as(batch: PackedBatch, family: str, *settings: Any) -> dict[str, torch.Tensor]:
    # Here, since a model needs batches, and other people's models their own.
    from .families import of_batch

    return of_batch(batch, family, *settings)


def _few_lines(head: str, part: View | PackedBatch) -> str:
    arrays = ((f.name, getattr(part, f.name)) for f in fields(part) if str(f.type).startswith("Array"))
    shapes = [f"{name} {str(a.dtype).removeprefix('torch.')} {list(a.shape)}" for name, a in arrays if a is not None]
    rows = [", ".join(shapes[n : n + 4]) for n in range(0, len(shapes), 4)]
    return "\n  ".join((head, *rows))


_VIEW_ARRAYS = tuple(f.name for f in fields(View) if f.type == "Array")
_ARRAYS = tuple(f.name for f in fields(PackedBatch) if f.type == "Array")
_LATER_ARRAYS = tuple(f.name for f in fields(PackedBatch) if f.type == "Array | None")
