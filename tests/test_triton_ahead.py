"""The Triton kernels compiled ahead of time for GPUs that are not here: they compile, spill nothing, and fit.

In: the kernels' sources. Out: what ptxas says of registers, spills and shared memory for Ampere, Hopper and Blackwell.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="Triton is not installed")
pytest.importorskip("torchvision", reason="torchvision is not installed")
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from navit_loader.render.device import kernel as patches
from navit_loader.render.nvjpeg import kernel as resized
from navit_model.model import short

pytestmark = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")  # what it says suits our sums

TOKEN = {"addresses": "*i64", "strides": "*i64", "frames": "*i64", "slots": "*i64"}
SPANS = {"addresses": "*i64", "shapes": "*i32", "spans": "*fp32", "tokens": "*i64", "out": "*u8", "count": "i32"}
KERNELS: dict[str, tuple[Any, dict[str, str], dict[str, Any]]] = {
    **{
        f"rows, P = {p}": (
            patches._rows,
            {**TOKEN, "out": kind, "count": "i32"},
            {"P": p, "TOKENS": patches.ROWS, "WORD": word, "N": n},
        )
        for p, word, kind, n in ((16, 4, "*i32", 256), (14, 2, "*i16", 512), (7, 1, "*u8", 256), (32, 4, "*i32", 1024))
    },
    **{
        f"turned, P = {p}": (
            patches._turned,
            {**TOKEN, "out": "*u8", "count": "i32"},
            {"P": p, "TOKENS": patches.TURNED, "N": n},
        )
        for p, n in ((16, 1024), (14, 1024), (32, 4096))
    },
    **{
        f"resized patches, {name}, P = 16": (
            resized._patches,
            SPANS,
            {"SUPPORT": resized.FILTERS[name], "FILTER": code, "P": 16, "BLOCK": 256},
        )
        for name, code in resized.CODES.items()
    },
}


def ptxas() -> Path:
    """The newest assembler that Triton carries: it knows all targets."""
    folder = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    newer = folder / "ptxas-blackwell"
    return newer if newer.exists() else folder / "ptxas"


def built(compiled: Any, folder: Path) -> tuple[int, list[int]]:
    """Registers of a thread, and bytes that spilled, as the assembler says."""
    text = folder / "kernel.ptx"
    text.write_text(compiled.asm["ptx"])
    target = re.search(r"\.target (sm_\w+)", compiled.asm["ptx"])
    assert target is not None
    command = [str(ptxas()), "-v", f"-arch={target[1]}", str(text), "-o", str(folder / "kernel.cubin")]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    spills = [int(n) for n in re.findall(r"(\d+) bytes spill", said)]
    registers = re.search(r"Used (\d+) registers", said)
    assert spills and registers is not None, said
    return int(registers[1]), spills


@pytest.mark.parametrize("arch", [80, 90, 100])
@pytest.mark.parametrize("name", KERNELS)
def test_kernels_compile_without_spills(name: str, arch: int, tmp_path: Path) -> None:
    function, signature, constants = KERNELS[name]
    source = ASTSource(function, {**signature, **dict.fromkeys(constants, "constexpr")}, constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32))
    assert compiled.metadata.shared <= 48 * 1024
    registers, spills = built(compiled, tmp_path)
    # 128 registers leave room for at least four programs of four warps on a multiprocessor.
    assert not any(spills) and registers <= 128
    print(f"{name}, sm_{arch}: {registers} registers, {compiled.metadata.shared} bytes shared")


HALF_ARRAYS = ("q", "k", "v", "out", "grad", "dq", "dk", "dv")
OTHERS = {"lse": "*fp32", "delta": "*fp32", "cu": "*i32", "scale": "fp32", "plain": "fp32"}


@pytest.mark.parametrize("channels", short.CHANNELS)
@pytest.mark.parametrize("kernel", ["_forward", "_backward_q", "_backward_kv"])
def test_attention_kernels_compile_without_spills_for_hopper(kernel: str, channels: int, tmp_path: Path) -> None:
    function, constants = getattr(short, kernel), {"K": channels, "M": short.M, "N": short.N}
    names = [name for name in function.arg_names if name not in constants]
    signature = {name: "*bf16" if name in HALF_ARRAYS else OTHERS.get(name, "i32") for name in names}
    aligned = [n for n, name in enumerate(names) if signature[name].startswith("*") or name[1:] in ("t", "h")]
    source = ASTSource(
        function,
        {**signature, **dict.fromkeys(constants, "constexpr")},
        constants,
        attrs={(n,): [["tt.divisibility", 16]] for n in aligned},
    )
    options = {name: short.HOW[name] for name in ("num_warps", "num_stages")}
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    registers, spills = built(compiled, tmp_path)
    # Hopper's own matrix instructions; three programs of four warps on a multiprocessor up to 64 channels, two beyond.
    assert "wgmma.mma_async" in compiled.asm["ptx"] and not any(spills)
    assert registers <= (168 if channels <= 64 else 255) and compiled.metadata.shared <= 100 * 1024
