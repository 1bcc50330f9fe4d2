"""Images in Parquet: every way of storing them gives the batches that their files give."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as encryption
import pytest

from navit_loader import LoaderConfig, PackedLoader, build_index, open_index
from navit_loader.errors import IndexFileError

from .source_kit import encode, sample_files, write_tree

FILES = sample_files()
NAMES = sorted(FILES)
CONFIG = LoaderConfig.from_dict(
    {
        "data": {"batch_size": 2},
        "plan": {"sequence_length": 64, "max_tokens": 36, "max_images": 12, "patch_sizes": [4], "seed": 3},
        "render": {"threads": 2, "failure_limit": 1.0},
    }
)
CLASSES = ["c0", "c1", "c2"]
STORED = {
    "plain": {"compression": "none", "use_dictionary": False},
    "dictionary": {"compression": "none", "use_dictionary": True},
    "snappy": {"compression": "snappy"},
    "zstd": {"compression": "zstd", "use_dictionary": False},
    "gzip": {"compression": "gzip"},
    "lz4": {"compression": "lz4"},
    "v2": {"compression": "none", "use_dictionary": False, "data_page_version": "2.0"},
    "v2-snappy": {"compression": "snappy", "data_page_version": "2.0", "write_page_index": True},
    "delta": {
        "compression": "none", "use_dictionary": False, "column_encoding": {"image.bytes": "DELTA_LENGTH_BYTE_ARRAY"},
    },
    "prefixes": {"compression": "none", "use_dictionary": False, "column_encoding": {"image.bytes": "DELTA_BYTE_ARRAY"}},
}  # fmt: skip


def hugging_face(path: Path, rows: list[bytes | None], labels: list[int], **options: Any) -> Path:
    """A file as `datasets` writes it: a struct of bytes and path, and class names in the schema's metadata."""
    features = {
        "image": {"_type": "Image"},
        "label": {"names": CLASSES, "_type": "ClassLabel"},
    }
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("image", image), ("label", pa.int64())], metadata)
    values = [None if data is None else {"bytes": data, "path": f"{i}.jpg"} for i, data in enumerate(rows)]
    table = pa.table({"image": values, "label": labels}, schema)
    # Small pages and row groups, so that there are several of both.
    options = {"row_group_size": 25, "data_page_size": 4096, "write_batch_size": 4} | options
    pq.write_table(table, path, **options)
    return path


def batches(index: Path) -> list[dict[str, bytes]]:
    with PackedLoader(index, CONFIG, rank=0, world_size=1) as loader:
        return [{name: array.tobytes() for name, array in batch.arrays().items()} for batch in loader]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("parquet")
    write_tree(place / "images", FILES)
    build_index(place / "images", place / "folder.arrow")
    return place


@pytest.mark.parametrize("how", STORED)
def test_every_storage_gives_the_batches_of_the_files(folder: Path, tmp_path: Path, how: str) -> None:
    labels = [int(name[1]) for name in NAMES]
    source = hugging_face(tmp_path / "x.parquet", [FILES[name] for name in NAMES], labels, **STORED[how])
    build_index(source, tmp_path / "x.arrow")
    index, expected = open_index(tmp_path / "x.arrow"), open_index(folder / "folder.arrow")
    shared = ["length", "width", "height", "orientation", "format", "label"]
    assert index.table().select(shared).to_pylist() == expected.table().select(shared).to_pylist()
    assert index.classes == CLASSES and index.uri(7) == f"{source}#image.bytes/07"
    offsets = np.concatenate(index.columns()["offset"])
    in_place = STORED[how]["compression"] == "none" and how != "prefixes"
    assert (offsets >= 0).all() == in_place and ((offsets == -1).all() or in_place)
    if in_place:
        raw = source.read_bytes()
        for offset, name in zip(offsets, NAMES, strict=True):
            assert raw[offset : offset + len(FILES[name])] == FILES[name]
    assert batches(tmp_path / "x.arrow") == batches(folder / "folder.arrow")


def test_plain_binary_columns_with_captions(tmp_path: Path) -> None:
    png = encode("PNG", 9, 7)
    table = pa.table(
        {
            "jpg": pa.array([png, None, b"text", png], pa.large_binary()),
            "label": ["dog", "cat", "cat", None],
            "text": ["a dog", "b", "c", None],
            "number": [1, 2, 3, 4],
        }
    )
    pq.write_table(table, tmp_path / "x.parquet")
    done = build_index(tmp_path / "x.parquet", tmp_path / "x.arrow")
    index = open_index(tmp_path / "x.arrow")
    assert (done.rows, done.broken, index.classes) == (2, 2, ["cat", "dog"])
    assert [row["label"] for row in index.table().to_pylist()] == [1, -1]
    assert [row["caption"] for row in index.table().to_pylist()] == ["a dog", None]
    assert next(line["reason"] for line in index.quarantine()) == "the row holds no bytes"
    with PackedLoader(tmp_path / "x.arrow", CONFIG) as loader:
        assert sum(batch.num_images for batch in loader) == 2
    again = build_index(tmp_path / "x.parquet", tmp_path / "x.arrow", refresh=True)
    assert again.rows == 2


