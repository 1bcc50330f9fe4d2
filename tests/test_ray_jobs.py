"""Offline work on Ray: the same bytes as from one process, whatever is killed.

In: one small Ray cluster on this machine, and sources of each kind, broken ones among them. Parts are made small here, on the
side that deals them out.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from navit_loader import build_index, lint, open_index
from navit_loader.cli import main
from navit_loader.errors import IndexFileError
from navit_loader.index import IndexProgress, write
from navit_loader.index.sources import folder, manifest, rows
from navit_loader.shards import pack_shards
from navit_model import NaViT, NaViTConfig
from navit_model.use import vectors
from navit_model.use.opened import open_model

from .source_kit import encode, sample_files, write_tar, write_tree

ray = pytest.importorskip("ray", reason="the package 'ray' is not installed")
from navit_loader.fleet.jobs import OnRay  # noqa: E402

# Ray warns of itself.
pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.filterwarnings("ignore")]

CLASSES = ["c0", "c1", "c2", "c9"]

KILLED = """
import os, signal, sys
from navit_loader import build_index
from navit_loader.fleet.jobs import OnRay
def progress(at):
    if at.images:
        os.kill(os.getpid(), signal.SIGKILL)
with OnRay(sys.argv[1]) as spread:
    build_index(sys.argv[3:], sys.argv[2], classes=["c0", "c1", "c2", "c9"], threads=1, progress=progress, spread=spread)
"""


@pytest.fixture(scope="module")
def spread() -> Iterator[OnRay]:
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        with OnRay() as found:
            yield found
    finally:
        ray.shutdown()
        # Ray lets go of its own processes without waiting for them.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            gc.collect()


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several parts of each kind; on the workers all is as it is."""
    monkeypatch.setattr(rows, "PART", 16)
    # Where one process cuts its batches, so that a part is one.
    monkeypatch.setattr(folder, "CHUNK", 16)
    monkeypatch.setattr(manifest, "CHUNK", 16)
    # Parts of rows then lie in two record batches, unevenly.
    monkeypatch.setattr(write, "BATCH_ROWS", 48)
    monkeypatch.setattr(lint, "PART", 32)
    monkeypatch.setattr(vectors, "SAVE_EVERY", 2)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("sources")
    files = sample_files(90)
    images = list(files.values())
    odd = {"c0/none.jpg": b"no image", "c1/cut.jpg": encode("JPEG", 60, 60)[:900], "c1/notes.txt": b"left out"}
    write_tree(root / "folder", files | odd)
    write_tree(root / "listed", {name.replace("/", "-"): data for name, data in list(files.items())[:40]})
    lines = [f"{name.replace('/', '-')},c{i % 3},caption {i}" for i, name in enumerate(list(files)[:40])]
    (root / "listed/table.csv").write_text("path,label,caption\n" + "\n".join(lines))
    for n in range(3):
        members: dict[str, bytes] = {"broken.jpg": b"no image"}
        for i in range(20):
            members |= {f"{i}.jpg": images[2 * i], f"{i}.cls": b"c%d" % (i % 3), f"{i}.txt": b"said of %d" % i}
        write_tar(root / f"s-{n}.tar", members)
    whole = (root / "s-2.tar").read_bytes()
    (root / "s-2.tar").write_bytes(whole[: len(whole) // 2])
    columns = {"image": [*images[:11], b"no image"], "label": ["c1", "c9"] * 6, "caption": ["a", ""] * 6}
    pq.write_table(pa.table(columns), root / "p.parquet")
    with pa.OSFile(str(root / "a.arrow"), "wb") as file:
        table = pa.table({"image": images[:7], "label": ["c2"] * 7})
        with pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)
    names = ("folder", "listed/table.csv", "s-{0..2}.tar", "p.parquet", "a.arrow")
    return [root / name for name in names]


@pytest.fixture(scope="module")
def index(sources: list[Path]) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write, "BATCH_ROWS", 48)
        build_index(sources, sources[0].parent / "given.arrow", classes=CLASSES)
    return sources[0].parent / "given.arrow"


def same(one: Path, other: Path) -> None:
    """Both files, and what lies beside them under their names."""
    for end in ("", ".quarantine.jsonl"):
        assert Path(f"{one}{end}").read_bytes() == Path(f"{other}{end}").read_bytes()


class Dying:
    """Does what it is told, but for the first time: then its process is killed in the middle."""

    def __init__(self, do: Callable[[Any], Any], mark: Path) -> None:
        self.do, self.mark = do, mark

    def __call__(self, item: Any) -> Any:
        try:
            self.mark.touch(exist_ok=False)
        except FileExistsError:
            return self.do(item)
        threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGKILL)).start()
        self.do(item)
        time.sleep(60)


