"""The table of proof: results keep their format, README is what they make, a slow-down is seen and noise is not."""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))
import compare
import kit
import page
import run

BENCH = Path(__file__).resolve().parents[1] / "bench"
RESULTS = kit.read(kit.RESULTS)
HEAD = {"format", "name", "title", "date", "commit", "machine", "engine", "versions", "settings", "left_out", "rows"}
ROW = {"what", "table", "ours", "unit", "better"}
MORE = {
    "spread",
    "n",
    "samples",
    "peers",
    "bounds",
    "ratios",
    "beside",
    "ratio",
    "interval",
    "goal",
    "goal_of",
    "x",
    "settings",
}


@pytest.mark.parametrize("name", RESULTS)
def test_a_result_follows_the_format(name: str) -> None:
    result = RESULTS[name]
    assert HEAD <= result.keys() <= HEAD | {"seconds", "transcribed"} and result["format"] == kit.FORMAT
    assert result["name"] == name and result["title"] and result["rows"] and "quick" not in result
    datetime.date.fromisoformat(result["date"])
    assert result["machine"]["cpu"] and result["machine"]["cores"] >= 1
    keys = [key for key, _ in compare.rows({name: result})]
    assert len(keys) == len(set(keys)), "two rows of one name"
    for row in result["rows"]:
        assert ROW <= row.keys() <= ROW | MORE and row["better"] in ("higher", "lower")
        assert np.isfinite(row["ours"])
        ways = row.get("peers", {}) | row.get("bounds", {})
        assert ways.keys() == row.get("ratios", {}).keys() and "navit" not in ways
        if ways:
            low, high = row["interval"]
            assert row["beside"] in ways and row["ratios"][row["beside"]] == [row["ratio"], low, high]
            assert low <= row["ratio"] <= high
        assert ("goal" in row) == ("goal_of" in row) and row.get("goal_of", "ours") in ("ours", "ratio")
        assert row.get("goal_of") != "ratio" or ways
        if not result.get("transcribed"):
            assert row["n"] == len(row["samples"]) and row["spread"][0] <= row["ours"] <= row["spread"][1]


def test_the_page_is_what_the_results_make() -> None:
    """Where this fails: python bench/page.py."""
    assert (BENCH / "README.md").read_text(encoding="utf-8") == page.page(RESULTS)
    drawn = {file for name, result in RESULTS.items() for file, *_ in page.curves(name, result)}
    assert drawn == {path.name for path in kit.RESULTS.glob("*.svg")}


def test_every_benchmark_is_run_or_named_as_apart() -> None:
    asking = {path.name for path in BENCH.glob("*.py") if "= Report(" in path.read_text()}
    assert asking == {entry.command[0] for entry in run.ENTRIES} | {"claims.py", "fit.py"}
    assert sum(entry.minutes for entry in run.ENTRIES) <= 180, "three hours"


def report(folder: Path, quick: bool = False, name: str = "tiny") -> kit.Report:
    return kit.Report(
        name, "What is it? More words.", argparse.Namespace(results=folder, quick=quick, count=3, only="")
    )


def test_ratios_are_taken_within_a_round_and_more_is_always_better(tmp_path: Path) -> None:
    tiny = report(tmp_path)
    ours, theirs = [10.0, 20.0, 40.0], [5.0, 10.0, 20.0]  # the machine drifts, the ratio does not
    faster = tiny.row(
        "speed", {"navit": ours, "peer": theirs, "bound": [40.0] * 3}, "images/s", bounds=("bound",), goal=1.5
    )
    assert faster["ratio"] == 2 and faster["interval"] == [2, 2] and faster["beside"] == "peer" and faster["ours"] == 20
    assert kit.standing(faster) == "ahead" and kit.reached(faster) is True and faster["bounds"] == {"bound": 40}
    slower = tiny.row("time", {"navit": ours, "peer": theirs}, "s", better="lower", goal=30, goal_of="ours")
    assert slower["ratio"] == 0.5 and kit.standing(slower) == "behind" and kit.reached(slower) is True
    level = tiny.row("level", {"navit": [1.0, 2.0, 1.0], "peer": [2.0, 1.0, 1.0]}, "s", better="lower")
    assert kit.standing(level) == "level"
    alone = tiny.row("memory", 3.0, "MiB", better="lower", goal=2)
    assert kit.standing(alone) == "" and kit.reached(alone) is False
    tiny.left_out("a peer")
    tiny.finish()
    result = kit.read(tmp_path)["tiny"]
    assert result["title"] == "What is it?" and result["settings"] == {"count": 3} and "numpy" not in result["versions"]
    text = page.page({"tiny": result})
    before, after = text.split("## Where and when")
    assert all(word in before for word in ("time", "level", "memory")) and "| speed" not in before
    assert "speed" in after and "a peer (not installed)" in after and result["machine"]["cpu"] in after


