"""`pack_images`: images in memory → one `PackedBatch`, without an index, so that any torch `Dataset` works.

In: paths, encoded bytes, PIL images or arrays. Out: a batch with as many sequences as they need. Planned and rendered by the
same engine as `PackedLoader`: image i of the list has `image_ids` i. A path, its bytes, and what Pillow opens there give the
same pixels: of a PIL image that is not loaded yet its file is taken, and whatever another has beside plain samples (an
orientation, alpha, 16 bits, a colour profile) goes through the engine as a file.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .. import _packer
from ..batch import PackedBatch, View
from ..config import LoaderConfig, RenderConfig
from ..errors import PlanError
from ..foreign import helpers

if TYPE_CHECKING:
    from PIL import Image

    Picture = str | os.PathLike[str] | npt.NDArray[np.uint8] | bytes | Image.Image

_SIDE = 64
"""Pixels of a patch's side where pixels are asked for, not patches."""


def pack_images(
    images: Iterable[Picture],
    config: LoaderConfig | None = None,
    *,
    labels: npt.ArrayLike | None = None,
    epoch: int = 0,
) -> PackedBatch:
    """Plans and renders images that are already in memory.

    Args:
        images: any number of paths or the bytes of image files, PIL images, or u8 `[H, W, 3]` or `[H, W]` arrays.
        config: `[plan]` and `[render]` are used; None is the default configuration. For evaluation pass
            `config.for_evaluation(...)`.
        labels: i64 `[N]` or `[N, K]`; None means unlabelled.
        epoch: varies the random draws; the same images, configuration and epoch give the same batch.

    Returns:
        A batch of as many sequences as the images need. Bytes with a sound header that cannot be decoded have status 2.

    Raises:
        ConfigError: a configuration of another type.
        PlanError: no image, labels that are no whole numbers or not as many; or a path that cannot be read, one of a shape or
            type that is none, or bytes that are no image: names its number.
    """
    config = LoaderConfig.checked(config)
    if isinstance(images, str | bytes | os.PathLike) or hasattr(images, "getexif"):
        raise PlanError(f"images is one image of type {type(images).__name__}; give a list: pack_images([image])")
    if not isinstance(images, Iterable):
        raise PlanError(f"images = {images!r} is of type {type(images).__name__}; give a list of images")
    images = list(images)
    kinds = _labels(labels, len(images))
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
    arrays = _packer.render_images(found, planned, plan.limits(kinds.shape[1]), config.render.to_json(), helpers())
    teacher = arrays.pop("teacher")
    batch = PackedBatch(**arrays, teacher=None if teacher is None else View(**teacher))
    if kinds.shape[1]:
        there = batch.image_ids >= 0
        batch.labels[there] = kinds[batch.image_ids[there]]
    return batch


def upright_pixels(data: bytes, render: RenderConfig | None = None) -> npt.NDArray[np.uint8]:
    """The pixels of an image file at its own size, u8 `[H, W, 3]`, as `pack_images` and every loader see it: oriented, alpha
    over the background, 16 bits scaled to 8.

    Args:
        data: the file.
        render: `[render]`; None is the default.

    Raises:
        PlanError: bytes that are no image, or that cannot be decoded.
    """
    height, width = picture_size(0, data)
    rows, columns = -(-height // _SIDE), -(-width // _SIDE)
    # Whole patches, of which the image may leave the last row and column half empty.
    out = np.empty((rows * _SIDE, columns * _SIDE, 3), np.float32)
    down = out.shape[1] * 3
    places = np.add.outer(np.arange(rows) * _SIDE * down, np.arange(columns) * _SIDE * 3).reshape(-1)
    failed = _packer.Floats(helpers()).render(
        [data],
        [(height, width)],
        [columns],
        [0, out.size],
        [places],
        (_SIDE, 1, down, 1, 0),
        ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), 1.0),
        (RenderConfig() if render is None else render).to_json(),
        out.reshape(-1),
    )
    if failed:
        raise PlanError(f"an image cannot be decoded: {failed[0][1]}; leave it out")
    return out[:height, :width].astype(np.uint8)


