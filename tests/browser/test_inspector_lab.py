"""The inspector in a real JupyterLab: a row from kernel to page, choosing, and what a saved notebook keeps."""

import json

import numpy as np
import pytest
from browser.test_inspector_page import HOVERS
from playwright.sync_api import expect

MAKE = """from chameleon_lab.chameleon import Chameleon
from chameleon_lab.documents import Document, EndTurn
from chameleon_widgets import Inspector
lab = Chameleon.load("tiny")
document = Document.of("draw a red circle left of a blue square", EndTurn())
document += lab.generate(document, seed=7)"""

LONG = """scene = document
while len(lab.encode(document + scene)) <= 1010:
    document += scene"""

SHOW = """inspector = Inspector(lab.inspect(document))
inspector"""


def test_a_row_a_choice_and_the_still_in_jupyterlab(open_notebook):
    notebook = open_notebook([MAKE, SHOW])
    notebook.run_all()
    page = notebook.page
    expect(page.locator(".chm-inspect-cell").nth(63)).to_be_visible()
    expect(page.locator(".chm-lamp")).to_have_text("Ready")
    page.locator(".chm-inspect-cell").nth(20).hover()
    expect(page.locator(".chm-inspect-readout")).to_contain_text("All layers, looked at from code")
    page.locator(".chm-inspect-cell").nth(21).click()
    expect(page.get_by_role("list", name="What could have stood there").get_by_role("listitem").nth(5)).to_be_visible()
    position = notebook.kernel("inspector.selected")
    assert position == notebook.kernel(
        "inspector._readings.index([r for r in inspector._readings if r.image == 0][21])"
    )
    notebook.save()
    page.wait_for_timeout(500)
    outputs = json.loads(notebook.path.read_text())["cells"][1]["outputs"]
    still = next("".join(each["data"]["text/html"]) for each in outputs if "text/html" in each["data"])
    assert "data:image/png" in still and ">circle</span>" in still


@pytest.mark.slow
def test_how_soon_a_row_is_painted_in_jupyterlab(open_notebook):
    """Prints what a person waits from hover to paint at a thousand positions, and asserts only that all rows came."""
    notebook = open_notebook([MAKE, LONG, SHOW])
    notebook.run_all()
    page = notebook.page
    expect(page.locator(".chm-inspect-word").nth(9)).to_be_visible()
    expect(page.locator(".chm-lamp")).to_have_text("Ready")
    count = notebook.kernel("len(inspector._readings)")
    for head in (None, "Layer 3, head 1", "read by"):
        if head == "read by":
            page.get_by_role("radio", name=head).check()
        elif head:
            page.get_by_role("gridcell", name=head, exact=True).click()
        for run in ("from the kernel", "again, from the page"):
            times = page.evaluate(HOVERS, np.random.default_rng(0).permutation(count)[:120].tolist())
            print(f"\n{count} positions, {head or 'rollout'}, {run}: p50 {np.median(times):.0f} ms, "
                  f"p95 {np.percentile(times, 95):.0f} ms")  # fmt: skip
            assert max(times) < 5000
