"""The disk cache of remote data: what it saves, and what it survives. Servers, processes and disks are real."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import logging
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from navit_loader import LoaderConfig, PackedLoader, build_index
from navit_loader.errors import ConfigError, IndexFileError, RenderError
from navit_loader.render import engine

from .remote_kit import Faulty, nginx
from .source_kit import encode, sample_files, write_tar, write_tree
from .test_parquet import NAMES, STORED, hugging_face

FILES = sample_files()
SPAN = 32 << 10


def config(cache: Path | None, gb: float = 1.0, **order: Any) -> LoaderConfig:
    kept = {} if cache is None else {"cache_dir": str(cache), "cache_gb": gb}
    return LoaderConfig.from_dict(
        {
            "data": {"batch_size": 2},
            "plan": {
                "sequence_length": 64, "max_tokens": 36, "max_images": 12, "patch_sizes": [4], "seed": 3,
                "order": {"kind": "blocks"} | order, "packing": "exact",
            },
            "render": {"threads": 2, "failure_limit": 1.0, "retries": 2} | kept,
        }
    )  # fmt: skip


def epoch(index: Path, settings: LoaderConfig, number: int = 0) -> tuple[list[bytes], dict[str, Any]]:
    """The batches of an epoch by a loader of its own, so that nothing is at hand in memory, and what it counted."""
    with PackedLoader(index, settings, rank=0, world_size=1) as loader:
        loader.set_epoch(number)
        made = [b"".join(array.tobytes() for array in batch.arrays().values()) for batch in loader]
        time.sleep(0.3)  # what came last is still being written
        return made, loader.stats()


def kept(cache: Path) -> list[Path]:
    return sorted(path for path in cache.iterdir() if path.name[16:17] == "-" and path.suffix != ".part")


def counted(cache: Path) -> int:
    return int(struct.unpack("<QQ", (cache / "book").read_bytes())[0])


def held(cache: Path) -> int:
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in kept(cache))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("cache")
    write_tree(place / "images", FILES)
    members = {name: FILES[name] for name in NAMES}
    members |= {name.rpartition(".")[0] + ".cls": name[1].encode() for name in NAMES}
    write_tar(place / "x.tar", dict(sorted(members.items())))
    labels = [int(name[1]) for name in NAMES]
    for how in ("plain", "snappy"):
        hugging_face(place / f"{how}.parquet", [FILES[name] for name in NAMES], labels, **STORED[how])
    build_index(place / "images", place / "local.arrow")
    return place


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tar of 1,200 images of some 2 KB."""
    place = tmp_path_factory.mktemp("many")
    noise = random.Random(0)
    images = [encode("PNG", noise.randint(16, 32), noise.randint(16, 32), seed=n) for n in range(64)]
    write_tar(place / "x.tar", {f"{n:04}.png": images[n % 64] for n in range(1200)})
    return place


@pytest.fixture
def faulty(place: Path) -> Iterator[Faulty]:
    with Faulty(place) as server:
        yield server
        server.shutdown()


@pytest.mark.parametrize(
    ("what", "order"),
    [(what, order) for what in ("x.tar", "plain.parquet", "snappy.parquet") for order in ("blocks", "permutation")][
        :-1
    ],
)
def test_what_is_held_is_not_fetched_again(place: Path, faulty: Faulty, tmp_path: Path, what: str, order: str) -> None:
    build_index(f"{faulty.url}/{what}", tmp_path / "x.arrow")
    settings = config(tmp_path / "cache", kind=order)
    expected, _ = epoch(place / "local.arrow", config(None, kind=order))
    first, found = epoch(tmp_path / "x.arrow", settings)
    assert first == expected and found["bytes_fetched"] > 0 and found["cache"]["bytes_read"] == 0
    faulty.gets = 0
    again, found = epoch(tmp_path / "x.arrow", settings)
    assert again == expected and found["bytes_fetched"] == 0 and faulty.gets == 0
    assert found["cache"]["bytes_read"] > 0 and held(tmp_path / "cache") == counted(tmp_path / "cache")


