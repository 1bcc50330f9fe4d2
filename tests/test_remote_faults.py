"""Remote sources when it matters: servers that hang, builds that are killed, own certificates, little memory, Google's API.

All servers are real and listen on loopback.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from navit_loader import PackedLoader, build_index, open_index
from navit_loader.errors import IndexFileError, RenderError

from .remote_kit import Faulty, authority, gcs_server, nginx, post
from .source_kit import encode, sample_files, write_tar, write_tree
from .test_parquet import hugging_face
from .test_remote import batches, config

FILES = sample_files()


@pytest.fixture
def faulty(tmp_path: Path) -> Iterator[Faulty]:
    (tmp_path / "served").mkdir()
    with Faulty(tmp_path / "served") as server:
        yield server
        server.shutdown()


def test_a_server_that_hangs_is_given_up_and_named(
    faulty: Faulty, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_TIMEOUT", "300ms")
    write_tar(faulty.root / "x.tar", FILES)
    build_index(f"{faulty.url}/x.tar", tmp_path / "x.arrow")
    faulty.always = "hang"
    start = time.monotonic()
    with PackedLoader(tmp_path / "x.arrow", config("blocks", retries=1)) as loader:
        with pytest.raises(RenderError, match=r"x\.tar#.*no whole answer.*after 2 attempts"):
            next(iter(loader))
        assert loader.failures() == []
        assert time.monotonic() - start < 15
        faulty.always = "ok"
        assert sum(batch.num_images for batch in loader) == len(FILES)


KILLED = """
import os, signal, sys
from navit_loader import build_index
left = 2
def progress(at):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
build_index(sys.argv[1], sys.argv[2], progress=progress)
"""


def test_a_killed_build_of_remote_tars_goes_on(faulty: Faulty, tmp_path: Path) -> None:
    for n in range(4):
        part = {name: data for i, (name, data) in enumerate(FILES.items()) if i % 4 == n}
        write_tar(faulty.root / f"x-{n}.tar", part)
    source, output = f"{faulty.url}/x-{{0..3}}.tar", tmp_path / "x.arrow"
    build_index(source, tmp_path / "whole.arrow")
    killed = subprocess.run([sys.executable, "-c", KILLED, source, output], check=False, timeout=60)
    assert killed.returncode == -signal.SIGKILL and not output.exists()
    faulty.gets = 0
    done = build_index(source, output)
    assert done.reused == 45 and faulty.gets == 1, "three tars are known, one is read"
    assert output.read_bytes() == (tmp_path / "whole.arrow").read_bytes()


def test_certificates_of_an_own_authority(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", FILES)
    root, context = authority(tmp_path)
    command = [sys.executable, "-m", "navit_loader", "index"]
    with Faulty(tmp_path, context) as server:
        url = f"{server.url}/x.tar"
        for extra, status in (({}, 2), ({"SSL_CERT_FILE": str(root)}, 0)):
            # The roots are read once in a process.
            done = subprocess.run(
                [*command, url, "-o", str(tmp_path / f"{status}.arrow")],
                capture_output=True, text=True, check=False, timeout=60, env=os.environ | extra,
            )  # fmt: skip
            assert done.returncode == status, done.stderr
            if status:
                assert done.stderr.count("\n") == 1 and url in done.stderr and "certificate" in done.stderr
        server.shutdown()
    assert open_index(tmp_path / "0.arrow").num_rows == 60


def test_googles_api(tmp_path: Path) -> None:
    write_tree(tmp_path / "images", FILES)
    build_index(tmp_path / "images", tmp_path / "local.arrow")
    write_tar(tmp_path / "x.tar", FILES)
    with gcs_server(tmp_path) as address:
        objects = {f"images/{name}": data for name, data in FILES.items()}
        for key, data in (objects | {"deep/x.tar": (tmp_path / "x.tar").read_bytes()}).items():
            name = urllib.parse.quote(key, safe="")
            post(
                f"{address}/upload/storage/v1/b/navit/o?uploadType=media&name={name}", data, "application/octet-stream"
            )
        for what in ("images/", "deep/x.tar"):
            done = build_index(f"gs://navit/{what}", tmp_path / "x.arrow", classes=tmp_path / "local.arrow")
            assert (done.rows, done.broken) == (60, 0)
        index, local = open_index(tmp_path / "x.arrow"), open_index(tmp_path / "local.arrow")
        shared = ["length", "width", "height", "orientation", "format"]
        assert index.table().select(shared).to_pylist() == local.table().select(shared).to_pylist()
        build_index("gs://navit/images/", tmp_path / "x.arrow")
        assert batches(tmp_path / "x.arrow", "blocks") == batches(tmp_path / "local.arrow", "blocks")
        with pytest.raises(IndexFileError, match=r"nothing\.tar' cannot be read"):
            build_index("gs://navit/nothing.tar", tmp_path / "y.arrow")


def test_azure_reads_where_its_environment_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading a blob is plain HTTP with ranges, which nginx answers; it neither checks signatures nor lists."""
    (tmp_path / "box").mkdir()
    write_tar(tmp_path / "box" / "x.tar", FILES)
    build_index(tmp_path / "box" / "x.tar", tmp_path / "local.arrow")
    with nginx(tmp_path) as address:
        for key, value in {"ACCOUNT_NAME": "acc", "ACCOUNT_KEY": "a2V5", "ENDPOINT": address}.items():
            monkeypatch.setenv(f"AZURE_STORAGE_{key}", value)
        monkeypatch.setenv("AZURE_ALLOW_HTTP", "true")
        assert build_index("az://box/x.tar", tmp_path / "x.arrow").rows == len(FILES)
        assert batches(tmp_path / "x.arrow", "blocks") == batches(tmp_path / "local.arrow", "blocks")
        with pytest.raises(IndexFileError, match=r"az://box/nothing\.tar' cannot be read: .*not found"):
            build_index("az://box/nothing.tar", tmp_path / "y.arrow")
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME")
    with pytest.raises(IndexFileError, match=r"az://other/x\.tar' cannot be read: .*Account must be specified"):
        build_index("az://other/x.tar", tmp_path / "y.arrow")


