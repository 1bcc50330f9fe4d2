"""Detectors that are told what to look for when they are used: OWL-ViT and OWLv2, by texts or by pictures.

In: a folder of one that transformers saved, and names or pictures. Out: an `OpenedModel` of the task `detection`, whose
classes are these. Apart from `opened`, whose models know their classes from training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from navit_loader.batch import OK, PackedBatch, View
from navit_loader.config import LoaderConfig
from navit_loader.errors import ModelError
from navit_loader.render.images import pack_images

from ..config import DetectionConfig
from ..model.navit import NaViT
from ..model.owl import ClassOwlHead, OwlHead, Proposals
from ..train.settings import RunConfig, TrainConfig
from ..weights.pairs import owl_vit
from .opened import OpenedModel, plan_for
from .zero_shot import ZeroShot

TOKENIZER = "tokenizer.json"


class Owl(nn.Module):
    """An image tower, its head, and what is looked for: a batch → `Proposals`."""

    def __init__(self, model: NaViT, head: OwlHead, queries: Tensor) -> None:
        super().__init__()
        self.model, self.head = model, head
        self.queries: Tensor
        self.register_buffer("queries", queries)

    def forward(self, batch: PackedBatch | View) -> Proposals:
        """What each token proposes."""
        return self.head(self.model.forward_features(batch), batch, self.queries)  # type: ignore[no-any-return]


@torch.no_grad()
def open_owl(
    path: Path,
    device: torch.device,
    *,
    names: Sequence[str] = (),
    pictures: Sequence[Path] = (),
    templates: Sequence[str] = ("{}",),
    tokenizer: str | None = None,
) -> OpenedModel:
    """Opens a detector.

    Args:
        path: folder of an `OwlViTForObjectDetection` or `Owlv2ForObjectDetection`.
        device: where to put it.
        names: what to look for, as texts.
        pictures: or as pictures, each of one object.
        templates: texts with `{}` where a name goes.
        tokenizer: a `tokenizer.json`; None takes that of the folder.

    Raises:
        ModelError: no such model; neither names nor pictures, or both; or a picture that cannot be read.
    """
    if bool(names) == bool(pictures):
        raise ModelError("give texts or pictures to look for, not both")
    if not (path / "config.json").is_file():
        raise ModelError(
            f"'{path}' is no OWL-ViT or OWLv2 in a folder that transformers saved; give one, or leave --queries and "
            "--query-image out: other models know their classes"
        )
    towers, head = owl_vit(path)
    config = towers.image.config
    # As large as it was trained for.
    most = config.position_grid[0] * config.position_grid[1] + config.prefix_tokens
    plan = replace(plan_for(config), max_tokens=most, sequence_length=most)
    loader = LoaderConfig(plan=plan)
    if names:
        file = path / TOKENIZER
        if tokenizer is None and not file.is_file():
            raise ModelError(f"'{path}' has no {TOKENIZER}, which texts need; give one with --tokenizer")
        queries = ZeroShot(towers, names, templates, tokenizer or file).weight
    else:
        assert isinstance(head, ClassOwlHead)
        queries = torch.stack([_query(towers.image, head, picture, loader) for picture in pictures])
    classes = list(names) or [picture.stem for picture in pictures]
    module = Owl(towers.image, head, queries).to(device).eval()
    run = RunConfig(
        loader=loader,
        model=config,
        detection=DetectionConfig(classes=len(classes)),
        train=TrainConfig(task="detection"),
    )
    return OpenedModel(path, run, module, module.model, classes, None)


def _query(model: NaViT, head: ClassOwlHead, picture: Path, loader: LoaderConfig) -> Tensor:
    try:
        host = pack_images([picture.read_bytes()], loader.for_evaluation())
    except OSError as e:
        raise ModelError(f"--query-image = '{picture}' cannot be read: {e.strerror}") from None
    if not (host.status == OK).any():
        raise ModelError(f"--query-image = '{picture}' cannot be decoded")
    batch = host.to("cpu")
    return head.query_of(model.forward_features(batch)[0], batch)
