"""The rule by which a fleet grows: within its bounds, in its own time, and to where trainers do not starve. No cluster."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from navit_loader.errors import ConfigError
from navit_loader.fleet.growth import FULL, Decision, Grower, Growth
from navit_loader.fleet.registry import Report


@dataclass
class Simulated:
    """Daemons of one rate and trainers that need so much of it together; a daemon that is wanted serves some seconds later."""

    grower: Grower
    starts_s: float = 3.0
    trainers: int = 2
    now: float = 0.0
    born: list[float] = field(default_factory=list)
    starved: float = 0.0
    busy: float = 0.0
    decisions: list[tuple[float, Decision]] = field(default_factory=list)

    def run(self, seconds: float, need: float) -> None:
        """Goes on, where `need` daemons would be busy all the time."""
        until = self.now + seconds
        while self.now < until:
            self.now += 1.0
            self.born = self.born[: self.grower.wanted]
            self.born += [self.now + self.starts_s] * (self.grower.wanted - len(self.born))
            serving = sum(at <= self.now for at in self.born)
            if serving:
                # What all daemons have counted stands on the first; who goes takes nothing along.
                self.starved += self.trainers * max(0.0, 1 - serving / need) if need else 0.0
                self.busy += min(need, serving)
            first = Report(0, "0", "h", "tcp://h:1", "", self.trainers, self.starved, self.busy)
            others = [Report(i, str(i), "h", "tcp://h:1", "", self.trainers) for i in range(1, serving)]
            if (found := self.grower.look(self.now, [first, *others] if serving else [])) is not None:
                self.decisions.append((self.now, found))


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 8), st.integers(0, 24), st.lists(st.floats(0, 20), min_size=1, max_size=3), st.floats(10, 24))
def test_it_settles_where_nobody_starves_and_no_daemon_is_too_many(
    least: int, more: int, needs: list[float], cool_s: float
) -> None:
    growth = Growth(least, least + more, 0.02, cool_s)
    fleet = Simulated(Grower(growth))
    for need in needs:
        fleet.run(12 * cool_s + 60, need)
        n, steady = fleet.grower.wanted, len(fleet.decisions)
        assert least <= n <= least + more
        assert n == least + more or n >= need * (1 - growth.starved), "trainers do not starve where more are allowed"
        assert n == least or (n - 1) * FULL < need + 1, "one fewer would be too few, or nearly"
        fleet.run(3 * cool_s, need)
        assert len(fleet.decisions) == steady, "and there it stays"
    for (before, _), (after, decision) in zip(fleet.decisions, fleet.decisions[1:], strict=False):
        assert after - before >= (cool_s / 4 if decision.daemons > decision.before else cool_s) - 1
    for _, decision in fleet.decisions:
        assert decision.before // 2 <= decision.daemons <= 2 * decision.before
        assert (decision.daemons > decision.before) == (decision.starved > growth.starved)


def test_one_pause_is_no_lack_and_a_daemon_that_waits_for_its_node_asks_for_no_other() -> None:
    fleet = Simulated(Grower(Growth(1, 8, 0.02, 40.0)))
    fleet.run(60, 0.5)
    fleet.starved += 2 * 3.0  # each trainer waited 3 s for one batch
    fleet.run(60, 0.5)
    assert not fleet.decisions
    fleet.starts_s = 10_000.0
    fleet.run(200, 4.0)
    (_, decision), *others = fleet.decisions
    assert decision.daemons == 2 and not others
    assert str(decision).startswith("daemons=2 before=1 serving=1 trainers=2 starved=")


@pytest.mark.parametrize(
    ("values", "message"), [((0, 1), "0:1"), ((3, 2), "3:2"), ((1, 2, 1.5), "starved"), ((1, 2, 0.1, 0.0), "cool_s")]
)
def test_bounds_that_cannot_be_are_refused(values: tuple[int, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Growth(*values)
