"""Keys: made closed, demanded beyond loopback, and everyone without a listed one is refused, logged and counted."""

from __future__ import annotations

import stat
import subprocess
import sys
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path

import pytest
import zmq

from navit_loader import PackedLoader, RemoteLoader
from navit_loader.commands.top import read
from navit_loader.errors import ServiceError
from navit_loader.service import protocol
from navit_loader.service.security import ClientKeys, ServerKeys, check_bind, make_keys

from .service_kit import Daemon, digest, load, make_config


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    make_keys(folder, ["alice", "bob"])
    return folder


def test_secrets_are_closed_and_each_folder_is_complete(keys: Path) -> None:
    for path in (keys / "server/server.key_secret", keys / "alice/client.key_secret"):
        assert not path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO)
    server, alice = ServerKeys.read(keys / "server"), ClientKeys.read(keys / "alice")
    assert alice.server == server.public
    assert server.allowed == {alice.public, ClientKeys.read(keys / "bob").public}


def test_the_command_makes_them_and_never_overwrites(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "navit_loader", "keys", str(tmp_path / "k"), "--client", "carol"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done
    assert str(tmp_path / "k" / "carol") in done.stdout
    before = (tmp_path / "k/server/server.key_secret").read_bytes()
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 2
    assert "exists already" in again.stderr
    make_keys(tmp_path / "k", ["dave"])
    assert (tmp_path / "k/server/server.key_secret").read_bytes() == before
    assert len(ServerKeys.read(tmp_path / "k/server").allowed) == 2


@pytest.mark.parametrize("name", ["", "server", "../up", "a/b", "a b"])
def test_names_that_are_no_plain_words_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ServiceError, match="is not allowed"):
        make_keys(tmp_path, [name])


def test_bad_key_files_are_refused_by_name(keys: Path, tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match="no key at"):
        ClientKeys.read(tmp_path)
    (tmp_path / "client.key_secret").write_text("nonsense")
    with pytest.raises(ServiceError, match="is not a key file"):
        ClientKeys.read(tmp_path)
    open_ = tmp_path / "open"
    open_.mkdir()
    for name in ("client.key_secret", "server.key"):
        (open_ / name).write_bytes((keys / "alice" / name).read_bytes())
    (open_ / "client.key_secret").chmod(0o644)
    with pytest.raises(ServiceError, match="chmod 600"):
        ClientKeys.read(open_)


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "tcp://[::1]:1", "tcp://localhost:1", "tcp://127.9.9.9:1"])
def test_loopback_needs_no_keys(address: str) -> None:
    check_bind(address, None)


@pytest.mark.parametrize(
    "address", ["tcp://0.0.0.0:1", "tcp://*:1", "tcp://[::]:1", "tcp://10.0.0.1:1", "tcp://eth0:1", "ipc://@abstract"]
)
def test_what_others_can_reach_needs_keys(address: str) -> None:
    with pytest.raises(ServiceError):
        check_bind(address, None)


@pytest.mark.parametrize(
    "address",
    ["tcp://127.0.0.1:65536", "tcp://127.0.0.1", "tcp://:5", "tcp://127.0.0.1:x", "ipc://", "udp://1.2.3.4:5"],
)
def test_what_is_no_address_is_refused(address: str) -> None:
    # ZeroMQ would listen at port 0 for the first.
    with pytest.raises(ServiceError, match=f"'{address}' is not allowed"):
        check_bind(address, None)
    with pytest.raises(ServiceError, match=f"'{address}' is not allowed"):
        RemoteLoader([address])


