"""What the site holds beside the pages of docs/, made while it is built and never committed.

In: MkDocs' events. Out: the reference (`generated`); `CHANGELOG.md`, `CONTRIBUTING.md` and `bench/README.md` as pages; and a
page for each file of this repository that a page links to, at the line of its `#symbol`. So links also work in a checkout.
Apart from `mkdocs.yml`, which lists the pages.
"""

from __future__ import annotations

import ast
import posixpath
import re
from pathlib import Path
from typing import Any

from generated import PAGES
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
TAKEN_IN = {"CHANGELOG.md": "changes.md", "CONTRIBUTING.md": "contributing.md", "bench/README.md": "figures.md"}
"""Pages that lie elsewhere, since whoever looks into a repository looks for them there."""
HOME = {page: path for path, page in TAKEN_IN.items()} | {"index.md": "docs/index.md"}
LINK = re.compile(r"(?<=\]\()(?![a-z+]+:|#)([^()\s#]+)(?:#([^()\s]+))?(?=\))")
PICTURES = {".gif", ".jpg", ".png", ".svg"}
LANGUAGES = {
    ".py": "python",
    ".pyi": "python",
    ".rs": "rust",
    ".toml": "toml",
    ".yaml": "yaml",
    ".sh": "sh",
    ".sbatch": "sh",
}


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages that no file of docs/ holds."""
    texts = {page: (ROOT / path).read_text(encoding="utf-8") for path, page in TAKEN_IN.items()}
    texts |= {page: make() for page, make in PAGES.items()}
    unread = texts | {f.src_uri: f.content_string for f in files.documentation_pages()}
    while unread:
        wanted = {_repository_path(page, link[1]) for page, text in unread.items() for link in LINK.finditer(text)}
        unread = {}
        for path in sorted(path for path in wanted if not path.startswith("docs/") and (ROOT / path).exists()):
            page = _page_of(path)
            if Path(path).suffix in PICTURES and files.get_file_from_path(page) is None:
                files.append(File.generated(config, page, abs_src_path=str(ROOT / path)))
            elif Path(path).suffix not in PICTURES and page not in texts:
                texts[page] = _source(ROOT / path)
                unread |= {page: texts[page]} if path.endswith(".md") else {}
    for page, text in texts.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links to files of the repository lead to their pages here; comments, such as those for the tests, are left out."""
    here = page.file
    if _is_code(here.src_uri):
        return markdown

    def led(link: re.Match[str]) -> str:
        path, symbol = _repository_path(here.src_uri, link[1]), link[2]
        if path.startswith("docs/"):
            inside = posixpath.relpath(path.removeprefix("docs/"), posixpath.dirname(here.src_uri) or ".")
            return inside + (f"#{symbol}" if symbol else "")
        found = files.get_file_from_path(_page_of(path))
        if found is None:
            raise PluginError(f"{here.src_uri} links to '{link[0]}': there is no file '{path}'")
        if symbol and _is_code(found.src_uri):
            symbol = f"__codelineno-0-{line_of(ROOT / path, symbol)}"
        return posixpath.relpath(found.src_uri, posixpath.dirname(here.src_uri) or ".") + (
            f"#{symbol}" if symbol else ""
        )

    said = markdown.replace("<!-- What you get -->", _table_of("README.md", "What you get"))
    return LINK.sub(led, re.sub(r"^<!--.*?-->\n", "", said, flags=re.DOTALL | re.MULTILINE))


def on_page_content(html: str, page: Any, config: Any, files: Files) -> str:
    """Lines of code are places that a link may lead to, which MkDocs does not know."""
    page.present_anchor_ids |= set(re.findall(r'id="(__codelineno-\d+-\d+)"', html))
    return html


def line_of(path: Path, symbol: str) -> int:
    """Where a file says what `Name` is; in Python also `Name.name`.

    Raises:
        PluginError: nowhere.
    """
    text, line = path.read_text(encoding="utf-8"), 0
    if path.suffix == ".rs":
        if found := re.search(rf"^[^/\n]*\b(?:fn|struct|enum|const) {symbol}\b", text, re.MULTILINE):
            return text.count("\n", 0, found.start()) + 1
        raise PluginError(f"'{path.relative_to(ROOT)}' has no '{symbol}', which a page links to")
    body: list[ast.stmt] = ast.parse(text).body
    for name in symbol.split("."):
        for node in body:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            if getattr(node, "name", None) == name or any(isinstance(t, ast.Name) and t.id == name for t in targets):
                line, body = node.lineno, getattr(node, "body", [])
                break
        else:
            raise PluginError(f"'{path.relative_to(ROOT)}' has no '{symbol}', which a page links to")
    return line


def _table_of(path: str, section: str) -> str:
    """The table in a section of another page."""
    text = (ROOT / path).read_text(encoding="utf-8").partition(f"## {section}\n")[2]
    return "\n".join(line for line in text.partition("\n## ")[0].splitlines() if line.startswith("|"))


def _repository_path(page: str, link: str) -> str:
    """What a link of a page means, from the repository's root."""
    home = HOME.get(page, page.removeprefix("source/") if page.startswith("source/") else f"docs/{page}")
    return posixpath.normpath(posixpath.join(posixpath.dirname(home), link))


def _page_of(path: str) -> str:
    """Where a file of the repository is in the site: Markdown and pictures as they are, others with `.md` behind."""
    return TAKEN_IN.get(path, f"source/{path}" + ("" if Path(path).suffix in {*PICTURES, ".md"} else ".md"))


def _is_code(page: str) -> bool:
    return page.startswith("source/") and not (ROOT / page.removeprefix("source/")).exists()


def _source(path: Path) -> str:
    """A page of a file's text, or of the names in a folder."""
    text = "\n".join(sorted(one.name for one in path.iterdir())) if path.is_dir() else path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        return text
    head = f"---\nsearch: {{exclude: true}}\nhide: [navigation, toc]\n---\n\n# {path.relative_to(ROOT)}\n\n"
    return f'{head}``````{LANGUAGES.get(path.suffix, "text")} linenums="1"\n{text}\n``````\n'
