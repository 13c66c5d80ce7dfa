"""The comparison of runs in a real JupyterLab with a real kernel: live, from a folder, and as a still."""

import time

from playwright.sync_api import expect

RUNS = """import json
from dataclasses import asdict
from pathlib import Path
import fakes
from chameleon_widgets import ComparePanel
folder = Path("finished run")
folder.mkdir(exist_ok=True)
done = fakes.StressRun("all", 400)
(folder / "metrics.jsonl").write_text(done.history.to_jsonl())
(folder / "state.json").write_text(json.dumps(asdict(done.state)))
(folder / "config.json").write_text(json.dumps(done.config))
live = fakes.GrowingRun(100, steps=140)
live.config = fakes.StressRun("baseline", 0).config"""

SHOW = """panel = ComparePanel({"baseline": live, "all": folder}, smoothing=0.6)
panel"""


def test_a_live_run_is_compared_with_a_folder_and_leaves_a_still_that_outlives_the_kernel(open_notebook, screenshots):
    notebook = open_notebook([RUNS, SHOW])
    notebook.theme("JupyterLab Light")
    notebook.run_all()
    page = notebook.page
    expect(page.locator(".chm-compare .chm-lamp")).to_have_text("2 runs, 1 going on")
    steps = page.locator(".chm-compare-runs tbody tr").first.locator("td").nth(1)
    expect(steps).to_have_text("100")
    notebook.kernel("thread = live.start(60)\n1")
    expect(page.locator(".chm-compare .chm-lamp")).to_have_text("2 runs, over")
    expect(steps).to_have_text("140")
    expect(page.get_by_role("region", name="Settings that differ")).to_contain_text("QueryKeyNorm(), Reordering()")
    page.get_by_role("slider", name="Smoothing").fill("0.9")
    page.get_by_role("button", name="Measures").click()
    page.get_by_role("checkbox", name="held-out loss").check()
    expect(page.locator(".chm-compare-charts figure")).to_have_count(5)
    notebook.expect("pass\n[panel.smoothing, panel.measures[-1]]", [0.9, "held_out_loss"])
    notebook.expect("pass\n[row['steps'] for row in panel.table]", [140, 399])
    page.get_by_role("button", name="Measures").click()
    page.mouse.move(4, 4)
    page.get_by_role("region", name="Comparison of runs").screenshot(path=screenshots / "lab-compare.png")
    notebook.theme("JupyterLab Dark")
    page.screenshot(path=screenshots / "lab-compare-dark.png")
    with page.expect_download() as download:
        page.get_by_role("button", name="Save as SVG").click()
    assert download.value.suggested_filename == "runs.svg"
    threads = "import threading\nany(each.name.startswith('compare panel pump') for each in threading.enumerate())"
    deadline = time.monotonic() + 120  # the pump lingers for two seconds after the last still is drawn
    while notebook.kernel(threads):
        assert time.monotonic() < deadline
        page.wait_for_timeout(500)
    expect(page.locator(".chameleon-still")).to_contain_text("baseline: finished, 140 steps")
    expect(page.locator(".chameleon-still")).to_be_hidden()
    notebook.save()
    notebook.shutdown()

    later = notebook.reopen()
    still = later.locator(".chameleon-still")
    expect(still.get_by_text("all: finished, 399 steps")).to_be_visible()
    expect(still.get_by_role("img", name="The runs by step")).to_be_visible()
    expect(later.locator(".chm-compare")).to_have_count(0)
    later.screenshot(path=screenshots / "lab-compare-still.png")
