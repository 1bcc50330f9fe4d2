"""The best checkpoint of a run and when a run ends early: the same however often it was killed, on any number of ranks.

In: a small folder of shapes. Out: real runs, in processes where they are killed.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from navit_loader import build_index
from navit_model.cli import main
from navit_model.train import checkpoint, report
from navit_model.train.best import Best, after
from navit_model.train.log import read_log
from navit_model.train.run import train
from navit_model.train.settings import RunConfig
from navit_model.use.opened import open_model

sys.path.insert(0, str(Path(__file__).parent))
from pairs_kit import write_pairs
from shapes import table, write_index

SCRIPT = Path(__file__).with_name("ranks.py")


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_index(tmp_path_factory.mktemp("shapes"))


def run_of(index: str, out: Path, batch: int = 2, **train: Any) -> dict[str, Any]:
    given = table(index, out, batch, **{"ema": 0.5, "best": True, "keep": 1, "eval_tokens": [4, 16], **train})
    given["data"]["eval_index"] = index
    return given


def scores(out: Path) -> dict[int, float]:
    """By step, at the largest budget."""
    return {e["step"]: e["accuracy"] for e in read_log(out) if e["kind"] == "eval" and e["tokens"] == 16}


def first_best(found: dict[int, float]) -> int:
    return max(found, key=lambda step: (found[step], -step))


@given(
    figures=st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.4]), min_size=1, max_size=12),
    back=st.lists(st.integers(0, 12), max_size=3),
)
def test_going_back_to_any_step_leads_to_the_same_best(figures: list[float], back: list[int]) -> None:
    """As a run that is killed and goes on from an earlier checkpoint, with the best that was kept meanwhile."""
    told: list[Best] = []
    for step, figure in enumerate(figures, 1):
        told.append(after(told[-1] if told else None, step, 16, figure))
    best = told[-1]
    assert best.step == 1 + figures.index(max(figures))
    assert best.waited == len(figures) - best.step
    for start in (at for at in back if at < len(figures)):
        saved, kept = (told[start - 1] if start else None), told[best.step - 1]
        again = saved if saved and saved.step == kept.step else kept
        for step in range(start + 1, len(figures) + 1):
            again = after(again, step, 16, figures[step - 1])
        assert again == best


def test_a_score_at_another_budget_is_the_first_of_its_kind() -> None:
    best = after(after(None, 1, 16, 0.9), 2, 16, 0.8)
    assert after(best, 3, 64, 0.5) == Best(3, 64, 0.5, evaluated=3)


def test_the_best_outlives_pruning_and_is_what_is_used(index: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    # So fast that what was learnt is lost again.
    wild: dict[str, Any] = {"learning_rate": 0.3, "schedule": "constant", "ema": 0.0}
    rows = train(RunConfig.from_dict(run_of(index, out, steps=40, eval_every=5, checkpoint_every=7, **wild)))
    found = scores(out)
    best = first_best(found)
    assert best < 40 and found[best] > found[40], found
    assert [folder.name for folder in checkpoint.bests(out)] == [f"best-{best:08d}"]
    assert [folder.name for folder in checkpoint.steps(out)] == ["step-00000040"]
    assert max(rows, key=lambda row: row.tokens).accuracy == found[best]  # type: ignore[attr-defined]

    device = torch.device("cpu")
    assert open_model(out, device).path.name == f"best-{best:08d}"
    assert open_model(out, device, last=True).path.name == "step-00000040"
    told = tmp_path / "scores.json"
    for option, accuracy in ((), found[best]), (("--last",), found[40]):
        assert main(["eval", str(out), index, "--tokens", "16", "--json", str(told), "--device", "cpu", *option]) == 0
        assert json.loads(told.read_text())["scores"][0]["accuracy"] == accuracy
    assert f"{found[best]:.2%}" in (out / "report.html").read_text()

    weights = next(checkpoint.bests(out)[0].glob("model*"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    assert open_model(out, device).path.name == "step-00000040"


def test_patience_ends_a_run_and_going_on_from_there_trains_no_more(
    index: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    run = RunConfig.from_dict(
        run_of(index, out, steps=400, eval_every=2, learning_rate=0.05, checkpoint_every=5, patience=3)
    )
    train(run)
    found = scores(out)
    best, last = first_best(found), max(found)
    assert last == best + 3 * 2 < 400
    assert checkpoint.steps(out)[-1].name == f"step-{last:08d}"
    said = capsys.readouterr().out
    assert f"3 evaluations without a better score (train.patience): the run ends at step {last} of 400" in said
    rows = train(run, resume=True)
    assert scores(out) == found
    assert max(rows, key=lambda row: row.tokens).accuracy == found[best]  # type: ignore[attr-defined]


@pytest.mark.slow
def test_killed_at_random_moments_the_best_and_the_end_are_the_same(index: str, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    settings: dict[str, Any] = {
        "steps": 300,
        "eval_every": 3,
        "checkpoint_every": 7,
        "patience": 8,
        "eval_tokens": [16],
    }
    train(RunConfig.from_dict(run_of(index, whole, **settings)))
    (job := tmp_path / "jobs.json").write_text(json.dumps([{"table": run_of(index, killed, **settings)}]))
    moments = random.Random(1)
    for attempt in range(4):
        process = subprocess.Popen([sys.executable, str(SCRIPT), str(job)])
        goal = max(scores(killed), default=0) + moments.randint(2, 8)
        writing = attempt % 2  # half of the times just while the best or another is being written
        while process.poll() is None:
            drafts = list((killed / "checkpoints").glob(".writing-*"))
            if attempt < 3 and max(scores(killed), default=0) >= goal and bool(drafts) >= writing:
                process.kill()
                break
            time.sleep(0.0005)
        assert process.wait(60) == (-9 if attempt < 3 else 0)
    assert scores(killed) == scores(whole) and max(scores(whole)) < 300
    first, second = (checkpoint.best_of(out) for out in (whole, killed))
    assert first is not None and second is not None
    assert first.state["best"] == second.state["best"] and first.step == first_best(scores(whole))
    ours, theirs = first.read("average"), second.read("average")
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    ends = [checkpoint.open_checkpoint(out, last=True).state["best"] for out in (whole, killed)]
    assert ends[0] == ends[1]
    assert not list((killed / "checkpoints").glob(".*"))


@pytest.mark.slow
def test_two_ranks_end_alike_and_keep_one_best(index: str, tmp_path: Path) -> None:
    outs = {kind: tmp_path / kind for kind in ("ddp", "fsdp")}
    settings: dict[str, Any] = {
        "steps": 200,
        "eval_every": 2,
        "learning_rate": 0.05,
        "patience": 3,
        "eval_tokens": [16],
    }
    jobs = [{"table": run_of(index, out, 1, parallel=kind, **settings)} for kind, out in outs.items()]
    (job := tmp_path / "jobs.json").write_text(json.dumps(jobs))
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*line, str(SCRIPT), str(job)], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    for out in outs.values():
        found = scores(out)
        assert max(found) == first_best(found) + 6 < 200
        assert [folder.name for folder in checkpoint.bests(out)] == [f"best-{first_best(found):08d}"]


def test_of_pairs_the_best_is_that_of_both_recalls(tmp_path: Path) -> None:
    build_index(write_pairs(tmp_path / "pairs", 24), tmp_path / "pairs.arrow")
    out = tmp_path / "run"
    given = run_of(str(tmp_path / "pairs.arrow"), out, task="contrastive", eval_every=2, learning_rate=0.1)
    given["plan"] |= {"text_tokens": 128, "max_text_tokens": 24}
    given |= {"text": {"width": 16, "depth": 1, "heads": 2}, "contrastive": {"width": 16}}
    train(RunConfig.from_dict(given))
    found = {
        e["step"]: (e["image_to_text"]["1"] + e["text_to_image"]["1"]) / 2
        for e in read_log(out)
        if e["kind"] == "eval" and e["tokens"] == 16
    }
    assert [folder.name for folder in checkpoint.bests(out)] == [f"best-{first_best(found):08d}"]


def test_a_step_that_was_scored_twice_stands_once_in_the_report(index: str, tmp_path: Path) -> None:
    """As where a run is killed between the score and the best that it was: the log has it already, and it is made again."""
    out = tmp_path / "run"
    run = RunConfig.from_dict(run_of(index, out, steps=4, eval_every=2))
    train(run)
    lines = (out / "log.jsonl").read_text().splitlines()
    (out / "log.jsonl").write_text("\n".join([*lines, *(line for line in lines if '"eval"' in line)]) + "\n")
    assert report.write(out).read_text().count('<th scope="row">16 tokens</th>') == 1