def test_an_engine_that_is_not_the_houses_own_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from navit_loader import _packer

    monkeypatch.setattr(_packer, "BUILD_OVERRIDES", "lto=off codegen-units=16")
    assert report(tmp_path).found["engine"] == "release, lto=off, codegen-units=16"
    monkeypatch.setattr(_packer, "BUILD_PROFILE", "debug")
    with pytest.raises(SystemExit, match="make build"):
        report(tmp_path)


def test_turns_alternate_and_do_not_count_the_warm_ones() -> None:
    order: list[str] = []

    def way(name: str) -> Any:
        return lambda: order.append(name) or len(order)

    assert kit.turns({"a": way("a"), "b": way("b")}, repeat=2, warm=1) == {"a": [3, 5], "b": [4, 6]}
    assert order == ["a", "b"] * 3


def test_what_hangs_or_fails_is_named_and_keeps_its_older_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "slow.py").write_text("import time; print('began', flush=True); time.sleep(60)")
    (tmp_path / "broken.py").write_text("raise ValueError('this is why')")
    (tmp_path / "slow.json").write_text("{}")
    monkeyed = run.Entry("slow", (str(tmp_path / "slow.py"),), 0)
    assert run.run(monkeyed, tmp_path, quick=False) == "not done within 0 s"
    assert run.run(run.Entry("broken", (str(tmp_path / "broken.py"),), 1), tmp_path, quick=False) == "ended with 1"
    assert "this is why" in capsys.readouterr().out and (tmp_path / "slow.json").exists()
    assert "not installed" in run.run(run.Entry("x", ("x.py",), 1, "no_such_module"), tmp_path, quick=False)


def test_a_result_of_this_commit_and_machine_is_not_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (kit, run):
        monkeypatch.setattr(module, "commit", lambda: "0123456789")
    made = report(tmp_path)
    made.row("x", 1.0, "s")
    made.finish()
    assert run.fresh(tmp_path, quick=False) == {"tiny"} and run.fresh(tmp_path, quick=True) == set()
    result = kit.read(tmp_path)["tiny"]
    for change in ({"commit": "another"}, {"transcribed": True}, {"machine": result["machine"] | {"cores": 99}}):
        kit.write(tmp_path / "tiny.json", result | change)
        assert run.fresh(tmp_path, quick=False) == set()
    monkeypatch.setattr(run, "commit", lambda: "0123456789+")
    kit.write(tmp_path / "tiny.json", result | {"commit": "0123456789+"})
    assert run.fresh(tmp_path, quick=False) == set(), "what is not committed may be anything"


def rounds(slower: float, count: int = 7, rows: int = 60) -> list[Any]:
    """Rounds of two sides with a tenth of noise; on side B the first row takes `slower` times as long."""
    rng = np.random.default_rng(1)

    def side(factor: float, drift: float) -> dict[str, Any]:
        values = drift * rng.lognormal(0, 0.05, rows) * np.where(np.arange(rows) == 0, factor, 1)
        made = [
            {"what": f"row {n}", "table": "", "unit": "s", "better": "lower", "ours": v} for n, v in enumerate(values)
        ]
        return {"x": {"rows": made}}

    found = []
    for _ in range(count):
        drift = float(rng.uniform(1, 3))  # of the machine, from round to round
        found.append((side(1, drift), side(slower, drift)))
    return found


def test_a_slow_down_is_found_twice_and_noise_is_not() -> None:
    def compared(slower: float) -> list[compare.Found]:
        first, second = (compare.paired(part, 0.03, None) for part in np.array_split(rounds(slower, 14), 2))
        return compare.same(first, second)

    assert compared(1.0) == []
    (found,) = compared(1.3)
    assert (
        found.key == ("x", "", "row 0", "s")
        and found.ratio == pytest.approx(1 / 1.3, rel=0.1)
        and "WORSE" in found.words
    )
    (better,) = compared(0.7)
    assert better.ratio > 1.2 and better.words.startswith("better")


def test_two_folders_of_results_are_compared(tmp_path: Path) -> None:
    for name, factor in (("a", 1.0), ("b", 1.5), ("c", 1.01)):
        made = report(tmp_path / name)
        made.row("time", [factor * v for v in (1.0, 1.02, 1.04, 1.01, 1.03)], "s", better="lower")
        made.finish()

    def compared(a: str, b: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(BENCH / "compare.py"), str(tmp_path / a), str(tmp_path / b)]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    slower, same = compared("a", "b"), compared("a", "c")
    assert slower.returncode == 1 and "WORSE" in slower.stdout and "tiny: time, s" in slower.stdout
    assert same.returncode == 0 and "0 worse" in same.stdout
    other = json.loads((tmp_path / "b" / "tiny.json").read_text())
    other["machine"]["cpu"] = "another"
    kit.write(tmp_path / "b" / "tiny.json", other)
    assert "several machines" in compared("a", "b").stderr
