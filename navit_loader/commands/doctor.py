"""`navit-loader doctor`: what this machine reads, decodes and serves with, a row for each part, why, and what mends it.

In: nothing but the machine; the engine need not be there. Out: a table of parts, what each is here, and the reason and remedy.
Status 1 where something that all else needs is missing or does not work. Formats are not looked up but tried: a small picture
of each goes through the engine. `navit-model doctor` puts its own rows among these.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import io
import os
import platform
import resource
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import EXTRAS, NavitError, said
from ..shown import answer, say
from . import add_output

_SAMPLES = {
    "jpeg": ("JPEG", "our own decoder, libjpeg-turbo for what it leaves"),
    "png": ("PNG", "libdeflate, the crate png for what it leaves"),
    "webp": ("WEBP", "libwebp"),
    "avif": ("AVIF", "dav1d, Pillow in a helper process for what is not plain"),
    "gif": ("GIF", "the crate gif, Pillow for what it misreads"),
    "bmp": ("BMP", "the crate bmp, Pillow for what it misreads"),
    "tiff": ("TIFF", "the crate tiff, Pillow for what it leaves"),
    "jpeg2000": ("JPEG2000", "Pillow in a helper process, which is slower"),
    "ppm": ("PPM", "Pillow in a helper process, which is slower"),
}
"""Formats of which Pillow may write a sample: its name of them, and who decodes them."""

_MORE_EXTRAS = {"pillow_heif": "heif", "sklearn": "demo", "torchvision": "nvjpeg", "nvidia.dali": "dali"}
"""Packages of extras beside `EXTRAS`, which navit does without where they are missing."""

_FAST = ("avx2", "bmi1", "bmi2", "movbe", "popcnt")
"""Flags of x86-64 processors with which the engine takes its fast forms; see `fast` in `jpeg_rs` and `packer_rs`."""

FILES = 256
"""Files that may be open, below which a daemon soon refuses clients and a mixture its indexes."""

SMALL = 256 << 20
"""Bytes of /dev/shm below which others that train here, such as NCCL, run out of it."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table.

    Attributes:
        part: of the machine or of what is installed.
        what: it is here.
        why: it is so, or what follows.
        well: False where it does not work, and is needed.
        mend: a command, or a key, that makes it better; empty where nothing hurts.
    """

    part: str
    what: str
    why: str = ""
    well: bool = True
    mend: str = ""


Rows = Callable[[], Iterator[Row]]


def add(subparsers: Any, of: Rows | None = None, more: str = "") -> None:
    """Adds the subcommand.

    Args:
        subparsers: of either command line.
        of: gives its rows.
        more: what it tells beside this one's.
    """
    parser = subparsers.add_parser(
        "doctor",
        examples=("doctor", "doctor --json"),
        help="say what this machine can do, why, and what mends it",
        description="Machine, limits, engine, decoders, extras, GPUs, shared memory, clock and keys"
        + more
        + "; what can be "
        "better stands with the command for it. Exit status 1 where something needed does not work.",
    )
    add_output(parser, prints=True)
    parser.set_defaults(run=partial(run, of or rows))


def run(of: Rows, args: argparse.Namespace) -> int:
    """Prints the table."""
    found = list(of())
    answer([asdict(row) for row in found])
    first, second = (
        max(len(cell) for cell in column) for column in zip(*((r.part, r.what) for r in found), strict=True)
    )
    left = max(40, shutil.get_terminal_size((160, 24)).columns - first - second - 6)
    for row in found:
        told = row.why + (f"; mend: {row.mend}" if row.mend else "")
        why, *more = textwrap.wrap(told, left) or [""]
        say(f"{' ' if row.well else '!'} {row.part:<{first}}  {row.what:<{second}}  {why}".rstrip())
        for line in more:
            say(" " * (first + second + 6) + line)
    return int(not all(row.well for row in found))


def rows() -> Iterator[Row]:
    """Those of the loader."""
    yield from basis()
    yield from driver()
    yield from decoders()
    yield from limits()
    yield from extras()


def basis() -> Iterator[Row]:
    """Python, packages, machine and engine."""
    yield Row("python", platform.python_version(), f"{sys.executable}, {platform.platform()}")
    others = ", ".join(
        f"{name} {version}" for name in ("numpy", "pyarrow", "pillow", "pyzmq") if (version := _version(name))
    )
    yield Row("navit", _navit(), others)
    yield from _machine()
    yield from _engine()


def _navit() -> str:
    try:
        from .. import _packer
    except ImportError:
        return "not built"
    return _packer.__version__


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def cores() -> int:
    """Those that this process may use, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _machine() -> Iterator[Row]:
    own, quota = cores(), _quota()
    if quota and quota < own:
        yield Row(
            "cores",
            f"{own}",
            f"but its container may use {quota:g} at a time, and more threads wait for each other",
            mend=f"render.threads = {max(1, int(quota))}, or docker run --cpus={own}",
        )
    else:
        yield Row(
            "cores", f"{own}", "that this process may use" + (f" of {os.cpu_count()}" if own != os.cpu_count() else "")
        )
    bound, total = _memory_bound(), os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    within = f"its container's, of {total / 2**30:,.1f} GiB" if bound and bound < total else "of the machine"
    yield Row("memory", f"{min(bound or total, total) / 2**30:,.1f} GiB", within)
    have = flags()
    if platform.machine() not in ("x86_64", "AMD64"):
        yield Row("simd", "plain", f"the engine's fast forms are for x86-64 alone, this is {platform.machine()}")
    elif missing := [flag for flag in _FAST if flag not in have]:
        yield Row("simd", "plain", f"this processor has no {', '.join(missing)}: decoding takes some twice as long")
    else:
        yield Row("simd", "AVX2", "JPEG, resize and patches in 256 bits; other decoders choose for themselves")


