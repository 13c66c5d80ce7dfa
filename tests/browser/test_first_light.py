"""The first notebook in a real JupyterLab, with the shipped model: what a newcomer does and sees."""

from __future__ import annotations

import base64

import nbformat
import pytest
from playwright.sync_api import Page, expect
from shortened import NOTEBOOKS, shortened

from chameleon_lab.corpora.scenes import arrange
from chameleon_widgets.pictures import png

HOLD = """stream = chat._maker._stream
def hold(*arguments, **options):
    for piece in stream(*arguments, **options):
        yield piece
        chat._pending[0].wait(100)
chat._maker._stream = hold
None"""
"""Each reply stays at its first piece until it is stopped: a picture is drawn sooner than a test clicks."""

WATCH = """() => {
  window.told = [];
  const look = () => window.told.push([...document.querySelectorAll('.chm-lamp')].at(-1).textContent);
  new MutationObserver(look).observe(document.querySelector('.jp-Notebook'),
    {subtree: true, childList: true, characterData: true});
}"""
"""Notes all that the lamp says: a picture is drawn in less time than an eye, or a test, takes to look."""


def say(page: Page, text: str) -> None:
    page.get_by_role("textbox", name="Message to the model").click()
    page.keyboard.type(text)
    page.keyboard.press("Enter")


def test_a_newcomer_draws_asks_stops_and_shows_a_picture(open_notebook, tmp_path, screenshots) -> None:
    path = tmp_path / NOTEBOOKS[0].name
    nbformat.write(shortened(NOTEBOOKS[0]), path)
    notebook = open_notebook(path, folder="notebooks")
    page: Page = notebook.page
    notebook.theme("JupyterLab Light")
    notebook.run_all()
    lamp = page.locator(".chm-lamp span").last
    drawn = page.get_by_role("img", name="Picture drawn by the model")
    page.get_by_role("button", name="draw a red circle").click(timeout=180_000)  # nothing hides the suggestions
    expect(drawn).to_have_count(1)
    notebook.assert_all_ran()
    expect(lamp).to_have_text("Ready")

    page.evaluate(WATCH)
    say(page, "draw a blue star right of a yellow circle on a pink background")
    expect(drawn).to_have_count(2)
    expect(lamp).to_have_text("Ready")
    assert any("Picture " in told for told in page.evaluate("window.told"))
    page.screenshot(path=screenshots / "first-light.png")

    say(page, "what color is the background?")
    expect(page.get_by_role("log")).to_contain_text("what color is the background?")
    expect(lamp).to_have_text("Ready")

    page.evaluate(
        """(text) => {
          const bytes = Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
          const data = new DataTransfer();
          data.items.add(new File([bytes], 'scene.png', {type: 'image/png'}));
          const drop = new DragEvent('drop', {dataTransfer: data, bubbles: true, cancelable: true});
          document.querySelector('.chm-input').dispatchEvent(drop);
        }""",
        base64.b64encode(png(arrange([("heart", "red", "large")], "single", "mint").picture())).decode(),
    )
    expect(page.locator(".chm-chip")).to_have_count(1)
    say(page, "what do you see?")
    expect(page.get_by_role("img", name="Your picture", exact=True)).to_have_count(1)
    expect(page.get_by_role("img", name="Your picture as the model sees it")).to_have_count(1)
    expect(lamp).to_have_text("Ready")

    notebook.kernel(HOLD)
    say(page, "draw a large blue ring left of a small red star")
    page.get_by_role("button", name="Stop", exact=True).click()
    expect(lamp).to_have_text("Stopped")
    kinds = notebook.kernel("chat.wait(100)\n[type(part).__name__ for part in chat.document]")
    drew = kinds[-2:] == ["Image", "EndTurn"]  # or was stopped before anything of it was drawn
    assert kinds.count("EndTurn") == 9 + drew
    notebook.theme("JupyterLab Dark")
    page.screenshot(path=screenshots / "first-light-dark.png")


@pytest.mark.slow  # for its screenshots: notebook 01 shows such a viewer, and test_reconstruction_lab.py what it does
def test_the_viewer_shows_a_sample_through_the_tokenizer(open_notebook, screenshots) -> None:
    notebook = open_notebook(
        [
            "from chameleon_lab.chameleon import Chameleon\n"
            "from chameleon_lab.corpora.scenes import arrange\n"
            "from chameleon_widgets import ReconstructionViewer\n"
            "ring = arrange([('ring', 'purple', 'large')], 'single', 'tan').picture()\n"
            "viewer = ReconstructionViewer(Chameleon.load('tiny').tokenizer.image, samples={'ring': ring})\n"
            "viewer.show(ring)\nviewer"
        ]
    )
    notebook.theme("JupyterLab Light")
    notebook.run_all()
    expect(notebook.page.get_by_text("64 codes").first).to_be_visible()
    notebook.page.screenshot(path=screenshots / "viewer.png")
    notebook.theme("JupyterLab Dark")
    notebook.page.screenshot(path=screenshots / "viewer-dark.png")
    notebook.expect("pass\nviewer.reconstruction.codes.shape", [8, 8])
