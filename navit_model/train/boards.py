"""Other people's boards beside `log.jsonl`: TensorBoard, Weights & Biases, MLflow, for whoever has them installed.

In: which ones, a run's folder, its configuration. Out: `Board`s, which take scalars by step. Apart from `log`, which writes
what a run itself reads. Where a board is and under which project or experiment is told by its own environment variables
(`WANDB_MODE`, `WANDB_PROJECT`, `MLFLOW_TRACKING_URI`, `MLFLOW_EXPERIMENT_NAME`, …). The names that their runs got are kept
in `OUT/boards.json`, so that a run which goes on is the same one there.
"""

from __future__ import annotations

import itertools
import json
import os
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from navit_loader.errors import ConfigError, needed, said

PARAMS = 100
"""Parameters that MLflow takes at once."""

LONGEST = 6000
"""Characters of one of them."""


class Board(Protocol):
    """Where scalars are shown."""

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Takes scalars by name, such as `train/loss`."""

    def close(self, ended: BaseException | None) -> None:
        """Writes what is left; `ended` is what ended the run, None where it came to its end."""


def open_boards(kinds: Sequence[str], out: Path, start: int, config: Mapping[str, Any]) -> list[Board]:
    """The boards of a run, before its first step.

    Args:
        kinds: of `tensorboard`, `wandb`, `mlflow`.
        out: the run's folder.
        start: steps already done.
        config: the run's configuration, nested.

    Raises:
        ExtraError: one is not installed.
        ConfigError: one is, and does not let us in.
    """
    for kind in kinds:
        needed(kind)
    # Its own are some four minutes for a server that is gone; other ranks wait one for this one's step.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    file = out / "boards.json"
    known: dict[str, str] = {}
    if start:
        with suppress(OSError, ValueError):
            known = json.loads(file.read_text(encoding="utf-8"))
    found: list[Board] = [_TensorBoard(out, start)] if "tensorboard" in kinds else []
    try:
        for kind, one in _TRACKED.items():
            if kind in kinds:
                board = one(out, known.get(kind), config)
                found.append(board)
                known[kind] = board.name
        if known:
            file.write_text(json.dumps(known), encoding="utf-8")
    except BaseException as e:
        for opened in found:
            opened.close(e)
        raise
    return found


class _TensorBoard:
    """Event files in `OUT/tensorboard`; what an earlier attempt wrote behind `start` is hidden."""

    def __init__(self, out: Path, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(out / "tensorboard"), purge_step=start + 1 if start else None)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self, ended: BaseException | None) -> None:
        self._writer.close()


class _Wandb:
    """A run of Weights & Biases. What it has of a step already stays: taken up earlier, a run repeats itself."""

    def __init__(self, out: Path, name: str | None, config: Mapping[str, Any]) -> None:
        wandb = needed("wandb")
        self.name = name or uuid.uuid4().hex[:16]
        try:
            self._run = wandb.init(
                id=self.name,
                resume="allow",
                name=out.name,
                dir=str(out),
                config=dict(config),
                # Its own copy of what is printed would tear our progress bar.
                settings=wandb.Settings(console="off"),
            )
        except wandb.Error as e:
            raise ConfigError(
                f"train.wandb = true: {said(e)[0]}; WANDB_MODE=offline writes to '{out}/wandb', and 'wandb sync' sends it later"
            ) from None

    def add(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self, ended: BaseException | None) -> None:
        self._run.finish(exit_code=int(ended is not None))


class _Mlflow:
    """A run of MLflow, with the configuration as its parameters."""

    def __init__(self, out: Path, name: str | None, config: Mapping[str, Any]) -> None:
        self._mlflow = mlflow = needed("mlflow")
        try:
            self.name: str = mlflow.start_run(run_id=name, run_name=None if name else out.name).info.run_id
            params = iter(_flat(config) if name is None else ())
            while some := dict(itertools.islice(params, PARAMS)):
                mlflow.log_params(some)
        except Exception as e:  # of its own, of a database's, of a server's
            with suppress(Exception):
                mlflow.end_run("FAILED")
            raise ConfigError(f"train.mlflow = true: {said(e)[0]}; MLFLOW_TRACKING_URI says where it writes") from None

    def add(self, step: int, values: Mapping[str, float]) -> None:
        self._mlflow.log_metrics(dict(values), step=step)

    def close(self, ended: BaseException | None) -> None:
        stopped = isinstance(ended, KeyboardInterrupt)
        self._mlflow.end_run("FINISHED" if ended is None else "KILLED" if stopped else "FAILED")


_TRACKED: dict[str, type[_Wandb] | type[_Mlflow]] = {"wandb": _Wandb, "mlflow": _Mlflow}


def _flat(table: Mapping[str, Any], above: str = "") -> list[tuple[str, str]]:
    """Nested values as texts by dotted name; a table by names of the user's own, such as classes, is one text."""
    found: list[tuple[str, str]] = []
    for key, value in table.items():
        if isinstance(value, Mapping) and value and all(map(str.isidentifier, value)):
            found += _flat(value, f"{above}{key}.")
        else:
            found.append((above + key, json.dumps(value, ensure_ascii=False)[:LONGEST]))
    return found
