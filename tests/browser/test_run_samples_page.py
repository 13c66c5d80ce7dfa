"""Learning is seen: samples along the steps, a fork's below its parent's; the words of marks and of measures."""

import itertools
import math
import threading
from dataclasses import replace

import numpy as np
import PIL.Image
import pytest
from browser.test_run_panel_page import up_to_date
from fakes import GrowingRun, scene, step_record
from playwright.sync_api import expect

from chameleon_lab.history import Milestone, Sample
from chameleon_widgets.runs.run_panel import RunPanel
from chameleon_widgets.runs.sample_feed import AT_ONCE

PROMPTS = ("draw a red circle left of a blue square", "draw a small blue star on a pink background")


class Drawing(GrowingRun):
    """A run of a folder, with samples in it: pictures of two prompts, and words of a third."""

    def __init__(self, folder, records, every=40, noise=7, **state):
        super().__init__(records, **state)
        self.folder, self.forks = folder, []
        (folder / "samples").mkdir(parents=True)
        for step in range(every, records, every):
            self.sample(step, noise * math.exp(-step / 150))

    def sample(self, step, noise):
        for at, name in enumerate(PROMPTS):
            pixels = np.asarray(scene("#d8413a", "#2f6fd6" if at else "#9f3fd6"), np.float64)
            rng = np.random.default_rng([step, at])
            drawn = PIL.Image.fromarray(
                (pixels + 20 * noise * rng.standard_normal(pixels.shape)).clip(0, 255).astype("u1")
            )
            file = f"samples/{step}-{at}.png"
            drawn.save(self.folder / file)
            self.events.append(Sample(step, name, file))
        self.events.append(Sample(step, "what do you see?", words=f"a red circle <b>left</b> of {step} squares"))


@pytest.fixture
def panel(mounted):
    bridges = []

    def show(run):
        bridges.append(mounted(lambda: RunPanel(run)))
        return bridges[-1]

    yield show
    for bridge in bridges:
        bridge.widget.close()


def test_samples_stand_along_the_steps_and_a_forks_below_its_parents(panel, tmp_path, screenshots):
    run = Drawing(tmp_path / "run", 400)
    run.events.append(Milestone(320, "another stage of the mixture begins: stories 50%, text 50%"))
    fork = Drawing(tmp_path / "fork", 400, noise=3, name="forked", parent="baseline", forked_at=150)
    run.forks.append(fork)
    bridge = panel(run)
    page = bridge.page
    strip = page.locator(".chm-samples")
    bridge.until(lambda: strip.locator(".chm-samples-pair img").count() == 4)
    texts = strip.locator(".chm-samples-words").all_inner_texts
    bridge.until(lambda: texts() == ["a red circle <b>left</b> of 360 squares"] * 2)
    rows = strip.locator(".chm-samples-row")
    expect(rows).to_have_count(4)
    expect(rows.nth(0).get_by_role("button")).to_have_count(9)
    expect(rows.nth(1).get_by_role("button")).to_have_count(6)  # from step 150 on
    expect(strip.locator(".chm-samples-title, .chm-run-title span").first).to_have_text("step 360")

    slider = page.get_by_role("slider", name="Step of the samples")
    slider.focus()
    for _ in range(6):
        page.keyboard.press("ArrowLeft")
    bridge.until(lambda: "step 120" in strip.locator(".chm-run-title").inner_text())
    assert strip.locator(".chm-samples-words").all_inner_texts() == ["a red circle <b>left</b> of 120 squares"]
    assert rows.nth(0).locator('[aria-current="true"]').count() == 1
    page.screenshot(path=screenshots / "samples.png", full_page=True)

    thumb = rows.nth(0).get_by_role("button").nth(4)
    thumb.hover()
    large = strip.locator(".chm-samples-large")
    expect(large).to_be_visible()
    assert "step 200" in large.inner_text() and PROMPTS[0] in large.inner_text()
    for width, theme in ((600, ""), (1920, "dark"), (600, "dark"), (1920, "")):
        page.set_viewport_size({"width": width, "height": 1500})
        page.evaluate("(theme) => { document.body.className = theme; }", theme)
        page.wait_for_timeout(600)
        thumb.hover()
        page.screenshot(path=screenshots / f"samples-{width}-{theme or 'light'}.png")
        thumbs = rows.nth(0).get_by_role("button").all()
        boxes = [each.bounding_box() for each in thumbs]
        assert all(one["x"] + one["width"] <= other["x"] for one, other in itertools.pairwise(boxes))


