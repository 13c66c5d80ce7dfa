"""The arena in a bare page: judged by keys and by clicks, on the disk at each step; texts are never HTML."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from playwright.sync_api import expect

from chameleon_lab.documents import Document
from chameleon_lab.studies import ABSOLUTE_SHEET, Study, all_judgements
from chameleon_widgets import Arena

CODE = "<img src=x onerror=\"document.title='run'\"><b>bold</b>"


def drawing(colour: str) -> PIL.Image.Image:
    noise = np.random.default_rng(1).integers(0, 60, (64, 64, 3), np.uint8)
    return PIL.Image.blend(PIL.Image.new("RGB", (64, 64), colour), PIL.Image.fromarray(noise), 0.3)


def study(pairs: bool) -> Study:
    prompts = [Document.of(f"draw a {colour} square, and say what it is") for colour in ("red", "blue", "green")]
    first = [Document.of(f"It is {CODE}, as you asked.", drawing(colour)) for colour in ("red", "blue", "teal")]
    second = [Document.of(drawing("orange"), "A square. " * 12) for _ in prompts]
    if pairs:
        return Study.of_pairs("drawings", prompts, {"ours": first, "theirs": second})
    return Study.of_replies("drawings on a sheet", prompts, {"ours": first}, ABSOLUTE_SHEET)


@pytest.fixture
def open_page(mounted, tmp_path):
    bridges = []

    def open_(pairs: bool):
        bridge = mounted(lambda: Arena(tmp_path, "Ann", study(pairs)))
        bridges.append(bridge)
        bridge.until(lambda: bridge.page.locator(".chm-judge-answer").count())
        return bridge

    yield open_
    for bridge in bridges:
        bridge.widget.close()


def at(bridge, words: str) -> None:
    bridge.until(lambda: bridge.page.locator(".chm-judge-count").inner_text() == words)


def picture(bridge, path: Path, width: int, dark: bool) -> None:
    bridge.page.set_viewport_size({"width": width, "height": 760})
    bridge.page.evaluate("dark => document.body.classList.toggle('dark', dark)", dark)
    bridge.drawn()
    box = bridge.page.locator(".chm-judge").bounding_box()
    assert box and box["x"] + box["width"] <= width
    bridge.page.screenshot(path=path)


def test_pairs_are_judged_by_keys_and_clicks(open_page, screenshots, tmp_path):
    bridge = open_page(pairs=True)
    page = bridge.page
    at(bridge, "1 of 3")
    assert page.locator(".chm-judge-reply").count() == 2 and page.locator(".chm-judge-reply b").count() == 0
    assert CODE in page.locator(".chm-judge-replies").inner_text() and page.title() != "run"
    for width in (600, 1920):
        for dark in (False, True):
            picture(bridge, screenshots / f"arena_pair_{width}_{'dark' if dark else 'light'}.png", width, dark)
    page.get_by_role("button", name="About the same").click()
    at(bridge, "2 of 3")
    assert [each.answers for each in all_judgements(tmp_path)] == [{"better": "same"}]
    page.locator(".chm-judge-body").press("1")
    at(bridge, "3 of 3")
    page.locator(".chm-judge-body").press("Backspace")
    at(bridge, "2 of 3")
    expect(page.get_by_role("button", name="The first")).to_have_attribute("aria-pressed", "true")
    page.locator(".chm-judge-body").press("3")
    at(bridge, "3 of 3")
    page.locator(".chm-judge-body").press("Backspace")
    at(bridge, "2 of 3")
    page.keyboard.down("3")
    for _ in range(5):
        page.keyboard.down("3")  # as a key repeats that is held down
    at(bridge, "3 of 3")
    page.keyboard.down("3")
    page.wait_for_timeout(200)
    at(bridge, "3 of 3")
    page.keyboard.up("3")
    page.locator(".chm-judge-body").press("3")
    bridge.until(lambda: page.get_by_text("All 3 are judged").is_visible())
    picture(bridge, screenshots / "arena_end_600_light.png", 600, False)
    assert len(all_judgements(tmp_path)) == 3


def test_a_sheet_is_answered_by_digits_and_enter(open_page, screenshots, tmp_path):
    bridge = open_page(pairs=False)
    page = bridge.page
    at(bridge, "1 of 3")
    following = page.get_by_role("button", name="Next")
    expect(following).to_be_disabled()
    body = page.locator(".chm-judge-body")
    for _ in ABSOLUTE_SHEET[:3]:
        body.press("2")
    for width in (600, 1920):
        for dark in (False, True):
            picture(bridge, screenshots / f"arena_sheet_{width}_{'dark' if dark else 'light'}.png", width, dark)
    assert not all_judgements(tmp_path)
    for _ in ABSOLUTE_SHEET[3:]:
        body.press("1")
    body.press("Enter")
    at(bridge, "2 of 3")
    (judgement,) = all_judgements(tmp_path)
    assert list(judgement.answers.values()) == ["partially", "partly", "fair", "good", "yes", "no"]
    for question in ABSOLUTE_SHEET:
        page.get_by_role("group", name=question.words).get_by_role("button").first.click()
    following.click()
    at(bridge, "3 of 3")


def test_a_silent_kernel_takes_no_answer_for_given(open_page, tmp_path):
    bridge = open_page(pairs=True)
    page = bridge.page
    bridge.alive = False
    page.get_by_role("button", name="About the same").click()
    expect(page.locator(".chm-lamp")).to_have_text("Disconnected: the kernel does not answer")
    assert page.locator(".chm-judge-count").inner_text() == "1 of 3" and not all_judgements(tmp_path)
    bridge.alive = True
    bridge.until(lambda: page.get_by_role("button", name="About the same").is_enabled())
    page.get_by_role("button", name="About the same").click()
    at(bridge, "2 of 3")
