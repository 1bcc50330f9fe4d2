"""Images → logits or features, without a loader: planned, packed and run in one call.

In: a model and a list of paths, encoded bytes, PIL images, u8 arrays, or float tensors that are normalised already. Out:
one row an image, in the order of the list. Images are taken in portions of about `ROOM` tokens, so memory does not grow
with the list. Apart from the model, whose methods `classify` and `embed` lead here: a model runs without the packer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise
from operator import index
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from navit_loader.batch import OK, PackedBatch
from navit_loader.config import LoaderConfig, Order, PlanConfig, Resolution
from navit_loader.errors import ModelError, PlanError
from navit_loader.plan.config import MAX_LENGTH
from navit_loader.render.images import pack_images, picture, picture_size

from ..config import NaViTConfig
from ..model.check import TABLES
from ..model.navit import NaViT
from ..world import halved

ROOM = 16384
"""Tokens that are packed and run at once; a portion is one image at least."""
LONGEST = 32767
"""Tokens of an image at most where nobody asks for more, and patches of a side; a larger image is scaled down to them."""


def classify(
    model: NaViT,
    images: Sequence[Any],
    tokens: int | Sequence[int] | None = None,
    normalized: bool = False,
    *,
    sure: float = 0.9,
    sigmoid: bool = False,
) -> Tensor:
    """Logits of images of any size, f32 `[N, classes]`, in their order, on the model's device.

    Args:
        model: on any device; it runs in evaluation mode and is left in the mode that it had.
        images: paths, bytes of image files, PIL images, or u8 `[H, W, 3]` or `[H, W]` arrays.
        tokens: patches of an image at most, to which it is scaled up or down, aspect ratio kept. None keeps its own
            size: nothing is resampled where both sides divide by P and the model's position table is not exceeded.
            Several rising budgets are a cascade: the first for all images, each further one for those that the last left
            unsure.
        normalized: images are float `[3, H, W]` tensors or arrays, already normalised.
        sure: of a cascade: the chance of the likeliest class from which on an image is settled.
        sigmoid: of a cascade: chances are one sigmoid a class, as the model was trained, in place of a softmax.

    Raises:
        ModelError: no classifier, a budget that is none, or an image that cannot be read; names its number.
        PlanError: an image of a shape or type that is none; names its number.
    """
    if model.config.classes == 0:
        raise ModelError("the model has no classifier; use embed(), or give it one with reset_classifier()")
    budgets = _budgets(tokens)
    logits = _outputs(model, images, budgets[0], normalized, pre_logits=False)
    for budget in budgets[1:]:
        chance = logits.sigmoid() if sigmoid else logits.softmax(-1)
        unsure = (chance.amax(-1) < sure).nonzero().flatten()
        if len(unsure):
            again = [images[i] for i in unsure.tolist()]
            logits[unsure] = _outputs(model, again, budget, normalized, pre_logits=False)
    return logits


def embed(model: NaViT, images: Sequence[Any], tokens: int | None = None, normalized: bool = False) -> Tensor:
    """Pooled features of images of any size, f32 `[N, D]`; arguments and errors as for `classify`."""
    budgets = _budgets(tokens)
    if len(budgets) > 1:
        raise ModelError(f"tokens = {tokens!r} is not allowed; embed takes one budget, cascades are for classify")
    return _outputs(model, images, budgets[0], normalized, pre_logits=True)


@torch.no_grad()
def _outputs(model: NaViT, images: Sequence[Any], tokens: int | None, normalized: bool, *, pre_logits: bool) -> Tensor:
    """Logits or pooled features; the model runs in evaluation mode and is left in the mode that it had."""
    if isinstance(images, str | bytes) or not hasattr(images, "__len__") or getattr(images, "ndim", 4) != 4:
        raise ModelError(f"images is of type {type(images).__name__}; give a list of images, one image as [image]")
    weight = next(model.parameters())
    width = model.config.width if pre_logits else model.config.classes
    found = torch.zeros(len(images), width, device=weight.device)
    # The fast kernels of a GPU take half precision alone.
    halves = weight.is_cuda and weight.dtype == torch.float32 and model.config.attention != "dense"
    training = model.training
    model.eval()
    try:
        for first, batch in _portions(model.config, images, tokens, normalized):
            with halved(weight.device) if halves else nullcontext():
                sent = batch.to(weight.device)
                out = model.forward_head(model.forward_features(sent), sent, pre_logits)
            ok = batch.status == OK
            if len(batch.image_ids[ok]) < (batch.image_ids >= 0).sum():
                lost = first + int(batch.image_ids[(batch.image_ids >= 0) & ~ok][0])
                raise ModelError(f"{_name(lost, images[lost])} cannot be decoded; leave it out")
            rows = torch.from_numpy(first + batch.image_ids[ok]).to(weight.device)
            found[rows] = out[torch.from_numpy(ok).to(weight.device)].float()
    finally:
        model.train(training)
    return found


def _budgets(tokens: Any) -> list[int | None]:
    """What `classify` calls `tokens`, as a list."""
    if tokens is None:
        return [None]
    try:
        found = [index(t) for t in (tokens if isinstance(tokens, Sequence) else [tokens])]
    except TypeError:
        found = []
    if not found or found[0] < 1 or any(a >= b for a, b in pairwise(found)):
        raise ModelError(
            f"tokens = {tokens!r} is not allowed; it must be None, a whole number of at least 1, or several that rise"
        )
    return list(found)


def _portions(
    config: NaViTConfig, images: Sequence[Any], tokens: int | None, normalized: bool
) -> Iterator[tuple[int, PackedBatch]]:
    """The list as packed batches, each with the number of its first image, which is image 0 of the batch."""
    P = (
        config.patch_size
        if config.patch_size in (config.patch_sizes or (config.patch_size,))
        else config.patch_sizes[0]
    )
    most = config.max_grid if config.positions in TABLES else LONGEST
    room, first = 0, 0
    held: list[Any] = []
    counts: list[int] = []
    for n in range(len(images)):
        try:
            one = _float(n, images[n]) if normalized else picture(n, _bytes(n, images[n]))
            height, width = one.shape[1:] if isinstance(one, Tensor) else picture_size(n, one)
        except PlanError as e:
            raise PlanError(str(e).replace(f"images[{n}]", _name(n, images[n]), 1)) from None
        native = min(max(1, height // P), most) * min(max(1, width // P), most)
        own = min(native, LONGEST) if tokens is None else min(tokens, MAX_LENGTH)
        count = min(own + config.prefix_tokens, MAX_LENGTH)
        if held and room + count > ROOM:
            yield first, _pack(config, held, counts, tokens, P, most)
            held, counts, room, first = [], [], 0, n
        held.append(one)
        counts.append(count)
        room += count
    if held:
        yield first, _pack(config, held, counts, tokens, P, most)


def _pack(
    config: NaViTConfig, images: list[Any], counts: list[int], tokens: int | None, P: int, most: int
) -> PackedBatch:
    """One batch of images whose token counts are at most `counts`."""
    longest = max(counts)
    plan = PlanConfig(
        sequence_length=max(longest, min(1024, sum(counts))),
        max_tokens=longest,
        max_images=min(len(images), 64),
        max_grid=most,
        prefix_tokens=config.prefix_tokens,
        patch_sizes=(P,),
        order=Order(kind="sequential"),
        resolution=Resolution(kind="native") if tokens is None else Resolution(kind="budget", upscale=True),
    )
    floats = isinstance(images[0], Tensor)
    # Blank pictures of the same sizes are planned alike; their patches are then replaced.
    blank = [np.zeros((*x.shape[1:], 3), np.uint8) for x in images] if floats else images
    batch = pack_images(blank, LoaderConfig(plan=plan))
    return _with_pixels(batch, images) if floats else batch


def _with_pixels(batch: PackedBatch, images: list[Tensor]) -> PackedBatch:
    """The batch with patches of float images, each resized to its planned grid where that is not its own."""
    P = batch.patch_size
    patches = np.zeros(batch.patches.shape, np.float32)
    for b, e in np.argwhere(batch.status == OK):
        x, (h, w) = images[batch.image_ids[b, e]], batch.grids[b, e].tolist()
        if tuple(x.shape[1:]) != (h * P, w * P):
            x = F.interpolate(x[None], (h * P, w * P), mode="bicubic", antialias=True)[0]
        rows = x.reshape(3, h, P, w, P).permute(1, 3, 2, 4, 0).reshape(h * w, -1).numpy()
        at = (batch.segment_ids[b] == e) & (batch.positions[b, :, 0] >= 0)
        y, x_ = batch.positions[b, at].astype(np.int64).T
        patches[b, at] = rows[y * w + x_]
    return replace(batch, patches=patches)


def _name(n: int, image: Any) -> str:
    return f"images[{n}] = '{image}'" if isinstance(image, str | Path) else f"images[{n}]"


def _bytes(n: int, image: Any) -> Any:
    """The content of a path; anything else as it is."""
    if not isinstance(image, str | Path):
        return image
    try:
        return Path(image).read_bytes()
    except OSError as e:
        raise ModelError(f"{_name(n, image)} cannot be read: {e.strerror}") from None


def _float(n: int, image: Any) -> Tensor:
    """A normalised image as f32 `[3, H, W]` on the host."""
    try:
        found = torch.as_tensor(image)
    except (TypeError, ValueError, RuntimeError):
        found = torch.empty(0)
    if not found.is_floating_point() or found.ndim != 3 or found.shape[0] != 3 or 0 in found.shape:
        shape = list(getattr(image, "shape", ()))
        raise ModelError(
            f"images[{n}] is a {type(image).__name__} of shape {shape}; with normalized = True it must be a float "
            "[3, H, W] tensor or array"
        )
    return found.detach().to("cpu", torch.float32)
