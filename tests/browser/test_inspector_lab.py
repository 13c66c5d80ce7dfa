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
        "inspector.look.readings.index([r for r in inspector.look.readings if r.image == 0][21])"
    )
    expect(page.locator(".chameleon-still")).to_contain_text("circle")
    notebook.save()
    outputs = json.loads(notebook.path.read_text())["cells"][1]["outputs"]
    still = next("".join(each["data"]["text/html"]) for each in outputs if "text/html" in each["data"])
    assert "data:image/png" in still and ">circle</span>" in still


def test_a_journey_by_keyboard_alone_a_page_and_a_restart_in_jupyterlab(open_notebook, tmp_path):
    """Hover, lock, force, back, knock-out, lens, export and its re-opening, restart, Run All: a session for all."""
    notebook = open_notebook([MAKE, SHOW])
    notebook.run_all()
    page, press = notebook.page, notebook.page.keyboard.press
    words, cells = page.locator(".chm-inspect-word"), page.locator(".chm-inspect-cell")
    lamp, readout = page.locator(".chm-lamp"), page.locator(".chm-inspect-readout")
    expect(cells.nth(63)).to_be_visible()
    expect(lamp).to_have_text("Ready")

    page.get_by_role("gridcell", name="Layer 0, head 0", exact=True).focus()  # lock a head
    for key in ("ArrowDown", "ArrowRight", "Enter"):
        press(key)
    words.first.focus()  # walk to the blue of the prompt, and on to the picture
    for _ in range(8):
        press("ArrowRight")
    expect(words.nth(8)).to_be_focused()
    expect(readout).to_contain_text("Layer 1, head 1, looked at from blue")
    for _ in range(4):
        press("ArrowRight")
    press("ArrowDown")
    press("ArrowDown")
    expect(cells.nth(16)).to_be_focused()

    press("Enter")  # choose it, and force its second likeliest
    choices = page.locator(".chm-inspect-choice:not(:disabled)")
    expect(page.locator(".chm-inspect-choice img").nth(5)).to_be_visible()
    choices.first.focus()
    press("ArrowDown")
    press("Enter")
    tree = page.get_by_role("treeitem")
    expect(tree).to_have_count(2)
    expect(lamp).to_have_text("Ready")
    tree.nth(1).focus()  # back
    press("ArrowLeft")
    press("Enter")
    expect(tree.first).to_have_attribute("aria-selected", "true")
    assert notebook.kernel(
        "inspector.look.branch(28, seed=1).tokens[:28].tolist() == inspector.look.tokens[:28].tolist()"
    )

    words.nth(3).focus()  # knock out
    press("k")
    expect(page.locator(".chm-inspect-change")).to_contain_text("nats without it")
    press("Escape")
    page.get_by_label("Image 1 as it is after layer").focus()  # the lens
    press("Home")
    expect(page.locator(".chm-inspect-picture output")).to_have_text("after layer 0")
    expect(page.get_by_role("alert")).to_be_hidden()

    page.get_by_role("button", name="Save as a page").focus()
    with page.expect_download() as download:
        press("Enter")
    download.value.save_as(tmp_path / "look.html")
    saved = page.context.new_page()
    saved.goto(f"file://{tmp_path / 'look.html'}")
    expect(saved.get_by_role("treeitem")).to_have_count(2)
    saved.locator(".chm-inspect-cell").nth(40).hover()
    saved.get_by_role("button", name="all", exact=True).click()
    saved.locator(".chm-inspect-cell").nth(40).hover()
    expect(saved.locator(".chm-inspect-readout")).to_contain_text("All layers, looked at from code")
    saved.close()

    notebook.restart()
    notebook.ready()
    cells.nth(50).click()  # what is here needs no kernel: this is not
    expect(page.locator(".chm-alert")).to_contain_text("run the cell again")
    expect(cells.nth(63)).to_be_visible()  # what was here stays
    notebook.run_all()
    expect(tree).to_have_count(0)
    expect(lamp).to_have_text("Ready")
    words.nth(5).hover()
    expect(readout).to_contain_text("All layers, looked at from left")


@pytest.mark.slow
def test_how_soon_a_row_is_painted_in_jupyterlab(open_notebook):
    """Prints what a person waits from hover to paint at a thousand positions, and asserts only that all rows came."""
    notebook = open_notebook([MAKE, LONG, SHOW])
    notebook.run_all()
    page = notebook.page
    expect(page.locator(".chm-inspect-word").nth(9)).to_be_visible()
    expect(page.locator(".chm-lamp")).to_have_text("Ready")
    count = notebook.kernel("len(inspector.look.readings)")
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
