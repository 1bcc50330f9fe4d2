"""Shared slots, with real memfds between two sockets: lent until the credit, written again only then, or never."""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from navit_loader.render.engine import Engine
from navit_loader.service.shm import ABANDON_S, Shelf, Window

from .service_kit import load, make_config


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with Engine(load(make_config(tmp_path_factory.mktemp("shm"), count=96)), shared=True) as engine:
        yield engine


@pytest.fixture
def ends() -> Iterator[tuple[Shelf, Window]]:
    """A daemon's shelf, and the window of its client."""
    name = f"navit-test-{os.getpid()}-{time.monotonic_ns()}"
    with ExitStack() as stack:
        door = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        door.bind("\0" + name)
        door.listen()
        window = Window(name, "0" * 32, 2**30)
        stack.callback(window.close)
        shelf = Shelf(door.accept()[0])
        stack.callback(shelf.close)
        shelf.connection.setblocking(False)
        assert shelf.connection.recv(64) == b"0" * 32
        yield shelf, window


def lend(engine: Engine, shelf: Shelf, first: int) -> tuple[int, bytes]:
    """Renders a batch and lends it: its slot, and its pixels."""
    batch = engine.submit(0, first, 4).wait()
    assert batch is not None
    memory: Any = batch.patches.base
    assert shelf.can(memory)
    slot = shelf.lend(memory, batch, batch.patches.nbytes)
    assert slot >= 0
    return slot, batch.patches.tobytes()


def numbers(engine: Engine, count: int = 12) -> set[int]:
    """Numbers of the memory into which the next batches are rendered, one at a time."""
    found = set()
    for _ in range(count):
        batch = engine.submit(0, 8, 4).wait()
        assert batch is not None
        memory: Any = batch.patches.base
        found.add(memory.shared[0])
        del batch, memory
    return found


def test_a_slot_is_written_again_after_its_credit_and_not_before(engine: Engine, ends: tuple[Shelf, Window]) -> None:
    shelf, window = ends
    slot, pixels = lend(engine, shelf, 0)
    view = window.open(slot)
    assert slot not in numbers(engine)
    assert view[: len(pixels)].tobytes() == pixels
    part = view[10:20]
    del view
    assert not window.returned  # a view of it is still held
    del part
    assert list(window.returned) == [slot]
    assert list(shelf.take_back(window.returned)) == [len(pixels)]
    assert list(shelf.take_back([slot, 77])) == []  # a second credit, and one for what was never lent
    assert slot in numbers(engine)


def test_a_slot_that_stays_away_is_never_written_again(engine: Engine, ends: tuple[Shelf, Window]) -> None:
    shelf, window = ends
    slot, pixels = lend(engine, shelf, 0)
    view = window.open(slot)
    now = time.monotonic()
    assert shelf.abandon_old(now + ABANDON_S - 5) == 0
    assert shelf.abandon_old(now + ABANDON_S + 5) == 1
    assert shelf.abandon_old(now + ABANDON_S + 5) == 0
    assert slot not in numbers(engine)
    assert view[: len(pixels)].tobytes() == pixels
    # Its bytes count until it is back; the memory stays given up.
    assert list(shelf.take_back([slot])) == [len(pixels)]
    assert slot not in numbers(engine)
    assert view[: len(pixels)].tobytes() == pixels


def test_what_is_out_when_a_session_ends_stays_as_it_is(engine: Engine, ends: tuple[Shelf, Window]) -> None:
    shelf, window = ends
    slot, pixels = lend(engine, shelf, 4)
    view = window.open(slot)
    assert shelf.close() == [len(pixels)]
    window.close()
    assert slot not in numbers(engine)
    assert view[: len(pixels)].tobytes() == pixels


def test_words_and_memory_keep_their_order(engine: Engine, ends: tuple[Shelf, Window]) -> None:
    """Replies that come before the announcement of a slot wait for their turn; requests travel together."""
    shelf, window = ends
    assert window.hear() is None and shelf.hear() is None
    for word in (b"first", b"second"):
        assert shelf.say(word)
    slot, pixels = lend(engine, shelf, 0)
    assert window.open(slot)[: len(pixels)].tobytes() == pixels
    assert [window.hear(), window.hear(), window.hear()] == [b"first", b"second", None]
    assert window.say([b"one", b"", b"three" * 1000])
    assert shelf.hear() == [b"one", b"", b"three" * 1000]
    assert not window.say([bytes(40_000), bytes(40_000)])  # too long for one packet: to be sent otherwise
    assert shelf.hear() is None


def test_a_full_socket_is_said_not_waited_for(ends: tuple[Shelf, Window]) -> None:
    shelf, window = ends
    before = time.monotonic()
    sent = 0
    while window.say([struct.pack("<I", sent) * 1000]):
        sent += 1
        assert sent < 10_000
    heard = 0
    while (requests := shelf.hear()) is not None:
        assert requests == [struct.pack("<I", heard) * 1000]
        heard += 1
    assert heard == sent and window.say([b"again"])
    assert time.monotonic() - before < 2
