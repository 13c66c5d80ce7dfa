"""Run All in a real JupyterLab: while a cell waits, widgets live, whatever shell ipykernel would give their messages.

Run with another ipykernel's Python, these tests hold for that one.
"""

from __future__ import annotations

import json

import pytest
from playwright.sync_api import Page, expect

FAKE = """import time
import fakes
from chameleon_widgets import ComparePanel, RunPanel

class Timed(fakes.GrowingRun):
    recorded = {}

    def grow(self, *records):
        super().grow(*records)
        self.recorded[self.records[-1].step] = time.time()

run = Timed(40, steps=100_000)
thread = run.start(20)
RunPanel(run)"""

TRAIN = """import tempfile
from dataclasses import replace
from chameleon_lab.training.experiments import SIDE_BY_SIDE
from chameleon_lab.training.modules import Budget
from chameleon_widgets import ComparePanel, RunPanel
run = replace(SIDE_BY_SIDE, name="first", budget=Budget(steps=5000)).run(tempfile.mkdtemp())
RunPanel(run)"""

ANSWER = """([label, words]) => new Promise((done, fail) => {
  setTimeout(() => fail(new Error(`the lamp says ${lamp.textContent}, not ${words}`)), 120_000);
  const lamp = document.querySelector('.chm-run .chm-lamp');
  const began = performance.now();
  const watch = new MutationObserver(() => {
    if (!lamp.textContent.startsWith(words)) return;
    watch.disconnect();
    done(performance.now() - began);
  });
  watch.observe(lamp, {characterData: true, childList: true, subtree: true});
  document.querySelector(`.chm-run [aria-label="${label}"]`).click();
})"""
"""Presses a button; milliseconds until the lamp says so."""

AGE = """() => new Promise((done, fail) => {
  setTimeout(() => fail(new Error('too few steps were painted')), 120_000);
  const ages = [];
  const step = document.querySelector('.chm-run-pace');
  const watch = new MutationObserver(() => {
    const moment = step.textContent.match(/^step ([\\d,]+)/);
    if (moment) ages.push([Number(moment[1].replaceAll(',', '')), Date.now() / 1000]);
    if (ages.length < 8) return;
    watch.disconnect();
    done(ages);
  });
  watch.observe(step, {characterData: true, childList: true, subtree: true});
})"""
"""(step, when it was painted), of eight steps."""


def waits(page: Page, cell: int) -> None:
    """Asserts that a cell of the notebook is still at work."""
    expect(page.locator(".jp-Notebook .jp-CodeCell").nth(cell).locator(".jp-InputPrompt")).to_have_text("[*]:")


SLEEPS = "while True:\n    time.sleep(0.2)"  # a signal that comes just before a long sleep ends nothing
COMPUTES = "while True:\n    sum(range(1000))"


@pytest.mark.parametrize(
    ("show", "wait", "busy"),
    [
        pytest.param(FAKE, "thread.join()", SLEEPS, id="asleep"),
        pytest.param(
            FAKE, "while thread.is_alive():\n    sum(range(1000))", COMPUTES, id="computes", marks=pytest.mark.slow
        ),
        pytest.param(TRAIN, "run.wait()", f"import time\n{SLEEPS}", id="trains", marks=pytest.mark.slow),
    ],
)
def test_a_run_is_steered_and_compared_while_cells_wait(open_notebook, screenshots, capsys, show, wait, busy):
    notebook = open_notebook([show, "ComparePanel([run])", wait, busy])
    page: Page = notebook.page
    notebook.run_all(wait=False)
    lamp, compared = page.locator(".chm-run .chm-lamp"), page.locator(".chm-compare .chm-lamp")
    expect(lamp).to_have_text("Training", timeout=300_000)
    expect(compared).to_have_text("1 run, going on")
    waits(page, 2)
    painted = page.evaluate(AGE)
    figures, version = {}, ""
    for label, words in (("Pause", "Paused"), ("Resume", "Train")):
        page.locator(f'.chm-run [aria-label="{label}"]').wait_for()  # the lamp may change before the button does
        figures[label] = page.evaluate(ANSWER, [label, words])
    waits(page, 2)
    page.screenshot(path=screenshots / "run-all.png")
    figures["Stop"] = page.evaluate(ANSWER, ["Stop", "Stopped"])
    expect(compared).to_have_text("1 run, over")
    waits(page, 3)
    page.get_by_role("slider", name="Smoothing").fill("0.9")
    page.get_by_role("button", name="Measures").click()
    charts = page.locator(".chm-compare-charts figure")
    before = charts.count()
    box = page.get_by_role("checkbox", name="gradient norm")
    after = before - 1 if box.is_checked() else before + 1
    box.click()  # what the kernel sends of another measure is new to the page
    expect(charts).to_have_count(after)
    waits(page, 3)
    if show == FAKE:
        notebook.interrupt()
        recorded = dict(notebook.kernel("pass\nsorted(Timed.recorded.items())"))
        late = [1000 * (when - recorded[step]) for step, when in painted if step in recorded]
        assert late
        figures["painted after its record"] = max(late)
        version = "ipykernel " + notebook.kernel("import ipykernel\nipykernel.__version__") + ": "
    with capsys.disabled():
        print("\n" + version + json.dumps({name: f"{value:.0f} ms" for name, value in figures.items()}))


@pytest.mark.slow
def test_a_fork_opens_beside_its_parent_while_a_cell_waits_and_both_train(open_notebook, screenshots):
    notebook = open_notebook([TRAIN, "run.wait()"])
    page: Page = notebook.page
    page.set_viewport_size({"width": 1920, "height": 1000})
    notebook.run_all(wait=False)
    lamps = page.locator(".chm-run .chm-lamp")
    expect(lamps.first).to_have_text("Training", timeout=300_000)
    page.get_by_role("button", name="Fork", exact=True).first.click()
    form = page.get_by_role("form", name="Fork of the run")
    form.get_by_label("Fix of the fork").select_option("query_key_norm")
    form.get_by_role("button", name="Fork").click()
    expect(lamps).to_have_count(2, timeout=120_000)
    expect(lamps.nth(1)).to_have_text("Waiting for the machine: first trains", timeout=60_000)
    expect(lamps.first).to_have_text("Training")
    waits(page, 1)
    boxes = [each.bounding_box() or {} for each in page.locator(".chm-run").all()]
    assert boxes[1]["x"] >= boxes[0]["x"] + boxes[0]["width"] and abs(boxes[1]["y"] - boxes[0]["y"]) < 40, "beside it"
    page.screenshot(path=screenshots / "run-all-fork.png")
    page.get_by_role("button", name="Pause").first.click()
    expect(lamps.nth(1)).to_have_text("Training", timeout=120_000)
    expect(lamps.first).to_have_text("Paused")
    page.screenshot(path=screenshots / "run-all-fork-trains.png")
    for at in (1, 0):
        page.get_by_role("button", name="Stop").nth(at).click()
        expect(lamps.nth(at)).to_have_text("Stopped", timeout=60_000)
