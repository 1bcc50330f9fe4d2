"""The DALI graph and its runs. In: encoded files with a crop and a target size each. Out: resized images, as tensors of the
device that share DALI's memory, in the order in which the runs were started.

A file that cannot be decoded ends DALI's whole pipeline. `Broken` then says which it was, as far as DALI does, and the
next run builds the pipeline anew.
"""

from __future__ import annotations

import re
from collections import deque
from typing import Any

import numpy as np
import torch
from nvidia import dali
from nvidia.dali import fn, types
from torch.utils.dlpack import from_dlpack

from ...errors import RenderError
from ..device.patchify import patchify
from ..device.runs import MAX_IMAGES, Broken, Chunk
from ..device.tokens import Tokens

VERSION: str = dali.__version__

FILTERS = {"bicubic": types.INTERP_CUBIC, "bilinear": types.INTERP_LINEAR, "lanczos": types.INTERP_LANCZOS3}
"""`[render] filter` in DALI's words, antialiased. `area` has none."""

_BAD_SAMPLE = re.compile(r"Failed to decode sample #(\d+)")
_BAD_SOMEWHERE = ("Failed to decode", "nvImageCodec failure", "Failed to parse")


class Runs:
    """Runs of one pipeline; see `device.runs.Runs`.

    Args:
        device: where the images go: the CPU, or a CUDA device.
        filter: a key of `FILTERS`.
        views: sizes that each image is resized to.
        threads: DALI's threads.
    """

    def __init__(self, device: torch.device, filter: str, views: int, threads: int) -> None:
        self._device, self._filter, self._views = device, filter, views
        self._threads = threads
        self._pipeline: Any = None
        self._flying: deque[Chunk] = deque()
        self.built = 0
        """How often the pipeline was built; more than once where runs failed."""

    def start(self, chunk: Chunk) -> None:
        """Starts a run; its files stay where they are and must not change until it is taken."""
        if self._pipeline is None:
            self._build()
        self._flying.append(chunk)
        try:
            # DALI reads the files where they are. Its own copies of the small arrays are cheaper than keeping them.
            self._pipeline.feed_input("files", chunk.files)
            self._pipeline.feed_input("starts", np.ascontiguousarray(chunk.crops[:, :2]))
            self._pipeline.feed_input("ends", np.ascontiguousarray(chunk.crops[:, 2:]))
            for n, sizes in enumerate(chunk.sizes):
                self._pipeline.feed_input(f"sizes{n}", sizes)
            self._pipeline.schedule_run()
        except Exception as e:
            self._failed(e)

    def take(self, stream: Any = None) -> list[list[torch.Tensor]]:
        """Waits for the oldest run: for each view its images, u8 `[height, width, 3]`.

        Args:
            stream: CUDA stream that the images are used on; the work there waits for them, not the caller.

        Raises:
            Broken: files could not be decoded. All runs under way are lost; start them again.
            RenderError: anything else that DALI could not do, in its words.
        """
        try:
            outputs = self._pipeline.share_outputs(cuda_stream=stream)
            # Each tensor keeps DALI's buffer for as long as it lives, so it can be let go of at once.
            images = [[from_dlpack(sample) for sample in output] for output in outputs]
            self._pipeline.release_outputs()
        except Exception as e:
            self._failed(e)
        self._flying.popleft()
        return images

    def cut(self, images: list[torch.Tensor], tokens: Tokens, patch_size: int, out: torch.Tensor) -> None:
        """Patches of images that `take` gave for one view."""
        patchify(images, tokens, patch_size, out)

    def close(self) -> None:
        """Forgets the pipeline and what it was doing."""
        self._pipeline = None
        self._flying.clear()

    def _build(self) -> None:
        on_gpu = self._device.type == "cuda"
        pipeline = dali.Pipeline(
            batch_size=MAX_IMAGES,
            num_threads=self._threads,
            device_id=self._device.index if on_gpu else None,
            # With more, the first `schedule_run` would want that many batches at once. Runs overlap all the same.
            prefetch_queue_depth=1,
            exec_dynamic=True,
        )
        with pipeline:
            files = fn.external_source(name="files", dtype=types.UINT8, ndim=1, no_copy=True)
            starts = fn.external_source(name="starts", dtype=types.FLOAT, ndim=1)
            ends = fn.external_source(name="ends", dtype=types.FLOAT, ndim=1)
            # The index says how an image is turned, and few pixels are turned later, so DALI shall not.
            images = fn.decoders.image(
                files,
                device="mixed" if on_gpu else "cpu",
                output_type=types.RGB,
                adjust_orientation=False,
                jpeg_fancy_upsampling=True,
            )
            pipeline.set_outputs(
                *(
                    fn.resize(
                        images,
                        roi_start=starts,
                        roi_end=ends,
                        size=fn.external_source(name=f"sizes{n}", dtype=types.FLOAT, ndim=1),
                        interp_type=FILTERS[self._filter],
                        antialias=True,
                    )
                    for n in range(self._views)
                )
            )
        pipeline.build()
        self._pipeline = pipeline
        self.built += 1

    def _failed(self, error: Exception) -> None:
        size = len(self._flying[0].files) if self._flying else 0
        self.close()
        said = str(error)
        samples = sorted({int(n) for n in _BAD_SAMPLE.findall(said)})
        if any(words in said for words in _BAD_SOMEWHERE):
            raise Broken([n for n in samples if n < size]) from error
        words = " ".join(said.split())
        raise RenderError(f"DALI failed: {words[:1000]}; decode = 'cpu' does without it") from error
