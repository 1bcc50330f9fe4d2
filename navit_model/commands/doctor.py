"""`navit-model doctor`: what this machine computes with, a row for each part, and why.

In: nothing but the machine; neither torch nor a GPU nor the engine need be there. Out: a table of three columns: part, what
it is here, and the reason or the remedy. Status 1 where something that all else needs is missing or does not work. Formats
are not looked up but tried: a small picture of each goes through the engine.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import io
import os
import platform
import shutil
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from navit_loader.errors import EXTRAS, NavitError, said
from navit_loader.shown import say

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

_HALF = {"avx512_bf16": "AVX-512 BF16", "amx_bf16": "AMX"}
"""Flags of processors that are quick in bfloat16."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table; `well` is False where what it tells of does not work, and is needed."""

    part: str
    what: str
    why: str = ""
    well: bool = True


def add(subparsers: Any) -> None:
    """Adds the subcommand."""
    parser = subparsers.add_parser(
        "doctor", help="say what this machine decodes, computes and attends with, and why; needs neither GPU nor torch"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints the table."""
    rows = list(_rows())
    first, second = (
        max(len(cell) for cell in column) for column in zip(*((r.part, r.what) for r in rows), strict=True)
    )
    left = max(40, shutil.get_terminal_size((160, 24)).columns - first - second - 6)
    for row in rows:
        why, *more = textwrap.wrap(row.why, left) or [""]
        say(f"{' ' if row.well else '!'} {row.part:<{first}}  {row.what:<{second}}  {why}".rstrip())
        for line in more:
            say(" " * (first + second + 6) + line)
    return int(not all(row.well for row in rows))


def _rows() -> Iterator[Row]:
    yield Row("python", platform.python_version(), f"{sys.executable}, {platform.platform()}")
    others = ", ".join(
        f"{name} {version}" for name in ("numpy", "pyarrow", "pillow", "pyzmq") if (version := _version(name))
    )
    yield Row("navit", _version("packed-navit") or "not installed", others)
    yield from _engine()
    torch: Any = None
    try:
        import torch
    except ImportError as e:
        yield Row(
            "torch", "none", f"{said(e)[0]}; the loader works without, pip install 'packed-navit[model]' brings it"
        )
    except OSError as e:  # a library of its own is missing
        yield Row("torch", "fails", f"{said(e)[0]}; install torch anew, for this machine", well=False)
    else:
        built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "for CPUs"
        yield Row("torch", torch.__version__, f"built {built}")
    yield from _devices(torch)
    yield from _decoders()
    yield from _gpu_decoders(torch)
    yield _shared()
    yield from _extras()


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _cores() -> int:
    """Those that this process may use, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _engine() -> Iterator[Row]:
    try:
        from navit_loader import _packer
    except ImportError as e:
        yield Row("engine", "none", f"{said(e)[0]}; a model runs without it, nothing else does: make build", well=False)
        return
    debug = _packer.BUILD_PROFILE != "release"
    why = "slow, some ten times: make build makes another" if debug else ""
    if not _packer.ASSEMBLER:
        why = f"{why} built without nasm: AVIF and unusual JPEGs are slower; install it and build again".strip()
    yield Row("engine", f"{_packer.BUILD_PROFILE} build", why)


def _devices(torch: Any) -> Iterator[Row]:
    """Device, attention kernel and precision of each GPU, or of the CPU."""
    cores = _cores()
    if torch is None:
        yield Row("device", "cpu", f"{cores} cores for decoding; without torch nothing is learnt here")
        yield Row("kernel", "none", "attention is torch's")
        yield Row("precision", "none", "as the kernel")
        return
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            yield from _gpu(torch, number)
        return
    if torch.backends.mps.is_available():
        why = "there is MPS, which navit does not use: train.device takes cpu or cuda"
    elif torch.version.cuda:
        why = "torch is built for CUDA and sees no GPU: is there one, and its driver (nvidia-smi)?"
    else:
        why = "torch is built without CUDA"
    yield Row("device", "cpu", f"{torch.get_num_threads()} threads of {cores} cores; {why}")
    yield Row("kernel", _kernel(torch.device("cpu")), "on a CPU 'auto' takes one call for each length of image")
    flags = _flags()
    quick = [name for flag, name in _HALF.items() if flag in flags]
    bf16 = f"bf16 is quick here too ({', '.join(quick)})" if quick else "bf16 works, and is slow on this processor"
    yield Row("precision", "fp32", f"{bf16}: train.precision; fp16 needs a GPU")


def _gpu(torch: Any, number: int) -> Iterator[Row]:
    from ..train.trainer import slower
    from ..world import AMPERE, half_of

    device, of = torch.device("cuda", number), f" {number}" if torch.cuda.device_count() > 1 else ""
    capability = torch.cuda.get_device_capability(device)
    half = half_of(capability)
    memory = torch.cuda.get_device_properties(device).total_memory / 2**30
    told = f"compute capability {capability[0]}.{capability[1]}"
    yield Row(f"device{of}", f"cuda:{number}", f"{torch.cuda.get_device_name(device)}, {told}, {memory:.0f} GiB")
    kernel = _kernel(device, getattr(torch, "bfloat16" if half == "bf16" else "float16"))
    if capability < AMPERE:
        why = slower(capability, half)
    elif kernel == "flash_attn":
        why = "a Hopper with flash-attn 3"
    elif kernel == "triton":
        why = "a Hopper: kernels of our own for images of some hundred tokens, PyTorch's for longer ones"
    else:
        missing = ": flash-attn 3 (flash_attn_interface) is not installed" if capability == (9, 0) else ""
        why = f"PyTorch's own kernel{missing}; heads of 8, 16, … 256 channels, in half precision"
    yield Row(f"kernel{of}", kernel, why, well=kernel != "none")
    why = "as from Ampere on" if half == "bf16" else "a GPU before Ampere has no quick bf16; the loss is scaled"
    yield Row(f"precision{of}", half, f"{why}: train.precision = '{half}', since 'fp32' is the default")


def _kernel(device: Any, dtype: Any = None) -> str:
    """The backend that `auto` takes, which is loaded; `none` where it cannot be."""
    from ..model.attention import choose

    try:
        return choose("auto", device) if dtype is None else choose("auto", device, dtype)
    except (NavitError, ImportError):
        return "none"


def _flags() -> set[str]:
    """What the processor can do; empty where the system does not say."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return set(next((line for line in file if line.startswith("flags")), "").split())
    except OSError:
        return set()


def _decoders() -> Iterator[Row]:
    try:
        from PIL import Image

        from navit_loader import pack_images
        from navit_loader.batch import OK
        from navit_loader.config import RenderConfig
    except ImportError:
        return
    yield Row(
        "decoding",
        f"{_cores()} threads",
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
    heif = _there("pillow_heif")
    why = (
        "pillow-heif in a helper process, which is slower"
        if heif
        else "HEIF and HEIC are refused; pip install 'packed-navit[heif]'"
    )
    yield Row("  heif", "not tried" if heif else "none", why)


def _gpu_decoders(torch: Any) -> Iterator[Row]:
    gpu = torch is not None and torch.cuda.is_available()
    for name, package in (("nvjpeg", "torchvision"), ("dali", "nvidia.dali")):
        if not _there(package):
            yield Row(name, "none", f"{package} is not installed: pip install 'packed-navit[{name}]'")
        elif not gpu:
            yield Row(name, "on the CPU", f"{package} is there, a GPU is not: decode = 'cpu' is quicker")
        else:
            yield Row(name, "there", f"train.decode = '{name}'")


def _there(package: str) -> bool:
    try:
        found = importlib.util.find_spec(package)
    except ModuleNotFoundError:
        return False
    # A bare folder of that name has no origin.
    return found is not None and found.origin is not None


def _shared() -> Row:
    try:
        from navit_loader.service.shm import SUPPORTED
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


def _extras() -> Iterator[Row]:
    by_extra: dict[str, list[str]] = {}
    for package, extra in sorted({**EXTRAS, **_MORE_EXTRAS}.items()):
        by_extra.setdefault(extra, []).append(package)
    for extra, packages in sorted(by_extra.items()):
        missing = [package for package in packages if not _there(package)]
        why = (
            f"{', '.join(missing)} not installed: pip install 'packed-navit[{extra}]'"
            if missing
            else ", ".join(packages)
        )
        yield Row(f"extra {extra}", "missing" if missing else "there", why)
