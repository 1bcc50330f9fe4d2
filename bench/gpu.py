"""A GPU's day: everything that a GPU does here, checked and measured by one command, in nine minutes at most.

In: one CUDA GPU, no network; Python ≥ 3.11, torch ≥ 2.10, numpy, Triton, and what `make gpu-kit` carries. Out: after each
part FOLDER/gpu.json and FOLDER/gpu.md, so that a day cut short keeps what it had. Parts are processes of their own, each
under a limit: one that fails or hangs is a row. Without a GPU every row is there and says that it is unmeasured.

    python bench/gpu.py --out FOLDER [--only steps decode] [--kit dist/gpu]

`bench/gpu_report.py FOLDER` then puts the paper's floor, what was expected and what was measured side by side.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True, slots=True)
class Part:
    """One process: its name in `bench/day/`, its limit in seconds, and what it answers."""

    name: str
    seconds: int
    title: str


PARTS = (
    Part("correct", 110, "Correctness: every test that needs a GPU"),
    Part("steps", 230, "Training steps in bfloat16"),
    Part("decode", 80, "JPEG decoding on the GPU"),
    Part("feed", 75, "A ViT-S fed by a loader"),
    Part("ranks", 45, "FSDP2 and DDP on one GPU"),
)
"""Most valuable first; their limits sum to 540 s."""

WANTED = {
    "navit_loader._packer": "the engine: the kit's navit wheel",
    "msgpack": "the kit",
    "zmq": "the kit's pyzmq wheel",
    "pyarrow": "an index cannot be built: no decode, feed",
    "prometheus_client": "the daemon's metrics",
    "triton": "torch for GPUs brings it: no compiled rows",
    "pytest": "no correctness part",
    "hypothesis": "some tests",
    "timm": "no peers beside the steps",
    "torchvision": "no nvJPEG",
    "nvidia.nvimgcodec": "optional: a second bare decoder",
    "nvidia.dali": "optional: DALI's rows",
    "flash_attn_interface": "optional: flash-attn 3's rows",
}
"""Modules that parts use, and what is lost without them."""


def missing() -> dict[str, str]:
    def there(name: str) -> bool:
        try:
            return importlib.util.find_spec(name) is not None
        except ImportError:
            return False

    return {name: lost for name, lost in WANTED.items() if not there(name)}


def machine() -> dict[str, Any]:
    import torch

    found: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cores": len(os.sched_getaffinity(0)),
        "gpu": None,
    }
    if torch.cuda.is_available():
        p = torch.cuda.get_device_properties(0)
        found |= {
            "gpu": p.name,
            "memory_gib": round(p.total_memory / 2**30),
            "multiprocessors": p.multi_processor_count,
        }
    return found


def run(part: Part, limit: float, out: Path, environment: dict[str, str]) -> list[dict[str, Any]]:
    """The rows of one part, whatever became of it."""
    lines, log = out / f"{part.name}.jsonl", out / f"{part.name}.log"
    lines.unlink(missing_ok=True)
    command = [sys.executable, str(HERE / "day" / f"{part.name}.py"), "--out", str(lines), "--seconds", str(limit - 6)]
    start = time.monotonic()
    with log.open("w") as to:
        try:
            status: int | str = subprocess.run(
                command, stdout=to, stderr=subprocess.STDOUT, timeout=limit, env=environment, check=False
            ).returncode
        except subprocess.TimeoutExpired:
            status = f"ended at its limit of {limit:.0f} s"
    rows = [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []
    if status != 0:
        last = log.read_text(errors="replace").strip().splitlines()[-1:]
        rows.append({"row": f"the part '{part.name}'", "failed": f"{status}; {' '.join(last)[:300]}; see {log.name}"})
    rows.append({"row": f"the part '{part.name}' in all", "seconds": round(time.monotonic() - start, 1)})
    return rows


def shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value).replace("|", "\\|")


def markdown(report: dict[str, Any]) -> str:
    m = report["machine"]
    lines = [f"# A GPU's day: {m['gpu'] or 'no CUDA device'}, {m['date']}", ""]
    lines += [", ".join(f"{k} {v}" for k, v in m.items() if k not in ("gpu", "date")), ""]
    if report["missing"]:
        lines += ["Missing: " + "; ".join(f"`{k}` ({v})" for k, v in report["missing"].items()), ""]
    for part in PARTS:
        if part.name in report["parts"]:
            lines += [f"## {part.title} (limit {part.seconds} s)", "", "| row | |", "|---|---|"]
            for row in report["parts"][part.name]:
                lines.append(f"| {row['row']} | {', '.join(f'{k} {shown(v)}' for k, v in row.items() if k != 'row')} |")
            lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--only", nargs="+", choices=[p.name for p in PARTS], default=[p.name for p in PARTS])
    parser.add_argument("--kit", type=Path, help="what `make gpu-kit` made; its corpus is used")
    parser.add_argument(
        "--seconds", type=float, default=540.0, help="of the whole day; each part's limit shrinks along"
    )
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    environment = dict(os.environ)
    if args.kit is not None:
        environment["NAVIT_GPU_KIT"] = str(args.kit.resolve())
    report: dict[str, Any] = {"machine": machine(), "missing": missing(), "parts": {}}
    for name, lost in report["missing"].items():
        print(f"missing: {name} ({lost})", flush=True)
    chosen = [part for part in PARTS if part.name in args.only]
    end = time.monotonic() + args.seconds
    for part in chosen:
        limit = min(part.seconds, end - time.monotonic())
        if limit < 10:
            report["parts"][part.name] = [{"row": f"the part '{part.name}'", "failed": "no time was left for it"}]
        else:
            print(f"== {part.title}: {limit:.0f} s at most", flush=True)
            report["parts"][part.name] = run(part, limit, args.out, environment)
        (args.out / "gpu.json").write_text(json.dumps(report, indent=1) + "\n")
        (args.out / "gpu.md").write_text(markdown(report))
        for row in report["parts"][part.name]:
            print("  " + ", ".join(f"{k} {shown(v)}" if k != "row" else v for k, v in row.items()), flush=True)


if __name__ == "__main__":
    main()
