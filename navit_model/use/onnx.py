"""A classifier as an ONNX file, for whoever serves one without this package or torch.

In: an opened model. Out: one file that takes any number of images of any grids, in plain arrays, and gives their logits; it is
run beside the model on images of many grids before it takes its name. Apart from `export`, whose program keeps a batch's fixed
shapes: here each call brings its own, and what a server need not know (offsets, prefix slots, padding) is made inside.

Shapes: T patches · N images · P patch side · C classes.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import warnings
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from navit_loader.batch import OK, PackedBatch, View
from navit_loader.errors import ModelError, needed, said

from ..model.navit import NaViT
from .frozen import planned
from .opened import OpenedModel

Inputs = dict[str, np.ndarray]
"""`patches` u8 `[T, P·P·3]` (pixels row by row, channels last), `positions` i64 `[T, 2]` (y, x) in the image's grid, `images`
i64 `[T]`, which image each patch is of, rising from 0, and `grids` i64 `[N, 2]`, (h, w) in patches. Patches may be left out."""

TOLERANCE = 1e-4
"""Largest difference of a logit, against the largest logit of the model or 1."""


class FromPatches(nn.Module):
    """A model over `Inputs`."""

    def __init__(self, model: NaViT, patch_size: int) -> None:
        super().__init__()
        self.model, self.patch_size = model, patch_size

    def forward(self, patches: Tensor, positions: Tensor, images: Tensor, grids: Tensor) -> Tensor:
        """Logits, f32 `[N, C]`."""
        count, prefix = grids.shape[0], self.model.config.prefix_tokens
        numbers = torch.arange(count, device=images.device)
        lengths = (images[None, :] == numbers[:, None]).sum(1) + prefix
        ends = lengths.cumsum(0)
        if prefix:
            # Each image's patches move behind its prefix slots.
            of, number = numbers.repeat_interleave(prefix), torch.arange(prefix, device=images.device).repeat(count)
            behind = torch.arange(images.shape[0], device=images.device) + prefix * (images + 1)
            order = torch.argsort(torch.cat([(ends - lengths)[of] + number, behind]))
            patches = torch.cat([patches.new_zeros(count * prefix, patches.shape[1]), patches])[order]
            positions = torch.cat([torch.stack([-torch.ones_like(number), number], 1), positions])[order]
            images = torch.cat([of, images])[order]
        offsets = torch.cat([ends.new_zeros(1), ends]).to(torch.int32)
        # The bound of a segment is for kernels that are not exported.
        host = (self.patch_size, 1 << 30, prefix)
        logits: Tensor = self.model(View(patches[None], positions[None], images[None], offsets, grids[None], *host))
        return logits[0]


def inputs_of(batch: PackedBatch) -> Inputs:
    """What an exported model takes, of a numpy batch: its images with status `OK`, sequence by sequence."""
    places = np.argwhere(batch.status == OK)
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    for b, e in places:
        slots = (batch.segment_ids[b] == e) & (batch.positions[b, :, 0] >= 0)
        parts.append((batch.patches[b, slots], batch.positions[b, slots].astype(np.int64)))
    return {
        "patches": np.concatenate([patches for patches, _ in parts]),
        "positions": np.concatenate([positions for _, positions in parts]),
        "images": np.repeat(np.arange(len(parts)), [len(patches) for patches, _ in parts]),
        "grids": batch.grids[places[:, 0], places[:, 1]].astype(np.int64),
    }


def export_onnx(opened: OpenedModel, path: Path, patch_size: int | None = None) -> float:
    """Writes a model's classifier as ONNX, and compares it with the model over images of 50 grids in calls of 1 to 8.

    The file's metadata hold the names of the classes (JSON), P, the loss, which says whether its logits are for a softmax
    or for sigmoids, and how `predict` sees images (`images`, JSON for `LoaderConfig.from_dict`). With `regression` there is one
    output a number, `output · std + mean` of the metadata.

    Args:
        opened: on the CPU, with a classifier of its own.
        path: the file.
        patch_size: P; None takes the first of `plan.patch_sizes`.

    Returns:
        The largest difference of a logit.

    Raises:
        ModelError: no classifier, a part that ONNX cannot hold, or answers that differ.
        ExtraError: the packages for it are not installed.
    """
    onnx, _, runtime = (needed(package) for package in ("onnx", "onnxscript", "onnxruntime"))
    patch_size = patch_size or opened.patch_sizes[0]
    opened.check_patch_size(patch_size)
    if opened.classifier is not opened.model:
        raise ModelError(f"'{opened.path}' has no classifier of its own; train one, or export its towers with torch")
    if opened.model.config.window:
        raise ModelError(
            f"'{opened.path}' attends in windows (model.window), which cannot be written as ONNX; use torch's export"
        )
    model = NaViT(replace(opened.model.config, attention="dense"))
    model.load_state_dict(opened.model.state_dict())
    model.patch_embed.resize(patch_size)  # here, and no part of the graph
    wrapped = FromPatches(model, patch_size).eval()
    rng = np.random.default_rng(0)
    calls = [_images(rng, model, patch_size, count) for count in (3, 1, 8, 2, 7, 5, 4, 6, 8, 6)]
    names = list(calls[0])
    arguments = tuple(torch.from_numpy(calls[0][name]) for name in names)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".onnx-") as draft:
        file = Path(draft) / path.name
        try:
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")
                logging.getLogger("torch.onnx").setLevel(logging.ERROR)
                axes = {name: {0: torch.export.Dim.DYNAMIC} for name in names}
                exported = torch.export.export(wrapped, arguments, dynamic_shapes=axes)
                program = torch.onnx.export(
                    exported, input_names=names, output_names=["logits"], dynamo=True, verbose=False
                )
            assert program is not None
            program.save(str(file))
        except Exception as error:  # torch and onnxscript raise what they like
            e: BaseException = error
            while e.__cause__ is not None:
                e = e.__cause__
            raise ModelError(f"'{opened.path}' cannot be written as ONNX: {said(e)[0]}") from None
        graph = onnx.load(str(file))
        seen = planned(opened, patch_size=patch_size)
        seeing = json.dumps({"plan": asdict(seen.plan), "render": asdict(seen.render)})
        meta = {"classes": json.dumps(opened.classes), "patch_size": str(patch_size), "loss": opened.run.train.loss}
        meta |= {"images": seeing}
        if opened.regresses:
            unit = opened.run.regression
            meta |= {"classes": "[]", "loss": "regression", "mean": repr(unit.mean), "std": repr(unit.std)}
        onnx.helper.set_model_props(graph, meta)
        onnx.save(graph, str(file))
        session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        worst = 0.0
        for inputs in calls:
            with torch.no_grad():
                wanted = wrapped(*(torch.from_numpy(inputs[name]) for name in names)).numpy()
            (found,) = session.run(None, dict(inputs))
            apart = float(np.abs(found - wanted).max())
            if not apart <= TOLERANCE * max(1.0, float(np.abs(wanted).max())):
                raise ModelError(f"'{opened.path}' as ONNX gives other answers (by {apart:.2g}); it was not written")
            worst = max(worst, apart)
        os.replace(file, path)
    return worst


def _images(rng: np.random.Generator, model: NaViT, patch_size: int, count: int) -> Inputs:
    """Random pixels in random grids, half of the patches of every other image left out."""
    most = min(12, model.config.max_grid)
    grids = rng.integers(1, most + 1, (count, 2))
    places = []
    for n, (h, w) in enumerate(grids):
        kept = np.arange(h * w)
        if n % 2:
            kept = np.sort(rng.permutation(kept)[: (h * w + 1) // 2])
        places.append(np.stack([kept // w, kept % w], 1))
    images = np.repeat(np.arange(count), [len(found) for found in places])
    patches = rng.integers(0, 256, (len(images), 3 * patch_size**2), np.uint8)
    return {"patches": patches, "positions": np.concatenate(places), "images": images, "grids": grids}
