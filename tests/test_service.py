"""Daemon and client as real processes: the same batches as in process, whatever the transport, ranks and state."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq

from navit_loader import PackedBatch, PackedLoader, RemoteLoader
from navit_loader.batch import FAILED
from navit_loader.commands.top import read
from navit_loader.errors import ConfigError, RenderError, ServiceError, StateError
from navit_loader.service import protocol

from .service_kit import Daemon, digest, load, make_config


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_config(tmp_path_factory.mktemp("service"))


@pytest.fixture(scope="module")
def daemon(config: Path) -> Iterator[Daemon]:
    with Daemon(config) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def expected(config: Path) -> list[tuple[Any, ...]]:
    """Two epochs, rendered in this process."""
    with PackedLoader(config=load(config)) as loader:
        return [digest(b) for _ in range(2) for b in loader]


def test_the_data_is_worth_testing_with(config: Path) -> None:
    with PackedLoader(config=load(config)) as loader:
        batches = list(loader)
        assert loader.engine.layout(0).num_blocks >= 3
        assert len({b.patch_size for b in batches}) == 2
        assert {0, 1} <= {source for b in batches for source in np.unique(b.source_ids).tolist()}
        assert sum(int((b.status == FAILED).sum()) for b in batches) >= 6


def test_an_iteration_goes_on_however_many_epochs_are_looked_at_meanwhile(
    daemon: Daemon, expected: list[tuple[Any, ...]]
) -> None:
    with RemoteLoader([daemon.endpoint], prefetch=1) as loader:
        batches = iter(loader)
        found = [digest(next(batches))]
        for epoch in range(1, 7):
            loader.set_epoch(epoch)
            assert len(loader) > 0
        found += [digest(batch) for batch in batches]
    assert found == expected[: len(found)] and len(found) == len([b for b in expected if b[0] == 0])


@pytest.mark.parametrize(("shared", "prefetch"), [(True, 1), (True, 8), (False, 1), (False, 8)])
def test_remote_batches_equal_local_batches_byte_for_byte(
    daemon: Daemon, expected: list[tuple[Any, ...]], shared: bool, prefetch: int
) -> None:
    with RemoteLoader([daemon.endpoint], prefetch=prefetch, shared=shared) as loader:
        found = [digest(b) for _ in range(2) for b in loader]
        assert found == expected
        assert loader.epoch == 2


@pytest.mark.parametrize("shared", [True, False])
def test_batches_are_read_only_however_they_come(daemon: Daemon, shared: bool) -> None:
    with RemoteLoader([daemon.endpoint], shared=shared) as loader:
        for batch in itertools.islice(loader, 3):
            assert [n for n, a in batch.arrays().items() if a.flags.writeable] == []


def test_over_ipc_too(config: Path, expected: list[tuple[Any, ...]], tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    with Daemon(config, bind=f"ipc://{tmp_path}/socket") as daemon, RemoteLoader([daemon.endpoint]) as loader:
        assert [digest(b) for _ in range(2) for b in loader] == expected


def test_batches_in_shared_memory_stay_as_they_are_while_they_are_held(
    daemon: Daemon, expected: list[tuple[Any, ...]]
) -> None:
    with RemoteLoader([daemon.endpoint], prefetch=3) as loader:
        held = [b for _ in range(2) for b in loader]
    assert [digest(b) for b in held] == expected  # also after the loader is closed


def test_a_trainer_that_keeps_all_its_batches_is_served_on(config: Path) -> None:
    """Where it has been lent as much shared memory as it may, the rest comes over ZeroMQ."""
    small = config.parent / "small.toml"
    small.write_text(config.read_text().replace("[serve]", "[serve]\nmemory_mb = 16").replace("size = 4", "size = 64"))
    with PackedLoader(config=load(small)) as loader:
        expected = [digest(b) for _ in range(4) for b in loader]
    with Daemon(small, args=("--metrics", "127.0.0.1:0")) as daemon, RemoteLoader([daemon.endpoint]) as loader:
        assert daemon.metrics is not None
        held = [b for _ in range(4) for b in loader]
        values = {name: value for (name, labels), value in read(daemon.metrics).items() if not labels}
    assert [digest(b) for b in held] == expected
    assert sum(b.patches.nbytes for b in held) > 8 * 2**20
    assert 0 < values["navit_batches_shared_total"] < values["navit_batches_total"]
    assert values["navit_memory_used_bytes"] <= values["navit_memory_bound_bytes"]


def test_length_and_classes_are_known_without_the_index(daemon: Daemon, config: Path) -> None:
    for world, remainder in itertools.product((1, 3), ("fill", "drop")):
        local = load(config)
        local = replace(local, data=replace(local.data, remainder=remainder))
        with (
            PackedLoader(config=local, rank=0, world_size=world) as here,
            RemoteLoader([daemon.endpoint], rank=0, world_size=world, remainder=remainder) as there,
        ):
            assert len(there) == len(here) == sum(1 for _ in there)
            assert there.classes == here.classes


def test_the_state_is_that_of_the_last_batch_in_the_users_hands(
    daemon: Daemon, expected: list[tuple[Any, ...]]
) -> None:
    found = []
    with RemoteLoader([daemon.endpoint], prefetch=8) as loader:
        for batch in itertools.islice(loader, 5):
            found.append(digest(batch))
        state = loader.state_dict()
    with RemoteLoader([daemon.endpoint], prefetch=2) as loader:
        loader.load_state_dict(state)
        for _ in range(2):
            found += [digest(b) for b in loader]
    assert found == expected


def sequences(batches: Iterable[PackedBatch]) -> list[Any]:
    """The images of each sequence that holds any, by source and row."""
    found = []
    for batch in batches:
        for sources, rows in zip(batch.source_ids, batch.image_ids, strict=True):
            if (rows >= 0).any():
                found.append([*zip(sources[rows >= 0].tolist(), rows[rows >= 0].tolist(), strict=True)])
    return found


def test_resume_onto_other_world_sizes_gives_each_sequence_exactly_once(config: Path) -> None:
    """Four ranks, then two, then three, each with eight batches asked for in advance, and the daemon killed in between."""
    with PackedLoader(config=load(config)) as loader:
        whole = sequences(loader)
    seen: list[Any] = []
    state: dict[str, Any] | None = None
    with Daemon(config) as daemon:
        for world, steps, batch_size in ((4, 2, 2), (2, 3, 3), (3, None, 4)):
            with ExitStack() as stack:
                ranks = [
                    stack.enter_context(
                        RemoteLoader([daemon.endpoint], rank=rank, world_size=world, prefetch=8, batch_size=batch_size)
                    )
                    for rank in range(world)
                ]
                for rank in ranks:
                    if state is not None:
                        rank.load_state_dict(state)
                iterators = [iter(rank) for rank in ranks]
                for step in itertools.count() if steps is None else range(steps):
                    batches = []
                    for rank, iterator in enumerate(iterators):
                        if (batch := next(iterator, None)) is not None:
                            batches.append(batch)
                        if step == 1 and rank == 0:  # in the middle of a step: one rank has its batch, the others not
                            daemon.kill()
                            daemon.start()
                    assert len(batches) in (0, world)  # all end at the same step
                    if not batches:
                        break
                    seen += sequences(batches)
                states = [rank.state_dict() for rank in ranks]
            assert all(s == states[0] for s in states)
            state = states[0]
    assert sorted(seen) == sorted(whole)


def test_rank_and_world_come_from_torchruns_environment(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "3")
    with RemoteLoader([daemon.endpoint]) as loader:
        assert (loader.rank, loader.world_size) == (2, 3)
        first = next(iter(loader))
    with RemoteLoader([daemon.endpoint], rank=0, world_size=1) as loader:
        assert first.sequence == [b.sequence for b in itertools.islice(loader, 3)][2]


def test_a_state_of_another_plan_is_refused_with_both_named(daemon: Daemon) -> None:
    with RemoteLoader([daemon.endpoint]) as loader:
        state = loader.state_dict() | {"plan_id": "somethingelse"}
        with pytest.raises(StateError, match=f"somethingelse.*{loader.plan_id}"):
            loader.load_state_dict(state)


def test_endpoints_that_serve_different_plans_are_refused_with_both_named(
    daemon: Daemon, tmp_path: Path, config: Path
) -> None:
    other = tmp_path / "other.toml"
    other.write_text(config.read_text().replace("seed = 5", "seed = 6"))
    with Daemon(other) as second:
        with RemoteLoader([daemon.endpoint]) as a, RemoteLoader([second.endpoint]) as b:
            ids = (a.plan_id, b.plan_id)
        assert ids[0] != ids[1]
        with pytest.raises(ServiceError) as caught, RemoteLoader([daemon.endpoint, second.endpoint]) as loader:
            for _ in loader:
                pass
        assert all(i in str(caught.value) for i in ids)


def test_several_plans_from_one_daemon(config: Path, tmp_path: Path, expected: list[tuple[Any, ...]]) -> None:
    other = tmp_path / "other.toml"
    other.write_text(config.read_text().replace("seed = 5", "seed = 6"))
    with (
        Daemon(config, other) as daemon,
        RemoteLoader([daemon.endpoint]) as first,
        RemoteLoader([daemon.endpoint], plan="other") as second,
        PackedLoader(config=load(other)) as local,
    ):
        assert [digest(b) for _ in range(2) for b in first] == expected
        assert [digest(b) for b in second] == [digest(b) for b in local]
        with pytest.raises(ServiceError, match=r"no plan 'third'.*config, other"):
            RemoteLoader([daemon.endpoint], plan="third")


def test_a_render_error_arrives_as_one(tmp_path: Path) -> None:
    config = make_config(tmp_path, count=60)
    config.write_text(config.read_text().replace("[render]", "[render]\nretries = 1"))
    # A link to itself is no damaged image but a file out of reach, which may pass: the request fails and names it.
    path = tmp_path / "images" / "a" / "0004.jpg"
    path.unlink()
    path.symlink_to(path)
    with PackedLoader(config=load(config)) as local, pytest.raises(RenderError) as here:
        list(local)
    with Daemon(config) as daemon, RemoteLoader([daemon.endpoint]) as loader:
        with pytest.raises(RenderError) as there:
            list(loader)
    assert str(path) in str(here.value)
    assert str(there.value) == f"{daemon.endpoint}: {here.value}"


# --- what goes wrong before the first batch ---------------------------------------------------------------------------


def test_nobody_there_is_an_error_within_the_time_given() -> None:
    before = time.monotonic()
    with pytest.raises(ServiceError, match=r"no daemon answered within 0.5 s: tcp://127.0.0.1:9: "):
        RemoteLoader(["tcp://127.0.0.1:9"], connect_timeout_s=0.5)
    assert time.monotonic() - before < 3


@pytest.mark.parametrize(
    ("endpoints", "message"),
    [
        ([], "at least one"),
        ("tcp://127.0.0.1:9", "must be a list"),
        (["http://x"], "'http://x' is not allowed"),
        (["tcp://127.0.0.1:port"], "tcp://127.0.0.1:port"),
    ],
)
def test_endpoints_that_cannot_be_are_refused_by_name(endpoints: Any, message: str) -> None:
    with pytest.raises(ServiceError, match=message):
        RemoteLoader(endpoints, connect_timeout_s=0.5)


def test_a_batch_that_does_not_fit_is_refused_with_both_sizes(daemon: Daemon) -> None:
    with pytest.raises(ServiceError, match=r"a batch of 60000 sequences takes [0-9,]+ bytes; memory_mb allows"):
        RemoteLoader([daemon.endpoint], batch_size=60000, memory_mb=64)
    with pytest.raises(ConfigError, match="prefetch = 0"):
        RemoteLoader([daemon.endpoint], prefetch=0)


def cli(*args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "navit_loader", *map(str, args)], capture_output=True, text=True, timeout=60
    )


def one_line(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 2, done
    assert done.stderr.count("\n") == 1, done.stderr
    for word in words:
        assert word in done.stderr


def test_a_port_in_use_is_one_line_and_status_2(daemon: Daemon, config: Path) -> None:
    one_line(cli("serve", config, "--bind", daemon.endpoint), daemon.endpoint, "--bind")


def test_an_open_port_without_keys_is_refused_and_says_how(config: Path, tmp_path: Path) -> None:
    one_line(cli("serve", config, "--bind", "tcp://0.0.0.0:0"), "navit-loader keys", "--keys")
    one_line(cli("serve", config, "--bind", "tcp://*:0"), "navit-loader keys", "--keys")
    tmp_path.chmod(0o755)
    one_line(cli("serve", config, "--bind", f"ipc://{tmp_path}/s"), "chmod 700")
    one_line(cli("serve", config, "--bind", f"ipc://{tmp_path}/none/s"), "mkdir")


# --- life of the process ----------------------------------------------------------------------------------------------


def test_sigterm_drains_and_ends_with_status_0(config: Path, expected: list[tuple[Any, ...]]) -> None:
    with Daemon(config) as daemon, Daemon(config) as other:
        with RemoteLoader([daemon.endpoint, other.endpoint], prefetch=6) as loader:
            found = []
            for _ in range(2):
                for batch in loader:
                    found.append(digest(batch))
                    if len(found) == 4:
                        daemon.signal(signal.SIGTERM)
        assert found == expected
        assert daemon.wait() == 0


def test_a_second_sigterm_ends_a_drain_at_once(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that takes nothing holds the drain up. The supervisor hears of the drain when it begins."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor, ExitStack() as stack:
        supervisor.bind(str(tmp_path / "notify"))
        supervisor.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        daemon = stack.enter_context(Daemon(config, args=("--metrics", "127.0.0.1:0")))
        assert supervisor.recv(64) == b"READY=1"
        context = stack.enter_context(zmq.Context())
        peer = stack.enter_context(context.socket(zmq.DEALER))
        for option, value in ((zmq.RCVHWM, 1), (zmq.RCVBUF, 8192), (zmq.LINGER, 0)):
            peer.setsockopt(option, value)
        peer.connect(daemon.endpoint)
        peer.send(protocol.encode(protocol.Hello(1, client="takes nothing")))
        info = protocol.PlanInfo.from_table(protocol.decode_reply(peer.recv()).info)
        ids = {"plan_id": info.plan_id, "render_id": info.render_id}
        for number in range(12):  # 6 MB each, mostly padding
            peer.send(protocol.encode(protocol.GetBatch(2 + number, **ids, count=512)))
        assert daemon.metrics is not None
        until = time.monotonic() + 20
        while time.monotonic() < until:
            if sum(value for (name, _), value in read(daemon.metrics).items() if name == "navit_batches_total") == 12:
                break
            time.sleep(0.05)
        daemon.signal(signal.SIGTERM)
        assert supervisor.recv(64) == b"STOPPING=1"
        time.sleep(0.3)
        assert daemon.process is not None and daemon.process.poll() is None
        before = time.monotonic()
        daemon.signal(signal.SIGTERM)
        assert daemon.wait() == 128 + signal.SIGTERM
        assert time.monotonic() - before < 2


def test_nothing_is_left_behind_after_kill_9(config: Path) -> None:
    shm = set(os.listdir("/dev/shm"))
    with Daemon(config) as daemon, RemoteLoader([daemon.endpoint]) as loader:
        next(iter(loader))
        daemon.kill()
    assert set(os.listdir("/dev/shm")) <= shm


def test_many_loaders_leave_no_descriptors_threads_or_memory(daemon: Daemon) -> None:
    def usage() -> tuple[int, int]:
        folder = f"/proc/{daemon.pid}"
        return len(os.listdir(f"{folder}/fd")), len(os.listdir(f"{folder}/task"))

    def visit() -> None:
        with RemoteLoader([daemon.endpoint], prefetch=2) as loader:
            for _ in itertools.islice(loader, 3):
                pass

    for _ in range(3):
        visit()
    time.sleep(0.5)
    own, theirs, memory = len(os.listdir("/proc/self/fd")), usage(), daemon.memory_mb()
    for _ in range(40):
        visit()
    time.sleep(0.5)
    assert len(os.listdir("/proc/self/fd")) <= own + 2
    assert usage()[0] <= theirs[0] + 2
    assert usage()[1] <= theirs[1]
    assert daemon.memory_mb() < memory + 20


def test_clients_of_one_daemon_get_equal_shares(config: Path) -> None:
    worker = (
        "import sys, time, itertools\n"
        "from navit_loader import RemoteLoader\n"
        "loader = RemoteLoader([sys.argv[1]], prefetch=4)\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "end, n = time.monotonic() + 3, 0\n"
        "while time.monotonic() < end:\n"
        "    for batch in loader:\n"
        "        n += 1\n"
        "        if time.monotonic() > end: break\n"
        "print(n)\n"
    )
    slow = config.parent / "slow.toml"
    slow.write_text(config.read_text())
    with Daemon(slow) as daemon:
        clients = [
            subprocess.Popen(
                [sys.executable, "-c", worker, daemon.endpoint],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(6)
        ]
        for client in clients:
            assert client.stdout is not None
            assert client.stdout.readline() == "ready\n"
        for client in clients:
            assert client.stdin is not None
            client.stdin.write("go\n")
            client.stdin.flush()
        served = np.array([int(client.communicate()[0]) for client in clients])
    assert served.min() >= 0.75 * served.mean(), served
