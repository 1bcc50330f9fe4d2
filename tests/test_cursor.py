"""The cursor alone, without files or threads: ranks share an epoch among them, and a state goes on wherever it is taken."""

from __future__ import annotations

from itertools import islice

from hypothesis import given
from hypothesis import strategies as st

from navit_loader._packer import Layout
from navit_loader.deliver.cursor import Cursor

worlds = st.integers(1, 5)
sizes = st.integers(1, 7)


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    counts = draw(st.lists(st.integers(1, 30), min_size=1, max_size=6))
    layout = Layout.remote(draw(st.integers(0, 9)), len(counts))
    layout.extend(counts)
    return layout


def cursor(rank: int, world: int, size: int, drop: bool = False) -> Cursor:
    made = Cursor(rank, world, size, drop)
    made.plan_id, made.render_id = "plan", "render"
    return made


def sequences(layout: Layout, first: int, size: int) -> set[int]:
    following = layout.next(first, size)
    assert following is not None and layout.num_sequences is not None
    return set(range(first, min(following, layout.num_sequences)))


@given(layouts(), worlds, sizes, st.booleans())
def test_ranks_take_each_sequence_once_in_equally_many_steps(layout: Layout, world: int, size: int, drop: bool) -> None:
    seen: list[int] = []
    behind = set()
    for rank in range(world):
        one = cursor(rank, world, size, drop)
        steps = list(one.walk(layout))
        assert len(steps) == one.count(lambda _: layout) or not steps
        behind.add(tuple(after for _, after in steps))
        for first, _ in steps:
            seen += sequences(layout, first, size)
    assert len(behind) == 1, "all ranks stand at the same place after each step"
    assert len(seen) == len(set(seen)) and set(seen) == set(range(len(seen)))
    assert drop or len(seen) == layout.num_sequences


@given(layouts(), worlds, sizes, st.integers(0, 9), worlds, sizes)
def test_a_state_goes_on_in_another_world(
    layout: Layout, world: int, size: int, taken: int, other: int, its: int
) -> None:
    seen: list[int] = []
    state = {}
    for rank in range(world):
        one = cursor(rank, world, size)
        for first, after in islice(one.walk(layout), taken):
            seen += sequences(layout, first, size)
            one.next = after
        state = one.state_dict()
    if state["next_sequence"] < (layout.num_sequences or 0):
        for rank in range(other):
            two = cursor(rank, other, its)
            two.load_state_dict(state)
            seen += [n for first, _ in two.walk(layout) for n in sequences(layout, first, its)]
    assert sorted(seen) == list(range(layout.num_sequences or 0))
