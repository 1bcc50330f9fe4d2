"""Containers that are written anew after they were indexed: nobody is given another image's pixels for the indexed one's.

In: tars and Parquet files, here and on a web server, before and after. Out: the right pixels, or masked images with the reason
`changed`; and an index that `refresh` reads anew.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from navit_loader import LoaderConfig, PackedLoader, build_index, open_index

from .remote_kit import Faulty
from .source_kit import write_tar

KINDS = ["x.tar", "stored.parquet", "packed.parquet"]
COLOURS = {f"{n}.bmp": (20 * n + 9, 200 - 20 * n, 90) for n in range(8)}


def bmp(colour: tuple[int, int, int], side: int = 16) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(out, "BMP")
    return out.getvalue()


def write(path: Path, names: list[str], extra: dict[str, bytes] | None = None) -> Path:
    """A container of these members; equal numbers of members give equal lengths."""
    files = {name: bmp(COLOURS[name]) for name in names} | (extra or {})
    if path.suffix == ".tar":
        return write_tar(path, files)
    compression = "none" if path.stem == "stored" else "snappy"
    pq.write_table(pa.table({"image": list(files.values())}), path, compression=compression, use_dictionary=False)
    return path


@pytest.fixture(params=["here", "web"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and what its files are called."""
    (tmp_path / "served").mkdir()
    if request.param == "here":
        yield tmp_path / "served", f"{tmp_path / 'served'}"
        return
    with Faulty(tmp_path / "served") as server:
        yield tmp_path / "served", server.url
        server.shutdown()


def seen(index: Path, order: str = "permutation") -> tuple[list[tuple[int, ...] | None], list[str]]:
    """The colour of each row, None where it is masked, and the reasons."""
    plan = {"sequence_length": 64, "max_tokens": 16, "patch_sizes": [4], "order": {"kind": order}}
    plan |= {"resolution": {"kind": "native"}}
    config = LoaderConfig.from_dict({"data": {"batch_size": 2}, "plan": plan, "render": {"failure_limit": 1.0}})
    found: list[tuple[int, ...] | None] = [None] * open_index(index).num_rows
    with PackedLoader(index, config, rank=0, world_size=1) as loader:
        for batch in loader:
            for b, e in np.argwhere(batch.status == 1):
                pixels = batch.patches[b][batch.segment_ids[b] == e].reshape(-1, 3)
                found[int(batch.image_ids[b, e])] = tuple(int(v) for v in pixels[0])
        return found, [f"{failure['reason']}: {failure['detail']}" for failure in loader.failures()]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", ["permutation", "blocks"])
def test_another_length_refuses_whatever_the_time(place: tuple[Path, str], kind: str, order: str) -> None:
    folder, where = place
    index, path = folder.parent / "x.arrow", write(folder / kind, list(COLOURS))
    then = path.stat()
    build_index(f"{where}/{kind}", index)
    write(path, list(COLOURS), {"z.bmp": bmp((1, 2, 3), 64)})
    os.utime(path, ns=(then.st_atime_ns, then.st_mtime_ns))
    found, reasons = seen(index, order)
    assert found == [None] * 8
    assert all(said.startswith("changed: ") and f"{then.st_size} when it was indexed" in said for said in reasons)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", ["permutation", "blocks"])
def test_equal_length_is_judged_by_content(place: tuple[Path, str], kind: str, order: str) -> None:
    folder, where = place
    index, path = folder.parent / "x.arrow", write(folder / kind, list(COLOURS))
    before, length = list(COLOURS.values()), path.stat().st_size
    build_index(f"{where}/{kind}", index)
    # A copy has another time and the same content.
    os.utime(path, (1_000_000_000, 1_000_000_000))
    assert seen(index, order) == (before, [])
    moved = [*reversed(list(COLOURS)[:6]), *list(COLOURS)[6:]]
    write(path, moved)
    os.utime(path, (1_500_000_000, 1_500_000_000))
    assert path.stat().st_size == length
    found, reasons = seen(index, order)
    assert found == [None] * 6 + before[6:]
    assert all(said.startswith("changed: the container holds other bytes") for said in reasons)
    build_index(f"{where}/{kind}", index, refresh=True)
    # In a tar rows follow names, in Parquet they follow the file.
    assert seen(index, order) == (before if kind == "x.tar" else [COLOURS[name] for name in moved], [])


@pytest.mark.parametrize("kind", KINDS)
def test_refresh_looks_at_length_and_time(place: tuple[Path, str], kind: str) -> None:
    folder, where = place
    index, path = folder.parent / "x.arrow", write(folder / kind, list(COLOURS)[:4])
    os.utime(path, (1_000_000_000, 1_000_000_000))
    assert build_index(f"{where}/{kind}", index).reused == 0
    assert build_index(f"{where}/{kind}", index, refresh=True).reused == 4
    write(path, list(COLOURS), {"z.bmp": bmp((1, 2, 3), 64)})
    os.utime(path, (1_000_000_000, 1_000_000_000))
    done = build_index(f"{where}/{kind}", index, refresh=True)
    assert (done.rows, done.reused) == (9, 0)
    assert seen(index) == ([*COLOURS.values(), (1, 2, 3)], [])


@pytest.mark.parametrize("kind", KINDS)
def test_an_index_that_does_not_say_is_read_as_before(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / kind, list(COLOURS))
    build_index(path, tmp_path / "x.arrow")
    with pa.memory_map(str(tmp_path / "x.arrow")) as source:
        table = pa.ipc.open_file(source).read_all()
        kept = table.drop_columns(["container_length", "check"]).replace_schema_metadata(table.schema.metadata)
        with pa.ipc.new_file(tmp_path / "old.arrow", kept.schema) as to:
            to.write_table(kept, max_chunksize=65536)
    assert seen(tmp_path / "old.arrow") == seen(tmp_path / "x.arrow")
    assert open_index(tmp_path / "old.arrow").render_fingerprint == open_index(tmp_path / "x.arrow").render_fingerprint
    # What a container had for its length is not known: it is read again, once.
    assert build_index(path, tmp_path / "old.arrow", refresh=True).reused == 0
    assert (tmp_path / "old.arrow").read_bytes() == (tmp_path / "x.arrow").read_bytes()


def test_folders_alone_have_no_such_columns(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.bmp").write_bytes(bmp((1, 2, 3)))
    build_index(tmp_path / "images", tmp_path / "x.arrow")
    assert {"container_length", "check"}.isdisjoint(open_index(tmp_path / "x.arrow").table().column_names)
