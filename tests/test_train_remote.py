"""A trainer and its daemons: keys beyond the run's own process, and whose `[plan]` counts.

In: a small run, real daemons with keys and without. Out: the same losses as in process, or one error that names the key.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from navit_loader.config import PlanConfig
from navit_loader.errors import ConfigError, ServiceError
from navit_loader.service.security import make_keys
from navit_model.train import checkpoint
from navit_model.train.log import read_log
from navit_model.train.run import train
from navit_model.train.settings import RunConfig

from .service_kit import Daemon
from .shapes import table, write_index, write_toml


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_index(tmp_path_factory.mktemp("shapes"))


def served(given: dict[str, Any], path: Path, *args: str) -> Daemon:
    return Daemon(write_toml({key: given[key] for key in ("data", "plan", "render")}, path), args=args)


def losses(out: Path) -> list[float]:
    return [e["loss"] for e in read_log(out) if e["kind"] == "train"]


def test_a_daemon_that_demands_keys_trains_whoever_has_them(index: str, tmp_path: Path) -> None:
    make_keys(tmp_path / "keys", ["trainer"])
    given = table(index, tmp_path / "here", steps=6)
    train(RunConfig.from_dict(given))
    with served(given, tmp_path / "serve.toml", "--keys", str(tmp_path / "keys" / "server")) as daemon:
        given["data"] = {"batch_size": 2, "endpoints": [daemon.endpoint], "remote": {"connect_timeout_s": 2.0}}
        given["train"]["out"] = str(tmp_path / "there")
        with pytest.raises(ServiceError, match=r"data\.remote\.keys"):
            train(RunConfig.from_dict(given))
        given["data"]["remote"] = {"keys": str(tmp_path / "keys" / "trainer"), "plan": "serve", "memory_mb": 64}
        train(RunConfig.from_dict(given))
        given["data"]["remote"]["plan"] = "other"
        given["train"]["out"] = str(tmp_path / "nowhere")
        with pytest.raises(ServiceError, match="other"):
            train(RunConfig.from_dict(given))
    assert losses(tmp_path / "there") == losses(tmp_path / "here")


@pytest.mark.parametrize(
    ("remote", "words"),
    [
        ({"memory_mb": 1}, r"data\.remote\.memory_mb = 1"),
        ({"timeout_s": 0.0}, r"data\.remote\.timeout_s = 0"),
        ({"key": "keys"}, r"did you mean 'keys'"),
    ],
)
def test_a_wrong_key_of_the_table_is_named(remote: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        RunConfig.from_dict({"data": {"remote": remote}})


def test_a_plan_of_ones_own_that_the_daemons_do_not_serve_is_refused(index: str, tmp_path: Path) -> None:
    given = table(index, tmp_path / "run", steps=2)
    with served(given, tmp_path / "serve.toml") as daemon:
        given["data"] = {"batch_size": 2, "endpoints": [daemon.endpoint]}
        given["plan"]["max_tokens"] = 16
        with pytest.raises(ConfigError, match=r"plan\.max_tokens = 16 where they have 32; give them"):
            train(RunConfig.from_dict(given))
        # What a daemon does not tell is seen all the same, by the plan's name.
        given["plan"] |= {"max_tokens": 32, "seed": 3}
        with pytest.raises(ConfigError, match=r"here are set: seed, resolution, drop"):
            train(RunConfig.from_dict(given))
        assert not checkpoint.steps(tmp_path / "run")
        del given["plan"]
        train(RunConfig.from_dict(given))
    plan = checkpoint.open_checkpoint(tmp_path / "run").config.loader.plan
    assert (plan.max_tokens, plan.sequence_length, plan.max_images, plan.patch_sizes) == (32, 64, 16, (4,))
    assert plan != PlanConfig()