@pytest.mark.parametrize("what", ["x.tar", "x.parquet"])
def test_what_comes_after_the_submitted_batches_is_asked_for_ahead(faulty: Faulty, tmp_path: Path, what: str) -> None:
    """12 MB in the order of the file: one batch is submitted, of a few images, and all of the file is on its way."""
    images = [encode("BMP", 300, 220 + i % 9, seed=i) for i in range(60)]
    if what == "x.tar":
        write_tar(faulty.root / what, {f"{i:04d}.bmp": image for i, image in enumerate(images)})
    else:
        hugging_face(faulty.root / what, list(images), [0] * 60, compression="snappy", row_group_size=5)
    build_index(f"{faulty.url}/{what}", tmp_path / "x.arrow")
    one = config("sequential", prefetch=1)
    one = replace(one, data=replace(one.data, batch_size=1), plan=replace(one.plan, patch_sizes=(16,)))
    before = faulty.gets
    with PackedLoader(tmp_path / "x.arrow", one) as loader:
        first = iter(loader)
        assert next(first).num_images < 20
        everything = (faulty.root / what).stat().st_size // (2 << 20) if what == "x.tar" else 60 // 5
        until = time.monotonic() + 20
        while faulty.gets - before < everything and time.monotonic() < until:
            # A Parquet file's footer is known after the first batch; then the next one asks for the rest.
            time.sleep(0.05)
            if what == "x.parquet" and faulty.gets - before < everything // 2:
                next(first, None)
        assert everything <= faulty.gets - before <= 2 * everything + 3, "each span once"
        rest = sum(batch.num_images for batch in first)
        assert 0 < rest < 60 and not loader.failures()


@pytest.mark.parametrize("what", ["x.tar", "x.parquet"])
def test_spans_and_pages_stay_within_the_memory_allowed(faulty: Faulty, tmp_path: Path, what: str) -> None:
    """16 MB of images where 4 MiB of them may be at hand: every batch is right, and the bound holds up to an image a thread."""
    images = [encode("BMP", 300, 220 + i, seed=i) for i in range(80)]
    names = [f"c0/{i:04d}.bmp" for i in range(80)]
    write_tree(tmp_path / "images", dict(zip(names, images, strict=True)))
    build_index(tmp_path / "images", tmp_path / "local.arrow")
    if what == "x.tar":
        write_tar(
            faulty.root / what, {**dict(zip(names, images, strict=True)), **{n[:-3] + "cls": b"0" for n in names}}
        )
    else:
        hugging_face(faulty.root / what, list(images), [0] * 80, compression="snappy", row_group_size=10)
    build_index(f"{faulty.url}/{what}", tmp_path / "x.arrow", classes=["c0"])
    for order in ("permutation", "blocks"):
        small = config(order, memory_mb=16)
        small = replace(small, plan=replace(small.plan, patch_sizes=(16,)))
        most = 0
        with (
            PackedLoader(tmp_path / "x.arrow", small) as loader,
            PackedLoader(tmp_path / "local.arrow", small) as local,
        ):
            for batch, expected in zip(loader, local, strict=True):
                most = max(most, loader.stats()["bytes_of_parts"])
                assert batch.patches.tobytes() == expected.patches.tobytes()
                assert batch.image_ids.tobytes() == expected.image_ids.tobytes()
            assert not loader.failures()
        assert 0 < most <= (4 << 20) + 4 * (3 << 20), f"{most:,} bytes"
    shutil.rmtree(tmp_path / "images")
