"""A roofline on paper for each row of a GPU's day: operations, bytes, the floor they give, what was expected, and why.

In: two ceilings of a device, arithmetic and memory. Out: `Paper` by row. Nothing here runs on a GPU. A step's floor adds its
three kinds of work, since they take turns: matrix products at arithmetic's ceiling, attention's likewise, and what moves
through memory between them. Expected is the same with attention at the rate that its kernels are known to reach.
"""

from __future__ import annotations

from dataclasses import dataclass

H200 = {"tflops": 989.0, "gb_per_s": 4800.0}
"""Data sheet: dense bf16, and memory."""

MEAN, SQUARES = 148.0, 165.0
"""Tokens of an image where both sides are 8 to 16 patches, and the mean square over the mean: Σt² / Σt."""

SHAPES = {"S": (384, 12, 96), "B": (768, 12, 64), "L": (1024, 24, 32)}
"""Width, depth, and sequences of 1,024 tokens in a step."""

BYTES_A_CHANNEL = 192
"""Bytes moved through memory a channel, token and layer in a step, matrix products aside. Forward 64: two norms that read the
float32 stream and write bf16 (12), queries and keys normed (8), attention's own (8), two sums into the stream (20), GELU over
four times the width (16). Backward twice that."""

FLASH_SHORT, NVJPEG = 70.0, 20_000.0
"""Varlen kernels work on tiles of 128 tokens: some 70 TFLOP/s on segments of 64 to 256, as the first day's profile showed. Bare
nvJPEG has no floor of ours: 7,700 images/s on an A100 (torchvision's own figure), times some 2.5 for Hopper's engines."""


@dataclass(frozen=True, slots=True)
class Paper:
    """One row: `floor` and `expected` in the row's `unit`, and the reasoning in a line."""

    unit: str
    floor: float
    expected: float
    why: str


def step(shape: str, tflops: float, gb_per_s: float) -> Paper:
    """A training step at L = 1,024, in milliseconds."""
    width, depth, sequences = SHAPES[shape]
    tokens = sequences * 1024
    products = 3 * 24 * width**2 * tokens * depth / tflops / 1e9
    pairs = 3.5 * 4 * width * tokens * SQUARES * depth
    moved = BYTES_A_CHANNEL * width * tokens * depth / gb_per_s / 1e6
    floor = products + pairs / tflops / 1e9 + moved
    short = pairs / FLASH_SHORT / 1e9
    expected = products + short + moved
    why = f"products {products:.0f} ms, memory {moved:.0f} ms, attention {short:.0f} ms at {FLASH_SHORT:.0f} TFLOP/s"
    return Paper("ms", floor, expected, why)


def papers(tflops: float, gb_per_s: float) -> dict[str, Paper]:
    """Every row that has one, by the row's name and the figure that it is about."""
    found = {f"navit {shape}/16": step(shape, tflops, gb_per_s) for shape in SHAPES}
    t, n, heads, channels = 256, 256, 12, 64
    pairs = 3.5 * 4 * n * heads * t * t * channels
    found["torch_varlen on uniform T = 256"] = Paper(
        "ms", pairs / tflops / 1e9, pairs / 200 / 1e9, "as dense: some 200 TFLOP/s forward and backward at K = 64"
    )
    found["patch kernel"] = Paper("gb_per_s", gb_per_s, 0.7 * gb_per_s, "each byte read once and written once")
    found["nvJPEG alone"] = Paper("images_per_s", NVJPEG, NVJPEG, "fixed-function engines; 70 KB a file")
    found["nvjpeg into packed batches, from memory"] = Paper(
        "images_per_s", NVJPEG, 0.85 * NVJPEG, "bare decoding; one pass resizes and cuts"
    )
    return found
