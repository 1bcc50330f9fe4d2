"""`navit-model doctor`: the loader's rows, and among them what this machine computes and attends with.

In: nothing but the machine; neither torch nor a GPU nor the engine need be there. Out: see `navit_loader.commands.doctor`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from navit_loader.commands import doctor as of_loader
from navit_loader.commands.doctor import Row, cores, flags, there
from navit_loader.errors import NavitError, said

_HALF = {"avx512_bf16": "AVX-512 BF16", "amx_bf16": "AMX"}
"""Flags of processors that are quick in bfloat16."""


def add(subparsers: Any) -> None:
    """Adds the subcommand."""
    of_loader.add(subparsers, _rows, ", and torch, its devices, attention kernels and precision")


def _rows() -> Iterator[Row]:
    yield from of_loader.basis()
    torch: Any = None
    try:
        import torch
    except ImportError as e:
        why = f"{said(e)[0]}; the loader works without"
        yield Row("torch", "none", why, mend="pip install 'navit[model]'")
    except OSError as e:  # a library of its own is missing
        mend = "pip install --force-reinstall torch, for this machine"
        yield Row("torch", "fails", said(e)[0], well=False, mend=mend)
    else:
        built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "for CPUs"
        yield Row("torch", torch.__version__, f"built {built}")
    yield from of_loader.driver()
    yield from _devices(torch)
    yield from of_loader.decoders()
    yield from _gpu_decoders(torch)
    yield from of_loader.limits()
    yield from of_loader.extras()


def _devices(torch: Any) -> Iterator[Row]:
    """Device, attention kernel and precision of each GPU, or of the CPU."""
    own = cores()
    if torch is None:
        yield Row("device", "cpu", f"{own} cores for decoding; without torch nothing is learnt here")
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
    yield Row("device", "cpu", f"{torch.get_num_threads()} threads of {own} cores; {why}")
    yield Row("kernel", _kernel(torch.device("cpu")), "on a CPU 'auto' takes one call for each length of image")
    have = flags()
    quick = [name for flag, name in _HALF.items() if flag in have]
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


def _gpu_decoders(torch: Any) -> Iterator[Row]:
    gpu = torch is not None and torch.cuda.is_available()
    for name, package in (("nvjpeg", "torchvision"), ("dali", "nvidia.dali")):
        if not there(package):
            yield Row(name, "none", f"{package} is not installed", mend=f"pip install 'navit[{name}]'")
        elif not gpu:
            yield Row(name, "on the CPU", f"{package} is there, a GPU is not: decode = 'cpu' is quicker")
        else:
            yield Row(name, "there", f"train.decode = '{name}'")
