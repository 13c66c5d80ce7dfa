"""The run panel in a bare page: what is seen of a run, what is asked of it, and what it says of trouble."""

import json
import math
import os
import socket
import subprocess
import sys
import time
from dataclasses import asdict, replace

import numpy as np
import pytest
from fakes import GrowingRun, step_record
from playwright.sync_api import expect

from chameleon_lab.history import RecordedRun, StepRecord
from chameleon_widgets.runs.run_panel import RunPanel

PIXELS = """([selector, x, y, width, height]) => {
  const canvas = document.querySelector(selector);
  const data = canvas.getContext('2d').getImageData(x, y, width, height).data;
  return Array.from({length: data.length / 4}, (_, at) => Array.from(data.slice(4 * at, 4 * at + 4)));
}"""

CLEARED = """() => {
  window.cleared = [];
  const clear = CanvasRenderingContext2D.prototype.clearRect;
  CanvasRenderingContext2D.prototype.clearRect = function (x, ...rest) {
    window.cleared.push(x);
    clear.call(this, x, ...rest);
  };
}"""

PICTURE = """() => {
  const canvas = document.querySelector('.chm-curves canvas');
  return canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
}"""

FURTHEST = "(one, other) => one.reduce((most, value, at) => Math.max(most, Math.abs(value - other[at])), 0)"


@pytest.fixture
def panel(mounted):
    """`panel(run)` shows a panel of it."""
    bridges = []

    def show(run):
        bridges.append(mounted(lambda: RunPanel(run)))
        return bridges[-1]

    yield show
    for bridge in bridges:
        bridge.widget.close()


def lamp(bridge):
    return bridge.page.locator(".chm-run .chm-lamp").inner_text()


def all_sent(run, bridge):
    """Each record of the run has been sent."""
    widget = bridge.widget
    return widget._feed._records == len(run.records) and not widget._line._pump._flushing


def up_to_date(run, bridge):
    """The page has the run's newest step, and has painted it."""
    words = f"step {run.records[-1].step:,}"
    pace = bridge.page.locator(".chm-run-pace")
    bridge.until(
        lambda: (
            f"{pace.inner_text()} ".startswith((f"{words} ", f"{words} of"))
            and all_sent(run, bridge)
            and bridge.widget.comm.sent.empty()
        )
    )
    bridge.drawn()


def grow(run, bridge, count=1):
    for _ in range(count):
        run.grow()
    up_to_date(run, bridge)


def saturating(count):
    """A run with its alarms."""
    run = GrowingRun()
    for step in range(count):
        run.grow(step_record(step))
    return run


def pixels(bridge, selector, x, y, width, height):
    return np.array(bridge.page.evaluate(PIXELS, [selector, x, y, width, height])).reshape(height, width, 4)


def reddish(image):
    """Whether there is the colour of danger."""
    red, green, blue, alpha = np.moveaxis(image.astype(int), -1, 0)
    return bool(((red > 150) & (green < 110) & (blue < 110) & (alpha > 120)).any())


def plot(bridge, title):
    return bridge.page.locator(".chm-curves", has_text=title).locator(".chm-curves-plot")


def spoken(bridge):
    """What the first chart tells a screen reader."""
    return bridge.page.locator(".chm-curves", has_text="Loss").get_by_role("status")


def test_a_run_is_seen_as_it_goes_on(panel, screenshots):
    run = saturating(700)
    run.act("change", rate=0.004, reason="cooler")
    bridge = panel(run)
    grow(run, bridge, 60)
    page = bridge.page
    expect(page.locator(".chm-run .chm-lamp")).to_have_text("Training")
    expect(page.locator(".chm-run-pace")).to_contain_text("step 759 of 1,000 · 76 % · 5210 tokens/s")
    expect(page.get_by_role("progressbar")).to_have_attribute("aria-valuenow", "76")
    last = run.records[-1].values
    for name, value in (("text", last["text_loss"]), ("image", last["image_loss"]), ("all", last["loss"])):
        key = page.locator(".chm-curves", has_text="Loss").get_by_role("button", name=name)
        expect(key).to_contain_text(f"{value:.4g}")
    expect(page.locator(".chm-event")).to_have_count(3)
    page.screenshot(path=screenshots / "run.png")
    page.evaluate("document.body.classList.add('dark')")
    page.wait_for_timeout(700)
    page.screenshot(path=screenshots / "run-dark.png")


