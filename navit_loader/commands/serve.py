"""`navit-loader serve CONFIG`: the daemon.

In: one TOML file per plan. Out: one line on stdout when it is ready, logs on stderr, and an exit status for
supervisors: 0 after a drain, 2 for an error that navit raises on purpose, 128 + the signal's number when a second
signal cut the drain.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..shown import answer, log_to_stderr, say
from . import add_configs, add_output, configs_of


def add(commands: Any) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "serve",
        examples=(
            "serve config.toml",
            "serve config.toml --bind tcp://0.0.0.0:5780 --keys keys/server --metrics 9100",
        ),
        help="answer requests for batches over ZeroMQ",
    )
    add_configs(parser, "+")
    parser.add_argument("--bind", metavar="ADDRESS", help="tcp://HOST:PORT or ipc://PATH; over serve.bind")
    parser.add_argument("--keys", type=Path, metavar="FOLDER", help="made by navit-loader keys; over serve.keys")
    parser.add_argument(
        "--metrics", metavar="[HOST:]PORT", help="Prometheus over HTTP, by default of loopback; over serve.metrics"
    )
    add_output(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Serves until a signal.

    Raises:
        NavitError: a bad configuration or index, an address that is taken or not allowed, bad keys.
    """
    from ..render.engine import Engine
    from ..service.metrics import serve_metrics
    from ..service.security import ServerKeys
    from ..service.server import Server, raise_file_limit

    log_to_stderr()
    configs = configs_of(args.config)
    given: dict[str, Any] = {
        name: str(value) for name in ("bind", "keys", "metrics") if (value := getattr(args, name)) is not None
    }
    serve = replace(next(iter(configs.values())).serve, **given)
    keys = ServerKeys.read(serve.keys) if serve.keys else None
    raise_file_limit()
    with contextlib.ExitStack() as stack:
        engines = {}
        for name, config in configs.items():
            engines[name] = Engine(config, shared=True)
            stack.callback(engines[name].close)
        server = stack.enter_context(Server(engines, serve, keys))
        server.stop_on_signals()
        if serve.metrics:
            url, stop = serve_metrics(server, serve.metrics)
            stack.callback(stop)
            say(f"navit-loader: metrics at {url}")
        plans = ", ".join(f"{name} {engine.plan_id[:16]}" for name, engine in engines.items())
        served = {name: engine.plan_id for name, engine in engines.items()}
        answer({"endpoint": server.endpoint, "plans": served, "metrics": serve.metrics and url})
        say(f"navit-loader: serving plan {plans} on {server.endpoint}")
        _tell_supervisor("READY=1")
        server.run(draining=lambda: _tell_supervisor("STOPPING=1"))
    return 0


def _tell_supervisor(state: str) -> None:
    """Systemd's notification protocol (sd_notify): one datagram, where there is somebody to tell."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@"):
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.connect(address.replace("@", "\0", 1) if address[0] == "@" else address)
        notify.send(state.encode())
