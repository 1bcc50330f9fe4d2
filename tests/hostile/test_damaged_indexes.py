"""A part of the damaged indexes (`tests/damaged_indexes.py` has all), and what a daemon makes of one."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from navit_loader import LoaderConfig, PackedLoader, RemoteLoader, build_index, open_index
from navit_loader.cli import main
from navit_loader.errors import IndexFileError, NavitError
from navit_loader.index import reader
from navit_loader.render.engine import Engine
from navit_loader.service.server import Server

from ..damaged_indexes import run
from ..source_kit import sample_files, write_tree


@pytest.mark.parametrize("small", [reader.SMALL, 0], ids=["small", "mapped"])
def test_a_damaged_index_is_one_clear_error_or_the_true_stream(tmp_path: Path, small: int) -> None:
    answers = dict(run(60, 11, small, tmp_path))
    true = answers.pop(-1)["stream"]
    ends = [next(iter(answer)) for answer in answers.values()]
    assert set(ends) <= {"stream", "error"}, [
        answer for answer in answers.values() if not {*answer} & {"stream", "error"}
    ]
    assert ends.count("error") > 30
    assert small == 0 or all(answer["stream"] == true for answer in answers.values() if "stream" in answer)


@pytest.fixture
def good(tmp_path: Path) -> Path:
    build_index(write_tree(tmp_path / "images", sample_files()), tmp_path / "x.arrow")
    return tmp_path / "x.arrow"


def zero_width(good: Path, row: int, checked: bool) -> Path:
    """The same index with a width of 0; with its checksums, or as an earlier version wrote it, without."""
    with pa.ipc.open_file(good) as file:
        schema, (batch,) = file.schema, [file.get_batch(0)]
        _, own = file.get_batch_with_custom_metadata(0)
    widths = batch["width"].to_numpy().copy()
    widths[row] = 0
    column = batch.schema.get_field_index("width")
    batch = batch.set_column(column, schema.field(column), pa.array(widths))
    if not checked:
        schema = schema.with_metadata({key: value for key, value in schema.metadata.items() if key != b"navit.check"})
    with pa.ipc.new_file(good, schema) as writer:
        writer.write_batch(batch, custom_metadata=own if checked else None)
    return good


@pytest.mark.parametrize("checked", [True, False])
def test_the_row_is_named(good: Path, checked: bool, capsys: pytest.CaptureFixture[str]) -> None:
    index = open_index(zero_width(good, 17, checked))
    for ask in (index.columns, index.check, index.table, lambda: index.uri(3), index.as_rows):
        with pytest.raises(IndexFileError, match="damaged: row 17 has width 0; build it again"):
            ask()
    for command in ("lint", "info"):
        assert main([command, str(good)]) == 2
        assert "row 17 has width 0" in capsys.readouterr().err


def test_an_index_without_checksums_is_read(good: Path) -> None:
    images = open_index(good).num_rows
    with pa.ipc.open_file(good) as file:
        batch = file.get_batch(0)
    metadata = {key: value for key, value in batch.schema.metadata.items() if key != b"navit.check"}
    with pa.ipc.new_file(good, batch.schema.with_metadata(metadata)) as writer:
        writer.write_batch(batch)
    open_index(good).check()
    with PackedLoader(good) as loader:
        assert sum(batch.num_images for batch in loader) == images


def test_a_daemon_outlives_what_it_cannot_plan(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "SMALL", 0)  # as of a large index, of which a row is looked at when it is planned
    shutil.copy(good, good.with_name("good.arrow"))
    plan = {"sequence_length": 64, "max_tokens": 16, "crop": {"kind": "random_resized"}}
    config = LoaderConfig.from_dict({"data": {"batch_size": 2}, "plan": plan, "serve": {"bind": "tcp://127.0.0.1:0"}})
    with (
        Engine(config, zero_width(good, 17, False)) as broken,
        Engine(config, good.with_name("good.arrow")) as whole,
        Server({"broken": broken, "whole": whole}, config.serve) as server,
    ):
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            for _ in range(2):
                with (
                    pytest.raises(NavitError, match="row 17 is 0 × "),
                    RemoteLoader([server.endpoint], plan="broken", deadline_s=20) as loader,
                ):
                    next(iter(loader))
                with RemoteLoader([server.endpoint], plan="whole", deadline_s=20) as loader:
                    assert sum(batch.num_images for batch in loader) == whole.indexes[0].num_rows
        finally:
            server.stop()
            thread.join()


def test_an_index_that_is_written_over_in_place_ends_nothing(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = LoaderConfig.from_dict({"data": {"batch_size": 1}, "plan": {"sequence_length": 64, "max_tokens": 16}})
    content = good.read_bytes()

    def stream(loader: PackedLoader, spoil: bool) -> list[bytes]:
        found = []
        for batch in loader:
            found.append(np.ascontiguousarray(batch.patches).tobytes())
            if spoil and len(found) == 1:
                good.write_bytes(b"")
        good.write_bytes(content)
        return found

    with PackedLoader(good, config) as loader:
        expected = stream(loader, False)
    with PackedLoader(good, config) as loader:
        assert stream(loader, True) == expected, "a small one is a copy"
    monkeypatch.setattr(reader, "SMALL", 0)
    with PackedLoader(good, config) as loader:
        assert stream(loader, False) == expected
    with PackedLoader(good, config) as loader:
        os.utime(good)
        with pytest.raises(IndexFileError, match="written over while it was in use"):
            next(iter(loader))
    renamed = good.with_name("new.arrow")
    renamed.write_bytes(content)
    with PackedLoader(good, config) as loader:
        steps = iter(loader)
        next(steps)
        os.replace(renamed, good)
        assert sum(1 for _ in steps) == len(expected) - 1, "another file took its place"
