"""What a run learns: the seam between the trainer and a task.

In: a `RunConfig` and a loader. Out: a `Task`: the module to train, the sum of the losses of a batch, and what evaluation
reports. A task is one file of this folder, named in `TASKS` and in `TrainConfig.task`. The trainer knows nothing of labels,
captions or teachers; a task knows nothing of steps, ranks' gradients, averages or checkpoints.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, Protocol

from torch import Tensor, nn

from navit_loader.batch import PackedBatch
from navit_loader.errors import ModelError

from ..feed import Loader
from ..flops import batch_flops
from ..model import NaViT
from ..settings import RunConfig
from ..world import World


class Row(Protocol):
    """One line of an evaluation."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for `log.jsonl`, JSON files and the report."""

    def __str__(self) -> str:
        """The same in a few words, for the run's output."""


class Task(ABC):
    """What is learnt.

    The classmethods need no data, so that a checkpoint can be opened without them.

    Args:
        run: the configuration, as `prepare` left it.
        classes: names of the classes, in the order of the logits; empty where the index has none.
        world: the ranks. What a task keeps beside the module, such as a frozen teacher, lives on `world.device`.
    """

    def __init__(self, run: RunConfig, classes: Sequence[str], world: World) -> None:
        self.run, self.classes, self.world = run, list(classes), world

    @classmethod
    def prepare(cls, run: RunConfig, loader: Loader) -> RunConfig:
        """The run, with what the data decide filled in.

        Raises:
            ConfigError: data that this task cannot learn from.
        """
        return run

    @classmethod
    @abstractmethod
    def build(cls, run: RunConfig) -> nn.Module:
        """The module with fresh weights: all that is trained, averaged and saved. Its `forward` takes a batch."""

    @classmethod  # noqa: B027 - most runs start afresh
    def begin(cls, run: RunConfig, module: nn.Module) -> None:
        """Puts the weights that a run starts from into `build`'s module; not called where a run goes on.

        Raises:
            ModelError: they cannot be had, or do not fit.
        """

    @classmethod
    @abstractmethod
    def image_model(cls, module: nn.Module) -> NaViT:
        """The NaViT inside `build`'s module."""

    @classmethod
    def embed(cls, module: nn.Module, batch: PackedBatch) -> Tensor:
        """Features of each image slot, `[B, E, D]`: what probes and embeddings are made of. Here the pooled tokens."""
        model = cls.image_model(module)
        return model.forward_head(model.forward_features(batch), batch, pre_logits=True)

    def check(self, batch: PackedBatch) -> None:  # noqa: B027 - most tasks have nothing to refuse
        """Refuses a batch (numpy, on the host) that the task cannot learn from.

        Raises:
            ModelError: names what is wrong with it.
        """

    @abstractmethod
    def count(self, batch: PackedBatch) -> Tensor:
        """Images of the batch that have a loss; a scalar on the batch's device. No host value is read."""

    @abstractmethod
    def loss(self, outputs: Any, batch: PackedBatch) -> Tensor:
        """This rank's part of the *sum* of the losses, a scalar; the trainer divides by the count of all ranks.

        Args:
            outputs: what the module's `forward` gave, perhaps in bfloat16.
            batch: on the device.
        """

    def flops(self, module: nn.Module, batch: PackedBatch) -> Tensor:
        """Operations of one training step over the batch's images: three forward passes of the image model.

        A task with more than the image model adds its own. A scalar on the batch's device.
        """
        return 3 * batch_flops(self.image_model(module).config, batch)

    @abstractmethod
    def evaluate(self, module: nn.Module) -> list[Row]:
        """Scores of the module, in evaluation mode; every rank calls it. Empty without held-out data."""

    @abstractmethod
    def table(self, rows: Sequence[Any]) -> str:
        """The rows of `evaluate` as lines of text."""


TASKS = {"classification": "Classification", "contrastive": "Contrastive", "distillation": "Distillation"}
"""Class of each task, in the module of the task's name."""


def task_of(run: RunConfig) -> type[Task]:
    """The class of the run's task."""
    module = importlib.import_module(f".{run.train.task}", __name__)
    found: type[Task] = getattr(module, TASKS[run.train.task])
    return found


def take_over(model: NaViT, path: str) -> None:
    """Gives a model the weights of the image model at `path`, the classifier only where it has the same classes.

    A patch embedding of another base size is resized, as FlexiViT's student gets its teacher's (arXiv 2212.08013);
    all else must have the same shape.

    Raises:
        ModelError: there is no checkpoint, or it is of another shape; names the difference.
    """
    from ..checkpoint import open_checkpoint

    saved = open_checkpoint(path)
    source = saved.model()
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
                f"'{saved.path}' has model.{field.name} = {other!r}, the run says {mine!r}; "
                "a model that starts from it needs the same value"
            )
    weights = source.state_dict()
    weights["patch_embed.proj.weight"] = source.patch_embed.weight(ours.patch_size).detach()
    if ours.classes != theirs.classes:
        heads = ("head.", "distill_head.")
        weights = {name: value for name, value in weights.items() if not name.startswith(heads)}
        weights |= {name: value for name, value in model.state_dict().items() if name.startswith(heads)}
    model.load_state_dict(weights)
