"""PyTorch Lightning around `PackedLoader`: a NaViT classifier of your own index.

In: an index with classes. Out: Lightning's checkpoints and logs in OUT. Lightning saves the loader's state with the model's, so
`--resume` goes on with the image behind the last one that was learnt from. Needs the package `lightning`.

    python examples/with_lightning.py train.arrow --steps 1000
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor

from navit_loader import LoaderConfig, PackedLoader
from navit_loader.batch import PackedBatch
from navit_model import NaViT, NaViTConfig
from navit_model.losses.classification import classification_loss

CONFIG = {
    "data": {"batch_size": 8},
    "plan": {"sequence_length": 1024, "max_tokens": 256, "drop": {"kind": "constant", "rate": 0.5}},
}
MODEL = {"width": 384, "depth": 12, "heads": 6, "patch_size": 16, "max_grid": 64}


class Classifier(lightning.LightningModule):
    """A NaViT, its loss over the images of all ranks, and its optimiser."""

    def __init__(self, model: NaViT, learning_rate: float) -> None:
        super().__init__()
        self.model, self.learning_rate = model, learning_rate

    def transfer_batch_to_device(self, batch: PackedBatch, device: torch.device, dataloader_idx: int) -> PackedBatch:
        """Lightning cannot know how a packed batch moves."""
        return batch.to(device)

    def training_step(self, batch: PackedBatch, batch_idx: int) -> Tensor:
        """The mean loss of the images of all ranks: batches hold different numbers of them."""
        total, count = classification_loss(self.model(batch), batch)
        ranks = self.trainer.world_size
        # Gradients are averaged over the ranks, so the sum of the losses is divided by the mean number of images.
        loss = total / (self.trainer.strategy.reduce(count.float(), reduce_op="sum") / ranks).clamp(min=1)
        self.log("loss", loss.detach(), prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW at a constant rate."""
        return torch.optim.AdamW(self.parameters(), lr=self.learning_rate, weight_decay=0.05)


def fit(
    index: Path,
    out: Path,
    steps: int,
    resume: Path | None = None,
    config: Any = CONFIG,
    model: Any = MODEL,
    **trainer: Any,
) -> Classifier:
    """Trains and returns the module.

    Args:
        index: where the images are.
        out: folder of checkpoints and logs.
        steps: optimiser steps in all.
        resume: a checkpoint of Lightning's to go on from.
        config: tables of a `LoaderConfig`.
        model: keys of a `NaViTConfig`, without `classes`.
        trainer: more for `lightning.Trainer`.
    """
    lightning.seed_everything(0, verbose=False)
    # The plan already gives each rank its own batches: no sampler of Lightning's comes between.
    runner = lightning.Trainer(
        max_steps=steps, default_root_dir=out, use_distributed_sampler=False, gradient_clip_val=1.0, **trainer
    )
    with PackedLoader(
        index, LoaderConfig.from_dict(config), rank=runner.global_rank, world_size=runner.world_size
    ) as loader:
        module = Classifier(NaViT(NaViTConfig(**model, classes=len(loader.classes))), learning_rate=1e-3)
        runner.fit(module, loader, ckpt_path=resume)
    return module


def main() -> None:
    """Command line of this file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("index", type=Path, help="an index with classes, from navit-loader index")
    parser.add_argument("--out", type=Path, default=Path("runs/lightning"), help="folder to write to (runs/lightning)")
    parser.add_argument("--steps", type=int, default=1000, help="optimiser steps (1000)")
    parser.add_argument("--resume", type=Path, metavar="CKPT", help="a checkpoint of Lightning's to go on from")
    args = parser.parse_args()
    fit(args.index, args.out, args.steps, args.resume)


if __name__ == "__main__":
    main()
