"""The page of an index, and the one look of all pages: whatever images, names and storage are like, there is a page, which
shows what is there, and runs and fetches nothing."""

from __future__ import annotations

import csv
import html.parser
import os
import re
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from navit_loader import build_index, open_index
from navit_loader.cli import main
from navit_loader.errors import ConfigError
from navit_loader.facts import ASPECTS, SIDES, facts_of
from navit_loader.look import look
from navit_loader.page import STYLE, histogram, page, table, text, write
from navit_loader.report import report

from .remote_kit import Faulty
from .source_kit import encode, write_tar, write_tree

NASTY = "<script>alert(1)</script>&\"'\u202e"
CONFIG = """
[plan]
sequence_length = 64
max_tokens = 16
max_images = 8
patch_sizes = [16]
"""


class Page(html.parser.HTMLParser):
    """The elements of a page, and what stands in it; every element that needs an end has one."""

    def __init__(self, whole: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(whole)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def said(self) -> str:
        return " ".join(self.words)

    def check(self) -> None:
        """It needs nothing beside it, runs nothing, and says what its pictures and tables show."""
        for tag, attributes in self.tags:
            assert tag not in ("script", "link", "iframe", "object", "base", "form", "a")
            assert not any(name.startswith("on") for name in attributes)
            for name in ("src", "href"):
                assert attributes.get(name) is None or str(attributes[name]).startswith(("data:image/", "#"))
            assert tag != "img" or attributes["alt"]
            assert tag != "th" or attributes["scope"] in ("row", "col")
            assert tag != "svg" or (attributes["role"] == "img" and attributes["aria-label"])
        assert STYLE in self.words[1] or any(STYLE in words for words in self.words)
        assert any("default-src 'none'" in (a.get("content") or "") for tag, a in self.tags if tag == "meta")


def photo(seed: int, width: int = 60, height: int = 44) -> Image.Image:
    """Soft blobs, so that copies in other sizes are copies, and two of two seeds are not."""
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 7, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest with everything that goes wrong, and its index."""
    root = tmp_path_factory.mktemp("odd")
    rows = []
    for seed in range(30):
        name = f"{seed:02}.{('jpg', 'png', 'webp')[seed % 3]}"
        photo(seed, 40 + 3 * seed, 150 - 4 * seed).save(root / name)
        rows.append((name, "cat" if seed < 24 else NASTY, f"a caption of {seed}" if seed % 2 else NASTY))
    photo(3, 30, 68).save(root / "again.png")
    photo(4, 80, 60).convert("L").save(root / "grey.png")
    rows += [("again.png", "dog", ""), ("grey.png", "cat", "grey")]
    whole = encode("JPEG", 80, 60)
    (root / "torn.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "nothing.jpg").write_bytes(b"no image")
    rows += [("torn.jpg", "cat", ""), ("nothing.jpg", "cat", "")]
    with (root / "m.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "caption"), *rows])
    build_index(root / "m.csv", root / "i.arrow")
    return root


def test_the_page_shows_what_is_there_and_steers_nothing(
    odd: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(odd / "i.arrow"), "-o", str(tmp_path / "i.html")]) == 0
    assert not list(tmp_path.glob("*.draft")) and "wrote" in capsys.readouterr().out
    assert main(["report", str(odd / "i.arrow"), "-o", str(tmp_path / "j.html"), "--images", "0"]) == 2
    assert "--images = 0 is not allowed" in capsys.readouterr().err
    found = Page((tmp_path / "i.html").read_text())
    found.check()
    said = found.said()
    assert "<script>alert(1)</script>&\"'\\u202e" in said, "shown, and harmless"
    for heading in (
        "Sizes",
        "Aspect ratios",
        "Width and height",
        "Captions",
        "Classes and their balance",
        "Broken files",
    ):
        assert heading in found.words
    # Its copy has another label, which is said; the torn file is drawn as far as it goes, the other broken one is named.
    assert "1 group has different labels" in said and "Their labels differ." in said
    assert "1 of the 33 images cannot be decoded" in said and "1 file was broken when the index was built" in said
    names = [str(a["alt"]) for tag, a in found.tags if tag == "img"]
    assert sum(name.endswith("torn.jpg") for name in names) == 1 and any(name.endswith("again.png") for name in names)
    assert any(words.endswith("nothing.jpg") for words in found.words) and "What can still be drawn" in said
    assert "mode, of 32 files" in said and "plan.sequence_length" in said


def test_a_sample_is_said_to_be_one_and_finds_copies_that_headers_tell_of(odd: Path, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    for seed in range(200):
        photo(seed, 20 + seed % 50, 30 + seed // 3).save(tmp_path / "x" / f"{seed:03}.png")
    data = (tmp_path / "x" / "101.png").read_bytes()
    (tmp_path / "x" / "077-copy.png").write_bytes(data)
    build_index(tmp_path / "x", tmp_path / "i.arrow")
    index = open_index(tmp_path / "i.arrow")
    found = Page(report(index, 24))
    found.check()
    assert re.search(r"1 of the 2[34] images that were looked at are copies of another", found.said())
    # A sample is an index: the same images under other numbers.
    rows = np.array([5, 77, 200])
    few = index.sample(rows)
    assert [few.uri(n) for n in range(3)] == [index.uri(int(row)) for row in rows]
    seen, alone = look(few), [look(index.sample(rows[n : n + 1])) for n in range(3)]
    for n in range(3):
        assert np.array_equal(seen.pictures[n], alone[n].pictures[0])


def test_storage_that_fails_costs_pictures_and_no_page(odd: Path, tmp_path: Path) -> None:
    files = {f"{n:02}.jpg": encode("JPEG", 30 + n, 40, seed=n) for n in range(20)}
    write_tar(tmp_path / "x.tar", files)
    with Faulty(tmp_path) as server:
        build_index(f"{server.url}/x.tar", tmp_path / "i.arrow")
        there = Page(report(open_index(tmp_path / "i.arrow")))
        server.always = 503
        gone = Page(report(open_index(tmp_path / "i.arrow")))
        server.shutdown()
    there.check()
    assert "All of the 20 images can be decoded" in there.said()
    assert sum(tag == "img" for tag, _ in there.tags) >= 20
    gone.check()
    assert "Storage stays away" in gone.said() and "Sizes" in gone.words
    # One that is gone, of many.
    write_tree(tmp_path / "files", files)
    build_index(tmp_path / "files", tmp_path / "f.arrow")
    (tmp_path / "files" / "07.jpg").unlink()
    some = Page(report(open_index(tmp_path / "f.arrow")))
    assert "1 of the 20 images cannot be decoded" in some.said() and "Storage stays away" not in some.said()


@pytest.mark.parametrize("kind", ["numbers", "several", "none"])
def test_every_kind_of_label_has_a_page(tmp_path: Path, kind: str) -> None:
    lines = {
        "numbers": lambda n: f'{{"path": "{n}.png", "target": {n / 7}}}',
        "several": lambda n: f'{{"path": "{n}.png", "label": ["a", "b{n % 60}"], "weight": {n}}}' if n else
        '{"path": "0.png", "label": [], "weight": 3}',
        "none": lambda n: f'{{"path": "{n}.png"}}',
    }[kind]  # fmt: skip
    for n in range(70):
        Image.new("RGB", (1 + n * n, 1), (n, n, n)).save(tmp_path / f"{n}.png")
    (tmp_path / "m.jsonl").write_text("\n".join(map(lines, range(70))))
    columns = {"numbers": {"target_column": "target"}, "several": {"weight_column": "weight"}, "none": {}}[kind]
    build_index(tmp_path / "m.jsonl", tmp_path / "i.arrow", **columns)
    found = Page(report(open_index(tmp_path / "i.arrow"), 40))
    found.check()
    expected = {"numbers": "Numbers to be predicted", "several": "classes between", "none": "No image has a label."}
    assert expected[kind] in found.said()


def test_facts_are_those_of_the_rows(odd: Path) -> None:
    index = open_index(odd / "i.arrow")
    rows, facts = index.table().to_pylist(), facts_of(index)
    sides = np.sqrt([row["width"] * row["height"] for row in rows])
    assert np.array_equal(facts.sides, np.histogram(sides, SIDES)[0])
    assert np.array_equal(facts.aspects, np.histogram([row["width"] / row["height"] for row in rows], ASPECTS)[0])
    assert facts.nbytes == sum(row["length"] for row in rows)
    assert dict(facts.formats) == {k: sum(row["format"] == k for row in rows) for k in ("jpeg", "png", "webp")}
    assert facts.given.tolist() == [sum(row["label"] == n for row in rows) for n in range(len(index.classes))]
    assert facts.captions[0] == sum(row["caption_tokens"] == 0 for row in rows)
    assert facts.captions @ np.arange(len(facts.captions)) == sum(row["caption_tokens"] for row in rows)
    area = {row["width"] * row["height"] for row in rows}
    assert (np.prod(facts.smallest), np.prod(facts.largest)) == (min(area), max(area))


def test_preview_and_plan_have_the_same_look(odd: Path, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(CONFIG)
    index, config = str(odd / "i.arrow"), str(tmp_path / "c.toml")
    assert main(["preview", index, config, "-o", str(tmp_path / "p.html"), "--sequences", "2"]) == 0
    assert main(["plan", index, config, "--html", str(tmp_path / "q.html")]) == 0
    for name in ("p.html", "q.html"):
        Page((tmp_path / name).read_text()).check()
    assert main(["plan", index, config, "--html", str(tmp_path / "none" / "q.html")]) == 2


def test_what_is_no_file_is_written_into_and_stays(tmp_path: Path) -> None:
    pipe, link, target = tmp_path / "pipe", tmp_path / "link", tmp_path / "target.html"
    os.mkfifo(pipe)
    target.write_text("old")
    link.symlink_to(target)
    found: list[str] = []
    reader = threading.Thread(target=lambda: found.append(pipe.read_text()))
    reader.start()
    for path in (pipe, link):
        write(path, "new")
    reader.join(30)
    assert found == ["new"] and pipe.is_fifo() and link.is_symlink() and target.read_text() == "new"
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "folder", tmp_path / "none" / "x.html"):
        with pytest.raises(ConfigError, match="cannot be written"):
            write(path, "new")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "link", "pipe", "target.html"]


@given(st.text(), st.text())
def test_a_text_stays_a_text(one: str, other: str) -> None:
    found = Page(page(one, other, table(["a", one], [[other, one]])))
    found.check()
    assert html.unescape(text(one)) in found.said() or not one.strip()


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=80))
def test_a_histogram_has_a_bar_for_each_bin_that_holds_something(counts: list[int]) -> None:
    drawn = histogram("x", np.array(counts), np.arange(len(counts) + 1.0))
    titles = re.findall(r"<title>\S+ to \S+ ([\d,]+) images</title>", drawn.replace(":", ""))
    assert [int(n.replace(",", "")) for n in titles if n != "0"] == [n for n in counts if n]
