"""One rendering for several trainers: the bytes that each would get alone, whoever drifts, dies, lies or has other ranks."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from navit_loader import PackedBatch, PackedLoader, build_index
from navit_loader.commands.top import read
from navit_loader.errors import RenderError
from navit_loader.service import kept
from navit_loader.service.connection import Connection
from navit_loader.service.kept import Kept, Name

from .service_kit import PLAN, Daemon, load, make_config

TRAINER = """
import hashlib, sys
from navit_loader import RemoteLoader
endpoint, plan, rank, world, shared, prefetch = *sys.argv[1:3], *map(int, sys.argv[3:])
options = {"plan": plan, "rank": rank, "world_size": world, "shared": bool(shared), "prefetch": prefetch}
with RemoteLoader([endpoint], **options) as loader:
    batches = (batch for _ in range(3) for batch in loader)
    print("ready", flush=True)
    for line in sys.stdin:
        for _ in range(int(line)):
            batch = next(batches)
            made = hashlib.sha256(repr((batch.epoch, batch.sequence)).encode())
            for name, array in batch.arrays().items():
                made.update(name.encode() + array.tobytes())
            print(made.hexdigest(), flush=True)
"""


def digest(batch: PackedBatch) -> str:
    """All bytes of a batch, as `TRAINER` says them."""
    made = hashlib.sha256(repr((batch.epoch, batch.sequence)).encode())
    for name, array in batch.arrays().items():
        made.update(name.encode() + array.tobytes())
    return made.hexdigest()


class Trainer:
    """A trainer in a process of its own, which takes as many batches as it is told."""

    def __init__(
        self, daemon: Daemon, *, plan: str = "", rank: int = 0, world: int = 1, shared: bool = True, prefetch: int = 2
    ) -> None:
        options = map(str, (plan, rank, world, int(shared), prefetch))
        command = [sys.executable, "-c", TRAINER, daemon.endpoint, *options]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.said()

    def said(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def begin(self, count: int) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()

    def take(self, count: int) -> list[str]:
        self.begin(count)
        return [self.said() for _ in range(count)]

    def __enter__(self) -> Trainer:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


def metrics(daemon: Daemon) -> dict[str, float]:
    """Those without labels, and sums of the others."""
    assert daemon.metrics is not None
    found: dict[str, float] = {}
    for (name, labels), value in read(daemon.metrics).items():
        name = f"{name}.{dict(labels)['name']}" if name == "navit_engine" else name
        found[name] = found.get(name, 0.0) + value
    return found


def until(daemon: Daemon, holds: Callable[[dict[str, float]], bool]) -> None:
    end = time.monotonic() + 30
    while not holds(metrics(daemon)):
        assert time.monotonic() < end, metrics(daemon)
        time.sleep(0.05)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_config(tmp_path_factory.mktemp("kept"))


@pytest.fixture
def daemon(config: Path) -> Iterator[Daemon]:
    with Daemon(config, args=("--metrics", "0")) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def expected(config: Path) -> list[str]:
    """Two epochs and a bit, rendered in this process."""
    with PackedLoader(config=load(config)) as loader:
        return [digest(b) for _ in range(3) for b in loader]


@pytest.mark.parametrize("shared", [True, False])
def test_two_trainers_get_what_one_alone_gets_and_it_is_rendered_once(
    daemon: Daemon, expected: list[str], shared: bool
) -> None:
    with Trainer(daemon, shared=shared) as first, Trainer(daemon, shared=shared, prefetch=5) as second:
        found: tuple[list[str], list[str]] = ([], [])
        for turn in range(8):  # each is ahead of the other in turn, by up to 8 batches
            for trainer in (turn % 2, 1 - turn % 2):
                count = 4 if turn in (0, 7) else 8
                found[trainer].extend((first, second)[trainer].take(count))
        assert found[0] == found[1] == expected[: len(found[0])]
        values = metrics(daemon)
        assert values["navit_batches_total"] >= 2 * len(found[0])
        # Until the second has asked, nobody knows that anything is worth keeping.
        assert values["navit_batches_reused_total"] >= len(found[0]) - 12
        assert values["navit_memory_kept_bytes"] > 0
        assert first.process.poll() is None
        second.__exit__()
        if shared:  # over ZeroMQ alone, the daemon notices half a minute later
            until(daemon, lambda values: values["navit_memory_kept_bytes"] == 0)
        assert first.take(6) == expected[len(found[0]) :][:6]


def test_ranks_of_one_run_have_nothing_kept_for_them(daemon: Daemon, config: Path) -> None:
    with Trainer(daemon, world=2) as one, Trainer(daemon, rank=1, world=2) as other:
        for rank, trainer in enumerate((one, other)):
            with PackedLoader(config=load(config), rank=rank, world_size=2) as loader:
                assert trainer.take(12) == [digest(b) for b in islice(loader, 12)]
        values = metrics(daemon)
    assert values["navit_memory_kept_bytes"] == values["navit_batches_reused_total"] == 0


def test_other_world_sizes_share_the_batches_that_are_the_same(
    daemon: Daemon, config: Path, expected: list[str]
) -> None:
    with Trainer(daemon) as alone, Trainer(daemon, rank=1, world=2) as second:
        with PackedLoader(config=load(config), rank=1, world_size=2) as loader:
            half = [digest(b) for b in islice(loader, 13)]
        assert alone.take(6) == expected[:6]
        assert second.take(3) == half[:3]
        assert alone.take(20) == expected[6:26]
        assert second.take(10) == half[3:]
        assert 8 <= metrics(daemon)["navit_batches_reused_total"] <= 15


def test_whoever_is_beyond_what_is_kept_has_its_own_and_the_bound_holds(config: Path) -> None:
    """Batches of half a MiB, and 16 MiB for all of them: a trainer far ahead leaves nothing for the other."""
    small = config.parent / "little.toml"
    small.write_text(config.read_text().replace("[serve]", "[serve]\nmemory_mb = 16").replace("size = 4", "size = 64"))
    with PackedLoader(config=load(small)) as loader:
        batches = [b for _ in range(3) for b in loader]
    expected = [digest(b) for b in batches]
    with Daemon(small, args=("--metrics", "0")) as daemon, Trainer(daemon) as first, Trainer(daemon) as second:
        assert first.take(1) + second.take(1) == 2 * expected[:1]
        assert first.take(len(expected) - 1) == expected[1:]
        values = metrics(daemon)
        assert 0 < values["navit_memory_kept_bytes"] <= 2**23
        assert values["navit_memory_kept_bytes"] + values["navit_memory_used_bytes"] <= 2**24
        assert values["navit_memory_kept_bytes"] > 2**22
        before = values["navit_batches_reused_total"]
        assert second.take(len(expected) - 1) == expected[1:]
        assert metrics(daemon)["navit_batches_reused_total"] < before + len(expected) / 2


def test_a_trainer_of_another_plan_gets_as_much_as_those_who_share(tmp_path: Path) -> None:
    """Each pays for all that it gets: two that share are not two against one."""
    folder = tmp_path / "images" / "a"
    folder.mkdir(parents=True)
    Image.fromarray(np.zeros((800, 800, 3), np.uint8)).save(folder / "0.png", compress_level=1)
    for n in range(1, 60):
        shutil.copy(folder / "0.png", folder / f"{n}.png")
    build_index(tmp_path / "images", tmp_path / "x.arrow")
    configs = [tmp_path / f"{name}.toml" for name in ("sweep", "other")]
    for seed, path in enumerate(configs):
        path.write_text(
            f'[data]\nindex = "{tmp_path}/x.arrow"\nbatch_size = 4\n[render]\nthreads = 1\nprefetch = 1\n'
            + PLAN.replace("seed = 5", f"seed = {seed}\nvirtual_epoch = 100_000")
        )
    with Daemon(*configs, args=("--metrics", "0")) as daemon, ExitStack() as stack:
        # One batch at a time for each engine, and all render more slowly than anybody reads: whose turn it is decides.
        trainers = [stack.enter_context(Trainer(daemon, plan=plan, prefetch=6)) for plan in ("sweep", "sweep", "other")]
        for trainer in trainers:
            trainer.begin(10_000)

        def served() -> dict[tuple[str, str], float]:
            assert daemon.metrics is not None
            found = read(daemon.metrics).items()
            each = ((dict(labels), value) for (name, labels), value in found if name == "navit_client_batches_total")
            return {(labels["plan"], labels["client"]): value for labels, value in each}

        # Counted from when all three are under way: each plan's first batch waits for its planning.
        until(daemon, lambda _: len(first := served()) == 3 and min(first.values()) >= 4)
        first = served()
        until(daemon, lambda _: sum(served().values()) > sum(first.values()) + 120)
        found: dict[str, list[float]] = {"sweep": [], "other": []}
        for (plan, client), value in served().items():
            found[plan].append(value - first[plan, client])
        assert min(found["other"]) >= 0.85 * max(found["sweep"]), found
        values = metrics(daemon)
        assert values["navit_batches_reused_total"] >= values["navit_batches_total"] / 4


ASKER = """
import sys, time
from navit_loader.service.connection import Connection
connection = Connection(sys.argv[1:])
connection.want_batch(0, 0, 4, (0, 0))
for endpoint in connection._endpoints:
    endpoint.flush()