def dying(spread: OnRay, mark: Path) -> Any:
    """The cluster, with a worker that is killed."""
    # Workers cannot import this file.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    return lambda do, items, *, kept=False: spread(Dying(do, mark), items, kept=kept)


def test_an_index_is_the_same_bytes_and_says_the_same(spread: OnRay, sources: list[Path], tmp_path: Path) -> None:
    for name, given in (("x", CLASSES), ("y", None)):
        # Numbers of tars mean nothing beside names without a class table.
        some = sources if given else [one for one in sources if one.suffix != ".tar"]
        alone = build_index(some, tmp_path / f"{name}1.arrow", classes=given)
        there = build_index(some, tmp_path / f"{name}2.arrow", classes=given, threads=1, spread=spread)
        same(tmp_path / f"{name}1.arrow", tmp_path / f"{name}2.arrow")
        place = {"path": "", "quarantine": "", "seconds": 0.0}
        assert replace(alone, **place) == replace(there, **place) and alone.broken  # type: ignore[arg-type]
    assert not list(tmp_path.glob("*.building"))
    (tmp_path / "bad.arrow").write_bytes(b"no Arrow")
    with pytest.raises(IndexFileError, match=r"bad\.arrow' is no Arrow file"):
        build_index([*sources, tmp_path / "bad.arrow"], tmp_path / "z.arrow", classes=CLASSES, spread=spread)


def test_a_build_whose_driver_was_killed_goes_on(spread: OnRay, sources: list[Path], tmp_path: Path) -> None:
    address = ray.get_runtime_context().gcs_address
    paths = [str(path) for path in sources]
    command = [sys.executable, "-c", KILLED, address, str(tmp_path / "x.arrow"), *paths]
    # The driver's parts are as large as they are, one for each source.
    killed = subprocess.run(command, check=False, timeout=240, cwd=Path(__file__).parent.parent)
    assert killed.returncode == -signal.SIGKILL
    parts = tmp_path / "x.arrow.building/parts"
    before = {path: path.stat().st_mtime_ns for path in parts.glob("*.arrows")}
    assert before
    kept: list[Path] = []

    def progress(at: IndexProgress) -> None:
        if at.share == 1:
            kept.extend(path for path, time in before.items() if path.stat().st_mtime_ns == time)

    build_index(sources, tmp_path / "x.arrow", classes=CLASSES, threads=1, progress=progress, spread=spread)
    # All but those of files, which are asked again whether they have changed.
    assert len(kept) >= len(before) - 2
    build_index(sources, tmp_path / "y.arrow", classes=CLASSES)
    same(tmp_path / "x.arrow", tmp_path / "y.arrow")


def test_shards_are_the_same_though_workers_are_killed(spread: OnRay, index: Path, tmp_path: Path) -> None:
    alone = pack_shards(open_index(index), tmp_path / "alone", max_side=40, shard_images=64)
    killing = dying(spread, tmp_path / "mark")
    there = pack_shards(open_index(index), tmp_path / "there", max_side=40, shard_images=64, spread=killing)
    assert (tmp_path / "mark").exists()
    assert alone == there and alone.shards == 4 and alone.broken
    files = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("alone", "there")]
    assert files[0] == files[1]


def test_the_check_says_the_same(spread: OnRay, index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = []
    for more in ([], ["--ray"]):
        for how in ([], ["--json"]):
            assert main(["lint", str(index), *how, *more]) == 1
            said.append(capsys.readouterr().out)
    assert said[:2] == said[2:]
    assert all(row["uri"] == open_index(index).uri(row["image"]) for row in map(json.loads, said[1].splitlines()))
    assert not Path(f"{index}.linting").exists()
    assert main(["lint", "--ray", str(index), str(index)]) == 2
    assert "give --ray last" in capsys.readouterr().err


def test_vectors_are_the_same_though_their_maker_is_killed(spread: OnRay, index: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    NaViT(NaViTConfig(width=32, depth=2, heads=2, patch_size=8, classes=4)).save_pretrained(tmp_path / "model")
    opened = open_model(tmp_path / "model", torch.device("cpu"))
    loader = opened.run.loader
    plan = replace(loader.plan, sequence_length=64, max_tokens=36)
    loader = replace(loader, data=replace(loader.data, batch_size=1), plan=plan)
    opened = replace(opened, run=replace(opened.run, loader=loader))
    failed = vectors.export(opened, str(index), tmp_path / "alone.npy")
    killing = dying(spread, tmp_path / "mark")
    there = vectors.export(opened, str(index), tmp_path / "there.npy", spread=killing)
    assert (tmp_path / "mark").exists() and failed == there > 0
    assert (tmp_path / "alone.npy").read_bytes() == (tmp_path / "there.npy").read_bytes()
    assert not (tmp_path / "there.npy.part").exists()
