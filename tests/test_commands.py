"""Both command lines, as people and scripts meet them: examples, JSON, quiet, exit statuses, colours, completion, doctor."""

from __future__ import annotations

import json
import os
import pty
import re
import resource
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from navit_loader import build_index, cli, progress
from navit_loader.errors import ExtraError
from navit_loader.shown import EXITS, speak
from navit_model import cli as model_cli

from .source_kit import encode

ROOT = Path(__file__).parent.parent
BOTH = [cli, model_cli]
PLAN = "[plan]\nsequence_length = 64\nmax_tokens = 16\npatch_sizes = [16]\n[data]\nbatch_size = 2\n"


@pytest.fixture(autouse=True)
def aloud():
    yield
    speak()


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an index of sound images, one with a broken one, and a configuration."""
    here = tmp_path_factory.mktemp("commands")
    for n in range(12):
        folder = here / "photos" / f"c{n % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{n}.png").write_bytes(encode("PNG", 40, 30, seed=n))
    build_index(here / "photos", here / "a.arrow")
    (here / "torn").mkdir()
    whole = encode("JPEG", 64, 64, seed=1)
    (here / "torn" / "a.jpg").write_bytes(whole[: len(whole) // 2])
    (here / "torn" / "b.jpg").write_bytes(whole)
    build_index(here / "torn", here / "torn.arrow")
    (here / "c.toml").write_text(PLAN)
    return here


@pytest.mark.parametrize("command", BOTH, ids=["navit-loader", "navit-model"])
def test_every_example_is_a_command_line(command) -> None:
    parser = command.parser()
    assert parser.commands()
    for name, sub in parser.commands().items():
        assert sub.examples, name
        for example in sub.examples:
            program, *words = shlex.split(example.partition(" > ")[0])
            assert program == parser.prog
            args, rest = parser.parse_known_args(words)
            assert args.run and all(re.fullmatch(r"[\w.]+=\S+", word) for word in rest), example
            assert example in sub.format_help()
        assert f"{parser.prog} --help" in sub.format_help()
    assert EXITS in parser.format_help()


@pytest.mark.parametrize("command", BOTH, ids=["navit-loader", "navit-model"])
def test_flags_are_the_same_everywhere(command) -> None:
    # What these print is for a shell, or an editor.
    for name in command.parser().commands().keys() - {"schema", "completion"}:
        sub = command.parser().commands()[name]
        assert {"--json", "--quiet"} <= sub._option_string_actions.keys(), name
        outputs = [a for a in sub._actions if "-o" in a.option_strings]
        assert all(a.option_strings == ["-o", "--output"] for a in outputs), name


MAKERS = {
    "index": "index {h}/photos -o {o}/n.arrow",
    "split": "split {h}/a.arrow --fraction 0.5 -o {o}/r.arrow {o}/d.arrow",
    "pack-shards": "pack-shards {h}/a.arrow -o {o}/shards",
    "preview": "preview {h}/a.arrow {h}/c.toml -o {o}/p.png",
    "keys": "keys {o}/keys --client a",
    "init": "init -o {o}/c.toml",
}
PRINTERS = {
    "info": "info {h}/a.arrow",
    "suggest": "suggest {h}/a.arrow",
    "plan": "plan {h}/a.arrow {h}/c.toml --html {o}/p.html",
    "bench": "bench {h}/a.arrow {h}/c.toml --batches 2",
    "doctor": "doctor",
    "lint": "lint {h}/a.arrow",
    "lint a torn one": "lint {h}/torn.arrow",
}


@pytest.mark.parametrize("words", [*MAKERS.values(), *PRINTERS.values()], ids=[*MAKERS, *PRINTERS])
def test_json_is_all_that_is_printed(here: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], words: str) -> None:
    status = cli.main([*words.format(h=here, o=tmp_path).split(), "--json"])
    out = capfd.readouterr().out
    found = [json.loads(line) for line in out.splitlines()]
    assert status == int("torn" in words)
    # lint prints one object for each broken image, and so none here.
    assert bool(found) == (words != PRINTERS["lint"])
    if words == MAKERS["index"]:
        assert found[0]["images"] == 12 and found[0]["classes"] == {"c0": 6, "c1": 6}


@pytest.mark.parametrize("name", [*MAKERS, *PRINTERS])
def test_quiet_leaves_what_a_command_is_called_for(
    here: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    words = {**MAKERS, **PRINTERS}[name]
    cli.main([*words.format(h=here, o=tmp_path).split(), "--quiet"])
    told = capfd.readouterr()
    assert bool(told.out) == (name in PRINTERS) and not told.err


def process(
    *words: object, before: Callable[[], None] | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *map(str, words)], capture_output=True, text=True, cwd=ROOT, preexec_fn=before,
        env={**os.environ, **environment},
    )  # fmt: skip


def test_exit_statuses(here: Path, tmp_path: Path) -> None:
    """0, 1, 2 and 130, as `--help` has them; 0 too where the reader has gone."""
    assert process("navit_loader", "info", here / "a.arrow").returncode == 0
    assert process("navit_loader", "lint", here / "torn.arrow").returncode == 1
    missing = process("navit_loader", "info", here / "none.arrow")
    assert missing.returncode == 2 and missing.stderr.count("\n") == 1
    assert process("navit_model", "train").returncode == 2
    gone = f"{sys.executable} -m navit_loader schema | head -1; exit ${{PIPESTATUS[0]}}"
    assert subprocess.run(["bash", "-c", gone], cwd=ROOT, capture_output=True).returncode == 0
    for package, words in (("navit_loader", ["plan", here / "a.arrow"]), ("navit_model", ["train"])):
        pipe = tmp_path / f"{package}.toml"
        os.mkfifo(pipe)
        with subprocess.Popen(
            [sys.executable, "-m", package, *map(str, words), str(pipe)], cwd=ROOT, stderr=subprocess.PIPE, text=True
        ) as running:
            with open(pipe, "w"):  # which waits for its reader, that now waits for us
                running.send_signal(signal.SIGINT)
                assert running.wait(60) == 130
            assert running.stderr is not None and "interrupted" in running.stderr.read()


def test_version_and_help_are_quick() -> None:
    """No part of numpy, torch or pyarrow is loaded for the help, of either."""
    for package in ("navit_loader", "navit_model"):
        code = f"import sys; from {package}.cli import parser; parser().format_help()\n"
        code += "print([m for m in ('numpy', 'torch', 'pyarrow', 'zmq', 'rich', 'PIL') if m in sys.modules])"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
        assert done.stdout.strip() == "[]"
        assert re.fullmatch(r"navit-\w+ \d+\.\d+\.\d+\n", process(package, "--version").stdout)


def on_a_terminal(words: list[str], **environment: str) -> bytes:
    master, slave = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", *words], stdout=slave, stderr=slave, cwd=ROOT, env={**os.environ, "TERM": "xterm", **environment}
    ) as running:  # fmt: skip
        os.close(slave)
        found = b""
        try:
            while more := os.read(master, 65536):
                found += more
        except OSError:
            pass
    os.close(master)
    assert running.returncode == 0
    return found


def test_no_colour_where_it_is_not_wanted(here: Path) -> None:
    words = ["navit_loader", "bench", str(here / "a.arrow"), str(here / "c.toml"), "--batches", "2"]
    colour = re.compile(rb"\x1b\[[0-9;]*(3[0-7]|9[0-7]|38|48)[;m]")
    assert not colour.search(on_a_terminal(words, NO_COLOR="1"))
    assert b"\x1b" not in on_a_terminal(words, TERM="dumb")
    assert "\x1b" not in process(*words).stdout


def test_progress_says_rate_and_time_left(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PLAIN_LINE_S", 0.0)
    with progress.ProgressLine("counting") as line:
        line.update(0.25, 100)  # of an earlier start
        time.sleep(0.05)
        line.update(0.5, 200, "3 broken")
    told = capsys.readouterr()
    assert not told.out
    found = re.search(r"counting: 50%, 200 images, 3 broken, ([\d,]+)/s, (\d:\d\d:\d\d) left\n$", told.err)
    assert found and 100 <= int(found[1].replace(",", "")) <= 2000
    speak(quiet=True)
    with progress.ProgressLine("counting") as line:
        line.update(0.5, 1)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("program", ["navit-loader", "navit-model"])
def test_bash_completes_commands_and_options(program: str, tmp_path: Path) -> None:
    script = process(program.replace("-", "_"), "completion", "bash")
    assert script.returncode == 0, script.stderr
    (tmp_path / "s").write_text(script.stdout)
    for words, expected in ((f"{program} doc", "doctor"), (f"{program} doctor --js", "--json")):
        last = words.split()[-1]
        function = f"$(complete -p {program} | sed 's/.*-F \\([^ ]*\\).*/\\1/')"
        ask = (
            f"source {tmp_path}/s; COMP_WORDS=({words}); COMP_CWORD={len(words.split()) - 1}; COMP_LINE='{words}';"
            f'COMP_POINT=${{#COMP_LINE}}; {function} {program} {last} x; echo "${{COMPREPLY[@]}}"'
        )
        done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True)
        assert expected in done.stdout.split(), (done.stdout, done.stderr)


def test_without_shtab_one_line_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert cli.main(["completion", "bash"]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and str(ExtraError.of(ModuleNotFoundError(name="shtab"))) in told


def rows(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, object]]:
    return {row["part"].strip(): row for row in json.loads(done.stdout)}


@pytest.mark.parametrize("package", ["navit_loader", "navit_model"])
def test_doctor_says_what_hurts_and_what_mends_it(package: str) -> None:
    few = process(
        package, "doctor", "--json", before=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    )  # fmt: skip
    assert few.returncode == 1, few.stderr
    files = rows(few)["open files"]
    assert not files["well"] and "64" in str(files["what"]) and "ulimit -n" in str(files["mend"])
    sound = process(package, "doctor", "--json")
    assert (
        sound.returncode == 0 and {"cores", "memory", "simd", "engine", "jpeg", "clock", "zeromq"} <= rows(sound).keys()
    )
    assert ("kernel" in rows(sound)) == (package == "navit_model")


def test_doctor_of_the_loader_never_loads_torch() -> None:
    code = "import sys; from navit_loader.cli import main; main(['doctor']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "False", done.stderr


def test_doctor_sees_a_small_shared_memory() -> None:
    mounted = "mount -t tmpfs -o size=16m tmpfs /dev/shm"
    if subprocess.run(["unshare", "-m", "sh", "-c", mounted], capture_output=True).returncode:
        pytest.skip("mounts are not allowed here")
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", f"{mounted}; exec {sys.executable} -m navit_loader doctor --json"],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    row = rows(done)["/dev/shm"]
    assert row["what"] == "16 MiB" and "--shm-size" in row["mend"]


def test_doctor_without_the_engine() -> None:
    code = "import sys; sys.modules['navit_loader._packer'] = None\nfrom navit_loader.cli import main\n"
    code += "sys.exit(main(['doctor', '--json']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1, done.stderr
    assert rows(done)["engine"]["mend"] == "make build"
