"""navit's loader: whole images of any size, packed into fixed-length sequences by a plan made from headers alone.

The names below are loaded when first used, so that `import navit_loader` costs nothing that is not needed.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .batch import PackedBatch, View
    from .client import RemoteLoader
    from .config import LoaderConfig
    from .encoded import EncodedBatch
    from .images import pack_images
    from .index import build_index, open_index
    from .loader import PackedLoader
    from .packing import pack

__all__ = [
    "EncodedBatch",
    "LoaderConfig",
    "PackedBatch",
    "PackedLoader",
    "RemoteLoader",
    "View",
    "build_index",
    "open_index",
    "pack",
    "pack_images",
]

_HOME = {
    "EncodedBatch": "encoded",
    "LoaderConfig": "config",
    "PackedBatch": "batch",
    "PackedLoader": "loader",
    "RemoteLoader": "client",
    "View": "batch",
    "build_index": "index",
    "open_index": "index",
    "pack": "packing",
    "pack_images": "images",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'navit_loader' has no attribute '{name}'")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
