"""Peers that lie, flood, stall and vanish: the daemon keeps serving the honest client, within its memory."""

from __future__ import annotations

import fcntl
import itertools
import os
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq

from navit_loader import PackedLoader, RemoteLoader
from navit_loader.errors import ServiceError
from navit_loader.service import protocol
from navit_loader.service.shm import Borrowed

from ..service_kit import Daemon, digest, load, make_config


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_config(tmp_path_factory.mktemp("hostile"), serve="memory_mb = 64")


@pytest.fixture(scope="module")
def daemon(config: Path) -> Iterator[Daemon]:
    with Daemon(config) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def expected(config: Path) -> list[tuple[Any, ...]]:
    with PackedLoader(config=load(config)) as loader:
        return [digest(b) for b in loader]


def honest(daemon: Daemon, expected: list[tuple[Any, ...]]) -> None:
    """An honest client gets its epoch, as ever."""
    with RemoteLoader([daemon.endpoint], timeout_s=20) as loader:
        assert [digest(b) for b in loader] == expected


@contextmanager
def dealer(daemon: Daemon) -> Iterator[zmq.Socket[bytes]]:
    """A ZeroMQ peer that says whatever it likes."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as peer:
        peer.setsockopt(zmq.LINGER, 0)
        peer.setsockopt(zmq.RCVTIMEO, 5000)
        peer.connect(daemon.endpoint)
        yield peer


def raw(daemon: Daemon) -> socket.socket:
    """A plain TCP connection."""
    host, port = daemon.endpoint.removeprefix("tcp://").split(":")
    return socket.create_connection((host, int(port)), 5)


def greeting() -> bytes:
    """What ZeroMQ 3.1 says first: signature, version, mechanism NULL, filler; then a READY command."""
    hello = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32)
    body = b"\x05READY" + b"\x0bSocket-Type" + struct.pack(">I", 6) + b"DEALER"
    return hello + b"\x04" + bytes([len(body)]) + body


def test_random_bytes_in_well_formed_messages_are_refused_with_words(daemon: Daemon, expected: Any) -> None:
    rng = random.Random(1)
    with dealer(daemon) as peer:
        for _ in range(200):
            peer.send(rng.randbytes(rng.randint(0, 200)))
        for _ in range(200):
            reply = protocol.decode_reply(peer.recv())
            assert reply.kind == "error"
            assert reply.message
        peer.send_multipart([b"x"] * 500)
        assert "frames" in protocol.decode_reply(peer.recv()).message
    honest(daemon, expected)


def test_another_version_is_answered_with_both_versions(daemon: Daemon) -> None:
    with dealer(daemon) as peer:
        request = bytearray(protocol.encode(protocol.Hello(1, client="x")))
        request[3] = 9
        peer.send(bytes(request))
        message = protocol.decode_reply(peer.recv()).message
    assert "version 9" in message
    assert f"version {protocol.VERSION}" in message


def test_a_daemon_of_another_version_is_refused_with_both_versions() -> None:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        port = router.bind_to_random_port("tcp://127.0.0.1")

        def answer() -> None:
            peer, _ = router.recv_multipart()
            reply = bytearray(protocol.encode(protocol.Beat()))
            reply[3] = 9
            router.send_multipart([peer, bytes(reply)])

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(ServiceError, match=rf"version 9.*version {protocol.VERSION}"):
            RemoteLoader([f"tcp://127.0.0.1:{port}"], connect_timeout_s=5)
        thread.join()


Ask = Callable[[str, str], protocol.Request]


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda p, r: protocol.GetBatch(2, plan_id="other", render_id=r, count=4), "'other' was asked for"),
        (lambda p, r: protocol.GetBatch(2, plan_id=p, render_id="other", count=4), "'other' was asked for"),
        (lambda p, r: protocol.GetBatch(2, plan_id=p, render_id=r, count=65536), "serve.memory_mb"),
        (lambda p, r: protocol.GetBatch(2, plan_id=p, render_id=r, first=2**62, count=4), None),
        (lambda p, r: protocol.GetBatch(2, plan_id=p, render_id=r, epoch=protocol.WIDE, count=4), None),
        (lambda p, r: protocol.GetLayout(2, plan_id=p, first=2**62, count=1), "block"),
        (lambda p, r: protocol.GetLayout(2, plan_id=p, epoch=protocol.WIDE, count=1), None),
    ],
)
def test_requests_out_of_range_are_answered_and_the_daemon_lives(
    daemon: Daemon, expected: Any, ask: Ask, words: str | None
) -> None:
    with dealer(daemon) as peer:
        peer.send(protocol.encode(protocol.GetBatch(1, count=1)))
        assert protocol.decode_reply(peer.recv()).error == "hello"
        peer.send(protocol.encode(protocol.Hello(1, client="odd")))
        info = protocol.decode_reply(peer.recv()).info
        assert info is not None
        peer.send(protocol.encode(ask(info["plan_id"], info["render_id"])))
        reply = protocol.decode_reply(peer.recv_multipart()[0])
        assert reply.id == 2
        if words is not None:
            assert reply.kind == "error"
            assert words in reply.message
    honest(daemon, expected)


def test_a_map_with_many_keys_or_deep_nesting_is_refused(daemon: Daemon, expected: Any) -> None:
    head = protocol.MAGIC + bytes([protocol.VERSION])
    bodies = [msgpack.packb({str(i): i for i in range(1000)}), b"\x91" * 16000, b"\xdf\xff\xff\xff\xff", b""]
    with dealer(daemon) as peer:
        for body in bodies:
            peer.send(head + body)
            assert protocol.decode_reply(peer.recv()).kind == "error"
    honest(daemon, expected)


@pytest.mark.parametrize(
    "words",
    [
        os.urandom(4096),
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        greeting()[:30],  # half a handshake
        greeting(),
        greeting() + b"\x02" + struct.pack(">Q", 2**62) + b"x" * 1000,  # a frame of 4 EiB
        greeting() + b"\x02" + struct.pack(">Q", 2**31) + b"x" * 1000,
        greeting() + b"\x00\xff" + b"x" * 10,  # half a frame
    ],
    ids=["noise", "http", "half-greeting", "silence", "huge", "large", "half-frame"],
)
def test_plain_tcp_peers_are_cut_or_ignored(daemon: Daemon, expected: Any, words: bytes) -> None:
    before = daemon.memory_mb()
    peers = [raw(daemon) for _ in range(20)]
    for peer in peers:
        peer.sendall(words)
    honest(daemon, expected)
    for peer in peers:
        peer.close()
    assert daemon.memory_mb() < before + 30


def test_a_thousand_idle_connections_leave_the_honest_client_its_stream(daemon: Daemon, expected: Any) -> None:
    """What they cost in speed is for `bench/service.py` to say: a test that is timed fails on a busy machine."""
    before = daemon.memory_mb()
    peers = [raw(daemon) for _ in range(1000)]
    try:
        for i, peer in enumerate(peers):
            peer.sendall(greeting() if i % 2 else greeting()[:40])
        honest(daemon, expected)
    finally:
        for peer in peers:
            peer.close()
    assert daemon.memory_mb() < before + 100


def test_slow_readers_hold_no_more_than_their_share(daemon: Daemon, expected: Any) -> None:
    """Clients that ask for all they may and read nothing: the honest one goes on, and memory stays within its bound."""
    before = daemon.memory_mb()
    socks = []
    for number in range(6):
        # By hand, since ZeroMQ would read ahead: greet, say hello, and ask without ever reading.
        peer = raw(daemon)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        peer.sendall(greeting())
        socks.append(peer)
        with RemoteLoader([daemon.endpoint]) as loader:
            ids = (loader.plan_id, loader.render_id)
        requests = [protocol.Hello(1, client=f"slow{number}")]
        requests += [protocol.GetBatch(2 + i, plan_id=ids[0], render_id=ids[1], epoch=i, count=64) for i in range(300)]
        for request in requests:
            header = protocol.encode(request)
            peer.sendall((b"\x00" + bytes([len(header)]) if len(header) < 256 else b"") + header)
    time.sleep(1.0)
    assert any("slow5" in line and "joined" in line for line in daemon.log)
    honest(daemon, expected)
    # 64 MiB of batches, as much again in the kernel's and the renderer's spare buffers, and the process itself.
    assert daemon.memory_mb() < before + 2 * 64 + 64
    for peer in socks:
        peer.close()
    honest(daemon, expected)


def test_a_flood_of_small_requests_leaves_the_honest_client_its_stream(daemon: Daemon, expected: Any) -> None:
    """ZeroMQ queues what comes faster than it can be refused, without a bound (docs/rooms/service.md): so the flood has one
    here, of 64 bytes a request in that queue, and what the daemon itself keeps of 150,000 refused ones is to be next to
    nothing."""
    before = daemon.memory_mb()

    def flood() -> None:
        with dealer(daemon) as peer:
            peer.setsockopt(zmq.RCVHWM, 1)
            sent = 0
            while sent < 50_000:
                try:
                    peer.send(b"NVT\x01\x80", zmq.NOBLOCK)
                    sent += 1
                except zmq.Again:
                    time.sleep(0.001)

    threads = [threading.Thread(target=flood) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        while any(thread.is_alive() for thread in threads):
            honest(daemon, expected)
    finally:
        for thread in threads:
            thread.join()
    honest(daemon, expected)
    assert daemon.memory_mb() < before + 60


def test_the_door_to_shared_memory_admits_nobody_without_a_token(daemon: Daemon, expected: Any) -> None:
    with dealer(daemon) as peer:
        peer.send(protocol.encode(protocol.Hello(1, client="door", shared=True)))
        name, token = protocol.decode_reply(peer.recv()).passage
        for words in (b"", b"short", os.urandom(32), b"0" * 32, token.encode()[:-1] + b"x"):
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as caller:
                caller.connect("\0" + name)
                caller.sendall(words)
                caller.settimeout(7)
                if words:
                    assert caller.recv(1) == b""  # sent away
    honest(daemon, expected)


def test_words_through_the_door_are_believed_no_more_than_others(daemon: Daemon, expected: Any) -> None:
    beat = protocol.encode(protocol.Credit(slots=(7, 8)))
    good = struct.pack("<I", len(beat)) + beat
    rng = random.Random(4)
    packets = [
        b"x",
        struct.pack("<I", 2**32 - 1),
        struct.pack("<I", len(beat) + 1) + beat,
        good + good[:3],
        rng.randbytes(60_000),
    ]
    for number, packet in enumerate([*packets, good + struct.pack("<I", 4) + b"what"]):
        with dealer(daemon) as peer:
            hello = protocol.Hello(1, client=f"caller {number}", shared=True)
            peer.send(protocol.encode(hello))
            name, token = protocol.decode_reply(peer.recv()).passage
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as caller:
                caller.settimeout(7)
                caller.connect("\0" + name)
                caller.sendall(token.encode())
                caller.sendall(good)
                caller.sendall(packet)
                if packet in packets:
                    assert caller.recv(1) == b""  # sent away
                else:  # a packet that can be read, with a request that cannot: an answer, as over ZeroMQ
                    assert "NVT" in protocol.decode_reply(peer.recv()).message
    honest(daemon, expected)


def test_whoever_uses_anothers_name_ends_nobodys_session(daemon: Daemon, expected: Any) -> None:
    """Names stand in the metrics. A client that comes back over a new connection ends its old session all the same."""
    with RemoteLoader([daemon.endpoint], prefetch=1) as loader:
        batches = iter(loader)
        found = [digest(next(batches))]
        mine = next(line for line in reversed(daemon.log) if "joined" in line).split("client='")[1].split("'")[0]
        with dealer(daemon) as peer:
            for _ in range(3):
                peer.send(protocol.encode(protocol.Hello(1, client=mine)))
                assert protocol.decode_reply(peer.recv()).kind == "hello"
            found += [digest(batch) for batch in batches]
        assert found == expected
        assert not any(f"client='{mine}' left" in line for line in daemon.log)
        names = [line.split("client='")[1].split("'")[0] for line in daemon.log if mine in line and "joined" in line]
        assert len(set(names)) == 4, "each session has a name of its own"
        # Its connection breaks: the old session is over when the new one begins, and the name is its own again.
        loader._connection._endpoints[0].hang_up("cut")
        assert [digest(batch) for batch in loader][1:] != []
        assert sum(f"client='{mine}' plan" in line and "joined" in line for line in daemon.log) == 2


@pytest.mark.parametrize("lie", ["no seal", "another size", "two descriptors", "words with a descriptor", "no memory"])
def test_shared_memory_that_is_not_as_it_has_to_be_is_not_mapped(lie: str) -> None:
    name = f"navit-test-{os.getpid()}-{lie}"
    before = len(os.listdir("/proc/self/fd"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as door:
        door.bind("\0" + name)
        door.listen()
        borrowed = Borrowed(name, "0" * 32, 2**20)
        caller, _ = door.accept()
        with caller:
            assert caller.recv(64) == b"0" * 32
            memory = os.memfd_create("test", os.MFD_ALLOW_SEALING)
            os.truncate(memory, 4096)
            if lie != "no seal":
                fcntl.fcntl(memory, fcntl.F_ADD_SEALS, 0x1 | 0x2 | 0x4 | 0x10)
            words = struct.pack("<QQ", 3, 8192 if lie == "another size" else 4096)
            if lie == "words with a descriptor":
                words = protocol.encode(protocol.BatchReply(1, patch_size=4, slot=3))
            copies = {"two descriptors": 2, "no memory": 0}.get(lie, 1)
            socket.send_fds(caller, [words], [memory] * copies)
            os.close(memory)
            with pytest.raises(ServiceError, match=r"shared (slot 3|memory)"):
                borrowed.open(3)
            borrowed.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_daemon_that_lies_about_a_batch_is_not_believed(config: Path) -> None:
    """A fake daemon that takes a true hello and answers with frames of wrong lengths."""
    with Daemon(config) as real, dealer(real) as peer:
        peer.send(protocol.encode(protocol.Hello(1, client="x")))
        hello = peer.recv()
    over = threading.Event()
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        port = router.bind_to_random_port("tcp://127.0.0.1")

        def lie() -> None:
            sizes = itertools.cycle([0, 1, 10**6])
            while not over.is_set():
                if not router.poll(50):
                    continue
                who, *words = router.recv_multipart()
                for request in map(protocol.decode_request, words):
                    if request.kind == "hello":
                        router.send_multipart([who, hello])
                    elif request.kind == "layout":
                        reply = protocol.LayoutReply(request.id, run=8, num_blocks=1)
                        router.send_multipart([who, protocol.encode(reply), struct.pack("<I", 8)])
                    elif request.kind == "batch":
                        reply = protocol.BatchReply(request.id, patch_size=4)
                        router.send_multipart([who, protocol.encode(reply), *[bytes(next(sizes))] * 14])

        thread = threading.Thread(target=lie)
        thread.start()
        try:
            with RemoteLoader([f"tcp://127.0.0.1:{port}"], timeout_s=2.0) as loader:
                with pytest.raises(ServiceError, match=r"broke the protocol: .*bytes where"):
                    next(iter(loader))
        finally:
            over.set()
            thread.join()
