"""Every widget in one notebook of a real JupyterLab whose kernel is restarted, and later ended: each lamp says so."""

from __future__ import annotations

from playwright.sync_api import expect

import chameleon_widgets

MAKE = """import tempfile, fakes
from chameleon_widgets import *
from chameleon_lab.chameleon import Chameleon
from chameleon_lab.documents import Document, EndTurn
from chameleon_lab.studies import Study
lab, codec = Chameleon.load("tiny"), fakes.Codec()
asked = Document.of("draw a red circle", EndTurn())
run = fakes.GrowingRun(40)
study = Study.of_pairs("which", [asked], {"a": [Document.of("a")], "b": [Document.of("b")]})"""

WIDGETS = {
    "Arena": 'Arena(tempfile.mkdtemp(), "Ann", study)',
    "ChatCell": "ChatCell(fakes.stream)",
    "CodeSurgery": 'CodeSurgery(codec, samples={"circle and square": fakes.scene()})',
    "CodebookAtlas": "CodebookAtlas(lab.tokenizer.image, pictures={'a scene': fakes.scene()})",
    "ComparePanel": "ComparePanel([run])",
    "Explainer": "Explainer(lab.walk(asked, seed=5))",
    "InfillCanvas": "InfillCanvas(lab.stream_infill, lab.tokenizer.image, Document.of(fakes.scene()))",
    "Inspector": "Inspector(lab.inspect(asked))",
    "ReconstructionViewer": 'ReconstructionViewer(codec, samples={"circle and square": fakes.scene()})',
    "RunPanel": "RunPanel(run)",
}

KERNEL = "jupyterapp.shell.currentWidget.sessionContext.session.kernel"


def test_after_a_restart_no_lamp_stays_green(open_notebook, screenshots):
    assert WIDGETS.keys() == set(chameleon_widgets.__all__), "each widget stands here"
    notebook = open_notebook([MAKE, *WIDGETS.values()])
    page, lamps = notebook.page, notebook.page.locator(".chm-lamp")
    for end in (notebook.restart, lambda: page.evaluate(f"() => {KERNEL}.shutdown()")):
        notebook.run_all()
        notebook.assert_all_ran()
        expect(lamps).to_have_count(len(WIDGETS))
        end()
        expect(page.locator(".chm-lamp[data-state=disconnected]")).to_have_count(len(WIDGETS))
        for lamp in lamps.all():
            expect(lamp).to_have_text("Disconnected: the kernel was restarted or ended")
        page.screenshot(path=screenshots / "restarted.png")
        if end == notebook.restart:
            notebook.ready()
