"""Runs of torchvision's decoder. In: encoded files with a crop and a target size each. Out: patches in their slots.

torchvision hands a whole list to nvJPEG, which decodes it at once and says nothing of which file it could not take: after a
failure each file is tried alone.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.io import ImageReadMode, decode_jpeg

from ...errors import RenderError, said
from ..device.patchify import gather
from ..device.runs import Broken, Chunk
from ..device.tokens import Tokens
from .resample import resize


@dataclass(frozen=True, slots=True)
class Decoded:
    """The images of a run as one view wants them: u8 `[3, h, w]` each, with crops and sizes as in `Chunk`."""

    images: list[torch.Tensor]
    crops: NDArray[np.float32]
    sizes: NDArray[np.float32]


class Runs:
    """Runs of torchvision's decoder; see `device.runs.Runs`.

    Args:
        device: where the images go.
        filter: a key of `resample.FILTERS`.
    """

    def __init__(self, device: torch.device, filter: str) -> None:
        self._device, self._filter = device, filter
        self._done: deque[list[Decoded]] = deque()
        self.built = 1

    def start(self, chunk: Chunk) -> None:
        """Decodes a run: on a GPU this returns when nvJPEG has been told of it."""
        files = [torch.from_numpy(file) for file in chunk.files]
        try:
            images = self._decode(files)
        except (RuntimeError, ValueError) as e:
            self.close()
            if "out of memory" in str(e):
                raise RenderError(f"nvJPEG failed: {said(e)[0]}; lower render.memory_mb, or take decode = 'cpu'") from e
            raise Broken([n for n, file in enumerate(files) if not self._decodes(file)]) from e
        self._done.append([Decoded(images, chunk.crops, sizes) for sizes in chunk.sizes])

    def take(self, stream: torch.cuda.Stream | None) -> list[Decoded]:
        """The oldest run; it was decoded on the stream that is current here."""
        return self._done.popleft()

    def cut(self, images: Decoded, tokens: Tokens, patch_size: int, out: torch.Tensor) -> None:
        """Patches of one view: one kernel where there is Triton, image by image elsewhere."""
        if not len(tokens.slots):
            return
        if out.is_cuda:
            from .kernel import launch

            if launch is not None:
                launch(images.images, images.crops, images.sizes, tokens, patch_size, self._filter, out)
                return
        crops, sizes = images.crops.tolist(), images.sizes.astype(int).tolist()
        resized = [resize(i, c, s, self._filter) for i, c, s in zip(images.images, crops, sizes, strict=True)]
        gather(resized, tokens, patch_size, out)

    def close(self) -> None:
        """Forgets what is decoded and not yet taken."""
        self._done.clear()

    def _decode(self, files: list[torch.Tensor]) -> list[torch.Tensor]:
        if self._device.type == "cuda":
            found: Any = decode_jpeg(files, mode=ImageReadMode.RGB, device=self._device)
            return list(found)
        return [decode_jpeg(file, mode=ImageReadMode.RGB) for file in files]

    def _decodes(self, file: torch.Tensor) -> bool:
        try:
            self._decode([file])
        except (RuntimeError, ValueError):
            return False
        return True
