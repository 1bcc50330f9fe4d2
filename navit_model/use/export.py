"""The packed forward as a graph of its own: `torch.export`, for those who serve a model without this package.

In: a model and one batch whose shapes it is to take. Out: an `ExportedProgram` from plain tensors to logits. Apart, since
it gives the batch's fields as separate arguments: what is exported knows no dataclass of ours.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from navit_loader.batch import PackedBatch, View
from navit_loader.errors import ModelError

from ..model.attention import choose
from ..model.navit import NaViT


class FromTensors(nn.Module):
    """A model over the array fields of a `View`, its host values fixed."""

    def __init__(self, model: NaViT, like: PackedBatch | View) -> None:
        super().__init__()
        self.model = model
        self.patch_size, self.max_seqlen, self.prefix_tokens = like.patch_size, like.max_seqlen, like.prefix_tokens

    def forward(
        self, patches: Tensor, positions: Tensor, segment_ids: Tensor, cu_seqlens: Tensor, grids: Tensor
    ) -> Tensor:
        """Logits `[B, E, classes]`; the arguments are those fields of `View`, as tensors."""
        host = (self.patch_size, self.max_seqlen, self.prefix_tokens)
        logits: Tensor = self.model(View(patches, positions, segment_ids, cu_seqlens, grids, *host))
        return logits


def export(model: NaViT, batch: PackedBatch | View) -> torch.export.ExportedProgram:
    """Exports the packed forward for the shapes of a batch, whatever its images.

    Args:
        model: in the mode that is to be exported, evaluation as a rule, and on the device where it will run.
        batch: tensors on that device; its shapes, patch size and bound of segments are the program's.

    Returns:
        A program `(patches, positions, segment_ids, cu_seqlens, grids)` → f32 `[B, E, classes]`; see `torch.export.save`.

    Raises:
        ModelError: the backend of attention cannot be traced, or the model does not take the batch.
    """
    model.check(batch)
    if choose(model.config.attention, batch.patches.device) == "segments":
        raise ModelError("attention = 'segments' cannot be exported; set attention = 'dense' to export on a CPU")
    tensors = (batch.patches, batch.positions, batch.segment_ids, batch.cu_seqlens, batch.grids)
    return torch.export.export(FromTensors(model, batch), tensors)
