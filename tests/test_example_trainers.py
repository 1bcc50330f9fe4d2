"""The examples around other people's trainers: they learn, and go on exactly where they were.

In: a small folder of shapes, and the examples' own `fit`. Apart from the other examples, since both packages are slow to load.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from shapes import table, write_index

QUIET: dict[str, dict[str, Any]] = {
    "with_lightning": {
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    },
    "with_transformers": {
        "use_cpu": True,
        "disable_tqdm": True,
        "logging_strategy": "no",
        "lr_scheduler_type": "constant",
        "save_steps": 7,
    },
}


# Both packages warn of themselves.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["with_lightning", "with_transformers"])
def test_another_trainer_goes_on_with_the_next_image(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "examples"))
    fit = importlib.import_module(name).fit
    index = write_index(tmp_path)
    given = table(index, tmp_path)
    config = {"data": {"batch_size": 2}, "plan": given["plan"], "render": given["render"]}

    def run(out: str, steps: int, resume: Any) -> dict[str, torch.Tensor]:
        module = fit(index, tmp_path / out, steps, resume, config=config, model=given["model"], **QUIET[name])
        return dict(module.state_dict())

    # Five steps an epoch: the stop lies within the second, the end within the third.
    whole = run("whole", 14, None)
    half = run("half", 7, None)
    found = next((tmp_path / "half").rglob("*step=7.ckpt"), None) if name == "with_lightning" else True
    resumed = run("half", 14, found)
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    assert not all(torch.equal(whole[key], half[key]) for key in whole)
