"""What is published: names that agree, licences of all that is inside, sources that build or say why not, no builder's path.

The wheels themselves are built and tried by `make wheel test-wheel`, which takes too long for here.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
NAME = PROJECT["project"]["name"]
SAYS = [
    ROOT / "README.md",
    *(p for d in ("navit_loader", "navit_model", "docs", "examples", "bench", "tests") for p in (ROOT / d).rglob("*")),
]


@pytest.fixture(autouse=True)
def _release(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "release"))


def test_every_hint_names_the_distribution_and_an_extra_of_it() -> None:
    extras, found = PROJECT["project"]["optional-dependencies"], 0
    for path in SAYS:
        if path.suffix in (".py", ".md", ".yaml", ".toml"):
            for name, extra in re.findall(r"([\w-]*navit)\[([a-z]+)\]", path.read_text(encoding="utf-8")):
                assert name == NAME and extra in extras, f"{path}: {name}[{extra}]"
                found += 1
    assert found > 10
    own = [r for rs in extras.values() for r in rs if "navit" in r]
    assert own and all(r.startswith(f"{NAME}[") for r in own)


def test_the_stable_abi_is_that_of_the_oldest_python() -> None:
    cargo = tomllib.loads((ROOT / "packer_rs/Cargo.toml").read_text(encoding="utf-8"))
    oldest = PROJECT["project"]["requires-python"].removeprefix(">=")
    assert f"abi3-py{oldest.replace('.', '')}" in cargo["dependencies"]["pyo3"]["features"]


def test_the_licence_of_all_that_is_linked_in_is_known(tmp_path: Path) -> None:
    import licences

    parts = licences.write("x86_64-unknown-linux-gnu", out=tmp_path / "all.txt")
    text = (tmp_path / "all.txt").read_text(encoding="utf-8")
    for library in ("dav1d", "libdeflate", "libjpeg-turbo", "libwebp", "zstd"):
        assert f"with {library}:" in text
    for said in ("VideoLAN and dav1d authors", "Independent JPEG Group", "Google Inc"):
        assert said in text, said
    bare = [p.name for p in parts if not p.texts and not re.search("MIT|Apache", p.licence)]
    assert not bare, "licences whose text nobody else has"
    # Crates with a C library inside say so in `links` or by their names; ring has texts for its own C, the other is Python's.
    command = ["cargo", "metadata", "--locked", "--offline", "--format-version", "1"]
    packages = json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout)["packages"]
    native = {p["name"] for p in packages if p["links"] or p["name"].endswith("-sys")} & {
        p.name.split()[0] for p in parts
    }
    assert native - {"ring", "pyo3-ffi"} == set(licences.C_LIBRARIES)


@pytest.mark.parametrize(
    ("licence", "free"),
    [
        ("MIT", True),
        ("MIT/Apache-2.0", True),
        ("GPL-2.0-only", False),
        ("MIT OR GPL-2.0-only", True),
        ("MIT AND GPL-2.0-only", False),
        ("(MIT OR Apache-2.0) AND Unicode-3.0", True),
        ("Apache-2.0 WITH LLVM-exception", True),
    ],
)
def test_an_expression_is_free_where_one_of_its_ways_is(licence: str, free: bool) -> None:
    import licences

    assert licences.allowed(licence) is free


def backend(code: str, path: Path) -> subprocess.CompletedProcess[str]:
    """Code that uses the build backend, in a process that finds `path`'s commands alone."""
    env = {k: v for k, v in os.environ.items() if k not in ("CC", "RUSTC")} | {"PATH": str(path)}
    env["PYTHONPATH"] = str(ROOT / "release")
    return subprocess.run(
        [sys.executable, "-c", f"import backend; {code}"], env=env, cwd=ROOT, text=True, capture_output=True
    )


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A folder for commands."""
    (tmp_path / "bin").mkdir()
    return tmp_path / "bin"


def link(folder: Path, *names: str) -> None:
    """Puts commands of this machine there, by a script: some look at their own name and place."""
    for name in names:
        (folder / name).write_text(f'#!/bin/sh\nexec "{shutil.which(name)}" "$@"\n')
        (folder / name).chmod(0o755)


def test_a_missing_tool_is_one_line_before_anything_is_fetched(tools: Path) -> None:
    ask = "print(backend.get_requires_for_build_wheel())"
    done = backend(ask, tools)
    assert done.returncode and len(done.stderr.splitlines()) == 1 and "'cargo'" in done.stderr, done
    link(tools, "cargo")
    (tools / "rustc").write_text("#!/bin/sh\necho 'rustc 1.63.0 (4b91a6ea7 2022-08-08)'\n")
    (tools / "rustc").chmod(0o755)
    done = backend(ask, tools)
    assert done.returncode and len(done.stderr.splitlines()) == 1 and "1.63.0" in done.stderr, done
    link(tools, "rustc")
    done = backend(ask, tools)
    assert done.returncode and len(done.stderr.splitlines()) == 1 and "'cc'" in done.stderr, done
    link(tools, "cc")
    done = backend(ask, tools)
    assert done.returncode == 0 and "cmake" in done.stdout and "ninja" in done.stdout, done


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="other processors need no nasm")
def test_without_nasm_the_libraries_are_built_without_their_assembler_code(tools: Path, tmp_path: Path) -> None:
    link(tools, "cargo", "rustc", "cc", "ninja")
    (tools / "meson").symlink_to(shutil.which("meson") or "")
    project = tmp_path / "project"
    project.mkdir()
    (project / "meson.build").write_text("project('p')\n")
    (project / "meson_options.txt").write_text("option('enable_asm', type: 'boolean', value: true)\n")
    say = (
        "import subprocess, shutil\n"
        "with backend._tools() as said:\n"
        f"  subprocess.run(['meson', 'setup', {str(tmp_path / 'out')!r}, {str(project)!r}], check=True)\n"
        f"subprocess.run(['meson', 'introspect', '--buildoptions', {str(tmp_path / 'out')!r}], check=True)\n"
        "print(said)\n"
    )
    done = backend(f"exec({say!r})", tools)
    assert done.returncode == 0, done.stderr
    assert "nasm is not on PATH" in done.stdout and "--no-default-features" in done.stdout
    assert re.search(r'"name": "enable_asm", "value": false', done.stdout), done.stdout


def test_the_sources_hold_what_their_build_needs(tmp_path: Path) -> None:
    maturin = str(Path(sys.executable).with_name("maturin"))
    subprocess.run([maturin, "sdist", "--out", str(tmp_path)], cwd=ROOT, check=True, capture_output=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    assert {
        "release/backend.py",
        "release/licences.py",
        "Cargo.lock",
        "LICENSE",
        "navit_loader/py.typed",
        "navit_model/py.typed",
    } <= names
    assert "navit_loader/_packer.pyi" in names and not any(name.startswith(("tests/", "bench/")) for name in names)


def test_a_builders_path_in_a_wheel_is_found(tmp_path: Path) -> None:
    import manylinux

    with zipfile.ZipFile(tmp_path / "a.whl", "w") as archive:
        archive.writestr("clean.so", b"\0/rustc/1234/library/core\0navit/packer_rs/src/lib.rs\0")
        archive.writestr("sbom.json", json.dumps({"at": f"file://{ROOT}/packer_rs"}))
    assert [line.partition(" ")[0] for line in manylinux.leaks(tmp_path / "a.whl", {str(ROOT), "/root"})] == [
        "sbom.json"
    ]