def test_a_name_is_taken_over_by_the_same_key_alone(keys: Path, tmp_path: Path) -> None:
    config = make_config(tmp_path / "data", count=40)
    with Daemon(config, args=("--keys", str(keys / "server"))) as daemon, ExitStack() as stack:
        context = stack.enter_context(zmq.Context())
        for joined, (who, ended) in enumerate((("alice", 0), ("bob", 0), ("alice", 1)), start=1):
            peer = stack.enter_context(context.socket(zmq.DEALER))
            peer.setsockopt(zmq.LINGER, 0)
            peer.setsockopt(zmq.RCVTIMEO, 5000)
            ClientKeys.read(keys / who).apply(peer)
            peer.connect(daemon.endpoint)
            peer.send(protocol.encode(protocol.Hello(1, client="trainer")))
            while (reply := protocol.decode_reply(peer.recv())).kind == "beat":
                pass
            assert reply.kind == "hello"
            while sum("joined" in line for line in daemon.log) < joined:
                time.sleep(0.01)  # the log is read by a thread; who came back has left before it joins
            assert sum("client='trainer' left: came back" in line for line in daemon.log) == ended


def test_a_client_whose_name_is_taken_over_loses_no_batch(keys: Path, tmp_path: Path) -> None:
    config = make_config(tmp_path / "data", count=120)
    with PackedLoader(config=load(config)) as local:
        expected = [digest(batch) for batch in local]
    args = ("--keys", str(keys / "server"))
    with Daemon(config, args=args) as daemon, zmq.Context() as context, ExitStack() as stack:
        loader = stack.enter_context(
            RemoteLoader([daemon.endpoint], keys=keys / "alice", shared=False, deadline_s=60, timeout_s=20)
        )
        while not (said := [line for line in daemon.log if "joined" in line]):
            time.sleep(0.01)
        name = said[0].split("client='")[1].split("'")[0]
        found = []
        for batch in loader:
            found.append(digest(batch))
            peer = stack.enter_context(context.socket(zmq.DEALER))
            peer.setsockopt(zmq.LINGER, 0)
            peer.setsockopt(zmq.RCVTIMEO, 5000)
            ClientKeys.read(keys / "alice").apply(peer)
            peer.connect(daemon.endpoint)
            peer.send(protocol.encode(protocol.Hello(1, client=name)))
            assert protocol.decode_reply(peer.recv()).kind == "hello"
        assert found == expected


def test_only_listed_keys_come_in(keys: Path, tmp_path: Path) -> None:
    stranger = tmp_path / "stranger"
    make_keys(stranger, ["eve"])
    config = make_config(tmp_path / "data", count=40)
    # Eve knows the daemon's public key, but her own is not on the list.
    (stranger / "eve" / "server.key").write_bytes((keys / "alice" / "server.key").read_bytes())
    wrong = tmp_path / "wrong"
    make_keys(wrong, ["mallory"])
    args = ("--keys", str(keys / "server"), "--metrics", "127.0.0.1:0")
    with Daemon(config, bind="tcp://0.0.0.0:0", args=args) as daemon:
        endpoint = daemon.endpoint.replace("0.0.0.0", "127.0.0.1")
        with RemoteLoader([endpoint], keys=keys / "alice") as loader:
            assert len(list(loader)) >= 1
        assert daemon.metrics is not None
        assert not any(name == "navit_refused_total" for name, _ in read(daemon.metrics))
        for own, hint in ((None, "keys=FOLDER"), (stranger / "eve", "allow-list"), (wrong / "mallory", "")):
            before = time.monotonic()
            with pytest.raises(ServiceError, match=f"{endpoint}: .*{hint}"):
                RemoteLoader([endpoint], keys=own, connect_timeout_s=1.0)
            assert time.monotonic() - before < 5
        with RemoteLoader([endpoint], keys=keys / "bob") as loader:
            next(iter(loader))
        text = urllib.request.urlopen(daemon.metrics).read().decode()
    log = "".join(daemon.log)
    assert 'navit_refused_total{reason="key"}' in text
    assert 'navit_refused_total{reason="handshake"}' in text
    assert f"refused=key key={ClientKeys.read(stranger / 'eve').public.decode()!r}" in log
