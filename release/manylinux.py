"""`make wheel`: the wheels that are published, for any Linux with glibc 2.28, on x86-64 and on Arm.

In: this checkout, cargo, nasm, pyproject's group `release`; for Arm a Rust standard library for it. Out: `dist/*.whl` with
the tag that auditwheel found right, no path of the builder's in it, and its size. Apart from `backend.py`, which builds for
the machine it runs on: here zig is the C compiler and the linker, since it knows old glibcs.

    python release/manylinux.py [--machine aarch64] [--max-mb 15]
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import licences

ROOT = licences.ROOT
GLIBC = "2.28"
# Names by which build scripts call the compiler, and what zig calls the tool.
_ZIG = {"cc": "cc", "c++": "c++", "ar": "ar", "ranlib": "ranlib", "strip": "objcopy --strip-all"}


def zig_folder() -> Path:
    """Where the package ziglang lies."""
    found = importlib.util.find_spec("ziglang")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("make wheel needs zig for an old glibc: pip install ziglang")
    return Path(found.submodule_search_locations[0])


def wrappers(folder: Path, machine: str) -> None:
    """Compilers for meson, which follows neither maturin's settings nor cargo's: `aarch64-linux-gnu-gcc` and their like."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, tool in _ZIG.items():
        target = f" -target {machine}-linux-gnu.{GLIBC}" if name in ("cc", "c++") else ""
        text = f'#!/bin/sh\nexec "{sys.executable}" -m ziglang {tool}{target} "$@"\n'
        for alias in {"cc": ["zcc", "gcc"], "c++": ["g++"]}.get(name, [name]):
            file = folder / (alias if alias == "zcc" else f"{machine}-linux-gnu-{alias}")
            file.write_text(text, encoding="utf-8")
            file.chmod(0o755)


def tag(machine: str) -> str:
    """The platform that a wheel is for."""
    return f"manylinux_{GLIBC.replace('.', '_')}_{machine}"


def target_folder() -> Path:
    """Where cargo puts what it makes."""
    return Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target")


def places() -> dict[str, str]:
    """Folders of this machine that compilers write into what they make, and what they shall write instead."""
    cargo = Path(os.environ.get("CARGO_HOME") or Path.home() / ".cargo")
    sysroot = subprocess.run(
        [os.environ.get("RUSTC", "rustc"), "--print", "sysroot"], capture_output=True, text=True, check=True
    ).stdout.strip()
    crates = {str(folder): "crates" for folder in (cargo / "registry" / "src").glob("*")}
    return {**crates, sysroot: "rust", str(zig_folder()): "zig", str(target_folder()): "target", str(ROOT): "navit"}


def build(machine: str, out: Path) -> Path:
    """maturin's wheel, whose tag nobody has checked yet."""
    tools = target_folder() / "zig" / machine
    wrappers(tools, machine)
    mapped = places().items()
    env = {
        **os.environ,
        "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
        "RUSTFLAGS": " ".join(f"--remap-path-prefix={old}={new}" for old, new in mapped),
        "CFLAGS": " ".join(f"-ffile-prefix-map={old}={new}" for old, new in mapped),
        "CMAKE_GENERATOR": "Ninja",
        "CARGO_PROFILE_RELEASE_DEBUG": "0",
    }
    if machine == licences.host().partition("-")[0]:
        env["CC"] = str(tools / "zcc")  # meson's; where it crosses, the crate tells it gcc's name
    maturin = [str(Path(sys.executable).with_name("maturin")), "build", "--release", "--locked", "--zig"]
    # From the tag's name maturin takes the glibc that zig is told.
    maturin += ["--target", f"{machine}-unknown-linux-gnu", "--compatibility", tag(machine).removesuffix(f"_{machine}")]
    maturin += ["--auditwheel", "skip", "--out", str(out)]
    subprocess.run(maturin, cwd=ROOT, env=env, check=True)
    (wheel,) = out.glob("*.whl")
    return wheel


def without_paths(wheel: Path, out: Path) -> Path:
    """The wheel with its bill of materials as if the sources lay in `/navit`: maturin writes where they do."""
    from auditwheel.wheeltools import InWheel

    out.mkdir()
    with InWheel(wheel, out / wheel.name) as inside:
        for file in inside.rglob("sboms/*.json"):
            file.write_text(file.read_text(encoding="utf-8").replace(str(ROOT), "/navit"), encoding="utf-8")
    return out / wheel.name


def leaks(wheel: Path, folders: set[str]) -> list[str]:
    """Which of a machine's folders stand in the wheel, and in which of its files."""
    found = []
    words = {folder.rstrip("/") + "/" for folder in folders}
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            data = archive.read(name)
            found += [f"{name} holds '{word}'" for word in sorted(words) if word.encode() in data]
    return found


def main() -> None:
    """Builds, checks and tells."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--machine", choices=["x86_64", "aarch64"], default=licences.host().partition("-")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    parser.add_argument("--max-mb", type=float, default=15)
    args = parser.parse_args()
    if args.machine == "x86_64" and not shutil.which("nasm"):
        raise SystemExit("make wheel needs the assembler nasm; on Debian: apt-get install nasm")
    licences.write(f"{args.machine}-unknown-linux-gnu", zig_folder())
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        plain = build(args.machine, Path(folder))
        # Refuses where a symbol is younger than that glibc, or a library is needed that is not on every Linux.
        plat = tag(args.machine)
        repair = [
            sys.executable,
            "-m",
            "auditwheel",
            "repair",
            "--plat",
            plat,
            "--only-plat",
            "-w",
            str(Path(folder) / "out"),
        ]
        done = subprocess.run([*repair, str(plain)], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"auditwheel refuses {plain.name} as {plat}:\n{done.stdout}{done.stderr}")
        (wheel,) = (Path(folder) / "out").glob("*.whl")
        wheel = without_paths(wheel, Path(folder) / "clean")
        if found := leaks(wheel, {*places(), str(Path.home()), sys.prefix}):
            raise SystemExit("the wheel tells of the machine that built it:\n  " + "\n  ".join(found))
        mb = wheel.stat().st_size / 1e6
        if mb > args.max_mb:
            raise SystemExit(f"{wheel.name} has {mb:.1f} MB, more than {args.max_mb:g}")
        with zipfile.ZipFile(wheel) as archive:
            whole = sum(info.file_size for info in archive.infolist()) / 1e6
        shutil.move(wheel, args.out / wheel.name)
    print(f"{args.out / wheel.name}: {mb:.1f} MB, {whole:.1f} MB installed, without what it depends on")


if __name__ == "__main__":
    main()
