"""A daemon as an actor: the server of `service` in a process that Ray starts, and starts again.

In: the plans and the keys. Out: batches over ZeroMQ at a free port of the node's address, and a report to the
registry a few times a second. What cannot be served is told there, not raised, and tried again: a disk may be mounted later.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import threading
import time
from collections.abc import Mapping
from dataclasses import replace

from ..config import LoaderConfig
from ..errors import NavitError, needed
from ..render.engine import Engine
from ..service.metrics import serve_metrics
from ..service.security import ServerKeys
from ..service.server import Server, raise_file_limit
from ..shown import log_to_stderr
from .cluster import registry
from .registry import REPORT_S, Report

log = logging.getLogger("navit_loader.fleet")

_LOOK_S = 0.05  # between two looks whether it has something to do
_AGAIN_S = 10.0  # until what could not be served is tried again
_LATELY_S = 5.0  # a client that has said nothing for longer, and waits for nothing, is no trainer that counts
_LEAVE_S = 1.0  # in which clients hear that it goes, before it refuses them


class Daemon:
    """Made by `launch` as an actor.

    Args:
        plans: configurations by plan name; `[serve]` of the first counts.
        keys: the fleet's.
        fleet: the name of the fleet, whose registry it reports to.
        number: its place in the fleet.
    """

    def __init__(self, plans: Mapping[str, LoaderConfig], keys: ServerKeys, fleet: str, number: int) -> None:
        log_to_stderr(anew=True)
        raise_file_limit()
        ray = needed("ray")
        # By name: as an argument its handle would lie in the object store, and be lost with a node.
        self._plans, self._keys, self._registry = plans, keys, registry(ray, fleet)
        host = ray.util.get_node_ip_address()
        bind = f"tcp://[{host}]:0" if ":" in host else f"tcp://{host}:0"
        self._serve = replace(next(iter(plans.values())).serve, bind=bind)
        self._report = Report(number, secrets.token_hex(8), host)
        self._server: Server | None = None
        self._busy = 0.0
        self._stopping = threading.Event()
        self._serving = threading.Thread(target=self._live, name="navit-serve", daemon=True)
        self._serving.start()
        threading.Thread(target=self._tell, name="navit-report", daemon=True).start()

    def there(self) -> None:
        """Returns as soon as there is such an actor."""

    def drain(self) -> None:
        """Leaves the roster, finishes what it was asked for, and serves no more."""
        self._stopping.set()
        time.sleep(_LEAVE_S)
        while self._serving.is_alive():
            if self._server is not None:
                self._server.stop()
            self._serving.join(_LEAVE_S)

    def engine(self, config: LoaderConfig) -> Engine:
        """What renders a plan."""
        return Engine(config, shared=True)

    # --- its threads -----------------------------------------------------------------------------------------------

    def _live(self) -> None:
        while not self._stopping.is_set():
            try:
                self._serve_on()
                return
            except NavitError as e:
                log.error("cannot serve: %s", e)
                self._report = replace(self._report, address="", why=" ".join(str(e).split()))
                self._stopping.wait(_AGAIN_S)
            except BaseException:
                log.exception("ends, to be started again")
                os._exit(1)

    def _serve_on(self) -> None:
        with contextlib.ExitStack() as stack:
            engines = {name: stack.enter_context(self.engine(config)) for name, config in self._plans.items()}
            server = stack.enter_context(Server(engines, self._serve, self._keys))
            if self._serve.metrics:
                url, stop = serve_metrics(server, self._serve.metrics)
                stack.callback(stop)
                log.info("metrics at %s", url)
            self._server = server
            self._report = replace(self._report, address=server.endpoint, why="")
            log.info("serving on %s", server.endpoint)
            server.run()

    def _tell(self) -> None:
        told = last = time.monotonic()
        while True:
            time.sleep(_LOOK_S)
            now, server = time.monotonic(), self._server
            sessions = [] if server is None else list(server.sessions.values())
            if any(session.asked for session in sessions):
                self._busy += now - last
            last = now
            leaves = self._stopping.is_set() and self._report.address
            if now < told + REPORT_S and not leaves:
                continue
            told = now
            report = replace(
                self._report,
                trainers=sum(bool(session.asked) or now - session.heard < _LATELY_S for session in sessions),
                starved_s=0.0 if server is None else server.counts["starved_us"] / 1e6,
                busy_s=self._busy,
            )
            if leaves:
                self._report = report = replace(report, address="")
            try:
                self._registry.report.remote(report)
            except Exception as e:  # said again in a while: one that falls silent is taken for gone
                log.warning("what this daemon does cannot be reported: %s", type(e).__name__)
