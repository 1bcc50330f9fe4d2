"""Storage that is away for a while: nothing is lost, what is waited for is said, and a wait ends when nobody wants it."""

from __future__ import annotations

import logging
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from navit_loader import PackedLoader, RemoteLoader, build_index
from navit_loader.errors import IndexFileError, RenderError

from .remote_kit import Faulty
from .service_kit import Daemon, metrics
from .source_kit import sample_files, write_tar
from .test_remote import batches, config

pytestmark = pytest.mark.slow

FILES = sample_files()


@pytest.fixture
def faulty(tmp_path: Path) -> Iterator[Faulty]:
    (tmp_path / "served").mkdir()
    with Faulty(tmp_path / "served") as server:
        write_tar(server.root / "x.tar", FILES)
        build_index(f"{server.url}/x.tar", tmp_path / "x.arrow")
        yield server
        server.shutdown()


def away(server: Faulty, seconds: float, fault: Any = 503) -> None:
    server.always = fault
    threading.Timer(seconds, lambda: setattr(server, "always", "ok")).start()


@pytest.mark.parametrize("seconds", [0.5, 2.5])
def test_an_epoch_outlasts_it_and_says_what_it_waits_for(
    faulty: Faulty, tmp_path: Path, seconds: float, caplog: pytest.LogCaptureFixture
) -> None:
    whole = batches(tmp_path / "x.arrow", "blocks")
    with PackedLoader(tmp_path / "x.arrow", config()) as loader:
        before = loader.stats()["retries"]
        away(faulty, seconds)
        assert sum(batch.num_images for batch in loader) == len(FILES)
        assert loader.stats()["retries"] > before and loader.stats()["waiting"] == 0
        assert not loader.failures()
    said = [r.message for r in caplog.records if r.name == "navit_loader.storage" and r.levelno == logging.WARNING]
    if seconds > 1:
        assert faulty.url in said[0] and "503" in said[0] and said[-1] == "storage answers again" and len(said) == 2
    assert batches(tmp_path / "x.arrow", "blocks") == whole


def test_a_server_that_asks_for_time_gets_it(faulty: Faulty, tmp_path: Path) -> None:
    faulty.faults.append((503, 1))
    before, start = faulty.gets, time.monotonic()
    build_index(f"{faulty.url}/x.tar", tmp_path / "y.arrow")
    assert time.monotonic() - start >= 1 and faulty.gets == before + 2


def test_what_lasts_is_one_error_after_a_minute(faulty: Faulty, tmp_path: Path) -> None:
    """Slow on purpose: indexing and loading wait side by side."""
    faulty.always = 503

    def index() -> None:
        build_index(f"{faulty.url}/x.tar", tmp_path / "y.arrow")

    def load() -> None:
        with PackedLoader(tmp_path / "x.arrow", config()) as loader:
            next(iter(loader))

    start = time.monotonic()
    with ThreadPoolExecutor() as pool:
        errors = [made.exception() for made in [pool.submit(index), pool.submit(load)]]
    assert 60 <= time.monotonic() - start < 90
    for error, kind in zip(errors, (IndexFileError, RenderError), strict=True):
        assert isinstance(error, kind)
        assert f"{faulty.url}/x.tar" in str(error) and "503" in str(error)
        assert re.search(r"after \d+ attempts in [67]\d\.\d s", str(error))


@pytest.mark.parametrize("fault", [503, "hang", (503, 30)])
def test_closing_ends_a_wait(faulty: Faulty, tmp_path: Path, fault: Any) -> None:
    faulty.always = fault
    loader = PackedLoader(tmp_path / "x.arrow", config())

    def ask() -> None:
        with pytest.raises(RenderError):
            next(iter(loader))

    asked = threading.Thread(target=ask)
    asked.start()
    time.sleep(0.5)
    start = time.monotonic()
    loader.close()
    asked.join(5)
    assert time.monotonic() - start < 1 and not asked.is_alive()


LOADS = """
import sys
from navit_loader import LoaderConfig, PackedLoader
with PackedLoader(sys.argv[1], LoaderConfig.from_dict({"plan": {"sequence_length": 256}})) as loader:
    next(iter(loader))
"""


@pytest.mark.parametrize("what", ["index", "load"])
def test_a_signal_ends_a_wait(faulty: Faulty, tmp_path: Path, what: str) -> None:
    faulty.always = 503
    # What starts the tests in the background may have them ignore it.
    handles = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
    line = ["index", f"{faulty.url}/x.tar", "-o", str(tmp_path / "y.arrow")]
    command = [f"{handles} from navit_loader.cli import main; raise SystemExit(main({line!r}))"]
    if what == "load":
        command = [handles + LOADS, str(tmp_path / "x.arrow")]
    with subprocess.Popen([sys.executable, "-c", *command], stderr=subprocess.PIPE, text=True) as child:
        assert child.stderr is not None
        assert "waiting 1 s for storage" in child.stderr.readline()
        start = time.monotonic()
        child.send_signal(signal.SIGINT)
        assert child.wait(10) != 0 and time.monotonic() - start < 2
        assert ("navit-loader: interrupted" if what == "index" else "KeyboardInterrupt") in child.stderr.read()


@pytest.mark.parametrize("fault", [503, "hang"])
def test_a_daemon_says_what_it_waits_for_and_drains_at_once(faulty: Faulty, tmp_path: Path, fault: Any) -> None:
    toml = tmp_path / "x.toml"
    toml.write_text(f"[data]\nindex = '{tmp_path}/x.arrow'\n[plan]\nsequence_length = 64\nmax_tokens = 64\n")
    with Daemon(toml, args=("--metrics", "127.0.0.1:0")) as daemon, RemoteLoader([daemon.endpoint]) as loader:
        faulty.always = fault
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(lambda: sum(batch.num_images for batch in loader))
            until = time.monotonic() + 20
            while not any(f"storage: '{faulty.url}" in line for line in daemon.log) and time.monotonic() < until:
                time.sleep(0.1)
            assert metrics(daemon)["navit_storage_waiting"] > 0
            assert (metrics(daemon)["navit_storage_retries_total"] > 0) == (fault == 503)
            start = time.monotonic()
            daemon.signal(signal.SIGTERM)
            assert daemon.wait(20) == 0 and time.monotonic() - start < 5
            faulty.always = "ok"
            daemon.start()
            assert asked.result(60) == len(FILES), "the client has asked the next one for all of it"
