"""Writers of the containers that people have, from the same images: each as its documentation describes the format.

In: images by name in the order of a folder, `CLASS/NAME`. Out: the path of a source. Apart from the tests, which compare the
sources with one another; where the real library is installed they compare with its files too.
"""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from .source_kit import write_tree

Files = Mapping[str, bytes]


def halves(files: Files) -> list[dict[str, bytes]]:
    """The images in two parts, so that a data set has two shards."""
    names = list(files)
    cut = len(names) // 2
    return [{name: files[name] for name in part} for part in (names[:cut], names[cut:]) if part]


def class_of(name: str) -> str:
    return name.partition("/")[0]


def classes_of(files: Files) -> list[str]:
    return sorted({class_of(name) for name in files})


def write_zip(
    path: Path, files: Files, above: str = "", compression: int = zipfile.ZIP_STORED, big: bool = False
) -> Path:
    """A zip; `big` writes the lengths of zip64 before each member."""
    with zipfile.ZipFile(path, "w", compression) as out:
        for name, data in files.items():
            with out.open(above + name, "w", force_zip64=big) as member:
                member.write(data)
    return path


def write_saved(folder: Path, files: Files, compression: str | None = None) -> Path:
    """What `save_to_disk` writes."""
    classes = classes_of(files)
    features = {"image": {"_type": "Image"}, "label": {"names": classes, "_type": "ClassLabel"}}
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema(
        [("image", image), ("label", pa.int64())], {"huggingface": json.dumps({"info": {"features": features}})}
    )
    folder.mkdir(parents=True, exist_ok=True)
    parts = halves(files)
    options = pa.ipc.IpcWriteOptions(compression=compression)
    for i, part in enumerate(parts):
        columns = {
            "image": [{"bytes": data, "path": name} for name, data in part.items()],
            "label": [classes.index(class_of(name)) for name in part],
        }
        with pa.ipc.new_stream(folder / f"data-{i:05d}-of-{len(parts):05d}.arrow", schema, options=options) as out:
            out.write_table(pa.table(columns, schema), max_chunksize=7)
    names = [{"filename": f"data-{i:05d}-of-{len(parts):05d}.arrow"} for i in range(len(parts))]
    (folder / "state.json").write_text(json.dumps({"_data_files": names, "_indices_data_files": None}))
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}))
    return folder


def shard_of(samples: Sequence[Sequence[bytes]], stated: Sequence[bool], head: bytes = b"") -> bytes:
    """A shard of samples, whose fields say their length where `stated`; `head` stands before the first sample."""
    rows = [
        b"".join(struct.pack("<I", len(f)) for f, said in zip(row, stated, strict=True) if said) + b"".join(row)
        for row in samples
    ]
    at, bounds = 4 + 4 * (len(rows) + 1) + len(head), []
    for row in [*rows, b""]:
        bounds.append(at)
        at += len(row)
    return struct.pack(f"<I{len(bounds)}I", len(rows), *bounds) + head + b"".join(rows)


def write_mds(folder: Path, files: Files, kind: str = "bytes", said: Mapping[str, Any] | None = None) -> Path:
    """An MDS data set with the columns image, label (a text) and number."""
    folder.mkdir(parents=True, exist_ok=True)
    shards = []
    columns = {"column_names": ["image", "label", "number"], "column_encodings": [kind, "str", "int"]}
    columns["column_sizes"] = [None, None, 8]  # type: ignore[list-item]
    for i, part in enumerate(halves(files)):
        rows = [(data, class_of(name).encode(), struct.pack("<q", 7)) for name, data in part.items()]
        whole = shard_of(rows, (True, True, False), json.dumps(columns).encode())
        name = f"shard.{i:05d}.mds"
        (folder / name).write_bytes(whole)
        raw = {"basename": name, "bytes": len(whole), "hashes": {}}
        shards.append({**columns, "format": "mds", "version": 2, "compression": None, "hashes": [], "raw_data": raw})
        shards[-1] |= {"samples": len(rows), "size_limit": 1 << 26, "zip_data": None, **(said or {})}
    (folder / "index.json").write_text(json.dumps({"version": 2, "shards": shards}))
    return folder


def write_litdata(
    folder: Path, files: Files, kinds: tuple[str, str] = ("jpeg", "str"), arrow: bool = False, **said: Any
) -> Path:
    """A LitData data set of {"image": …, "label": …}; with `arrow` as newer versions write plain values."""
    folder.mkdir(parents=True, exist_ok=True)
    leaf = {"type": None, "context": None, "children_spec": []}
    spec = [1, {"type": "builtins.dict", "context": '["image", "label"]', "children_spec": [leaf, leaf]}]
    chunks = []
    for i, part in enumerate(halves(files)):
        rows = [(data, class_of(name).encode()) for name, data in part.items()]
        if arrow:
            table = pa.table({"image": [row[0] for row in rows], "label": [row[1].decode() for row in rows]})
            sink = pa.BufferOutputStream()
            with pa.ipc.new_file(sink, table.schema) as out:
                out.write_table(table, max_chunksize=5)
            end = sink.getvalue().to_pybytes()
            head = 4 + 4 * (len(rows) + 1)
            whole = struct.pack(f"<{len(rows) + 2}I", len(rows), *[head] * (len(rows) + 1)) + end
            whole += struct.pack("<I", len(end)) + b"LDARW01\0"
        else:
            whole = shard_of(rows, (True, True))
        (folder / f"chunk-0-{i}.bin").write_bytes(whole)
        chunks.append({"chunk_bytes": len(whole), "chunk_size": len(rows), "dim": None, "filename": f"chunk-0-{i}.bin"})
    config = {"compression": None, "encryption": None, "data_format": kinds, "data_spec": json.dumps(spec)}
    config |= {"item_loader": "PyTreeLoader", **said}
    (folder / "index.json").write_text(json.dumps({"chunks": chunks, "config": config}))
    return folder


def write_metadata(folder: Path, files: Files, end: str) -> Path:
    """A folder of images with `metadata` beside them."""
    write_tree(folder, files)
    rows = [{"file_name": name, "label": class_of(name)} for name in files]
    if end == "csv":
        lines = ["file_name,label", *(f"{row['file_name']},{row['label']}" for row in rows)]
        (folder / "metadata.csv").write_text("\n".join(lines))
    elif end == "jsonl":
        (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    else:
        pq.write_table(pa.Table.from_pylist(rows), folder / "metadata.parquet")
    return folder


def write_coco(folder: Path, files: Files, **said: Any) -> Path:
    """Images, and the `instances` of one box each."""
    write_tree(folder / "val2017", files)
    classes = classes_of(files)
    names = list(files)
    content = {
        "images": [{"id": 100 + i, "file_name": name, "width": 1, "height": 1} for i, name in enumerate(names)],
        "categories": [{"id": 10 * (i + 1), "name": name} for i, name in enumerate(classes)],
        "annotations": [
            {
                "id": i,
                "image_id": 100 + i,
                "category_id": 10 * (1 + classes.index(class_of(name))),
                "bbox": [0, 0, 1, 1],
            }
            for i, name in enumerate(names)
        ],
    } | said
    (folder / "annotations").mkdir(exist_ok=True)
    path = folder / "annotations/instances_val2017.json"
    path.write_text(json.dumps(content))
    return path
