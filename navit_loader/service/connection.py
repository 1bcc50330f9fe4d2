"""The client's side of the wire: several interchangeable daemons, seen as one that does not fail.

In: addresses, fixed or followed as daemons come and go, and the names of the batches that are wanted. Out: those
batches. Each want goes to the endpoint with the least in flight, among equals to the one whose turn it is by the
batch's number; past its deadline it goes to another one too, and when a connection breaks (ZeroMQ's own heartbeats
notice a silent peer after three) all that was asked there is asked again elsewhere. A batch is named by what it is, so
an answer that comes twice is the same answer, and the second is dropped; but where one masks images, another endpoint
is asked before it is believed (`opinions`). `RemoteLoader` adds order and epochs.
"""

from __future__ import annotations

import os
import random
import socket
import time
import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import zmq

from ..batch import PackedBatch
from ..errors import RenderError, ServiceError
from ..render.encoded import EncodedBatch
from . import protocol
from .endpoint import Endpoint, Terms, Want, log
from .log import Patience
from .opinions import Opinions
from .roster import Followed, Roster
from .security import ClientKeys, check_address
from .shm import SUPPORTED

_HANDSHAKE_S = 5.0
_UNASKED = 10  # deadlines for which an endpoint that let one pass is asked for no second opinion
_FOLLOWED_SOCKETS = 16384  # for as many daemons as a fleet may grow to, three each
_TURN_S = 0.01  # how long batches that are here may be handed out without a look at the others


