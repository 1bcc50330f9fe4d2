"""Daemons that die, stop and are cut off while a trainer reads: its stream is the undisturbed one, byte for byte."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import zmq

from navit_loader import PackedLoader, RemoteLoader
from navit_loader.commands.top import read
from navit_loader.errors import ServiceError
from navit_loader.service import protocol

from .service_kit import Daemon, Nursery, Proxy, digest, load, make_config, random_cuts


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_config(tmp_path_factory.mktemp("faults"))


@pytest.fixture(scope="module")
def expected(config: Path) -> list[list[tuple[Any, ...]]]:
    """Three epochs."""
    with PackedLoader(config=load(config)) as loader:
        return [[digest(b) for b in loader] for _ in range(3)]


@contextmanager
def in_background(trouble: Callable[[threading.Event], None]) -> Iterator[threading.Event]:
    """Runs `trouble` beside the test until its block ends; what it raises fails the test. Gives the news that it has ended."""
    over, ended = threading.Event(), threading.Event()
    errors: list[BaseException] = []

    def run() -> None:
        try:
            trouble(over)
        except BaseException as e:
            errors.append(e)
        finally:
            ended.set()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield ended
    finally:
        over.set()
        thread.join()
    if errors:
        raise errors[0]


def read_until(loader: RemoteLoader, expected: list[list[tuple[Any, ...]]], enough: Callable[[], bool]) -> int:
    """Reads the epochs again and again, each compared as it comes, until there was enough trouble."""
    epochs = 0
    while not enough():
        loader.load_state_dict(loader.state_dict() | {"epoch": epochs % len(expected), "next_sequence": 0})
        for batch, right in zip(loader, expected[epochs % len(expected)], strict=True):
            assert digest(batch) == right
            time.sleep(0.002)  # a step of the trainer
        epochs += 1
    return epochs


KILLS = 100


@pytest.mark.slow
@pytest.mark.parametrize("endpoints", [1, 3])
def test_kill_9_at_random_moments(
    config: Path, expected: list[list[tuple[Any, ...]]], endpoints: int, tmp_path: Path
) -> None:
    rng = random.Random(endpoints)
    done = 0
    with Nursery(tmp_path) as nursery:
        daemons = [nursery.daemon(config) for _ in range(endpoints)]

        def trouble(over: threading.Event) -> None:
            nonlocal done
            while not over.wait(rng.uniform(0.0, 0.1)) and done < KILLS:
                victim = rng.choice(daemons)
                victim.kill()
                time.sleep(rng.uniform(0.0, 0.05))
                victim.start()
                done += 1

        addresses = [d.endpoint for d in daemons]
        with RemoteLoader(addresses, prefetch=4, timeout_s=60) as loader, in_background(trouble) as ended:
            read_until(loader, expected, ended.is_set)
    assert done == KILLS


@pytest.mark.parametrize("endpoints", [1, 2])
def test_a_daemon_that_is_stopped_for_longer_than_its_heartbeats(
    config: Path, expected: list[list[tuple[Any, ...]]], endpoints: int
) -> None:
    stops = 0
    with ExitStack() as stack:
        daemons = [stack.enter_context(Daemon(config)) for _ in range(endpoints)]

        def trouble(over: threading.Event) -> None:
            nonlocal stops
            while not over.is_set() and stops < 3:
                victim = daemons[stops % endpoints]
                victim.signal(signal.SIGSTOP)
                time.sleep(0.8)
                victim.signal(signal.SIGCONT)
                time.sleep(0.2)
                stops += 1

        addresses = [d.endpoint for d in daemons]
        with RemoteLoader(addresses, heartbeat_s=0.1, timeout_s=30) as loader, in_background(trouble) as ended:
            read_until(loader, expected, ended.is_set)
    assert stops == 3


def test_a_connection_that_swallows_everything_is_made_anew(
    config: Path, expected: list[list[tuple[Any, ...]]]
) -> None:
    """Three heartbeats would be a minute: it is asked whether it is there long before."""
    swallowed = 0
    with Daemon(config) as daemon, Proxy(daemon.endpoint) as proxy:
        addresses = [proxy.endpoint]
        with RemoteLoader(addresses, shared=False, heartbeat_s=20, deadline_s=0.4, timeout_s=15) as loader:
            found = []
            for batch in loader:
                found.append(digest(batch))
                if len(found) % 4 == 2:
                    proxy.swallow()
                    swallowed += 1
        assert found == expected[0]
        assert swallowed > 2
        assert sum("joined" in line for line in daemon.log) > swallowed // 2


def test_a_batch_that_takes_long_on_its_way_is_no_silence(config: Path, expected: list[list[tuple[Any, ...]]]) -> None:
    with Daemon(config) as daemon, Proxy(daemon.endpoint) as proxy:
        proxy.rate = 100_000
        with RemoteLoader([proxy.endpoint], shared=False, prefetch=2, deadline_s=0.2, timeout_s=30) as loader:
            assert [digest(batch) for batch in loader] == expected[0]
            assert loader._connection.starved_s > 2  # so that there was time to take it for silence
        assert sum("joined" in line for line in daemon.log) == 1


def test_past_its_deadline_a_batch_is_asked_for_elsewhere(config: Path, expected: list[list[tuple[Any, ...]]]) -> None:
    with Daemon(config) as slow, Daemon(config) as good:
        # Heartbeats every minute: only the deadline, and a silence as long, can notice.
        addresses = [slow.endpoint, good.endpoint]
        with RemoteLoader(addresses, heartbeat_s=60, deadline_s=0.3, timeout_s=30, prefetch=6) as loader:
            batches = iter(loader)
            found = [digest(next(batches))]
            slow.signal(signal.SIGSTOP)
            before = time.monotonic()
            found += [digest(b) for b in batches]
            assert found == expected[0]
            assert time.monotonic() - before < 10
            slow.signal(signal.SIGCONT)


def test_connections_that_are_cut_in_the_middle_of_a_frame(config: Path, expected: list[list[tuple[Any, ...]]]) -> None:
    with Daemon(config) as daemon, Proxy(daemon.endpoint, cut_after=random_cuts(3, 2000, 400_000)) as proxy:
        with RemoteLoader([proxy.endpoint], shared=False, timeout_s=30) as loader:
            read_until(loader, expected, lambda: proxy.cuts >= 20)


def test_a_slow_network(config: Path, expected: list[list[tuple[Any, ...]]]) -> None:
    """50 ms in each direction: requests must be under way together, or the epoch takes a round trip a batch."""
    with Daemon(config) as daemon, Proxy(daemon.endpoint) as proxy:
        proxy.delay = 0.05
        with RemoteLoader([proxy.endpoint], shared=False, prefetch=8, heartbeat_s=0.2, timeout_s=30) as loader:
            batches = iter(loader)
            found = [digest(next(batches))]
            before = time.monotonic()
            found += [digest(b) for b in batches]
            assert found == expected[0]
            assert time.monotonic() - before < 0.1 * len(found)


@pytest.mark.parametrize("pause", [0.1, 1.0])
def test_a_partition_in_the_middle_of_a_batch_that_heals(
    config: Path, expected: list[list[tuple[Any, ...]]], pause: float
) -> None:
    """Bytes stop within a frame while the connection stays open: for less than three heartbeats, and for more."""
    rng = random.Random(pause)
    held = 0
    with Daemon(config) as daemon, Proxy(daemon.endpoint) as proxy:

        def trouble(over: threading.Event) -> None:
            nonlocal held
            while held < 4 and not over.is_set():
                proxy.hold_after = rng.randint(1, 150_000)
                if proxy.hold.wait(5):
                    held += 1
                    time.sleep(pause)
                    proxy.hold.clear()

        with (
            RemoteLoader([proxy.endpoint], shared=False, heartbeat_s=0.1, timeout_s=30) as loader,
            in_background(trouble) as ended,
        ):
            read_until(loader, expected, ended.is_set)
    assert held == 4


def test_a_partition_in_the_middle_of_a_batch_that_lasts(config: Path, expected: list[list[tuple[Any, ...]]]) -> None:
    """The connection stays open for ever, half a batch has come: the other daemon, back just then, gives all of it."""
    with (
        Daemon(config) as cut,
        Daemon(config) as good,
        Proxy(cut.endpoint) as leaving,
        Proxy(good.endpoint) as coming,
    ):
        leaving.hold_after = 25_000  # a batch has some 50,000
        coming.hold.set()

        def relieve(over: threading.Event) -> None:
            while not (leaving.hold.wait(0.1) or over.is_set()):
                pass
            coming.hold.clear()

        addresses = [leaving.endpoint, coming.endpoint]
        before = time.monotonic()
        with (
            RemoteLoader(addresses, shared=False, heartbeat_s=0.1, timeout_s=30) as loader,
            in_background(relieve),
        ):
            found = [digest(b) for b in loader]
        assert leaving.hold.is_set()
        assert found == expected[0]
        assert time.monotonic() - before < 10


def test_a_daemon_that_never_comes_back_is_an_error_that_names_it(config: Path) -> None:
    with Daemon(config) as daemon, RemoteLoader([daemon.endpoint], timeout_s=1.0, prefetch=1) as loader:
        batches = iter(loader)
        next(batches)
        daemon.kill()
        before = time.monotonic()
        with pytest.raises(ServiceError, match=rf"no answer within 1 s: {daemon.endpoint}: "):
            list(batches)
        assert time.monotonic() - before < 5
        daemon.start()
        # The loader stands where it stood: it goes on when the daemon is back, which may take more than a second.
        for _ in range(20):
            with contextlib.suppress(ServiceError):
                assert next(iter(loader)).sequence > 0
                break
        else:
            pytest.fail("the daemon is back, and gives nothing")


TRAINER = """
import hashlib, json, sys
from navit_loader import RemoteLoader
from tests.service_kit import digest
endpoint, prefetch = sys.argv[1], int(sys.argv[2])
with RemoteLoader([endpoint], prefetch=prefetch) as loader:
    state = json.loads(sys.stdin.readline())
    if state:
        loader.load_state_dict(state)
    while loader.epoch < 2:
        for batch in loader:
            name = hashlib.sha256(repr(digest(batch)).encode()).hexdigest()
            print(json.dumps([name, loader.state_dict()]), flush=True)