def test_an_empty_run_says_what_it_waits_for_and_a_failed_one_what_went_wrong(panel, screenshots):
    run = GrowingRun(status="waiting")
    bridge = panel(run)
    page = bridge.page
    bridge.until(lambda: lamp(bridge) == "Waiting to start")
    expect(page.get_by_text("Waits for the first step.")).to_be_visible()
    page.screenshot(path=screenshots / "run-waiting.png")
    run.become(status="running")
    grow(run, bridge)
    run.become(status="failed", error="The loss was not a number\nin 5 steps <b>in a row</b>.")
    bridge.until(lambda: lamp(bridge) == "Failed")
    expect(page.get_by_role("alert")).to_have_text("The loss was not a number\nin 5 steps <b>in a row</b>.")
    page.screenshot(path=screenshots / "run-failed.png")
    for name in ("Pause", "Stop", "Save a checkpoint now"):
        expect(page.get_by_role("button", name=name)).to_be_disabled()


def test_pause_resume_and_stop_by_keys(panel):
    run = GrowingRun(10)
    bridge = panel(run)
    page = bridge.page
    up_to_date(run, bridge)
    page.get_by_role("button", name="Pause").focus()
    page.keyboard.press("Enter")
    bridge.until(lambda: lamp(bridge) == "Paused")
    expect(page.get_by_role("button", name="Resume")).to_be_focused()
    page.keyboard.press("Enter")
    bridge.until(lambda: lamp(bridge) == "Training")
    page.get_by_role("button", name="Stop").focus()
    page.keyboard.press("Space")
    bridge.until(lambda: lamp(bridge) == "Stopped")
    assert [command for command, _ in run.asked] == ["pause", "resume", "stop"]
    expect(page.get_by_role("button", name="Stop")).to_be_disabled()


def test_a_setting_is_applied_by_enter_and_marked_where_it_lands(panel, screenshots):
    run = GrowingRun(300)
    bridge = panel(run)
    page = bridge.page
    up_to_date(run, bridge)
    page.get_by_role("button", name="Settings").click()
    rate = page.get_by_label("rate", exact=True)
    expect(rate).to_be_focused()
    expect(rate).to_have_value("0.01")
    expect(page.get_by_label("z loss")).to_have_value("0.00001")
    expect(page.get_by_role("button", name="Apply")).to_be_disabled()
    page.get_by_label("weights: pairs").fill("0.5")
    page.get_by_label("Reason for the change").fill("too hot <i>")
    rate.fill("3e-3")
    page.screenshot(path=screenshots / "run-settings.png")
    run.act("change", clip=0.5)  # from elsewhere, while one types
    bridge.until(lambda: page.get_by_label("clip").input_value() == "0.5")
    expect(rate).to_have_value("3e-3")
    rate.press("Enter")
    bridge.until(lambda: page.get_by_role("button", name="step 300 CHANGE rate 0.01 → 0.003 (too hot <i>)").count())
    assert run.asked[-1] == ("change", {"rate": 0.003, "weights": {"pairs": 0.5, "text": 0.2}})
    assert getattr(run.events[-1], "reason", None) == "too hot <i>"
    expect(page.get_by_text("Applied.")).to_be_visible()
    expect(page.get_by_role("button", name="Apply")).to_be_disabled()


def test_a_setting_that_is_no_number_cannot_be_applied(panel):
    run = GrowingRun(10)
    bridge = panel(run)
    page = bridge.page
    up_to_date(run, bridge)
    page.get_by_role("button", name="Settings").click()
    rate = page.get_by_label("rate", exact=True)
    rate.fill("")
    rate.press("Enter")
    expect(rate).to_have_attribute("aria-invalid", "")
    expect(page.get_by_role("button", name="Apply")).to_be_disabled()
    page.get_by_role("button", name="Undo").click()
    expect(rate).to_have_value("0.01")
    assert run.asked == []


