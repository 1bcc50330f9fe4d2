"""Hugging Face's `Trainer` around `PackedLoader`: a NaViT classifier of your own index.

In: an index with classes. Out: the Trainer's checkpoints in OUT, with the loader's state beside each, so that `--resume`
goes on with the image behind the last one that was learnt from. Needs the packages `transformers` and `accelerate`.

    python examples/with_transformers.py train.arrow --steps 1000
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

from navit_loader import LoaderConfig, PackedLoader
from navit_loader.batch import OK, PackedBatch
from navit_model import NaViT, NaViTConfig

CONFIG = {
    "data": {"batch_size": 8},
    "plan": {"sequence_length": 1024, "max_tokens": 256, "drop": {"kind": "constant", "rate": 0.5}},
}
MODEL = {"width": 384, "depth": 12, "heads": 6, "patch_size": 16, "max_grid": 64}
IGNORED = -100
"""Label of what has no loss, as the Trainer counts images."""


class Classifier(nn.Module):
    """A NaViT without its own `config`, which the Trainer would take for one of its library's."""

    def __init__(self, model: NaViT) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: PackedBatch) -> Tensor:
        """Logits of each image slot, `[B, E, classes]`."""
        logits: Tensor = self.model(batch)
        return logits


class Batches:
    """The loader's batches as the Trainer wants them: the arguments of the model's `forward`, and `labels`."""

    def __init__(self, loader: PackedLoader, device: torch.device) -> None:
        self.loader, self.device = loader, device

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        # Endless: the Trainer takes `len` batches and leaves; the next time it starts behind them.
        while True:
            for packed in self.loader:
                batch = packed.to(self.device)
                label = batch.labels[..., 0]
                yield {"batch": batch, "labels": label.where((batch.status == OK) & (label >= 0), IGNORED)}


def mean_loss(logits: Tensor, labels: Tensor, num_items_in_batch: Tensor) -> Tensor:
    """The sum of the losses over the number of images of the whole step, which the Trainer counts over ranks and batches."""
    total = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum")
    return total / num_items_in_batch.clamp(min=1)


class PackedTrainer(Trainer):
    """The Trainer with batches from a `PackedLoader`."""

    def __init__(self, loader: PackedLoader, **given: Any) -> None:
        super().__init__(compute_loss_func=mean_loss, callbacks=[KeepState(loader)], **given)
        self.batches = Batches(loader, self.args.device)

    def get_train_dataloader(self) -> Any:
        """Not prepared by accelerate: the plan already gives each rank its own batches."""
        return self.batches

    def num_examples(self, dataloader: Any) -> int:
        """Images of an epoch."""
        return int(self.batches.loader.engine.indexes[0].num_rows)


class KeepState(TrainerCallback):
    """Writes the loader's state, a few integers, beside each checkpoint."""

    def __init__(self, loader: PackedLoader) -> None:
        self.loader = loader

    def on_save(self, args: TrainingArguments, state: Any, control: Any, **_: Any) -> None:
        """After a checkpoint was written."""
        if state.is_world_process_zero:
            folder = Path(args.output_dir, f"checkpoint-{state.global_step}")
            (folder / "loader.json").write_text(json.dumps(self.loader.state_dict()))


def fit(
    index: Path, out: Path, steps: int, resume: bool = False, config: Any = CONFIG, model: Any = MODEL, **given: Any
) -> Classifier:
    """Trains and returns the model.

    Args:
        index: where the images are.
        out: folder of the checkpoints.
        steps: optimiser steps in all.
        resume: go on from the last checkpoint of `out`.
        config: tables of a `LoaderConfig`.
        model: keys of a `NaViTConfig`, without `classes`.
        given: more for `TrainingArguments`.
    """
    set_seed(0)
    # The loader finds its own place, so nothing is skipped batch by batch.
    args = TrainingArguments(
        str(out), max_steps=steps, learning_rate=1e-3, ignore_data_skip=True, report_to="none", **given
    )
    found = get_last_checkpoint(str(out)) if resume else None
    with PackedLoader(
        index, LoaderConfig.from_dict(config), rank=args.process_index, world_size=args.world_size
    ) as loader:
        if found:
            loader.load_state_dict(json.loads(Path(found, "loader.json").read_text()))
        trained = Classifier(NaViT(NaViTConfig(**model, classes=len(loader.classes))))
        PackedTrainer(loader, model=trained, args=args).train(resume_from_checkpoint=found)
    return trained


def main() -> None:
    """Command line of this file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("index", type=Path, help="an index with classes, from navit-loader index")
    parser.add_argument("--out", type=Path, default=Path("runs/trainer"), help="folder to write to (runs/trainer)")
    parser.add_argument("--steps", type=int, default=1000, help="optimiser steps (1000)")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint of OUT")
    args = parser.parse_args()
    fit(args.index, args.out, args.steps, args.resume)


if __name__ == "__main__":
    main()
