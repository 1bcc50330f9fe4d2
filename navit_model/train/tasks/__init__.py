"""What a run can learn, one file each; `task.py` beside this folder says what a task is."""

from __future__ import annotations

from ..settings import RunConfig
from ..task import Task
from .classification import Classification
from .contrastive import Contrastive
from .detection import Detection
from .distillation import Distillation
from .panoptic import Panoptic
from .regression import Regression
from .segmentation import Segmentation

TASKS: dict[str, type[Task]] = {
    "classification": Classification,
    "contrastive": Contrastive,
    "detection": Detection,
    "distillation": Distillation,
    "panoptic": Panoptic,
    "regression": Regression,
    "segmentation": Segmentation,
}
"""By the words of `train.task`."""


def task_of(run: RunConfig) -> type[Task]:
    """The class of the run's task."""
    return TASKS[run.train.task]
