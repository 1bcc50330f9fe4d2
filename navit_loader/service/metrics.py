"""What the daemon does, in numbers: a Prometheus endpoint, read by `navit-loader top` and by whoever scrapes it.

In: the server's counters and its engines' statistics, read when somebody asks. Out: metrics whose names start with
`navit_`, and at `/ready` and `/live` what a supervisor asks, over HTTP in a few threads of its own, on loopback unless another
address is asked for. Serving never waits for it.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .. import _packer
from ..errors import ServiceError

if TYPE_CHECKING:
    from .server import Server

_READERS = 8
"""Threads that answer at most. Where as many read already, whoever came first is hung up on for the next."""
_PATIENCE_S = 10.0

_COUNTERS = {
    "batches": "batches handed over",
    "images": "images handed over",
    "tokens": "tokens of images handed over",
    "slots": "token slots handed over, padding included",
    "bytes_sent": "bytes of batches given to ZeroMQ",
    "batches_shared": "batches handed over in shared memory",
    "batches_reused": "batches handed over that were rendered for another client",
    "slots_abandoned": "shared slots that never came back",
    "failed": "requests that ended in an error of the engine",
    "connections": "connections accepted",
    "disconnections": "connections that ended",
    "keys_accepted": "handshakes with a key on the allow-list",
}


class ServerCollector(Collector):
    """Reads a `Server` at the moment of a scrape.

    Args:
        server: whose counters.
    """

    def __init__(self, server: Server) -> None:
        self._server = server

    def collect(self) -> Iterator[Metric]:
        """The metrics of this moment."""
        server = self._server
        counts = dict(server.counts)
        for name, words in _COUNTERS.items():
            yield CounterMetricFamily(f"navit_{name}", words, value=counts.get(name, 0))
        refused = CounterMetricFamily("navit_refused", "requests and handshakes refused", labels=["reason"])
        asked = CounterMetricFamily("navit_requests", "requests received", labels=["kind"])
        for name, value in counts.items():
            if name.startswith("refused_"):
                refused.add_metric([name.removeprefix("refused_")], value)
            elif name.startswith("requests_"):
                asked.add_metric([name.removeprefix("requests_")], value)
        yield refused
        yield asked
        yield GaugeMetricFamily("navit_ready", "1 where its images are in reach", value=float(server.ready))
        storage = _packer.storage()
        yield CounterMetricFamily("navit_storage_retries", "reads tried again after a fault", value=storage["retries"])
        yield GaugeMetricFamily("navit_storage_waiting", "reads that wait for storage", value=storage["waiting"])
        yield GaugeMetricFamily("navit_memory_bound_bytes", "serve.memory_mb", value=server.bound)
        yield GaugeMetricFamily("navit_memory_used_bytes", "bytes of batches held", value=server.share.used)
        words = "bytes of batches kept for other clients of their plan"
        yield GaugeMetricFamily("navit_memory_kept_bytes", words, value=server.kept.nbytes)
        yield from self._clients()
        yield from self._engines()

    def _clients(self) -> Iterator[Metric]:
        rows: dict[str, tuple[Any, Any]] = {
            "starved_seconds": (CounterMetricFamily, "seconds that a trainer waited for batches"),
            "client_batches": (CounterMetricFamily, "batches handed to a client"),
            "client_images": (CounterMetricFamily, "images handed to a client"),
            "client_tokens": (CounterMetricFamily, "tokens handed to a client"),
            "client_slots": (CounterMetricFamily, "token slots handed to a client, padding included"),
            "client_held_bytes": (GaugeMetricFamily, "bytes that a client holds"),
            "client_outstanding": (GaugeMetricFamily, "requests of a client without an answer"),
        }
        metrics = {n: cls(f"navit_{n}", words, labels=["client", "plan"]) for n, (cls, words) in rows.items()}
        for session in list(self._server.sessions.values()):
            labels = [session.client, session.plan]
            counts = dict(session.counts)
            metrics["starved_seconds"].add_metric(labels, session.starved)
            for name in ("batches", "images", "tokens", "slots"):
                metrics[f"client_{name}"].add_metric(labels, counts.get(name, 0))
            metrics["client_held_bytes"].add_metric(labels, self._server.share.held(session))
            metrics["client_outstanding"].add_metric(labels, session.asked)
        yield from metrics.values()

    def _engines(self) -> Iterator[Metric]:
        stats = GaugeMetricFamily("navit_engine", "statistics of an engine", labels=["plan", "name"])
        failures = CounterMetricFamily("navit_quarantined", "images that failed", labels=["plan", "stage", "reason"])
        for plan, engine in list(self._server.plans.items()):  # a new index may be taken up meanwhile
            for name, value in _flat("", engine.stats()):
                stats.add_metric([plan, name], value)
            for stage, reason, n in engine.failure_counts():
                failures.add_metric([plan, stage, reason], n)
        yield stats
        yield failures


def _flat(prefix: str, table: dict[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in table.items():
        if isinstance(value, dict):
            yield from _flat(f"{prefix}{name}.", value)
        elif isinstance(value, int | float):
            yield prefix + name, float(value)


class _Handler(WSGIRequestHandler):
    timeout = _PATIENCE_S

    def log_message(self, format: str, *args: Any) -> None:
        pass


class _Http(ThreadingMixIn, WSGIServer):
    """An HTTP server with a bounded number of threads, which those who connect and say nothing cannot hold for ever."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, host: str, port: int) -> None:
        self.address_family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        self._free = threading.Semaphore(_READERS)
        self._readers: list[socket.socket] = []  # the first of them first
        super().__init__((host, port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answers on a thread, once one is free."""
        if not self._free.acquire(blocking=False):
            with contextlib.suppress(OSError, IndexError):
                self._readers[0].shutdown(socket.SHUT_RDWR)
            if not self._free.acquire(timeout=1.0):
                super().shutdown_request(request)
                return
        self._readers.append(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Called on its thread when it is answered, or nobody waits any more."""
        self._readers.remove(request)
        super().shutdown_request(request)
        self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Who hangs up early is nobody's fault."""


def _with_probes(server: Server, metrics: Callable[..., Any]) -> Callable[..., Any]:
    """`/ready` and `/live` say 200, or 503 and why not; all else is for `metrics`."""

    def answer(environ: dict[str, Any], start: Callable[..., Any]) -> Any:
        match environ["PATH_INFO"]:
            case "/ready":
                why = server.unready
            case "/live":
                why = server.stuck
            case _:
                return metrics(environ, start)
        start("503 Service Unavailable" if why else "200 OK", [("Content-Type", "text/plain; charset=utf-8")])
        return [f"{why or 'yes'}\n".encode()]

    return answer


def serve_metrics(server: Server, address: str) -> tuple[str, Callable[[], None]]:
    """Starts the HTTP endpoint.

    Args:
        server: whose counters.
        address: `HOST:PORT`, or a port of loopback; port 0 picks one.

    Returns:
        The URL, and a function that stops it.

    Raises:
        ServiceError: the address is malformed or taken.
    """
    host, _, port = address.rpartition(":")
    if not port.isdecimal() or int(port) > 65535:
        raise ServiceError(f"metrics address '{address}' is not allowed; use HOST:PORT, or a port of this host alone")
    host = host or "127.0.0.1"
    registry = CollectorRegistry()
    registry.register(ServerCollector(server))
    try:
        http = _Http(host.strip("[]"), int(port))
    except OSError as e:
        raise ServiceError(
            f"cannot serve metrics on '{address}': {e.strerror}; choose another with --metrics"
        ) from None
    http.set_app(_with_probes(server, make_wsgi_app(registry)))
    thread = threading.Thread(target=http.serve_forever, name="navit-metrics", daemon=True)
    thread.start()

    def stop() -> None:
        http.shutdown()
        http.server_close()
        thread.join()

    return f"http://{host}:{http.server_port}/metrics", stop
