"""Daemons by name: one name for several of them, which come and go, with real daemons on addresses of loopback."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from navit_loader import PackedLoader, RemoteLoader
from navit_loader.commands.top import read
from navit_loader.errors import ServiceError
from navit_loader.render.engine import Engine
from navit_loader.service import names
from navit_loader.service import server as serving
from navit_loader.service.security import ServerKeys, make_keys
from navit_loader.service.server import Server

from .service_kit import Daemon, digest, load, make_config

HOSTS = ("127.0.0.2", "127.0.0.3", "127.0.0.4")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_config(tmp_path_factory.mktemp("names"))


@pytest.fixture(scope="module")
def expected(config: Path) -> list[tuple[Any, ...]]:
    with PackedLoader(config=load(config)) as loader:
        return [digest(b) for _ in range(3) for b in loader]


class Resolver:
    """The system's resolver, and what it would say of the host `pods`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.hosts: tuple[str, ...] = ()
        self.hang = threading.Event()
        self._system = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", self)

    def __call__(self, host: Any, port: Any, family: int = 0, type: int = 0, *rest: int) -> Any:
        if host != "pods":
            return self._system(host, port, family, type, *rest)
        if self.hang.is_set():
            time.sleep(3)
        if family == socket.AF_INET6 or not self.hosts:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(family, type, 6, "", (one, port)) for one in self.hosts]


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Resolver:
    monkeypatch.setattr(names, "_EVERY_S", 0.1)
    monkeypatch.setattr(names, "_AGAIN_S", 0.1)
    monkeypatch.setattr(names, "_KEPT_S", 0.5)
    return Resolver(monkeypatch)


def free_port() -> int:
    with ExitStack() as stack:
        first = stack.enter_context(socket.create_server((HOSTS[0], 0)))
        return int(first.getsockname()[1])


def until(loader: RemoteLoader, hosts: set[str], batches: Iterator[Any], found: list[Any]) -> None:
    """Takes batches until the loader is connected to these hosts and no others."""
    end = time.monotonic() + 20
    while {e.address.split("/")[-1].split(":")[0] for e in loader._connection._endpoints if e.ready} != hosts:
        assert time.monotonic() < end, loader._connection._state()
        found.append(digest(next(batches)))
        time.sleep(0.05)


def test_the_systems_own_resolver(config: Path, expected: list[tuple[Any, ...]]) -> None:
    with Daemon(config) as daemon:
        port = daemon.endpoint.rpartition(":")[2]
        with RemoteLoader([f"tcp://localhost:{port}"]) as loader:
            assert [digest(b) for b in islice(loader, 8)] == expected[:8]
            assert [e.address for e in loader._connection._endpoints] == [f"tcp://127.0.0.1:{port}"]


def test_a_name_is_all_its_daemons_as_they_come_and_go(
    config: Path, expected: list[tuple[Any, ...]], resolver: Resolver
) -> None:
    port = free_port()
    with ExitStack() as stack:
        first, second = (stack.enter_context(Daemon(config, bind=f"tcp://{host}:{port}")) for host in HOSTS[:2])
        resolver.hosts = HOSTS[:2]
        loader = stack.enter_context(RemoteLoader([f"tcp://pods:{port}"], prefetch=2))
        batches = (batch for _ in range(3) for batch in loader)
        found: list[Any] = []
        until(loader, set(HOSTS[:2]), batches, found)
        assert loader._supply.ahead(False)[1] == 4  # type: ignore[attr-defined]  # two of each
        first.kill()
        stack.enter_context(Daemon(config, bind=f"tcp://{HOSTS[2]}:{port}"))
        found.append(digest(next(batches)))
        resolver.hosts = HOSTS[1:]
        until(loader, set(HOSTS[1:]), batches, found)
        resolver.hosts = ()  # a resolver that is away takes nothing away
        time.sleep(0.8)
        until(loader, set(HOSTS[1:]), batches, found)
        resolver.hosts = HOSTS[2:]
        until(loader, set(HOSTS[2:]), batches, found)
        second.kill()
        found.extend(digest(batch) for batch in islice(batches, 5))
    assert found == expected[: len(found)]


TRAINER = """
import sys
from navit_loader import RemoteLoader
with RemoteLoader([sys.argv[1]]) as loader:
    print(loader.plan_id, flush=True)
    for line in sys.stdin:
        loader.set_epoch(int(line))
        print(sum(batch.num_images for batch in loader), flush=True)
"""


