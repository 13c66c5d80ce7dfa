"""Run All in a real JupyterLab: while a cell waits, widgets live, whatever shell ipykernel would give their messages.

Run with another ipykernel's Python, these tests hold for that one.
"""

from __future__ import annotations

import json

import pytest
from playwright.sync_api import Page, expect

TRAIN = """import tempfile
from dataclasses import replace
from chameleon_lab.training.experiments import SIDE_BY_SIDE
from chameleon_lab.training.modules import Budget
from chameleon_widgets import ComparePanel, RunPanel
run = replace(SIDE_BY_SIDE, name="first", budget=Budget(steps=5000)).run(tempfile.mkdtemp())
RunPanel(run)"""

ANSWER = """([label, words]) => new Promise((done, fail) => {
  setTimeout(() => fail(new Error(`the lamp says ${lamp.textContent}, not ${words}`)), 30_000);
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
  setTimeout(() => fail(new Error('too few steps were painted')), 60_000);
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


def test_a_run_is_paused_resumed_and_compared_while_a_cell_waits_for_it(open_notebook, screenshots, capsys):
    wait = "import time\nrecorded = {}\nrun.wait(900, lambda record: recorded.setdefault(record.step, time.time()))"
    compare = "ComparePanel([run])"
    notebook = open_notebook([TRAIN, compare, wait, "after = True"])
    page: Page = notebook.page
    notebook.run_all()
    lamp = page.locator(".chm-run .chm-lamp")
    expect(lamp).to_have_text("Training", timeout=60_000)
    expect(page.locator(".chm-compare .chm-lamp")).to_have_text("1 run, going on")
    expect(page.locator(".chm-run-pace")).to_contain_text("step", timeout=60_000)
    waits(page, 2)
    painted = page.evaluate(AGE)
    figures = {}
    for label, words in (("Pause", "Paused"), ("Resume", "Training"), ("Pause", "Paused"), ("Resume", "Training")):
        figures[label] = page.evaluate(ANSWER, [label, words])
        waits(page, 2)
    page.get_by_role("slider", name="Smoothing").fill("0.9")
    page.get_by_role("button", name="Measures").click()
    page.get_by_role("checkbox", name="learning rate").check()
    expect(page.locator(".chm-compare-charts figure").filter(has_text="earning rate")).to_have_count(1)
    waits(page, 2)
    page.screenshot(path=screenshots / "run-all.png")
    figures["Stop"] = page.evaluate(ANSWER, ["Stop", "Stopped"])
    expect(page.locator(".jp-Notebook .jp-CodeCell").nth(3).locator(".jp-InputPrompt")).to_have_text("[4]:")
    recorded = dict(notebook.kernel("pass\nsorted(recorded.items())"))
    assert notebook.kernel("pass\nafter")
    ages = [1000 * (when - recorded[step]) for step, when in painted if step in recorded]
    with capsys.disabled():
        figures |= {"painted after its record, worst": max(ages)} if ages else {}
        print("\n" + json.dumps({name: f"{value:.0f} ms" for name, value in figures.items()}))


ASLEEP = "time.sleep(900)"
COMPUTING = "ends = time.time() + 900\nwhile time.time() < ends:\n    sum(range(1000))"


@pytest.mark.parametrize("busy", [ASLEEP, pytest.param(COMPUTING, marks=pytest.mark.slow)], ids=["asleep", "computing"])
def test_any_long_cell_leaves_widgets_alive(open_notebook, busy):
    show = """import time
from chameleon_widgets import RunPanel
import fakes
run = fakes.GrowingRun(40, steps=100_000)
run.start(20)
RunPanel(run)"""
    notebook = open_notebook([show, busy])
    page: Page = notebook.page
    notebook.run_all()
    lamp = page.locator(".chm-run .chm-lamp")
    expect(lamp).to_have_text("Training")
    waits(page, 1)
    page.get_by_role("button", name="Pause").click()
    expect(lamp).to_have_text("Paused")
    page.get_by_role("button", name="Stop", exact=True).click()
    expect(lamp).to_have_text("Stopped")
    waits(page, 1)
