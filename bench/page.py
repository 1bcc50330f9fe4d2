"""Makes README.md of the results beside it: what is not ahead first, then every row with where and when it was measured.

In: bench/results/*.json (the format: `kit.py`). Out: bench/README.md and the drawn curves beside the results. Nothing of
that page is written by hand; what is worth knowing about a figure stands in the docstring of its file and in NOTES.md.

    python bench/page.py [--results bench/results] [--out bench/README.md]
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from kit import RESULTS, Row, reached, read, said, standing

Result = dict[str, Any]

HEAD = """# Benchmarks

This page is made by `bench/page.py` from `bench/results/*.json`, whose format `bench/kit.py` says; nothing here is written
by hand. `make bench` measures all that this machine can run, in three hours at most, and goes on where it was stopped;
`make bench-quick` sees in three minutes whether every row runs; `python bench/run.py --list` names them, and each file of
`bench/` runs by itself. `python bench/compare.py A B` says what changed in speed between two commits. What explains the
figures, and what was tried: [NOTES.md](NOTES.md).

Ways are taken in turns, since a machine drifts. Figures are medians over the rounds, in brackets the first and third
quartile. A ratio says how many times as good ours is as theirs, whether more or less of the unit is better: the median of
the ratios within one round, in brackets its bootstrapped interval (95 %). *Level* is where that interval holds 1. Results
that are copied from an older table have no spread.
"""


def cell(text: object) -> str:
    return str(text).replace("|", "\\|")


def table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    return "\n".join(lines + [f"| {' | '.join(map(cell, row))} |" for row in rows])


def figure(row: Row) -> str:
    """Ours, with its quartiles where they say something."""
    low, high = row.get("spread", (0, 0))
    spread = f" ({said(low)} to {said(high)})" if row.get("n", 1) > 1 and said(low) != said(high) else ""
    return f"{said(row['ours'])} {row['unit']}{spread}"


def ratio(found: Sequence[float]) -> str:
    middle, low, high = found
    return f"**{middle:.2f}**" + (f" ({low:.2f} to {high:.2f})" if low != high else "")


def goal(row: Row) -> str:
    met = reached(row)
    if met is None:
        return ""
    unit = "×" if row["goal_of"] == "ratio" else row["unit"]
    return f"{row['goal']:g} {unit}, {'reached' if met else '**not reached**'}"


def others(row: Row) -> str:
    """Everybody who is not beside ours already, and what is particular to the row."""
    values = row.get("peers", {}) | row.get("bounds", {})
    words = [
        f"{name} {said(value)} ({row['ratios'][name][0]:.2f} ×)"
        for name, value in values.items()
        if name != row["beside"]
    ]
    settings = [
        f"{key.replace('_', ' ')} {value if isinstance(value, str) else said(value)}"
        for key, value in row.get("settings", {}).items()
    ]
    return "; ".join([", ".join(words)] * bool(words) + [", ".join(settings)] * bool(settings))


def lines(rows: Sequence[Row]) -> str:
    """The rows of one table."""
    found = []
    for row in rows:
        beside = row.get("beside", "")
        theirs = (row.get("peers", {}) | row.get("bounds", {})).get(beside)
        found.append(
            (
                row["what"],
                figure(row),
                f"{beside}{': ' + said(theirs) if theirs is not None else ''}",
                ratio(row["ratios"][beside]) if beside else "",
                goal(row),
                others(row),
            )
        )
    heads = ("what", "ours", "beside", "ratio", "goal", "others")
    used = [n for n in range(len(heads)) if n < 2 or any(row[n] for row in found)]
    return table([heads[n] for n in used], [[row[n] for n in used] for row in found])


def tables(result: Result) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in result["rows"]:
        found.setdefault(row["table"], []).append(row)
    return found


def behind(results: dict[str, Result]) -> str:
    """Rows that a peer leads, rows that one is level with, and goals that are not reached."""
    found: dict[str, list[tuple[str, ...]]] = {"behind": [], "level": [], "goal": []}
    for name, result in results.items():
        for row in result["rows"]:
            place = standing(row)
            who = (f"[{name}](#{name})", f"{row['table']}: {row['what']}".removeprefix(": "), figure(row))
            if place in ("behind", "level"):
                peer = min(row["peers"], key=lambda other: row["ratios"][other][0])
                found[place].append((*who, f"{peer}: {said(row['peers'][peer])}", ratio(row["ratios"][peer])))
            if reached(row) is False:
                beside = row["beside"] if row["goal_of"] == "ratio" else ""
                here = f"{ratio(row['ratios'][beside])} × {beside}" if beside else ""
                found["goal"].append((*who, here, goal(row).removesuffix(", **not reached**")))
    heads = ("benchmark", "row", "ours")
    parts = (
        ("A peer is ahead", found["behind"], (*heads, "the peer", "ratio")),
        ("A peer is level", found["level"], (*heads, "the peer", "ratio")),
        ("A goal is not reached", found["goal"], (*heads, "here", "goal")),
    )
    said_parts = [f"**{title}** ({len(rows)} rows)\n\n{table(head, rows)}" for title, rows, head in parts if rows]
    return "\n\n".join(said_parts) or "Every row is ahead of every peer, and every goal is reached."


def words_of(machine: dict[str, Any]) -> str:
    memory = f"{machine['memory_gib']:g} GiB" if "memory_gib" in machine else ""
    parts = (machine.get("gpu"), machine["cpu"], f"{machine['cores']} cores", memory, machine.get("kernel"))
    return ", ".join(part for part in parts if part)


def letters(results: dict[str, Result]) -> dict[str, str]:
    """A letter for each machine."""
    found: dict[str, str] = {}
    for result in results.values():
        words = words_of(result["machine"])
        if words not in found:
            found[words] = chr(ord("A") + len(found))
    return found


def where(results: dict[str, Result]) -> str:
    """Machines, and which result is of which, with its date and commit."""
    names = letters(results)
    found = [f"- **{letter}**: {words}" for words, letter in names.items()]
    rows = []
    for name, result in results.items():
        load = result["machine"].get("load")
        how = result["engine"] + (", copied from an older table" if result.get("transcribed") else "")
        rows.append(
            (
                f"[{name}](#{name})",
                result["date"],
                result["commit"],
                names[words_of(result["machine"])],
                how,
                "" if load is None else f"{load:g}",
                f"{result['seconds'] / 60:.1f}" if "seconds" in result else "",
            )
        )
    heads = ("benchmark", "date", "commit", "machine", "engine", "load at the start", "minutes")
    return "\n".join(found) + "\n\n" + table(heads, rows)


def section(name: str, result: Result) -> Iterator[str]:
    """Everything of one result."""
    yield f"### {name}\n"
    settings = ", ".join(f"{key} {value}" for key, value in result.get("settings", {}).items())
    versions = ", ".join(f"{key} {value}" for key, value in result.get("versions", {}).items())
    told = [
        result["title"] + ("" if result["title"].endswith("?") else "."),
        f"{result['date']}, commit {result['commit']}.",
    ]
    told += [f"Settings: {settings}."] * bool(settings) + [f"Versions: {versions}."] * bool(versions)
    left = "; ".join(f"{what} ({why})" for what, why in result["left_out"].items())
    yield " ".join(told + [f"Left out: {left}."] * bool(left)) + "\n"
    for title, rows in tables(result).items():
        if title:
            yield f"**{title}**\n"
        yield lines(rows) + "\n"
    for file, title, _ in curves(name, result):
        yield f"![{name}, {title}](results/{file})\n"


def curves(name: str, result: Result) -> Iterator[tuple[str, str, list[Row]]]:
    """The drawings of one result: file, title and rows, for each table and unit that has several places along a curve."""
    for title, rows in tables(result).items():
        for unit in dict.fromkeys(row["unit"] for row in rows if "x" in row):
            points = [row for row in rows if "x" in row and row["unit"] == unit]
            if len({row["x"] for row in points}) > 1:
                slug = re.sub(r"[^a-z0-9]+", "-", f"{name} {title} {unit}".lower()).strip("-")
                yield f"{slug}.svg", f"{title}, {unit}" if title else unit, points


def page(results: dict[str, Result]) -> str:
    """The whole page."""
    parts = [
        HEAD,
        "## What is not ahead\n",
        behind(results) + "\n",
        "## Where and when\n",
        where(results) + "\n",
        "## All rows\n",
    ]
    for name, result in results.items():
        parts += section(name, result)
    return "\n".join(parts)


def draw(results: dict[str, Result], folder: Path) -> None:
    """The curves, as SVG that is the same for the same results; drawings of results that are gone go."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "navit"
    from matplotlib import pyplot

    wanted = {file: (title, rows) for name, result in results.items() for file, title, rows in curves(name, result)}
    for old in folder.glob("*.svg"):
        if old.name not in wanted:
            old.unlink()
    for file, (title, rows) in wanted.items():
        series: dict[str, list[tuple[float, float]]] = {}
        for row in rows:
            kind = row["what"].rpartition(", ")[0] or row["what"]
            series.setdefault(f"navit: {kind}", []).append((row["x"], row["ours"]))
            for peer, value in (row.get("peers", {}) | row.get("bounds", {})).items():
                series.setdefault(f"{peer}: {kind}", []).append((row["x"], value))
        shown, axes = pyplot.subplots(figsize=(7, 4))
        for label, points in series.items():
            axes.plot(
                *zip(*sorted(points), strict=True), marker="o", label=label, lw=2 if label.startswith("navit") else 1
            )
        if max(row["x"] for row in rows) > 20 * max(1e-9, min(row["x"] for row in rows)):
            axes.set_xscale("log")
        heights = [y for points in series.values() for _, y in points]
        if min(heights) > 0 and max(heights) > 20 * min(heights):
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=min(0.0, min(heights)))
        axes.set(title=title, ylabel=rows[0]["unit"])
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7, frameon=False)
        shown.tight_layout()
        shown.savefig(folder / file, metadata={"Date": None})
        pyplot.close(shown)


def write(folder: Path, to: Path) -> None:
    """Reads a folder, draws its curves into it, and writes the page."""
    results = read(folder)
    draw(results, folder)
    to.write_text(page(results), encoding="utf-8")
    print(to)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--out", type=Path, default=RESULTS.parent / "README.md")
    args = parser.parse_args()
    write(args.results, args.out)


if __name__ == "__main__":
    main()
