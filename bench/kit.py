"""What all benchmarks share: ways taken in turns, medians with their spread, what was measured on, and one format for results.

In: what each way took in each round. Out: a line on the terminal for each row, and FOLDER/NAME.json. Apart, so that a file
of `bench/` holds its question and nothing else; `page.py` makes README.md of these files, `compare.py` sets two such
folders side by side, and `run.py` runs what has no result yet.

A result is an object:

    format      1
    name, title     of the file, and the first line of what it asks
    date, commit    the day, and the last commit that touched code or benchmarks (`+` behind it: and what is not committed)
    machine     cpu, cores (that it may use), memory_gib, kernel, load (when it began); gpu where one was used
    engine      `release`, or what else it was built as: `release, lto=off` is slower and named so
    versions    of Python and of all that was imported
    settings    the command line's
    left_out    {what could not run here: why}
    seconds     that it all took
    transcribed     true where the figures were copied from older tables: these have no spread
    rows        a list

and a row of it:

    what, table     its name, and the group that it stands in; a group whose rows have an `x` is a curve
    ours, unit      the median over the rounds; `better` says whether "higher" or "lower" is
    spread, n       its first and third quartile, and the number of rounds
    samples         ours, round by round
    peers, bounds   {name: median}: others that do the same, and what nothing could do better (decoding alone, a plain copy)
    ratios          {name: [median, low, high]}: how many times as good ours is as each of them. Each ratio is taken within
                    one round; low and high are the bootstrapped interval of their median (95 %, 2,000 draws)
    beside          the peer, or where there is none the bound, whose ratio stands for the row: `ratio` and `interval`
    goal            of the ratio, or of `ours` where `goal_of` says so
    settings        of this row alone
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
FORMAT = 1
DRAWS = 2000
Row = dict[str, Any]
K, T = TypeVar("K"), TypeVar("T")

MODULES = {
    "PIL": "pillow",
    "cv2": "opencv-python-headless",
    "datago": "datago",
    "numba": "numba",
    "nvidia.dali": "nvidia-dali-cuda130",
    "pillow_jxl": "pillow-jxl-plugin",
    "pyarrow": "pyarrow",
    "ray": "ray",
    "seqpacker": "seqpacker",
    "simplejpeg": "simplejpeg",
    "simpy": "simpy",
    "sklearn": "scikit-learn",
    "timm": "timm",
    "torch": "torch",
    "torchvision": "torchvision",
    "transformers": "transformers",
    "triton": "triton",
    "vit_pytorch": "vit-pytorch",
    "zmq": "pyzmq",
}
"""Whose versions are worth naming, and as what each is installed."""


def parse(parser: argparse.ArgumentParser, quick: Mapping[str, Any] | None = None) -> argparse.Namespace:
    """The command line, with what all have: `--results`, and `--quick` where it says what is smaller then."""
    parser.add_argument(
        "--results",
        type=Path,
        default=ROOT / "runs" / "bench",
        metavar="FOLDER",
        help="where NAME.json goes (runs/bench)",
    )
    if quick is not None:
        parser.add_argument("--quick", action="store_true", help="small: does every row run?")
        if "--quick" in sys.argv[1:]:
            parser.set_defaults(**quick)
    return parser.parse_args()


def installed(module: str) -> bool:
    """Whether a peer is there."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # not even the package around it
        return False


