"""What a run can learn, one file each; `task.py` beside this folder says what a task is."""

from __future__ import annotations

from ..settings import RunConfig
from ..task import Task
from .classification import Classification
from .contrastive import Contrastive
from .distillation import Distillation
from .regression import Regression

TASKS: dict[str, type[Task]] = {
    "classification": Classification,
    "contrastive": Contrastive,
    "distillation": Distillation,
    "regression": Regression,
}
"""By the words of `train.task`."""


def task_of(run: RunConfig) -> type[Task]:
    """The class of the run's task."""
    return TASKS[run.train.task]
