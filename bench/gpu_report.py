"""Reads a GPU's day: paper's floor, what was expected and what was measured side by side, and the largest gap by name.

In: FOLDER/gpu.json of `bench/gpu.py`, or several such folders. Out: a Markdown table on standard output. Ceilings are those
that the day measured where it did, else the data sheet's.

    python bench/gpu_report.py runs/gpu [MORE ...]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent / "day"))
from paper import H200, Paper, papers


def rows_of(folders: list[Path]) -> dict[str, dict[str, Any]]:
    """Rows by name; a later folder's measurement takes the place of an earlier one's failure."""
    found: dict[str, dict[str, Any]] = {}
    for folder in folders:
        try:
            report = json.loads((folder / "gpu.json").read_text())
        except OSError as e:
            raise SystemExit(f"gpu_report.py: {e}; run bench/gpu.py --out {folder} first") from None
        for rows in report["parts"].values():
            for row in rows:
                if row["row"] not in found or not {"failed", "unmeasured"} & row.keys():
                    found[row["row"]] = row
    return found


def gap(paper: Paper, measured: float) -> float:
    """How many times as good the floor is; milliseconds count downwards, rates upwards."""
    return measured / paper.floor if paper.unit == "ms" else paper.floor / measured


def table(rows: dict[str, dict[str, Any]]) -> str:
    tflops = max(
        (r["tflops"] for r in rows.values() if "tflops" in r and "ceiling" in r["row"]), default=H200["tflops"]
    )
    memory = max((r["copy_gb_per_s"] for r in rows.values() if "copy_gb_per_s" in r), default=H200["gb_per_s"])
    lines = [f"Ceilings: {tflops:,.0f} TFLOP/s in bf16, {memory:,.0f} GB/s.", ""]
    lines += [
        "| row | unit | paper's floor | expected | measured | of the floor | why |",
        "|---|---|---|---|---|---|---|",
    ]
    gaps: dict[str, float] = {}
    for name, paper in papers(tflops, memory).items():
        row = rows.get(name, {})
        value = row.get(paper.unit)
        if value is None:
            said = row.get("failed") or row.get("unmeasured") or "not in this day"
            lines.append(
                f"| {name} | {paper.unit} | {paper.floor:,.4g} | {paper.expected:,.4g} | {said} | | {paper.why} |"
            )
            continue
        gaps[name] = gap(paper, value)
        shown = f"{1 / gaps[name]:.0%}"
        lines.append(
            f"| {name} | {paper.unit} | {paper.floor:,.4g} | {paper.expected:,.4g} | {value:,.4g} | {shown} | {paper.why} |"
        )
    if gaps:
        worst = max(gaps, key=lambda n: gaps[n])
        lines += ["", f"The largest gap: {worst}, {gaps[worst]:.1f} times its floor."]
    bad = [r for r in rows.values() if "failed" in r]
    lines += ["", f"Failed rows: {len(bad)}", *(f"- {r['row']}: {r['failed']}" for r in bad)]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path)
    print(table(rows_of(parser.parse_args().folders)))


if __name__ == "__main__":
    main()