def seconds_of(run: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> Callable[[], float]:
    """A way that says how long it took."""

    def way() -> float:
        start = clock()
        run()
        return clock() - start

    return way


def turns(ways: Mapping[K, Callable[[], T]], repeat: int, warm: int = 1, rest: float = 0.0) -> dict[K, list[T]]:
    """What each way says, `repeat` rounds through all of them behind `warm` that do not count, so that what else the machine
    does and how it drifts touches all alike. `rest`: seconds between two ways, where one goes on for a while after its end."""
    found: dict[K, list[T]] = {name: [] for name in ways}
    for number in range(warm + repeat):
        for name, way in ways.items():
            said = way()
            if number >= warm:
                found[name].append(said)
            if rest:
                time.sleep(rest)
    return found


def interval(values: Sequence[float], share: float = 0.95) -> tuple[float, float]:
    """The bootstrapped interval of their median."""
    given = np.asarray(values, float)
    drawn = np.median(given[np.random.default_rng(0).integers(0, len(given), (DRAWS, len(given)))], axis=1)
    low, high = np.quantile(drawn, [(1 - share) / 2, (1 + share) / 2])
    return float(low), float(high)


def rounded(value: float) -> float:
    """Five digits, which is more than any of this is worth."""
    return float(f"{value:.5g}")


def standing(row: Row) -> str:
    """`ahead` of every peer, `level` with one (its interval holds 1), or `behind` one; nothing where there is no peer."""
    places = [row["ratios"][name] for name in row.get("peers", {}) if name in row["ratios"]]
    if not places:
        return ""
    return (
        "behind"
        if any(high < 1 for _, _, high in places)
        else "level"
        if any(low <= 1 for _, low, _ in places)
        else "ahead"
    )


def reached(row: Row) -> bool | None:
    """Whether the goal is; None without one."""
    if "goal" not in row:
        return None
    if row["goal_of"] == "ratio":
        return bool(row["ratio"] >= row["goal"])
    return bool(row["ours"] >= row["goal"] if row["better"] == "higher" else row["ours"] <= row["goal"])


def said(value: float) -> str:
    """A figure as people write it."""
    size = abs(value)
    if size >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if size >= 10 else f"{value:.2f}" if size >= 1 else f"{value:.3g}"


def git(*command: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *command], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


CODE = (
    "navit_loader",
    "navit_model",
    "packer_rs",
    "jpeg_rs",
    "Cargo.toml",
    "Cargo.lock",
    ":(glob)bench/**/*.py",
    "examples",
)


def commit() -> str:
    """The last commit that touched what is measured, and a `+` where some of it is not committed."""
    last = git("log", "-1", "--format=%h", "--abbrev=10", "--", *CODE) or "unknown"
    return last + ("+" if git("status", "--porcelain", "--", *CODE) else "")


def machine() -> dict[str, Any]:
    """Where this runs."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = re.search(r"model name\s*: (.*)", info)
    family = re.search(r"cpu family\s*: (\d+)\nmodel\s*: (\d+)", info)
    cpu = model[1] if model else platform.processor() or platform.machine()
    if family:  # a cloud's "AMD EPYC" says little
        cpu += f" (family {family[1]}, model {family[2]})"
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "kernel": f"{platform.system()} {platform.release()}",
        "load": round(os.getloadavg()[0], 1),
    }


def engine() -> str:
    """How the engine was built; a debug build is refused."""
    from navit_loader import _packer

    if _packer.BUILD_PROFILE != "release":
        raise SystemExit(
            f"{sys.argv[0]}: the engine is a {_packer.BUILD_PROFILE} build, which measures nothing; run make build"
        )
    return ", ".join(["release", *_packer.BUILD_OVERRIDES.split()])


def versions() -> dict[str, str]:
    """Of what has been imported."""
    found = {"python": platform.python_version()}
    for module, name in MODULES.items():
        if module in sys.modules:
            try:
                found[name] = metadata.version(name)
            except metadata.PackageNotFoundError:  # such as DALI for another CUDA
                found[name] = str(getattr(sys.modules[module], "__version__", "unknown"))
    return found


class Report:
    """One result, row by row.

    Args:
        name: of the file that it becomes.
        doc: the benchmark's docstring; its first sentence is the title.
        args: its command line.
    """

    def __init__(self, name: str, doc: str | None, args: argparse.Namespace) -> None:
        given = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
        self._folder, self._began = Path(given.pop("results")), time.perf_counter()
        quick = given.pop("quick", False)
        title = re.match(r"(.*?[.?:])(\s|$)", doc or name, re.DOTALL)
        self.found: dict[str, Any] = {
            "format": FORMAT,
            "name": name,
            "title": " ".join(title[1].split()).rstrip(".:") if title else name,
            "date": datetime.date.today().isoformat(),
            "commit": commit(),
            "machine": machine(),
            "engine": engine(),
            "settings": {key: value for key, value in given.items() if value not in (None, "", False, [])},
            "left_out": {},
            "rows": [],
        }
        if quick:
            self.found["quick"] = True
        self._table: str | None = None

    def left_out(self, what: str, why: str = "not installed") -> None:
        """Something that cannot run here."""
        self.found["left_out"][what] = why
        print(f"{what}: {why}, left out", flush=True)

    def row(
        self,
        what: str,
        found: Mapping[str, Sequence[float]] | Sequence[float] | float,
        unit: str,
        *,
        better: str = "higher",
        table: str = "",
        ours: str = "navit",
        bounds: Sequence[str] = (),
        beside: str = "",
        goal: float | None = None,
        goal_of: str = "",
        x: float | None = None,
        **settings: Any,
    ) -> Row:
        """A row from the figures of each way, round by round.

        Args:
            found: of each way, `ours` among them; or ours alone.
            better: `higher` or `lower`.
            bounds: ways that no peer is: what nothing could do better.
            beside: whose ratio stands for the row; without it that of the best peer.
            goal: of that ratio, or of ours where `goal_of` is `ours` or there is nobody beside us.
            x: where on a curve.
        """
        ways: dict[str, list[float]]
        if isinstance(found, Mapping):
            ways = {name: [float(v) for v in values] for name, values in found.items()}
        else:
            ways = {ours: [float(v) for v in (found if isinstance(found, Sequence | np.ndarray) else [found])]}
        own = ways.pop(ours)
        row: Row = {
            "what": what,
            "table": table,
            "ours": rounded(float(np.median(own))),
            "unit": unit,
            "better": better,
        }
        row |= {"spread": [rounded(float(q)) for q in np.quantile(own, [0.25, 0.75])], "n": len(own)}
        row["samples"] = [rounded(v) for v in own]
        for kind, names in (
            ("peers", [n for n in ways if n not in bounds]),
            ("bounds", [n for n in ways if n in bounds]),
        ):
            if names:
                row[kind] = {name: rounded(float(np.median(ways[name]))) for name in names}
        if ways:
            ratios = {}
            for name, theirs in ways.items():
                pairs = [
                    (a / b if better == "higher" else b / a) if a and b else 1.0
                    for a, b in zip(own, theirs, strict=True)
                ]
                ratios[name] = [rounded(float(np.median(pairs))), *map(rounded, interval(pairs))]
            beside = beside or min(row.get("peers", row.get("bounds")), key=lambda name: ratios[name][0])
            row |= {"ratios": ratios, "beside": beside, "ratio": ratios[beside][0], "interval": ratios[beside][1:]}
        if goal is not None:
            row |= {"goal": goal, "goal_of": goal_of or ("ratio" if ways else "ours")}
        if x is not None:
            row["x"] = x
        if settings:
            row["settings"] = settings
        self.found["rows"].append(row)
        self._print(row)
        return row

    def _print(self, row: Row) -> None:
        if row["table"] != self._table:
            self._table = row["table"]
            print(f"\n{self._table or self.found['title']}", flush=True)
        words = f"  {row['what']:<58} {said(row['ours']):>10} {row['unit']}"
        if "ratio" in row:
            low, high = row["interval"]
            words += f"   {row['ratio']:.2f} × {row['beside']} ({low:.2f} to {high:.2f})"
        if reached(row) is False:
            words += f"   goal {row['goal']:g} NOT reached"
        print(words, flush=True)

    def finish(self) -> Path:
        """Writes the result, and says where."""
        self.found |= {"versions": versions(), "seconds": round(time.perf_counter() - self._began, 1)}
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{self.found['name']}.json"
        write(path, self.found)
        print(f"\n{path}", flush=True)
        return path


def write(path: Path, result: Mapping[str, Any]) -> None:
    """A row to a line, so that a diff shows which changed."""
    head = json.dumps({key: value for key, value in result.items() if key != "rows"}, indent=1, ensure_ascii=False)
    rows = ",\n".join("  " + json.dumps(row, ensure_ascii=False) for row in result["rows"])
    part = path.with_suffix(".part")
    part.write_text(f'{head[:-2]},\n "rows": [\n{rows}\n ]\n}}\n', encoding="utf-8")
    part.replace(path)


def read(folder: Path) -> dict[str, dict[str, Any]]:
    """All results of a folder, by name."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}
