"""Every notebook with widgets under Run All in a real JupyterLab, made short: no error, no warning, no widget left
unconnected. Those of words and figures run in test_notebooks.py.

How long nothing moved on the page while a cell ran is printed. The first notebook is run by test_first_light.py.
Whole notebooks, with CHAMELEON_QUICK set to nothing: `CHAMELEON_QUICK= pytest -s -m "slow or not slow"` on this file.
"""

from __future__ import annotations

import os
from pathlib import Path

import nbformat
import pytest
from playwright.sync_api import Page, expect
from shortened import NOTEBOOKS, WITH_WIDGETS, shortened

SILENCE = 10_000  # milliseconds without a move that are worth a word

WATCH = """() => {
  window.stillness = {};  // milliseconds by cell
  let last = performance.now();
  const prompts = () => [...document.querySelectorAll('.jp-Notebook .jp-Cell .jp-InputPrompt')];
  const running = () => prompts().findIndex((prompt) => prompt.textContent === '[*]:');
  const runs = () => running() >= 0;
  let cell = running();
  const look = () => {
    window.stillness[cell] = Math.max(window.stillness[cell] ?? 0, performance.now() - last);
    last = performance.now();
    cell = running();
  };
  new MutationObserver(look).observe(document.querySelector('.jp-Notebook'),
    {subtree: true, childList: true, characterData: true, attributes: true});
  window.done = new Promise((done) => {
    const timer = setInterval(() => {
      if (!runs()) { clearInterval(timer); done(); }
    }, 300);
  });
}"""


@pytest.mark.parametrize(  # slow: what has no widget says the same without a page
    "path",
    [pytest.param(each, id=each.stem, marks=[pytest.mark.slow] * (each not in WITH_WIDGETS)) for each in NOTEBOOKS[1:]],
)
def test_run_all_goes_to_the_end_and_every_widget_is_connected(
    open_notebook, tmp_path, screenshots, capsys, path: Path
):
    whole = os.environ.get("CHAMELEON_QUICK") == ""
    nbformat.write(nbformat.read(path, as_version=4) if whole else shortened(path), tmp_path / path.name)
    notebook = open_notebook(tmp_path / path.name, folder="notebooks")
    page: Page = notebook.page
    notebook.run_all(wait=False)
    expect(page.locator(".jp-InputPrompt").first).not_to_have_text("[ ]:")
    page.evaluate(WATCH)
    page.evaluate("() => window.done")
    notebook.assert_all_ran()
    with capsys.disabled():
        *most, last = sorted(page.evaluate("window.stillness").items(), key=lambda each: each[1])
        others = [f"cell {cell} {still / 1000:.0f}" for cell, still in most if still > SILENCE]
        print(f"\n{path.stem}: nothing moved for {last[1] / 1000:.1f} s at most (cell {last[0]})", *others, sep="; ")
    page.screenshot(path=screenshots / f"notebook-{path.stem}.png")
