"""`make test-wheel`: the newest wheel in dist/ in a clean environment, with no compiler and no checkout in reach.

In: `dist/*.whl` for this machine, PyPI. Out: for each user a line of `installed.py`, and the sizes of what was installed;
with qemu also a line of a processor that has no AVX: a wheel must not be made for its builder's. Apart from `installed.py`,
which runs inside of that environment and knows nothing of it.

    python release/try_wheel.py [WHEEL] [--python PYTHON]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
NOBODY = 65534
# numpy's own floor: SSE 4.2 and no AVX.
OLD = ["qemu-x86_64", "-cpu", "Nehalem"]


def size(folder: Path) -> float:
    """Megabytes of all files below a folder."""
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file() and not p.is_symlink()) / 1e6


def attempt(wheel: Path, python: str, folder: Path, user: int | None, old: bool) -> list[str]:
    """Installs and runs; gives the digests."""
    folder.chmod(0o755)
    home = folder / "home"
    home.mkdir()
    shutil.copy(wheel, folder)
    shutil.copy(HERE / "installed.py", folder)
    who: dict[str, Any] = {"user": user, "group": user, "extra_groups": []} if user is not None else {}
    if user is not None:
        os.chown(home, user, user)
    bin_ = home / "env" / "bin"
    # Nothing but the environment's own commands: no compiler, no cargo, no git, no shell.
    env = {"PATH": str(bin_), "HOME": str(home), "LANG": "C.UTF-8"}
    env |= {k: v for k, v in os.environ.items() if k.startswith(("PIP_", "SSL_")) or k.lower().endswith("_proxy")}

    def run(*command: object) -> str:
        done = subprocess.run(list(map(str, command)), env=env, cwd=home, text=True, capture_output=True, **who)
        if done.returncode:
            raise SystemExit(f"{' '.join(map(str, command))}: status {done.returncode}\n{done.stdout}{done.stderr}")
        return str(done.stdout).strip()

    run(python, "-m", "venv", home / "env")
    (site,) = (home / "env" / "lib").glob("python*/site-packages")
    before = size(site)
    run(bin_ / "python", "-m", "pip", "install", "--quiet", "--only-binary=:all:", folder / wheel.name)
    own = size(site / "navit_loader") + size(site / "navit_model")
    whole = size(site) - before
    print(
        f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB; installed {own:.1f} MB, with what it needs {whole:.0f} MB"
    )
    lines = [run(bin_ / "python", "-I", folder / "installed.py", home / "photos")]
    if old and shutil.which(OLD[0]):
        emulated = [str(shutil.which(OLD[0])), *OLD[1:], str(bin_ / "python")]
        lines.append(run(*emulated, "-I", folder / "installed.py", home / "photos", "--python", " ".join(emulated)))
    for line in lines:
        print(line, flush=True)
    return [json.loads(line)["digest"] for line in lines]


def main() -> None:
    """Tries as this user, and where this is root as one without any rights."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("wheel", type=Path, nargs="?")
    parser.add_argument("--python", default=sys.executable)
    args = parser.parse_args()
    dist = HERE.parent / "dist"
    fitting = sorted(dist.glob(f"*_{platform.machine()}.whl"), key=lambda p: p.stat().st_mtime)
    if not args.wheel and not fitting:
        raise SystemExit(f"there is no wheel for {platform.machine()} in {dist}; make wheel builds one")
    wheel = args.wheel or fitting[-1]
    digests = []
    for user in (None, NOBODY) if os.getuid() == 0 else (None,):
        try:
            subprocess.run([args.python, "-c", ""], user=user, cwd="/", check=True)
        except PermissionError:
            print(f"another user may not run {args.python}; --python /usr/bin/python3 may be one that all can")
            continue
        with tempfile.TemporaryDirectory() as folder:
            digests += attempt(wheel, args.python, Path(folder), user, user is None)
    if len(set(digests)) != 1:
        raise SystemExit(f"batches differ: {digests}")


if __name__ == "__main__":
    main()
