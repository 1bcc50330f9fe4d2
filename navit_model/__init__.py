"""navit's model: a compact NaViT over packed batches, with training, evaluation and inference.

In: nothing. Out: the public names, which load torch when they are first used; so `navit-model --help` is quick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from navit_loader.errors import ExtraError

if TYPE_CHECKING:
    from .config import NaViTConfig
    from .model.navit import NaViT
    from .use.opened import OpenedModel, open_model

__all__ = ["NaViT", "NaViTConfig", "OpenedModel", "open_model"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .config import NaViTConfig

    if name == "NaViTConfig":
        return NaViTConfig
    try:
        if name == "NaViT":
            from .model.navit import NaViT

            return NaViT
        from .use import opened
    except ModuleNotFoundError as e:
        raise ExtraError.of(e) or e from None
    return getattr(opened, name)
