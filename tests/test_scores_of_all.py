"""A score says of how many images it is, and what it is not of; what chose the training's images does not choose those.

In: an index of which some images cannot be read, some have no label and some are filtered in training. Out: counts in scores,
their lines and tables, and room for what commands write.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from navit_loader import build_index
from navit_loader.errors import ConfigError
from navit_model.evaluate.classification import score_table
from navit_model.train import checkpoint
from navit_model.train.log import read_log
from navit_model.train.run import train
from navit_model.train.settings import RunConfig

from .shapes import table, write_index, write_toml


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`shapes.arrow`; and `worse.arrow`, the same with two images cut and three without a label."""
    root = tmp_path_factory.mktemp("scores")
    write_index(root)
    lines, cut = [], []
    for n, image in enumerate(sorted((root / "images").rglob("*.png"))):
        label = image.parent.name
        if n in (10, 50):
            cut.append(root / f"cut{n}.png")
            image = shutil.copy(image, cut[-1])
        lines.append({"path": str(image), "label": label} if n not in (1, 40, 80) else {"path": str(image)})
    (root / "worse.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    build_index(root / "worse.jsonl", root / "worse.arrow", classes=root / "shapes.arrow")
    for image in cut:
        image.write_bytes(image.read_bytes()[:60] + bytes(image.stat().st_size - 60))
    return root


def test_a_run_s_filter_does_not_choose_what_is_scored(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = table(str(root / "shapes.arrow"), tmp_path / "run", steps=2)
    given["plan"]["filter"] = "label != 2 and width >= 12"
    given["data"]["eval_index"] = str(root / "worse.arrow")
    (score,) = train(RunConfig.from_dict(given))
    assert (score.rows, score.images, score.failed) == (90, 87, 2)
    words = "85 of 90 images scored: 2 could not be read and count as wrong, 3 have no label"
    assert str(score).endswith(words)
    assert words in capsys.readouterr().out
    assert "85 of 90" in score_table([score])
    (entry,) = [e for e in read_log(tmp_path / "run") if e["kind"] == "eval"]
    assert (entry["rows"], entry["images"], entry["failed"]) == (90, 87, 2)
    given["data"]["eval_index"] = str(root / "shapes.arrow")
    given["train"]["out"] = str(tmp_path / "whole")
    (score,) = train(RunConfig.from_dict(given))
    assert (score.rows, score.images, score.failed) == (90, 90, 0)
    assert str(score).endswith("of 90 held-out images at 32 tokens")


def test_checkpoints_without_room_are_told_before_the_first_step(root: Path, tmp_path: Path) -> None:
    """A model of some hundred gigabytes, of which nothing is made but its shape."""
    import torch

    from navit_model import NaViT, NaViTConfig
    from navit_model.train.optim import optimiser
    from navit_model.train.settings import TrainConfig

    with torch.device("meta"):
        module = NaViT(NaViTConfig(width=8192, depth=48, heads=8, classes=10))
    adamw = optimiser(module, TrainConfig())
    with pytest.raises(ConfigError, match=r"room for .* MB, but 3 checkpoints of .* lower train.keep"):
        checkpoint.check_room(tmp_path, module, True, adamw, saves=10, keep=2)
    small = NaViT(NaViTConfig(width=8, depth=1, heads=1))
    checkpoint.check_room(tmp_path, small, True, optimiser(small, TrainConfig()), saves=10, keep=2)

    def wanted(saves: int, best: bool) -> str:
        with pytest.raises(ConfigError) as e:
            checkpoint.check_room(tmp_path, module, True, adamw, saves, 2, best)
        return str(e.value).partition(", but ")[2].partition(" of ")[0]

    # The best shares its step's files while that step lies there, and lies there alone afterwards.
    assert [wanted(saves, True) for saves in (1, 2, 4, 10)] == [f"{n} checkpoints" for n in (1, 2, 4, 4)]
    (tmp_path / "checkpoints" / "step-00000004").mkdir(parents=True)
    (tmp_path / "checkpoints" / "best-00000004").mkdir()
    assert (wanted(10, False), wanted(10, True)) == ("2 checkpoints", "3 checkpoints")
    (tmp_path / "checkpoints" / "step-00000004").rmdir()
    assert wanted(10, True) == "3 checkpoints"


def test_saves_of_better_evaluations_need_room_too(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One checkpoint in all is asked for, and each of ten evaluations may save one."""
    given = table(
        str(root / "shapes.arrow"), tmp_path / "run", steps=10, eval_every=1, checkpoint_every=0, best=True, keep=3
    )
    given["data"]["eval_index"] = str(root / "shapes.arrow")
    usage = type(shutil.disk_usage(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 10))
    with pytest.raises(ConfigError, match="but 5 checkpoints of"):
        train(RunConfig.from_dict(given))
    given["train"]["best"] = False
    with pytest.raises(ConfigError, match="but 1 checkpoints of"):
        train(RunConfig.from_dict(given))


def test_a_disk_that_fills_under_embed_is_one_line_and_the_work_goes_on_later(root: Path, tmp_path: Path) -> None:
    given = table(str(root / "shapes.arrow"), tmp_path / "run", steps=1)
    train(RunConfig.from_dict(given))
    write_toml(given, tmp_path / "run.toml")
    small = tmp_path / "small"
    small.mkdir()
    command = f"{sys.executable} -m navit_model embed {tmp_path}/run {root}/shapes.arrow -o {small}/e.npy --device cpu"
    line = f"""mount -t tmpfs -o size=4k tmpfs {small} || exit 77
    {command}; echo $? > {tmp_path}/first
    mount -o remount,size=1m {small} && {command} && cp {small}/e.npy {tmp_path}"""
    line = ["unshare", "--user", "--map-root-user", "--mount", "bash", "-c", line]
    done = subprocess.run(line, capture_output=True, text=True, timeout=200)
    if not (tmp_path / "first").exists():
        pytest.skip(f"this system mounts nothing for its users ({done.stderr.strip()})")
    assert (tmp_path / "first").read_text().strip() == "2", done.stderr
    assert "Traceback" not in done.stderr and "No space left" in done.stderr
    assert done.returncode == 0 and (tmp_path / "e.npy").exists(), done
