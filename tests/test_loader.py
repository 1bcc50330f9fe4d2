"""`PackedLoader` over real files: exact length, exact resumption onto any layout, masked failures, `pack_images`."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from navit_loader import LoaderConfig, PackedLoader, build_index, open_index, pack_images
from navit_loader.batch import ABSENT, FAILED, OK, PackedBatch
from navit_loader.config import Drop, PlanConfig, Resolution
from navit_loader.errors import ConfigError, NavitError, PlanError, StateError
from navit_loader.plan.selection import rows_where

BASE = LoaderConfig.from_dict(
    {
        "data": {"batch_size": 3},
        "plan": {
            "sequence_length": 64,
            "max_tokens": 24,
            "max_images": 8,
            "patch_sizes": [8, 16],
            "patch_run": 5,
            "block_images": 40,
            "prefix_tokens": 1,
            "resolution": {"kind": "uniform", "low": 16, "high": 64},
            "drop": {"kind": "constant", "rate": 0.3},
        },
        "render": {"prefetch": 3, "failure_limit": 1.0},
    }
)


def write_images(folder: Path, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for i in range(count):
        h, w = (int(v) for v in rng.integers(20, 90, 2))
        low = rng.integers(0, 256, (h // 8 + 1, w // 8 + 1, 3)).astype(np.uint8)
        image = Image.fromarray(low).resize((w, h), Image.Resampling.BILINEAR)
        path = folder / f"class{i % 3}" / f"{i:04d}.{'png' if i % 4 == 0 else 'jpg'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two indexes, one of them with images that fail at render: one gone, one cut short, one replaced."""
    root = tmp_path_factory.mktemp("data")
    for name, count in (("a", 130), ("b", 50)):
        write_images(root / name, count, len(name) + count)
        build_index([root / name], root / f"{name}.arrow")
    (root / "a/class1/0001.jpg").unlink()
    cut = root / "a/class2/0002.jpg"
    cut.write_bytes(cut.read_bytes()[:-200])
    Image.new("RGB", (7, 7)).save(root / "a/class0/0003.jpg")
    return root


def mixture(data: Path, **plan: Any) -> LoaderConfig:
    table = [{"index": str(data / "a.arrow"), "weight": 3.0}, {"index": str(data / "b.arrow"), "weight": 1.0}]
    config = LoaderConfig.from_dict({"data": {"mixture": table, "batch_size": 3}})
    return replace(BASE, data=config.data, plan=replace(BASE.plan, virtual_epoch=200, **plan))


def same(a: PackedBatch, b: PackedBatch) -> bool:
    left, right = a.arrays(), b.arrays()
    return left.keys() == right.keys() and all(np.array_equal(left[k], right[k]) for k in left)


def per_sequence(batches: list[PackedBatch]) -> list[tuple[Any, ...]]:
    """What each sequence holds, whatever batch it came in; wholly masked sequences left out."""
    found = []
    for batch in batches:
        for b in range(batch.segment_ids.shape[0]):
            if (batch.status[b] != ABSENT).any():
                parts = [batch.patches, batch.positions, batch.segment_ids, batch.status, batch.image_ids, batch.labels]
                found.append((batch.patch_size, *(p[b].tobytes() for p in parts)))
    return found


def test_length_is_exact_and_each_image_comes_once(data: Path) -> None:
    index = open_index(data / "a.arrow")
    for batch_size, world in ((1, 1), (3, 1), (4, 3)):
        config = replace(BASE, data=replace(BASE.data, batch_size=batch_size))
        seen: list[int] = []
        for rank in range(world):
            with PackedLoader(index, config, rank, world) as loader:
                expected = len(loader)
                batches = list(loader)
                assert len(batches) == expected
                seen += [int(i) for b in batches for i in b.image_ids[b.status != ABSENT]]
                assert loader.state_dict()["epoch"] == 1
        assert sorted(seen) == list(range(index.num_rows))


def test_failures_are_masked_counted_and_named(data: Path) -> None:
    with PackedLoader(data / "a.arrow", BASE) as loader:
        failed = [int(i) for b in loader for i in b.image_ids[b.status == FAILED]]
        ledger = loader.failures()
    assert len(failed) == 3
    assert {entry["uri"].rsplit("/", 1)[1] for entry in ledger} == {"0001.jpg", "0002.jpg", "0003.jpg"}


