"""Every notebook runs from top to bottom, asks one question in its title, and stays short."""

from __future__ import annotations

import ast
import base64
import io
import re
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import PIL.Image
import pytest
from nbclient import NotebookClient
from shortened import NOTEBOOKS, WITH_WIDGETS, shortened
from support import CHROMIUM

ROOT = Path(__file__).parent.parent
IMPORTS = (ast.Import, ast.ImportFrom)
OUTPUTS: Any = SimpleNamespace(**runpy.run_path(str(ROOT / ".ci" / "outputs")))  # the command of `make outputs`


# Where there is a Chromium, tests/browser/test_notebooks_lab.py runs those with widgets, which asks for more.
IN_A_PAGE = WITH_WIDGETS if CHROMIUM else []


@pytest.mark.parametrize(
    "path", [pytest.param(path, id=path.stem, marks=[pytest.mark.slow] * (path in IN_A_PAGE)) for path in NOTEBOOKS]
)
def test_it_runs_from_top_to_bottom(path: Path, monkeypatch: pytest.MonkeyPatch, quick_kernels: Path) -> None:
    monkeypatch.setenv("JUPYTER_PATH", str(quick_kernels))
    monkeypatch.setenv("CHAMELEON_QUICK", "1")  # long trainings are cut short
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # two kernels with threads for all cores wait for each other
    notebook = shortened(path)
    resources = {"metadata": {"path": path.parent}}
    NotebookClient(notebook, timeout=600, store_widget_state=False, resources=resources).execute()
    warnings = [
        output for cell in notebook.cells for output in cell.get("outputs", []) if output.get("name") == "stderr"
    ]
    assert not warnings, warnings


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_asks_one_question_is_short_and_its_outputs_are_its_own(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    title = notebook.cells[0].source.splitlines()[0]
    assert title.startswith("# ")
    assert title.endswith("?")
    prose = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    assert re.search("minute|second", prose[0]), "the head says how long all cells together run"
    assert any("**Where next?**" in each for each in prose), "the last words say where to go on"
    assert len(notebook.cells) <= 25
    assert not any(cell.get("execution_count") for cell in notebook.cells)
    assert "widgets" not in notebook.metadata
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert all(output.output_type != "error" and output.get("name") != "stderr" for output in outputs)
    words = [each.data["text/plain"] for each in outputs if each.get("data", {}).keys() == {"text/plain"}]
    assert not any(re.search(r"<matplotlib|\bText\(", each) for each in words), "plt.show() after a plot's last words"
    if outputs:
        words = "after a cell is changed, `make outputs` runs the notebook again; or clear its outputs"
        assert notebook.metadata.get("outputs_of") == OUTPUTS.sources(notebook), words
        assert path.stat().st_size < 2_000_000


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_its_own_figures_lie_on_a_page_of_any_colour(path: Path) -> None:
    code = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code")
    if "matplotlib.pyplot" in code:
        assert "plt.rcParams.update(PAGE_STYLE)" in code, "a white slab in a dark page"
    for call in re.findall(r"\.barh?\((?:[^()]|\([^()]*\))*\)", code):
        assert "err=" not in call or "ecolor=" in call, "black ends of intervals in a dark page"


def test_where_next_leads_from_the_first_to_the_last_and_says_of_each_how_long_it_takes() -> None:
    cells = {path.stem: nbformat.read(path, as_version=4).cells for path in NOTEBOOKS}
    heads = {name: " ".join(each[0].source.lower().split()) for name, each in cells.items()}
    takes = {name: re.findall(r"(\w+ minutes?) on two cores", head) for name, head in heads.items()}
    for name, following in zip([*cells], [*cells][1:] + [""], strict=True):
        (words,) = (each.source for each in cells[name] if "**Where next?**" in each.source)
        links = re.findall(r"\[`(\w+)`\]\(\1\.ipynb\)\s*(?:\((\w+\s+minutes?)\))?", words.split("**Where next?**")[1])
        assert {each: [minutes] for each, minutes in links} == {each: takes[each] for each, _ in links}, name
        assert following in [*dict(links), ""], name


def test_first_cells_import_nothing_slow_that_later_cells_may_not_need() -> None:
    lines = set[str]()
    for path in NOTEBOOKS:
        first = next(cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code")
        lines |= {ast.unparse(each) for each in ast.parse(first.source).body if isinstance(each, IMPORTS)}
    slow = {"lightning", "openvino", "pandas", "scipy", "sklearn", "torchvision", "transformers"}
    program = "\n".join([*sorted(lines), f"import sys; print(*sorted({slow!r} & sys.modules.keys()))"])
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_outputs_that_are_kept_are_light_and_need_no_kernel() -> None:
    picture = io.BytesIO()
    PIL.Image.effect_noise((2000, 900), 60).save(picture, "PNG")
    png = base64.b64encode(picture.getvalue()).decode()
    figure = nbformat.v4.new_output("execute_result", {"image/png": png, "text/plain": "a figure"}, execution_count=3)
    view = nbformat.v4.new_output("display_data", {OUTPUTS.VIEW: {"model_id": "1"}, "text/plain": "Panel"})
    noise = nbformat.v4.new_output("stream", name="stderr", text="a warning")
    words = nbformat.v4.new_output("stream", name="stdout", text="words")
    large = nbformat.v4.new_output("display_data", {"text/html": "x" * (OUTPUTS.LARGEST + 1)})
    assert [OUTPUTS.light(each) for each in (view, noise, large)] == [None, None, None]
    assert OUTPUTS.light(words).text == "words"
    folder = tempfile.mkdtemp()
    lines = [
        nbformat.v4.new_output("stream", text=f"{folder}/mine is open\n"),
        nbformat.v4.new_output("stream", text="a"),
    ]
    (line,) = OUTPUTS.joined([OUTPUTS.light(each) for each in lines])
    assert line.text == "…/mine is open\na"
    Path(folder).rmdir()
    twice = nbformat.v4.new_output("display_data", {"image/png": png, "image/jpeg": png, "text/plain": folder})
    assert OUTPUTS.light(twice).data.keys() == {"image/png", "text/plain"} and twice.data["text/plain"] == "…"
    light = OUTPUTS.light(figure)
    assert light.execution_count is None
    with PIL.Image.open(io.BytesIO(base64.b64decode(light.data["image/png"]))) as small:
        assert small.width == OUTPUTS.WIDEST


def test_outputs_belong_to_code_and_not_to_prose() -> None:
    def notebook(prose: str, code: str) -> nbformat.NotebookNode:
        return nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(prose), nbformat.v4.new_code_cell(code)])

    assert OUTPUTS.sources(notebook("a", "1")) == OUTPUTS.sources(notebook("b", "1"))
    assert OUTPUTS.sources(notebook("a", "1")) != OUTPUTS.sources(notebook("a", "2"))