def _quota() -> float:
    """Cores that the container may use at a time; 0 where none is said."""
    try:
        most, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return 0.0 if most == "max" else int(most) / int(period)
    except (OSError, ValueError):
        pass
    try:
        old = Path("/sys/fs/cgroup/cpu")
        most, period = ((old / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return max(0.0, int(most) / int(period))
    except (OSError, ValueError):
        return 0.0


def _memory_bound() -> int:
    """Bytes that the container may use; 0 where none is said."""
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            return int(Path(path).read_text())
        except (OSError, ValueError):
            pass
    return 0


def _engine() -> Iterator[Row]:
    try:
        from .. import _packer
    except ImportError as e:
        yield Row(
            "engine",
            "none",
            f"{said(e)[0]}; a model runs without it, nothing else does: make build",
            well=False,
            mend="make build",
        )
        return
    debug = _packer.BUILD_PROFILE != "release"
    yield Row(
        "engine", f"{_packer.BUILD_PROFILE} build", "slow, some ten times: make build makes another" if debug else ""
    )


def flags() -> set[str]:
    """What the processor can do; empty where the system does not say."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return set(next((line for line in file if line.startswith("flags")), "").split())
    except OSError:
        return set()


def driver() -> Iterator[Row]:
    """NVIDIA's, without asking any library."""
    try:
        line = Path("/proc/driver/nvidia/version").read_text().split("\n")[0]
        yield Row("driver", next((word for word in line.split() if word[:1].isdigit()), "there"), line)
    except OSError:
        yield Row("driver", "none", "this system shows no driver of NVIDIA; in a container it wants --gpus all")


def decoders() -> Iterator[Row]:
    """Each format, tried."""
    try:
        from PIL import Image

        from ..batch import OK
        from ..config import RenderConfig
        from ..render.images import pack_images
    except ImportError:
        return
    yield Row(
        "decoding",
        f"{cores()} threads",
        f"a core each: render.threads; {RenderConfig().memory_mb} MB: render.memory_mb",
    )
    Image.init()
    for name, (kind, who) in _SAMPLES.items():
        if kind not in Image.SAVE:
            yield Row(f"  {name}", "not tried", f"this Pillow writes no sample of it; {who}")
            continue
        file = io.BytesIO()
        try:
            Image.new("RGB", (48, 32), (90, 120, 40)).save(file, kind)
        except OSError as e:
            yield Row(f"  {name}", "not tried", f"this Pillow writes no sample of it ({said(e)[0]}); {who}")
            continue
        try:
            works, how = int(pack_images([file.getvalue()]).status.max()) == OK, "it fails on a sound file"
        except NavitError as e:
            works, how = False, said(e)[0]
        yield Row(f"  {name}", "ok" if works else "fails", who if works else how, well=works)
    yield Row("  jpeg xl", "not tried", "the crate jxl")
    heif = there("pillow_heif")
    why = "pillow-heif in a helper process, which is slower" if heif else "HEIF and HEIC are refused"
    yield Row("  heif", "not tried" if heif else "none", why, mend="" if heif else "pip install 'navit[heif]'")


def there(package: str) -> bool:
    """Whether a package is installed, which is not imported."""
    try:
        found = importlib.util.find_spec(package)
    except ModuleNotFoundError:
        return False
    # A bare folder of that name has no origin.
    return found is not None and found.origin is not None


def limits() -> Iterator[Row]:
    """What the system lets a process have."""
    yield _shared()
    yield from _shm()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = "any number" if hard == resource.RLIM_INFINITY else f"{hard:,}"
    few = hard != resource.RLIM_INFINITY and hard < FILES
    yield Row(
        "open files",
        f"{soft:,} of {most}",
        "too few for a daemon and its clients" if few else "a daemon takes all that are allowed, one or more a client",
        well=not few,
        mend="ulimit -n 65536 as root, or docker run --ulimit nofile=65536" if few else "",
    )
    yield _clock()
    yield _curve()


def _shm() -> Iterator[Row]:
    """The folder that others share memory by."""
    try:
        size = shutil.disk_usage("/dev/shm").total
    except OSError:
        return
    small = size < SMALL
    why = "navit does without it; NCCL between GPUs, Ray and torch's own workers do not"
    yield Row("/dev/shm", f"{size / 2**20:,.0f} MiB", why, mend="docker run --shm-size=8g" if small else "")


def _clock() -> Row:
    """Buckets refuse requests that are signed a quarter of an hour off."""
    now = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    if time.time() < Path(__file__).stat().st_mtime - 86400:
        return Row("clock", now, "it is behind the files of this package", mend="timedatectl set-ntp true")
    return Row("clock", now, "buckets refuse requests that are signed a quarter of an hour off")


def _curve() -> Row:
    try:
        import zmq
    except ImportError as e:
        return Row("zeromq", "none", said(e)[0], well=False, mend="pip install pyzmq")
    if zmq.has("curve"):
        return Row("zeromq", zmq.zmq_version(), "with CURVE: keys for daemons beyond this host")
    mend = "pip install --force-reinstall --only-binary pyzmq pyzmq"
    return Row("zeromq", zmq.zmq_version(), "without CURVE: a daemon serves this host alone", mend=mend)


def _shared() -> Row:
    try:
        from ..service.shm import SUPPORTED
    except ImportError as e:
        return Row("shared memory", "none", said(e)[0])
    if not SUPPORTED:
        return Row(
            "shared memory", "none", "this system has no memfd: daemons send batches through sockets, which copies them"
        )
    try:
        os.close(os.memfd_create("navit-doctor"))
    except OSError as e:
        return Row("shared memory", "none", f"memfd is refused ({e.strerror}): daemons send batches through sockets")
    return Row(
        "shared memory", "memfd", "batches of a daemon on this host are not copied; /dev/shm and its size do not matter"
    )


def extras() -> Iterator[Row]:
    """Packages that only some need."""
    by_extra: dict[str, list[str]] = {}
    for package, extra in sorted({**EXTRAS, **_MORE_EXTRAS}.items()):
        by_extra.setdefault(extra, []).append(package)
    for extra, packages in sorted(by_extra.items()):
        missing = [package for package in packages if not there(package)]
        why = (
            f"{', '.join(missing)} not installed"
            if missing
            else ", ".join(f"{p} {_version(p)}".rstrip() for p in packages)
        )
        mend = f"pip install 'navit[{extra}]'" if missing else ""
        yield Row(f"extra {extra}", "missing" if missing else "there", why, mend=mend)
