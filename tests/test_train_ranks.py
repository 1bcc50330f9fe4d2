"""Several ranks: the same losses as one, resuming onto another number of them, a rank that dies, a run that is killed.

In: a small folder of shapes. Out: real processes under torchrun with gloo on the CPU; nothing stands in for a rank.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from navit_model.train import checkpoint
from navit_model.train.log import read_log
from navit_model.train.run import train
from navit_model.train.settings import RunConfig

sys.path.insert(0, str(Path(__file__).parent))
from ranks import seen, work
from shapes import table, write_index, write_toml

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("ranks.py")


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_index(tmp_path_factory.mktemp("shapes"))


def torchrun(ranks: int, jobs: list[dict[str, Any]], folder: Path) -> None:
    """Runs jobs of `ranks.py` one after the other in the same processes."""
    file = folder / "jobs.json"
    file.write_text(json.dumps(jobs))
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    done = subprocess.run([*line, str(SCRIPT), str(file)], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr


def losses(out: Path) -> dict[int, float]:
    return {e["step"]: e["loss"] for e in read_log(out) if e["kind"] == "train"}


def test_two_ranks_give_the_losses_of_one_with_the_doubled_batch(index: str, tmp_path: Path) -> None:
    def run(name: str, batch: int, **changes: Any) -> dict[str, Any]:
        return table(index, tmp_path / name, batch, steps=50, warmup=5, learning_rate=3e-3, ema=0.9, **changes)

    work(run("one", 4))
    two = [
        {"table": run("ddp", 2)},
        {"table": run("fsdp", 2, parallel="fsdp")},
        {"table": run("ddp2", 1, accumulate=2)},
        {"table": run("fsdp2", 1, accumulate=2, parallel="fsdp")},
        {"table": run("fsdpc", 2, parallel="fsdp", compile=True)},
    ]
    two[-1]["table"]["model"]["attention"] = "dense"
    torchrun(2, two, tmp_path)
    one = losses(tmp_path / "one")
    assert len(one) == 50
    assert one[50] < 0.8 * one[1]
    first = checkpoint.open_checkpoint(tmp_path / "one")
    for name in ("ddp", "fsdp", "fsdpc"):
        # A checkpoint does not tell how many ranks wrote it.
        assert losses(tmp_path / name) == pytest.approx(one, abs=1e-4), name
        other = checkpoint.open_checkpoint(tmp_path / name)
        assert other.state["loader"] == first.state["loader"]
        assert (other.state["images"], other.state["tokens"]) == (first.state["images"], first.state["tokens"])
        for file in ("model", "average", "optimizer"):
            ours, theirs = first.read(file), other.read(file)
            assert ours.keys() == theirs.keys()
            assert all(torch.allclose(ours[k], theirs[k], atol=1e-3) for k in ours), (name, file)
    # Batches end with their epoch, so accumulated ones group otherwise; DDP and FSDP must still agree.
    assert losses(tmp_path / "fsdp2") == pytest.approx(losses(tmp_path / "ddp2"), abs=1e-4)


def test_ranks_train_weights_that_came_with_a_merger(index: str, tmp_path: Path) -> None:
    """No task reads what it merges, so nothing of it may be waited for."""
    run = table(index, tmp_path / "merger", 2, steps=3)
    run["model"] |= {"merge": 2, "merge_width": 24, "merge_taps": [0]}
    torchrun(2, [{"table": run}], tmp_path)
    merged = [name for name in checkpoint.open_checkpoint(tmp_path / "merger").read("model") if "merger" in name]
    assert len(losses(tmp_path / "merger")) == 3
    assert len(merged) > 6


def test_onto_another_world_size_each_remaining_image_is_seen_once(index: str, tmp_path: Path) -> None:
    down, up = tmp_path / "two-to-one", tmp_path / "one-to-two"
    common = {"steps": 9, "checkpoint_every": 0, "ema": 0.9}
    work(table(index, up, 3, **common), stop_after=3)
    jobs = [
        {"table": table(index, up, 1, parallel="fsdp", **common)},
        {"table": table(index, down, 1, parallel="fsdp", **common), "stop_after": 4},
    ]
    torchrun(2, jobs, tmp_path)
    work(table(index, down, 2, **common))
    for out in (down, up):
        counts = Counter(seen(out))
        end = checkpoint.open_checkpoint(out).state["loader"]
        assert end["epoch"] >= 1
        for epoch in range(end["epoch"]):
            assert {image: n for (e, image), n in counts.items() if e == epoch} == dict.fromkeys(range(90), 1)
        assert max(counts.values()) == 1
        assert sorted(losses(out)) == list(range(1, 10))
        assert checkpoint.open_checkpoint(out).state["images"] == len(seen(out))


def test_killed_at_random_moments_the_losses_are_the_same_bit_for_bit(index: str, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    settings: dict[str, Any] = {"steps": 120, "checkpoint_every": 7, "ema": 0.9}
    train(RunConfig.from_dict(table(index, whole, 2, **settings)))
    config = tmp_path / "jobs.json"
    config.write_text(json.dumps([{"table": table(index, killed, 2, **settings)}]))
    moments = random.Random(0)
    kills = 0
    for attempt in range(4):
        process = subprocess.Popen([sys.executable, str(SCRIPT), str(config)])
        start = max(losses(killed), default=0)
        goal = start + moments.randint(8, 30)
        writing = attempt % 2  # half of the times just while a checkpoint is being written
        while process.poll() is None:
            drafts = list((killed / "checkpoints").glob(".writing-*"))
            if attempt < 3 and max(losses(killed), default=0) >= goal and bool(drafts) >= writing:
                process.kill()
                kills += 1
                break
            time.sleep(0.0005)
        process.wait(60)
        if attempt == 3:
            assert process.returncode == 0
    assert kills == 3
    assert losses(killed) == losses(whole)
    assert not list((killed / "checkpoints").glob(".*"))


def test_where_a_rank_dies_the_others_end_with_a_message_within_a_minute(index: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    settings = table(index, out, 1, steps=1_000_000, checkpoint_every=0)
    write_toml(settings, tmp_path / "run.toml")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = []
    for rank in range(2):
        environment = {**os.environ, "RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        line = [sys.executable, "-m", "navit_model", "train", str(tmp_path / "run.toml")]
        processes.append(
            subprocess.Popen(line, env=environment, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        )
    try:
        late = time.monotonic() + 120
        while max(losses(out), default=0) < 5:
            assert time.monotonic() < late and all(p.poll() is None for p in processes)
            time.sleep(0.1)
        processes[1].send_signal(signal.SIGKILL)
        _, said = processes[0].communicate(timeout=60)
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert processes[0].returncode == 2, said
    assert "lost another rank" in said
    assert "Traceback" not in said


def test_where_a_rank_leaves_while_they_meet_the_others_say_so(index: str, tmp_path: Path) -> None:
    write_toml(table(index, tmp_path / "run", 2), tmp_path / "run.toml")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    # The second rank joins, and is gone before the first message of the run.
    gone = "import os, torch.distributed as d; d.init_process_group('gloo'); os._exit(1)"
    lines = ([sys.executable, "-m", "navit_model", "train", str(tmp_path / "run.toml")], [sys.executable, "-c", gone])
    processes = []
    for rank, line in enumerate(lines):
        environment = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        processes.append(
            subprocess.Popen(line, env=environment, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        )
    try:
        _, said = processes[0].communicate(timeout=100)
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    # Neither a stack of Python's nor an abort of threads that outlived it.
    assert processes[0].returncode == 2, said
    assert "did not find all others" in said
    assert "Traceback" not in said
