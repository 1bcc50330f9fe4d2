"""The scheduler's promises: within the bound, in order, fair, and never stuck while somebody can go on."""

from hypothesis import given
from hypothesis import strategies as st

from navit_loader.fair import FairShare

steps = st.lists(
    st.one_of(
        st.tuples(st.just("push"), st.integers(0, 4), st.integers(1, 40)),
        st.tuples(st.just("pop"), st.just(0), st.just(0)),
        st.tuples(st.just("release"), st.integers(0, 50), st.just(0)),
        st.tuples(st.just("forget"), st.integers(0, 4), st.just(0)),
    ),
    max_size=120,
)


@given(steps, st.integers(40, 200))
def test_bytes_stay_within_the_bound_and_each_client_is_served_in_order(steps, bound: int) -> None:
    share: FairShare[int, int] = FairShare(bound)
    started: list[tuple[int, int]] = []
    last: dict[int, int] = {}
    for number, (what, a, b) in enumerate(steps):
        if what == "push":
            share.push(a, number, b)
        elif what == "pop":
            if (found := share.pop()) is not None:
                client, item, nbytes = found
                assert item > last.get(client, -1)
                last[client] = item
                started.append((client, nbytes))
            elif share.used == 0:
                assert share.waiting == 0  # whatever waits could go: nothing is held
        elif what == "release" and started:
            share.release(*started.pop(a % len(started)))
        elif what == "forget":
            share.forget(a)
            share.drop(a)
        assert share.used == sum(n for _, n in started) <= bound


def serve(share: FairShare[str, int], sizes: dict[str, int], turns: int) -> dict[str, int]:
    """Serves clients that always want more, one request at a time; bytes served by client."""
    served = dict.fromkeys(sizes, 0)
    for client, size in sizes.items():
        share.push(client, 0, size)
    for _ in range(turns):
        found = share.pop()
        assert found is not None
        client, _, nbytes = found
        served[client] += nbytes
        share.release(client, nbytes)
        share.push(client, 0, sizes[client])
    return served


@given(st.lists(st.integers(1, 20), min_size=2, max_size=64))
def test_clients_of_any_batch_size_get_the_same_bytes(sizes: list[int]) -> None:
    names = {f"c{i}": n for i, n in enumerate(sizes)}
    served = serve(FairShare(1000), names, 40 * len(sizes))
    assert max(served.values()) - min(served.values()) <= 2 * max(sizes)


def test_a_client_that_was_idle_does_not_catch_up() -> None:
    share: FairShare[str, int] = FairShare(1000)
    serve(share, {"early": 10}, 100)
    share.drop("early")
    served = serve(share, {"late": 10}, 100)
    assert served["late"] == 10 * 100
    share.drop("late")
    both = serve(share, {"early": 10, "late": 10}, 100)
    assert abs(both["early"] - both["late"]) <= 20


def test_a_client_that_gives_nothing_back_leaves_room_for_the_others() -> None:
    share: FairShare[str, int] = FairShare(100)
    for greedy in ("a", "b", "c"):
        for _ in range(100):
            share.push(greedy, 0, 1)
        while share.pop() is not None:
            pass
    assert share.used < 100
    share.push("honest", 7, 1)
    for _ in range(1000):
        found = share.pop()
        assert found is not None
        assert found[0] == "honest"
        share.release("honest", 1)
        share.push("honest", 7, 1)


def test_one_request_of_the_whole_bound_is_served() -> None:
    share: FairShare[str, int] = FairShare(100)
    share.push("a", 1, 100)
    assert share.pop() == ("a", 1, 100)
    share.push("b", 2, 100)
    assert share.pop() is None
    share.release("a", 100)
    assert share.pop() == ("b", 2, 100)