print("asked", flush=True)
time.sleep(60)
"""


def test_the_death_of_one_cancels_nothing_for_the_other(tmp_path: Path) -> None:
    """Both wait for one batch, which takes seconds to render; the one that asked first is killed."""
    folder = tmp_path / "images" / "a"
    folder.mkdir(parents=True)
    Image.fromarray(np.zeros((5000, 5000, 3), np.uint8)).save(folder / "0.png", compress_level=1)
    for n in range(1, 60):
        shutil.copy(folder / "0.png", folder / f"{n}.png")
    build_index(tmp_path / "images", tmp_path / "x.arrow")
    config = tmp_path / "large.toml"
    config.write_text(
        f'[data]\nindex = "{tmp_path}/x.arrow"\nbatch_size = 4\n[render]\nthreads = 1\nprefetch = 1\n{PLAN}'
    )
    with PackedLoader(config=load(config)) as loader:
        batch = next(iter(loader))
    expected, images = digest(batch), batch.num_images
    with Daemon(config, args=("--metrics", "0")) as daemon, ExitStack() as stack:
        command = [sys.executable, "-c", ASKER, daemon.endpoint]
        first = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        stack.callback(first.kill)
        assert first.stdout is not None
        assert first.stdout.readline() == "asked\n"
        until(daemon, lambda values: values["navit_client_outstanding"] == 1)
        connection = stack.enter_context(closing(Connection([daemon.endpoint])))
        want = connection.want_batch(0, 0, 4, (0, 0))
        for endpoint in connection._endpoints:
            endpoint.flush()
        until(daemon, lambda values: values["navit_client_outstanding"] == 2)
        assert metrics(daemon)["navit_batches_total"] == 0
        os.kill(first.pid, signal.SIGKILL)
        found = connection.batch(want)
        assert isinstance(found, PackedBatch)
        assert digest(found) == expected
        values = metrics(daemon)
        assert values["navit_batches_total"] == 1
        assert values["navit_engine.images"] == images
        assert values["navit_memory_used_bytes"] <= found.patches.nbytes * 2


def test_an_error_is_told_to_all_who_wait(tmp_path: Path) -> None:
    broken = make_config(tmp_path, count=240, batch_size=32)
    for path in tmp_path.rglob("*.*g"):
        path.write_bytes(bytes(path.stat().st_size))
    broken.write_text(broken.read_text().replace("failure_limit = 1.0", "failure_limit = 0.5"))
    with (
        Daemon(broken) as daemon,
        closing(Connection([daemon.endpoint])) as one,
        closing(Connection([daemon.endpoint])) as other,
    ):
        wants = [connection.want_batch(0, 0, 32, (0, 0)) for connection in (one, other)]
        for connection, want in zip((one, other), wants, strict=True):
            with pytest.raises(RenderError, match="failure_limit"):
                connection.batch(want)


def test_encoded_batches_are_shared_among_themselves(daemon: Daemon, config: Path) -> None:
    with PackedLoader(config=load(config)) as loader, ExitStack() as stack:
        made = loader.engine.submit_encoded(0, 0, 4).wait()
        assert made is not None
        expected = {name: array.tobytes() for name, array in made.arrays().items()}
        both = [stack.enter_context(closing(Connection([daemon.endpoint]))) for _ in range(2)]
        for turn in range(2):
            for connection in both:
                pixels = connection.batch(connection.want_batch(0, 0, 4, (0, 0)))
                files = connection.batch(connection.want_encoded(0, 0, 4, 2**30, (0, 0)))
                assert isinstance(pixels, PackedBatch) and pixels.patches.any()
                assert {name: array.tobytes() for name, array in files.arrays().items()} == expected, turn
        # All but the first two of each: of these the second was what said that they are worth keeping.
        assert metrics(daemon)["navit_batches_reused_total"] == 4


def test_a_client_that_lies_about_where_a_batch_lies_gives_no_other_client_a_wrong_one(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon that has not counted believes how many sequences precede a block, for that client's batches alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "daemon"))  # where no counts lie
    with Daemon(config) as daemon, ExitStack() as stack:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "here"))  # what is counted here is not for the daemon
        loader = stack.enter_context(PackedLoader(config=load(config)))
        liar, honest = (stack.enter_context(closing(Connection([daemon.endpoint]))) for _ in range(2))
        before = int(loader.engine.layout(0).counts(0, 1)[0])
        first = before + 2
        for _ in range(3):
            lie = liar.want_batch(0, first, 4, (1, before + 1))
            word = honest.want_batch(0, first, 4, (1, before))
            false, found = liar.batch(lie), honest.batch(word)
            assert isinstance(false, PackedBatch) and isinstance(found, PackedBatch)
            true = loader.engine.submit(0, first, 4).wait()
            assert true is not None
            assert digest(found) == digest(true) != digest(false)


def test_batches_are_kept_for_a_minute_and_within_the_room(monkeypatch: pytest.MonkeyPatch) -> None:
    here = {"a", "b"}
    batches: Any = [object() for _ in range(4)]
    names = [Name("plan", False, 0, n, 4, 0, 0) for n in range(4)]
    memory: Kept[str] = Kept(here.__contains__)
    memory.asked(names[0], "a")
    memory.keep(names[0], batches[0], 10)
    assert not memory.useful and memory.get(names[0]) is None
    memory.asked(names[0], "b")
    for name, batch in zip(names, batches, strict=True):
        memory.keep(name, batch, 10)
    memory.trim(25)
    assert [memory.get(name) for name in names] == [None, None, *batches[2:]] and memory.nbytes == 20
    monkeypatch.setattr(kept, "WINDOW_S", 0.0)
    time.sleep(0.001)
    memory.trim(1000)
    assert memory.nbytes == 0 and not memory.useful
    here.remove("b")
    memory.asked(names[0], "a")
    assert not memory.useful, "a trainer that is gone is no second one"