def test_batches_keep_their_contract(data: Path) -> None:
    with PackedLoader(data / "a.arrow", BASE) as loader:
        limits, classes = loader.config.plan, loader.classes
        for batch in loader:
            tokens = batch.segment_ids.size
            E, M = limits.max_images, limits.max_tokens
            B, L = batch.segment_ids.shape
            cu = batch.cu_seqlens
            assert cu.shape == (B * (E + -(-L // M)) + 1,)
            assert cu[0] == 0 and cu[-1] == tokens and (np.diff(cu) >= 0).all() and np.diff(cu).max() <= M
            assert ((batch.segment_ids >= 0) <= (batch.positions[..., 1] >= 0)).all()
            assert (batch.patches[batch.segment_ids < 0] == 0).all()
            for b, e in np.argwhere(batch.status == OK):
                at = np.flatnonzero(batch.segment_ids[b] == e)
                assert (np.diff(at) == 1).all()
                assert b * L + at[0] in cu and b * L + at[-1] + 1 in cu
                positions = batch.positions[b, at]
                assert (positions[0] == (-1, 0)).all()
                h, w = batch.grids[b, e]
                flat = positions[1:, 0].astype(int) * w + positions[1:, 1]
                assert (np.diff(flat) > 0).all() and flat[-1] < h * w
                name = loader.engine.indexes[0].uri(int(batch.image_ids[b, e])).split("/")[-2]
                assert classes[batch.labels[b, e, 0]] == name


@pytest.mark.parametrize("prefetch", [1, 8])
def test_resume_onto_another_world_and_batch_size_repeats_and_loses_nothing(data: Path, prefetch: int) -> None:
    config = mixture(data)
    config = replace(config, render=replace(config.render, prefetch=prefetch))
    with PackedLoader(None, config) as loader:
        assert loader.engine.plan.num_blocks >= 3
        whole = per_sequence(list(loader))
    assert any(FAILED in np.frombuffer(s[4], np.uint8) for s in whole)
    assert len({s[0] for s in whole}) == 2

    found: list[tuple[Any, ...]] = []
    state: dict[str, Any] | None = None
    for world, batch_size, steps in ((4, 2, 2), (2, 3, 2), (3, 1, None)):
        layouts = replace(config, data=replace(config.data, batch_size=batch_size))
        states, got = [], []
        for rank in range(world):
            with PackedLoader(None, layouts, rank, world) as loader:
                if state is not None:
                    loader.load_state_dict(state)
                for n, batch in enumerate(loader):
                    got.append(batch)
                    states.append(loader.state_dict())
                    if n + 1 == steps:
                        break
        state = states[-1]
        found += per_sequence(got)
    assert sorted(found) == sorted(whole)


def test_breaking_off_and_iterating_again_goes_on(data: Path) -> None:
    with PackedLoader(data / "a.arrow", BASE) as loader:
        whole = list(loader)
        loader.set_epoch(0)
        first = list(islice(loader, 3))
        assert len(loader) == len(whole)
        rest = iter(loader)
        second = [next(rest)]
        assert len(loader) == len(whole) - 3
        second += rest
    assert all(same(a, b) for a, b in zip(whole, first + second, strict=True))


def test_behind_the_last_batch_the_next_epoch_begins(data: Path) -> None:
    with PackedLoader(data / "a.arrow", BASE) as loader:
        whole = [list(loader), list(loader)]
        loader.set_epoch(0)
        taken = [list(islice(loader, len(whole[0])))]
        behind = loader.state_dict()
        assert (behind["epoch"], behind["next_sequence"]) == (1, 0)
        taken.append(list(islice(loader, len(whole[1]))))
        loader.load_state_dict(behind)
        assert len(loader) == len(whole[1])
        taken.append(list(loader))
    expected = [whole[0], whole[1], whole[1]]
    assert all(same(a, b) for x, y in zip(expected, taken, strict=True) for a, b in zip(x, y, strict=True))


def test_a_batch_is_printed_in_a_few_lines(data: Path) -> None:
    with PackedLoader(data / "a.arrow", BASE) as loader:
        batch = next(iter(loader))
    for shown in (repr(batch), repr(batch.to("cpu"))):
        assert f"{batch.num_images} images, {batch.num_tokens} tokens" in shown
        assert f"patches uint8 {list(batch.patches.shape)}" in shown
        assert len(shown) < 1500 and len(shown.splitlines()) < 8


def test_threads_change_nothing(data: Path) -> None:
    runs = []
    for threads in (1, 4):
        config = replace(BASE, render=replace(BASE.render, threads=threads, fetch_threads=threads - 1))
        with PackedLoader(data / "a.arrow", config) as loader:
            runs.append(list(loader))
    assert len(runs[0]) == len(runs[1])
    assert all(same(a, b) for a, b in zip(*runs, strict=True))


def test_buffers_are_not_reused_while_held(data: Path) -> None:
    with PackedLoader(data / "a.arrow", BASE) as loader:
        held = []
        for batch in loader:
            held.append((batch, batch.patches.copy()))
    for batch, copy in held:
        assert np.array_equal(batch.patches, copy)


def test_evaluation_is_complete_and_repeatable(data: Path) -> None:
    config = BASE.for_evaluation(max_tokens=16, patch_size=8)
    with PackedLoader(data / "b.arrow", config) as loader:
        first, second = list(loader), list(loader)
    assert sum(b.num_images for b in first) == 50
    for a, b in zip(first, second, strict=True):
        assert np.array_equal(a.patches, b.patches)


def test_states_of_others_are_refused(data: Path) -> None:
    with PackedLoader(data / "a.arrow", BASE) as loader:
        state = loader.state_dict()
        with pytest.raises(StateError, match=f"plan other.*{loader.plan_id}"):
            loader.load_state_dict(state | {"plan_id": "other"})
        with pytest.raises(StateError, match="renderer"):
            loader.load_state_dict(state | {"render_id": "other"})
        loader.load_state_dict(state | {"render_id": "other"}, other_renderer=True)
        with pytest.raises(StateError, match="keys"):
            loader.load_state_dict({})
        with pytest.raises(StateError, match="next_sequence"):
            loader.load_state_dict(state | {"next_sequence": -1})
    other = replace(BASE, plan=replace(BASE.plan, seed=1))
    with PackedLoader(data / "a.arrow", other) as loader, pytest.raises(StateError, match=r"other: \[plan\]\)"):
        loader.load_state_dict(state)
    with PackedLoader(data / "b.arrow", BASE) as loader, pytest.raises(StateError, match=r"other: the index \("):
        loader.load_state_dict(state)
    other = replace(BASE, render=replace(BASE.render, filter="bilinear"))
    with PackedLoader(data / "a.arrow", other) as loader, pytest.raises(StateError, match=r"other: \[render\]\)"):
        loader.load_state_dict(state)
    moved = replace(BASE, data=replace(BASE.data, batch_size=7))
    with PackedLoader(data / "a.arrow", moved) as loader:
        loader.load_state_dict(state)


@pytest.mark.parametrize(("rank", "world"), [(1, 1), (-1, 2), (0, 0)])
def test_impossible_ranks_are_refused(data: Path, rank: int, world: int) -> None:
    with pytest.raises(ConfigError, match="world_size"):
        PackedLoader(data / "a.arrow", BASE, rank, world)


def test_filters_and_class_weights(data: Path) -> None:
    index = open_index(data / "b.arrow")
    width, label = (index.table().column(n).to_numpy() for n in ("width", "label"))
    rows = rows_where("width >= 40 and label not in (1,) or row == 0", index)
    assert rows.tolist() == np.flatnonzero(((width >= 40) & (label != 1)) | (np.arange(50) == 0)).tolist()
    for expression in ("wide > 3", "width", "__import__('os')", "width >", "width.x > 1"):
        with pytest.raises(ConfigError, match=r"plan\.filter"):
            rows_where(expression, index)
    # Columns of 32 bits, computed in 64; what leaves those is refused and not wrapped around.
    assert rows_where("width * height * 10_000_000 > 0", index).size == index.num_rows
    assert rows_where("width * height * 1e30 > 0", index).size == index.num_rows
    assert rows_where("-width < 0 and width - 100_000_000_000 < 0", index).size == index.num_rows
    for expression in (
        "width * height * 10**18 > 0",
        "width * 10_000_000_000_000_000_000 > 0",
        "-" * 3000 + "width < 0",
    ):
        with pytest.raises(ConfigError, match=r"plan\.filter"):
            rows_where(expression, index)
    with pytest.raises(ConfigError, match="64 bits"):
        rows_where("width * height * width * height * 10_000_000_000_000 > 0", index)
    config = replace(BASE, plan=replace(BASE.plan, filter="width >= 40", virtual_epoch=0))
    with PackedLoader(index, config) as loader:
        ids = sorted(int(i) for b in loader for i in b.image_ids[b.status != ABSENT])
    assert ids == np.flatnonzero(width >= 40).tolist()
    weighted = replace(BASE.plan, class_weights={"class0": 3.0, "class1": 1.0, "class2": 0.0}, virtual_epoch=4000)
    with PackedLoader(index, replace(BASE, plan=weighted)) as loader:
        layout = loader.engine.layout(0)
        rows = [i["row"] for s in layout.batch(0, layout.steps(0, 1, 1, False)).sequences for i in s]
    counts = np.bincount(label[rows], minlength=3) / len(rows)
    assert abs(counts - [0.75, 0.25, 0]).max() < 0.05
    with pytest.raises(ConfigError, match="class9"):
        PackedLoader(index, replace(BASE, plan=replace(BASE.plan, class_weights={"class9": 1.0})))
    with pytest.raises(PlanError, match="leaves no row"):
        PackedLoader(index, replace(BASE, plan=replace(BASE.plan, filter="width > 9999")))


def test_unknown_keys_and_bad_values_are_named() -> None:
    for table, words in (
        ({"plan": {"sead": 3}}, "plan.sead.*did you mean 'seed'"),
        ({"plan": {"drop": {"rate": 1.5}}}, r"plan\.drop\.rate = 1\.5"),
        ({"plan": {"resolution": {"kind": "big"}}}, r"plan\.resolution\.kind = 'big'"),
        ({"plan": {"patch_sizes": []}}, r"patch_sizes = \(\)"),
        ({"plan": {"max_tokens": 5000}}, "max_tokens = 5000.*sequence_length"),
        ({"plan": {"max_images": 0}}, "max_images = 0"),
        ({"plan": {"seed": "x"}}, r"plan\.seed = 'x' must be of type int"),
        ({"plan": {"patch_weights": [-1.0]}}, r"patch_weights = -1\.0"),
        ({"rendr": {}}, r"unknown section '\[rendr\]'"),
        ({"render": {"threads": True}}, r"render\.threads = True"),
    ):
        with pytest.raises(ConfigError, match=words):
            LoaderConfig.from_dict(table)
    with pytest.raises(NavitError, match="no configuration"):
        LoaderConfig.from_toml("/nowhere.toml")


def test_pack_images_takes_what_datasets_give(data: Path) -> None:
    rng = np.random.default_rng(0)
    array = rng.integers(0, 256, (40, 56, 3), np.uint8)
    file = (data / "b/class1/0001.jpg").read_bytes()
    config = LoaderConfig(
        plan=PlanConfig(
            sequence_length=64, max_tokens=64, patch_sizes=(8,), resolution=Resolution(kind="native"), drop=Drop()
        )
    )
    batch = pack_images([array, Image.fromarray(array), array[:, :, 0], file], config, labels=[5, 6, 7, 8])
    order = {int(i): (b, e) for (b, e), i in np.ndenumerate(batch.image_ids) if i >= 0}
    assert sorted(order) == [0, 1, 2, 3]
    for n in range(4):
        assert batch.labels[order[n]][0] == 5 + n
    # At native size nothing is resampled: the patches are the pixels.
    for n in (0, 1):
        b, e = order[n]
        patches = batch.patches[b, batch.segment_ids[b] == e].reshape(5, 7, 8, 8, 3)
        assert np.array_equal(patches.swapaxes(1, 2).reshape(40, 56, 3), array)
    for bad in (np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3)), b"text", np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(PlanError, match=r"images\[1\]"):
            pack_images([array, bad], config)
    with pytest.raises(PlanError, match="no image"):
        pack_images([], config)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_a_loader_starts_without_pandas(data: Path) -> None:
    """pyarrow loads pandas, where it is installed, for a conversion that can be had without: a second at each start."""
    code = (
        "import sys; from navit_loader import PackedLoader; loader = PackedLoader(sys.argv[1]); next(iter(loader)); "
        "loader.close(); sys.exit('pandas' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(data / "b.arrow")]).returncode == 0
