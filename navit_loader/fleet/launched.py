"""A fleet that this process has launched, and looks after: as many daemons as there are to be, and no others.

In: configurations, how many daemons, a cluster. Out: actors. Ray places them (one a node: each takes the whole of a resource
that every node has one of), starts those again that die, and gets nodes where its autoscaler can. A thread of this process
reads their figures, decides (`growth`), and makes or drains daemons. All of it ends with this process: who launches owns.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..config import LoaderConfig, Source
from ..errors import ConfigError, ServiceError, said
from ..service.security import ClientKeys, fresh_keys
from .cluster import NAMESPACE, SCHEME, checked, connected
from .daemon import Daemon
from .growth import Grower, Growth
from .registry import Registry, Report

log = logging.getLogger("navit_loader.fleet")

_LOOK_S = 0.5
_DRAIN_S = 70.0  # a daemon drains for 60 at most
_WATCHERS = 65536  # calls that wait at the registry at a time: one of each trainer's ranks
_ANSWER_S = 30.0
_GONE_S = 3.0  # Ray takes a moment to forget the name of a fleet that was stopped
_AGAIN_S = 10.0


def launch(
    config: LoaderConfig | Mapping[str, LoaderConfig],
    *,
    name: str = "navit",
    daemons: int | tuple[int, int] = 1,
    per_node: int = 1,
    address: str | None = None,
    starved: float = 0.02,
    cool_s: float = 60.0,
    timeout_s: float = 300.0,
) -> Fleet:
    """Starts a fleet of daemons on a Ray cluster, and waits for the first of them. Trainers find it as `ray://NAME`.

    Each daemon reserves `render.threads` CPUs (1 where that is 0, which uses all cores of its node). Index and images are
    read on the nodes, so their paths must be good there.

    Args:
        config: what to serve, or several plans by name; `[serve]` of the first counts, but for `bind` and `keys`.
        name: of the fleet.
        daemons: how many; or least and most, between which the starved share decides.
        per_node: daemons on one node at most.
        address: of the cluster, HOST:PORT; None takes RAY_ADDRESS, or the cluster that this host is in.
        starved: the share of their time for which trainers may wait, above which there are more daemons.
        cool_s: seconds of idleness before there are fewer; trainers starve for a quarter of it before there are more.
        timeout_s: how long to wait for the first daemon.

    Raises:
        ExtraError: Ray is not installed.
        ServiceError: no cluster, a fleet of that name is there already, or no daemon serves in time; says why.
        ConfigError: a value that is not allowed.
    """
    least, most = (daemons, daemons) if isinstance(daemons, int) else daemons
    growth = Growth(least, most, starved, cool_s)
    if not 1 <= per_node <= 64:
        raise ConfigError(f"per_node = {per_node} is not allowed; it must be between 1 and 64 daemons")
    given = config if isinstance(config, Mapping) else {name: config}
    plans = {plan: _absolute(LoaderConfig.checked(one)) for plan, one in given.items()}
    metrics = next(iter(plans.values())).serve.metrics
    if per_node > 1 and metrics and metrics.rpartition(":")[2] != "0":
        raise ConfigError(
            f"serve.metrics = '{metrics}' is one port of a node, which per_node = {per_node} daemons cannot share; give "
            "port 0, which picks one and is in the daemons' logs, or leave it out"
        )
    return Fleet(checked(name), plans, growth, per_node, address, timeout_s)


class Fleet:
    """A running fleet; see `launch`. A context manager, which stops it.

    Attributes:
        address: what trainers give as their endpoint.
    """

    daemon: type[Daemon] = Daemon

    def __init__(
        self,
        name: str,
        plans: Mapping[str, LoaderConfig],
        growth: Growth,
        per_node: int,
        address: str | None,
        timeout_s: float,
    ) -> None:
        self._name, self._plans, self._growth, self._per_node = name, plans, growth, per_node
        self.address = SCHEME + name
        self._ray = connected(address)
        self._keys, client = fresh_keys()
        self._grower = Grower(growth)
        self._actors: dict[int, Any] = {}
        self._next = 0
        self._again = 0.0  # when to make daemons again, after one could not begin
        self._starting: dict[Any, int] = {}  # what tells that a daemon has begun
        self._draining: dict[Any, tuple[int, Any]] = {}  # what tells that it has drained, a daemon's number, and it
        self._known: dict[int, Report] = {}
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._registry = self._publish(client)
        try:
            self._place()
            self._wait(timeout_s)
            self._thread = threading.Thread(target=self._look_after, name="navit-fleet", daemon=True)
            self._thread.start()
        except BaseException:
            self.stop()
            raise

    @property
    def daemons(self) -> list[str]:
        """Where daemons serve, as was last heard: a moment ago, or before that where the registry is being started again."""
        return [report.address for report in self._known.values() if report.address]

    def stop(self) -> None:
        """Drains all daemons and ends them; trainers that still wait are told. Safe to call twice."""
        if self._closing.is_set():
            return
        self._closing.set()
        if self._thread is not None:
            self._thread.join()
        if not self._ray.is_initialized():  # all that was owned has gone with the connection
            return
        errors = self._ray.exceptions.RayError
        try:
            self._ray.get(self._registry.end.remote(), timeout=_ANSWER_S)
        except errors as e:
            log.warning("fleet=%s clients cannot be told that it ends: %s", self._name, type(e).__name__)
        self._dead()
        pending = set(self._starting.values())
        for number in list(self._actors):
            self._drain(number, number not in pending)
        if self._draining:
            self._ray.wait(list(self._draining), num_returns=len(self._draining), timeout=_DRAIN_S)
        for _, actor in self._draining.values():
            self._ray.kill(actor)
        self._ray.kill(self._registry)

    def __enter__(self) -> Fleet:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stops it."""
        self.stop()

    # --- actors ----------------------------------------------------------------------------------------------------

    def _publish(self, client: ClientKeys) -> Any:
        options = {
            "name": self._name,
            "namespace": NAMESPACE,
            "num_cpus": 0,
            "max_restarts": -1,
            "max_concurrency": _WATCHERS,
        }
        until = time.monotonic() + _GONE_S
        while True:
            try:
                return self._ray.remote(Registry).options(**options).remote(self._name, client)
            except ValueError:
                if time.monotonic() > until:
                    raise ServiceError(
                        f"a fleet '{self._name}' runs on this cluster already; stop it, or give this one another name (--name)"
                    ) from None
                time.sleep(_LOOK_S / 2)

    def _place(self) -> None:
        """Makes daemons until there are as many as wanted. Those without a node wait for one, as Ray's autoscaler sees."""
        threads = next(iter(self._plans.values())).render.threads
        options = {
            "num_cpus": max(1, threads),
            "resources": {f"{self._ray._raylet.IMPLICIT_RESOURCE_PREFIX}navit-{self._name}": 1.0 / self._per_node},
            "max_restarts": -1,
        }
        made = self._ray.remote(self.daemon).options(**options)
        while len(self._actors) < self._grower.wanted and time.monotonic() >= self._again:
            actor = made.remote(self._plans, self._keys, self._name, self._next)
            self._actors[self._next] = actor
            self._starting[actor.there.remote()] = self._next
            self._next += 1

    def _drain(self, number: int, placed: bool = True) -> None:
        actor = self._actors.pop(number)
        if placed:
            self._draining[actor.drain.remote()] = number, actor
        else:
            self._ray.kill(actor)

    def _dead(self) -> str:
        """Lets go of daemons that Ray does not start again, since they could not even begin; why, of the last of them."""
        why = ""
        for ref in self._done(self._starting):
            number = self._starting.pop(ref)
            try:
                self._ray.get(ref)
            except self._ray.exceptions.ActorDiedError as e:
                if self._actors.pop(number, None) is not None:
                    why, self._again = said(e)[-1], time.monotonic() + _AGAIN_S
                    log.warning("fleet=%s daemon=%d cannot begin: %s", self._name, number, why)
            except self._ray.exceptions.RayError:  # it died later, and is started again
                pass
        return why

    def _done(self, refs: Mapping[Any, Any]) -> list[Any]:
        """Those calls that have ended."""
        return list(self._ray.wait(list(refs), num_returns=len(refs), timeout=0)[0]) if refs else []

    def _reports(self) -> list[Report]:
        found: list[Report] = self._ray.get(self._registry.reports.remote(), timeout=_ANSWER_S)
        return found

    # --- looking after them ----------------------------------------------------------------------------------------

    def _wait(self, timeout_s: float) -> None:
        until, reports = time.monotonic() + timeout_s, list[Report]()
        while True:
            with contextlib.suppress(self._ray.exceptions.GetTimeoutError):  # it is being started yet
                reports = self._reports()
            if any(report.address for report in reports):
                self._tell(reports)
                return
            if (why := self._dead()) and not self._actors:
                raise ServiceError(f"no daemon of the fleet '{self._name}' can begin: {why}")
            if len(reports) == self._grower.wanted and all(report.why for report in reports):
                raise ServiceError(f"no daemon of the fleet '{self._name}' can serve: {reports[0].why}")
            if time.monotonic() > until:
                why = next((r.why for r in reports if r.why), "")
                why = why or "no node has the CPUs (render.threads) free, or it does not start; 'ray status' tells"
                raise ServiceError(f"no daemon of the fleet '{self._name}' serves after {timeout_s:g} s: {why}")
            time.sleep(_LOOK_S / 2)

    def _look_after(self) -> None:
        while not self._closing.wait(_LOOK_S) and self._ray.is_initialized():
            try:
                reports = self._reports()
                self._tell(reports)
                if (decision := self._grower.look(time.monotonic(), self._known.values())) is not None:
                    log.info("fleet=%s %s", self._name, decision)
                self._dead()
                self._place()
                # Those that have no node yet first, then the youngest.
                pending = set(self._starting.values())
                order = sorted(self._actors, key=lambda number: (number not in pending, -number))
                for number in order[: max(0, len(self._actors) - self._grower.wanted)]:
                    self._drain(number, number not in pending)
                for ref in self._done(self._draining):
                    number, actor = self._draining.pop(ref)
                    self._ray.kill(actor)
                    self._registry.forget.remote(number)
            except self._ray.exceptions.RayError as e:  # the registry is being started again, perhaps
                log.warning("fleet=%s cannot be looked after: %s", self._name, type(e).__name__)
            except Exception:  # whatever it is, daemons must go on being placed
                log.exception("fleet=%s cannot be looked after", self._name)

    def _tell(self, reports: list[Report]) -> None:
        """Takes up what daemons say, and logs who came and who went."""
        now = {report.number: report for report in reports if report.number in self._actors}
        for number, report in now.items():
            before = self._known.get(number)
            if before is not None and (report.address, report.why) == (before.address, before.why):
                continue
            if report.address:
                log.info("fleet=%s daemon=%d serves on %s", self._name, number, report.address)
            elif report.why:
                log.warning("fleet=%s daemon=%d on %s cannot serve: %s", self._name, number, report.node, report.why)
        for number in self._known.keys() - now.keys():
            log.info("fleet=%s daemon=%d is gone", self._name, number)
        self._known = now


def _absolute(config: LoaderConfig) -> LoaderConfig:
    """Paths of indexes as they are here: actors have folders of their own."""

    def whole(path: str) -> str:
        return str(Path(path).absolute()) if path else ""

    data = config.data
    mixture = tuple(Source(whole(source.index), source.weight) for source in data.mixture)
    return replace(config, data=replace(data, index=whole(data.index), mixture=mixture))
