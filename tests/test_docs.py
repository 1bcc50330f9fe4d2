"""The documentation: its code runs, its links lead somewhere, and the public names stand in it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from functools import cache
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag

import numpy as np
import pytest
from PIL import Image

from navit_loader import LoaderConfig
from navit_model.train.settings import RunConfig

sys.path.insert(0, str(Path(__file__).parent))
import docs_kit

ROOT = Path(__file__).resolve().parents[1]
DOCS = {str(p.relative_to(ROOT)): p.read_text(encoding="utf-8") for p in sorted((ROOT / "docs").rglob("*.md"))}
PAGES = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "CONTRIBUTING.md")} | DOCS
BLOCKS = {name: docs_kit.blocks(text) for name, text in PAGES.items()}
KINDS = ("cat", "dog", "bird")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`photos/{cat,dog,bird}/*.jpg`: 60 images, of a colour and a shape by class."""
    folder = tmp_path_factory.mktemp("docs") / "photos"
    rng = np.random.default_rng(0)
    for i in range(60):
        h, w = (int(v) for v in rng.integers(40, 201, 2))
        pixels = rng.integers(0, 60, (h, w, 3))
        pixels[..., i % 3] += 100
        pixels[: h // (1 + i % 3)] += 60
        (folder / KINDS[i % 3]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / KINDS[i % 3] / f"{i:02d}.jpg", quality=90)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", [name for name, found in BLOCKS.items() if any(block.runs for block in found)])
def test_the_code_of_a_page_runs(page: str, photos: Path, tmp_path: Path) -> None:
    here = tmp_path / "page"
    here.mkdir()
    subprocess.run(["cp", "-r", photos, here / "photos"], check=True)
    env = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HOME": str(tmp_path),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "HF_HUB_OFFLINE": "1",
        "MPLBACKEND": "agg",
    }
    done = subprocess.run(
        [sys.executable, docs_kit.__file__, ROOT / page],
        cwd=here,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:]


@pytest.mark.parametrize("page", BLOCKS)
def test_every_block_is_of_its_language(page: str) -> None:
    for block in BLOCKS[page]:
        assert block.language in docs_kit.LANGUAGES, f"{page}:{block.line}: a fence without a language"
        assert {need.strip() for need in block.needs.split(",")} <= docs_kit.NEEDS | {""}, f"{page}:{block.line}"
        try:
            block.parse()
        except (ValueError, SyntaxError, subprocess.CalledProcessError) as e:
            raise AssertionError(f"{page}:{block.line}: {e}") from None
    # A fence that the pattern does not see would be run by nobody.
    assert sum(not block.hidden for block in BLOCKS[page]) * 2 == len(re.findall(r"^ *```", PAGES[page], re.MULTILINE))


OURS = {"data", "plan", "render", "serve"}
LEARNT = {"model", "text", "contrastive", "distillation", "regression", "train"}


@pytest.mark.parametrize("page", [name for name, found in BLOCKS.items() if any(b.language == "toml" for b in found)])
def test_configurations_in_the_docs_are_read(page: str) -> None:
    for block in BLOCKS[page]:
        if block.language == "toml" and (table := tomllib.loads(block.text)).keys() <= OURS | LEARNT:
            reads = RunConfig if table.keys() & LEARNT else LoaderConfig
            reads.from_dict(table)


# --- links ---------------------------------------------------------------------------------------------------------


class _Seen(HTMLParser):
    """What a page of the site is called by, and what it leads to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: set[str] = {""}
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for key, value in attrs:
            if key in ("id", "name") and value:
                self.names.add(value)
            if key in ("href", "src") and value:
                self.links.append(value)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, _Seen]:
    """The site as `make docs` builds it: any warning ends that."""
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    env = os.environ | {"PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    return {page: _Seen(page.read_text(encoding="utf-8")) for page in out.rglob("*.html")}


def test_every_link_of_the_site_leads_somewhere_and_none_to_a_strangers_script(site: dict[Path, _Seen]) -> None:
    lost = []
    for page, seen in site.items():
        for link in seen.links:
            path, name = urldefrag(link)
            if re.match(r"[a-z]+:", path) or page.name == "404.html":  # that one stands anywhere
                continue
            target = (page.parent / unquote(path)).resolve() if path else page
            if not target.is_file() or (target in site and unquote(name) not in site[target].names):
                lost.append(f"{page.name}: {link}")
    assert not lost
    assert len(site) > 50


def test_nothing_of_the_site_is_loaded_from_elsewhere(site: dict[Path, _Seen]) -> None:
    for page in site:
        text = page.read_text(encoding="utf-8")
        assert not re.search(
            r"<(?:script|img|iframe)[^>]*src=\"?(?:https?:)?//|<link[^>]*rel=\"?stylesheet[^>]*//", text
        ), page


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "bench/README.md"])
def test_links_of_a_checkout_lead_somewhere(name: str) -> None:
    sys.path.insert(0, str(ROOT / "docs"))
    from generated import PAGES as made

    text = (ROOT / name).read_text(encoding="utf-8")
    for link in re.findall(r"\]\((?![a-z]+:)([^)\s]*)\)", text):
        path, anchor = urldefrag(link)
        target = ((ROOT / name).parent / path).resolve() if path else ROOT / name
        if str(target.relative_to(ROOT / "docs")) not in made if target.is_relative_to(ROOT / "docs") else True:
            assert target.exists(), f"{name}: {link}"
            assert not anchor or anchor in _anchors(target), f"{name}: {link}"


def test_what_the_papers_lead_to_can_be_imported() -> None:
    links = re.findall(r"\]\(\.\./(navit_[\w/]+)\.py#([\w.]+)\)", DOCS["docs/papers.md"])
    assert len(links) > 50
    for path, symbol in links:
        found: Any = import_module(path.replace("/", "."))
        for name in symbol.split("."):
            found = getattr(found, name)


@cache
def _anchors(page: Path) -> set[str]:
    """Of a page's headings, as GitHub and this site make them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
