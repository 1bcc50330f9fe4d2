"""Decoding with NVIDIA DALI: the same plan, filled by another decoder, on a GPU or on the CPU.

In: `EncodedBatch`. Out: `PackedBatch` on a device. Needs the extra `dali`, which the rest of navit does not.

    renderer   batches in, batches out; what goes which way
    decoding   the thread that keeps DALI busy
    others     the images that DALI does not get
    pipeline   the DALI graph, its runs, and what to do when one fails
    tokens     where each kept token lies in its image as stored
    patchify   resized images to patches in their slots; `kernel` is the same for GPUs
"""

from ...errors import ConfigError

try:
    import nvidia.dali  # noqa: F401 - before torch, which takes longer
except ImportError as e:
    raise ConfigError(
        f"decode = 'dali' needs NVIDIA DALI, which cannot be loaded here ({e}); "
        "pip install nvidia-dali-cuda130 (our extra 'dali'), or take decode = 'cpu'"
    ) from None

from .renderer import DaliRenderer, Rendering, decoder_name

__all__ = ["DaliRenderer", "Rendering", "decoder_name"]