def test_a_refusal_is_shown_as_text_and_what_was_typed_stays(panel):
    run = GrowingRun(10)
    run.refusal = ValueError("The rate must be above 0, not <b>-1</b>.")
    bridge = panel(run)
    page = bridge.page
    up_to_date(run, bridge)
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("rate", exact=True).fill("-1")
    page.keyboard.press("Enter")
    bridge.until(lambda: page.get_by_role("alert").is_visible())
    expect(page.get_by_role("alert")).to_have_text("The rate must be above 0, not <b>-1</b>.")
    expect(page.get_by_label("rate", exact=True)).to_have_value("-1")
    expect(page.get_by_role("button", name="Apply")).to_be_enabled()


def test_a_fork_is_offered_with_the_fixes_that_there_are(panel):
    run = GrowingRun(10)
    bridge = panel(run)
    page = bridge.page
    up_to_date(run, bridge)
    page.get_by_role("button", name="Fork").click()
    expect(page.get_by_label("Fix of the fork").locator("option")).to_have_text(["query key norm", "norm reordering"])
    page.get_by_label("Fix of the fork").select_option("norm_reordering")
    page.get_by_role("form", name="Fork of the run").get_by_role("button", name="Fork").click()
    bridge.until(lambda: "baseline norm_reordering" in page.locator(".chm-run-lineage").inner_text())
    assert run.asked == [("fork", {"fix": "norm_reordering", "reason": ""})]
    words = page.get_by_role("form", name="Fork of the run")
    expect(words).to_contain_text("This run goes on, too")
    run.become(status="stopped")
    bridge.until(lambda: lamp(bridge) == "Stopped")
    expect(words).to_contain_text("A fork goes on from here")
    expect(words).not_to_contain_text("This run goes on, too")


def test_the_cursor_reads_every_picture_at_one_step_by_pointer_and_by_keys(panel, screenshots):
    run = saturating(500)
    bridge = panel(run)
    page = bridge.page
    up_to_date(run, bridge)
    loss = plot(bridge, "Loss")
    box = loss.bounding_box()
    page.mouse.move(box["x"] + 54 + (box["width"] - 68) * 250 / 499, box["y"] + 60)
    seen = run.records[250]
    key = page.locator(".chm-curves", has_text="Loss").get_by_role("button", name="image")
    expect(key).to_contain_text(f"{seen.values['image_loss']:.4g}")
    expect(page.locator(".chm-heads")).to_contain_text("step 250")
    logit = seen.layers["max_attention_logit"][2][1]
    expect(page.locator(".chm-heat-readout").first).to_have_text(f"step 250, head 1 of block 2: {logit:.4g}")
    page.screenshot(path=screenshots / "run-cursor.png")
    page.mouse.move(5, 5)
    expect(page.locator(".chm-heads")).to_contain_text("step 495")
    loss.focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    expect(spoken(bridge)).to_contain_text("Step 1: ")
    expect(key).to_contain_text(f"{run.records[1].values['image_loss']:.4g}")


def test_a_value_that_is_not_a_number_is_a_gap_with_a_mark_and_not_a_zero(panel, screenshots):
    run = GrowingRun()
    for step in range(60):
        bad = {"loss": math.nan} if 25 <= step < 35 else {"loss": 3.0}
        run.grow(StepRecord(step, step, bad, {"norm": [1.0 + step, math.inf if step == 40 else 2.0]}))
    bridge = panel(run)
    up_to_date(run, bridge)
    canvas = ".chm-curves canvas"
    width = bridge.page.locator(canvas).bounding_box()["width"]
    axis = [54 + (width - 68) * step / 59 for step in (27, 33)]
    between = pixels(bridge, canvas, int(axis[0]), 12, int(axis[1] - axis[0]), 140)
    line = pixels(bridge, canvas, 60, 12, 40, 140)
    assert (line[..., 3] > 120).any() and not (between[..., 3] > 120).any(), "no line where there is no number"
    bridge.page.screenshot(path=screenshots / "run-nan.png")
    assert reddish(pixels(bridge, canvas, int(axis[0]), 155, int(axis[1] - axis[0]), 15)), "marks below the gap"
    expect(bridge.page.get_by_text("not a number")).to_be_visible()
    step_40 = int(54 + (width - 68) * 40.5 / 59)
    assert reddish(pixels(bridge, ".chm-heat-plot canvas", step_40, 30, 3, 20))