def test_the_sample_of_the_last_step_lies_within_the_panel(panel, tmp_path):
    bridge = panel(Drawing(tmp_path / "run", 361))
    page, strip = bridge.page, bridge.page.locator(".chm-samples")
    thumb = strip.locator(".chm-samples-row").first.get_by_role("button", name="step 360")
    for width in (600, 1180):
        page.set_viewport_size({"width": width, "height": 900})
        bridge.until(lambda: thumb.count())
        bridge.drawn()
        inner, outer = thumb.bounding_box(), strip.bounding_box()
        assert inner["x"] + inner["width"] <= outer["x"] + outer["width"]


def test_the_words_of_a_mark_and_of_a_measure_come_where_it_is_pointed_at(panel, tmp_path, screenshots):
    run = Drawing(tmp_path / "run", 0)
    for step in range(500):
        run.grow(step_record(step))
    run.events += [Milestone(250, "the critic begins <i>")]
    bridge = panel(run)
    page = bridge.page
    up_to_date(run, bridge)
    bridge.until(lambda: "CRITICAL" not in page.locator(".chm-curves-said").first.inner_text())
    for chart in page.locator(".chm-run-charts .chm-curves-plot").all():  # each of them, not the loss alone
        box = chart.bounding_box()
        reach = run.records[-1].step
        page.mouse.move(box["x"] + 54 + (box["width"] - 68) * 250 / reach, box["y"] + 60)
        said = chart.locator(".chm-curves-said")
        expect(said).to_have_text("step 250 · the critic begins <i>")
    title = page.locator(".chm-run-charts figcaption b").nth(1).get_attribute("title")
    assert "before the softmax" in title and "WARN above 50" in title and "Higher is worse" in title
    page.screenshot(path=screenshots / "samples-mark.png")


def test_many_charts_are_offered_by_family_and_few_in_a_row(panel, tmp_path, screenshots):
    run = Drawing(tmp_path / "run", 0)
    more = ("residual_norm", "output_norm", "logit_norm", "entropy", "update_ratio", "gradient_cosine", "my_thing")
    for step in range(30):
        record = step_record(step)
        run.grow(replace(record, values=record.values | dict.fromkeys(more, 1.0)))
    bridge = panel(run)
    page = bridge.page
    heads = page.locator(".chm-run-family")
    bridge.until(lambda: heads.count() == 5)
    assert [each.split(" ")[0] for each in heads.all_inner_texts()] == ["loss", "attention", "norms", "steps", "own"]
    norms = heads.nth(2)
    norms.click()
    bridge.until(lambda: page.locator(".chm-run-members .chm-chip").count() == 4)
    page.get_by_role("button", name="output norm").click()
    bridge.until(lambda: norms.inner_text() == "norms 1 of 4")
    expect(page.locator(".chm-run-charts figcaption b").last).to_have_text("Output norm")
    page.screenshot(path=screenshots / "families.png")
    norms.press("Enter")
    bridge.until(lambda: page.locator(".chm-run-members .chm-chip").count() == 0)


def test_a_name_that_leads_out_of_the_folder_shows_nothing_and_a_missing_picture_neither(panel, tmp_path):
    (tmp_path / "secret.png").write_bytes(b"")
    scene().save(tmp_path / "secret.png")
    run = Drawing(tmp_path / "run", 3)
    for name in ("../secret.png", str(tmp_path / "secret.png"), "samples/none.png"):
        run.events.append(Sample(2, f"of {name}", name, "words"))
    bridge = panel(run)
    words = bridge.page.locator(".chm-samples-words")
    bridge.until(lambda: words.count() == 3)
    assert bridge.page.locator(".chm-samples img").count() == 0


def test_samples_that_come_while_the_page_looks_are_added_once(panel, tmp_path):
    run = Drawing(tmp_path / "run", 10)
    bridge = panel(run)
    for step in range(3 * AT_ONCE):
        run.sample(step, 1.0)
        if step % AT_ONCE == 0:
            run.grow(step_record(10 + step))
            bridge.deliver()
            threading.Event().wait(0.05)
    run.grow(step_record(200))
    strip = bridge.page.locator(".chm-samples")
    bridge.until(lambda: f"step {3 * AT_ONCE - 1}" in strip.locator(".chm-run-title").inner_text())
    slider = bridge.page.get_by_role("slider", name="Step of the samples")
    expect(slider).to_have_attribute("max", str(3 * AT_ONCE - 1))
    run.become(status="stopped")
    bridge.widget._line.tell("hello")
    bridge.until(lambda: "Stopped" in bridge.page.locator(".chm-lamp").inner_text())
    assert slider.get_attribute("max") == str(3 * AT_ONCE - 1)
