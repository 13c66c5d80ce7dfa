"""Every notebook runs from top to bottom, asks one question in its title, and stays short."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


IN_A_BROWSER = "05"  # tests/browser/test_notebooks_lab.py runs it with every change

HEADLESS = [
    pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if path.stem.startswith(IN_A_BROWSER) else [])
    for path in NOTEBOOKS
]


def a_tenth(code: str) -> str:
    """The code of a cell with a tenth of its hundreds of steps; what starts at one of them starts as much earlier."""
    return re.sub(r"(\b(?:start_step|steps)=\d+\d)\d\b", r"\1", code)


@pytest.mark.parametrize("path", HEADLESS)
def test_it_runs_from_top_to_bottom(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAMELEON_QUICK", "1")  # long trainings are cut short
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # two kernels with threads for all cores wait for each other
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        cell.source = a_tenth(cell.source)
    resources = {"metadata": {"path": path.parent}}
    NotebookClient(notebook, timeout=600, store_widget_state=False, resources=resources).execute()
    told = [output for cell in notebook.cells for output in cell.get("outputs", []) if output.get("name") == "stderr"]
    assert not told, told


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_asks_one_question_and_is_short_and_stripped(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    title = notebook.cells[0].source.splitlines()[0]
    assert title.startswith("# ")
    assert title.endswith("?")
    assert len(notebook.cells) <= 25
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)
    assert "widgets" not in notebook.metadata
