"""The infill canvas and the arena in a real JupyterLab: Run All, an interrupt, an edited cell, stills, a restart."""

from __future__ import annotations

import json

from playwright.sync_api import expect

MAKE = """import tempfile, time
from chameleon_lab.chameleon import Chameleon
from chameleon_lab.documents import Document, EndTurn
from chameleon_lab.studies import Study, all_judgements
from chameleon_widgets import Arena, InfillCanvas
lab = Chameleon.load("infilling")
drawn = Document.of("a red circle left of a blue square", lab.generate(
    Document.of("draw a red circle left of a blue square", EndTurn()), seed=1).pictures[0])
place = tempfile.mkdtemp()
study = Study.of_pairs("which", [Document.of(str(n)) for n in range(3)],
                       {"a": [Document.of(f"<b>a{n}</b>") for n in range(3)],
                        "b": [Document.of(f"b{n}") for n in range(3)]})"""

CANVAS = "canvas = InfillCanvas(lab.stream_infill, lab.tokenizer.image, drawn, fillings=2)\ncanvas"
ARENA = 'arena = Arena(place, "Ann", study)\narena'
LONG = 'print("begins")\ntime.sleep(0 if place.endswith("done") else 60)'


def test_both_live_through_run_all_an_interrupt_and_an_edited_cell_and_know_a_restart(open_notebook):
    notebook = open_notebook([MAKE, CANVAS, ARENA, LONG])
    page = notebook.page
    notebook.run_all(wait=False)

    # While the last cell runs, both live
    count = page.locator(".chm-judge-count")
    expect(page.locator(".jp-OutputArea-output", has_text="begins")).to_be_visible()  # the last cell has begun
    expect(page.get_by_role("grid", name="Cells of the picture")).to_be_visible()
    expect(count).to_have_text("1 of 3")
    page.locator(".chm-judge-answer").first.click()
    expect(count).to_have_text("2 of 3")
    word = page.get_by_role("button", name="red", exact=True)
    word.click()
    expect(word).to_have_attribute("aria-pressed", "true")
    assert page.locator(".chm-judge-reply b").count() == 0  # text is never HTML

    # Interrupted, the cell ends; the widgets do not
    notebook.interrupt()
    expect(page.get_by_text("KeyboardInterrupt").first).to_be_visible()
    page.locator(".chm-judge-answer").last.click()
    expect(count).to_have_text("3 of 3")
    page.get_by_role("button", name="Fill", exact=True).click()
    expect(page.locator(".chm-filling[data-state=whole]")).to_have_count(2)

    # An edited cell, run again
    page.evaluate(
        """(source) => {
          const {content} = jupyterapp.shell.currentWidget;
          content.activeCellIndex = 2;
          content.activeCell.model.sharedModel.setSource(source);
          return jupyterapp.commands.execute('notebook:run-cell');
        }""",
        ARENA.replace('"Ann"', '"Ben"'),
    )
    expect(count).to_have_text("1 of 3")
    assert notebook.kernel("len(all_judgements(place))") == 2

    # Saved, the notebook has their stills; after a restart nothing can be judged
    expect(page.locator(".chameleon-still")).to_have_count(2)
    notebook.save()
    cells = json.loads(notebook.path.read_text())["cells"]
    for each in cells[1:3]:
        assert any("text/html" in output.get("data", {}) for output in each["outputs"])
    notebook.restart()
    notebook.ready()
    expect(page.locator(".chm-judge-answer").first).to_be_disabled()  # nobody would keep the answer

    # Opened later, without the kernel that made them, both are there to be looked at
    notebook.shutdown()
    later = notebook.reopen()
    expect(later.locator(".chameleon-still")).to_have_count(2)
    for still in later.locator(".chameleon-still").all():
        expect(still).to_be_visible()
    expect(later.get_by_role("button", name="Fill", exact=True)).to_have_count(0)
