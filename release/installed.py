"""Whether an installed navit works, by what the demo does without its model: index, plan, preview, render, serve, RemoteLoader.

In: a Python with navit installed and nothing else beside it, and a folder of photos, made where there is none. Out: one
line of JSON with a digest of all batches, the same on every machine. Apart from the tests: it needs no checkout and no
pytest, and runs under an emulator too.

    python -I installed.py FOLDER [--python "qemu-aarch64 -L ROOT ROOT/usr/bin/python3"]
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import platform
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

CONFIG = """
[data]
index = "{index}"
batch_size = 2
[plan]
sequence_length = 256
patch_sizes = [8]
passes = 2
[render]
threads = 2
"""
KINDS: dict[str, dict[str, Any]] = {
    "jpg": {},
    "progressive.jpg": {"progressive": True},
    "png": {},
    "webp": {},
    "avif": {},
}


def photos(folder: Path) -> None:
    """Forty images of two classes and five formats: a stripe and a slope."""
    import numpy as np
    from PIL import Image

    draw = np.random.default_rng(7)
    for i in range(40):
        height, width = draw.integers(24, 200, 2)
        y, x = np.mgrid[:height, :width]
        wave = x if i % 2 else y
        pixels = np.stack(
            [wave * 255 // max(height, width), (wave * (3 + i)) % 256, draw.integers(0, 256, (height, width))], 2
        )
        suffix, options = list(KINDS.items())[i % len(KINDS)]
        file = folder / ("stripe" if i % 2 else "slope") / f"{i:02}.{suffix}"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(file, **options)


def digest(loader: Iterable[Any]) -> tuple[str, int]:
    """Of all that one epoch's batches hold, and how many there are."""
    found, count = hashlib.sha256(), 0
    for batch in loader:
        for name in ("patches", "positions", "segment_ids", "grids", "image_ids", "labels", "status"):
            found.update(name.encode() + getattr(batch, name).tobytes())
        count += 1
    return found.hexdigest(), count


def main() -> None:
    """Does it all, in a folder of its own."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("photos", type=Path)
    parser.add_argument(
        "--python", help="how another process of this Python is started; by default the commands beside it are"
    )
    args = parser.parse_args()
    if not args.photos.exists():
        photos(args.photos)

    def command(package: str, *words: object) -> list[str]:
        script = Path(sys.executable).with_name(package.replace("_", "-"))
        start = [*shlex.split(args.python), "-m", package] if args.python else [str(script)]
        return [*start, *map(str, words)]

    def run(*words: object, package: str = "navit_loader") -> str:
        done = subprocess.run(command(package, *words), text=True, capture_output=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(map(str, words))}: status {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    from navit_loader import LoaderConfig, PackedLoader, RemoteLoader, _packer

    with tempfile.TemporaryDirectory() as folder:
        index, config = Path(folder) / "photos.arrow", Path(folder) / "photos.toml"
        run("index", args.photos, "-o", index)
        config.write_text(CONFIG.format(index=index), encoding="utf-8")
        run("plan", index, config)
        run("preview", index, config, "-o", Path(folder) / "packed.png")
        with PackedLoader(index, LoaderConfig.from_toml(config)) as loader:
            here, batches = digest(loader)
        serve = command("navit_loader", "serve", config, "--bind", "tcp://127.0.0.1:0")
        with contextlib.ExitStack() as stack:
            daemon = stack.enter_context(subprocess.Popen(serve, stdout=subprocess.PIPE, text=True))
            stack.callback(daemon.terminate)
            assert daemon.stdout is not None
            address = re.search(r"tcp://\S+", daemon.stdout.readline())
            if address is None:
                raise SystemExit("the daemon did not come up")
            with RemoteLoader([address[0]]) as remote:
                there, _ = digest(remote)
        if here != there:
            raise SystemExit(f"a daemon's batches are others: {here} here, {there} from it")
        doctor = run("doctor", package="navit_model")
    broken = [line for line in doctor.splitlines() if line.startswith("!")]
    if broken:
        raise SystemExit("doctor: " + "; ".join(broken))
    where = {"python": platform.python_version(), "machine": platform.machine(), "assembler": _packer.ASSEMBLER}
    print(json.dumps({**where, "batches": batches, "digest": here}))


if __name__ == "__main__":
    main()
