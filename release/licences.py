"""The licences of all that a wheel holds beside our own code, in one file that goes into its `dist-info/licenses`.

In: Cargo.lock, the crates' sources, a target. Out: `licences/THIRD-PARTY.txt`: every crate and C library that is linked in,
its licence, and the texts, each once. Apart from the build, since it needs cargo and no compiler; nothing but the standard
library.

    python release/licences.py [--target aarch64-unknown-linux-gnu] [--zig FOLDER]
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "licences" / "THIRD-PARTY.txt"
# What may stand in a wheel under Apache-2.0: all ask for no more than their text beside the binary.
ALLOWED = {
    "0BSD", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0",
    "CDLA-Permissive-2.0", "IJG", "ISC", "MIT", "MIT-0", "Unicode-3.0", "Unlicense", "Zlib",
}  # fmt: skip
_TEXT = re.compile(r"(un)?(licen[sc]e|copying|notice|patents|copyright|readme\.ijg)[^/]*", re.IGNORECASE)
# zstd is under BSD or GPL; we take it under BSD. The other is an icon's of an installer that is not built.
_NOT_OURS = ("zstd/COPYING", "libjpeg-turbo/release/License.rtf")
# C libraries that are linked in by a crate whose own licence is another; by the crate's name.
C_LIBRARIES = {
    "libdav1d-sys": ("dav1d", "BSD-2-Clause"),
    "libdeflate-sys": ("libdeflate", "MIT"),
    "libwebp-sys": ("libwebp", "BSD-3-Clause"),
    "turbojpeg-sys": ("libjpeg-turbo", "IJG AND BSD-3-Clause AND Zlib"),
    "zstd-sys": ("zstd", "BSD-3-Clause"),
}


class Part(NamedTuple):
    """Something that is linked in: what it is called, its licence as SPDX has it, whose it is, and its texts."""

    name: str
    licence: str
    origin: str
    texts: list[Path]


def allowed(licence: str) -> bool:
    """Whether an SPDX expression can be met by what we allow."""
    said = re.sub(r"\s*/\s*", " OR ", licence)
    terms = re.findall(r"\(|\)|\bAND\b|\bOR\b|[\w.+-]+(?: WITH [\w.+-]+)?", said)
    words = {"AND": "and", "OR": "or", "(": "(", ")": ")"}
    return bool(eval(" ".join(words.get(term) or str(term in ALLOWED) for term in terms)))


def crates(target: str) -> list[Part]:
    """The crates whose code is in the engine for a target, in order of their names."""
    command = [
        "cargo",
        "metadata",
        "--locked",
        "--format-version",
        "1",
        "--filter-platform",
        target,
        "--features",
        "python",
    ]
    done = subprocess.run(
        [*command, "--manifest-path", str(ROOT / "packer_rs/Cargo.toml")], capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"licences: cargo cannot tell what the engine is made of:\n{done.stderr.strip()}")
    said: dict[str, Any] = json.loads(done.stdout)
    packages = {p["id"]: p for p in said["packages"]}
    nodes = {n["id"]: n for n in said["resolve"]["nodes"]}
    found: dict[str, Part] = {}
    left = [next(p["id"] for p in packages.values() if p["name"] == "navit-packer")]
    seen = set(left)
    while left:
        package = packages[at := left.pop()]
        if package["source"] and not any("proc-macro" in t["kind"] for t in package["targets"]):
            if not package["license"]:
                raise SystemExit(f"licences: the crate '{package['name']}' names no licence; look at it by hand")
            folder = Path(package["manifest_path"]).parent
            texts = sorted(p for p in folder.rglob("*") if _TEXT.fullmatch(p.name) and p.is_file())
            texts = [p for p in texts if p.suffix not in (".rs", ".html") and not str(p).endswith(_NOT_OURS)]
            origin = package["repository"] or f"https://crates.io/crates/{package['name']}"
            name, licence = f"{package['name']} {package['version']}", package["license"]
            if package["name"] in C_LIBRARIES:
                library, own = C_LIBRARIES[package["name"]]
                name, licence = f"{name}, with {library}", f"({licence}) AND {own}"
            found[name] = Part(name, licence, origin, texts)
        elif package["source"]:
            continue
        for dep in nodes[at]["deps"]:
            linked = any(kind["kind"] is None for kind in dep["dep_kinds"])
            if linked and dep["pkg"] not in seen:
                seen.add(dep["pkg"])
                left.append(dep["pkg"])
    return [found[name] for name in sorted(found)]


def runtimes(zig: Path | None) -> Iterator[Part]:
    """What the compilers themselves link in."""
    version = subprocess.run(["rustc", "--version"], capture_output=True, text=True, check=True).stdout.split()[1]
    # Of their own texts only the Apache licence's is needed, which is ours as well.
    yield Part(
        f"rust standard library {version}", "MIT OR Apache-2.0", "https://github.com/rust-lang/rust", [ROOT / "LICENSE"]
    )
    if zig:
        yield Part("zig compiler runtime", "MIT", "https://ziglang.org", [zig / "LICENSE"])
        texts = [zig / "lib/libunwind/LICENSE.TXT"]
        yield Part("libunwind", "Apache-2.0 WITH LLVM-exception", "https://github.com/llvm/llvm-project", texts)


def host() -> str:
    """This machine's target, as rustc calls it."""
    said = subprocess.run(["rustc", "-vV"], capture_output=True, text=True, check=True).stdout
    return str(re.findall(r"host: (\S+)", said)[0])


def write(target: str, zig: Path | None = None, out: Path = OUT) -> list[Part]:
    """Writes the file; an unknown licence ends it with its crate's name."""
    parts = [*crates(target), *runtimes(zig)]
    for part in parts:
        if not allowed(part.licence):
            raise SystemExit(f"licences: '{part.licence}' of {part.name} is not known to be free to ship (ALLOWED)")
    texts: dict[str, tuple[str, list[str]]] = {}
    for part in parts:
        for path in part.texts:
            text = path.read_text(encoding="utf-8", errors="replace").strip()
            names = texts.setdefault(" ".join(text.split()), (text, []))[1]
            if part.name not in names:
                names.append(part.name)
    lines = ["This wheel's engine holds, beside navit's own code (Apache-2.0, LICENSE):", ""]
    for part in parts:
        bare = "" if part.texts else "; its package has no text of it"
        lines.append(f"  {part.name}: {part.licence}{bare}, {part.origin}")
    for text, names in texts.values():
        lines += ["", "=" * 100, *names, "=" * 100, "", text]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return parts


def main() -> None:
    """Writes the file and says what is in it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--target", default=host())
    parser.add_argument("--zig", type=Path, help="folder of the package ziglang, where it is the compiler")
    args = parser.parse_args()
    parts = write(args.target, args.zig)
    print(f"{OUT.relative_to(ROOT)}: {len(parts)} parts, {OUT.stat().st_size / 1e3:.0f} KB")


if __name__ == "__main__":
    main()