"""


def test_a_trainer_that_is_killed_goes_on_from_its_state(config: Path, expected: list[list[tuple[Any, ...]]]) -> None:
    import hashlib

    right = [hashlib.sha256(repr(b).encode()).hexdigest() for epoch in expected[:2] for b in epoch]
    rng = random.Random(8)
    found: list[str] = []
    state: dict[str, Any] | None = None
    with Daemon(config) as daemon:
        while len(found) < len(right):
            trainer = subprocess.Popen(
                [sys.executable, "-c", TRAINER, daemon.endpoint, "8"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=Path(__file__).parents[1],
            )
            assert trainer.stdin is not None
            assert trainer.stdout is not None
            trainer.stdin.write(json.dumps(state) + "\n")
            trainer.stdin.flush()
            for _ in range(rng.randint(len(right) // 5, len(right) // 2)):
                if not (line := trainer.stdout.readline()):
                    break
                # The checkpoint: what comes after it was seen by nobody.
                name, state = json.loads(line)
                found.append(name)
            trainer.kill()
            trainer.communicate()
    assert found == right


def test_a_client_that_a_daemon_has_forgotten_says_hello_again(
    config: Path, expected: list[list[tuple[Any, ...]]]
) -> None:
    """Its session ends, and its connection does not: nothing comes, and nothing breaks."""
    with (
        Daemon(config) as daemon,
        RemoteLoader([daemon.endpoint], shared=False, prefetch=1, deadline_s=0.3, timeout_s=20) as loader,
    ):
        connection, found = loader._connection, []
        for batch in loader:
            found.append(digest(batch))
            want = connection.want_batch(0, 0, 4)
            (endpoint,) = connection._endpoints
            if endpoint.ready:
                endpoint.send(protocol.Bye())
            before = time.monotonic()
            assert digest(connection.batch(want)) == expected[0][0]
            assert time.monotonic() - before < 10
        assert found == expected[0]
    assert sum("joined" in line for line in daemon.log) > len(found) // 2


def test_a_handshake_has_a_deadline_of_its_own() -> None:
    """Who accepts and says nothing is called again while there is time."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        endpoint = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(ServiceError, match=rf"no daemon answered within 2 s: {endpoint}: "):
            RemoteLoader([endpoint], connect_timeout_s=2.0)
        listener.settimeout(0.2)
        calls = 0
        with contextlib.suppress(TimeoutError):
            while True:
                listener.accept()[0].close()
                calls += 1
    assert calls >= 2


