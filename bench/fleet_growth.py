"""What grows with a fleet, measured small: bytes of an index row, time to plan an image, what an endpoint costs a client and a
client costs a daemon, and how long a daemon takes for a batch.

In: nothing. Out: what `docs/rooms/scale.md` reckons with, and the service times that `fleet_sim.py` draws from. One daemon with
keys listens on all of 127.0.0.0/8, so that one client can know it by hundreds of addresses.

    python bench/fleet_growth.py [--endpoints 200]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import corpus
import numpy as np
from kit import Report, parse
from packing import make, sizes
from PIL import Image

from navit_loader import RemoteLoader, build_index
from navit_loader.config import PlanConfig, Resolution
from navit_loader.service import connection
from navit_loader.service.endpoint import Endpoint, Terms
from navit_loader.service.security import make_keys

PLAN = """
[data]
index = "{index}"
batch_size = {batch}
[render]
threads = 1
[serve]
memory_mb = 512
[plan]
sequence_length = {length}
max_tokens = {tokens}
virtual_epoch = 1_000_000
[plan.resolution]
kind = "uniform"
low = 64
high = 256
"""


UNITS = {
    "bytes of an index row": "bytes",
    "processor time to plan an image and its count": "ns",
    "images a sequence": "images",
    "kib": "KiB of the client",
    "files": "descriptors of the client",
    "batch_ms": "ms of the client a batch",
    "greeted_s": "s of the client until all are known",
    "ready": "endpoints that are ready",
    "daemon_kib": "KiB of the daemon",
    "daemon_files": "descriptors of the daemon",
    "metrics_bytes": "bytes of the page of metrics",
    "metrics_series": "series",
    "scrape_ms": "ms for the page of metrics",
}


DRAWN = ("kib", "batch_ms", "daemon_kib")
"""Which of them become curves."""


@contextlib.contextmanager
def daemon(config: Path, keys: Path) -> Iterator[tuple[int, int, str]]:
    """A daemon on every address of loopback: its process, port and page of metrics."""
    command = [sys.executable, "-m", "navit_loader", "serve", str(config), "--bind", "tcp://0.0.0.0:0"]
    command += ["--keys", str(keys / "server"), "--metrics", "127.0.0.1:0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            page = process.stdout.readline().split()[-1]
            yield process.pid, int(process.stdout.readline().rsplit(":", 1)[1]), page
        finally:
            process.kill()


def resident(pid: int | str) -> float:
    """KiB of a process that are its own."""
    return float(Path(f"/proc/{pid}/status").read_text().split("RssAnon:")[1].split()[0])


class Named(Endpoint):
    """An endpoint at which the client goes by a name of its own: a daemon knows one session of each."""

    def __init__(self, address: str, terms: Terms) -> None:
        super().__init__(address, replace(terms, client=f"{terms.client}/{address}"))


def client_main(keys: str, port: str, count: str) -> None:
    """Knows a daemon by `count` addresses; prints what that took and what a batch takes of the processor."""
    addresses = [f"tcp://127.{1 + i // 250}.0.{1 + i % 250}:{port}" for i in range(int(count))]
    connection.Endpoint = Named  # type: ignore[misc]
    before, files, cpu = resident("self"), len(os.listdir("/proc/self/fd")), time.process_time()
    with RemoteLoader(addresses, keys=keys, shared=False, connect_timeout_s=60) as loader:
        batches = iter(loader)
        until = time.monotonic() + 60
        while any(not e.ready for e in loader._connection._endpoints) and time.monotonic() < until:
            next(batches)
        ready = sum(e.ready for e in loader._connection._endpoints)
        greeted = time.process_time() - cpu
        found = {"kib": resident("self") - before, "files": len(os.listdir("/proc/self/fd")) - files}
        cpu = time.process_time()
        for _ in range(100):
            next(batches)
        found |= {"batch_ms": 10 * (time.process_time() - cpu), "greeted_s": greeted, "ready": ready}
        print(json.dumps(found), flush=True)
        sys.stdin.readline()


def connections(folder: Path, config: Path, counts: list[int]) -> list[dict[str, float]]:
    """Client and daemon by number of connections."""
    make_keys(folder / "keys", ["trainer"])
    found = []
    for count in counts:
        with daemon(config, folder / "keys") as (pid, port, page):
            # One client first, so that what is made once is there.
            with RemoteLoader([f"tcp://127.0.0.1:{port}"], keys=folder / "keys" / "trainer") as loader:
                for _ in zip(range(20), loader, strict=False):
                    pass
            before, files, plain = (
                resident(pid),
                len(os.listdir(f"/proc/{pid}/fd")),
                len(urllib.request.urlopen(page).read()),
            )
            command = [sys.executable, __file__, "client", str(folder / "keys" / "trainer"), str(port), str(count)]
            with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as client:
                assert client.stdout is not None and client.stdin is not None
                row = json.loads(client.stdout.readline())
                start = time.perf_counter()
                text = urllib.request.urlopen(page).read()
                row |= {
                    "endpoints": count,
                    "daemon_kib": resident(pid) - before,
                    "daemon_files": len(os.listdir(f"/proc/{pid}/fd")) - files,
                    "metrics_bytes": len(text) - plain,
                    "metrics_series": text.count(b"client="),
                    "scrape_ms": 1e3 * (time.perf_counter() - start),
                }
                client.stdin.write("\n")
            found.append(row)
    return found


def service_times(folder: Path) -> list[float]:
    """Seconds between batches of a daemon that always has more to do: 8 × 1,024 tokens of 0.2 MP photographs."""
    corpus.write(folder / "photos", 100)
    build_index(folder / "photos", folder / "photos.arrow")
    config = folder / "photos.toml"
    config.write_text(PLAN.format(index=folder / "photos.arrow", batch=8, length=1024, tokens=256))
    with daemon(config, folder / "keys") as (_, port, _page):
        with RemoteLoader([f"tcp://127.0.0.1:{port}"], keys=folder / "keys" / "trainer", prefetch=8) as loader:
            at = []
            for _ in zip(range(70), loader, strict=False):
                at.append(time.perf_counter())
    return [float(s) for s in np.diff(at)[10:]]


def index_and_plan(folder: Path) -> dict[str, float]:
    """Bytes of a row, and processor time to plan an image and its count."""
    rows = []
    for count in (1000, 4000):
        images = folder / f"tiny{count}"
        images.mkdir()
        for i in range(count):
            Image.new("RGB", (8 + i % 7, 9)).save(images / f"{i:08}.png")
        build_index(images, folder / f"tiny{count}.arrow")
        rows.append((count, (folder / f"tiny{count}.arrow").stat().st_size))
    (few, small), (many, large) = rows
    layout = make(PlanConfig(resolution=Resolution(kind="uniform", low=64, high=256)), sizes(1_280_000)).layout(0)
    cpu = time.process_time()
    counts = layout.counts(0, layout.num_blocks)
    spent = time.process_time() - cpu
    return {
        "bytes of an index row": (large - small) / (many - few),
        "processor time to plan an image and its count": 1e9 * spent / 1_280_000,
        "images a sequence": 1_280_000 / float(counts.sum()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="What grows with a fleet, measured small.")
    parser.add_argument("--endpoints", type=int, default=200, metavar="N", help="connections of a client at most")
    args = parse(parser, {"endpoints": 50})
    report = Report("fleet-growth", __doc__, args)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for what, value in index_and_plan(folder).items():
            report.row(what, value, UNITS[what], better="lower", table="an index and a plan")
        config = folder / "tiny.toml"
        config.write_text(
            PLAN.format(index=folder / "tiny1000.arrow", batch=1, length=64, tokens=16)
            .replace("low = 64", "low = 8")
            .replace("[plan.resolution]", "patch_sizes = [4]\n[plan.resolution]")
        )
        for row in connections(folder, config, [n for n in (1, 50, 200, 500, 1000) if n <= args.endpoints]):
            count = int(row.pop("endpoints"))
            for what, value in row.items():
                given = {
                    "better": "lower",
                    "table": "one client, one daemon, so many connections",
                    "x": count if what in DRAWN else None,
                }
                report.row(f"{what}, {count} connections", value, UNITS[what], **given)
        report.row(
            "a daemon's batch", service_times(folder), "s", better="lower", table="8 × 1,024 tokens of photographs"
        )
    report.finish()


if __name__ == "__main__":
    if sys.argv[1:2] == ["client"]:
        client_main(*sys.argv[2:5])
    else:
        main()
