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
from navit_loader.service.shm import ABANDON_S, Borrowed, Loans

from .service_kit import load, make_config


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with Engine(load(make_config(tmp_path_factory.mktemp("shm"), count=96)), shared=True) as engine:
        yield engine


@pytest.fixture
def ends() -> Iterator[tuple[Loans, Borrowed]]:
    """A daemon's loans, and what its client has borrowed."""
    name = f"navit-test-{os.getpid()}-{time.monotonic_ns()}"
    with ExitStack() as stack:
        door = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        door.bind("\0" + name)
        door.listen()
        borrowed = Borrowed(name, "0" * 32, 2**30)
        stack.callback(borrowed.close)
        loans = Loans(door.accept()[0])
        stack.callback(loans.close)
        loans.connection.setblocking(False)
        assert loans.connection.recv(64) == b"0" * 32
        yield loans, borrowed


def lend(engine: Engine, loans: Loans, first: int) -> tuple[int, bytes]:
    """Renders a batch and lends it: its slot, and its pixels."""
    batch = engine.submit(0, first, 4).wait()
    assert batch is not None
    memory: Any = batch.patches.base
    assert loans.can(memory)
    slot = loans.lend(memory, batch, batch.patches.nbytes)
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


def test_a_slot_is_written_again_after_its_credit_and_not_before(engine: Engine, ends: tuple[Loans, Borrowed]) -> None:
    loans, borrowed = ends
    slot, pixels = lend(engine, loans, 0)
    view = borrowed.open(slot)
    assert slot not in numbers(engine)
    assert view[: len(pixels)].tobytes() == pixels
    part = view[10:20]
    del view
    assert not borrowed.returned  # a view of it is still held
    del part
    assert list(borrowed.returned) == [slot]
    assert list(loans.take_back(borrowed.returned)) == [len(pixels)]
    assert list(loans.take_back([slot, 77])) == []  # a second credit, and one for what was never lent
    assert slot in numbers(engine)


def test_a_slot_that_stays_away_is_never_written_again(engine: Engine, ends: tuple[Loans, Borrowed]) -> None:
    loans, borrowed = ends
    slot, pixels = lend(engine, loans, 0)
    view = borrowed.open(slot)
    now = time.monotonic()
    assert loans.abandon_old(now + ABANDON_S - 5) == 0
    assert loans.abandon_old(now + ABANDON_S + 5) == 1
    assert loans.abandon_old(now + ABANDON_S + 5) == 0
    assert slot not in numbers(engine)
    assert view[: len(pixels)].tobytes() == pixels
    # Its bytes count until it is back; the memory stays given up.
    assert list(loans.take_back([slot])) == [len(pixels)]
    assert slot not in numbers(engine)
    assert view[: len(pixels)].tobytes() == pixels


def test_what_is_out_when_a_session_ends_stays_as_it_is(engine: Engine, ends: tuple[Loans, Borrowed]) -> None:
    loans, borrowed = ends
    slot, pixels = lend(engine, loans, 4)
    view = borrowed.open(slot)
    assert loans.close() == [len(pixels)]
    borrowed.close()
    assert slot not in numbers(engine)
    assert view[: len(pixels)].tobytes() == pixels


def test_words_and_memory_keep_their_order(engine: Engine, ends: tuple[Loans, Borrowed]) -> None:
    """Replies that come before the announcement of a slot wait for their turn; requests travel together."""
    loans, borrowed = ends
    assert borrowed.hear() is None and loans.hear() is None
    for word in (b"first", b"second"):
        assert loans.say(word)
    slot, pixels = lend(engine, loans, 0)
    assert borrowed.open(slot)[: len(pixels)].tobytes() == pixels
    assert [borrowed.hear(), borrowed.hear(), borrowed.hear()] == [b"first", b"second", None]
    assert borrowed.say([b"one", b"", b"three" * 1000])
    assert loans.hear() == [b"one", b"", b"three" * 1000]
    assert not borrowed.say([bytes(40_000), bytes(40_000)])  # too long for one packet: to be sent otherwise
    assert loans.hear() is None


def test_a_full_socket_is_said_not_waited_for(ends: tuple[Loans, Borrowed]) -> None:
    loans, borrowed = ends
    before = time.monotonic()
    sent = 0
    while borrowed.say([struct.pack("<I", sent) * 1000]):
        sent += 1
        assert sent < 10_000
    heard = 0
    while (requests := loans.hear()) is not None:
        assert requests == [struct.pack("<I", heard) * 1000]
        heard += 1
    assert heard == sent and borrowed.say([b"again"])
    assert time.monotonic() - before < 2