def test_a_hello_that_takes_long_is_waited_for() -> None:
    """A daemon that opens a large index says hello late, over the same connection."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as silent:
        port = silent.bind_to_random_port("tcp://127.0.0.1")
        with pytest.raises(ServiceError, match=r"no daemon answered within 4 s: .*connected, but it says nothing"):
            RemoteLoader([f"tcp://127.0.0.1:{port}"], connect_timeout_s=4.0)
        callers = set()
        while silent.poll(200):
            callers.add(silent.recv_multipart()[0])
    assert len(callers) == 1


FORKED = """
import gc, os, sys
from navit_loader import RemoteLoader
from navit_loader.errors import ServiceError
from tests.service_kit import digest
endpoint, shared = sys.argv[1:]
loader = RemoteLoader([endpoint], prefetch=4, shared=shared == "shared", deadline_s=60, timeout_s=20)
batches, found = iter(loader), []
for batch in batches:
    found.append(hash(digest(batch)))
    # Two batches more are on their way; and children that use the loader, close it, let go of it or just end.
    end = len(found) % 4
    if (child := os.fork()) == 0:
        try:
            if end == 0:
                loader.close()
            elif end == 1:
                del loader, batches, batch
                gc.collect()
            else:
                asked = [lambda: next(batches), lambda: next(iter(loader)), lambda: loader._connection.layout(7, 0, 1)]
                for ask in asked if end == 2 else ():
                    try:
                        ask()
                    except ServiceError as e:
                        assert "make it after the fork, or start processes with 'spawn'" in str(e), e
                    else:
                        raise AssertionError("the child got something")
        except BaseException as e:
            print(f"{type(e).__name__}: {e}", file=sys.stderr, flush=True)
            os._exit(1)
        sys.exit(0)
    assert os.waitpid(child, 0)[1] == 0
