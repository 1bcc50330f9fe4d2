"""How pip builds navit from its sources: maturin, after a look at what this machine has.

In: what pip, uv or `build` ask a backend (PEP 517, 660). Out: maturin's answers; or one line, before anything is fetched or
compiled, that says which tool is missing. Apart from maturin because it knows nothing of the C libraries inside: their
build tools come from PyPI, except the assembler nasm, which no package there carries. Without it the libraries are built
without their assembler code; decoders stay exact, some are slower, and `navit-model doctor` says so.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import licences
import maturin
from maturin import build_sdist as build_sdist
from maturin import get_requires_for_build_sdist as get_requires_for_build_sdist

Settings = Mapping[str, Any] | None

ROOT = Path(__file__).resolve().parents[1]


def missing() -> str | None:
    """What must be on this machine and is not, with the way to get it; None where all is there."""
    cargo = tomllib.loads((ROOT / "Cargo.toml").read_text(encoding="utf-8"))
    need = cargo["workspace"]["package"]["rust-version"]
    if not shutil.which("cargo") or not (rustc := shutil.which(os.environ.get("RUSTC", "rustc"))):
        return f"navit's engine is written in Rust, and no 'cargo' is on PATH; install Rust >= {need}, as with rustup"
    said = subprocess.run([rustc, "--version"], capture_output=True, text=True).stdout
    has = re.search(r"\d+(?:\.\d+)+", said)
    if has and tuple(map(int, has[0].split("."))) < tuple(map(int, need.split("."))):
        return f"navit needs Rust >= {need}, and {rustc} is {has[0]}; 'rustup update' or a newer package brings it"
    if not os.environ.get("CC") and not shutil.which("cc"):
        return "navit's engine holds C libraries, and no C compiler 'cc' is on PATH; on Debian: apt-get install gcc libc6-dev"
    return None


def assembled() -> bool:
    """Whether the C libraries can have their assembler code: processors other than x86 need no nasm for it."""
    return platform.machine().lower() not in ("x86_64", "amd64") or shutil.which("nasm") is not None


@contextlib.contextmanager
def _tools() -> Iterator[dict[str, Any]]:
    """Sets the environment for cmake and meson, and gives maturin's settings."""
    licences.write(licences.host())
    os.environ.setdefault("CMAKE_GENERATOR", "Ninja")  # make may be missing
    if assembled():
        yield {}
        return
    print(
        "nasm is not on PATH: libjpeg-turbo and dav1d are built without their assembler code (see docs/how-to/install.md)"
    )
    before, meson = os.environ["PATH"], shutil.which("meson")
    with tempfile.TemporaryDirectory() as folder:
        # The crate libdav1d-sys passes meson no options of ours, and meson takes none from the environment.
        shim = Path(folder) / "meson"
        shim.write_text(f'#!/bin/sh\nexec "{meson}" "$@" -Denable_asm=false\n', encoding="utf-8")
        shim.chmod(0o755)
        os.environ["PATH"] = f"{folder}{os.pathsep}{before}"
        try:
            yield {"maturin.build-args": ["--no-default-features", "--features", "python"]}
        finally:
            os.environ["PATH"] = before


def get_requires_for_build_wheel(config_settings: Settings = None) -> list[str]:
    """Build tools from PyPI; ends here, with one line, where others are missing."""
    if line := missing():
        raise SystemExit(line)
    tools: list[str] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["dependency-groups"][
        "build"
    ]
    return tools


get_requires_for_build_editable = get_requires_for_build_wheel


def prepare_metadata_for_build_wheel(folder: str, config_settings: Settings = None) -> str:
    """Metadata before anything is compiled."""
    licences.write(licences.host())
    said: str = maturin.prepare_metadata_for_build_wheel(folder, config_settings)
    return said


prepare_metadata_for_build_editable = prepare_metadata_for_build_wheel


def build_wheel(folder: str, config_settings: Settings = None, metadata_directory: str | None = None) -> str:
    """A wheel for this machine."""
    with _tools() as settings:
        said: str = maturin.build_wheel(folder, {**settings, **(config_settings or {})}, metadata_directory)
    return said


def build_editable(folder: str, config_settings: Settings = None, metadata_directory: str | None = None) -> str:
    """A wheel that points here: `pip install -e .`."""
    with _tools() as settings:
        said: str = maturin.build_editable(folder, {**settings, **(config_settings or {})}, metadata_directory)
    return said
