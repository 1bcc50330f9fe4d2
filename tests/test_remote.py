"""Buckets and web servers: the batches of local files, and what happens when servers fail. All servers are real."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from navit_loader import LoaderConfig, PackedLoader, build_index, open_index
from navit_loader.errors import IndexFileError, RenderError
from navit_loader.index.sources import remote, rows
from navit_loader.spread import here

from .remote_kit import Faulty, nginx, s3_server
from .source_kit import encode, sample_files, write_tar, write_tree
from .test_parquet import NAMES, STORED, hugging_face

FILES = sample_files()


def config(order: str = "permutation", **render: Any) -> LoaderConfig:
    return LoaderConfig.from_dict(
        {
            "data": {"batch_size": 2},
            "plan": {
                "sequence_length": 64, "max_tokens": 36, "max_images": 12, "patch_sizes": [4], "seed": 3,
                "order": {"kind": order},
            },
            "render": {"threads": 2, "failure_limit": 1.0} | render,
        }
    )  # fmt: skip


def batches(index: Path, order: str = "permutation") -> list[dict[str, bytes]]:
    with PackedLoader(index, config(order), rank=0, world_size=1) as loader:
        return [{name: array.tobytes() for name, array in batch.arrays().items()} for batch in loader]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same images in every container."""
    place = tmp_path_factory.mktemp("remote")
    write_tree(place / "images", FILES)
    members = {name: FILES[name] for name in NAMES}
    members |= {name.rpartition(".")[0] + ".cls": name[1].encode() for name in NAMES}
    write_tar(place / "x.tar", dict(sorted(members.items())))
    for how in ("plain", "snappy"):
        hugging_face(
            place / f"{how}.parquet", [FILES[name] for name in NAMES], [int(n[1]) for n in NAMES], **STORED[how]
        )
    build_index(place / "images", place / "local.arrow")
    return place


@pytest.fixture(scope="module")
def bucket(place: Path) -> Iterator[Any]:
    with s3_server(place) as client:
        for name, data in FILES.items():
            client.put_object(Bucket="navit", Key=f"images/{name}", Body=data)
        for name in ("x.tar", "plain.parquet", "snappy.parquet"):
            client.upload_file(str(place / name), "navit", f"deep/{name}")
        yield client


@pytest.fixture
def faulty(place: Path) -> Iterator[Faulty]:
    with Faulty(place) as server:
        yield server
        server.shutdown()


@pytest.mark.parametrize("what", ["images/", "deep/x.tar", "deep/plain.parquet", "deep/snappy.parquet"])
def test_a_bucket_gives_the_batches_of_local_files(place: Path, bucket: Any, tmp_path: Path, what: str) -> None:
    done = build_index(f"s3://navit/{what}", tmp_path / "x.arrow")
    assert (done.rows, done.broken) == (60, 0)
    index, local = open_index(tmp_path / "x.arrow"), open_index(place / "local.arrow")
    shared = ["length", "width", "height", "orientation", "format", "label"]
    assert index.table().select(shared).to_pylist() == local.table().select(shared).to_pylist()
    assert index.remote and index.uri(0).startswith(f"s3://navit/{what}")
    for order in ("permutation", "blocks"):
        assert batches(tmp_path / "x.arrow", order) == batches(place / "local.arrow", order)
    again = build_index(f"s3://navit/{what}", tmp_path / "x.arrow", refresh=True)
    assert again.reused == 60
    with PackedLoader(tmp_path / "x.arrow", config("auto")) as loader:
        assert loader.engine.config.plan.order.kind == "blocks"
    with PackedLoader(place / "local.arrow", config("auto")) as loader:
        assert loader.engine.config.plan.order.kind == "permutation"