def _labels(labels: npt.ArrayLike | None, count: int) -> npt.NDArray[np.int64]:
    """i64 `[count, K]`, with K = 0 for None."""
    if labels is None:
        return np.zeros((count, 0), np.int64)
    try:
        given = np.asarray(labels)
    except ValueError as e:  # lists of several lengths
        raise PlanError(f"labels cannot be read as numbers: {e}; it must be [{count}] or [{count}, K]") from None
    if given.dtype.kind not in "iub" and given.size:
        raise PlanError(
            f"labels are of type {given.dtype}, such as {given.flat[0]!r}; give whole numbers, a class each"
        )
    if given.ndim not in (1, 2) or len(given) != count:
        raise PlanError(f"labels has shape {given.shape}; it must be [{count}] or [{count}, K]")
    return given.astype(np.int64).reshape(count, -1 if given.size else 1)


def picture(n: int, image: Any) -> npt.NDArray[np.uint8] | bytes:
    """Image `n` of a list as the renderer takes it: bytes, or a contiguous u8 `[H, W, 3]` array.

    Raises:
        PlanError: it is no image; names its number.
    """
    if isinstance(image, str | os.PathLike):
        try:
            return Path(image).read_bytes()
        except OSError as e:
            raise PlanError(f"images[{n}] = '{os.fspath(image)}' cannot be read: {e.strerror}") from None
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    if hasattr(image, "getexif"):
        image = _of_pil(n, image)
        if isinstance(image, bytes):
            return image
    array = np.asarray(image)
    if array.ndim == 2:
        array = np.repeat(array[:, :, None], 3, 2)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        channels_first = array.ndim == 3 and array.shape[0] == 3 and array.shape[2] != 3
        how = "; turn it: permute(1, 2, 0) of a tensor, transpose(1, 2, 0) of an array" if channels_first else ""
        raise PlanError(
            f"images[{n}] is an array of {array.dtype} with shape {array.shape}; it must be u8 [H, W, 3] or [H, W]{how}"
        )
    return np.ascontiguousarray(array)


def _of_pil(n: int, image: Image.Image) -> npt.NDArray[np.uint8] | bytes:
    """The file of a PIL image: its own, or a PNG file of it; or its samples, where they are plain colours.

    Raises:
        PlanError: it cannot be decoded, or its samples have no common range; names its number.
    """
    from PIL import Image, ImageOps

    try:
        if (data := _unread(image)) is not None:
            return data
        image.load()
        image = ImageOps.exif_transpose(image)
        if image.mode in ("La", "PA", "RGBa"):
            image = image.convert("RGBA" if image.mode == "PA" else image.mode.upper())
        elif image.mode.startswith("I;16") and image.mode != "I;16":
            image = image.convert("I;16")
        elif image.mode == "I" and _of_16_bits(image):
            image = Image.fromarray(np.asarray(image).astype(np.uint16))
        elif image.mode in ("F", "I"):
            raise PlanError(
                f"images[{n}] has samples of type '{image.mode}', which have no common range; give u8, or 16 bits a sample"
            )
        elif image.mode not in ("1", "L", "LA", "P", "I;16", "RGB", "RGBA"):
            image = image.convert("RGB")
        if image.mode in ("L", "RGB") and not {"transparency", "icc_profile"} & image.info.keys():
            return np.asarray(image)
        out = io.BytesIO()
        # Stored: it is read again at once.
        image.save(out, "PNG", compress_level=0, exif=b"")
        return out.getvalue()
    except (OSError, ValueError, SyntaxError) as e:
        if isinstance(e, PlanError):
            raise
        raise PlanError(f"images[{n}] is a PIL image that cannot be read: {e}") from None


def _unread(image: Image.Image) -> bytes | None:
    """The bytes of the file that an image was opened from, if nothing was read or changed since then."""
    from PIL import ImageFile

    if not isinstance(image, ImageFile.ImageFile) or image.fp is None:
        return None
    # `tile` says what is still to be decoded, `decoderconfig` at which scale; a further frame is not what a file begins with.
    if not image.tile or image.decoderconfig or image.tell():
        return None
    at = image.fp.tell()
    image.fp.seek(0)
    data: bytes = image.fp.read()
    image.fp.seek(at)
    return data


def _of_16_bits(image: Image.Image) -> bool:
    low, high = image.getextrema()
    return isinstance(low, int | float) and isinstance(high, int | float) and low >= 0 and high <= 65535


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