loader.load_state_dict(loader.state_dict() | {"epoch": 0, "next_sequence": 0})
assert [hash(digest(batch)) for batch in loader] == found
loader.close()
"""


@pytest.mark.parametrize("way", ["shared", "tcp"])
def test_a_forked_child_is_told_so_and_takes_nothing_from_its_parent(config: Path, way: str) -> None:
    with Daemon(config, args=("--metrics", "127.0.0.1:0")) as daemon:
        command = [sys.executable, "-W", "ignore", "-c", FORKED, daemon.endpoint, way]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=Path(__file__).parents[1])
        assert done.returncode == 0, done.stderr
        assert not done.stderr
        assert daemon.metrics is not None
        values = read(daemon.metrics)
        asked = {dict(labels)["kind"]: n for (name, labels), n in values.items() if name == "navit_requests_total"}
    assert "cancel" not in asked and asked["bye"] == 1


WAITING = """
import json, sys
from navit_loader import RemoteLoader
from tests.service_kit import digest
with RemoteLoader([sys.argv[1]], prefetch=1) as loader:
    next(batches := iter(loader))
    print("begun", flush=True)
    sys.stdin.readline()
    try:
        next(batches)
    except KeyboardInterrupt:
        print(json.dumps(loader.state_dict()), flush=True)
    sys.stdin.readline()
    print(next(iter(loader)).sequence, flush=True)
"""


@pytest.mark.slow
def test_who_waits_says_for_what_and_the_first_signal_ends_it(config: Path) -> None:
    with Daemon(config) as daemon:
        command = [sys.executable, "-c", WAITING, daemon.endpoint]
        trainer = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            bufsize=1,
            cwd=Path(__file__).parents[1],
        )
        assert trainer.stdin is not None and trainer.stdout is not None and trainer.stderr is not None
        try:
            assert trainer.stdout.readline() == "begun\n"
            daemon.kill()
            before = time.monotonic()
            trainer.stdin.write("\n")
            said = [trainer.stderr.readline(), trainer.stderr.readline()]
            assert 8 < time.monotonic() - before < 20
            for line, seconds in zip(said, ("5", "10"), strict=True):
                assert f"waiting for the batch of epoch 0 at sequence 4 for {seconds} s, until 120 s: " in line
                assert f"{daemon.endpoint}: " in line
            before = time.monotonic()
            trainer.send_signal(signal.SIGINT)
            state = json.loads(trainer.stdout.readline())
            assert time.monotonic() - before < 3
            assert (state["epoch"], state["next_sequence"]) == (0, 4)
            daemon.start()
            trainer.stdin.write("\n")
            assert trainer.stdout.readline() == "4\n"
        finally:
            trainer.kill()
            trainer.communicate()
