"""Ray itself: the connection to a cluster, and the fleets that are on it.

In: an address. Out: the package `ray`, connected, and a fleet's registry. Apart, since a trainer and whoever launches both come
this way, and since Ray takes liberties with the process that calls it.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from typing import Any

from ..errors import ConfigError, ServiceError, needed, said

NAMESPACE = "navit"
"""Ray's namespace of the registries, whatever namespace a driver has."""

SCHEME = "ray://"
_REACH_S = 5.0


def checked(name: str) -> str:
    """A fleet's name, where it may be one.

    Raises:
        ConfigError: it is no plain word; Ray's own addresses look like one with a port.
    """
    if not name or not all(c.isalnum() or c in "-_" for c in name):
        raise ConfigError(
            f"fleet name '{name}' is not allowed; use letters, digits, '-' and '_'. A fleet is found by its name, as "
            "ray://NAME, and its cluster by RAY_ADDRESS"
        )
    return name


def connected(address: str | None = None, *, alone: bool = False) -> Any:
    """The package `ray`, in touch with a cluster; the one that this process is in already, if it is in one.

    Args:
        address: HOST:PORT of the cluster, `auto` or `local`; None takes RAY_ADDRESS, or the cluster that this host is in.
        alone: where None finds no cluster, one is started for this process.

    Raises:
        ExtraError: Ray is not installed.
        ServiceError: there is no cluster.
    """
    ray = needed("ray")
    if ray.is_initialized():
        return ray
    named = os.environ.get("RAY_ADDRESS") if address in (None, "auto") else address
    tried = named or "auto"
    # Ray would end the process on some signals of its own accord: a trainer has its own way to end.
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM) if main else None
    try:
        _reach(tried)
        found = named if alone and address is None else tried
        ray.init(address=found, log_to_driver=False, configure_logging=False)
    except (OSError, RuntimeError, ValueError) as e:
        raise ServiceError(
            f"no Ray cluster at '{tried}': {said(e)[0]}; start one with 'ray start --head', or say where it is (RAY_ADDRESS, "
            "--ray HOST:PORT)"
        ) from None
    finally:
        if main and before is not None:
            signal.signal(signal.SIGTERM, before)
    return ray


def _reach(address: str) -> None:
    """Fails at once where nobody listens; Ray would try for long."""
    host, _, port = address.removeprefix(SCHEME).partition("/")[0].rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), _REACH_S).close()


def registry(ray: Any, name: str) -> Any:
    """The registry of a fleet.

    Raises:
        ServiceError: there is no such fleet; names those that there are.
    """
    try:
        return ray.get_actor(name, namespace=NAMESPACE)
    except ValueError:
        there = [a["name"] for a in ray.util.list_named_actors(all_namespaces=True) if a["namespace"] == NAMESPACE]
        others = f"there is {', '.join(sorted(there))}" if there else "there is none"
        raise ServiceError(
            f"no fleet '{name}' on the Ray cluster at {ray.get_runtime_context().gcs_address}; {others}. Start one with "
            f"navit-loader fleet --ray --name {name} CONFIG.toml"
        ) from None
