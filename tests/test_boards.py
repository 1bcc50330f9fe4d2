"""Boards of others beside the log: the same scalars, the configuration, one run however often it was resumed; a missing one.

In: a run of a few seconds. Out: files of the real libraries, where they are installed.
"""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from navit_loader.errors import ConfigError, ExtraError, needed
from navit_model.train.boards import _flat
from navit_model.train.log import RunLog, read_log
from navit_model.train.run import train
from navit_model.train.settings import RunConfig

from .ranks import stopped
from .shapes import table, write_index


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_index(tmp_path_factory.mktemp("shapes"))


def in_two(index: str, out: Path, **changes: Any) -> RunConfig:
    """A run that is stopped behind its third step, and resumed."""
    given = table(index, out, **{"steps": 5, **changes})
    given["data"]["eval_index"] = index
    run = RunConfig.from_dict(given)
    stopped(run, 3)
    train(run, resume=True)
    return run


@pytest.mark.parametrize("kind", ["wandb", "mlflow", "tensorboard"])
def test_a_board_that_is_not_installed_is_one_line_before_the_first_step(
    kind: str, index: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, kind, None)
    with pytest.raises(ExtraError, match=rf"'{kind}' is not installed; pip install 'packed-navit\[{kind}\]' brings it"):
        train(RunConfig.from_dict(table(index, tmp_path / "run", steps=2, **{kind: True})))
    assert not (tmp_path / "run" / "log.jsonl").exists()


def test_parameters_have_names_that_mlflow_takes() -> None:
    """Whatever classes are called."""
    given = {"train": {"steps": 3, "class_weights": {"tench, Tinca tinca": 1.5, "it's": 2.0}}, "mix": {}}
    assert dict(_flat(given)) == {
        "train.steps": "3",
        "train.class_weights": json.dumps(given["train"]["class_weights"]),
        "mix": "{}",
    }


def test_a_folder_of_a_package_s_name_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline runs leave a folder `wandb` where one works."""
    before = sys.modules.pop("wandb", None)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    (tmp_path / "wandb").mkdir()
    try:
        with pytest.raises(ExtraError, match=r"navit\[wandb\]"):
            needed("wandb")
    finally:
        sys.modules.pop("wandb", None)
        if before is not None:
            sys.modules["wandb"] = before


class Failing:
    """Somebody's board that takes one step and no more."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def add(self, step: int, values: Mapping[str, float]) -> None:
        self.steps.append(step)
        if len(self.steps) > 1:
            raise ConnectionError("the server is away")

    def close(self, ended: BaseException | None) -> None:
        raise ConnectionError("the server is away")


def test_a_board_that_fails_ends_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    board, other = Failing(), Failing()
    log = RunLog(tmp_path, 3, 0, boards=[board])
    for step in (1, 2, 3):
        log.write("train", step, loss=1.0)
    log.close()
    assert board.steps == [1, 2]
    assert [e["step"] for e in read_log(tmp_path)] == [1, 2, 3]
    assert "takes no more (the server is away); the run goes on without it" in capsys.readouterr().out
    RunLog(tmp_path, 3, 0, boards=[other]).close()
    assert "could not be closed: the server is away" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore")
def test_mlflow_holds_what_the_log_holds_in_one_run(
    index: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path / 'store'}")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    out = tmp_path / "run"
    run = in_two(index, out, mlflow=True)
    client = mlflow.MlflowClient()
    (found,) = client.search_runs(["0"])
    assert found.info.run_id == json.loads((out / "boards.json").read_text())["mlflow"]
    assert (found.info.status, found.info.run_name) == ("FINISHED", "run")
    assert found.data.params["train.steps"] == "5" and found.data.params["model.width"] == "16"
    assert found.data.params["train.schedule"] == '"cosine"' and len(found.data.params) > 100
    wanted = {e["step"]: e["loss"] for e in read_log(out) if e["kind"] == "train"}
    assert {m.step: m.value for m in client.get_metric_history(found.info.run_id, "train/loss")} == pytest.approx(
        wanted
    )
    (score,) = [e["accuracy"] for e in read_log(out) if e["kind"] == "eval"]
    assert found.data.metrics["eval/32/accuracy"] == pytest.approx(score)
    assert mlflow.active_run() is None
    # A run of its own, though it stands in the same store.
    other = RunConfig.from_dict({**run.to_dict(), "train": {**run.to_dict()["train"], "out": str(tmp_path / "other")}})
    train(other)
    assert len(client.search_runs(["0"])) == 2
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nowhere://at.all")
    with pytest.raises(ConfigError, match=r"train\.mlflow = true: .*MLFLOW_TRACKING_URI says where it writes"):
        train(RunConfig.from_dict(table(index, tmp_path / "third", steps=1, mlflow=True)))


@pytest.mark.filterwarnings("ignore")
def test_wandb_holds_what_the_log_holds_under_one_name(
    index: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    out = tmp_path / "run"
    in_two(index, out, wandb=True)
    name = json.loads((out / "boards.json").read_text())["wandb"]
    found: dict[str, dict[int, float]] = {}
    files = sorted((out / "wandb").glob(f"offline-run-*-{name}/run-{name}.wandb"))
    assert len(files) == 2
    for record in (record for file in files for record in wandb_records(file)):
        if record.WhichOneof("record_type") == "history":
            values = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
            for key in values.keys() & {"train/loss", "eval/32/accuracy"}:
                found.setdefault(key, {})[values["_step"]] = values[key]
        if record.WhichOneof("record_type") == "run":
            config = {item.key: json.loads(item.value_json) for item in record.run.config.update}
            assert record.run.run_id == name and config["train"]["steps"] == 5
    assert found["train/loss"] == pytest.approx({e["step"]: e["loss"] for e in read_log(out) if e["kind"] == "train"})
    assert found["eval/32/accuracy"] == {5: next(e["accuracy"] for e in read_log(out) if e["kind"] == "eval")}


def wandb_records(path: Path) -> Iterator[Any]:
    """The records of a file of an offline run: the log format of LevelDB, in blocks of 32 KiB, behind a head of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(whole)
            whole = b""
