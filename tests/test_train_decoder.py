"""Training with another decoder: DALI in process and from a daemon, the choice in checkpoints, and ranks that agree on it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from navit_loader import PackedLoader
from navit_loader.errors import ConfigError
from navit_loader.plan import identity
from navit_loader.plan.config import Warp
from navit_model.cli import main
from navit_model.train import checkpoint
from navit_model.train.feed import Feed, open_loader
from navit_model.train.log import read_log
from navit_model.train.settings import RunConfig
from navit_model.train.trainer import Trainer
from navit_model.world import World

from .service_kit import Daemon
from .shapes import table, write_index, write_toml

pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is not installed: pip install nvidia-dali-cuda130")

ALONE = World(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_index(tmp_path_factory.mktemp("shapes"), "jpg")


def losses(out: Path) -> dict[int, float]:
    return {e["step"]: e["loss"] for e in read_log(out) if e["kind"] == "train"}


def decoder(out: Path) -> str:
    return identity.decoder_of(checkpoint.open_checkpoint(out).state["loader"]["render_id"])


def test_a_run_with_dali_goes_on_with_dali_and_with_another_decoder_only_when_told(
    index: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, halves, by_cpu = (table(index, tmp_path / name, steps=9) for name in ("whole", "halves", "cpu"))
    files = {name: write_toml(t, tmp_path / f"{name}.toml") for name, t in (("whole", whole), ("halves", halves))}
    assert main(["train", str(files["whole"]), "train.decode=dali"]) == 0
    assert "pixels are made by dali" in capsys.readouterr().out
    run = RunConfig.from_dict({**halves, "train": halves["train"] | {"decode": "dali"}})
    with open_loader(run, ALONE) as loader:
        trainer = Trainer(run, loader, ALONE, None)
        trainer.stop_after = 4
        with pytest.raises(KeyboardInterrupt):
            trainer.run()
    assert decoder(tmp_path / "halves").startswith("dali")
    again = ["train", str(files["halves"])]
    assert main([*again, "--resume"]) == 2
    said = capsys.readouterr().err
    assert re.search(r"other: the decoder.*train\.allow_render_change=true", said) and "halves" in said
    assert main([*again, "train.decode=auto", "--resume"]) == 0
    assert "pixels are made by dali (images/s: cpu" in capsys.readouterr().out
    assert losses(tmp_path / "halves") == losses(tmp_path / "whole")
    assert checkpoint.open_checkpoint(tmp_path / "halves").state == {
        **checkpoint.open_checkpoint(tmp_path / "whole").state,
        "config": checkpoint.open_checkpoint(tmp_path / "halves").state["config"],
    }
    cpu = write_toml(by_cpu, tmp_path / "cpu.toml")
    assert main(["train", str(cpu)]) == 0
    assert losses(tmp_path / "cpu") != losses(tmp_path / "whole")


def test_the_decoder_may_change_with_the_flag(index: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_toml(table(index, tmp_path / "run", steps=2), tmp_path / "run.toml")
    assert main(["train", str(file)]) == 0
    assert not decoder(tmp_path / "run").startswith("dali")
    changed = ["train", str(file), "train.decode=dali", "train.allow_render_change=true", "--resume"]
    assert main(changed) == 0
    assert "going on from step 2" in capsys.readouterr().out
    assert main(["train", str(file), "train.out=" + str(tmp_path / "no"), "train.decode=gpu"]) == 2
    assert "train.decode" in capsys.readouterr().err


def test_daemons_files_give_the_losses_of_this_process(index: str, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    file = write_toml(table(index, here, steps=5), tmp_path / "run.toml")
    assert main(["train", str(file), "train.decode=dali"]) == 0
    with Daemon(file_for_daemon(file)) as daemon:
        remote = [f"data.endpoints=['{daemon.endpoint}']", f"train.out={there}", "train.decode=dali"]
        assert main(["train", str(file), *remote]) == 0
    assert losses(here) == losses(there)
    assert decoder(here) == decoder(there)


def file_for_daemon(file: Path) -> Path:
    """The loader's sections alone."""
    text = file.read_text()
    path = file.with_name("daemon.toml")
    path.write_text(text[: text.index("[model]")])
    return path


