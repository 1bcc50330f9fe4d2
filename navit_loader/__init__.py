"""navit's loader: whole images of any size, packed into fixed-length sequences by a plan made from headers alone.

The names below are loaded when first used, so that `import navit_loader` costs nothing that is not needed.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .batch import PackedBatch, View
    from .config import LoaderConfig
    from .deliver.device import DevicePrefetcher
    from .deliver.local import PackedLoader
    from .deliver.remote import RemoteLoader
    from .index import build_index, open_index
    from .plan.packing import pack
    from .plan.preprocessor import sizing
    from .render.encoded import EncodedBatch
    from .render.images import pack_images
    from .render.processor import ImageProcessor

__all__ = [
    "DevicePrefetcher",
    "EncodedBatch",
    "ImageProcessor",
    "LoaderConfig",
    "PackedBatch",
    "PackedLoader",
    "RemoteLoader",
    "View",
    "build_index",
    "open_index",
    "pack",
    "pack_images",
    "sizing",
]

_HOME = {
    "DevicePrefetcher": "deliver.device",
    "EncodedBatch": "render.encoded",
    "ImageProcessor": "render.processor",
    "LoaderConfig": "config",
    "PackedBatch": "batch",
    "PackedLoader": "deliver.local",
    "RemoteLoader": "deliver.remote",
    "View": "batch",
    "build_index": "index",
    "open_index": "index",
    "pack": "plan.packing",
    "pack_images": "render.images",
    "sizing": "plan.preprocessor",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'navit_loader' has no attribute '{name}'")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
