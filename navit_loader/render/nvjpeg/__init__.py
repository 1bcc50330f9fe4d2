"""nvJPEG as a decoder, through torchvision's batched call. In: `EncodedBatch`. Out: `PackedBatch` on a device. The extra is
`nvjpeg`.

The light way beside DALI: no pipeline and no 600 MB, but a wheel that many have already. On the CPU the same path runs with
torchvision's CPU decoder. `runs` decodes, `resample` says what a resized pixel is, and `kernel` makes patches of decoded images
in one pass on a GPU: resized, turned and cut, with nothing in between. All else is in `device/`.
"""

from typing import ClassVar

from ...errors import ConfigError

try:
    import torchvision
except ImportError as e:
    raise ConfigError(
        f"decode = 'nvjpeg' needs torchvision, which cannot be loaded here ({e}); "
        "pip install torchvision, or take decode = 'cpu'"
    ) from None

from ..device.renderer import DeviceRenderer
from .resample import FILTERS
from .runs import Runs

__all__ = ["NvjpegRenderer"]


class NvjpegRenderer(DeviceRenderer):
    """Renders encoded batches with nvJPEG."""

    name: ClassVar[str] = "nvjpeg"
    version: ClassVar[str] = torchvision.__version__.partition("+")[0]
    revision: ClassVar[int] = 1
    filters = FILTERS

    def _runs(self, filter: str, views: int, threads: int) -> Runs:
        return Runs(self.device, filter)
