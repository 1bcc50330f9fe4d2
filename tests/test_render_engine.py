"""The renderer as a machine: order, memory, threads, faults, forks, signals."""

from __future__ import annotations

import gc
import json
import os
import resource
import select
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from navit_loader.errors import IndexFileError, RenderError

sys.path.insert(0, str(Path(__file__).parent))
from rendering import batch, encode, in_folder, photo, planned, renderer, source

FILES = [encode(photo(120 + 7 * n, 90 + 5 * n, n), "JPEG" if n % 3 else "PNG") for n in range(12)]
SIZES = [(90 + 5 * n, 120 + 7 * n) for n in range(12)]
GRID = (4, 5)


def plans(count: int) -> list[Any]:
    """Batches of two sequences of three images each."""
    found = []
    for n in range(count):
        rows = [[(6 * n + 3 * s + i) % 12 for i in range(3)] for s in range(2)]
        images = [[planned(r, 20 * i, SIZES[r], GRID) for i, r in enumerate(row)] for row in rows]
        found.append(batch(images))
    return found


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(v, b[k]) for k, v in a.items())


@contextmanager
def no_more_files() -> Iterator[None]:
    """Opening any file fails with EMFILE: a fault that may pass."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def folder_of(path: Path) -> dict[str, Any]:
    names = [f"{n}.img" for n in range(12)]
    for name, data in zip(names, FILES, strict=True):
        (path / name).write_bytes(data)
    return in_folder(path, names, SIZES, [len(f) for f in FILES])


def test_threads_and_memory_change_no_byte(tmp_path: Path) -> None:
    columns = folder_of(tmp_path)
    results = []
    for threads, fetchers, memory in ((1, 0, 1024), (4, 2, 16), (3, 1, 64)):
        made = renderer(columns, threads=threads, fetch_threads=fetchers, memory_mb=memory)
        pending = [made.submit(p) for p in plans(40)]
        results.append([p.wait(60) for p in pending])
        made.close()
    assert all(same(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


def rests(name: str) -> int:
    """How often the threads of this process with that name have gone to sleep."""
    found = 0
    for task in Path("/proc/self/task").iterdir():
        if (task / "comm").read_text().strip() == name:
            status = (task / "status").read_text()
            found += int(status.split("voluntary_ctxt_switches:")[1].split()[0])
    return found


def test_reading_ahead_does_not_wake_up_for_every_file(tmp_path: Path) -> None:
    """Each wake takes the core from a decoding thread, which cost 4 % of an epoch of cached files."""
    columns = folder_of(tmp_path)
    rows = [[(3 * s + i) % 12 for i in range(3)] for s in range(64)]
    images = [[planned(r, 20 * i, SIZES[r], GRID) for i, r in enumerate(row)] for row in rows]
    made = renderer(columns, threads=2, fetch_threads=1)
    for pending in [made.submit(batch(images)) for _ in range(6)]:
        pending.wait(60)
    slept = rests("navit-fetch-0")
    made.close()
    assert 0 < slept < 6 * 64 * 3 / 3


def test_files_and_members_of_a_container_are_the_same(tmp_path: Path) -> None:
    offsets, blob = [], b"some other member"
    for data in FILES:
        offsets.append(len(blob))
        blob += data + b"padding"
    (tmp_path / "shard.tar").write_bytes(blob)
    container = folder_of(tmp_path) | {
        "shards": [str(tmp_path / "shard.tar")],
        "offset": [np.array(offsets, np.int64)],
    }
    got = []
    for columns in (folder_of(tmp_path), container):
        made = renderer(columns)
        got.append(made.submit(plans(1)[0]).wait(30))
        made.close()
    assert same(got[0], got[1])


def test_batches_can_be_awaited_in_any_order_within_a_small_bound() -> None:
    """Each batch takes more than 16 MiB, so that the bound lets one be started at a time."""
    big = [batch([[planned(0, 0, SIZES[0], GRID)]], 64, 2) for _ in range(8)]
    made = renderer(source(SIZES, bytes=FILES), memory_mb=16)
    pending = [made.submit(p) for p in big]
    for p in reversed(pending):
        assert p.wait(60) is not None
    assert made.stats()["bytes_in_flight"] == 0
    made.close()


def test_bytes_in_flight_stay_within_the_bound() -> None:
    made = renderer(source(SIZES, bytes=FILES), memory_mb=16)
    pending = [made.submit(p) for p in plans(60)]
    time.sleep(0.5)
    in_flight = made.stats()["bytes_in_flight"]
    assert 2**20 < in_flight <= 16 * 2**20
    assert not pending[-1].ready
    del pending
    gc.collect()
    deadline = time.monotonic() + 10
    while made.stats()["bytes_in_flight"] and time.monotonic() < deadline:
        time.sleep(0.01)
    assert made.stats()["bytes_in_flight"] == 0
    made.close()


def test_memory_is_used_again_after_the_last_view_and_never_before() -> None:
    made = renderer(source(SIZES, bytes=FILES))
    first = made.submit(plans(1)[0]).wait(30)
    view, copy = first["patches"][0, 5:50], first["patches"][0, 5:50].copy()
    address = first["patches"].ctypes.data
    del first
    held = []
    for p in plans(20):
        got = made.submit(p).wait(30)
        assert got["patches"].ctypes.data != address
        held.append(got)
    assert np.array_equal(view, copy)
    del got, held, view
    gc.collect()
    reused = {made.submit(p).wait(30)["patches"].ctypes.data for p in plans(30)}
    assert address in reused or len(reused) < 5
    made.close()
    last = renderer(source(SIZES, bytes=FILES))
    kept = last.submit(plans(1)[0]).wait(30)
    copy = kept["patches"].copy()
    last.close()
    del last
    gc.collect()
    assert np.array_equal(kept["patches"], copy)


def test_a_used_block_leaves_nothing_behind() -> None:
    """After a batch of many images, the same memory holds a nearly empty one."""
    made = renderer(source(SIZES, bytes=FILES))
    for _ in range(4):
        full = [[planned(r, 20 * r, SIZES[r], GRID) for r in range(12)] for _ in range(2)]
        made.submit(batch(full)).wait(30)
        got = made.submit(batch([[planned(0, 0, SIZES[0], (1, 1))]], 16, 2)).wait(30)
        assert not got["patches"][0, 1:].any()
        assert not got["patches"][1].any()
        assert (got["segment_ids"] >= 0).sum() == 1
    made.close()


def test_the_descriptor_tells_a_poller() -> None:
    made = renderer(source(SIZES, bytes=FILES))
    assert not select.select([made.fd], [], [], 0)[0]
    pending = made.submit(plans(1)[0])
    assert select.select([made.fd], [], [], 30)[0]
    os.read(made.fd, 8)
    assert pending.ready
    assert pending.wait(0) is not None
    with pytest.raises(RenderError, match="taken"):
        pending.wait(0)
    made.close()


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda p: p.unlink(), "missing"),
        (lambda p: (p.unlink(), p.mkdir()), "missing"),
        (lambda p: (p.unlink(), os.mkfifo(p)), "missing"),
        (lambda p: p.write_bytes(b""), "changed"),
        (lambda p: p.write_bytes(p.read_bytes() + b"x"), "changed"),
        (lambda p: p.write_bytes(b"x" * p.stat().st_size), "unsupported"),
        (lambda p: p.write_bytes(FILES[1][:900] + bytes(len(FILES[1]) - 900)), "truncated"),
        (lambda p: p.write_bytes(encode(photo(33, 44), "JPEG").ljust(p.stat().st_size, b"\0")), "changed"),
    ],
)
def test_what_every_replica_sees_masks_one_slot(tmp_path: Path, spoil: Any, reason: str) -> None:
    columns = folder_of(tmp_path)
    made = renderer(columns, ledger=str(tmp_path / "ledger.jsonl"))
    whole = made.submit(plans(1)[0]).wait(30)
    spoil(tmp_path / "1.img")
    for _ in range(2):
        got = made.submit(plans(1)[0]).wait(30)
        assert got["status"].tolist() == [[1, 2, 1] + [0] * 13, [1, 1, 1] + [0] * 13]
        assert (got["segment_ids"][0, 20:40] == -1).all()
        assert not got["patches"][0, 20:40].any()
        assert np.array_equal(got["cu_seqlens"], whole["cu_seqlens"])
        keep = got["segment_ids"] >= 0
        assert np.array_equal(got["patches"][keep], whole["patches"][keep])
    (entry,) = made.failures()
    assert (entry["image"], entry["reason"], entry["uri"]) == (1, reason, f"{tmp_path}/1.img")
    line = (tmp_path / "ledger.jsonl").read_text().splitlines()
    assert [json.loads(x) for x in line] == [entry]
    made.close()


def test_a_fault_that_may_pass_fails_the_request_and_masks_nothing(tmp_path: Path) -> None:
    columns = folder_of(tmp_path)
    made = renderer(columns, retries=2)
    with no_more_files():
        start = time.monotonic()
        with pytest.raises(RenderError, match=r"\.img.*3 attempts"):
            made.submit(plans(1)[0]).wait(30)
        assert time.monotonic() - start < 5
    assert made.failures() == []
    assert (made.submit(plans(1)[0]).wait(30)["status"] != 2).all()
    made.close()


def test_a_fault_that_passes_in_time_is_never_seen(tmp_path: Path) -> None:
    made = renderer(folder_of(tmp_path), retries=20)
    with no_more_files():
        pending = made.submit(plans(1)[0])
        assert pending.wait(0.2) is None
    assert (pending.wait(30)["status"] != 2).all()
    made.close()


def test_mass_failure_is_an_error(tmp_path: Path) -> None:
    columns = folder_of(tmp_path)
    for n in range(12):
        (tmp_path / f"{n}.img").unlink()
    made = renderer(columns, failure_limit=0.5)

    def all_of_them() -> None:
        for p in plans(40):
            made.submit(p).wait(30)

    with pytest.raises(RenderError, match="failure_limit"):
        all_of_them()
    made.close()


def _count(what: str) -> int:
    return len(os.listdir(f"/proc/self/{what}"))


def _resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_opening_and_closing_leaves_nothing(tmp_path: Path) -> None:
    columns = folder_of(tmp_path)

    def once(n: int) -> None:
        made = renderer(columns)
        pending = [made.submit(p) for p in plans(n % 4)]
        if pending and n % 3:
            pending[0].wait(30)
        if n % 2:
            made.close()
            made.close()
            with pytest.raises(RenderError, match="closed"):
                made.submit(plans(1)[0])

    for n in range(50):
        once(n)
    gc.collect()
    threads, files, memory = _count("task"), _count("fd"), _resident()
    start = time.monotonic()
    for n in range(200):
        once(n)
    gc.collect()
    assert time.monotonic() - start < 30
    assert (_count("task"), _count("fd")) == (threads, files)
    # Each holds a batch of 12 MiB and threads with their buffers: one in ten of them left behind would show.
    assert _resident() - memory < 64 * 2**20


def test_closing_wakes_whoever_waits() -> None:
    made = renderer(source(SIZES, bytes=FILES), memory_mb=16)
    pending = [made.submit(p) for p in plans(200)]
    caught: list[BaseException] = []

    def wait() -> None:
        try:
            pending[-1].cancel()
            pending[-2].wait()
        except RenderError as e:
            caught.append(e)

    thread = threading.Thread(target=wait)
    thread.start()
    start = time.monotonic()
    made.close()
    thread.join(10)
    assert not thread.is_alive()
    assert time.monotonic() - start < 3


def test_a_forked_child_is_refused() -> None:
    made = renderer(source(SIZES, bytes=FILES))
    pending = made.submit(plans(1)[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        refused = 0
        for call in (lambda: made.submit(plans(1)[0]), pending.wait, lambda: pending.ready, made.stats, made.failures):
            try:
                call()
            except RenderError as e:
                refused += "fork" in str(e)
        made.close()
        os._exit(refused)
    deadline = time.monotonic() + 20
    done, status = 0, 0
    while not done and time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        time.sleep(0.01)
    if not done:
        os.kill(child, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(status) == 5
    assert pending.wait(30) is not None
    made.close()


WAITS = """
import resource, signal, sys
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # what starts the tests in the background has them ignore it
sys.path.insert(0, sys.argv[1])
from test_render_engine import folder_of, no_more_files, plans, renderer
made = renderer(folder_of(Path(sys.argv[2])), retries=100)
with no_more_files():
    pending = made.submit(plans(1)[0])
    sys.stdout.write("waiting\\n")
    sys.stdout.flush()
    if sys.argv[3] == "exit":
        sys.exit(7)
    try:
        pending.wait()
    except KeyboardInterrupt:
        sys.exit(9)