@pytest.mark.parametrize("what", ["x.tar", "plain.parquet", "snappy.parquet"])
def test_nginx_gives_the_batches_of_local_files(place: Path, tmp_path: Path, what: str) -> None:
    shutil.copy(place / what, tmp_path / what)
    with nginx(tmp_path) as address:
        build_index(f"{address}/{what}", tmp_path / "x.arrow")
        for order in ("permutation", "blocks"):
            assert batches(tmp_path / "x.arrow", order) == batches(place / "local.arrow", order)


def test_neighbours_come_in_one_request_in_block_order(place: Path, faulty: Faulty, tmp_path: Path) -> None:
    build_index(f"{faulty.url}/x.tar", tmp_path / "x.arrow")
    counts = {}
    for order in ("permutation", "blocks"):
        faulty.gets = 0
        batches(tmp_path / "x.arrow", order)
        counts[order] = faulty.gets
    assert counts == {"permutation": 60, "blocks": 1}


@pytest.mark.parametrize("faults", [[503] * 3, ["cut", "cut"], [500, "cut", 503]])
def test_passing_faults_are_outlasted(place: Path, faulty: Faulty, tmp_path: Path, faults: list[Any]) -> None:
    faulty.faults.extend(faults)
    build_index(f"{faulty.url}/x.tar", tmp_path / "x.arrow")
    faulty.faults.extend(faults)
    assert batches(tmp_path / "x.arrow", "blocks") == batches(place / "local.arrow", "blocks")
    assert not faulty.faults


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (503, "after 2 attempts in .*since this may pass"),
        ("cut", "after 2 attempts in .*since this may pass"),
        (403, r"403 Forbidden: \); .*credentials"),
        (400, r"400 Bad Request: \); .*credentials"),
        ("whole", "Range request not supported"),
    ],
)
def test_lasting_faults_fail_the_request_and_mask_nothing(
    faulty: Faulty, tmp_path: Path, fault: Any, said: str
) -> None:
    build_index(f"{faulty.url}/x.tar", tmp_path / "x.arrow")
    faulty.always = fault
    with PackedLoader(tmp_path / "x.arrow", config(retries=1)) as loader:
        with pytest.raises(RenderError, match=rf"{faulty.url}/x.tar#.*{said}"):
            next(iter(loader))
        assert loader.failures() == []
        # The server is well again: the same batch is there.
        faulty.always = "ok"
        assert next(iter(loader)).num_images > 0


