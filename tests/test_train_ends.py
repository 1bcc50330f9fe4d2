"""How a run may end: by a signal, a terminal that hangs up, daemons that are gone, a full disk. Its last whole step is saved.

In: small runs as processes of their own, and faults that the system makes. Out: a checkpoint of the last whole step, and the
documented status.
"""

from __future__ import annotations

import os
import pty
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from navit_model.train import checkpoint
from navit_model.train.log import read_log

from .service_kit import Daemon
from .shapes import table, write_index, write_toml

pytestmark = pytest.mark.slow

ENDLESS = {"steps": 1_000_000, "checkpoint_every": 0, "log_every": 1}


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_index(tmp_path_factory.mktemp("shapes"))


def steps(out: Path) -> list[int]:
    return [e["step"] for e in read_log(out) if e["kind"] == "train"]


def saved(out: Path) -> int:
    found = checkpoint.find(out)
    return 0 if found is None else found.step


def trainer(given: dict[str, Any], folder: Path, *line: str, **options: Any) -> subprocess.Popen[str]:
    """`navit-model train` on its way, past its third step."""
    file = write_toml(given, folder / "run.toml")
    command = [*(line or [sys.executable, "-m", "navit_model"]), "train", str(file)]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    process = subprocess.Popen(command, text=True, **options)
    late = time.monotonic() + 120
    while max(steps(folder / "run"), default=0) < 3:
        assert process.poll() is None and time.monotonic() < late, process.communicate()
        time.sleep(0.05)
    return process


def ended(process: subprocess.Popen[str], wait: float = 60) -> tuple[int, str]:
    try:
        _, said = process.communicate(timeout=wait)
    finally:
        process.kill()
    assert "Traceback" not in (said or "")
    return process.returncode, said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_each_signal_saves_and_has_its_own_status(index: str, tmp_path: Path, number: signal.Signals) -> None:
    process = trainer(table(index, tmp_path / "run", **ENDLESS), tmp_path)
    process.send_signal(number)
    process.send_signal(number)  # a terminal and a launcher both pass it on: one wish
    status, said = ended(process)
    assert status == 128 + number
    assert said.strip() == f"navit-model train: stopped by {number.name}"
    assert saved(tmp_path / "run") == steps(tmp_path / "run")[-1]


