"""Code surgery in a real JupyterLab with a real kernel."""

import json

import numpy as np
import pytest
from playwright.sync_api import expect

SURGERY = """from chameleon_widgets.images.code_surgery import CodeSurgery
surgery = CodeSurgery(fakes.Codec(), samples={"circle and square": fakes.scene()})
surgery"""
CHANGED = "pass\nint((surgery.codes != surgery.original).sum())"


def test_strokes_outlive_the_page_and_the_still_the_kernel(open_notebook, screenshots):
    notebook = open_notebook(["import fakes", SURGERY])
    notebook.run_all()
    page = notebook.page
    facts, board = page.locator(".chm-facts"), page.get_by_role("grid", name="Codes of the picture")
    expect(facts).to_contain_text("0 of 64 cells changed")
    page.get_by_role("spinbutton", name="Current code").fill("63")
    box = board.bounding_box()
    assert box is not None
    cell = box["width"] / 8
    page.mouse.move(box["x"] + cell / 2, box["y"] + cell / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + 5.5 * cell, box["y"] + cell / 2, steps=8)
    page.mouse.up()
    expect(facts).to_contain_text("6 of 64 cells changed")
    for key in ("d", "d", "a", "b", "x", "y", "m", "Escape", "Control+z", "Control+Shift+z", "b"):
        page.keyboard.press(key)  # JupyterLab would delete, insert and change cells
    expect(page.locator(".jp-Notebook .jp-Cell")).to_have_count(2)
    expect(board).to_be_focused()
    expect(facts).to_contain_text("6 of 64 cells changed")
    notebook.expect(CHANGED, 6)  # the keys may still be on their way to the kernel, by another road than this question
    page.screenshot(path=screenshots / "lab-surgery.png")
    notebook.theme("JupyterLab Dark")
    page.screenshot(path=screenshots / "lab-surgery-dark.png")

    notebook.save()
    notebook.reload()
    expect(facts).to_contain_text("6 of 64 cells changed")
    page.get_by_role("button", name="Undo").click()
    expect(facts).to_contain_text("0 of 64 cells changed")
    page.get_by_role("button", name="Redo").click()
    expect(facts).to_contain_text("6 of 64 cells changed")
    expect(page.locator(".chameleon-still")).to_contain_text("6 of 64 cells changed")
    notebook.expect(CHANGED, 6)
    notebook.save()
    notebook.shutdown()
    page.get_by_role("spinbutton", name="Current code").fill("7")
    board.click()
    expect(page.locator(".chm-lamp")).to_contain_text("Disconnected")
    expect(page.get_by_role("alert")).to_contain_text("is kept here")
    expect(page.get_by_role("button", name="Save the codes as JSON")).to_be_enabled()

    later = notebook.reopen()
    still = later.locator(".chameleon-still")
    expect(still.get_by_text("circle and square: 6 of 64 cells changed")).to_be_visible()
    expect(still.locator("img")).to_have_count(2)
    later.screenshot(path=screenshots / "lab-surgery-still.png")


TINY = """from chameleon_lab.chameleon import Chameleon
from chameleon_widgets.images.code_surgery import CodeSurgery
tiny = CodeSurgery(Chameleon.load("tiny").tokenizer.image, samples={"circle and square": fakes.scene()})
tiny"""

WATCH = """() => {
  window.waits = [];
  let pressed = null;
  window.addEventListener('pointerdown', () => { pressed = performance.now(); }, true);
  document.querySelector('.chm-plate img').addEventListener('load', () => {
    const began = pressed;
    pressed = null;
    if (began !== null) requestAnimationFrame(() => setTimeout(() => window.waits.push(performance.now() - began)));
  }); }"""


@pytest.mark.slow
def test_a_painted_cell_is_seen_in_the_decoded_picture(open_notebook, capsys):
    notebook = open_notebook(["import fakes", TINY])
    notebook.run_all()
    page = notebook.page
    expect(page.locator(".chm-facts")).to_contain_text("0 of 64 cells changed", timeout=60_000)
    page.wait_for_timeout(2000)  # the palette's pictures are still being made
    page.evaluate(WATCH)
    board, code = page.get_by_role("grid", name="Codes of the picture"), page.get_by_role("spinbutton")
    before = notebook.kernel("pass\ntiny.codes.tolist()")
    for place in range(64):
        code.first.fill(str((before[place // 8][place % 8] + 1 + 7 * place) % 512))
        box = board.bounding_box()
        assert box is not None
        page.mouse.move(
            box["x"] + (place % 8 + 0.5) * box["width"] / 8, box["y"] + (place // 8 + 0.5) * box["height"] / 8
        )
        page.wait_for_timeout(150)
        page.mouse.down()
        page.mouse.up()
        page.wait_for_function("n => window.waits.length > n", arg=place)
    changed = notebook.kernel("pass\nint((tiny.codes != tiny.original).sum())")
    assert changed >= 60  # a code painted by chance may be the one that was there
    waits = page.evaluate("window.waits")
    with capsys.disabled():
        figures = {"click p50": np.median(waits), "click p95": np.quantile(waits, 0.95)}
        print("\n" + json.dumps({name: f"{value:.0f} ms" for name, value in figures.items()}))