class Connection:
    """Several daemons of one plan. Not for more than one thread at a time, nor for a forked child: what it says would reach the
    daemons as its parent's word.

    Args:
        addresses: `tcp://HOST:PORT` or `ipc://PATH`, one per daemon; or who knows them as they come and go, whose keys count
            and which is closed with the connection.
        plan: name of the plan at the daemons; empty for their first.
        keys: CURVE keys, where the daemons demand them.
        connect_timeout_s: how long to wait for the first daemon.
        memory: bytes of one frame at most; a daemon that declares more is cut before anything is allocated.
        deadline_s: after how long a batch is asked for at another daemon too.
        timeout_s: after how long without any answer waiting ends in an error.
        heartbeat_s: seconds between heartbeats; three missed ones count as a broken connection.
        shared: take batches of a daemon on the same host through shared memory.
        refresh: a daemon with another plan than the first is left out until the next `renew`, rather than an error.

    Attributes:
        info: the plan, from the first daemon's hello.
        starved_s: seconds spent waiting for batches in all.
        opinions: what daemons lack that others have.

    Raises:
        ServiceError: no daemon answered in time (each is named, with the reason), or one refused.
    """

    info: protocol.PlanInfo

    def __init__(
        self,
        addresses: Sequence[str] | Followed,
        *,
        plan: str = "",
        keys: ClientKeys | None = None,
        memory: int = 2**30,
        connect_timeout_s: float = 10.0,
        deadline_s: float = 10.0,
        timeout_s: float = 120.0,
        heartbeat_s: float = 1.0,
        shared: bool = True,
        refresh: bool = False,
    ) -> None:
        self._followed = addresses if isinstance(addresses, Followed) else None
        if isinstance(addresses, Followed):
            addresses = ()
        elif isinstance(addresses, str) or not addresses:
            raise ServiceError(f"endpoints = {addresses!r} must be a list of at least one tcp:// or ipc:// address")
        for address in addresses:
            check_address(str(address))
        self.starved_s = 0.0
        self._owner = os.getpid()
        self._deadline_s, self._timeout_s = deadline_s, timeout_s
        self.opinions = Opinions()
        self._back_s = 3 * heartbeat_s  # how long a lost endpoint is waited for, where its opinion is wanted
        self._silent: dict[Endpoint, float] = {}  # until when it is asked for no second opinion
        self._known: protocol.PlanInfo | None = None
        self._next_id = 1
        self._random = random.Random()  # the user's own numbers stay theirs
        self._starved_us = 0
        self._wants: list[Want] = []
        self._turned = 0.0  # when the last turn began
        self._context = zmq.Context()
        self._context.max_sockets = min(65535, 64 + 8 * len(addresses)) if addresses else _FOLLOWED_SOCKETS
        self._poller = zmq.Poller()
        self._terms = Terms(
            context=self._context,
            poller=self._poller,
            client=f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}",
            plan=plan,
            keys=keys,
            memory=max(memory, protocol.MAX_REPLY),
            handshake_s=max(0.001, min(_HANDSHAKE_S, connect_timeout_s / 2)),  # so that there is time for another
            heartbeat_s=heartbeat_s,
            silence_s=min(heartbeat_s, deadline_s),
            shared=shared and SUPPORTED,
        )
        self._endpoints = [Endpoint(a, self._terms) for a in sorted(set(addresses))]
        self._ended = ""
        if self._followed is not None:
            self._poller.register(self._followed.fileno(), zmq.POLLIN)
        self._refresh = refresh
        try:
            self._meet(connect_timeout_s)
        except BaseException:
            self.close()
            raise

    def renew(self) -> None:
        """Asks all daemons anew what they serve; nothing may be wanted meanwhile. `info` is what the first one answers.

        Raises:
            ServiceError: none answers.
        """
        self._same_process()
        for endpoint in self._endpoints:
            endpoint.hang_up("a new epoch begins")
            endpoint.retry = 0.0
        self._known = None
        self.opinions.forget()
        self._meet(self._timeout_s)

    def _meet(self, timeout_s: float) -> None:
        until, patience = time.monotonic() + timeout_s, Patience("a first daemon", timeout_s, log)
        while (known := self._first_hello()) is None:
            if time.monotonic() > until:
                raise ServiceError(f"no daemon answered within {timeout_s:g} s: {self._state()}")
            self._go_on()
            patience.look(self._state)
            self._turn(until)
        self.info = known

    @property
    def daemons(self) -> int:
        """How many daemons there are, whether they answer or not."""
        return len(self._endpoints)

    @property
    def serving(self) -> int:
        """How many of them may be asked for more."""
        return sum(endpoint.ready for endpoint in self._endpoints)

    # --- wants -----------------------------------------------------------------------------------------------------

    def want_batch(self, epoch: int, first: int, count: int, place: tuple[int, int] | None = None) -> Want:
        """Asks for a batch; returns at once. The words go out with the next wait: together, since each wakes a daemon.

        Args:
            epoch: its epoch.
            first: its first sequence.
            count: its sequences.
            place: the block that holds `first` and the sequences before it, so that no daemon has to count them.
        """
        return self._want(protocol.GetBatch(**self._named(epoch, first, count, place)))

    def want_encoded(
        self, epoch: int, first: int, count: int, limit: int, place: tuple[int, int] | None = None
    ) -> Want:
        """As `want_batch`, with encoded files in place of pixels, of `limit` bytes at most."""
        return self._want(protocol.GetEncoded(**self._named(epoch, first, count, place), limit=limit))

    def _named(self, epoch: int, first: int, count: int, place: tuple[int, int] | None) -> dict[str, Any]:
        ids = {"plan_id": self.info.plan_id, "render_id": self.info.render_id}
        block, before = place or (-1, 0)
        return ids | {"epoch": epoch, "first": first, "count": count, "block": block, "before": before}

    def batch(self, want: Want) -> PackedBatch | EncodedBatch:
        """Waits for a batch of either kind; its arrays are views of the frames that arrived.

        Raises:
            RenderError: it could not be rendered by any daemon; the file is named.
            ServiceError: no daemon answered within the time allowed, or one broke the protocol.
        """
        before = time.monotonic()
        batch: PackedBatch | EncodedBatch = self._wait(want)
        waited = time.monotonic() - before
        self.starved_s += waited
        self._starved_us += int(waited * 1e6)
        return batch

    def layout(self, epoch: int, first: int, count: int) -> tuple[int, int, np.ndarray[Any, Any]]:
        """Asks for the sequences in each of `count` planning blocks from block `first` on, and waits.

        Returns:
            Sequences per patch-size run, blocks of the epoch, and the counts (u32).
        """
        count = min(count, protocol.MAX_LAYOUT)
        want = self._want(protocol.GetLayout(plan_id=self.info.plan_id, epoch=epoch, first=first, count=count))
        found: tuple[int, int, np.ndarray[Any, Any]] = self._wait(want)
        return found

    def forget(self, wants: Sequence[Want]) -> None:
        """No longer wants these; their answers are dropped when they come. In a forked child, which has asked for none of
        them, nothing happens."""
        if os.getpid() != self._owner:
            return
        gone: dict[Endpoint, list[int]] = {}
        for want in wants:
            if want in self._wants:
                self._wants.remove(want)
            for id, endpoint in want.asked.items():
                if endpoint.in_flight.pop(id, None) is not None:
                    gone.setdefault(endpoint, []).append(id)
            want.asked.clear()
        for endpoint, ids in gone.items():
            endpoint.send(protocol.Cancel(requests=tuple(ids)))
            endpoint.flush()

    def close(self) -> None:
        """Says goodbye to all daemons and closes every socket. A second call does nothing, nor one in a forked child."""
        if self._context.closed or os.getpid() != self._owner:
            return
        for endpoint in self._endpoints:
            if endpoint.ready:
                endpoint.send(protocol.Bye())
                endpoint.flush()
            endpoint.hang_up("closed", linger=200)
        if self._followed is not None:
            self._followed.close()
        self._context.term()

    def _same_process(self) -> None:
        if (here := os.getpid()) != self._owner:
            raise ServiceError(
                f"this loader was made in process {self._owner} and its connections did not follow the fork into {here}; "
                "make it after the fork, or start processes with 'spawn'"
            )

    def _first_hello(self) -> protocol.PlanInfo | None:
        return self._known

    def _want(self, request: protocol.GetBatch | protocol.GetEncoded | protocol.GetLayout) -> Want:
        self._same_process()
        want = Want(request)
        self._wants.append(want)
        able = [e for e in self._endpoints if e.ready]
        if able:
            self._ask(self._choose(able, want), want, time.monotonic())
        return want

    def _wait(self, want: Want) -> Any:
        self._same_process()
        if self._context.closed:
            raise ServiceError("this loader is closed; make another")
        start = time.monotonic()
        for endpoint in self._endpoints:
            endpoint.flush()
        # One turn takes what has come for several wants; now and then one sees to the deadlines of the others.
        if want.settled and start > self._turned + _TURN_S:
            self._turn(0.0)
        patience = Patience(_words(want.request), self._timeout_s, log)
        while not want.settled:
            if time.monotonic() - start > self._timeout_s:
                raise ServiceError(f"no answer within {self._timeout_s:g} s: {self._state()}")
            self._go_on()
            patience.look(self._state)
            self._turn(start + self._timeout_s)
        if want in self._wants:
            self._wants.remove(want)
        if want.error is not None:
            raise want.error
        return want.answer

    def _state(self) -> str:
        def words(e: Endpoint) -> str:
            return f"{e.address}: {e.why}" + (f"; before that: {e.before}" if e.before not in ("", e.why) else "")

        told = [self._followed.state] if self._followed is not None else []
        return "; ".join([*told, *(words(e) for e in self._endpoints)])

    # --- daemons that come and go ----------------------------------------------------------------------------------

    def _follow(self) -> None:
        """Takes up who has come, and asks who goes for nothing new; it is let go of when it has answered."""
        assert self._followed is not None
        if (roster := self._followed.news()) is not None:
            self._take_up(roster)
        for endpoint in [e for e in self._endpoints if e.leaving and not e.in_flight]:
            endpoint.hang_up("it has left the fleet")
            self._endpoints.remove(endpoint)
            self._silent.pop(endpoint, None)

    def _take_up(self, roster: Roster) -> None:
        self._ended, here = roster.ended, set(roster.addresses)
        if self._terms.keys != roster.keys:  # another fleet has taken the name
            self._terms = replace(self._terms, keys=roster.keys)
            for endpoint in self._endpoints:
                endpoint.leave()
        for endpoint in self._endpoints:
            if endpoint.address not in here:
                endpoint.leave()
            elif not endpoint.leaving:
                here.discard(endpoint.address)
        self._endpoints += [Endpoint(address, self._terms) for address in roster.addresses if address in here]
        self._endpoints.sort(key=lambda endpoint: endpoint.address)

    def _go_on(self) -> None:
        """Refuses to wait for a fleet that was stopped."""
        if self._ended and not self._endpoints:
            raise ServiceError(self._ended)

    # --- the loop --------------------------------------------------------------------------------------------------

    def _turn(self, until: float) -> None:
        """One turn: connect, ask, wait for news until the next thing is due, and take it."""
        now = self._turned = time.monotonic()
        if self._followed is not None:
            self._follow()
        for endpoint in self._endpoints:
            if not endpoint.connected and now >= endpoint.retry:
                endpoint.call(*(("", "") if self._known is None else (self._known.plan_id, self._known.render_id)))
            endpoint.give_back()
        self._dispatch(now)
        for endpoint in self._endpoints:
            endpoint.flush()
        due = [until, *(e.due for e in self._endpoints)]
        due += [w.since + self._deadline_s for w in self._wants if w.asked and not w.settled]
        doubts = [w.doubted for w in self._wants if w.doubt and not w.settled]
        due += [doubted + self._deadline_s for doubted in doubts]
        back = (min(e.lost, doubted) + self._back_s for e in self._endpoints if not e.ready for doubted in doubts)
        due += [at for at in back if at > now]
        wait = max(0.0, min(min(due) - now, 1.0)) if until else 0.0
        ready = dict(self._poller.poll(int(wait * 1000) + (1 if wait else 0)))
        for endpoint in self._endpoints:
            self._take(endpoint, ready)
            endpoint.look_after()
        self._dispatch(time.monotonic())
        for endpoint in self._endpoints:
            endpoint.flush()

    def _dispatch(self, now: float) -> None:
        for want in self._wants:
            if want.doubt is not None and not want.settled and not self._second_may_come(want, now):
                self._take_first(want, now)
        able = [e for e in self._endpoints if e.ready]
        for want in self._wants if able else ():
            if want.settled or (want.asked and now < want.since + self._deadline_s):
                continue
            others = [e for e in able if e not in want.asked.values() and self._may_answer(e, want, now)]
            if others:
                self._ask(self._choose(others, want), want, now)
            elif want.asked:
                want.since = now  # nobody else to ask: look again a deadline later

    def _choose(self, able: Sequence[Endpoint], want: Want) -> Endpoint:
        """One with the least in flight. Trainers of one plan ask for its batches in turn, and where they know the same daemons,
        these are asked in turn too, by their addresses: were it the first of a list, all would ask the same few. So two
        trainers that want the same batch ask one daemon for it, which renders once. What falls to one that is gone or slow goes
        to any other, or its neighbour would have to do the work of two."""
        fewest = min(len(e.in_flight) for e in able)
        least = [e for e in able if len(e.in_flight) == fewest]
        if not want.since and not isinstance(want.request, protocol.GetLayout):
            number, n = want.request.first // want.request.count, len(self._endpoints)
            # Each round begins one further on: else a rank of n, or of 2·n, would ask the same one again and again.
            turn = self._endpoints[(number + number // n) % n]
            if turn in least:
                return turn
        return self._random.choice(least)

    def _ask(self, endpoint: Endpoint, want: Want, now: float) -> None:
        id, self._next_id = self._next_id, self._next_id + 1
        settled: dict[str, Any] = {}
        if isinstance(want.request, protocol.GetBatch | protocol.GetEncoded):
            settled["starved_us"], self._starved_us = min(self._starved_us, protocol.WIDE), 0
        if isinstance(want.request, protocol.GetBatch):
            settled["slots"] = endpoint.freed()
        want.asked[id] = endpoint
        want.since = now
        endpoint.ask(id, want, **settled)

    # --- answers ---------------------------------------------------------------------------------------------------

    def _take(self, endpoint: Endpoint, ready: dict[Any, int]) -> None:
        for reply, frames in endpoint.receive(ready):
            if isinstance(reply, protocol.Welcome):
                self._welcome(endpoint, reply)
                continue
            want = endpoint.in_flight.pop(reply.id, None)
            if isinstance(reply, protocol.ErrorReply):
                self._refused(endpoint, want, reply)
            elif want is not None and want.request.kind == reply.kind:
                want.asked.pop(reply.id, None)
                self._settle(endpoint, want, reply, frames)
            elif isinstance(reply, protocol.BatchReply) and reply.slot >= 0 and endpoint.borrowed is not None:
                endpoint.borrowed.returned.append(reply.slot)  # nobody wants it any more
            if endpoint.draining and not endpoint.in_flight:
                endpoint.hang_up(endpoint.why)

    def _welcome(self, endpoint: Endpoint, reply: protocol.Welcome) -> None:
        info = protocol.PlanInfo.from_table(reply.info)
        if self._known is None:
            self._known = info
        for key in ("plan_id", "render_id"):
            theirs, ours = getattr(info, key), getattr(self._known, key)
            if theirs != ours and self._refresh:
                # It may only be late to see a new index: it is asked for this very plan, and refuses what it cannot serve.
                endpoint.hang_up(f"its {key} is {theirs!r}, where another daemon has {ours!r}")
                return
            if theirs != ours:
                raise ServiceError(
                    f"{endpoint.address}: its {key} is {theirs!r}, but this loader began with {ours!r};"
                    " all endpoints must serve the same configuration and index"
                )
        endpoint.welcome(reply.passage, self._known.plan_id)

    def _refused(self, endpoint: Endpoint, want: Want | None, reply: protocol.ErrorReply) -> None:
        error = protocol.error_of(reply, endpoint.address)
        if reply.error == "hello":
            if endpoint.ready or endpoint.draining:
                endpoint.hang_up("it has forgotten this client")  # and it is greeted anew
            return  # else its hello is still to come, as where it looks at a new index
        if reply.error in ("draining", "busy"):
            if want is not None:
                want.asked.pop(reply.id, None)
            endpoint.lost = time.monotonic() if endpoint.ready else endpoint.lost
            endpoint.ready, endpoint.draining, endpoint.why = False, True, reply.message
            return
        if want is None:
            if not endpoint.ready:  # the hello itself was refused
                if self._refresh and reply.error == "plan" and any(e.ready for e in self._endpoints):
                    endpoint.hang_up(reply.message)  # it may have this plan's index no more; the others have
                    return
                raise error
            return
        want.asked.pop(reply.id, None)
        want.failed.add(endpoint)
        if want.doubt is not None:
            return  # the first answer stands, if nobody else has one
        others = [e for e in self._endpoints if e.ready and e not in want.failed]
        if not (isinstance(error, RenderError) and others) and not want.asked:
            want.error = error

    def _settle(self, endpoint: Endpoint, want: Want, reply: protocol.Reply, frames: list[Any]) -> None:
        try:
            answer = self._read(endpoint, want.request, reply, frames)
        except ServiceError as e:
            endpoint.hang_up(f"it broke the protocol: {e}")
            return
        endpoint.before = ""
        now = time.monotonic()
        if want.doubt is not None:
            answer = self.opinions.better((want.doubt[0].address, want.doubt[1]), (endpoint.address, answer))
        elif not isinstance(want.request, protocol.GetLayout) and self.opinions.doubted(answer):
            want.doubt, want.doubted = (endpoint, answer), now
            if self._second_may_come(want, now):
                return
        want.answer = answer
        self._cancel_rest(want)

    # --- second opinions -------------------------------------------------------------------------------------------

    def _may_answer(self, endpoint: Endpoint, want: Want, now: float) -> bool:
        """Whether an endpoint has not answered for a want yet, neither well nor ill."""
        if want.doubt is None:
            return endpoint not in want.failed
        return endpoint not in (*want.failed, want.doubt[0]) and now >= self._silent.get(endpoint, 0.0)

    def _second_may_come(self, want: Want, now: float) -> bool:
        """Whether another endpoint was asked about a doubted answer, or can be asked soon."""
        if now >= want.doubted + self._deadline_s:
            return False
        # One that comes and goes is not waited for anew each time.
        soon = (e for e in self._endpoints if e.ready or now < min(e.lost, want.doubted) + self._back_s)
        return bool(want.asked) or any(self._may_answer(e, want, now) for e in soon)

    def _take_first(self, want: Want, now: float) -> None:
        """Nobody had another opinion in time."""
        assert want.doubt is not None
        want.answer = want.doubt[1]
        for endpoint in want.asked.values():
            self._silent[endpoint] = now + _UNASKED * self._deadline_s
        self._cancel_rest(want)

    def _cancel_rest(self, want: Want) -> None:
        """Takes back what was asked elsewhere too."""
        want.doubt = None
        gone: dict[Endpoint, list[int]] = {}
        for id, other in want.asked.items():
            other.in_flight.pop(id, None)
            gone.setdefault(other, []).append(id)
        want.asked.clear()
        for other, ids in gone.items():
            other.send(protocol.Cancel(requests=tuple(ids)))

    def _read(self, endpoint: Endpoint, request: protocol.Request, reply: protocol.Reply, frames: list[Any]) -> Any:
        match request, reply:
            case protocol.GetBatch(), protocol.BatchReply() if reply.slot < 0:
                return protocol.read_batch(self.info, request, reply.patch_size, frames)
            case protocol.GetBatch(), protocol.BatchReply():
                if endpoint.borrowed is None:
                    raise ServiceError("a batch in shared memory, which was never agreed on")
                return protocol.read_slot(self.info, request, reply.patch_size, endpoint.borrowed.open(reply.slot))
            case protocol.GetEncoded(), protocol.EncodedReply():
                return protocol.read_encoded(self.info, request, reply.patch_size, frames)
            case protocol.GetLayout(), protocol.LayoutReply():
                return reply.run, reply.num_blocks, protocol.read_counts(request, frames)
        raise AssertionError("asked where both are of one kind")


def _words(request: protocol.GetBatch | protocol.GetEncoded | protocol.GetLayout) -> str:
    """What is wanted."""
    if isinstance(request, protocol.GetLayout):
        return f"the counts of epoch {request.epoch} from block {request.first} on"
    return f"the batch of epoch {request.epoch} at sequence {request.first}"
