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


@pytest.mark.parametrize("arch", [80, 90, 100])
@pytest.mark.parametrize("name", KERNELS)
def test_kernels_compile_without_spills(name: str, arch: int, tmp_path: Path) -> None:
    function, signature, constants = KERNELS[name]
    source = ASTSource(function, {**signature, **dict.fromkeys(constants, "constexpr")}, constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32))
    assert compiled.metadata.shared <= 48 * 1024
    text = tmp_path / "kernel.ptx"
    text.write_text(compiled.asm["ptx"])
    target = re.search(r"\.target (sm_\w+)", compiled.asm["ptx"])
    assert target is not None
    command = [str(ptxas()), "-v", f"-arch={target[1]}", str(text), "-o", str(tmp_path / "kernel.cubin")]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    spills = [int(n) for n in re.findall(r"(\d+) bytes spill", said)]
    registers = re.search(r"Used (\d+) registers", said)
    assert spills and registers is not None, said
    # 128 registers leave room for at least four programs of four warps on a multiprocessor.
    assert not any(spills) and int(registers[1]) <= 128, said
    print(f"{name}, sm_{arch}: {registers[1]} registers, {compiled.metadata.shared} bytes shared")
