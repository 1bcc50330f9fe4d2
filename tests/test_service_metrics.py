"""What the daemon says about itself: numbers that agree with what its clients saw."""

from __future__ import annotations

import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from navit_loader import RemoteLoader
from navit_loader.batch import FAILED
from navit_loader.commands.top import read
from navit_loader.errors import ServiceError

from .service_kit import Daemon, make_config


def test_metrics_agree_with_what_the_client_saw(tmp_path: Path) -> None:
    config = make_config(tmp_path, count=120)
    with Daemon(config, args=("--metrics", "127.0.0.1:0")) as daemon, RemoteLoader([daemon.endpoint]) as loader:
        batches = list(loader)
        assert daemon.metrics is not None
        values = read(daemon.metrics)

        def one(name: str) -> float:
            found = [v for (n, _), v in values.items() if n == f"navit_{name}"]
            assert len(found) == 1, name
            return found[0]

        assert one("batches_total") == len(batches)
        assert one("images_total") == sum(b.num_images for b in batches)
        assert one("tokens_total") == sum(b.num_tokens for b in batches)
        assert one("slots_total") == sum(b.segment_ids.size for b in batches)
        assert one("client_images_total") == one("images_total")
        assert one("memory_used_bytes") <= one("memory_bound_bytes") == 1024 * 2**20
        assert 0 <= one("starved_seconds_total") <= loader.starved_s
        quarantined = sum(v for (n, _), v in values.items() if n == "navit_quarantined_total")
        # An image that a mixture uses twice in an epoch fails in two slots, and is one entry.
        failed = {
            (b.epoch, source, image)
            for b in batches
            for source, image in zip(b.source_ids[b.status == FAILED], b.image_ids[b.status == FAILED], strict=True)
        }
        assert quarantined == len(failed) > 0
        address = daemon.metrics.removeprefix("http://").removesuffix("/metrics")
        command = [sys.executable, "-m", "navit_loader", "top", address, "--once"]
        done = subprocess.run(command, capture_output=True, text=True, env={"COLUMNS": "200", "PATH": ""})
        assert done.returncode == 0, done
        assert "starved" in done.stdout
        assert f"quarantined {quarantined:.0f}" in done.stdout


def test_readers_that_say_nothing_cost_few_threads_and_keep_nobody_out(tmp_path: Path) -> None:
    with Daemon(make_config(tmp_path, count=40), args=("--metrics", "0")) as daemon, ExitStack() as stack:
        assert daemon.metrics is not None and daemon.metrics.startswith("http://127.0.0.1:")
        host, port = daemon.metrics.removeprefix("http://").removesuffix("/metrics").split(":")
        before = daemon.threads()
        for number in range(100):
            peer = stack.enter_context(socket.create_connection((host, int(port)), 5))
            peer.sendall(b"GET /metrics HTTP/1.0\r\n"[: number % 20])
            if number % 20 == 19:
                assert read(daemon.metrics)
                assert daemon.threads() <= before + 8


def test_nobody_at_the_address_is_one_clear_error() -> None:
    with pytest.raises(ServiceError, match="--metrics HOST:PORT"):
        read("127.0.0.1:9")
