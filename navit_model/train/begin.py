"""Where a run starts that does not start afresh: the weights of another run's model, put into the run's own.

In: a fresh model and a trained one. Out: the fresh one with those weights, or the difference by name. Apart from the tasks,
which call it, and from `checkpoint`, which knows nothing of runs that begin.
"""

from __future__ import annotations

from dataclasses import fields

from navit_loader.errors import ModelError

from ..model.navit import NaViT


def take_over(model: NaViT, source: NaViT, path: str) -> None:
    """Gives a model the weights of `source`, opened at `path`; the classifier only where it has the same classes.

    A patch embedding of another base size is resized, as FlexiViT's student gets its teacher's (arXiv 2212.08013);
    all else must have the same shape.

    Raises:
        ModelError: it is of another shape; names the difference.
    """
    ours, theirs = model.config, source.config
    free = (
        "patch_size",
        "patch_sizes",
        "patch_filter",
        "classes",
        "drop_path",
        "dropout",
        "checkpointing",
        "attention",
    )
    for field in fields(ours):
        mine, other = getattr(ours, field.name), getattr(theirs, field.name)
        if field.name not in free and mine != other:
            raise ModelError(
                f"'{path}' has model.{field.name} = {other!r}, the run says {mine!r}; "
                "a model that starts from it needs the same value"
            )
    weights = source.state_dict()
    weights["patch_embed.proj.weight"] = source.patch_embed.weight(ours.patch_size).detach()
    if ours.classes != theirs.classes:
        heads = ("head.", "distill_head.")
        weights = {name: value for name, value in weights.items() if not name.startswith(heads)}
        weights |= {name: value for name, value in model.state_dict().items() if name.startswith(heads)}
    model.load_state_dict(weights)