@pytest.mark.skipif(
    subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode != 0, reason="no mount namespaces here"
)
def test_the_systems_own_resolver_gives_all_of_a_name_and_again_when_they_change(config: Path, tmp_path: Path) -> None:
    """A trainer for whom /etc/hosts is another file."""
    port, hosts = free_port(), tmp_path / "hosts"
    with PackedLoader(config=load(config)) as loader:
        images = [sum(batch.num_images for batch in loader) for _ in range(2)]
    hosts.write_text("127.0.0.2 pods\n127.0.0.3 pods\n")
    mounted = 'mount --bind "$0" /etc/hosts && exec "$@"'
    command = ["unshare", "-m", "sh", "-c", mounted, str(hosts), sys.executable, "-c", TRAINER, f"tcp://pods:{port}"]
    with ExitStack() as stack:
        first, second, third = (
            stack.enter_context(Daemon(config, bind=f"tcp://{host}:{port}", args=("--metrics", "0"))) for host in HOSTS
        )
        trainer = stack.enter_context(
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        )
        stack.callback(trainer.kill)
        assert trainer.stdin is not None and trainer.stdout is not None
        assert trainer.stdout.readline()

        def epoch(number: int) -> int:
            assert trainer.stdin is not None and trainer.stdout is not None
            trainer.stdin.write(f"{number}\n")
            trainer.stdin.flush()
            return int(trainer.stdout.readline())

        def made(daemon: Daemon) -> float:
            assert daemon.metrics is not None
            return read(daemon.metrics)["navit_batches_total", ()]

        assert epoch(0) == images[0]
        assert made(first) > 0 and made(second) > 0 and made(third) == 0
        first.kill()
        hosts.write_text("127.0.0.3 pods\n127.0.0.4 pods\n")
        end = time.monotonic() + 60
        while made(third) == 0:
            assert time.monotonic() < end
            assert epoch(1) == images[1]


def test_a_name_without_an_address_is_waited_for_and_said(config: Path, resolver: Resolver) -> None:
    with pytest.raises(ServiceError, match=r"'tcp://pods:5780' has no address: Name or service not known"):
        RemoteLoader(["tcp://pods:5780"], connect_timeout_s=0.5)
    with Daemon(config, bind=f"tcp://{HOSTS[0]}:{free_port()}") as daemon:
        threading.Timer(0.5, lambda: setattr(resolver, "hosts", HOSTS[:1])).start()
        with RemoteLoader([f"tcp://pods:{daemon.endpoint.rpartition(':')[2]}"]) as loader:
            assert len(loader) > 0


def test_a_resolver_that_hangs_holds_nobody(config: Path, expected: list[tuple[Any, ...]], resolver: Resolver) -> None:
    with Daemon(config, bind=f"tcp://{HOSTS[0]}:{free_port()}") as daemon:
        resolver.hosts = HOSTS[:1]
        with RemoteLoader([f"tcp://pods:{daemon.endpoint.rpartition(':')[2]}"]) as loader:
            resolver.hang.set()
            time.sleep(0.3)
            before = time.monotonic()
            assert [digest(b) for b in islice(loader, 8)] == expected[:8]
        assert time.monotonic() - before < 2.5


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files that are root's")
def test_a_mounted_secret_is_readable_by_its_group_and_no_other(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory() as open_:
        os.chmod(open_, 0o755)
        home = make_keys(Path(open_) / "keys", ["trainer"])[0]
        for path in (home.parent, *home.parent.rglob("*")):
            os.chown(path, 0, 4242)
            path.chmod(0o750 if path.is_dir() else 0o440)
        secret = home / "server.key_secret"
        with pytest.raises(ServiceError, match="chmod 600"):
            ServerKeys.read(home)  # of root itself nothing is mounted
        try:
            os.setegid(4242)
            os.seteuid(4242)
            assert len(ServerKeys.read(home).allowed) == 1
            os.seteuid(0)
            for mode in (0o460, 0o444, 0o450):
                secret.chmod(mode)
                os.seteuid(4242)
                with pytest.raises(ServiceError, match="chmod 600"):
                    ServerKeys.read(home)
                os.seteuid(0)
            secret.chmod(0o440)
            os.chown(secret, 4242, 4242)
            os.seteuid(4242)
            with pytest.raises(ServiceError, match="chmod 600"):
                ServerKeys.read(home)
        finally:
            os.seteuid(0)
            os.setegid(0)


def asked(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as e:
        with e:
            return e.code, e.read().decode()


def test_probes_tell_a_supervisor_what_it_asks(tmp_path: Path) -> None:
    config = make_config(tmp_path, count=40)
    with Daemon(config, args=("--metrics", "0")) as daemon:
        assert daemon.metrics is not None
        base = daemon.metrics.removesuffix("/metrics")
        assert asked(f"{base}/ready") == asked(f"{base}/live") == (200, "yes\n")
        for name in ("images", "more"):
            (tmp_path / name).rename(tmp_path / f"{name}.away")
        end = time.monotonic() + 20
        while asked(f"{base}/ready")[0] == 200:
            assert time.monotonic() < end
            time.sleep(0.1)
        assert "is its disk mounted?" in asked(f"{base}/ready")[1]
        assert asked(f"{base}/live")[0] == 200
        for name in ("images", "more"):
            (tmp_path / f"{name}.away").rename(tmp_path / name)
        while asked(f"{base}/ready")[0] != 200:
            assert time.monotonic() < end
            time.sleep(0.1)


def test_a_loop_that_does_not_turn_is_stuck_and_one_that_stops_is_not_ready(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load(config)
    with Engine(loaded) as engine, Server({"x": engine}, loaded.serve) as server:
        assert not server.stuck and not server.unready
        monkeypatch.setattr(serving, "STUCK_S", 0.1)
        time.sleep(0.2)
        assert "has not turned" in server.stuck
        server.stop()
        assert server.unready == "it is draining"
