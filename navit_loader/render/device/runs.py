"""What a decoder is to the thread that keeps it busy. In: encoded files with crops and target sizes. Out: patches in slots.

Apart, so that thread and renderer know no decoder by name: `dali/` and `nvjpeg/` each hold one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from .tokens import Tokens

MAX_IMAGES = 256
"""Images of one run at most."""

DEPTH = 2
"""Runs under way at most."""


class Broken(Exception):
    """A run failed over files that cannot be decoded.

    Attributes:
        samples: which of the run's images; empty where the decoder does not say.
    """

    def __init__(self, samples: list[int]) -> None:
        super().__init__(f"samples {samples}")
        self.samples = samples


@dataclass(frozen=True, slots=True)
class Chunk:
    """The images of one run.

    Attributes:
        files: u8 arrays, the encoded files.
        crops: f32 `[n, 4]`, (top, left, bottom, right) in pixels as stored.
        sizes: for each view f32 `[n, 2]`, (height, width) in pixels as stored.
    """

    files: list[NDArray[np.uint8]]
    crops: NDArray[np.float32]
    sizes: list[NDArray[np.float32]]


class Runs(Protocol):
    """Runs of one decoder, first in, first out. For one thread, whose current CUDA stream is that of the patches.

    Attributes:
        built: how often the decoder was made; more than once where runs failed.
    """

    built: int

    def start(self, chunk: Chunk) -> None:
        """Starts a run; its files stay where they are and must not change until it is taken.

        Raises:
            Broken: files could not be decoded. All runs under way are lost; start them again.
        """

    def take(self, stream: torch.cuda.Stream | None) -> list[Any]:
        """The images of the oldest run, for each view what `cut` understands; the work on `stream` waits for them.

        Raises:
            Broken: as for `start`.
            RenderError: anything else that the decoder could not do, in its words.
        """

    def cut(self, images: Any, tokens: Tokens, patch_size: int, out: torch.Tensor) -> None:
        """Writes the patches of one view of a run into their slots of `out`, u8 `[B·L, P·P·3]`; others stay as they are."""

    def close(self) -> None:
        """Forgets what is under way."""
