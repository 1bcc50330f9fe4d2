"""A fleet on Ray: several nodes on this machine, each with its own raylet, killed and added while a trainer reads."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import zmq

from navit_loader import PackedLoader, RemoteLoader
from navit_loader.errors import ConfigError, ServiceError
from navit_loader.fleet import Fleet, launch
from navit_loader.fleet.cluster import connected
from navit_loader.service import protocol
from navit_loader.service.connection import Connection
from navit_loader.service.security import fresh_keys

from .fleet_kit import add, cluster_of, ray
from .service_kit import digest, load, make_config

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning"),
    pytest.mark.timeout(600),  # of the first test that is the cluster's start too
]

HEARTBEAT_S = 1.0


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_config(tmp_path_factory.mktemp("fleet"))


@pytest.fixture(scope="module")
def expected(config: Path) -> list[tuple[Any, ...]]:
    with PackedLoader(config=load(config)) as loader:
        return [digest(batch) for batch in loader]


def test_errors_name_what_was_tried(monkeypatch: pytest.MonkeyPatch, config: Path) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    with pytest.raises(ServiceError, match=r"no Ray cluster at '127\.0\.0\.1:9': .*RAY_ADDRESS"):
        RemoteLoader("ray://nobody")
    with pytest.raises(ServiceError, match=r"no Ray cluster at '127\.0\.0\.1:8'"):
        launch(load(config), address="127.0.0.1:8")
    one = replace(load(config), serve=replace(load(config).serve, metrics="9187"))
    with pytest.raises(ConfigError, match=r"serve\.metrics = '9187' is one port of a node"):
        launch(one, per_node=2)
    for endpoints, keys, message in (
        ("ray://head:10001", None, "fleet name 'head:10001' is not allowed"),
        (["ray://a", "ray://b"], None, "one fleet alone"),
        (["ray://a"], "keys/a", "a fleet brings its own"),
    ):
        with pytest.raises((ConfigError, ServiceError), match=message):
            RemoteLoader(endpoints, keys=keys)  # type: ignore[arg-type]
    assert not ray.is_initialized()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with cluster_of(2) as found:
        before = signal.getsignal(signal.SIGTERM)
        connected(found.address)
        assert signal.getsignal(signal.SIGTERM) is before, "a trainer ends in its own way"
        yield found


@pytest.fixture(scope="module")
def fleet(cluster: Any, config: Path) -> Iterator[Fleet]:
    """Of three daemons; two have a node."""
    with launch(load(config), name="three", daemons=3) as found:
        until(lambda: len(found.daemons) == 2)
        yield found


def until(true: Callable[[], bool], seconds: float = 120.0) -> float:
    """Waits; how long it took."""
    began = time.monotonic()
    while not true():
        assert time.monotonic() < began + seconds, "it did not come"
        time.sleep(0.05)
    return time.monotonic() - began


def reading(loader: RemoteLoader, expected: list[tuple[Any, ...]], enough: Callable[[], bool]) -> float:
    """Reads whole epochs, each batch compared, until there was enough; the longest pause between two batches."""
    longest = 0.0
    while not enough():
        loader.load_state_dict(loader.state_dict() | {"epoch": 0, "next_sequence": 0})
        last = time.monotonic()
        for batch, right in zip(loader, expected, strict=True):
            longest = max(longest, time.monotonic() - last)
            assert digest(batch) == right
            time.sleep(0.01)  # a step of the trainer
            last = time.monotonic()
    return longest


def serving(loader: RemoteLoader) -> int:
    return sum(endpoint.ready for endpoint in loader._connection._endpoints)


def test_batches_are_the_same_and_a_stranger_is_refused(fleet: Fleet, expected: list[tuple[Any, ...]]) -> None:
    with RemoteLoader(fleet.address) as loader:
        assert [digest(batch) for batch in loader] == expected
        loader.set_epoch(0)
        until(lambda: next(iter(loader)) is not None and serving(loader) == 2)
        assert loader._supply.ahead(False)[1] == 8  # type: ignore[attr-defined]  # four of each
    hosts = fleet.daemons
    assert len(set(hosts)) == 2
    server, _ = fresh_keys()
    for keys in (None, fresh_keys()[1]):
        with pytest.raises(ServiceError, match="handshake came to nothing"):
            Connection(hosts, keys=keys, connect_timeout_s=2.0)
    # Who knows the daemons' public key alone is no client either.
    with contextlib.ExitStack() as stack:
        context = stack.enter_context(zmq.Context())
        peer = stack.enter_context(context.socket(zmq.DEALER))
        peer.setsockopt(zmq.LINGER, 0)
        peer.curve_publickey, peer.curve_secretkey = server.public, server.secret
        peer.curve_serverkey = fleet._keys.public
        peer.connect(hosts[0])
        peer.send(protocol.encode(protocol.Hello(client="stranger")))
        assert not peer.poll(1500)


def test_names_are_taken_or_unknown(fleet: Fleet, config: Path) -> None:
    with pytest.raises(ServiceError, match="'three' runs on this cluster already"):
        launch(load(config), name="three")
    with pytest.raises(ServiceError, match=r"no fleet 'four' on the Ray cluster at .*; there is three"):
        RemoteLoader("ray://four", connect_timeout_s=0.1)


def test_two_jobs_are_served_alike(fleet: Fleet) -> None:
    over, seen = threading.Event(), [0, 0]

    def job(number: int) -> None:
        with RemoteLoader(fleet.address) as loader:
            together.wait()
            while not over.is_set():
                for batch in loader:
                    seen[number] += batch.patches.nbytes
                    if over.is_set():
                        break

    together = threading.Barrier(3)
    jobs = [threading.Thread(target=job, args=(number,)) for number in range(2)]
    for thread in jobs:
        thread.start()
    together.wait(30)
    time.sleep(4)
    over.set()
    for thread in jobs:
        thread.join(30)
    assert min(seen) > 0.7 * max(seen) > 0, seen


def test_nodes_and_daemons_come_and_go_while_a_trainer_reads(
    cluster: Any, fleet: Fleet, expected: list[tuple[Any, ...]]
) -> None:
    pauses: dict[str, float] = {}
    with RemoteLoader(fleet.address, heartbeat_s=HEARTBEAT_S) as loader:

        def during(what: str, trouble: Callable[[], object], daemons: int) -> None:
            """Reads while there is trouble, and on until so many daemons answer."""
            over = threading.Event()
            with ThreadPoolExecutor(1) as reader:
                longest = reader.submit(reading, loader, expected, over.is_set)
                try:
                    trouble()
                    until(lambda: serving(loader) == daemons or longest.done())
                finally:
                    over.set()
                pauses[what] = longest.result()

        during("nothing", lambda: None, 2)
        added: list[Any] = []
        during("a node more", lambda: added.append(add(cluster)), 3)
        number = min(fleet._actors)
        gone = fleet.daemons[0]
        during("a daemon killed", lambda: ray.kill(fleet._actors[number], no_restart=False), 2)
        during("it is started again", lambda: until(lambda: len(set(fleet.daemons) - {gone}) == 3), 3)
        during("a node killed", lambda: cluster.remove_node(added[0], allow_graceful=False), 2)
        during("the registry killed", lambda: ray.kill(fleet._registry, no_restart=False), 2)
        assert serving(loader) == 2
    for what in ("a daemon killed", "a node killed", "the registry killed"):
        assert pauses[what] <= 3 * HEARTBEAT_S + pauses["nothing"], pauses
    with RemoteLoader(fleet.address, connect_timeout_s=60) as other:
        assert digest(next(iter(other))) == expected[0], "whoever comes later finds it too"


def test_the_command_grows_where_a_trainer_starves_and_shrinks_where_it_does_not(
    cluster: Any, config: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "navit_loader", "fleet", str(config), "--ray", cluster.address, "--name", "grown"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--daemons", "1:2", "--cool", "10"], stdout=subprocess.PIPE, stderr=log, text=True
        )

    def said(words: str) -> list[str]:
        return re.findall(words, (tmp_path / "log").read_text())

    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("navit-loader: fleet ray://grown serves on tcp://")
        with RemoteLoader("ray://grown") as loader:
            began = time.monotonic()
            while serving(loader) < 2:
                assert time.monotonic() < began + 60, (tmp_path / "log").read_text()
                for _ in loader:
                    pass
            assert said(r"daemons=2 before=1 serving=1 trainers=1 starved=\d+\.\d% busy=\d+\.\d% seconds=2\b")
            while serving(loader) > 1:
                assert time.monotonic() < began + 120, (tmp_path / "log").read_text()
                for _ in loader:
                    time.sleep(0.3)
                    if serving(loader) == 1:
                        break
            assert said("daemons=1 before=2 serving=2 trainers=1 starved=")
            process.send_signal(signal.SIGTERM)
            with pytest.raises(ServiceError, match="the fleet 'grown' was stopped"):
                for _ in iter(lambda: sum(1 for _ in loader), 0):  # epoch after epoch
                    pass
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
