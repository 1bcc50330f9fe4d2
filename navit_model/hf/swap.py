"""A model's vision tower runs packed, or as it did before.

In: a vision-language model of transformers ≥ 5, or its tower. Out: nothing; the tower's forward is another one. Apart from
`towers`, which says what each forward is.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

from navit_loader.errors import ModelError

from ..weights.from_transformers import tower_of
from .packed import PackedEncoder
from .towers import FORWARDS


def replace_vision_tower(model: Any) -> None:
    """Puts our packed encoder in the place of the blocks of a model's vision tower, with outputs equal to its own.

    The tower stays where it is with its class, configuration and weights; so `generate`, training, `state_dict` and
    `save_pretrained` go on, and what they save is loaded as ever. Nothing is padded, and no image sees another.

    Args:
        model: a model with a tower of `FORWARDS`, in place; once more does nothing.

    Raises:
        ModelError: a tower that is not known, whose images are all of one size, that is quantised or has options that a
            NaViT has not; names it.
    """
    tower, _ = tower_of(model)
    name = type(tower).__name__
    if name not in FORWARDS:
        raise ModelError(
            f"{name} takes images of one size, which are packed already; replace_vision_tower takes {', '.join(FORWARDS)}"
        )
    tower.navit = PackedEncoder(tower)
    tower.forward = MethodType(FORWARDS[name], tower)


def restore_vision_tower(model: Any) -> None:
    """Gives a model's tower its own forward again; where it has it, nothing changes.

    Raises:
        ModelError: a tower that is not known.
    """
    tower, _ = tower_of(model)
    for name in ("forward", "navit"):
        tower.__dict__.pop(name, None)
