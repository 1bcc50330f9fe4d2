"""NVIDIA DALI as a decoder, on a GPU or on the CPU. In: `EncodedBatch`. Out: `PackedBatch` on a device. Needs the extra `dali`.

`pipeline` is its graph and its runs, and what to do when one fails; all else is in `device/`.
"""

from typing import ClassVar

from ...errors import ConfigError

try:
    import nvidia.dali  # noqa: F401 - before torch, which takes longer
except ImportError as e:
    raise ConfigError(
        f"decode = 'dali' needs NVIDIA DALI, which cannot be loaded here ({e}); "
        "pip install nvidia-dali-cuda130 (our extra 'dali'), or take decode = 'cpu'"
    ) from None

from ..device.renderer import DeviceRenderer
from .pipeline import FILTERS, VERSION, Runs

__all__ = ["DaliRenderer"]


class DaliRenderer(DeviceRenderer):
    """Renders encoded batches with DALI."""

    name: ClassVar[str] = "dali"
    version: ClassVar[str] = VERSION
    revision: ClassVar[int] = 1
    filters = FILTERS

    def _runs(self, filter: str, views: int, threads: int) -> Runs:
        return Runs(self.device, filter, views, threads)
