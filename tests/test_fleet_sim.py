"""Many daemons: every one of them is asked, and what `bench/fleet_sim.py` simulates behaves as a fleet must."""

from __future__ import annotations

import importlib
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from navit_loader import RemoteLoader

from .service_kit import PLAN, Daemon, make_config, metrics


def test_ranks_that_know_the_same_daemons_ask_all_of_them(tmp_path: Path) -> None:
    """More daemons than batches ahead: were the first of the list asked, the others would idle."""
    config = make_config(tmp_path, PLAN.replace("[4, 8]", "[8]"), batch_size=2)
    with ExitStack() as stack:
        daemons = [stack.enter_context(Daemon(config, args=("--metrics", "0"))) for _ in range(3)]
        known = [daemon.endpoint for daemon in daemons]
        loaders = [stack.enter_context(RemoteLoader(known, rank=r, world_size=2, prefetch=1)) for r in (0, 1)]
        steps = [len(list(loader)) for loader in loaders]
        served = [metrics(daemon)["navit_batches_total"] for daemon in daemons]
    # Batches with masked images are made twice, by any other daemon the second time.
    assert sum(served) >= sum(steps) >= 30
    assert max(served) < 2 * min(served)


@pytest.fixture(scope="module")
def sim() -> Any:
    pytest.importorskip("simpy")
    sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))
    return importlib.import_module("fleet_sim")


def test_simulated_fleets_do_what_arithmetic_says(sim: Any) -> None:
    base = sim.Fleet(20, 10, step_s=1.0, service_s=0.25, warm_s=20, seconds=100)
    assert sim.simulated(base)["starved"] == 0, "twice as many as are needed"
    # Half as many as are needed: half the steps, and the other half of the time is spent waiting.
    short = sim.simulated(sim.replace(base, daemons=2, service_s=0.2))
    assert short["stalled"] == pytest.approx(0.5, abs=0.02) and short["starved"] == pytest.approx(0.5, abs=0.03)
    # The first four of a list, whatever its length: 16 batches a second for trainers that take 40.
    crowd = sim.simulated(sim.replace(base, trainers=40, daemons=20, spread=False))
    assert crowd["stalled"] == pytest.approx(0.6, abs=0.1)
    assert sim.simulated(sim.replace(base, trainers=40, daemons=20))["starved"] < 1e-3


@pytest.mark.parametrize(("silent", "least", "most"), [(False, 0.0, 0.4), (True, 0.3, 1.6)])
def test_a_simulated_failure_costs_what_the_clients_patience_is(
    sim: Any, silent: bool, least: float, most: float
) -> None:
    """Steps of a tenth of a second: four batches ahead bridge less than a silence of a heartbeat and a half."""
    fleet = sim.Fleet(1, 4, step_s=0.1, service_s=0.05, warm_s=5, seconds=60, repair_s=1e9)
    lost = sim.simulated(fleet, [(20.0, 1, silent)])["starved"] * 60
    assert least <= lost <= most
    # Nobody waits for it any more.
    assert sim.simulated(sim.replace(fleet, warm_s=30), [(20.0, 1, silent)])["starved"] == 0
