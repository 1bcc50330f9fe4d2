"""Planning at the daemon: who asks for much waits for it alone, and counts, files and threads stay bounded."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zmq

from navit_loader import PackedLoader, RemoteLoader, build_index
from navit_loader.errors import ServiceError, StateError
from navit_loader.plan import layouts
from navit_loader.render.engine import Engine
from navit_loader.service import protocol
from navit_loader.service.server import Server

from .service_kit import PLAN, Daemon, digest, load, make_config, make_images

FOREVER = PLAN.replace("[plan]", "[plan]\nvirtual_epoch = 2_000_000_000")
"""Planning the whole of such an epoch takes minutes on any machine."""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty million planning blocks."""
    folder = tmp_path_factory.mktemp("planner")
    make_images(folder / "images", 60)
    build_index(folder / "images", folder / "train.arrow")
    path = folder / "config.toml"
    path.write_text(
        f'[data]\nindex = "{folder / "train.arrow"}"\nbatch_size = 4\n[render]\nthreads = 1\nfailure_limit = 1.0\n{FOREVER}'
    )
    return path


def test_a_client_that_asks_for_the_end_of_a_large_epoch_delays_nobody(config: Path) -> None:
    with PackedLoader(config=load(config)) as loader:
        expected = [digest(batch) for batch, _ in zip(loader, range(30), strict=False)]
    with (
        Daemon(config) as daemon,
        zmq.Context() as context,
        context.socket(zmq.DEALER) as peer,
        RemoteLoader([daemon.endpoint], timeout_s=60) as loader,
    ):
        peer.setsockopt(zmq.LINGER, 0)
        peer.setsockopt(zmq.RCVTIMEO, 20_000)
        peer.connect(daemon.endpoint)
        peer.send(protocol.encode(protocol.Hello(1, client="greedy")))
        assert protocol.decode_reply(peer.recv()).kind == "hello"
        for number, epoch in enumerate((0, 7)):
            ids = {"plan_id": loader.plan_id, "render_id": loader.render_id, "epoch": epoch}
            for request in (
                protocol.GetBatch(2 + number, **ids, first=2**40, count=4),
                protocol.GetEncoded(2 + number, **ids, first=2**40, count=4, limit=2**30),
            ):
                peer.send(protocol.encode(request))
        found = [digest(batch) for batch, _ in zip(loader, range(30), strict=False)]
        assert found == expected
        assert not peer.poll(0), "the greedy one still waits"
        daemon.signal(15)
        assert daemon.wait() == 0  # and ends no later for it


def test_a_fresh_daemon_answers_from_the_middle_of_a_large_epoch_at_once(config: Path) -> None:
    with Engine(load(config)) as engine:
        block, before = engine.plan.num_blocks // 2, 2**32  # so many sequences might precede it
        layout = engine.layouts.near(0, block, before)
        counts = layout.counts(block, block + 40)
    with Daemon(config) as daemon, RemoteLoader([daemon.endpoint], deadline_s=60) as loader:
        connection = loader._connection
        start = time.monotonic()
        assert np.array_equal(connection.layout(0, block, 40)[2], counts)
        found = connection.batch(connection.want_batch(0, before + 5, 4, (block, before)))
        assert time.monotonic() - start < 5
        with pytest.raises(ServiceError, match="is not in block"):
            connection.batch(connection.want_batch(0, before + int(counts[0]), 4, (block, before)))
        with pytest.raises(StateError, match="block 99999999999 was asked for"):
            connection.batch(connection.want_batch(0, 5, 4, (99999999999, 0)))
        assert found.num_images > 0
    with Engine(load(config)) as engine:
        planned = engine.layouts.near(0, block, before).batch(before + 5, 4)
        assert digest(engine.submit_planned(planned).wait()) == digest(found)


def test_clients_that_name_many_epochs_leave_no_threads_files_or_memory(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with Daemon(config) as daemon, RemoteLoader([daemon.endpoint]) as loader:
        next(iter(loader))
        before, threads = daemon.memory_mb(), len(os.listdir(f"/proc/{daemon.pid}/task"))
        for epoch in range(1, 400):
            loader._connection.layout(epoch, 0, 1)
        assert len(os.listdir(f"/proc/{daemon.pid}/task")) == threads
        assert daemon.memory_mb() < before + 80  # 64 MiB of planned blocks are kept
    assert not any(tmp_path.rglob("*"))


def test_nothing_stays_of_sessions_that_are_over(tmp_path: Path) -> None:
    """A peer asks and says hello again in one breath: what was planned for its session before is nobody's any more."""
    config = load(make_config(tmp_path, count=60))
    with (
        Engine(config) as engine,
        Server({"x": engine}, replace(config.serve, bind="tcp://127.0.0.1:0")) as server,
        zmq.Context() as context,
        context.socket(zmq.DEALER) as peer,
    ):
        thread = threading.Thread(target=server.run)
        thread.start()
        peer.setsockopt(zmq.LINGER, 0)
        peer.connect(server.endpoint)
        ids = {"plan_id": engine.plan_id, "render_id": engine.render_id}
        hello = protocol.encode(protocol.Hello(1, client="again"))
        for n in range(600):
            peer.send(hello)
            peer.send(protocol.encode(protocol.GetEncoded(2, **ids, epoch=n, count=4, limit=2**20)))
            if n % 10 == 9:
                time.sleep(0.01)  # some are planned, some are not
        peer.send(hello)
        seen = 0
        while seen < 601:
            seen += protocol.decode_reply(peer.recv_multipart()[0]).kind == "hello"
        time.sleep(0.5)
        accounts, kept = len(server.share._accounts), len(server._planner._kept)
        server.stop()
        thread.join()
    assert accounts <= 1 and kept <= 1


def test_counts_of_whole_epochs_are_kept_on_disk_in_bounded_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(tmp_path / "data")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(layouts, "KEEP_FILES", 5)
    stale = tmp_path / "cache" / "navit" / "plan-0.1.part"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"half")
    os.utime(stale, (0, 0))
    with Engine(load(config)) as engine:
        for epoch in range(8):
            layout = engine.layouts.open(epoch)
            counts = layout.counts(0, layout.num_blocks)
            engine.layouts.keep(epoch, layout)
            assert engine.layouts.open(epoch).num_sequences == counts.sum()
        kept = sorted(path.name for path in stale.parent.iterdir())
        assert kept == [f"{engine.plan_id}-{epoch}.npy" for epoch in range(3, 8)]
        # What is no whole table of this plan is not believed.
        np.save(stale.parent / kept[0], np.zeros(2, np.uint32))
        (stale.parent / kept[1]).write_bytes(b"noise")
        assert engine.layouts.open(3).known == engine.layouts.open(4).known == 0


def test_a_loader_counts_one_epoch_at_a_time(config: Path) -> None:
    with Engine(load(config)) as engine:
        for epoch in range(20):
            engine.layout(epoch)
            assert sum(thread.name == "navit-count" for thread in threading.enumerate()) == 1
    assert not any(thread.name == "navit-count" for thread in threading.enumerate())
