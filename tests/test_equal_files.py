"""Images that look alike in every way but their pixels: equal lengths, sizes, names and offsets, each of a colour of its own.

In: the same names in every kind of source, two of each kind, in one index. Out: batches in which each image has its own colour,
so that no cache, table or map on the way may know an image by less than it is.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from navit_loader import LoaderConfig, PackedLoader, build_index, open_index

from .remote_kit import Faulty, s3_server
from .source_kit import write_tar, write_tree

EACH = 40
"""Images of one source. All of them have the same names, and as files the same length."""


def picture(number: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8), colour(number)).save(out, "BMP")
    return out.getvalue()


def colour(number: int) -> tuple[int, int, int]:
    return number % 7 * 30 + 20, number // 7 % 11 * 20 + 10, number // 77 * 9 % 256


def write_parquet(path: Path, files: dict[str, bytes], compression: str) -> None:
    table = pa.table({"image": list(files.values())})
    pq.write_table(table, path, compression=compression, use_dictionary=False, row_group_size=9, write_batch_size=3)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, list[int]]]:
    """An index over two sources of each kind, and the number of each row's colour."""
    place = tmp_path_factory.mktemp("equal")
    kinds = ["folder/", "a.tar", "b.tar", "a.parquet", "b.parquet"]
    groups, start = {}, 0
    for where in ("here", "bucket", "web"):
        for kind in kinds[1:] if where == "web" else kinds:
            for half in ("1", "2"):
                groups[f"{where}/{half}/{kind}"] = start
                start += EACH
    sources: list[str | Path] = []
    with s3_server(place) as client, Faulty(place) as web:
        client.create_bucket(Bucket="equal")
        for name, start in groups.items():
            files = {f"{n:02d}.bmp": picture(start + n) for n in range(EACH)}
            path = place / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if name.endswith("/"):
                write_tree(path, files)
            elif name.endswith(".tar"):
                write_tar(path, files)
            else:
                write_parquet(path, files, "snappy" if "a.p" in name else "none")
            where = name.partition("/")[0]
            if where == "bucket":
                for file in sorted(path.iterdir()) if path.is_dir() else [path]:
                    client.upload_file(str(file), "equal", str(file.relative_to(place)))
            sources.append({"here": path, "bucket": f"s3://equal/{name}", "web": f"{web.url}/{name}"}[where])
        done = build_index(sources, place / "x.arrow")
        assert (done.rows, done.broken) == (EACH * len(groups), 0)
        opened = open_index(place / "x.arrow")
        assert set(opened.table()["length"].to_pylist()) == {len(picture(0))}
        numbers = []
        for row in range(opened.num_rows):
            found = [start for name, start in groups.items() if name.rstrip("/") in opened.uri(row)]
            assert len(found) == 1
            numbers.append(found[0] + row % EACH)
        assert sorted(numbers) == list(range(done.rows))
        yield place / "x.arrow", numbers
        web.shutdown()


@pytest.mark.parametrize("encoded", [False, True])
@pytest.mark.parametrize("order", ["permutation", "sequential", "blocks"])
def test_each_image_has_its_own_pixels(index: tuple[Path, list[int]], order: str, encoded: bool) -> None:
    path, numbers = index
    plan = {"sequence_length": 32, "max_tokens": 4, "max_images": 8, "patch_sizes": [4], "order": {"kind": order}}
    config = LoaderConfig.from_dict(
        {"data": {"batch_size": 4}, "plan": plan | {"resolution": {"kind": "native"}}, "render": {"threads": 2}}
    )
    seen = set()
    with PackedLoader(path, config, rank=0, world_size=1) as loader:
        for batch in loader.encoded() if encoded else loader:
            slots = batch.slots if encoded else batch
            for b, e in np.argwhere(slots.status == 1):
                row = int(slots.image_ids[b, e])
                if encoded:
                    start, length = batch.spans[b, e]
                    own = np.asarray(Image.open(io.BytesIO(batch.data[start : start + length].tobytes()))).reshape(
                        -1, 3
                    )
                else:
                    own = slots.patches[b][slots.segment_ids[b] == e].reshape(-1, 3)
                assert (own == colour(numbers[row])).all(), (open_index(path).uri(row), own[0], colour(numbers[row]))
                seen.add(row)
        assert loader.failures() == []
    assert len(seen) == len(numbers)
