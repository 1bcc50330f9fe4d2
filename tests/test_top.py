"""`navit-loader top` at a real daemon with two trainers: who waits for data is seen, on a terminal, in lines and as JSON."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from navit_loader import RemoteLoader
from navit_loader.commands.top import BLOCKS, PLAIN, WINDOW_S, Watch, in_words, rates, spark
from navit_loader.errors import ServiceError

from .service_kit import Daemon, make_config


@contextmanager
def trainers(endpoint: str) -> Iterator[None]:
    """Two: one that takes all that it gets, and one that has enough to do with a batch."""
    stop = threading.Event()

    def train(pause: float) -> None:
        with RemoteLoader([endpoint], prefetch=2, shared=False) as loader:
            while not stop.is_set():
                for _ in loader:
                    if stop.wait(pause):
                        return

    threads = [threading.Thread(target=train, args=(pause,)) for pause in (0.0, 0.4)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    config = make_config(tmp_path_factory.mktemp("top"), count=240)
    with Daemon(config, args=("--metrics", "127.0.0.1:0")) as daemon, trainers(daemon.endpoint):
        time.sleep(1)
        yield daemon


def command(daemon: Daemon, *more: str) -> list[str]:
    assert daemon.metrics is not None
    address = daemon.metrics.removeprefix("http://").removesuffix("/metrics")
    return [sys.executable, "-m", "navit_loader", "top", address, *more]


def test_the_trainer_that_waits_is_seen_to_wait(daemon: Daemon) -> None:
    done = subprocess.run(command(daemon, "--once", "--json"), capture_output=True, text=True, timeout=60)
    first, *others = [json.loads(line) for line in done.stdout.splitlines()]
    assert first["kind"] == "daemon" and first["images_per_s"] > 0 and first["ready"] and not done.stderr
    assert [line["kind"] for line in others] == ["trainer", "trainer"]
    busy, waiting = sorted(others, key=lambda line: line["starved"])
    assert busy["starved"] < 0.2 < waiting["starved"] <= 1 and busy["images_per_s"] < waiting["images_per_s"]
    assert all(0 <= line["padding"] < 1 for line in [first, waiting])
    said = subprocess.run(command(daemon, "--once"), capture_output=True, text=True, timeout=60).stdout.splitlines()
    assert len(said) == 3 and " daemon 127.0.0.1:" in said[0] and all(" trainer " in line for line in said[1:])
    assert all("\x1b" not in line and "starved" in line for line in said[1:])


def test_a_terminal_shows_the_past(daemon: Daemon) -> None:
    assert daemon.metrics is not None
    watch = Watch([daemon.metrics])
    for _ in range(3):
        time.sleep(0.5)
        watch.look()
    out = io.StringIO()
    Console(file=out, width=120).print(watch.table(120))
    rows = out.getvalue().splitlines()
    assert sum(any(block in row for block in BLOCKS) for row in rows) == 3 and "starved" in rows[0]
    assert max(map(len, rows)) <= 120 and any("quarantined" in row for row in rows)
    # And so does the command itself, at a terminal that ends after a while.
    here, there = pty.openpty()
    env = os.environ | {"TERM": "xterm", "COLUMNS": "110", "NO_COLOR": "1", "PYTHONIOENCODING": "utf-8"}
    process = subprocess.Popen(command(daemon), stdout=there, stderr=there, env=env)
    seen, late = b"", time.monotonic() + 60
    while seen.count(b"starved") < 3 and time.monotonic() < late:
        if select.select([here], [], [], 1)[0]:
            seen += os.read(here, 65536)
    process.terminate()
    process.wait(20)
    os.close(here)
    os.close(there)
    assert seen.count(b"starved") >= 3 and "█".encode() in seen


def test_a_daemon_that_ends_is_said_to_and_nobody_at_first_is_an_error(tmp_path: Path) -> None:
    with Daemon(make_config(tmp_path, count=40), args=("--metrics", "127.0.0.1:0")) as daemon:
        assert daemon.metrics is not None
        watch = Watch([daemon.metrics])
        assert [line["kind"] for line in watch.look()] == ["daemon"]
    (line,) = watch.look()
    assert "no answer" in in_words(line)
    out = io.StringIO()
    Console(file=out, width=100).print(watch.table(100))
    assert "no answer" in out.getvalue() and "no trainer" in out.getvalue()
    with pytest.raises(ServiceError, match="--metrics HOST:PORT"):
        Watch([daemon.metrics])


def test_a_trainer_that_counts_anew_has_no_negative_rate() -> None:
    labels = (("client", "a"), ("plan", "p"))
    before = {("navit_starved_seconds_total", labels): 50.0, ("navit_client_images_total", labels): 900.0}
    after = {("navit_starved_seconds_total", labels): 1.0, ("navit_client_images_total", labels): 30.0}
    _, line = rates("d", after, before, 1.0)
    assert line["images_per_s"] == 0 and line["starved"] == 0 and line["padding"] is None
    _, line = rates("d", after, {}, 2.0)
    assert line["images_per_s"] == 15 and line["starved"] == 0.5


@given(
    st.lists(st.tuples(st.floats(0, 10), st.none() | st.floats(0, 1)), max_size=60),
    st.integers(8, 60),
    st.booleans(),
)
def test_the_past_takes_its_room_and_rises_with_its_values(
    steps: list[tuple[float, float | None]], cells: int, plain: bool
) -> None:
    now, past = 1000.0, []
    for step, value in steps:
        now += step
        past.append((now, {"x": value}))
    drawn = spark(past, "x", 1.0, cells, plain)
    heights = PLAIN if plain else BLOCKS
    assert len(drawn) == cells and set(drawn) <= {*heights, " "}
    # The newest value is to the right; what is older than the window is not drawn.
    if past and past[-1][1]["x"] is not None:
        assert drawn[-1] != " "
    recent = [v for when, line in past if (v := line["x"]) is not None and when > now - WINDOW_S]
    if recent and max(recent) == min(recent):
        assert {c for c in drawn if c != " "} == {heights[min(7, int(recent[0] * 8))]} or len(past) > len(recent)
