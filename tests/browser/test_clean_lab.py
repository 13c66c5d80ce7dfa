"""A notebook that was only opened has no unsaved changes, whichever Python it was written with."""

import json
from pathlib import Path

import pytest

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
DIRTY = "() => jupyterapp.shell.currentWidget.context.model.dirty"


@pytest.mark.parametrize("version", ["", "3.9.1"])
def test_an_opened_notebook_has_no_unsaved_changes(open_notebook, tmp_path, version):
    notebook = json.loads((NOTEBOOKS / "08_bring_your_own_weights.ipynb").read_text())
    notebook["metadata"]["language_info"] = {"name": "python", **({"version": version} if version else {})}
    path = tmp_path / f"opened{version}.ipynb"
    path.write_text(json.dumps(notebook))
    opened = open_notebook(path)
    opened.page.wait_for_timeout(1500)  # the kernel has said what it is, and the page has had time to write it
    assert opened.page.evaluate(DIRTY) is False
    opened.page.evaluate("() => { jupyterapp.shell.currentWidget.content.model.setMetadata('a', 1); }")
    assert opened.page.evaluate(DIRTY) is True  # and what is changed is told
