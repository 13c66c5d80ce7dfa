"""The run panel in a real JupyterLab, with a thread that makes a history grow: it is seen, stopped, kept and timed."""

import json

import numpy as np
import pytest
from playwright.sync_api import expect

RUN = """import time
from fakes import GrowingRun, step_record

class Timed(GrowingRun):
    told = {}

    def grow(self, *records):
        super().grow(*records)
        self.told[self.records[-1].step] = time.time()

from chameleon_widgets.runs.run_panel import RunPanel"""

LEFT = (
    "import threading\nsorted(thread.name for thread in threading.enumerate() if thread.name.startswith('run panel'))"
)

SEEN = """() => {
  window.seen = [];
  const pace = document.querySelector('.chm-run-pace');
  const channel = new MessageChannel();
  channel.port1.onmessage = (event) => window.seen.push([event.data, Date.now() / 1000]);
  new MutationObserver(() => {
    const step = Number(pace.textContent.match(/^step ([\\d,]+)/)[1].replaceAll(',', ''));
    channel.port2.postMessage(step);  // arrives after the frame that is being drawn
  }).observe(pace, {characterData: true, childList: true, subtree: true});
}"""

FRAMES = """(seconds) => new Promise((done) => {
  const frames = [];
  const began = performance.now();
  const next = (now) => {
    frames.push(now);
    if (now - began < 1000 * seconds) requestAnimationFrame(next);
    else done(frames.slice(1).map((each, at) => each - frames[at]));
  };
  requestAnimationFrame(next);
})"""

STOP = """() => new Promise((done) => {
  const lamp = document.querySelector('.chm-run .chm-lamp');
  const began = performance.now();
  new MutationObserver(() => lamp.textContent === 'Stopped' && done(performance.now() - began))
    .observe(lamp, {characterData: true, childList: true, subtree: true});
  document.querySelector('.chm-run [aria-label=Stop]').click();
})"""


def test_a_run_is_watched_changed_and_stopped_and_its_still_outlives_the_kernel(open_notebook, screenshots):
    notebook = open_notebook(
        [RUN, "run = GrowingRun(400, steps=100_000)\nthread = run.start(40)\npanel = RunPanel(run)\npanel"]
    )
    notebook.theme("JupyterLab Light")
    page = notebook.page
    notebook.run_all()
    lamp = page.locator(".chm-run .chm-lamp")
    expect(lamp).to_have_text("Training")
    expect(page.locator(".chm-run-pace")).to_contain_text("tokens/s")
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("rate", exact=True).fill("0.002")
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="CHANGE rate 0.01 → 0.002")).to_be_visible()
    notebook.expect("pass\nrun.state.settings['rate']", 0.002)
    page.get_by_role("button", name="Settings").click()
    page.get_by_role("region", name="Run panel").screenshot(path=screenshots / "run-lab.png")
    notebook.theme("JupyterLab Dark")
    page.get_by_role("region", name="Run panel").screenshot(path=screenshots / "run-lab-dark.png")
    notebook.theme("JupyterLab Light")
    page.get_by_role("button", name="Stop", exact=True).click()
    expect(lamp).to_have_text("Stopped")
    notebook.expect("thread.join(100)\nthread.is_alive()", False)
    expect(page.locator(".chameleon-still img")).to_have_count(1)
    expect(page.locator(".chameleon-still")).to_contain_text("stopped at step")
    expect(page.locator(".chameleon-still")).to_be_hidden()
    notebook.save()
    notebook.shutdown()

    later = notebook.reopen()
    expect(later.locator(".chameleon-still img")).to_be_visible()
    expect(later.get_by_text("baseline: stopped at step")).to_be_visible()
    later.screenshot(path=screenshots / "run-still.png")


@pytest.mark.slow  # test_chat_lab.py shows it of a chat, whose line to the kernel is the same one
def test_a_cell_run_again_leaves_one_pump_and_a_reloaded_page_gets_all(open_notebook):
    notebook = open_notebook([RUN, "run = Timed(50, steps=100_000)\nrun.start(30)\npanel = RunPanel(run)\npanel"])
    page = notebook.page
    notebook.run_all()
    expect(page.locator(".chm-run .chm-lamp")).to_have_text("Training")
    notebook.kernel("earlier = panel\nNone")
    notebook.run_all()
    page.wait_for_timeout(1000)
    expect(page.locator(".chm-run .chm-lamp")).to_have_text("Training")
    notebook.expect("earlier._line.settle()\nearlier._line.ended and not panel._line.ended", True)
    notebook.expect(LEFT, ["run panel pump"])
    notebook.kernel("run.become(status='finished')\nNone")
    expect(page.locator(".chm-run .chm-lamp")).to_have_text("Finished")


@pytest.mark.slow
@pytest.mark.parametrize("known", [100, 100_000])
def test_how_soon_a_record_is_painted_is_printed(open_notebook, capsys, screenshots, known):
    notebook = open_notebook([RUN, f"run = Timed({known}, steps=1_000_000)\npanel = RunPanel(run)\npanel"])
    page = notebook.page
    notebook.run_all()
    expect(page.locator(".chm-run-pace")).to_contain_text(f"step {known - 1:,} of", timeout=120_000)
    page.evaluate(SEEN)
    notebook.kernel("run.start(30)\nNone")
    page.wait_for_timeout(15_000)
    seen = page.evaluate("() => window.seen")
    frames = page.evaluate(FRAMES, 4)
    stop = page.evaluate(STOP)
    told = notebook.kernel("pass\nsorted(Timed.told.items())")
    steps, times = np.array(seen).T
    late = [1000 * (times[np.searchsorted(steps, step)] - at) for step, at in told if step <= steps[-1]]
    assert len(late) > 200
    with capsys.disabled():
        figures = {"history": known, "records": len(late), "p50": np.median(late), "p95": np.quantile(late, 0.95)}
        figures |= {"worst": max(late), "frame p95": np.quantile(frames, 0.95), "Stop": stop}
        print("\n" + json.dumps({name: round(float(value)) for name, value in figures.items()}))
    page.get_by_role("region", name="Run panel").screenshot(path=screenshots / f"run-long-{known}.png")
