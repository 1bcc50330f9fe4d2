"""Ray clusters of several nodes on this machine, each a raylet with processes of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from .remote_kit import free_port

pytest.importorskip("ray", reason="Ray is not installed; pip install 'navit[ray]' brings it")

import ray._private.node
from ray.cluster_utils import Cluster

# A node that is killed is noticed after some seconds, in place of twenty.
_HEALTH = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_timeout_ms": 3000}
_AGENTS = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port")


class Nodes(Cluster):  # type: ignore[misc]
    """A head that takes no daemons; nodes are added, and taken away as by a power cut.

    A raylet waits for its agents to say their ports, and ends where they are slow to; nothing here needs them, so they are said
    beforehand.
    """

    def __init__(self) -> None:
        head = {"num_cpus": 0, "include_dashboard": False, "_system_config": _HEALTH, **self._small()}
        self._start = ray._private.node.Node.start_ray_processes
        ray._private.node.Node.start_ray_processes = self._start_with_ports
        super().__init__(initialize_head=True, head_node_args=head, shutdown_at_exit=False)

    def add(self) -> Any:
        """A node that takes one daemon."""
        return self.add_node(num_cpus=1, **self._small())

    def kill(self, node: Any) -> None:
        """Ends a node and all that runs there."""
        self.remove_node(node, allow_graceful=False)

    def shutdown(self) -> None:
        """Ends all."""
        ray.shutdown()
        super().shutdown()
        ray._private.node.Node.start_ray_processes = self._start

    @staticmethod
    def _small() -> dict[str, Any]:
        return {"object_store_memory": 78 * 2**20} | {agent: free_port() for agent in _AGENTS}

    def _start_with_ports(self, *args: Any) -> None:  # pragma: no cover
        raise NotImplementedError
