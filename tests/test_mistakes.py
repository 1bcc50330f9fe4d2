"""Natural mistakes with `navit-loader` and in calls: each is one line that names the file or key, the value and the remedy."""

from __future__ import annotations

import os
import pickle
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from navit_loader import LoaderConfig, PackedLoader, RemoteLoader, build_index, open_index, pack, pack_images
from navit_loader.cli import main
from navit_loader.config import DataConfig, PlanConfig, RenderConfig, ServeConfig
from navit_loader.errors import NavitError
from navit_loader.service.security import make_keys

from .source_kit import encode, write_tar

PLAN = "[plan]\nsequence_length = 64\nmax_tokens = 16\npatch_sizes = [16]\n"


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images, an index, configurations, and what is none of these."""
    here = tmp_path_factory.mktemp("mistakes")
    for n in range(6):
        folder = here / "data" / f"c{n % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{n}.png").write_bytes(encode("PNG", 40, 30, seed=n))
    build_index(here / "data", here / "i.arrow")
    (here / "c.toml").write_text(PLAN)
    (here / "d.toml").write_text(f'[data]\nindex = "{here}/i.arrow"\n{PLAN}')
    for folder in ("empty", "sub", "open"):
        (here / folder).mkdir()
    (here / "sub" / "d.toml").write_text((here / "d.toml").read_text())
    (here / "open").chmod(0o755)
    (here / "readme.txt").write_text("hello\n")
    (here / "cut.arrow").write_bytes((here / "i.arrow").read_bytes()[:700])
    (here / "zero.arrow").write_bytes(b"")
    (here / "binary.toml").write_bytes(b"\xff\xfe\0")
    (here / "m.csv").write_text("path,label\n")
    (here / "gone.csv").write_text("path,label\nnowhere.png,1\n")
    (here / "odd.csv").write_text("file,kind\ndata/c0/0.png,1\n")
    (here / "n.csv").write_text("path,y\ndata/c0/0.png,1.5\n")
    (here / "bad.jsonl").write_text('{"path": "data/c0/0.png"\n')
    (here / "deep.jsonl").write_text('{"path": ' + "[" * 5000 + "]" * 5000 + "}\n")
    (here / "not.parquet").write_bytes(b"PAR1 no")
    (here / "not.tar").write_bytes(b"x" * 100)
    (here / "not.json").write_text("{}")
    write_tar(here / "texts.tar", {"a.txt": b"x"})
    make_keys(here / "keys", ["a"])
    make_keys(here / "wide", ["a"])
    for path in (here / "wide").rglob("*secret"):
        path.chmod(0o644)
    return here


# What is called, with `{}` for the folder; then words of the one line. `=` begins a configuration: the file is written first.
COMMANDS: list[tuple[str, str]] = [
    ("", "COMMAND"),
    ("indx {}/data -o {}/n.arrow", "did you mean 'index'"),
    ("pack_shards {}/i.arrow", "did you mean 'pack-shards'"),
    ("index", "required: SOURCE"),
    ("index {}/data", "required: -o"),
    ("index {}/data -o {}/n.arrow --thread x", "invalid int value: 'x'"),
    ("index {}/data -o {}/n.arrow --clases x", "did you mean '--classes'"),
    ("index {}/nothing -o {}/n.arrow", "nothing'"),
    ("index {}/empty -o {}/n.arrow", "looked for files that end in"),
    ("index {}/readme.txt -o {}/n.arrow", "readme.txt'"),
    ("index {}/data -o {}/nothing/n.arrow", "nothing/n.arrow.building' cannot be made: No such file"),
    ("index {}/data -o {}/empty", "is a folder; give the path of the index file"),
    ("index {}/data -o /proc/n.arrow", "/proc/n.arrow.building' cannot be made"),
    ("index {}/data -o {}/n.arrow --classes {}/nothing", "nothing'"),
    ("index {}/data -o {}/n.arrow --classes {}/not.tar", "is no class of the class table given"),
    ("index {}/data -o {}/n.arrow --tokenizer {}/nothing", "nothing'"),
    ("index {}/data -o {}/n.arrow --tokenizer {}/not.json", "not.json"),
    ("index {}/m.csv -o {}/n.arrow", "m.csv"),
    ("index {}/gone.csv -o {}/n.arrow", "nowhere.png"),
    ("index {}/odd.csv -o {}/n.arrow", "path"),
    ("index {}/bad.jsonl -o {}/n.arrow", "bad.jsonl"),
    ("index {}/deep.jsonl -o {}/n.arrow", "deep.jsonl"),
    ("index {}/not.parquet -o {}/n.arrow", "not.parquet"),
    ("index {}/not.tar -o {}/n.arrow", "not.tar"),
    ("index {}/texts.tar -o {}/n.arrow", "texts.tar"),
    ("index s3:// -o {}/n.arrow", "s3://"),
    ("index ftp://host/x -o {}/n.arrow", "ftp://host/x"),
    ("index {}/data{{0..3}}.tar -o {}/n.arrow", "data0.tar"),
    ("index {}/data -o {}/readme.txt/n.arrow", "Not a directory"),
    ("index {}/data -o {}/cut.arrow --refresh", "cut.arrow"),
    ("index {}/data -o {}/n.arrow --target-column y", "--target-column = 'y', but no source is a table"),
    ("index {}/n.csv -o {}/n.arrow --target-column z", "its columns: path, y"),
    (
        "index {}/n.csv -o {}/n.arrow --target-column path",
        "n.csv' line 2: target 'data/c0/0.png' is no number such as 3.25",
    ),
    ("index {}/n.csv -o {}/n.arrow --target-column y --classes {}/i.arrow", "leave --classes out"),
    ("index {}/n.csv -o {}/n.arrow --target-column y --label-column y", "leave --label-column = 'y' out"),
    ("index {}/n.csv -o {}/n.arrow --taget-column y", "did you mean '--target-column'"),
    ("info {}/nothing.arrow", "nothing.arrow"),
    ("info {}/empty", "empty"),
    ("info {}/readme.txt", "readme.txt"),
    ("info {}/cut.arrow", "cut.arrow"),
    ("info {}/zero.arrow", "zero.arrow"),
    ("info {}/data/c0/0.png", "0.png"),
    ("info {}/i.arrow more", "unrecognized arguments: more"),
    ("lint {}/nothing.arrow", "nothing.arrow"),
    ("lint {}/i.arrow --jsn", "unknown option --jsn (did you mean '--json'?)"),
    ("split {}/i.arrow --fraction 2 -o {}/a {}/b", "2"),
    ("split {}/i.arrow --fraction nan -o {}/a {}/b", "nan"),
    ("split {}/i.arrow --fraction 0.5 -o {}/a {}/a", "three different files"),
    ("split {}/i.arrow --fraction 0.5 -o {}/nothing/a {}/b", "nothing/a' cannot be written"),
    ("split {}/i.arrow -o {}/a {}/b", "--fraction"),
    ("suggest {}/nothing.arrow", "nothing.arrow"),
    ("suggest {}/data", "data"),
    ("suggest {}/i.arrow --tokens 9999", "--tokens = 9999 is not allowed; it must be between 1 and 8192"),
    ("suggest {}/i.arrow --tokens many", "invalid int value: 'many'"),
    ("suggest {}/i.arrow --memory-mb -1", "--memory-mb = -1"),
    ("suggest {}/i.arrow -o {}/x.toml", "-o"),
    ("plan {}/i.arrow {}/nothing.toml", "no configuration at"),
    ("plan {}/c.toml {}/i.arrow", "cannot be read as TOML"),
    ("plan {}/i.arrow {}/i.arrow", "cannot be read as TOML"),
    ("plan {}/i.arrow {}/empty", "Is a directory"),
    ("plan {}/i.arrow {}/binary.toml", "binary.toml"),
    ("plan {}/i.arrow {}/c.toml --epoch -1", "--epoch -1"),
    ("plan {}/i.arrow {}/c.toml --world-size 0", "--world-size 0"),
    ("plan {}/i.arrow {}/c.toml --html {}/nothing/p.html", "nothing/p.html' cannot be written: No such file"),
    ("plan {}/i.arrow {}/c.toml --html {}/empty", "empty' cannot be written: Is a directory"),
    ("plan {}/i.arrow {}/c.toml --html /dev/full", "/dev/full' cannot be written: No space left"),
    ("preview {}/i.arrow {}/c.toml -o {}/nothing/p.png", "nothing/p.png' cannot be written"),
    ("preview {}/i.arrow {}/c.toml -o {}/p", "/p' cannot be written"),
    ("preview {}/i.arrow {}/c.toml -o {}/p.docx", "p.docx' cannot be written"),
    ("preview {}/i.arrow {}/c.toml -o {}/p.png --sequences 0", "--sequences 0"),
    ("preview {}/i.arrow {}/c.toml -o {}/p.png --first 99", "--first 99"),
    ("preview {}/i.arrow {}/c.toml -o {}/p.png --epoch -1", "--epoch -1"),
    ("bench {}/i.arrow {}/c.toml --batches 0", "--batches 0: at least 1"),
    ("bench {}/nothing.arrow {}/c.toml", "nothing.arrow"),
    ("pack-shards {}/i.arrow -o {}/readme.txt", "readme.txt"),
    ("pack-shards {}/i.arrow -o {}/s --quality 0", "quality"),
    ("pack-shards {}/i.arrow -o {}/s --max-side 0", "side"),
    ("pack-shards {}/i.arrow -o {}/s --shard-images 0", "shard"),
    ("pack-shards {}/i.arrow -o /proc/s", "/proc/s"),
    ("serve {}/nothing.toml", "no configuration at"),
    ("serve {}/c.toml", "no index: set data.index"),
    ("serve {}/d.toml {}/sub/d.toml", "two plans are named 'd'"),
    ("serve {}/d.toml --bind 127.0.0.1:5780", "bind = '127.0.0.1:5780'"),
    ("serve {}/d.toml --bind tcp://127.0.0.1", "tcp://HOST:PORT"),
    ("serve {}/d.toml --bind tcp://127.0.0.1:99999", "ports to 65535"),
    ("serve {}/d.toml --bind tcp://0.0.0.0:5780", "no keys are given"),
    ("serve {}/d.toml --bind tcp://nowhere.invalid:5780 --keys {}/keys/server", "nowhere.invalid"),
    ("serve {}/d.toml --bind ipc://{}/nothing/s", "mkdir -m 700"),
    ("serve {}/d.toml --bind ipc://{}/open/s", "chmod 700"),
    ("serve {}/d.toml --keys {}/nothing", "no key at"),
    ("serve {}/d.toml --keys {}/keys/a", "server.key_secret"),
    ("serve {}/d.toml --keys {}/wide/server", "chmod 600"),
    ("serve {}/d.toml --metrics here --bind tcp://127.0.0.1:0", "'here'"),
    ("serve {}/d.toml --metrics 127.0.0.1:99999 --bind tcp://127.0.0.1:0", "99999"),
    ("serve {}/d.toml --bind tcp://127.0.0.1:{taken}", "{taken}"),
    ("serve {}/d.toml --bind tcp://127.0.0.1:0 --metrics 127.0.0.1:{taken}", "{taken}"),
    ("keys {}/keys", "--client"),
    ("keys {}/keys --client a", "exists already"),
    ("keys {}/keys --client server", "'server' is not allowed"),
    ("keys {}/keys --client ../x", "'../x' is not allowed"),
    ("keys {}/readme.txt --client a", "readme.txt"),
    ("keys /proc/k --client a", "/proc/k"),
    ("top 127.0.0.1:{closed}", "start the daemon with --metrics"),
    ("top nowhere", "nowhere"),
    ("top nowhere.invalid:1", "nowhere.invalid"),
    ("top ftp://127.0.0.1:1", "ftp"),
]

# One key of a TOML file, and words of the line that refuses it.
KEYS: list[tuple[str, str]] = [
    ("[plann]\n", "unknown section '[plann]'"),
    ("[plan]\nsequence_lenght = 5\n", "did you mean 'sequence_length'"),
    ("[plan]\nsequence_length = '64'\n", "plan.sequence_length = '64' must be of type int"),
    ("[plan]\nsequence_length = 0\n", "plan.sequence_length = 0"),
    ("[plan]\nmax_tokens = 9999999\n", "max_tokens = 9999999"),
    ("[plan]\npatch_sizes = 16\n", "plan.patch_sizes = 16 must be a list"),
    ("[plan]\npatch_sizes = [0]\n", "patch_sizes"),
    ("[plan]\nresolution = 'native'\n", "plan.resolution = 'native' must be a table"),
    ("[plan.resolution]\nkind = 'nativ'\n", "choose one of"),
    ("[plan.drop]\nkind = 'constant'\nrate = 1.5\n", "1.5"),
    ("[plan]\nseed = nan\n", "seed"),
    ("[plan]\nfilter = 'width >'\n", "filter"),
    ("[plan]\nfilter = 'wdth > 3'\n", "wdth"),
    ("[plan]\nfilter = 'width > 10000'\n", "filter"),
    ("[plan.class_weights]\nnobody = 2.0\n", "nobody"),
    ("[plan]\ntext_tokens = 32\n", "no image of"),
    ("[data]\nbatch_size = 0\n", "data.batch_size = 0"),
    ("[data]\nbatch_size = true\n", "data.batch_size = True"),
    ("[data]\nremainder = 'keep'\n", "data.remainder = 'keep'"),
    ("data = 3\n", "data = 3 must be a table"),
    ("[render]\nthreads = -1\n", "render.threads = -1"),
    ("[render]\nfilter = 'nearest'\n", "render.filter = 'nearest'"),
    ("[render]\nbackground = [1, 2]\n", "render.background"),
    ("[render]\nledger = '/proc/nothing/l'\n", "/proc/nothing/l"),
    ("[render]\nmemory_mb = 1\n", "render.memory_mb = 1"),
    ("[serve]\nbind = 5780\n", "serve.bind = 5780"),
    ("[plan\n", "cannot be read as TOML"),
    ("[plan]\nseed = 1\nseed = 2\n", "cannot be read as TOML"),
    ("x = " + "[" * 3000 + "]" * 3000, "cannot be read as TOML"),
]

CALLS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "path for a config": (lambda h: PackedLoader(h / "i.arrow", h / "c.toml"), "LoaderConfig.from_toml"),
    "dict for a config": (lambda h: PackedLoader(h / "i.arrow", {"plan": {}}), "LoaderConfig.from_dict"),
    "plan for a config": (lambda h: PackedLoader(h / "i.arrow", PlanConfig()), "PlanConfig"),
    "no index": (lambda h: PackedLoader(), "no index: set data.index"),
    "index of no file": (lambda h: PackedLoader(h / "nothing.arrow"), "nothing.arrow"),
    "folder for an index": (lambda h: PackedLoader(h / "data"), "data'"),
    "number for an index": (lambda h: PackedLoader(3), "index = 3"),
    "list of paths": (lambda h: PackedLoader([str(h / "i.arrow")]), "index"),
    "rank beyond": (lambda h: PackedLoader(h / "i.arrow", rank=2, world_size=2), "rank = 2 of world_size = 2"),
    "rank alone": (lambda h: PackedLoader(h / "i.arrow", rank=1), "world_size"),
    "decoder": (lambda h: PackedLoader(h / "i.arrow", decode="gpu"), "decode = 'gpu'"),
    "by number": (lambda h: PackedLoader(h / "i.arrow")[0], "iterate over it"),
    "pickled": (lambda h: pickle.dumps(PackedLoader(h / "i.arrow")), "make one in each process"),
    "epoch below 0": (lambda h: PackedLoader(h / "i.arrow").set_epoch(-1), "epoch = -1"),
    "no state": (lambda h: PackedLoader(h / "i.arrow").load_state_dict({}), "state"),
    "state of no dict": (lambda h: PackedLoader(h / "i.arrow").load_state_dict(None), "state"),
    "endpoints as text": (lambda h: RemoteLoader("tcp://127.0.0.1:1"), "must be a list"),
    "no endpoints": (lambda h: RemoteLoader([]), "at least one"),
    "endpoint without scheme": (lambda h: RemoteLoader(["127.0.0.1:5780"]), "use tcp://HOST:PORT"),
    "endpoint without port": (lambda h: RemoteLoader(["tcp://127.0.0.1"]), "use tcp://HOST:PORT"),
    "endpoint of http": (lambda h: RemoteLoader(["http://127.0.0.1:1"]), "http://127.0.0.1:1"),
    "endpoint of no text": (lambda h: RemoteLoader([5780]), "5780"),
    "nobody there": (lambda h: RemoteLoader(["tcp://127.0.0.1:1"], connect_timeout_s=0.2), "tcp://127.0.0.1:1"),
    "keys of nobody": (lambda h: RemoteLoader(["tcp://127.0.0.1:1"], keys=h / "nothing"), "no key at"),
    "keys of the server": (lambda h: RemoteLoader(["tcp://127.0.0.1:1"], keys=h / "keys" / "server"), "client.key"),
    "keys open to others": (lambda h: RemoteLoader(["tcp://127.0.0.1:1"], keys=h / "wide" / "a"), "chmod 600"),
    "prefetch": (lambda h: RemoteLoader(["tcp://127.0.0.1:1"], prefetch=0), "prefetch = 0"),
    "remainder": (lambda h: RemoteLoader(["tcp://127.0.0.1:1"], remainder="keep"), "remainder = 'keep'"),
    "batch size": (lambda h: RemoteLoader(["tcp://127.0.0.1:1"], batch_size=0), "batch_size = 0"),
    "unknown key": (lambda h: LoaderConfig.from_dict({"plan": {"max_token": 3}}), "did you mean 'max_tokens'"),
    "section of no dict": (lambda h: LoaderConfig.from_dict({"plan": 3}), "plan = 3 must be a table"),
    "config of a list": (lambda h: LoaderConfig.from_dict([1]), "[1]"),
    "toml of none": (lambda h: LoaderConfig.from_toml(h / "nothing.toml"), "no configuration at"),
    "type of a section": (lambda h: LoaderConfig(plan=DataConfig()), "plan"),
    "batch size as text": (lambda h: DataConfig(batch_size="8"), "batch_size = '8' must be of type int"),
    "threads": (lambda h: RenderConfig(threads=5000), "threads = 5000"),
    "bind": (lambda h: ServeConfig(bind="localhost:1"), "bind = 'localhost:1'"),
    "no images": (lambda h: pack_images([]), "pass at least one"),
    "one path": (lambda h: pack_images(str(h / "data")), "give a list"),
    "one image": (lambda h: pack_images(Image.new("RGB", (9, 9))), "give a list"),
    "number": (lambda h: pack_images(3), "images = 3"),
    "path of none": (lambda h: pack_images([h / "nothing.png"]), "nothing.png' cannot be read"),
    "path of a folder": (lambda h: pack_images([h / "data"]), "Is a directory"),
    "no image": (lambda h: pack_images([b"hello"]), "images[0]: 5 bytes"),
    "none": (lambda h: pack_images([None]), "images[0]"),
    "channels first": (lambda h: pack_images([np.zeros((3, 40, 40), np.uint8)]), "permute(1, 2, 0)"),
    "floats": (lambda h: pack_images([np.zeros((40, 40, 3), np.float32)]), "float32"),
    "label names": (lambda h: pack_images([_grey()], labels=["cat"]), "whole numbers"),
    "label floats": (lambda h: pack_images([_grey()], labels=[0.5]), "whole numbers"),
    "too few labels": (lambda h: pack_images([_grey()] * 2, labels=[1]), "must be [2] or [2, K]"),
    "ragged labels": (lambda h: pack_images([_grey()] * 2, labels=[[1], [1, 2]]), "labels"),
    "images for a config": (lambda h: pack_images([_grey()], {}), "LoaderConfig.from_dict"),
    "lengths": (lambda h: pack([5], 4), "5"),
    "index of none": (lambda h: open_index(h / "nothing.arrow"), "nothing.arrow"),
    "index of number": (lambda h: open_index(3), "index = 3"),
    "no sources": (lambda h: build_index([], h / "n.arrow"), "source"),
    "source of none": (lambda h: build_index([None], h / "n.arrow"), "None"),
    "row beyond": (lambda h: open_index(h / "i.arrow").uri(99), "99"),
}


def _grey() -> np.ndarray[Any, Any]:
    return np.full((40, 40, 3), 99, np.uint8)


@pytest.fixture(scope="module")
def ports() -> Any:
    """A port that is taken, and one where nobody listens."""
    with socket.socket() as taken, socket.socket() as closed:
        for one in (taken, closed):
            one.bind(("127.0.0.1", 0))
        taken.listen()
        yield {"taken": taken.getsockname()[1], "closed": closed.getsockname()[1]}


def refused(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """The one line of a command that refuses."""
    capsys.readouterr()
    try:
        status = main(args)
    except SystemExit as e:
        status = e.code
    err = capsys.readouterr().err
    lines = [line for line in err.splitlines() if not re.match(r"time=|indexing: ", line)]
    assert status == 2 and len(lines) == 1 and lines[0].startswith("navit-loader"), (status, err)
    return lines[0]


@pytest.mark.parametrize(("line", "words"), COMMANDS, ids=[line[:60] or "nothing" for line, _ in COMMANDS])
def test_a_mistaken_command_is_one_line(
    here: Path, ports: dict[str, int], capsys: pytest.CaptureFixture[str], line: str, words: str
) -> None:
    args = [
        part.replace("{taken}", str(ports["taken"])).replace("{closed}", str(ports["closed"])) for part in line.split()
    ]
    args = [part.replace("{}", str(here)).replace("{{", "{").replace("}}", "}") for part in args]
    assert words.replace("{taken}", str(ports["taken"])) in refused(capsys, *args)


@pytest.mark.parametrize(("text", "words"), KEYS, ids=[text[:40].replace("\n", " ") for text, _ in KEYS])
def test_a_mistaken_key_is_one_line(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, words: str
) -> None:
    (tmp_path / "c.toml").write_text(text)
    assert words in refused(
        capsys, "preview", str(here / "i.arrow"), str(tmp_path / "c.toml"), "-o", str(tmp_path / "p.svg")
    )


@pytest.mark.parametrize("name", CALLS)
def test_a_mistaken_call_is_one_error_of_ours(here: Path, name: str) -> None:
    call, words = CALLS[name]
    with pytest.raises(NavitError, match=re.escape(words)) as found:
        call(here)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("variables", [{"RANK": "x"}, {"WORLD_SIZE": "two"}, {"RANK": "3"}])
def test_an_environment_that_is_wrong_names_itself(
    here: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(NavitError, match=r"RANK|rank = 3"):
        PackedLoader(here / "i.arrow")


def test_any_iterable_of_images_is_taken(here: Path) -> None:
    assert pack_images(path for path in sorted((here / "data").rglob("*.png"))).num_images == 6


def test_a_data_loader_around_a_loader_says_what_to_do(here: Path) -> None:
    from torch.utils.data import DataLoader

    with PackedLoader(here / "i.arrow", LoaderConfig.from_toml(here / "c.toml")) as loader:
        for given in ({}, {"batch_size": None}, {"batch_size": 4, "shuffle": True}):
            wrapped = DataLoader(loader, **given)
            with pytest.raises(NavitError, match="not through a DataLoader"):
                next(iter(wrapped))
        batch = next(iter(loader))
        assert (
            repr(batch).startswith("PackedBatch: epoch 0, sequences 0 to")
            and "6 images" in repr(batch)
            and repr(batch).count("\n") < 20
        )
        assert len(repr(batch.to("cpu"))) < 2000


def run(*args: str | Path, **given: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "navit_loader", *map(str, args)], text=True, stderr=subprocess.PIPE, **given
    )


def test_an_output_that_cannot_be_written_is_one_line(here: Path) -> None:
    with open("/dev/full", "w") as full:
        done = run("info", here / "i.arrow", stdout=full)
    assert done.returncode == 2 and done.stderr == "navit-loader: error: 'standard output': No space left on device\n"
    reading, writing = os.pipe()
    os.close(reading)
    done = run("info", here / "i.arrow", stdout=writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


def test_nobody_s_process_has_no_cache_and_no_traceback(here: Path) -> None:
    config = here / "blocks.toml"
    config.write_text(PLAN + "block_images = 2\n")
    nobody = [
        "unshare",
        "--user",
        "--map-user=4711",
        "env",
        "-i",
        f"PATH={os.environ['PATH']}",
        f"PYTHONPATH={os.getcwd()}",
    ]
    if subprocess.run([*nobody, "true"], capture_output=True).returncode:
        pytest.skip("no user namespaces here")
    done = subprocess.run(
        [*nobody, sys.executable, "-m", "navit_loader", "plan", here / "i.arrow", config],
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0 and "3 block(s)" in done.stdout, done.stderr


def test_without_torch_the_extra_is_named(here: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import numpy as np, navit_loader\n"
        "from navit_loader.errors import ExtraError\n"
        "def device(): navit_loader.DevicePrefetcher\n"
        "def move(): navit_loader.pack_images([np.zeros((40, 40, 3), np.uint8)]).to('cpu')\n"
        "for call in (device, move):\n"
        "    try: call()\n"
        "    except ExtraError as e: print(e)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True)
    assert done.stdout.count("pip install 'packed-navit[model]'") == 2