def test_a_terminal_that_hangs_up_ends_a_run_saved(index: str, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    process = trainer(
        table(index, tmp_path / "run", **ENDLESS),
        tmp_path,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=lambda: __import__("fcntl").ioctl(0, __import__("termios").TIOCSCTTY, 0),
    )
    os.close(theirs)
    os.close(ours)  # the system sends SIGHUP, and every write fails from now on
    assert process.wait(60) == 128 + signal.SIGHUP
    assert saved(tmp_path / "run") == steps(tmp_path / "run")[-1]


def test_under_nohup_a_hangup_ends_nothing(index: str, tmp_path: Path) -> None:
    process = trainer(
        table(index, tmp_path / "run", **ENDLESS),
        tmp_path,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    process.send_signal(signal.SIGHUP)
    at = steps(tmp_path / "run")[-1]
    late = time.monotonic() + 30
    while steps(tmp_path / "run")[-1] < at + 3:
        assert process.poll() is None and time.monotonic() < late
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert ended(process)[0] == 143


def test_where_nobody_reads_the_output_a_run_goes_on_to_its_end(index: str, tmp_path: Path) -> None:
    for name in ("pipe", "full"):
        file = write_toml(table(index, tmp_path / name, steps=6), tmp_path / "run.toml")
        line = f"{sys.executable} -m navit_model train {file}"
        line += " | true; exit ${PIPESTATUS[0]}" if name == "pipe" else " > /dev/full"
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=120)
        assert "Traceback" not in done.stderr
        assert done.returncode == 0, done
        assert saved(tmp_path / name) == 6


def test_a_letter_that_the_output_cannot_say_ends_nothing(index: str, tmp_path: Path) -> None:
    file = write_toml(table(index, tmp_path / "run", steps=3), tmp_path / "run.toml")
    line = [sys.executable, "-m", "navit_model", "train", str(file)]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(line, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    assert saved(tmp_path / "run") == 3


def test_daemons_that_are_gone_end_a_run_saved(index: str, tmp_path: Path) -> None:
    """After the time that `[data.remote]` gives them; and at once by the first signal, while the run waits for them."""
    for name, timeout in (("waited", 3.0), ("stopped", 600.0)):
        folder = tmp_path / name
        folder.mkdir()
        given = table(index, folder / "run", **ENDLESS)
        daemon = Daemon(write_toml({k: given[k] for k in ("data", "plan", "render")}, folder / "serve.toml"))
        try:
            given["data"] = {"endpoints": [daemon.endpoint], "batch_size": 2, "remote": {"timeout_s": timeout}}
            process = trainer(given, folder)
            daemon.signal(signal.SIGKILL)
            if name == "stopped":
                time.sleep(3)
                process.send_signal(signal.SIGINT)
            status, said = ended(process, 30)
        finally:
            daemon.close()
        assert status == (2 if name == "waited" else 130), said
        assert daemon.endpoint in said or name == "stopped"
        assert saved(folder / "run") == steps(folder / "run")[-1] > 2


def test_a_disk_that_fills_beside_the_checkpoints_ends_a_run_saved(index: str, tmp_path: Path) -> None:
    """The run's folder lies on a small disk of its own, its checkpoints on another one."""
    file = write_toml(table(index, tmp_path / "run", **ENDLESS), tmp_path / "run.toml")
    (tmp_path / "run").mkdir()
    (tmp_path / "kept").mkdir()
    mounted = f"mount -t tmpfs -o size=256k tmpfs {tmp_path}/run && ln -s {tmp_path}/kept {tmp_path}/run/checkpoints"
    line = f"{mounted} || exit 77; {sys.executable} -m navit_model train {file}"
    command = ["unshare", "--user", "--map-root-user", "--mount", "bash", "-c", line]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    if done.returncode in (1, 77) and "navit" not in done.stderr:
        pytest.skip(f"this system mounts nothing for its users ({done.stderr.strip()})")
    assert done.returncode == 2, done
    assert "No space left" in done.stderr and "Traceback" not in done.stderr
    (kept,) = (tmp_path / "kept").glob("step-*")
    assert checkpoint.open_checkpoint(kept).step > 20


def test_a_rank_ends_with_its_torchrun_and_saves(index: str, tmp_path: Path) -> None:
    """kill -9 of torchrun leaves nobody training."""
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
    ]
    nowhere = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    given = table(index, tmp_path / "run", 1, **ENDLESS)
    process = trainer(given, tmp_path, *launcher, "-m", "navit_model", **nowhere)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) == 2
    process.kill()
    process.wait()
    late = time.monotonic() + 60
    while any(Path(f"/proc/{child}").exists() for child in children):
        assert time.monotonic() < late
        time.sleep(0.1)
    assert saved(tmp_path / "run") == steps(tmp_path / "run")[-1]


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_rank_without_a_batch_stops_all_of_them_saved(index: str, tmp_path: Path, parallel: str) -> None:
    """The daemon of one rank is gone: the other has its batch, saves the step before, and says who knows why."""
    given = table(index, tmp_path / "run", 1, parallel=parallel, **ENDLESS)
    serve = write_toml({key: given[key] for key in ("data", "plan", "render")}, tmp_path / "serve.toml")
    with socket.socket() as probe, Daemon(serve) as first, Daemon(serve) as second:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
        probe.close()
        ranks = []
        for rank, daemon in enumerate((first, second)):
            given["data"] = {"endpoints": [daemon.endpoint], "batch_size": 1, "remote": {"timeout_s": 3.0}}
            file = write_toml(given, tmp_path / f"run{rank}.toml")
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
            ranks.append(
                subprocess.Popen(
                    [sys.executable, "-m", "navit_model", "train", str(file)],
                    env={**os.environ, **place, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port},
                    text=True,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                )
            )
        late = time.monotonic() + 120
        while max(steps(tmp_path / "run"), default=0) < 3:
            assert all(p.poll() is None for p in ranks) and time.monotonic() < late
            time.sleep(0.05)
        second.kill()
        (status, said), (status_of_second, reason) = (ended(p) for p in ranks)
    assert (status, status_of_second) == (2, 2), said + reason
    assert "its own message says why" in said and second.endpoint in reason
    assert saved(tmp_path / "run") == steps(tmp_path / "run")[-1] > 2
