"""`pack_images`: images in memory → one `PackedBatch`, without an index, so that any torch `Dataset` works.

In: arrays, PIL images or encoded bytes. Out: a batch with as many sequences as they need. Planned and rendered by the
same engine
as `PackedLoader`: image i of the list has `image_ids` i.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .. import _packer
from ..batch import PackedBatch, View
from ..config import LoaderConfig
from ..errors import PlanError
from ..foreign import helpers

if TYPE_CHECKING:
    from PIL import Image

    Picture = npt.NDArray[np.uint8] | bytes | Image.Image


def pack_images(
    images: Sequence[Picture],
    config: LoaderConfig | None = None,
    *,
    labels: npt.ArrayLike | None = None,
    epoch: int = 0,
) -> PackedBatch:
    """Plans and renders images that are already in memory.

    Args:
        images: u8 `[H, W, 3]` or `[H, W]` arrays, PIL images, or the bytes of image files.
        config: `[plan]` and `[render]` are used; None is the default configuration. For evaluation pass
            `config.for_evaluation(...)`.
        labels: i64 `[N]` or `[N, K]`; None means unlabelled.
        epoch: varies the random draws; the same images, configuration and epoch give the same batch.

    Returns:
        A batch of as many sequences as the images need. Bytes with a sound header that cannot be decoded have status 2.

    Raises:
        PlanError: no image, or one of a shape or type that is none, or bytes that are no image; names its number.
    """
    config = LoaderConfig() if config is None else config
    if len(images) == 0:
        raise PlanError("pack_images was given no image; pass at least one")
    if len(config.plan.patch_sizes) > 1:
        raise PlanError(f"plan.patch_sizes = {config.plan.patch_sizes}: pack_images makes one batch, so give one size")
    found = [picture(n, image) for n, image in enumerate(images)]
    sizes = np.array([picture_size(n, one) for n, one in enumerate(found)], np.int32)
    columns: dict[str, Any] = {
        "width": [np.ascontiguousarray(sizes[:, 1])],
        "height": [np.ascontiguousarray(sizes[:, 0])],
    }
    plan = _packer.Plan(config.plan.to_json(), [columns], [(0, None, 1.0)])
    layout = plan.layout(epoch)
    layout.counts(0, layout.num_blocks)
    planned = layout.batch(0, layout.num_sequences or 1)
    kinds = np.zeros((len(images), 0), np.int64) if labels is None else np.asarray(labels, np.int64)
    kinds = kinds[:, None] if kinds.ndim == 1 else kinds
    if kinds.ndim != 2 or len(kinds) != len(images):
        raise PlanError(f"labels has shape {kinds.shape}; it must be [{len(images)}] or [{len(images)}, K]")
    arrays = _packer.render_images(found, planned, plan.limits(kinds.shape[1]), config.render.to_json(), helpers())
    teacher = arrays.pop("teacher")
    batch = PackedBatch(**arrays, teacher=None if teacher is None else View(**teacher))
    if kinds.shape[1]:
        there = batch.image_ids >= 0
        batch.labels[there] = kinds[batch.image_ids[there]]
    return batch


def picture(n: int, image: Any) -> npt.NDArray[np.uint8] | bytes:
    """Image `n` of a list as the renderer takes it: bytes, or a contiguous u8 `[H, W, 3]` array.

    Raises:
        PlanError: it is no image; names its number.
    """
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    if hasattr(image, "convert"):
        image = np.asarray(image.convert("RGB"))
    array = np.asarray(image)
    if array.ndim == 2:
        array = np.repeat(array[:, :, None], 3, 2)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise PlanError(
            f"images[{n}] is an array of {array.dtype} with shape {array.shape}; it must be u8 [H, W, 3] or [H, W]"
        )
    return np.ascontiguousarray(array)


def picture_size(n: int, picture: npt.NDArray[np.uint8] | bytes) -> tuple[int, int]:
    """(height, width) after orientation.

    Raises:
        PlanError: bytes that are no image; names its number.
    """
    if isinstance(picture, bytes):
        found = _packer.probe_bytes(picture, helpers())
        if found is None:
            raise PlanError(f"images[{n}]: {len(picture)} bytes that are no image of a known format")
        return found
    return picture.shape[0], picture.shape[1]