def test_local_data_is_not_kept(place: Path, tmp_path: Path) -> None:
    expected, found = epoch(place / "local.arrow", config(None))
    assert "cache" not in found
    got, found = epoch(place / "local.arrow", config(tmp_path / "cache"))
    assert got == expected and "cache" not in found and not (tmp_path / "cache").exists()


def least_recent(order: list[tuple[int, int]], bound: int) -> int:
    """What a cache fetches that lets go of what was used least lately."""
    cache: dict[int, int] = {}
    fetched = 0
    for span, size in order:
        fetched += 0 if span in cache else size
        cache[span] = cache.pop(span, size)
        while sum(cache.values()) > bound:
            del cache[next(iter(cache))]
    return fetched


def test_half_of_the_data_saves_half_of_the_bytes(many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "SPAN_BYTES", SPAN)
    size = (many / "x.tar").stat().st_size
    order = {"block": 16, "window": 2}
    with Faulty(many) as server:
        build_index(f"{server.url}/x.tar", tmp_path / "x.arrow")
        half = config(tmp_path / "cache", size / 2 / 1e9, **order)
        fetched = []
        for number in range(4):
            got, found = epoch(tmp_path / "x.arrow", half, number)
            assert got == epoch(tmp_path / "x.arrow", config(None, **order), number)[0]
            assert held(tmp_path / "cache") <= counted(tmp_path / "cache") <= size / 2
            fetched.append(found["bytes_fetched"])
        server.shutdown()
    # Of random orders of all spans, half of whose bytes are held, the least is a half.
    assert fetched[0] >= 0.95 * size and sum(fetched[1:]) <= 0.6 * 3 * size, fetched


