"""What a rented GPU machine without a network must be given: `make gpu-kit`. In: this checkout, PyPI. Out: dist/gpu/.

    core/     an abi3 wheel of navit, wheels that are small or that such machines lack; enough for correctness and steps
    corpus/   JPEGs of 0.2 MP, 70 KB: decode and feed read them
    arrow/    pyarrow, for machines that have none: an index needs it
    codec/    nvImageCodec, a second bare decoder; optional

Each folder works by itself and the sizes are printed, so that a narrow door takes them in turns; together they are at most
60 MB without `arrow/`. There: pip install --no-index --no-deps --target SITE dist/gpu/core/*.whl, then
PYTHONPATH=SITE python -P bench/gpu.py --kit dist/gpu.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CORE = (
    "pyzmq",
    "msgpack",
    "prometheus-client",
    "rich",
    "hypothesis",
    "sortedcontainers",
    "pytest-timeout",
    "safetensors",
)
OPTIONAL = {"arrow": ("pyarrow",), "codec": ("nvidia-nvimgcodec-cu13",)}
PLATFORMS = [f"manylinux_2_{n}_{{machine}}" for n in (28, 27, 24, 17)] + ["manylinux2014_{machine}"]


def download(to: Path, name: str, python: str, machine: str) -> str | None:
    """The wheel of a package, or why it could not be had."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "-d", str(to)]
    command += ["--python-version", python, "--implementation", "cp", "--abi", f"cp{python.replace('.', '')}"]
    command += ["--abi", "abi3", "--abi", "none"]
    for platform in PLATFORMS:
        command += ["--platform", platform.format(machine=machine)]
    done = subprocess.run([*command, name], capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else " ".join(done.stderr.split())[-200:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "dist" / "gpu")
    parser.add_argument("--python", default="3.12", help="of the machine with the GPU")
    parser.add_argument("--machine", default="x86_64")
    parser.add_argument("--images", type=int, default=300)
    args = parser.parse_args()
    shutil.rmtree(args.out, ignore_errors=True)
    core = args.out / "core"
    core.mkdir(parents=True)
    # Its own folder: the wheel that is built here is the one that is carried.
    maturin = [str(Path(sys.executable).with_name("maturin")), "build", "--release", "--locked", "--quiet"]
    subprocess.run([*maturin, "--compatibility", "linux", "--out", str(core)], cwd=ROOT, check=True)
    lost = {name: why for name in CORE if (why := download(core, name, args.python, args.machine))}
    for folder, names in OPTIONAL.items():
        lost |= {n: why for n in names if (why := download(args.out / folder, n, args.python, args.machine))}
    from corpus import write

    write(args.out / "corpus", args.images)
    for folder in sorted(p for p in args.out.iterdir() if p.is_dir()):
        files = list(folder.iterdir())
        print(f"{folder.name:8} {sum(f.stat().st_size for f in files) / 1e6:6.1f} MB  {len(files)} files")
    for name, why in lost.items():
        print(f"missing: {name}: {why}")


if __name__ == "__main__":
    main()
