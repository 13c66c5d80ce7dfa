"""Every notebook under Run All in a real JupyterLab, its trainings cut short: no error, no widget left unconnected.

How long nothing moved on the page while a cell ran is printed.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
QUICKEST = "05"  # runs with every change; the others with `-m slow`

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

ERRORS = """() => {
  const cells = jupyterapp.shell.currentWidget.context.model.cells;
  const errors = [];
  for (let at = 0; at < cells.length; at += 1) {
    const outputs = cells.get(at).outputs;
    for (let index = 0; index < (outputs?.length ?? 0); index += 1) {
      const output = outputs.get(index).toJSON();
      if (output.output_type === 'error' || output.name === 'stderr')
        errors.push([at, output.evalue ?? output.text]);
    }
  }
  return errors;
}"""


def paths() -> list[object]:
    return [
        pytest.param(path, id=path.stem, marks=[] if path.stem.startswith(QUICKEST) else [pytest.mark.slow])
        for path in NOTEBOOKS
    ]


@pytest.mark.parametrize("path", paths())
def test_run_all_goes_to_the_end_and_every_widget_is_connected(open_notebook, lab, screenshots, capsys, path: Path):
    if not (lab.folder / "data").exists():
        (lab.folder / "data").symlink_to(ROOT / "data")
    notebook = open_notebook(path, folder="notebooks")
    page: Page = notebook.page
    notebook.run_all(wait=False)
    expect(page.locator(".jp-InputPrompt").first).not_to_have_text("[ ]:")
    page.evaluate(WATCH)
    page.evaluate("() => window.done")
    assert page.evaluate(ERRORS) == []
    expect(page.locator(".chm-lamp[data-state=connecting], .chm-lamp[data-state=disconnected]")).to_have_count(0)
    expect(page.locator(".jp-InputPrompt", has_text="[ ]:")).to_have_count(0)
    with capsys.disabled():
        cell, still = max(page.evaluate("window.stillness").items(), key=lambda each: each[1])
        print(f"\n{path.stem}: nothing moved for {still / 1000:.1f} s at most (cell {cell})")
    page.screenshot(path=screenshots / f"notebook-{path.stem}.png")
