"""An index that is replaced in the middle of an epoch: whoever reads it finishes the epoch, and the next one is the new one's.

In: real files, daemons as processes, ranks as threads that wait for one another. Out: batches, compared with those of loaders
that never saw the other index.
"""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest

from navit_loader import LoaderConfig, PackedBatch, PackedLoader, RemoteLoader, build_index
from navit_loader.errors import ConfigError, IndexFileError, ServiceError, StateError

from .service_kit import Daemon, digest
from .source_kit import encode, sample_files, write_tree

TABLE = {
    "data": {"batch_size": 2, "refresh": True},
    "plan": {"sequence_length": 64, "max_tokens": 36, "max_images": 12, "patch_sizes": [4], "seed": 3},
    "render": {"threads": 1},
}
CONFIG = LoaderConfig.from_dict(TABLE)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder of images with its index `x.arrow`, kept as `old.arrow` too."""
    write_tree(tmp_path / "images", sample_files())
    build_index(tmp_path / "images", tmp_path / "x.arrow")
    os.link(tmp_path / "x.arrow", tmp_path / "old.arrow")
    return tmp_path


def refresh(place: Path, name: str = "x.arrow") -> None:
    """Adds images and writes the index anew."""
    for i in range(40):
        (place / f"images/c{i % 3}/new{i}.png").write_bytes(encode("PNG", 20 + i, 30, seed=i))
    build_index(place / "images", place / name, refresh=True)


def epochs(index: Path, *numbers: int) -> list[list[tuple[object, ...]]]:
    """What a loader without the flag gives, from the file as it is now."""
    with PackedLoader(index, replace(CONFIG, data=replace(CONFIG.data, refresh=False))) as loader:
        found = []
        for number in numbers:
            loader.set_epoch(number)
            found.append([digest(batch) for batch in loader])
        return found


def test_the_epoch_at_hand_is_finished_and_the_next_is_new(place: Path) -> None:
    old = epochs(place / "x.arrow", 0, 1)
    with PackedLoader(place / "x.arrow", CONFIG) as loader:
        plan_id = loader.plan_id
        batches = iter(loader)
        found = [digest(batch) for batch in islice(batches, 3)]
        held: list[PackedBatch] = list(islice(batches, 1))
        middle = loader.state_dict()
        refresh(place)
        before = digest(held[0])
        rest = [digest(batch) for batch in batches]
        assert [*found, before, *rest] == old[0]
        assert loader.plan_id == plan_id
        ended = loader.state_dict()
        new = epochs(place / "x.arrow", 0, 1, 2)
        assert len(loader) == len(new[1]) != len(old[1])
        assert [digest(batch) for batch in loader] == new[1]
        assert loader.plan_id != plan_id and digest(held[0]) == before, "a batch outlives the index it was made from"
        # Of the old index, the middle of an epoch is refused, and the start of one is taken: nothing of it was read.
        with pytest.raises(StateError, match=r"other: the index.*middle of epoch 0"):
            loader.load_state_dict(middle)
        loader.load_state_dict(ended)
        assert [digest(batch) for batch in loader] == new[1]
        # Nothing was replaced since: nothing happens.
        engine = loader.engine
        assert [digest(batch) for batch in loader] == new[2] and loader.engine is engine
    # The old file, kept under another name, finishes its epoch.
    with PackedLoader(place / "old.arrow", CONFIG) as loader:
        loader.load_state_dict(middle)
        assert [digest(batch) for batch in loader] == old[0][4:]


def test_without_the_flag_nothing_changes(place: Path) -> None:
    old = epochs(place / "x.arrow", 0, 1)
    with PackedLoader(place / "x.arrow", replace(CONFIG, data=replace(CONFIG.data, refresh=False))) as loader:
        next(iter(loader))
        refresh(place)
        loader.set_epoch(1)
        assert [digest(batch) for batch in loader] == old[1]
        state = loader.state_dict()
    with (
        PackedLoader(place / "x.arrow", replace(CONFIG, data=replace(CONFIG.data, refresh=False))) as loader,
        pytest.raises(StateError, match="other: the index"),
    ):
        loader.load_state_dict(state)


@pytest.mark.parametrize("remainder", ["fill", "drop"])
def test_behind_an_epoch_s_last_batch_a_state_takes_the_new_index(place: Path, remainder: str) -> None:
    config = replace(CONFIG, data=replace(CONFIG.data, batch_size=3, remainder=remainder))
    with PackedLoader(place / "x.arrow", config) as loader:
        batches = iter(loader)
        states = [loader.state_dict() for _ in islice(batches, len(loader))]
    refresh(place)
    with PackedLoader(place / "x.arrow", config) as loader:
        loader.load_state_dict(states[-1])
        assert loader.epoch == 1
        for state in states[:-1]:
            with pytest.raises(StateError, match="middle of epoch 0"):
                loader.load_state_dict(state)
    without = replace(config, data=replace(config.data, refresh=False))
    with PackedLoader(place / "x.arrow", without) as loader:
        with pytest.raises(StateError, match=r"data\.refresh = true read epoch 1"):
            loader.load_state_dict(states[-1])


def test_an_index_with_other_classes_is_refused(place: Path) -> None:
    with PackedLoader(place / "x.arrow", CONFIG) as loader:
        old = [digest(batch) for batch in loader]
        write_tree(place / "images", {"zebra/1.png": encode("PNG", 20, 20)})
        build_index(place / "images", place / "x.arrow")
        with pytest.raises(IndexFileError, match=r"another class table.*--classes"):
            next(iter(loader))
        os.replace(place / "old.arrow", place / "x.arrow")
        loader.set_epoch(0)
        assert [digest(batch) for batch in loader] == old, "the old file is back, and so is its epoch"


def test_a_damaged_new_index_ends_nobody(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    old, *_ = epochs(place / "x.arrow", 0)
    good = (place / "x.arrow").read_bytes()
    with Daemon(write_config(place)) as daemon, PackedLoader(place / "x.arrow", CONFIG) as local:
        for n, content in enumerate([b"", b"half an index", good[: len(good) // 2], good[:-9]]):
            (place / "new").write_bytes(content)
            os.replace(place / "new", place / "x.arrow")
            local.set_epoch(1)
            local.set_epoch(0)
            with RemoteLoader([daemon.endpoint], refresh=True) as loader:
                assert [digest(b) for b in loader] == [digest(b) for b in local] == old, n
            assert daemon.process is not None and daemon.process.poll() is None
        assert "the epoch is read from the index of before" in caplog.text
        assert any("a new index cannot be taken up" in line for line in daemon.log)
        refresh(place, "good.arrow")
        os.replace(place / "good.arrow", place / "x.arrow")
        new, *_ = epochs(place / "x.arrow", 0)
        local.set_epoch(1)
        local.set_epoch(0)
        with RemoteLoader([daemon.endpoint], refresh=True) as loader:
            assert [digest(batch) for batch in loader] == [digest(batch) for batch in local] == new


class Ranks:
    """Two ranks as threads, and what each sees."""

    def __init__(self, paths: list[Path]) -> None:
        self.barrier = threading.Barrier(2, timeout=60)
        self.said = ["", ""]
        self.found: list[object] = [None, None]
        self.rounds = 0
        self.paths = paths

    def agree(self, rank: int, text: str) -> list[str]:
        self.said[rank] = text
        self.barrier.wait()
        said = list(self.said)
        if rank == 0:
            self.rounds += 1
            self.between(self.rounds)
        self.barrier.wait()
        return said

    def between(self, rounds: int) -> None:
        """What happens between two looks."""

    def work(self, rank: int) -> None:
        try:
            with PackedLoader(
                self.paths[rank], CONFIG, rank=rank, world_size=2, agree=lambda text: self.agree(rank, text)
            ) as loader:
                first = [digest(batch) for batch in loader]
                self.barrier.wait()
                if rank == 0:
                    refresh(self.paths[0].parent)
                self.barrier.wait()
                self.found[rank] = (first, [digest(batch) for batch in loader], loader.plan_id)
        except Exception as e:
            self.found[rank] = e

    def run(self) -> list[object]:
        threads = [threading.Thread(target=self.work, args=(rank,)) for rank in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        return self.found


def test_ranks_take_up_the_same_index(place: Path) -> None:
    ranks = Ranks([place / "x.arrow"] * 2)
    one, two = ranks.run()
    assert isinstance(one, tuple) and isinstance(two, tuple), (one, two)
    assert one[2] == two[2] and len(one[1]) == len(two[1]) > len(one[0]) == len(two[0])
    assert set(one[1]).isdisjoint(two[1]) and ranks.rounds == 2


def test_a_rank_that_is_late_to_see_it_is_waited_for(place: Path) -> None:
    class Late(Ranks):
        def between(self, rounds: int) -> None:
            if rounds == 2:  # the first look at the second epoch: only now the file reaches the other host
                os.link(place / "x.arrow", place / "part")
                os.replace(place / "part", place / "other.arrow")

    os.link(place / "old.arrow", place / "other.arrow")
    ranks = Late([place / "x.arrow", place / "other.arrow"])
    one, two = ranks.run()
    assert isinstance(one, tuple) and isinstance(two, tuple), (one, two)
    assert one[2] == two[2] and len(one[1]) == len(two[1]) and ranks.rounds == 3


def test_ranks_with_different_indexes_stop_with_one_error(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("navit_loader.deliver.boundary._PAUSE_S", 0.01)
    found = Ranks([place / "x.arrow", place / "old.arrow"]).run()
    assert all(isinstance(each, IndexFileError) for each in found), found
    assert str(found[0]) == str(found[1])
    assert "at the start of epoch 1: rank 0 has 100 images" in str(found[0]) and "rank 1 has 60 images" in str(found[0])
    with pytest.raises(ConfigError, match="world_size = 2 needs agree"):
        PackedLoader(place / "x.arrow", CONFIG, rank=0, world_size=2)


def write_config(place: Path, index: str = "x.arrow") -> Path:
    path = place / f"{Path(index).stem}.toml"
    path.write_text(
        f'[data]\nindex = "{place / index}"\nbatch_size = 2\nrefresh = true\n[render]\nthreads = 1\n'
        "[serve]\nheartbeat_s = 0.2\n"
        "[plan]\nsequence_length = 64\nmax_tokens = 36\nmax_images = 12\npatch_sizes = [4]\nseed = 3\n"
    )
    return path


def test_a_daemon_serves_both_until_each_client_is_through(place: Path) -> None:
    old = epochs(place / "x.arrow", 0)[0]
    with Daemon(write_config(place)) as daemon:
        ends = [daemon.endpoint]
        with RemoteLoader(ends, refresh=True) as early, RemoteLoader(ends) as fixed:
            batches = iter(early)
            found = [digest(batch) for batch in islice(batches, 2)]
            still = iter(fixed)
            kept = [digest(batch) for batch in islice(still, 1)]
            refresh(place)
            new = epochs(place / "x.arrow", 0, 1)
            with RemoteLoader(ends, refresh=True) as late:
                assert [digest(batch) for batch in late] == new[0], "who comes now gets the new index"
            # The connection breaks in the middle of the epoch: the old index is still there for it.
            early._connection._endpoints[0].hang_up("cut")
            found += [digest(batch) for batch in batches]
            assert found == old
            assert kept + [digest(batch) for batch in still] == old
            assert [digest(batch) for batch in early] == new[1]
            assert early.plan_id != fixed.plan_id
            fixed.set_epoch(0)
            assert [digest(batch) for batch in fixed] == old, "a client without the flag stays where it is"
        # A client that began with the old index, at a daemon that never knew it.
        daemon.kill()
        daemon.start()
        with RemoteLoader(ends, refresh=True) as loader:
            assert [digest(batch) for batch in loader] == new[0]
            refresh_again = place / "images/c1/again.png"
            refresh_again.write_bytes(encode("PNG", 33, 44))
            next(iter(loader))
            build_index(place / "images", place / "x.arrow")
            daemon.kill()
            daemon.start()
            with pytest.raises(ServiceError, match=r"was asked for; plan 'x' is .* not open any more"):
                list(loader)


def test_nobody_else_waits_while_a_new_index_is_opened(place: Path) -> None:
    """The index is a pipe now, whose opening waits for a writer, as a slow disk might make it wait."""
    old = epochs(place / "x.arrow", 0, 1)
    with Daemon(write_config(place)) as daemon:
        with RemoteLoader([daemon.endpoint], timeout_s=20) as loader:
            first = iter(loader)
            found = [digest(batch) for batch in islice(first, 1)]
            (place / "x.arrow").unlink()
            os.mkfifo(place / "x.arrow")
            late: list[object] = []
            before = daemon.threads()
            thread = threading.Thread(target=lambda: late.append(RemoteLoader([daemon.endpoint], connect_timeout_s=60)))
            thread.start()
            while daemon.threads() == before:
                assert thread.is_alive()
            assert found + [digest(batch) for batch in first] == old[0]
            assert [digest(batch) for batch in loader] == old[1]
            assert thread.is_alive()
            os.close(os.open(place / "x.arrow", os.O_WRONLY))
            thread.join(60)
        (client,) = late
        assert isinstance(client, RemoteLoader)
        with client:
            assert [digest(batch) for batch in client] == old[0], "what cannot be opened leaves all as it is"
        assert any("a new index cannot be taken up" in line for line in daemon.log)


def test_replicas_with_different_indexes_never_mix(place: Path) -> None:
    """One daemon never sees the new index. Its client goes on with the other, and each epoch is of one plan alone."""
    old = epochs(place / "x.arrow", 0)[0]
    with Daemon(write_config(place)) as a, Daemon(write_config(place, "old.arrow")) as b:
        with RemoteLoader([a.endpoint, b.endpoint], refresh=True) as loader:
            assert [digest(batch) for batch in loader] == old
            refresh(place)
            new = epochs(place / "x.arrow", 1)[0]
            stale = epochs(place / "old.arrow", 1)[0]
            assert [digest(batch) for batch in loader] in (new, stale)

        def plain() -> None:
            with RemoteLoader([a.endpoint, b.endpoint]) as loader:
                for _ in range(20):
                    list(loader)

        with pytest.raises(ServiceError, match="all endpoints must serve the same"):
            plain()