def test_what_dali_cannot_decode_from_a_daemon_reaches_the_run_s_ledger(tmp_path: Path) -> None:
    index = write_index(tmp_path, "jpg")
    bad = next((tmp_path / "images").rglob("33.jpg"))
    data = bad.read_bytes()
    bad.write_bytes(data[: len(data) - 40] + bytes(40))
    run = table(index, tmp_path / "run", steps=6, decode="dali")
    run["render"] |= {"ledger": str(tmp_path / "bad.jsonl")}
    served = write_toml({**run, "render": {"threads": 1}}, tmp_path / "run.toml")
    with Daemon(file_for_daemon(served)) as daemon:
        run["data"] |= {"endpoints": [daemon.endpoint]}
        config = RunConfig.from_dict(run)
        with open_loader(config, ALONE) as loader:
            failed = sum(int((batch.status == 2).sum()) for batch in loader)
    assert failed == 1
    (entry,) = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
    assert entry["uri"].endswith("33.jpg")


def test_a_batch_that_is_on_a_device_is_checked_in_numpy(index: str) -> None:
    """What a loader gives that decodes on a GPU: tensors. Their pixels are not fetched for the check."""
    run = RunConfig.from_dict(table(index, Path("unused")))
    checked = []

    class OnDevice:
        def __init__(self, loader: PackedLoader) -> None:
            self._loader = loader

        def __getattr__(self, name: str) -> Any:
            return getattr(self._loader, name)

        def __iter__(self) -> Any:
            for batch in self._loader:
                yield batch.to("cpu")

    with open_loader(run, ALONE) as loader:
        feed = Feed(OnDevice(loader), ALONE.device, checked.append)  # type: ignore[arg-type]
        (batch,) = feed.take(1)
        (seen,) = checked
        assert isinstance(seen.patches, torch.Tensor) and isinstance(batch.labels, torch.Tensor)
        assert all(isinstance(a, np.ndarray) for name, a in seen.arrays().items() if name != "patches")
        assert feed.last is not None and np.array_equal(feed.last.patches, batch.patches.numpy())
        feed.close()


RANK = """
import json, sys
import torch
from torch import distributed
from navit_loader import LoaderConfig, PackedLoader
distributed.init_process_group("gloo", rank={rank}, world_size=2, init_method="file://" + sys.argv[1])
config = LoaderConfig.from_dict(json.loads(sys.argv[2]))
def agree(text):
    said = [None] * 2
    distributed.all_gather_object(said, text)
    return said
if {rank} == 1:
    sys.modules["nvidia.dali"] = None  # as where DALI is not installed
for _ in range(2):
    with PackedLoader(config=config, rank={rank}, world_size=2, decode="auto", agree=agree) as loader:
        print(json.dumps([loader.render_id, loader.decode, loader.measured]))
    sys.modules.pop("nvidia.dali", None)
distributed.destroy_process_group()
"""


def test_auto_takes_the_same_decoder_on_every_rank(index: str, tmp_path: Path) -> None:
    """First where one rank cannot use DALI at all, then where both measure."""
    settings = {k: v for k, v in table(index, tmp_path).items() if k in ("data", "plan", "render")}
    command = [str(tmp_path / "meeting"), json.dumps(settings)]
    ranks = [
        subprocess.Popen([sys.executable, "-c", RANK.format(rank=rank), *command], stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    first, second = ([json.loads(line) for line in rank.communicate(timeout=120)[0].splitlines()] for rank in ranks)
    assert first == second
    (_, decode, measured), (_, _, both) = first
    assert (decode, measured) == ("cpu", {})
    assert both.keys() == {"cpu", "dali"} and min(both.values()) > 0


def test_ranks_that_could_not_agree_are_refused(index: str, tmp_path: Path) -> None:
    run = RunConfig.from_dict(table(index, tmp_path))
    with pytest.raises(ConfigError, match=r"'auto' with world_size = 2 needs agree.*not 'auto'"):
        PackedLoader(config=run.loader, rank=0, world_size=2, decode="auto")
    with PackedLoader(config=replace(run.loader), rank=0, world_size=2, decode="cpu") as loader:
        assert loader.decode == "cpu"
    # A warp is for the engine alone: there is nothing to agree on.
    warps = replace(run.loader, plan=replace(run.loader.plan, warp=Warp(rotation=20.0)))
    with PackedLoader(config=warps, rank=0, world_size=2, decode="auto") as loader:
        assert loader.decode == "cpu"
