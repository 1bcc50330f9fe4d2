"""Names that steer terminals, break lines or are no text: what each command prints, logs and draws of them is plain."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections import deque
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from navit_loader.cli import main
from navit_loader.commands.top import Watch, in_words, rates
from navit_loader.shown import Lines, say, shown
from navit_model import NaViT, NaViTConfig
from navit_model.cli import main as model_main

from .source_kit import encode

STEERS = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
CODES = (*range(1, 32), 0x7F, 0x85, 0x9B, 0x9D, 0x202E, 0x2066, 0x200F, 0x2028, 0xFFFE)
HOSTILE = [*map(chr, CODES), *"[]<>&'\"\\{}é雪"]
NAMES = st.text(st.sampled_from(HOSTILE + list("ab/")), min_size=1, max_size=12).map(
    lambda name: name.replace("/", "[red]")
)
CONFIG = "[plan]\nsequence_length = 64\nmax_tokens = 16\npatch_sizes = [16]\n"


def printed(run, *args: object) -> tuple[int, str]:
    """Exit status and all output of a command, which steers nothing and is one line where it is an error."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = run([str(arg) for arg in args])
        except SystemExit as e:
            status = e.code
    text = out.getvalue() + err.getvalue()
    assert not STEERS.search(text), repr(text)
    text.encode()
    assert status != 2 or err.getvalue().count("\n") == 1, err.getvalue()
    return status, text


@settings(max_examples=5, phases=[Phase.generate], deadline=None, suppress_health_check=list(HealthCheck))
@given(NAMES, NAMES, st.binary(min_size=1, max_size=6))
def test_no_command_prints_what_steers_a_terminal(folder: str, file: str, raw: bytes) -> None:
    with tempfile.TemporaryDirectory() as place:
        here = Path(place)
        for n in range(2):
            images = here / "data" / f"{folder}{n}"
            images.mkdir(parents=True)
            (images / f"{file}.png").write_bytes(encode("PNG", 40, 30, seed=n))
            (images / f"{file}.lost.jpg").write_bytes(encode("JPEG", 40, 30)[:400])
            (images / f"{file}.torn.jpg").write_bytes(encode("JPEG", 40, 30)[:-300])
            (images / f"{file}.mp4").write_bytes(b"x")
        with contextlib.suppress(OSError):
            name = raw.replace(b"/", b"").replace(b"\0", b"") + b"\xff.png"
            Path(os.fsdecode(bytes(here / "data") + b"/" + os.fsencode(f"{folder}0") + b"/" + name)).write_bytes(b"x")
        index, config = here / f"{file}.arrow", here / "c.toml"
        config.write_text(CONFIG)
        assert printed(main, "index", here / "data", "-o", index)[0] == 0
        assert printed(main, "info", index)[0] == 0
        assert printed(main, "lint", index)[0] == 1
        lines = printed(main, "lint", "--json", index)[1].splitlines()
        assert {Path(json.loads(line)["uri"]).name for line in lines} == {f"{file}.torn.jpg"}
        assert printed(main, "split", index, "--fraction", "0.5", "-o", here / f"{file}.a", here / f"{file}.b")[0] == 0
        page, picture = here / f"{file}.html", here / f"{file}.svg"
        assert printed(main, "plan", index, config, "--html", page)[0] == 0
        HTMLParser().feed(page.read_text("utf-8"))
        assert printed(main, "preview", index, config, "-o", picture)[0] == 0
        ET.parse(picture)
        # Of what is refused, the words hold the names as well.
        assert printed(main, "index", here / "data", "-o", index, "--strict")[0] == 2
        for command in ("info", "lint", "plan", "preview", "nonsense" + file):
            rest = () if command in ("info", "lint") else (file + ".toml",)
            assert printed(main, command, here / (file + folder), *rest)[0] == 2
        assert printed(main, "info", index, f"--{file}")[0] == 2


def test_prediction_of_names_that_steer(tmp_path: Path) -> None:
    NaViT(NaViTConfig(width=32, depth=1, heads=1, classes=2)).save_pretrained(tmp_path / "model")
    good, bad = tmp_path / "\x1b]0;title\x07.png", tmp_path / "\x9b2J.png"
    good.write_bytes(encode("PNG", 20, 20))
    bad.write_bytes(b"no image")
    for form in ((), ("--json",)):
        status, text = printed(model_main, "predict", tmp_path / "model", good, bad, *form)
        assert status == 1 and "\\u001b" in text and "\\u009b" in text
        assert len(text.splitlines()) == 2


@given(st.lists(st.text(), min_size=3, max_size=3))
def test_what_is_shown_is_one_line_of_xml_and_utf_8(names: list[str]) -> None:
    text = shown(" ".join([*names, *HOSTILE]))
    assert not STEERS.search(text) and "\n" not in text
    text.encode()
    ET.fromstring(f"<a>{text.replace('&', '').replace('<', '')}</a>")


def test_a_log_line_is_one_line_and_a_traceback_keeps_its_own() -> None:
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(Lines("level=%(levelname)s %(message)s"))
    log = logging.Logger("test")
    log.addHandler(handler)
    log.warning("client=%s left", "\x1b[2J\nlevel=INFO forged")
    assert out.getvalue() == "level=WARNING client=\\u001b[2J\\u000alevel=INFO forged left\n"
    try:
        raise ValueError("\x1b[31m")
    except ValueError:
        log.exception("failed")
    assert not STEERS.search(out.getvalue()) and "\n  File " in out.getvalue()


@pytest.mark.parametrize("name", ["[/red]", "[bold", "\x1b[31mred", "a\nb"])
def test_top_shows_a_client_s_name_as_it_is(name: str) -> None:
    from rich.console import Console

    out = io.StringIO()
    labels = (("client", name), ("plan", name))
    watch = Watch([])
    watch._lines = rates("127.0.0.1:1", {("navit_starved_seconds_total", labels): 1.0}, {}, 1.0)
    watch._past = {(line["daemon"], line.get("client", ""), line.get("plan", "")): deque() for line in watch._lines}
    Console(file=out, width=200).print(watch.table(200))
    for line in watch._lines:
        say(in_words(line), out)
    assert out.getvalue().count(shown(name)) >= 4 and not STEERS.search(out.getvalue())


def test_an_output_of_ascii_gets_the_rest_escaped(tmp_path: Path) -> None:
    (tmp_path / "data" / "ä雪").mkdir(parents=True)
    (tmp_path / "data" / "ä雪" / "ü.png").write_bytes(encode("PNG", 40, 30))
    (tmp_path / "c.toml").write_text(CONFIG)
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}
    index = str(tmp_path / "i.arrow")
    for command, words in (
        (["index", str(tmp_path / "data"), "-o", index], b"\\xe4\\u96ea"),
        (["info", index], b"\\xe4\\u96ea"),
        (["bench", index, str(tmp_path / "c.toml"), "--batches", "1"], b"images/s"),
        (["plan", "--help"], b"usage"),
        (["pack-shards", index, "-o", str(tmp_path / "ö")], b"\\xf6"),
    ):
        done = subprocess.run([sys.executable, "-m", "navit_loader", *command], capture_output=True, env=env)
        assert done.returncode == 0 and words in done.stdout, done.stderr