def test_class_names_of_the_file_mean_the_same_in_any_table(tmp_path: Path) -> None:
    png = encode("PNG", 9, 7)
    source = hugging_face(tmp_path / "x.parquet", [png] * 3, [2, 0, -1])
    build_index(source, tmp_path / "x.arrow", classes=["c2", "c1", "c0"])
    assert [row["label"] for row in open_index(tmp_path / "x.arrow").table().to_pylist()] == [0, 2, -1]
    done = build_index(hugging_face(tmp_path / "y.parquet", [png] * 2, [1, 3]), tmp_path / "y.arrow")
    assert (done.rows, done.broken) == (1, 1)
    assert "label 3 is out of range" in open_index(tmp_path / "y.arrow").quarantine()[0]["reason"]


class Keys(encryption.KmsClient):
    """A key service that hides nothing."""

    def __init__(self, _: object) -> None:
        super().__init__()

    def wrap_key(self, key: bytes, _: str) -> bytes:
        return base64.b64encode(key)

    def unwrap_key(self, key: bytes, _: str) -> bytes:
        return base64.b64decode(key)


def write_locked(path: Path, image: bytes) -> None:
    """A Parquet file whose images are encrypted, and whose footer is not."""
    how = encryption.CryptoFactory(Keys).file_encryption_properties(
        encryption.KmsConnectionConfig(),
        encryption.EncryptionConfiguration(footer_key="f", column_keys={"c": ["image"]}, plaintext_footer=True),
    )
    table = pa.table({"image": [image]})
    with pq.ParquetWriter(path, table.schema, encryption_properties=how) as out:
        out.write_table(table)


@pytest.mark.parametrize(
    "images",
    [
        lambda data: pa.array(data, pa.binary_view()),
        lambda data: pa.array(data, pa.large_binary()),
        lambda data: pa.array(data, pa.binary()).dictionary_encode(),
    ],
)
def test_binary_of_every_type_is_read(tmp_path: Path, images: Callable[[list[bytes]], pa.Array]) -> None:
    data = [encode("PNG", 9 + i, 7) for i in range(4)]
    pq.write_table(pa.table({"image": images(data), "label": [b"cat", b"dog"] * 2}), tmp_path / "x.parquet")
    done = build_index(tmp_path / "x.parquet", tmp_path / "x.arrow")
    assert done.classes == ["cat", "dog"]
    assert open_index(tmp_path / "x.arrow").table()["width"].to_pylist() == [9, 10, 11, 12]


def test_what_is_no_parquet_of_images_is_said(tmp_path: Path) -> None:
    png = encode("PNG", 9, 7)
    (tmp_path / "text.parquet").write_bytes(b"no parquet at all")
    pq.write_table(pa.table({"a": [png], "b": [png]}), tmp_path / "two.parquet")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "none.parquet")
    pq.write_table(pa.table({"image": [[png, png]]}), tmp_path / "list.parquet")
    pq.write_table(pa.table({"image": pa.array([b"1234"], pa.binary(4))}), tmp_path / "fixed.parquet")
    pq.write_table(pa.table({"image": pa.array([], pa.binary())}), tmp_path / "rows.parquet")
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"image": pa.array([{"path": "1.png"}], struct)}), tmp_path / "paths.parquet")
    write_locked(tmp_path / "locked.parquet", png)
    for name, words in (
        ("text", "cannot be indexed"),
        ("two", "several columns hold binary values"),
        ("none", "no column 'path'"),
        ("list", "column 'image' holds lists of images"),
        ("fixed", "binary values of a fixed size"),
        ("rows", "it has no rows"),
        ("paths", "the rows of column 'image' hold paths and no bytes"),
        ("locked", "is encrypted; write it without a key"),
    ):
        with pytest.raises(IndexFileError, match=words):
            build_index(tmp_path / f"{name}.parquet", tmp_path / "x.arrow")
    # A file whose pages are garbage under a sound footer.
    whole = hugging_face(tmp_path / "x.parquet", [FILES[name] for name in NAMES], [0] * len(NAMES)).read_bytes()
    (tmp_path / "x.parquet").write_bytes(whole[:4] + bytes(len(whole) // 2 - 4) + whole[len(whole) // 2 :])
    with pytest.raises(IndexFileError, match=r"x\.parquet.*broken Parquet"):
        build_index(tmp_path / "x.parquet", tmp_path / "x.arrow")


@pytest.mark.parametrize("how", ["plain", "snappy"])
def test_a_file_that_is_replaced_or_cut_after_indexing_is_noticed(tmp_path: Path, how: str) -> None:
    images, labels = [FILES[name] for name in NAMES], [0] * len(NAMES)
    source = hugging_face(tmp_path / "x.parquet", images, labels, **STORED[how])
    build_index(source, tmp_path / "x.arrow")
    whole = source.read_bytes()
    other = hugging_face(tmp_path / "y.parquet", [encode("PNG", 90, 80, seed=i) for i in range(40)], [0] * 40)
    for changed in (other.read_bytes(), whole[: len(whole) // 2], bytes(len(whole)), b""):
        source.write_bytes(changed)
        with PackedLoader(tmp_path / "x.arrow", CONFIG) as loader:
            statuses = np.concatenate([batch.status.reshape(-1) for batch in loader])
            reasons = {failure["reason"] for failure in loader.failures()}
            assert all(str(source) in failure["uri"] for failure in loader.failures())
        failed = int((statuses == 2).sum())
        assert failed >= 20 and reasons <= {"changed", "corrupt", "missing", "unsupported", "truncated"}, reasons
