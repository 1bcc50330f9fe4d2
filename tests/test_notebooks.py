"""The notebooks of `examples/notebooks` as a reader runs them: from the first cell to the last, in an empty folder."""

from __future__ import annotations

import os
import sys
import sysconfig
from pathlib import Path

import pytest

nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")
for needed in ("ipykernel", "matplotlib", "skimage", "sklearn"):
    pytest.importorskip(needed)

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))
DEADLINE_S = 600
"""Of one notebook, which takes a minute or less on two idle cores."""


def test_there_are_notebooks() -> None:
    assert {path.stem for path in NOTEBOOKS} >= {"own_photos", "captions", "fine_tuning", "budgets", "daemon"}


@pytest.mark.timeout(DEADLINE_S + 60)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_in_an_empty_folder_and_ends_with_a_picture(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It is kept without outputs, which would be another machine's.
    assert path.stat().st_size < 20_000
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    assert notebook.cells[0].source.startswith("# ") and "**Why.**" in notebook.cells[0].source
    commands = os.pathsep.join([str(Path(sys.executable).parent), sysconfig.get_path("scripts"), os.environ["PATH"]])
    monkeypatch.setenv("PATH", commands)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    here = tmp_path / "here"
    here.mkdir()
    client = nbclient.NotebookClient(
        notebook, timeout=DEADLINE_S, kernel_name="python3", resources={"metadata": {"path": str(here)}}
    )
    client.execute()
    for cell in code:
        said = "".join(output.get("text", "") for output in cell.outputs)
        assert "error:" not in said and "Traceback" not in said, cell.source
    shown = [output.data for output in code[-1].outputs if output.output_type in ("display_data", "execute_result")]
    assert any("image/png" in data for data in shown)
    if kept := os.environ.get("NAVIT_NOTEBOOKS"):
        nbformat.write(notebook, Path(kept) / path.name)
