"""Ray clusters of several nodes on this machine, each a raylet with processes of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from .remote_kit import free_port

pytest.importorskip("ray", reason="Ray is not installed; pip install 'packed-navit[ray]' brings it")

import ray
import ray._private.node
from ray.cluster_utils import Cluster

# A node that is killed is noticed after some seconds, in place of twenty.
_SYSTEM = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_timeout_ms": 3000}
_SYSTEM["prestart_worker_first_driver"] = False
_AGENTS = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port")


@contextmanager
def cluster_of(nodes: int) -> Iterator[Any]:
    """A head that takes no daemons, and nodes that do; see `add`. The cluster has what `ray.cluster_utils.Cluster` has."""
    kind = ray._private.node.Node
    start = kind.start_ray_processes

    def start_with_ports(node: Any) -> None:
        # A raylet waits for its agents to say their ports, ten seconds of imports, and ends where they take fifteen. Nothing
        # here needs them, so their ports are said beforehand.
        for agent in _AGENTS:
            port = getattr(node._ray_params, agent)
            Path(node.get_session_dir_path(), f"{agent}_{node._node_id}").write_text(str(port))
        start(node)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "start_ray_processes", start_with_ports)
        head = {"num_cpus": 0, "include_dashboard": False, "no_monitor": True, "_system_config": _SYSTEM, **_small()}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            for _ in range(nodes):
                add(cluster)
            yield cluster
        finally:
            ray.shutdown()
            cluster.shutdown()


def add(cluster: Any) -> Any:
    """One node more, with CPUs for a daemon each of two fleets."""
    return cluster.add_node(num_cpus=2, **_small())


def _small() -> dict[str, Any]:
    small = {"object_store_memory": 78 * 2**20, "include_log_monitor": False}
    return small | {agent: free_port() for agent in _AGENTS}
