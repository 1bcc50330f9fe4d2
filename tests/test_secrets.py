"""Passwords and signatures of addresses: refused where an index would keep them, and never printed, logged or stored."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from navit_loader import PackedLoader, build_index, open_index
from navit_loader.errors import IndexFileError, NavitError, RenderError

from .remote_kit import Faulty
from .source_kit import sample_files, write_tar
from .test_remote import batches, config

SECRET = "s3cr3tS1gnature"
FILES = sample_files()


@pytest.fixture
def faulty(tmp_path: Path) -> Iterator[Faulty]:
    (tmp_path / "served").mkdir()
    with Faulty(tmp_path / "served") as server:
        write_tar(server.root / "x.tar", FILES)
        yield server
        server.shutdown()


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("http://user:{}@HOST/x.tar", "user and password"),
        ("http://user:{}@HOST/x-{{0..3}}.tar", "user and password"),
        ("http://{}@HOST/images/", "user and password"),
        ("http://HOST/x.tar?X-Amz-Expires=60&X-Amz-Signature={}", "a query"),
        ("s3://bucket/x.tar?sig={}", "a query"),
        ("https://HOST?token={}", "a query"),
        ("ftp://user:{}@HOST/x.tar", "user and password"),
    ],
)
def test_an_address_with_a_secret_is_refused_without_it(
    faulty: Faulty, tmp_path: Path, address: str, words: str
) -> None:
    url = address.format(SECRET).replace("HOST", faulty.url.removeprefix("http://"))
    command = [sys.executable, "-m", "navit_loader", "index", url, "-o", tmp_path / "x.arrow"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2 and words in done.stderr and ("netrc" in done.stderr)
    assert SECRET not in done.stdout + done.stderr
    assert SECRET not in "".join(path.read_bytes().decode("latin1") for path in tmp_path.glob("x.arrow*"))


@pytest.mark.parametrize("entry", ["machine 127.0.0.1", "default"])
def test_credentials_come_from_netrc(
    faulty: Faulty, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry: str
) -> None:
    build_index(f"{faulty.url}/x.tar", tmp_path / "open.arrow")
    faulty.login = f"user:{SECRET}"
    (tmp_path / "netrc").write_text(
        f"machine elsewhere login other password no\n{entry}\n  login user\n  password {SECRET}\n"
    )
    program = (
        "import sys; from navit_loader import LoaderConfig, PackedLoader, build_index\n"
        "build_index(sys.argv[1], sys.argv[2]); config = LoaderConfig.from_dict({'plan': {'sequence_length': 256}})\n"
        f"assert sum(batch.num_images for batch in PackedLoader(sys.argv[2], config)) == {len(FILES)}"
    )
    command = [sys.executable, "-c", program, f"{faulty.url}/x.tar", str(tmp_path / "x.arrow")]
    # They are read once in a process and host.
    for netrc, works in (("netrc", True), ("nothing", False)):
        monkeypatch.setenv("NETRC", str(tmp_path / netrc))
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert (done.returncode == 0) == works, done.stderr
        assert SECRET not in done.stdout + done.stderr
    assert "401 Unauthorized" in done.stderr
    assert open_index(tmp_path / "x.arrow").render_fingerprint == open_index(tmp_path / "open.arrow").render_fingerprint
    assert SECRET.encode() not in (tmp_path / "x.arrow").read_bytes()


def with_password(index: Path, url: str) -> None:
    """The index as one of before, which took such addresses."""
    with pa.memory_map(str(index)) as file:
        reader = pa.ipc.open_file(file)
        kept = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        # No checksums stood in such an index.
        told = {key: value for key, value in reader.schema.metadata.items() if key != b"navit.check"}
        schema = reader.schema.with_metadata(told)
        at = schema.get_field_index("shard")
        made = [
            batch.set_column(at, schema.field(at), pa.DictionaryArray.from_arrays(batch["shard"].indices, [url]))
            for batch in kept
        ]
        data = pa.BufferOutputStream()
        with pa.ipc.new_file(data, schema) as out:
            for batch in made:
                out.write(batch)
    index.write_bytes(data.getvalue())


def test_an_older_index_with_a_password_is_read_and_does_not_show_it(
    faulty: Faulty, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "x.arrow"
    build_index(f"{faulty.url}/x.tar", path)
    whole = batches(path, "blocks")
    with_password(path, f"{faulty.url}/x.tar".replace("http://", f"http://user:{SECRET}@"))
    assert batches(path, "blocks") == whole, "it is used as it was"
    index = open_index(path)
    said = [index.uri(0)]
    faulty.always = 403
    with PackedLoader(path, config()) as loader, pytest.raises(RenderError) as refused:
        next(iter(loader))
    said.append(str(refused.value))
    faulty.always, faulty.root = 404, tmp_path / "empty"
    with PackedLoader(path, config(ledger=str(tmp_path / "ledger"))) as loader:
        try:
            list(loader)
        except NavitError as e:
            said.append(str(e))
        said.append(json.dumps(loader.failures()))
        said.append(loader.plan_id + loader.render_id)
    said.append((tmp_path / "ledger").read_text())
    assert len(said) >= 5 and "…@127.0.0.1" in "".join(said)
    assert SECRET not in "".join(said) + caplog.text


def test_what_a_server_says_of_an_address_has_no_secret_either(faulty: Faulty, tmp_path: Path) -> None:
    faulty.login = f"user:{SECRET}"
    with pytest.raises(IndexFileError) as refused:
        build_index(f"{faulty.url}/x.tar", tmp_path / "x.arrow")
    assert "401" in str(refused.value) and SECRET not in str(refused.value)