def test_an_alarm_that_is_looked_at_stands_out_on_the_axis(panel):
    run = saturating(700)
    bridge = panel(run)
    up_to_date(run, bridge)
    canvas = ".chm-curves canvas"
    width = bridge.page.locator(canvas).first.bounding_box()["width"]
    alarm = run.history.alarms[-1]
    assert alarm.level == "CRITICAL"
    at = int(54 + (width - 68) * alarm.step / 699)
    assert reddish(pixels(bridge, canvas, at - 5, 0, 11, 10)), "a mark in its colour"
    before = pixels(bridge, canvas, at - 2, 60, 5, 80)
    bridge.page.get_by_role("button", name="CRITICAL").focus()
    bridge.drawn()
    assert pixels(bridge, canvas, at - 2, 60, 5, 80)[..., 3].sum() > 2 * before[..., 3].sum()
    bridge.page.keyboard.press("Enter")
    expect(bridge.page.locator(".chm-heads")).to_contain_text(f"step {alarm.step}")


def test_measures_and_their_curves_can_be_chosen(panel):
    run = GrowingRun(200)
    bridge = panel(run)
    page = bridge.page
    up_to_date(run, bridge)
    expect(page.locator(".chm-curves b")).to_have_text(["Loss", "Max attention logit"])
    page.get_by_role("button", name="gradient norm").click()
    page.get_by_role("button", name="max attention logit", exact=True).first.click()
    expect(page.locator(".chm-curves b")).to_have_text(["Loss", "Gradient norm"])
    image = page.locator(".chm-curves", has_text="Loss").get_by_role("button", name="image")
    before = page.locator(".chm-curves canvas").first.screenshot()
    image.click()
    expect(image).to_have_attribute("aria-pressed", "false")
    bridge.drawn()
    assert page.locator(".chm-curves canvas").first.screenshot() != before
    page.get_by_label("Measure of layers").select_option("residual_norm")
    expect(page.get_by_role("img", name="Heat map of residual norm, 4 rows")).to_be_visible()


def test_a_range_can_be_dragged_out_and_given_back(panel):
    run = GrowingRun(400)
    bridge = panel(run)
    page = bridge.page
    up_to_date(run, bridge)
    box = plot(bridge, "Loss").bounding_box()
    inner = box["width"] - 68
    page.mouse.move(box["x"] + 54 + inner * 0.25, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + 54 + inner * 0.5, box["y"] + 50, steps=4)
    page.mouse.up()
    expect(page.get_by_label("Steps shown")).to_have_value("dragged")
    bridge.drawn()
    plot(bridge, "Loss").focus()
    page.keyboard.press("Home")
    expect(spoken(bridge)).to_contain_text("Step 99: ")
    page.get_by_role("button", name="Whole run").click()
    expect(page.get_by_label("Steps shown")).to_have_value("all")
    page.get_by_label("Steps shown").select_option("100")
    bridge.drawn()
    plot(bridge, "Loss").focus()
    page.keyboard.press("Home")
    expect(spoken(bridge)).to_contain_text("Step 299: ")