"""


@pytest.mark.parametrize(("how", "code"), [("interrupt", 9), ("exit", 7)])
def test_ctrl_c_and_exit_are_prompt(tmp_path: Path, how: str, code: int) -> None:
    here = str(Path(__file__).parent)
    command = [sys.executable, "-c", WAITS, here, str(tmp_path), how]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout
        assert child.stdout.readline() == "waiting\n"
        start = time.monotonic()
        if how == "interrupt":
            time.sleep(0.3)
            child.send_signal(signal.SIGINT)
        assert child.wait(20) == code
        assert time.monotonic() - start < 3


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"height": [np.array([1, 2], np.int32)]}, IndexFileError, "height"),
        ({"length": [np.ones(3, np.int64)]}, IndexFileError, "length"),
        ({"orientation": [np.ones(5, np.uint8)]}, IndexFileError, "orientation"),
        ({"width": [np.arange(24, dtype=np.int32)[::2]]}, IndexFileError, "contiguous"),
    ],
)
def test_columns_that_do_not_belong_together_are_refused(change: dict, error: type, says: str) -> None:
    with pytest.raises(error, match=says):
        renderer(source(SIZES, bytes=FILES) | change)


def test_an_index_that_points_outside_its_container_asks_for_no_memory(tmp_path: Path) -> None:
    columns = folder_of(tmp_path) | {"shards": [str(tmp_path / "0.img")]}
    for offset, length in ((0, 2**60), (2**62, 2**62), (-5, 10), (0, -1), (10**6, 1)):
        spoilt = columns | {"offset": [np.full(12, offset)], "length": [np.full(12, length)]}
        made = renderer(spoilt)
        assert (made.submit(plans(1)[0]).wait(30)["status"][:, :3] == 2).all()
        made.close()


def test_a_ledger_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(RenderError, match="ledger"):
        renderer(source(SIZES, bytes=FILES), ledger=str(tmp_path / "none" / "ledger.jsonl"))
