"""The example on Ray Train: a rank is killed, and the losses are those of a run under torchrun that nobody disturbed.

In: a small folder of shapes, and the example's own command line. Apart from the other examples, since Ray takes long to start.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from navit_model.train.log import read_log

from .ray_kit import kill_workers
from .shapes import table, write_index, write_toml

pytest.importorskip("ray", reason="the package 'ray' is not installed")
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]  # a cluster, and ranks twice, where others work too
ROOT = Path(__file__).parent.parent
STEPS = 150


def losses(out: Path) -> list[tuple[int, float]]:
    return [(entry["step"], entry["loss"]) for entry in read_log(out) if entry["kind"] == "train"]


def test_a_killed_rank_changes_no_loss(tmp_path: Path) -> None:
    index = write_index(tmp_path)
    config = write_toml(table(index, tmp_path / "ray", steps=STEPS, checkpoint_every=10), tmp_path / "run.toml")
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "navit_model"]
    undisturbed = [*line, "train", str(config), f"train.out={tmp_path / 'torchrun'}"]
    subprocess.run(undisturbed, check=True, capture_output=True, timeout=200, cwd=ROOT)
    expected = losses(tmp_path / "torchrun")
    assert [step for step, _ in expected] == list(range(1, STEPS + 1))

    example = [sys.executable, str(ROOT / "examples/with_ray_train.py"), str(config)]
    # Whatever cluster runs on this machine is not ours.
    given = {**os.environ, "RAY_ADDRESS": "local", "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(example, env=given, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as driver:
        try:
            while len(losses(tmp_path / "ray")) < 15 and driver.poll() is None:
                time.sleep(0.02)
            assert kill_workers(driver.pid, b"ray::RayTrainWorker", 1) == 1
            said, _ = driver.communicate(timeout=400)
        finally:
            driver.terminate()
    assert driver.returncode == 0, said
    # Not from the beginning, and not in one go.
    taken_up = {int(step) for step in re.findall(r"going on from step (\d+)", said)}
    assert taken_up
    found, wanted = dict(losses(tmp_path / "ray")), dict(expected)
    assert all(wanted[step] == loss for step, loss in found.items())
    # A line of the log is of all ranks: where one dies between a step and its line, the other saves the step without it.
    assert wanted.keys() - found.keys() <= taken_up