def test_drawing_only_what_is_newest_gives_the_picture_that_drawing_all_gives(panel):
    run = GrowingRun(20_000, steps=100_000)
    bridge = panel(run)
    up_to_date(run, bridge)
    for _ in range(40):
        run.grow(replace(step_record(len(run.records)), values={"loss": 1 + math.sin(len(run.records))}))
        up_to_date(run, bridge)
    page = bridge.page
    page.evaluate(CLEARED)
    page.evaluate(f"window.before = ({PICTURE})()")
    run.grow(replace(step_record(len(run.records)), values={"loss": 3.9}))  # a spike
    up_to_date(run, bridge)
    assert page.evaluate("Math.max(...window.cleared)") > 700, "only the right end was drawn anew"
    assert page.evaluate(f"({FURTHEST})(({PICTURE})(), before)") > 100
    page.evaluate(f"window.after = ({PICTURE})()")
    page.evaluate("document.body.classList.toggle('other')")  # as if the theme had changed
    bridge.until(lambda: page.evaluate("Math.min(...window.cleared)") == 0)
    assert page.evaluate(f"({FURTHEST})(({PICTURE})(), after)") < 40, "but for the smoothing of edges"


def test_a_page_that_missed_messages_asks_again_and_has_every_record_once(panel):
    run = GrowingRun(50)
    bridge = panel(run)
    up_to_date(run, bridge)
    bridge.alive = False
    grown = len(run.records)
    run.grow()
    bridge.until(lambda: all_sent(run, bridge) and bridge.widget.comm.sent.empty())  # into the void
    bridge.alive = True
    grow(run, bridge, 3)
    assert run.records[-1].step == grown + 3
    value = bridge.page.locator(".chm-curves", has_text="Loss").get_by_role("button", name="all")
    bridge.until(lambda: f"{run.records[-1].values['loss']:.4g}" in value.inner_text())
    plot(bridge, "Loss").focus()
    for step in (grown + 3, grown + 2, grown + 1, grown):
        bridge.page.keyboard.press("ArrowLeft")
        expect(spoken(bridge)).to_contain_text(f"Step {step}: ")


def test_a_run_that_was_rewound_is_drawn_anew(panel):
    run = saturating(700)
    bridge = panel(run)
    up_to_date(run, bridge)
    expect(bridge.page.locator(".chm-event")).to_have_count(2)
    del run.records[300:], run.events[:]
    run.become()
    grow(run, bridge)
    expect(bridge.page.locator(".chm-event")).to_have_count(0)
    expect(bridge.page.get_by_text("No alarm so far.")).to_be_visible()


def test_a_finished_run_is_seen_from_its_folder_without_controls(panel, tmp_path, screenshots):
    run = saturating(300)
    state = replace(run.state, status="finished", parent="baseline", forked_at=120, difference="query_key_norm")
    (tmp_path / "state.json").write_text(json.dumps(asdict(state)))
    (tmp_path / "metrics.jsonl").write_text(run.history.to_jsonl())
    bridge = panel(tmp_path)
    bridge.until(lambda: lamp(bridge) == "Finished")
    expect(bridge.page.get_by_text("fork of baseline at step 120: query_key_norm · from its folder")).to_be_visible()
    expect(bridge.page.get_by_role("toolbar", name="Controls")).to_be_hidden()
    expect(bridge.page.locator(".chm-curves")).to_have_count(2)
    bridge.page.screenshot(path=screenshots / "run-folder.png")


def test_a_long_step_is_seen_to_go_on(panel):
    run = GrowingRun(30)
    bridge = panel(run)
    page, pace = bridge.page, bridge.page.locator(".chm-run-pace")
    up_to_date(run, bridge)
    expect(pace).not_to_contain_text("no step for")
    page.clock.install()
    page.clock.fast_forward(100_000)
    expect(pace).to_contain_text("no step for")
    before = pace.inner_text()
    page.clock.fast_forward(2_000)
    expect(pace).not_to_have_text(before)
    grow(run, bridge)
    expect(pace).not_to_contain_text("no step for")


def test_heads_that_nobody_reads_are_not_waited_for(panel):
    run = GrowingRun(3)  # as of an image tokenizer: what reads them does so at the first step
    run.records[:] = [replace(each, layers={}) for each in run.records]
    bridge = panel(run)
    bridge.until(lambda: bridge.page.locator(".chm-curves").count())
    expect(bridge.page.get_by_label("Attention logits by head")).to_be_hidden()