@pytest.mark.parametrize("harm", ["flip", "header", "cut", "empty", "longer"])
def test_what_the_disk_spoils_is_fetched_anew(place: Path, faulty: Faulty, tmp_path: Path, harm: str) -> None:
    build_index(f"{faulty.url}/x.tar", tmp_path / "x.arrow")
    settings = config(tmp_path / "cache")
    expected, _ = epoch(tmp_path / "x.arrow", settings)
    spoilt = kept(tmp_path / "cache")
    for path in spoilt:
        data = bytearray(path.read_bytes())
        at = {"flip": len(data) // 2, "header": 20}.get(harm, 0)
        data[at] ^= 0 if harm in ("cut", "empty", "longer") else 4
        path.write_bytes({"cut": data[:-1], "empty": b"", "longer": data + b"x"}.get(harm, data))
    got, found = epoch(tmp_path / "x.arrow", settings)
    assert got == expected and found["cache"]["spans_damaged"] == len(spoilt) > 0
    assert found["failed"] == 0 and found["bytes_fetched"] > 0
    got, found = epoch(tmp_path / "x.arrow", settings)
    assert got == expected and found["cache"]["spans_damaged"] == found["bytes_fetched"] == 0
    assert held(tmp_path / "cache") == counted(tmp_path / "cache")


def test_an_index_of_other_files_begins_with_nothing(tmp_path: Path) -> None:
    """Of the same names, places, lengths, sizes and first and last bytes, so that nothing else tells them apart."""

    def write(value: int, day: int) -> None:
        files = {}
        for n in range(40):
            picture = np.full((24, 24, 3), value + n, np.uint8)
            picture[:6] = picture[-6:] = 255
            Image.fromarray(picture).save(out := io.BytesIO(), "BMP")
            files[f"{n:02}.bmp"] = out.getvalue()
        write_tar(tmp_path / "x.tar", files)
        os.utime(tmp_path / "x.tar", (day * 86400, day * 86400))

    with Faulty(tmp_path) as server:
        made = []
        for value, day in ((10, 1), (100, 2)):
            write(value, day)
            build_index(f"{server.url}/x.tar", tmp_path / "x.arrow")
            expected, _ = epoch(tmp_path / "x.arrow", config(None))
            for _ in range(2):
                got, found = epoch(tmp_path / "x.arrow", config(tmp_path / "cache"))
                assert got == expected and found["failed"] == 0
            assert found["bytes_fetched"] == 0
            made.append(got)
        assert made[0] != made[1]
        server.shutdown()


def test_what_is_not_ours_in_the_folder_stays(many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "SPAN_BYTES", SPAN)
    cache = tmp_path / "cache"
    with Faulty(many) as server:
        build_index(f"{server.url}/x.tar", tmp_path / "x.arrow")
        expected, _ = epoch(tmp_path / "x.arrow", config(cache))
        (cache / "download.part").write_bytes(b"mine")
        (cache / "vectors.part").mkdir()
        (cache / "notes-1").write_bytes(b"mine")
        # In place of spans there may be links, pipes and files of any length, which are not what was written.
        spans = kept(cache)
        (tmp_path / "else").write_bytes(spans[0].read_bytes())
        for number, path in enumerate(spans):
            path.unlink()
            if number % 3 == 0:
                path.symlink_to(tmp_path / "else")
            elif number % 3 == 1:
                os.mkfifo(path)
            else:
                path.touch()
                os.truncate(path, 1 << 42)
        got, found = epoch(tmp_path / "x.arrow", config(cache))
        assert got == expected and found["cache"]["spans_damaged"] == len(spans) > 3
        assert found["cache"]["spans_unwritten"] == 0
        server.shutdown()
    assert {"download.part", "vectors.part", "notes-1"} <= {path.name for path in cache.iterdir()}
    assert (tmp_path / "else").exists() and held(cache) == counted(cache)


RUN = """
import sys, time, hashlib, resource, logging, json
from collections import Counter
from navit_loader import LoaderConfig, PackedLoader
from navit_loader.render import engine
logging.basicConfig(stream=sys.stdout, format="LOG %(message)s")
index, table, epochs, span, limit = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5])
engine.SPAN_BYTES = span
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
made, counts = hashlib.sha256(), Counter()
for epoch in range(epochs):
    with PackedLoader(index, LoaderConfig.from_dict(table), rank=0, world_size=1) as loader:
        loader.set_epoch(epoch)
        for batch in loader:
            for array in batch.arrays().values():
                made.update(array.tobytes())
        time.sleep(0.3)
        found = loader.stats()
        counts.update(found.pop("cache", {}) | {"bytes_fetched": found["bytes_fetched"], "failed": found["failed"]})
print(made.hexdigest(), json.dumps(counts))
"""


def run(index: Path, cache: Path | None, gb: float, epochs: int = 1, limit: int = 0) -> subprocess.Popen[str]:
    kept = {} if cache is None else {"cache_dir": str(cache), "cache_gb": gb}
    plan = {
        "sequence_length": 64, "max_tokens": 36, "max_images": 12, "patch_sizes": [4], "seed": 3,
        "order": {"kind": "blocks", "block": 16, "window": 2}, "packing": "exact",
    }  # fmt: skip
    table = {"data": {"batch_size": 2}, "plan": plan, "render": {"threads": 1, "memory_mb": 16} | kept}
    command = [sys.executable, "-c", RUN, str(index), json.dumps(table), str(epochs), str(SPAN), str(limit)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def said(process: subprocess.Popen[str]) -> tuple[str, dict[str, int], list[str]]:
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0, out
    lines = out.splitlines()
    made, _, stats = lines[-1].partition(" ")
    return made, json.loads(stats), [line for line in lines[:-1] if line.startswith("LOG ")]


@pytest.fixture
def server(many: Path) -> Iterator[Faulty]:
    with Faulty(many) as server:
        yield server
        server.shutdown()


def test_who_is_killed_while_writing_leaves_nothing_behind(many: Path, server: Faulty, tmp_path: Path) -> None:
    build_index(f"{server.url}/x.tar", tmp_path / "x.arrow")
    cache, third = tmp_path / "cache", (many / "x.tar").stat().st_size / 3e9
    expected, _, _ = said(run(tmp_path / "x.arrow", None, 0))
    for _ in range(2):
        shutil.rmtree(cache, ignore_errors=True)
        # Less than all of it fits, so that every epoch writes.
        process = run(tmp_path / "x.arrow", cache, third, epochs=1000)
        while not (cache.exists() and any(path.suffix == ".part" for path in cache.iterdir())):
            assert process.poll() is None
            time.sleep(0.0005)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        made, found, _ = said(run(tmp_path / "x.arrow", cache, 1.0))
        assert made == expected and found["spans_damaged"] == 0
        assert not any(path.suffix == ".part" for path in cache.iterdir())
        assert held(cache) == counted(cache)


@pytest.mark.parametrize("how", ["limit", "tmpfs"])
def test_a_full_disk_ends_the_writing_and_nothing_else(server: Faulty, tmp_path: Path, how: str) -> None:
    build_index(f"{server.url}/x.tar", tmp_path / "x.arrow")
    cache = tmp_path / "cache"
    cache.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(cache)]
    if how == "tmpfs" and subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting a small disk is not allowed here")
    try:
        made, found, log = said(run(tmp_path / "x.arrow", cache, 1.0, limit=SPAN // 2 if how == "limit" else 0))
        assert made == said(run(tmp_path / "x.arrow", None, 0))[0]
        assert found["spans_unwritten"] > 0 and found["failed"] == 0
        assert len(log) == 1 and f"render.cache_dir = '{cache}'" in log[0]
        if how == "tmpfs":
            assert kept(cache) and held(cache) == counted(cache)
            made, found, _ = said(run(tmp_path / "x.arrow", cache, 1.0))
            assert found["bytes_read"] > 0
    finally:
        if how == "tmpfs":
            subprocess.run(["umount", str(cache)], check=True)


def test_two_processes_share_a_folder_and_its_bound(many: Path, server: Faulty, tmp_path: Path) -> None:
    build_index(f"{server.url}/x.tar", tmp_path / "x.arrow")
    cache, bound = tmp_path / "cache", (many / "x.tar").stat().st_size // 3
    expected, alone, _ = said(run(tmp_path / "x.arrow", None, 0, 3))
    both = [run(tmp_path / "x.arrow", cache, bound / 1e9, 3) for _ in range(2)]
    most = 0
    while any(process.poll() is None for process in both):
        if (cache / "book").exists():
            total = 0
            for entry in os.scandir(cache):
                try:
                    total += 0 if "-" not in entry.name else -(-entry.stat().st_size // 4096) * 4096
                except FileNotFoundError:
                    continue
            most = max(most, total)
        time.sleep(0.005)
    for process in both:
        made, found, _ = said(process)
        assert made == expected and found["bytes_read"] > 0 and found["spans_damaged"] == 0
        assert found["bytes_fetched"] < alone["bytes_fetched"]
    assert bound // 2 < most <= bound
    assert held(cache) == counted(cache) <= bound


def test_another_data_set_takes_room_only_from_one_that_nobody_reads(
    server: Faulty, many: Path, tmp_path: Path
) -> None:
    shutil.copy(many / "x.tar", many / "y.tar")
    bound = (many / "x.tar").stat().st_size / 2e9
    cache = tmp_path / "cache"
    for name in "xy":
        build_index(f"{server.url}/{name}.tar", tmp_path / f"{name}.arrow")
    with PackedLoader(tmp_path / "x.arrow", config(cache, bound), rank=0, world_size=1) as reader:
        list(reader)
        time.sleep(0.3)
        mine = kept(cache)
        epoch(tmp_path / "y.arrow", config(cache, bound))
        assert set(mine) <= set(kept(cache)), "somebody reads them"
    del reader
    epoch(tmp_path / "y.arrow", config(cache, bound))
    assert not set(mine) & set(kept(cache)), "nobody does any more"


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"cache_dir": "/x"}, "cache_gb = 0.0"),
        ({"cache_gb": 4.0}, "cache_dir = ''"),
        ({"cache_dir": "/x", "cache_gb": -1.0}, "cache_gb = -1.0"),
    ],
)
def test_a_folder_and_its_size_go_together(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        LoaderConfig.from_dict({"render": keys})


def test_a_folder_that_cannot_be_used_is_named(faulty: Faulty, tmp_path: Path) -> None:
    build_index(f"{faulty.url}/x.tar", tmp_path / "x.arrow")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(RenderError, match=r"render\.cache_dir = '.*file/cache' cannot be used"):
        PackedLoader(tmp_path / "x.arrow", config(tmp_path / "file/cache"))


def test_redirects_are_followed(place: Path, tmp_path: Path) -> None:
    shutil.copy(place / "x.tar", tmp_path / "x.tar")
    expected, _ = epoch(place / "local.arrow", config(None))
    rules = (
        "location /moved/ { rewrite ^/moved/(.*)$ /$1?ticket=s3cr3t redirect; } location /loop/ { return 302 $uri; }"
    )
    with nginx(tmp_path, rules) as address:
        build_index(f"{address}/moved/x.tar", tmp_path / "x.arrow")
        got, found = epoch(tmp_path / "x.arrow", config(tmp_path / "cache"))
        assert got == expected
        got, found = epoch(tmp_path / "x.arrow", config(tmp_path / "cache"))
        assert got == expected and found["bytes_fetched"] == 0
        with pytest.raises(IndexFileError, match=r"loop/x\.tar.*redirect"):
            build_index(f"{address}/loop/x.tar", tmp_path / "y.arrow")


def test_a_server_without_ranges_is_refused_by_name(place: Path, tmp_path: Path) -> None:
    shutil.copy(place / "x.tar", tmp_path / "x.tar")
    with nginx(tmp_path, "location /whole/ { alias " + f"{tmp_path}/; max_ranges 0; }}") as address:
        with pytest.raises(IndexFileError, match=rf"{address}/whole/x\.tar.*answers no ranges"):
            build_index(f"{address}/whole/x.tar", tmp_path / "x.arrow")


SECRET = "k3y"


def signature(path: str, expires: int) -> str:
    return base64.urlsafe_b64encode(hashlib.md5(f"{expires}{path} {SECRET}".encode()).digest()).decode().rstrip("=")


def test_a_signature_may_expire_and_be_renewed_and_is_never_shown(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    shutil.copy(place / "x.tar", tmp_path / "x.tar")
    expected, _ = epoch(place / "local.arrow", config(None, kind="permutation"))
    rules = (
        f'location /x.tar {{ secure_link $arg_md5,$arg_expires; secure_link_md5 "$secure_link_expires$uri {SECRET}";'
        ' if ($secure_link != "1") { return 403; } if ($request_method = HEAD) { return 403; } }'
    )
    shown, secrets = [], []
    with nginx(tmp_path, rules) as address:

        def sign(seconds: int) -> None:
            expires = int(time.time()) + seconds
            secrets.append(signature("/x.tar", expires))
            (tmp_path / "signed").write_text(f"# of today\n{address}/x.tar?md5={secrets[-1]}&expires={expires}\n")

        with pytest.raises(IndexFileError, match=r"x\.tar.*403"):
            build_index(f"{address}/x.tar", tmp_path / "x.arrow")
        monkeypatch.setenv("NAVIT_SIGNED", str(tmp_path / "signed"))
        sign(100)
        build_index(f"{address}/x.tar", tmp_path / "x.arrow")
        with PackedLoader(tmp_path / "x.arrow", config(None, kind="permutation"), rank=0, world_size=1) as loader:
            batches = iter(loader)
            made = [next(batches)]
            sign(-1)
            with pytest.raises(RenderError, match=rf"{address}/x\.tar#.*403.*NAVIT_SIGNED.*expired") as refused:
                made.extend(batches)
            sign(100)
            made.extend(loader)
            assert loader.failures() == []
        got = [b"".join(array.tobytes() for array in batch.arrays().values()) for batch in made]
        assert got == expected
        shown += [str(refused.value), caplog.text, (tmp_path / "x.arrow").read_bytes().decode("latin1")]
    assert len(secrets) == 3 and not any(secret in text for secret in secrets for text in shown)


@pytest.mark.parametrize("status", [404, 410])
def test_what_a_server_repeats_of_a_signature_is_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    with nginx(tmp_path, f"location / {{ return {status} 'what is $request_uri'; }}") as address:
        (tmp_path / "signed").write_text(f"{address}/x.tar?signature={SECRET}\n")
        monkeypatch.setenv("NAVIT_SIGNED", str(tmp_path / "signed"))
        with pytest.raises(IndexFileError, match=rf"{address}/x\.tar.*{status}") as refused:
            build_index(f"{address}/x.tar", tmp_path / "x.arrow")
    assert SECRET not in str(refused.value)
