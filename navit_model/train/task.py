"""What a run learns: the seam between the trainer and a task.

In: a `RunConfig` and a loader. Out: a `Task`: the module to train, the sum of the losses of a batch, and what evaluation
reports. A task is one file of `tasks/`, named in `TASKS` there and in `TrainConfig.task`. The trainer knows nothing of
labels, captions or teachers; a task knows nothing of steps, ranks' gradients, averages or checkpoints: another run's model
it asks for by `OpenImageModel`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from navit_loader.batch import PackedBatch

from ..model.navit import NaViT
from ..world import World
from .augment import augment
from .erase import erase
from .feed import Loader
from .flops import batch_flops, frozen_flops
from .settings import RunConfig
from .worth import Worth

OpenImageModel = Callable[[str], tuple[NaViT, list[str]]]
"""A run's folder or checkpoint → its image model, in evaluation mode on the CPU, and the names of its classes."""


class Row(Protocol):
    """One line of an evaluation, at one token budget."""

    @property
    def tokens(self) -> int:
        """Tokens of one image at most."""

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
        open_image_model: for such a teacher.

    Attributes:
        weighs: whether `loss` and `weigh` know weights of images; a run of any other task refuses an index that has them.
        worth: these weights, where an index has some; the trainer sets it.
    """

    weighs: ClassVar[bool] = False
    worth: Worth | None = None

    def __init__(self, run: RunConfig, classes: Sequence[str], world: World, open_image_model: OpenImageModel) -> None:
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
    def begin(cls, run: RunConfig, module: nn.Module, open_image_model: OpenImageModel) -> None:
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

    def notes(self, loader: Loader) -> list[str]:
        """What a run says before its first step: how its data are learnt otherwise than one may expect."""
        return []

    def augment(self, batch: PackedBatch) -> PackedBatch:
        """The batch (on the device) as it is learnt from, with `[train.augment]` done to it."""
        config, seed = self.run.train.augment, self.run.train.seed
        return erase(augment(batch, config, seed), config.erase, seed)

    @abstractmethod
    def count(self, batch: PackedBatch) -> Tensor:
        """Images of the batch that have a loss; a scalar on the batch's device. No host value is read."""

    def weigh(self, batch: PackedBatch, count: Tensor) -> Tensor:
        """What these images count together, by which the sum of their losses is divided: their number, but for
        weights, and for losses of boxes or cells.

        Args:
            batch: on the device.
            count: what `count` gave for it.
        """
        return count

    @abstractmethod
    def loss(self, outputs: Any, batch: PackedBatch) -> Tensor:
        """This rank's part of the *sum* of the losses, a scalar; the trainer divides by what `weigh` gives on all ranks.

        Args:
            outputs: what the module's `forward` gave, perhaps in bfloat16.
            batch: on the device, as `augment` left it.
        """

    def flops(self, module: nn.Module, batch: PackedBatch) -> Tensor:
        """Operations of one training step over the batch's images: three forward passes of the image model, and one of what is
        frozen of it.

        A task with more than the image model adds its own. A scalar on the batch's device.
        """
        config = self.image_model(module).config
        return 3 * batch_flops(config, batch) - 2 * frozen_flops(config, batch, self.run.train.freeze)

    @abstractmethod
    def check_held_out(self, module: nn.Module) -> None:
        """Opens what `evaluate` will need, before the first step.

        Raises:
            NavitError: the held-out index cannot be scored, or not at one of `train.eval_tokens`.
        """

    @abstractmethod
    def evaluate(self, module: nn.Module) -> list[Row]:
        """Scores of the module, in evaluation mode; every rank calls it. Empty without held-out data."""

    @abstractmethod
    def score(self, row: Any) -> float:
        """What is to be high in a row of `evaluate`: by it the best of several evaluations is chosen."""

    @abstractmethod
    def table(self, rows: Sequence[Any]) -> str:
        """The rows of `evaluate` as lines of text."""
