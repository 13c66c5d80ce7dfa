"""Every notebook under Run All in a real JupyterLab, made short: no error, no warning, no widget left unconnected.

How long nothing moved on the page while a cell ran is printed. The first notebook is run by test_first_light.py.
"""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from playwright.sync_api import Page, expect
from shortened import NOTEBOOKS, shortened

WATCH = """() => {
  window.stillness = 0;
  let last = performance.now();
  const runs = () => [...document.querySelectorAll('.jp-InputPrompt')].some((prompt) => prompt.textContent === '[*]:');
  const look = () => {
    window.stillness = Math.max(window.stillness, performance.now() - last);
    last = performance.now();
  };
  new MutationObserver(look).observe(document.querySelector('.jp-Notebook'),
    {subtree: true, childList: true, characterData: true, attributes: true});
  window.done = new Promise((done) => {
    const timer = setInterval(() => {
      if (!runs()) { clearInterval(timer); done(); }
    }, 300);
  });
}"""


@pytest.mark.parametrize("path", NOTEBOOKS[1:], ids=lambda path: path.stem)
def test_run_all_goes_to_the_end_and_every_widget_is_connected(
    open_notebook, tmp_path, screenshots, capsys, path: Path
):
    nbformat.write(shortened(path), tmp_path / path.name)
    notebook = open_notebook(tmp_path / path.name, folder="notebooks")
    page: Page = notebook.page
    notebook.run_all(wait=False)
    expect(page.locator(".jp-InputPrompt").first).not_to_have_text("[ ]:")
    page.evaluate(WATCH)
    page.evaluate("() => window.done")
    notebook.assert_all_ran()
    with capsys.disabled():
        print(f"\n{path.stem}: nothing moved for {page.evaluate('window.stillness') / 1000:.1f} s at most")
    page.screenshot(path=screenshots / f"notebook-{path.stem}.png")