ELSEWHERE = """
import sys
from dataclasses import replace
from chameleon_lab.training.experiments import LAB
from chameleon_lab.training.modules import Budget
run = replace(LAB, name="elsewhere", budget=Budget(steps=100_000)).run(sys.argv[1])
run.wait()
"""


def test_buttons_reach_a_process_elsewhere_and_its_refusal_comes_back(panel, tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ELSEWHERE, str(tmp_path)])
    try:
        ends = time.monotonic() + 300
        while not (tmp_path / "metrics.jsonl").exists():
            assert process.poll() is None and time.monotonic() < ends
            time.sleep(0.1)
        run = RecordedRun(tmp_path)
        bridge = panel(run)
        bridge.until(lambda: lamp(bridge) == "Training" and run.state.settings)
        bridge.page.get_by_role("button", name="Pause").click()
        bridge.until(lambda: run.state.status == "paused" and lamp(bridge) == "Paused")
        bridge.widget._order({"command": "change", "arguments": {"rate": 0}}, [])  # with a decay that divides by it
        bridge.until(lambda: bridge.page.get_by_role("alert").is_visible())
        expect(bridge.page.get_by_role("alert")).to_contain_text("needs a rate above 0")
        bridge.page.get_by_role("button", name="Stop").click()
        bridge.until(lambda: run.state.status == "stopped" and lamp(bridge) == "Stopped")
        process.wait(120)
    finally:
        process.kill()


def test_a_run_in_another_process_is_steered_through_its_folder(panel, tmp_path, screenshots):
    class Obedient(RecordedRun):
        def act(self, command, **arguments):
            if command == "pause":
                raise ValueError("That process does not read its orders.")
            orders.append((command, arguments))

    orders, run = [], saturating(300)
    state = replace(run.state, process=os.getpid(), host=socket.gethostname())
    (tmp_path / "state.json").write_text(json.dumps(asdict(state)))
    (tmp_path / "metrics.jsonl").write_text(run.history.to_jsonl())
    bridge = panel(Obedient(tmp_path))
    bridge.until(lambda: lamp(bridge) == "Training")
    expect(bridge.page.get_by_text("from its folder")).to_be_visible()
    bridge.page.get_by_role("button", name="Pause").click()
    bridge.until(lambda: bridge.page.get_by_role("alert").is_visible())
    expect(bridge.page.get_by_role("alert")).to_have_text("That process does not read its orders.")
    bridge.page.screenshot(path=screenshots / "run-folder-live.png")
    bridge.page.get_by_role("button", name="Save a checkpoint now").click()
    bridge.until(lambda: orders == [("save", {})])
    bridge.until(lambda: bridge.page.get_by_role("alert").is_hidden())


def test_a_kernel_that_does_not_answer_is_told(panel):
    run = GrowingRun(10)
    bridge = panel(run)
    up_to_date(run, bridge)
    bridge.alive = False
    bridge.page.get_by_role("button", name="Stop").click()
    expect(bridge.page.get_by_role("alert")).to_contain_text("has not answered")
    expect(bridge.page.locator(".chm-run .chm-lamp")).to_contain_text("Disconnected")


def test_a_model_of_many_heads_fits(panel, screenshots):
    run = GrowingRun()
    rng = np.random.default_rng(0)
    logits = np.zeros((32, 32))
    for step in range(40):
        logits = rng.gamma(3, 8, logits.shape)
        run.grow(StepRecord(step, step, {"loss": 3 - step / 40}, {"max_attention_logit": logits.tolist()}))
    bridge = panel(run)
    up_to_date(run, bridge)
    bridge.page.screenshot(path=screenshots / "run-heads.png", full_page=True)
    many = np.count_nonzero(logits > 50)
    expect(bridge.page.get_by_role("img", name=f"step 39: {many} of 1024 heads above 50")).to_be_visible()
    assert bridge.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