@pytest.mark.parametrize("order", ["permutation", "blocks"])
@pytest.mark.parametrize("what", ["x.tar", "images/c0/0000.jpg"])
def test_what_is_gone_or_replaced_is_masked(
    place: Path, faulty: Faulty, bucket: Any, tmp_path: Path, what: str, order: str
) -> None:
    root = tmp_path / "served"
    shutil.copytree(place / "images", root / "images")
    shutil.copy(place / "x.tar", root / "x.tar")
    single = what != "x.tar"
    prefix = f"{tmp_path.name}{order}/"
    if single:
        for name in NAMES[:4]:
            bucket.put_object(Bucket="navit", Key=prefix + name, Body=FILES[name])
        build_index(f"s3://navit/{prefix}", tmp_path / "x.arrow")
        bucket.delete_object(Bucket="navit", Key=prefix + NAMES[0])
        bucket.put_object(Bucket="navit", Key=prefix + NAMES[1], Body=FILES[NAMES[1]] + b"more")
        bucket.put_object(Bucket="navit", Key=prefix + NAMES[2], Body=FILES[NAMES[2]][:-9])
        expected = {"missing", "changed"}
    else:
        faulty.root = root
        build_index(f"{faulty.url}/x.tar", tmp_path / "x.arrow")
        whole = (root / "x.tar").read_bytes()
        (root / "x.tar").write_bytes(whole[: len(whole) // 3])
        expected = {"changed"}
    with PackedLoader(tmp_path / "x.arrow", config(order)) as loader:
        statuses = np.concatenate([batch.status.reshape(-1) for batch in loader])
        assert {failure["reason"] for failure in loader.failures()} == expected
    assert (statuses == 2).sum() == (3 if single else 60)


def test_a_tar_that_is_gone_masks_every_image(faulty: Faulty, tmp_path: Path) -> None:
    build_index(f"{faulty.url}/x.tar", tmp_path / "x.arrow")
    faulty.root = tmp_path
    with PackedLoader(tmp_path / "x.arrow", config()) as loader:
        assert sum(batch.num_images for batch in loader) == 0
        assert len(loader.failures()) == 60
        assert {failure["reason"] for failure in loader.failures()} == {"missing"}


def test_what_cannot_be_indexed_is_named(place: Path, bucket: Any, faulty: Faulty, tmp_path: Path) -> None:
    output = tmp_path / "x.arrow"
    for source, words in (
        ("s3://navit/nothing.tar", "nothing.tar' cannot be read"),
        ("s3://another/images/", "another/images/' cannot be read"),
        ("s3://navit/deep/x.zip", "is no source"),
        ("ftp://host/x.tar", "scheme 'ftp' is not known"),
        (f"{faulty.url}/gone.tar", "gone.tar' cannot be read"),
        (f"{faulty.url}/images/", "images/' cannot be read"),
    ):
        with pytest.raises(IndexFileError, match=words):
            build_index(source, output)
    faulty.always = 403
    with pytest.raises(IndexFileError, match=r"x\.tar"):
        build_index(f"{faulty.url}/x.tar", output)
    truncated = place / "cut.tar"
    truncated.write_bytes((place / "x.tar").read_bytes()[:20000])
    faulty.always = "ok"
    done = build_index(f"{faulty.url}/cut.tar", output)
    assert done.broken == 1 and done.rows > 1
    assert "truncated tar" in open_index(output).quarantine()[0]["reason"]


def test_keys_that_are_no_paths_stop_nothing(bucket: Any, tmp_path: Path) -> None:
    png = encode("PNG", 9, 7)
    good = [f"good/{i:02}.png" for i in range(40)]
    odd = ["a//1.png", "a//2.png", "good/./3.png", "good/17/../4.png", "good/ta\tb.png", "z//"]
    for key in [*good, *odd, "good/", "good/sub/"]:
        bucket.put_object(Bucket="navit", Key=f"odd/{key}", Body=b"" if key.endswith("/") else png)
    done = build_index("s3://navit/odd/", tmp_path / "odd.arrow")
    assert [done.rows, done.broken] == [len(good), 0]
    reason, (count, example) = next((r, found) for r, found in done.left_out.items() if "empty part" in r)
    assert (count, example) == (len(odd), "s3://navit/odd/a//1.png"), reason


def test_a_prefix_in_parts_makes_the_same_index(bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "PART", 16)
    monkeypatch.setattr(remote, "CHUNK", 16)
    one, other = (tmp_path / f"{name}.arrow" for name in ("one", "other"))
    build_index("s3://navit/images/", one)
    build_index("s3://navit/images/", other, spread=here)
    assert one.read_bytes() == other.read_bytes()
    # Each part is told what is known of it, and of no other.
    again = build_index("s3://navit/images/", other, spread=here, refresh=True)
    assert again.reused == again.rows == len(FILES) and one.read_bytes() == other.read_bytes()


def test_local_and_remote_sources_make_one_index(place: Path, faulty: Faulty, tmp_path: Path) -> None:
    write_tree(tmp_path / "here", {"a/1.png": encode("PNG", 20, 30)})
    with pytest.raises(IndexFileError, match="--classes FROM"):
        build_index([tmp_path / "here", f"{faulty.url}/x.tar"], tmp_path / "x.arrow")
    sources = [tmp_path / "here", f"{faulty.url}/x.tar"]
    done = build_index(sources, tmp_path / "x.arrow", classes=["a", "b", "c"])
    assert done.rows == 61
    with PackedLoader(tmp_path / "x.arrow", config()) as loader:
        assert sum(batch.num_images for batch in loader) == 61
